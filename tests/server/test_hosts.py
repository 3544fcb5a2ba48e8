"""Names by which a router without keys may be asked for."""

import socket

import msgspec
import pytest

from router.errors import ApiError
from router.server.hosts import Hosts
from tests.server.fake_router import SECRET, ask, request, running


@pytest.mark.parametrize(
    "host",
    [
        None, "", "localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "10.1.2.3",
        "[fe80::1%25eth0]", "router", "nenya:8080", "host.docker.internal:8080", "studio.local", "app.localhost:3000",
        "ai.example.org", "AI.example.org:443", socket.gethostname(),
    ],
)  # fmt: skip
def test_names_that_are_taken(host):
    Hosts(["ai.example.org"]).check(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8080", "evil.example.", "localhost.evil.example", "127.0.0.1.evil.example",
        "local.example", "evillocal.com", "b.ai.example.org", "127.0.0.1x.com", "1.2.3",
    ],
)  # fmt: skip
def test_names_that_anybody_can_register_are_not(host):
    hosts = Hosts(["ai.example.org"])
    for _ in range(2):
        with pytest.raises(ApiError, match="names of its own machine") as refused:
            hosts.check(host)
        assert refused.value.status == 403
        assert refused.value.error.code == "host_refused"


async def asked(server, host, key=None):
    return await ask(server.url, request(key=key).replace(b"host: x", b"host: " + host.encode()))


async def test_a_page_whose_name_leads_here_gets_nothing_from_a_router_without_keys():
    async with running(keys=False, hosts=["ai.example.org"]) as server:
        refused = await asked(server, "evil.example")
        assert refused.status == 403
        assert msgspec.json.decode(refused.body)["error"]["code"] == "host_refused"
        assert b"evil" not in refused.body
        assert not server.router.opened
        for host in ("localhost:8080", "ai.example.org"):
            assert (await asked(server, host)).status == 200


async def test_with_keys_any_name_is_taken():
    async with running() as server:
        assert (await asked(server, "api.example.org", SECRET)).status == 200
        assert (await asked(server, "api.example.org")).status == 401

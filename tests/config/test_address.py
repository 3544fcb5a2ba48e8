"""Addresses, and who can reach them."""

import pytest

from router.config.address import Address, split


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("127.9.9.9:1", "127.9.9.9", 1, True),
        ("localhost:0", "localhost", 0, True),
        ("LocalHost:0", "LocalHost", 0, True),
        ("[::1]:65535", "::1", 65535, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
        ("192.168.0.1:80", "192.168.0.1", 80, False),
        ("localhost.example.com:80", "localhost.example.com", 80, False),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool) -> None:
    found = split(text)
    assert found == Address(host, port)
    assert found.is_loopback is loopback


@pytest.mark.parametrize(
    "text", ["", ":", "8080", ":80", "a:", "a:b", "a:65536", "a:-1", "::1:80", "[::1]", "[x]:1", "[g::]:1",
             "http://a:80", "a b:80", "a:80\n", "a:\u0661"],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    assert split(text) is None

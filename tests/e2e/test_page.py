"""The page in a real browser: it shows what happens, chats, says what goes wrong, and does nothing else."""

import asyncio
import contextlib

import pytest

from router.app import Router
from router.config.reader import parse
from router.ratelimits import Reading
from router.server import connection
from tests.browser import chromium, needs_chromium, open_page
from tests.e2e.serving import KEYS, PORTS, SECRET, served_by, upstream_config
from tests.upstream import (
    DONE,
    Upstream,
    chunk,
    error_body,
    event,
    events,
    json_answer,
    normal,
    reset,
    stream,
    stream_of,
)

pytestmark = needs_chromium

ENGINE = """
engines: {gpu0: {kind: simulated, ttft_ms: 40, tokens_per_s: 200, faults: {fail_mid: 0}}}
models: {sim: {aliases: [s], targets: [{engine: gpu0}]}}
"""
EVIL = "<img src=x onerror='window.pwned=1'><script>window.pwned=2</script>{{window.pwned=3}}"
LIVE = "document.body.dataset.link === 'live'"
IDLE = "document.getElementById('stop').hidden"


@pytest.fixture(scope="module")
def browser():
    with chromium() as endpoint:
        yield endpoint


@contextlib.asynccontextmanager
async def page_of(browser, config: str, *, keys: bool = False, complains: bool = False, **how):
    """A router with ``config`` and its page, live; after the test neither the console nor a policy has complained."""
    router = Router(parse(PORTS + (KEYS if keys else "") + config, "a test", {}))
    async with served_by(router) as served, open_page(browser, f"{served.admin_url}/", **how) as page:  # fmt: skip
        await page.until(LIVE)
        yield served, page
        assert await page.js("window.pwned") is None
        if not complains:
            assert page.complaints == []
        assert {url.partition("/static")[0].rstrip("/") for url in page.requests} <= {
            served.admin_url, f"{served.admin_url}/status", f"{served.admin_url}/v1/chat/completions",
        }  # fmt: skip


async def say(page, text: str) -> None:
    await page.js("document.getElementById('message').focus(); document.activeElement.select()")
    await page.write(text)
    await page.press("Enter")


async def heard(page, count: int = 2) -> str:
    """The last answer and what stands under it, once it is over."""
    await page.until(f"{IDLE} && document.querySelectorAll('article').length === {count}")
    return await page.js("[...document.querySelectorAll('article')].at(-1).innerText")


async def test_it_opens_clean_and_shows_what_there_is(browser):
    async with page_of(browser, ENGINE) as (_, page):
        text = await page.text("#status")
        for words in ("Requests/s", "no requests yet", "sim", "also s", "1 admits", "gpu0", "admitting", "ready",
                      "of 131K tokens", "None since the start."):  # fmt: skip
            assert words in text
        assert "Ask anything." in await page.text("#playground")
        assert len(page.requests) >= 8  # the page, five files, the icon, the status


async def test_it_shows_an_ejection_and_the_return_without_a_reload(browser):
    async with Upstream(default=reset()) as upstream:
        config = upstream_config(upstream.url) + "health: {failures: 1, eject_s: 1}\n"
        async with page_of(browser, config + "retry: {attempts: 1}\n") as (served, page):
            state = "document.querySelector('#targets .state').innerText"
            assert await page.js(state) == "admitting"
            with contextlib.suppress(Exception):
                await served.router.chat(asking("m"))
            await page.until(f"{state} === 'ejected'")
            assert "0 of 1 admit" in await page.text("#models")
            errors = await page.text("#errors")
            for words in ("connection_reset", "a/up", "req_", "an attempt failed", "status 502"):
                assert words in errors
            upstream.default = normal()
            await page.until(
                "document.querySelector('#targets').innerText.includes('the next request probes')"
            )
            await served.router.chat(asking("m"))
            await page.until(f"{state} === 'admitting'")
            await page.until("document.getElementById('since').innerText.includes('2 requests')")


def asking(model: str) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}]}


async def test_the_playground_streams_an_answer_and_says_how_it_went(browser):
    async with page_of(browser, ENGINE) as (served, page):
        await page.js("document.getElementById('system').value = 'Be brief.'")
        await page.js("document.getElementById('max-tokens').value = '40'")
        await page.js("document.getElementById('temperature').value = '0.5'")
        await say(page, "Tell me a story")
        await page.until(
            "document.querySelector('article.assistant')?.ariaBusy === 'true'"
            " && document.querySelector('article.assistant .text:not(.thinking)').innerText.length > 20"
        )
        assert not await page.js("document.getElementById('stop').hidden")
        answer = await heard(page)
        assert "gpu0 · first token " in answer
        assert " tokens/s · " in answer
        assert ", 40 written · ended by length" in answer
        assert await page.text("#said") == f"The answer is complete: {answer.splitlines()[-1]}"
        assert await page.focused() == "message"
        (done,) = served.done
        assert (done.key_id, done.streaming, done.output_tokens) == ("anonymous", True, 40)
        await page.until("document.getElementById('since').innerText.includes('1 request,')")


async def test_what_is_sent_is_the_conversation_so_far(browser):
    async with Upstream() as upstream:
        async with page_of(browser, upstream_config(upstream.url)) as (_, page):
            await page.js("document.getElementById('system').value = 'Be brief.'")
            await say(page, "One")
            await heard(page)
            await page.js("document.getElementById('temperature').value = '0.7'")
            await say(page, "Two")
            await heard(page, 4)
        first, second = (seen.json for seen in upstream.requests)
        said = [(one["role"], one["content"]) for one in second["messages"]]
        assert said == [
            ("system", "Be brief."), ("user", "One"), ("assistant", "word0 word1 word2 "), ("user", "Two"),
        ]  # fmt: skip
        assert "temperature" not in first
        assert (second["temperature"], second["stream_options"]) == (0.7, {"include_usage": True})


async def test_what_nobody_answered_can_be_sent_again_and_is_no_part_of_the_chat(browser):
    down = json_answer(error_body("Come back later."), status=400)
    async with Upstream(down) as upstream:
        async with page_of(browser, upstream_config(upstream.url), complains=True) as (_, page):
            await say(page, "Are you there?")
            assert "Come back later." in await heard(page)
            assert await page.js("document.getElementById('message').value") == "Are you there?"
            await page.press("Enter")
            assert "word0" in await heard(page, 4)
            assert await page.js("document.getElementById('message').value") == ""
        messages = upstream.requests[-1].json["messages"]
        assert [one["content"] for one in messages] == ["Are you there?"]


async def test_a_chat_outlives_a_reload_and_a_key_does_not(browser):
    async with page_of(browser, ENGINE, keys=True, complains=True) as (served, page):
        await page.until("!document.getElementById('key-field').hidden")
        await say(page, "Without a key")
        assert "invalid_api_key" in (wrong := await heard(page))
        assert "status\n401" in wrong
        assert "You didn't provide an API key." in wrong
        await page.js(f"document.getElementById('key').value = {SECRET!r}")
        await say(page, "With one")
        assert "gpu0 · first token" in await heard(page, 4)
        assert served.done[-1].key_id == "dev"
        assert SECRET not in await page.js("JSON.stringify(sessionStorage)")
        await page.reload()
        await page.until(LIVE)
        assert "With one" in await page.text("#log")
        assert await page.js("document.getElementById('key').value") == ""
        await page.js("document.getElementById('new-chat').click()")
        await page.reload()
        await page.until(LIVE)
        assert "With one" not in await page.text("#log")
        assert len(page.complaints) == 1  # the browser's own line for the 401
        assert "401" in page.complaints[0]


def after_a_moment(script):
    """A reset overtakes what was written before it."""

    async def answer(call):
        await asyncio.sleep(0.05)
        await script(call)

    return answer


async def test_errors_are_shown_in_full(browser, monkeypatch):
    monkeypatch.setattr(connection, "TORN_S", 2.0)  # however busy this machine is
    refusal = json_answer(
        error_body("No such thing: <b>x</b>", kind="invalid_request_error", param="top_p", code="bad_value"), status=400
    )  # fmt: skip
    midway = stream_of(events(2, finish=None, done=False), then=after_a_moment(reset()))
    async with Upstream(refusal, midway) as upstream:
        config = upstream_config(upstream.url) + "recovery: {enabled: false}\n"
        async with page_of(browser, config, complains=True) as (_, page):
            await say(page, "First")
            told = await heard(page)
            for words in (
                "No such thing: <b>x</b>",
                "bad_value",
                "top_p",
                "status\n400",
                "request id\nreq_",
            ):
                assert words in told
            assert (await page.text("#said")).startswith("Error: No such thing")
            await say(page, "Second")
            told = await heard(page, 4)
            assert "word0 word1" in told
            assert "upstream_error" in told
            assert "request id" in told


async def test_by_keyboard_alone(browser):
    """Everything that a mouse can do here: choose, ask, stop, go on."""
    config = ENGINE.replace("tokens_per_s: 200", "tokens_per_s: 20")
    async with page_of(browser, config) as (served, page):
        order = []
        for _ in range(20):
            await page.press("Tab")
            order.append(await page.focused())
            if order[-1] == "message":
                break
        first = ["Skip to the status", "Skip to the playground"]
        wanted = [*first, "/status", "new-chat", "model", "Settings", "log", "message"]
        assert [stop for stop in order if stop in wanted] == wanted
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await page.js(outline) == "solid"
        await page.write("A long story")
        await page.press("Enter")
        await page.until(
            "document.querySelector('article.assistant .meter')?.innerText.includes('tokens/s')"
        )
        await page.press("Escape")
        answer = await heard(page)
        assert "stopped · gpu0" in answer
        await until(lambda: served.done)
        assert served.done[0].outcome == "client_gone"
        await page.press("Tab")
        assert await page.focused() == "send"
        await page.press("Tab", shift=True)
        assert await page.focused() == "message"
        await page.write("Go on")
        await page.press("Tab")
        await page.press("Enter")  # on Send, which then makes way for Stop
        await page.until("document.activeElement.id === 'stop'")
        await page.press("Space")
        await heard(page, 4)
        assert await page.focused() == "message"


async def until(holds, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


async def test_hostile_words_stay_words(browser):
    """Names, errors and answers are whatever somebody wrote: none may become markup or run."""
    answer = stream_of([
        event(chunk({"role": "assistant", "content": EVIL, "reasoning_content": EVIL})),
        event(chunk({}, finish=EVIL)), DONE,
    ])  # fmt: skip
    refusal = json_answer(error_body(EVIL, kind=EVIL, param=EVIL, code=EVIL), status=400)
    async with Upstream(answer, refusal) as upstream:
        name = EVIL.replace("'", "''")
        config = f"""
providers: {{'{name}': {{base_url: {upstream.url!r}}}}}
models: {{'{name}': {{aliases: ['a{name}'], targets: [{{provider: '{name}', model: '{name}'}}]}}}}
"""
        async with page_of(browser, config, complains=True) as (_, page):
            assert await page.text("#models .first") == EVIL
            assert f"{EVIL}/{EVIL}" in await page.text("#targets")
            await say(page, EVIL)
            assert EVIL in await heard(page)
            assert await page.text("article.user .text:not(.thinking)") == EVIL
            await say(page, "again")
            assert (await heard(page, 4)).count(EVIL) >= 3
            await page.until(f"document.getElementById('errors').innerText.includes({EVIL!r})")
            await page.reload()
            await page.until(LIVE)
            assert EVIL in await page.text("#log")
            assert await page.js("document.querySelectorAll('main img, main script').length") == 0
            blocked = "try { document.body.innerHTML = '<b>'; 'made' } catch (error) { error.name }"
            assert await page.js(blocked) == "TypeError"


async def test_it_says_when_the_router_is_gone_and_goes_on_when_it_is_back(browser):
    router = Router(parse(PORTS + ENGINE, "a test", {}))
    async with served_by(router) as first:
        port = first.admin_url.rpartition(":")[2]
        async with open_page(browser, f"{first.admin_url}/") as page:
            await page.until(LIVE)
            await first.serving.stop(0)
            await page.until("document.body.dataset.link === 'stale'")
            assert "What is shown is from" in await page.text("#notice")
            assert "Stale since" in await page.text("#link")
            assert "gpu0" in await page.text("#targets")
            again = PORTS.replace('admin: "127.0.0.1:0"', f'admin: "127.0.0.1:{port}"')
            async with served_by(Router(parse(again + ENGINE, "a test", {}))):
                await page.until(LIVE)
                assert await page.js("document.getElementById('notice').hidden")
                assert await page.text("#link") == "Live"


async def test_an_admin_key_unlocks_it(browser):
    key = "sk-admin-0123456789"
    config = PORTS.replace("drain_s", f"admin_key: {key}, drain_s") + ENGINE
    async with (
        served_by(Router(parse(config, "a test", {}))) as served,
        open_page(browser, f"{served.admin_url}/") as page,
    ):
        await page.until("document.body.dataset.link === 'locked'")
        assert "admin key" in await page.text("#notice")
        assert await page.js("document.getElementById('overview').hidden")
        for word, state in (("sk-wrong-0123456789", "locked"), (key, "live")):
            await page.js("document.getElementById('admin-key').focus()")
            await page.write(word)
            await page.press("Enter")
            await page.until(f"document.body.dataset.link === '{state}'")
        assert "gpu0" in await page.text("#targets")
        assert key not in await page.js("JSON.stringify(sessionStorage) + location.href")


async def test_nobody_asks_while_nobody_looks(browser):
    async with page_of(browser, ENGINE) as (_, page):
        hide = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => %s});"
        turn = "document.dispatchEvent(new Event('visibilitychange'))"
        await page.js(hide % "true" + turn)
        await asyncio.sleep(1.2)  # one that was under way
        asked = "performance.getEntriesByName(location.origin + '/status').length"
        before = await page.js(asked)
        await asyncio.sleep(1.5)
        assert await page.js(asked) == before
        await page.js(hide % "false" + turn)
        await page.until(f"{asked} > {before}")


# Who reads it, and on what

FITS = """
[...document.querySelectorAll("main section, table, td, dd, .bar, .bar *")].filter((node) => {
  const inner = node.getBoundingClientRect();
  const outer = (node.closest("#status, #playground") ?? document.body).getBoundingClientRect();
  return node.checkVisibility() && (inner.right > outer.right + 1 || inner.left < outer.left - 1);
}).map((node) => `${node.tagName} ${node.className} ${node.id}`)
"""
CONTRAST = """
(() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const linear = (v) => (v <= 10 ? v / 3294 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const lightness = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const words = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim() !== "");
    if (!(words || node.matches("input, textarea, select")) || !node.checkVisibility()) continue;
    const one = lightness(rgb(getComputedStyle(node).color)), other = lightness(ground(node));
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push(`${node.tagName} ${node.className}: ${node.textContent} ${ratio.toFixed(2)}`);
  }
  return poor;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_it_can_be_read_in_both_schemes_and_on_small_screens(browser, dark):
    async with Upstream(default=reset()) as upstream:
        both = upstream_config(upstream.url).replace(
            "providers:", ENGINE.partition("models:")[0] + "providers:"
        )
        both = both.replace("models:\n", "models:\n  sim: {targets: [{engine: gpu0}]}\n")
        config = f"{both}health: {{failures: 1}}\n"
        async with page_of(browser, config, dark=dark, complains=True) as (served, page):
            await page.scheme(dark=dark, reduced=True)
            quota = served.router.pool.targets["a/up"].quota
            told = (Reading("requests", 600, 467, 40.0), Reading("tokens", 90_000, 1_288, 50.0))
            quota.hear(told, served.router._clock.now())
            await page.js("document.getElementById('model').value = 'm'")
            await say(page, "This will fail")
            await heard(page)
            await page.js("document.getElementById('model').value = 'sim'")
            await say(page, "This " + "won't" * 60)
            await page.until("document.querySelectorAll('article').length === 4")
            assert await page.js("document.getAnimations().length") == 0
            await heard(page, 4)
            await page.until("document.querySelector('#targets').innerText.includes('ejected')")
            await page.js("document.getElementById('more').open = true")
            assert await page.js(CONTRAST) == []
            for size in (
                (320, 640),
                (390, 844),
                (768, 1024),
                (1024, 768),
                (1279, 800),
                (1280, 800),
                (1920, 1080),
            ):
                await page.resize(*size)
                for view in ("status", "playground"):
                    await page.js(f"location.hash = '{view}'")
                    await page.until(f"document.body.dataset.view === '{view}'")
                    assert await page.js(FITS) == [], (size, view)
                    assert await page.js("document.documentElement.scrollWidth <= innerWidth")
                    assert await page.js(f"document.getElementById('{view}').checkVisibility()")


NAMED = {
    "textbox",
    "button",
    "combobox",
    "searchbox",
    "spinbutton",
    "link",
    "table",
    "image",
    "log",
}


async def test_it_makes_sense_to_a_screen_reader(browser):
    async with page_of(browser, ENGINE) as (served, page):
        await served.router.chat(asking("sim"))
        await page.until("document.getElementById('since').innerText.includes('1 request,')")
        for size in ((1280, 800), (390, 844)):
            await page.resize(*size)
            nodes = await page.accessible()
            roles = [
                (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes
            ]
            assert [role for role, _ in roles].count("main") == 1
            for landmark in (("banner", ""), ("region", "Status")):
                assert landmark in roles
            for role, name in roles:
                if role in NAMED:
                    assert name, role
            tables = {name for role, name in roles if role == "table"}
            assert {"Models", "Targets", "Engines on this machine"} <= tables
            assert [role for role, _ in roles].count("columnheader") >= 18
        assert await page.js("document.documentElement.lang") == "en"


async def test_a_large_pool_can_be_filtered(browser):
    providers = "".join(f"  p{n}: {{base_url: 'http://127.0.0.1:9/v1'}}\n" for n in range(300))
    targets = "".join(f"      - {{provider: p{n}, model: up}}\n" for n in range(300))
    config = f"providers:\n{providers}models:\n  m:\n    targets:\n{targets}"
    async with page_of(browser, config) as (_, page):
        rows = "document.querySelectorAll('#targets tr').length"
        assert await page.js(rows) == 200
        assert "100 more" in await page.text("#targets-more")
        await page.js("document.getElementById('filter').focus()")
        await page.write("p29 admit")
        await page.until(f"{rows} === 11")
        assert await page.text("#targets-more") == "11 of 300 shown."
        row = await page.js("document.querySelector('#targets tr').innerText")
        assert row.startswith("p29/up")


async def test_a_pause_in_a_stream_loses_nothing(browser):
    """Pieces cut anywhere, also within a character and an event."""
    texts = ["Zwölf ", "Boxkämpfer ", "jagen ", "🥊", " Viktor.\n\ndata: x"]
    answer = stream(
        texts=texts, pieces=lambda data: [data[i : i + 7] for i in range(0, len(data), 7)]
    )
    async with Upstream(answer) as upstream:
        async with page_of(browser, upstream_config(upstream.url)) as (_, page):
            await say(page, "Say it")
            assert "Zwölf Boxkämpfer jagen 🥊 Viktor.\n\ndata: x" in await heard(page)

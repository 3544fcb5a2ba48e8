"""The page at the admin port: a few static files, read once, answered from memory with a strict policy.

There is nothing of the router in them, so everybody may have them; what they show comes from /status. Whatever a
model, a provider or a client says reaches the document as text alone: the policy allows no script, style or picture
but these files' and no connection but to where they came from, and browsers that know Trusted Types refuse to make
markup of text at all.

Source: W3C, Content Security Policy Level 3; W3C, Trusted Types; OWASP, Secure Headers Project.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from router.server.exchange import Exchange
from router.server.routes import Route

FOLDER = Path(__file__).parent / "static"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/page.css": ("page.css", "text/css; charset=utf-8"),
    "/static/main.js": ("main.js", "text/javascript; charset=utf-8"),
    "/static/dom.js": ("dom.js", "text/javascript; charset=utf-8"),
    "/static/overview.js": ("overview.js", "text/javascript; charset=utf-8"),
    "/static/playground.js": ("playground.js", "text/javascript; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Paths, and the file and content type behind each."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
"""Without a validator ``no-cache`` asks again each time: after an update nobody has half of the old page."""


def page_routes() -> tuple[Route, ...]:
    """One for each file."""
    return tuple(
        Route("GET", path, _answer((FOLDER / name).read_bytes(), kind), needs_key=False)
        for path, (name, kind) in FILES.items()
    )


def _answer(body: bytes, content_type: str) -> Callable[[Exchange], Awaitable[None]]:
    async def answer(exchange: Exchange) -> None:
        exchange.note(HEADERS)
        exchange.answer(200, body, content_type)

    return answer

"""What `nenya serve` prints once it can answer: where it is, and two things to paste that work as they stand.

Never a secret: a curl that needs a key names the variable it is in.
"""

from __future__ import annotations

import json
import shlex

from router.cli.arguments import KEY_VARIABLE
from router.config.schema import Config

_QUESTION = "What is 12 + 7?"


def banner(config: Config, url: str, admin_url: str | None) -> str:
    """The text, ending in a newline."""
    model = next(iter(config.models))
    url = _reachable(url)
    lines = [
        f"  API    {url}/v1",
        f"  Page   {_page(admin_url)}",
        f"  Models {_models(config)}",
        "",
        "Try it:",
        "",
        *(f"  {line}" for line in _curl(url, model, keyed=config.asks_for_keys)),
        "",
        "From Python (pip install openai):",
        "",
        *(f"  {line}" for line in _python(url, model, keyed=config.asks_for_keys)),
        "",
        "Ctrl-C stops it.",
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _page(admin_url: str | None) -> str:
    """Where people look, and machines beside them."""
    if admin_url is None:
        return "off"
    return f"{_reachable(admin_url)}/  status and playground; /metrics for Prometheus"


def _reachable(url: str) -> str:
    """A URL that a client on this machine can use where the server listens on every address."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


_MOST_NAMES = 6
"""Models named in one line; more would wrap."""


def _models(config: Config) -> str:
    names = [name if name.isprintable() else repr(name) for name in config.models]
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _curl(url: str, model: str, *, keyed: bool) -> list[str]:
    messages = [{"role": "user", "content": _QUESTION}]
    body = json.dumps({"model": model, "stream": True, "messages": messages}, ensure_ascii=False)
    lines = [f"curl -N {url}/v1/chat/completions", '  -H "Content-Type: application/json"']
    if keyed:
        lines.append(f'  -H "Authorization: Bearer ${KEY_VARIABLE}"')
    lines.append(f"  -d {shlex.quote(body)}")
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _python(url: str, model: str, *, keyed: bool) -> list[str]:
    key = f'os.environ["{KEY_VARIABLE}"]' if keyed else '"none"'
    return [
        "import os" if keyed else "",
        "from openai import OpenAI",
        "",
        f'client = OpenAI(base_url="{url}/v1", api_key={key})',
        "answer = client.chat.completions.create(",
        f"    model={json.dumps(model, ensure_ascii=False)},",
        f'    messages=[{{"role": "user", "content": "{_QUESTION}"}}],',
        ")",
        "print(answer.choices[0].message.content)",
    ][0 if keyed else 1 :]

"""Runs the shipped model through llama.cpp on questions it has not seen, and prints how it did.

Decides nothing but the asking: the questions and what counts as right are in `probes.py`. Answers
are greedy, so the figures are the same on every run with the same file (llama.cpp's arithmetic may
differ in the last digit between processors, which can flip a rare close call).
"""

# ruff: noqa: PLC0415 - heavy or mutual imports stand where they are needed

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from engines.starter import gguf_path
from engines.starter.probes import Probe, Reply, everything
from engines.starter.probes_structured import describe

EXAMPLES = """\
examples:
  python -m engines.starter.evaluate
      the table of all skills (about a minute)
  python -m engines.starter.evaluate --only tools --show
      the tool skills, with every wrong answer
  python -m engines.starter.evaluate --model build/starter/starter.gguf
      another model file, for example one you have just trained
"""


def server(model: Path, threads: int) -> Any:
    """llama.cpp's server in this process, quiet and closed to others."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = 4096
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.verbosity = 0
    params.api_keys = [secrets.token_hex(16)]
    return xllamacpp.Server(params)


def ask(srv: Any, probe: Probe) -> Reply:
    """One greedy answer."""
    body = {"messages": probe.messages, "temperature": 0, "max_tokens": 300, **probe.extra}
    reply: Reply = srv.handle_chat_completions(body)
    return reply


def passed(probe: Probe, reply: Reply) -> bool:
    """Whether the reply is right; an error reply never is."""
    return "choices" in reply and probe.check(reply)


def run(srv: Any, probes: list[Probe], *, show: bool) -> dict[str, list[bool]]:
    """Asks everything; the results by skill."""
    results: dict[str, list[bool]] = defaultdict(list)
    for probe in probes:
        reply = ask(srv, probe)
        right = passed(probe, reply)
        results[probe.skill].append(right)
        if show and not right:
            said = describe(reply) if "choices" in reply else json.dumps(reply)
            print(f"  {probe.skill}: {probe.messages[-1]['content']!r} -> {said}")
    return results


def table(results: dict[str, list[bool]]) -> str:
    """The results as a Markdown table."""
    lines = ["| skill | right | of | % |", "|---|---:|---:|---:|"]
    for skill, marks in results.items():
        share = 100 * sum(marks) / len(marks)
        lines.append(f"| {skill} | {sum(marks)} | {len(marks)} | {share:.1f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs the evaluation."""
    p = argparse.ArgumentParser(
        prog="python -m engines.starter.evaluate",
        description="Measure the starter model, skill by skill, through llama.cpp (xllamacpp).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", type=Path, default=gguf_path(), help="GGUF file (default: shipped)")
    p.add_argument("--only", default="", metavar="SKILL", help="only skills starting with this")
    p.add_argument("--show", action="store_true", help="print every wrong answer")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    a = p.parse_args(argv)
    probes = [probe for probe in everything() if probe.skill.startswith(a.only)]
    if not probes:
        print(f"no skill starts with {a.only!r}", file=sys.stderr)
        return 1
    begun = time.monotonic()
    results = run(server(a.model, a.threads), probes, show=a.show)
    print(table(results))
    print(f"\n{len(probes)} questions in {time.monotonic() - begun:.0f} s")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

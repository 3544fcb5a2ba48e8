"""Does measuring find what simulating says? Measure an engine, calibrate, simulate, search in real time, compare.

    python -m benchmarks.measure_loop

Everything goes through the command line, as a user would do it, against `nenya serve` with a simulated engine: in real
time, over HTTP, with its own step model that knows nothing of the simulator's. Takes about seven minutes; exits with 1
where the search's answer is further than 10 % from the simulator's.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLOSE = 0.10
SLO = "ttft=0.6,tpot=0.045"
REQUESTS = 200
"""At the capacity of this engine about 70 s of traffic a probe."""
CONFIG = """\
server: {{listen: "127.0.0.1:{port}", admin: null}}
engines: {{e: {{kind: simulated, slots: 16, ttft_ms: 30, tokens_per_s: 60, prefill_tokens_per_s: 8000,
  batch_penalty: 0.05}}}}
models: {{m: {{targets: [{{engine: e}}]}}}}
"""


def main() -> int:
    """Do it and print both answers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = _free_port()
        (folder / "nenya.yaml").write_text(CONFIG.format(port=port), encoding="utf-8")
        _write_trace(folder / "trace.jsonl")
        server = subprocess.Popen(
            _nenya("serve", str(folder / "nenya.yaml")), stderr=subprocess.DEVNULL
        )
        try:
            _wait(port)
            return _loop(folder, f"http://127.0.0.1:{port}")
        finally:
            server.terminate()
            server.wait()


def _loop(folder: Path, url: str) -> int:
    run, costs, trace = (str(folder / name) for name in ("run.json", "costs.json", "trace.jsonl"))
    simulated, searched = folder / "simulated.json", folder / "searched.json"
    lengths = ("--input", "50-1500", "--output", "20-120")
    _do("bench", "sweep", url, *lengths, "--most", "40", "--duration", "15s", "--json", run)
    _do("bench", "calibrate", run, "--kv-tokens", "131072", "--chunk-tokens", "2048", "-o", costs)
    one = ("--engines", "1", "--policies", "round_robin", "--seeds", "1", "--slo", SLO)
    _do("bench", "simulate", trace, *one, "--costs", costs, "--capacity", "--json", str(simulated))
    start = ("--trace", trace, "--rate", "2")
    _do("bench", "goodput", url, *start, "--slo", SLO, "--json", str(searched))
    said, found = (
        json.loads(path.read_text())["capacity"]["held"] for path in (simulated, searched)
    )
    off = found / said - 1
    print(f"\nsimulated {said:.2f}/s, found in real time {found:.2f}/s: {off:+.1%}")
    return 0 if abs(off) <= CLOSE else 1


def _do(*words: str) -> None:
    print("\n$ nenya", *words, flush=True)
    subprocess.run(_nenya(*words), check=True)


def _nenya(*words: str) -> list[str]:
    return [sys.executable, "-m", "router.cli", *words]


def _write_trace(path: Path) -> None:
    rng, at, lines = random.Random(7), 0.0, []
    for _ in range(REQUESTS):
        row = {
            "timestamp": round(1000 * at, 1),
            "input_length": rng.randint(50, 1500),
            "output_length": rng.randint(20, 120),
        }
        lines.append(json.dumps(row))
        at += rng.expovariate(1.0)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _wait(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("nenya serve did not start")


if __name__ == "__main__":
    sys.exit(main())

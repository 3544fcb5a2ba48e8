"""Everything that only a GPU can answer, in one call, and a report of it.

    scripts/gpu-check --pack                 where there is a network: fetch what is to travel into .gpu/wheels
    scripts/gpu-check                        where there is a GPU: build the kernels, test, measure, report
    scripts/gpu-check --stage build          one stage alone; later calls go on from what earlier ones left in .gpu
    scripts/gpu-check --stage exllamav3      the contract of the exllamav3 engine; not part of the verdict
    scripts/gpu-check --cpu                  a rehearsal on the CPU harness: shows that the steps run, and nothing else

The machine with the GPU needs a driver, nvcc, and a Python with torch for CUDA, transformers and ninja; no network.
What else is needed comes out of .gpu/wheels, which was packed for CPython 3.12 on Linux x86-64 unless --python said
otherwise, and goes into .gpu/site, beside what the Python has. Kernels are compiled into .gpu/extensions, on all cores.

A call ends within --limit seconds, and each stage leaves its part of the report, also one that was cut short. The
report is report.md and report.json in --out ($OUT, or gpu-report). Exit code 0: what was asked for is right; 1: it
isn't, or was cut short; 3: there is no GPU.

Nothing here but Python's standard library is imported: it must run before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATE = Path(os.environ.get("NENYA_GPU_STATE", ROOT / ".gpu"))
WHEELS, SITE, EXTENSIONS = STATE / "wheels", STATE / "site", STATE / "extensions"
LOCK = ROOT / "scripts/lock/gpu.txt"
STAGES = ("build", "test", "bench")
MORE = ("exllamav3",)
"""Only where they are asked for."""

SHARES = {"build": 0.6, "test": 0.6, "bench": 1.0, "exllamav3": 1.0}
"""Of the time that is left when a stage begins: none may take what the others need."""

TESTS = (
    "tests/gpu",
    "tests/engines/test_contract.py",
    "tests/engines/test_parameters.py",
    "tests/engines/test_continue.py",
    "tests/engines/test_samplers.py",
)
GRACE_S = 20.0
"""After an interrupt, for pytest to write down what it knows."""

GLIBC = range(5, 40)
"""Minor versions of manylinux_2_N: pip takes wheels of exactly those it is told."""

MACHINE = """
import importlib.util, json, sys
found = {"python": sys.version.split()[0]}
try:
    import torch
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        one = torch.cuda.get_device_properties(0)
        found |= {"gpu": one.name, "gpus": torch.cuda.device_count(), "gib": round(one.total_memory / 2**30, 1),
                  "capability": f"{one.major}.{one.minor}"}
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
for name in ("exllamav2", "exllamav3", "llguidance", "tokenizers", "transformers", "flash_attn"):
    import importlib.metadata
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
wanted = ("jinja2", "ninja", "numpy", "PIL", "pygments", "regex", "rich", "safetensors", "tokenizers", "transformers")
found["missing"] = [name for name in wanted if importlib.util.find_spec(name) is None]
print(json.dumps(found))
"""
COMPILE = """
import importlib, json, sys, time
begun = time.monotonic()
built = getattr(importlib.import_module(sys.argv[1] + ".ext"), sys.argv[1] + "_ext")
print(json.dumps({"seconds": round(time.monotonic() - begun, 1), "file": built.__file__}))
"""


@dataclass
class Ended:
    """How a child ended."""

    code: int
    seconds: float
    output: str
    cut: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked; returns the exit code."""
    options = parse(arguments)
    if options.pack:
        return pack(options.python)
    begun = time.monotonic()
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    STATE.mkdir(exist_ok=True)
    report: dict[str, Any] = {} if options.fresh else kept()
    if report.get("rehearsal") is not options.cpu:  # one is no part of the other
        report = {"rehearsal": options.cpu}
    report["date"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    stages = report.setdefault("stages", {})
    problem = install(out)
    environment = surroundings(rehearsal=options.cpu)
    report["machine"] = machine(environment, out)
    absent = problem or without_gpu(report["machine"], rehearsal=options.cpu)
    for stage in options.stage:
        left = options.limit - (time.monotonic() - begun)
        if absent:
            stages[stage] = {"status": "absent", "detail": absent, "seconds": 0.0}
        else:
            share = left * (SHARES[stage] if stage != options.stage[-1] else 1.0)
            limit = share - GRACE_S
            print(f"== {stage}, at most {limit:.0f} s", flush=True)
            stages[stage] = RUN[stage](environment, out, limit, rehearsal=options.cpu)
        stages[stage]["date"] = report["date"]
        write(report, out, options.stage)
    code = write(report, out, options.stage)
    print((out / "report.md").read_text(encoding="utf-8"), flush=True)
    return code


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pack", action="store_true", help="fetch the wheels that are to travel")
    parser.add_argument(
        "--python", default="3.12", help="of the machine with the GPU (with --pack)"
    )
    parser.add_argument(
        "--stage", action="append", choices=STAGES + MORE, help=f"default: {', '.join(STAGES)}"
    )
    parser.add_argument("--limit", type=float, default=570.0, help="seconds for this call")
    parser.add_argument("--out", default=os.environ.get("OUT", "gpu-report"), help="of the report")
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier calls")
    parser.add_argument("--cpu", action="store_true", help="a rehearsal without a GPU")
    options = parser.parse_args(arguments)
    wanted = options.stage or STAGES
    options.stage = [stage for stage in STAGES + MORE if stage in wanted]
    return options


# What travels.


def pack(python: str) -> int:
    """Fetch the locked wheels for another machine; the only step that needs a network."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["manylinux2014_x86_64", "manylinux1_x86_64", "any"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", python, "--dest", str(WHEELS), "--requirement", str(LOCK)]
    for platform in platforms:
        command += ["--platform", platform]
    code = subprocess.run(command, check=False).returncode
    wheels = list(WHEELS.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels for CPython {python}, {size / 2**20:.1f} MiB, in {WHEELS}")
    return 1 if code else 0


def install(out: Path) -> str:
    """Install what was packed, without a network; returns what is wrong. Without a pack the Python must have it all."""
    if not WHEELS.is_dir():
        return ""
    stamp = SITE / ".stamp"
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    with contextlib.suppress(OSError):
        if stamp.read_text() == digest:
            return ""
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += [
        "--no-index",
        "--no-deps",
        "--require-hashes",
        "--no-compile",
        "--find-links",
        str(WHEELS),
    ]
    command += ["--target", str(SITE), "--requirement", str(LOCK)]
    done = run(command, dict(os.environ), 120, out / "install.log")
    if done.code:
        return f"what was packed can't be installed: {last_line(done.output)}"
    stamp.write_text(digest)
    return ""


def surroundings(*, rehearsal: bool) -> dict[str, str]:
    """Return the environment of the stages: where CUDA is, what was installed, where kernels are kept."""
    environment = dict(os.environ)
    roots = [str(SITE)] if SITE.is_dir() else []
    roots += [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(root for root in roots if root)
    environment["TORCH_EXTENSIONS_DIR"] = str(EXTENSIONS)
    environment.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    environment["PYTHONUNBUFFERED"] = "1"
    prepend(environment, "PATH", Path(sys.executable).parent)  # ninja, where it came with torch
    environment.setdefault("XDG_CACHE_HOME", str(STATE / "cache"))
    if rehearsal:
        environment["NENYA_GPU_REHEARSAL"] = "1"
        environment["NENYA_EXLLAMAV2_LOADER"] = "tests.engines.exl2.harness"
        environment["OMP_NUM_THREADS"] = "1"
        return environment
    home = cuda_home(environment)
    if home is not None:
        environment["CUDA_HOME"] = str(home)
        prepend(environment, "PATH", home / "bin")
    for folder in beside_torch("include"):  # headers that CUDA_HOME may lack
        prepend(environment, "CPATH", folder)
    for folder in beside_torch("lib"):
        prepend(environment, "LIBRARY_PATH", folder)
    return environment


def cuda_home(environment: dict[str, str]) -> Path | None:
    """Return the folder whose bin has nvcc."""
    given = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    tool = shutil.which("nvcc")
    places = [Path(given)] if given else []
    places += [Path("/usr/local/cuda")]
    places += [Path(tool).resolve().parent.parent] if tool else []
    places += [folder.parent for folder in beside_torch("bin")]
    return next((place for place in places if (place / "bin/nvcc").exists()), None)


def beside_torch(name: str) -> list[Path]:
    """Return the folders of that name in CUDA's Python packages."""
    found = [Path(root) / "nvidia" for root in sys.path if root]
    return [path for root in found for path in sorted(root.glob(f"cu[0-9]*/{name}"))]


def prepend(environment: dict[str, str], name: str, folder: Path) -> None:
    """Put a folder in front of a list of folders."""
    environment[name] = os.pathsep.join(
        part for part in (str(folder), environment.get(name)) if part
    )


def machine(environment: dict[str, str], out: Path) -> dict[str, Any]:
    """Return what is known of the machine."""
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    done = run([sys.executable, "-c", MACHINE], environment, 120, out / "machine.log")
    with contextlib.suppress(ValueError):
        found |= json.loads(last_line(done.output))
    tool = shutil.which("nvidia-smi")
    if tool:
        query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = last_line(run(query, environment, 30, out / "driver.log").output)
    tool = shutil.which("nvcc", path=environment.get("PATH"))
    if tool:
        said = run([tool, "--version"], environment, 30, out / "nvcc.log").output
        found["nvcc"] = next((line.strip() for line in said.splitlines() if "release" in line), "?")
    return found


def without_gpu(found: dict[str, Any], *, rehearsal: bool) -> str:
    """Return why nothing can be done; empty where it can."""
    if "torch" not in found:
        return f"this Python has no torch: {found.get('error', 'it did not start')}"
    if found.get("exllamav2") is None:
        return "exllamav2 is not installed: pack it where there is a network (--pack) and bring .gpu/wheels"
    missing = set(found.get("missing", ())) - ({"ninja", "transformers"} if rehearsal else set())
    if missing:
        return f"this Python lacks {', '.join(sorted(missing))}, which come with torch or transformers, or by pip"
    return "" if rehearsal or found.get("gpu") else "torch sees no GPU"


# The stages.


def build(
    environment: dict[str, str], out: Path, limit: float, *, rehearsal: bool
) -> dict[str, Any]:
    """Compile ExLlamaV2's kernels; objects that an earlier call compiled are kept."""
    if rehearsal:
        command = [sys.executable, "-c", "import tests.engines.exl2.harness"]
        done = run(command, environment, limit, out / "build.log")
        return result(done, "no kernels: the harness stands in for them" if not done.code else "")
    return compiled("exllamav2", environment, out, limit)


def compiled(library: str, environment: dict[str, str], out: Path, limit: float) -> dict[str, Any]:
    """Compile a library's kernels."""
    for lock in EXTENSIONS.rglob("lock"):  # of a build that was killed: torch would wait for it
        lock.unlink()
    command = [sys.executable, "-c", COMPILE, library]
    done = run(command, environment, limit, out / f"build-{library}.log")
    return result(done, last_line(done.output) if done.code == 0 else "")


def test(
    environment: dict[str, str], out: Path, limit: float, *, rehearsal: bool
) -> dict[str, Any]:
    """Run the tests that are marked gpu."""
    tests = TESTS[:1] if rehearsal else TESTS
    return tested(tests, "not exllamav3", environment, out, limit)


def third(
    environment: dict[str, str], out: Path, limit: float, *, rehearsal: bool
) -> dict[str, Any]:
    """Compile ExLlamaV3's kernels and hold its engine to the contract."""
    if rehearsal:
        return {
            "status": "failed",
            "seconds": 0.0,
            "detail": "nothing of it can be rehearsed: see the gate",
        }
    begun = time.monotonic()
    ended = compiled("exllamav3", environment, out, limit)
    if ended["status"] != "ok":
        return ended
    return tested(TESTS[1:], "exllamav3", environment, out, limit - (time.monotonic() - begun))


def tested(
    tests: Sequence[str], chosen: str, environment: dict[str, str], out: Path, limit: float
) -> dict[str, Any]:
    """Run tests marked gpu; ``chosen`` as pytest's -k has it."""
    listed = out / "tests.xml"
    listed.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *tests, "-k", chosen, "-ra"]
    command += [
        "--junitxml",
        str(listed),
        "-W",
        "default",
    ]  # what torch warns of is not ours to mend
    command += ["-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout"]
    environment = {**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = run(command, environment, limit, out / "test.log")
    found = cases(listed)
    count = {kind: sum(case["outcome"] == kind for case in found) for kind in OUTCOMES}
    detail = (
        ", ".join(f"{number} {kind}" for kind, number in count.items() if number) or "no result"
    )
    ended = result(done, detail) | {"cases": found}
    if ended["status"] == "ok" and not count["passed"]:
        ended["status"] = "failed"
    return ended


OUTCOMES = ("passed", "failed", "skipped")


def cases(path: Path) -> list[dict[str, Any]]:
    """Read pytest's report; empty where there is none."""
    try:
        tree = ET.parse(path)  # noqa: S314 - written by the line above
    except (OSError, ET.ParseError):
        return []
    found = []
    for case in tree.iter("testcase"):
        outcome, reason = "passed", ""
        for kind, said in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            element = case.find(kind)
            if element is not None:
                outcome, reason = said, (element.get("message") or "").splitlines()[0][:300]
                break
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        seconds = round(float(case.get("time") or 0), 1)
        found.append({"name": name, "outcome": outcome, "reason": reason, "seconds": seconds})
    return found


def bench(
    environment: dict[str, str], out: Path, limit: float, *, rehearsal: bool
) -> dict[str, Any]:
    """Measure throughput and time to first token against the library's own loop."""
    measured = out / "bench.json"
    measured.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--json",
        str(measured),
        "--limit",
        f"{limit:.0f}",
    ]
    command += ["--folder", str(STATE / "models")]
    command += ["--tiny"] if rehearsal else []
    done = run(command, environment, limit, out / "bench.log")
    table = done.output[done.output.find("| ") :] if "| " in done.output else ""
    ended = result(done, "")
    with contextlib.suppress(OSError, ValueError):
        ended["measured"] = json.loads(measured.read_text(encoding="utf-8"))
        ended["table"] = table
        ended["detail"] = ended["measured"].get("verdict", "")
    return ended


RUN = {"build": build, "test": test, "bench": bench, "exllamav3": third}


def result(done: Ended, detail: str) -> dict[str, Any]:
    """Return a stage's entry."""
    status = "cut" if done.cut else "failed" if done.code else "ok"
    if not detail and status != "ok":
        detail = last_line(done.output)
    return {"status": status, "seconds": round(done.seconds, 1), "detail": detail}


def run(command: Sequence[str], environment: dict[str, str], limit: float, log: Path) -> Ended:
    """Run a child within ``limit`` seconds: an interrupt first, then the end of all its processes."""
    begun = time.monotonic()
    cut = False
    with log.open("wb") as opened:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=opened,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(max(1.0, limit))
        except subprocess.TimeoutExpired:
            cut = True
            os.killpg(child.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
    output = log.read_text(encoding="utf-8", errors="replace")
    if cut:
        output += f"\ncut short after {limit:.0f} s"
    return Ended(code, time.monotonic() - begun, output, cut)


def last_line(text: str) -> str:
    """Return the last line that says something."""
    return next((line.strip()[:500] for line in reversed(text.splitlines()) if line.strip()), "")


# The report.


def kept() -> dict[str, Any]:
    """Return the report so far."""
    with contextlib.suppress(OSError, ValueError):
        report: dict[str, Any] = json.loads((STATE / "report.json").read_text(encoding="utf-8"))
        return report
    return {}


def verdict(report: dict[str, Any], asked: Sequence[str]) -> tuple[int, str]:
    """Return the exit code and the sentence."""
    stages: dict[str, Any] = report["stages"]
    every = (*STAGES, *(stage for stage in asked if stage in MORE))
    statuses = {stage: stages.get(stage, {}).get("status", "missing") for stage in every}
    wrong = [
        f"{stage} {status}" for stage, status in statuses.items() if status in {"failed", "cut"}
    ]
    absent = [stage for stage in asked if statuses[stage] == "absent"]
    missing = [stage for stage, status in statuses.items() if status in {"missing", "absent"}]
    if absent:
        return 3, f"NO GPU: nothing was checked. {stages[absent[0]]['detail']}"
    code = int(any(statuses[stage] in {"failed", "cut"} for stage in asked))
    if wrong:
        return code, f"FAILED: {', '.join(wrong)}"
    if report["rehearsal"]:
        return code, "REHEARSED on a CPU: the steps run; nothing is known of a GPU"
    if missing:
        return code, f"INCOMPLETE: right so far; to be run: {', '.join(missing)}"
    return code, "PASSED"


def write(report: dict[str, Any], out: Path, asked: Sequence[str]) -> int:
    """Write the report in both forms, and keep it for the next call; returns the exit code."""
    code, report["verdict"] = verdict(report, asked)
    text = json.dumps(report, indent=1)
    (STATE / "report.json").write_text(text, encoding="utf-8")
    (out / "report.json").write_text(text, encoding="utf-8")
    (out / "report.md").write_text(markdown(report), encoding="utf-8")
    return code


def markdown(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [
        "# The exllamav2 engine on a GPU",
        "",
        f"**{report['verdict']}**",
        "",
        report["date"],
        "",
    ]
    lines += ["| machine | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in report["machine"].items() if value != []]
    lines += ["", "| stage | status | seconds | |", "|---|---|---|---|"]
    for name in (*STAGES, *(more for more in MORE if more in report["stages"])):
        stage = report["stages"].get(name, {"status": "not run", "seconds": "", "detail": ""})
        lines.append(f"| {name} | {stage['status']} | {stage['seconds']} | {stage['detail']} |")
    found = [case for stage in report["stages"].values() for case in stage.get("cases", [])]
    for outcome in ("failed", "skipped"):
        listed = [case for case in found if case["outcome"] == outcome]
        if listed:
            lines += [
                "",
                f"## Tests that {'failed' if outcome == 'failed' else 'were skipped'}",
                "",
            ]
            lines += [f"- `{case['name']}`: {case['reason']}" for case in listed]
    table = report["stages"].get("bench", {}).get("table")
    if table:
        lines += ["", "## Measured", "", table.rstrip()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

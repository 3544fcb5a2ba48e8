"""scripts/gpu-check on machines without a GPU: its stages, its time limit, and what it reports."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts/gpu_check.py")
gpu_check = importlib.util.module_from_spec(spec)
sys.modules["gpu_check"] = gpu_check
spec.loader.exec_module(gpu_check)


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Folders of its own, so that nothing here touches what a user has."""
    for name, folder in (
        ("STATE", "."),
        ("WHEELS", "wheels"),
        ("SITE", "site"),
        ("EXTENSIONS", "ext"),
    ):
        monkeypatch.setattr(gpu_check, name, tmp_path / "state" / folder)
    return tmp_path / "state"


def report_of(out):
    return json.loads((out / "report.json").read_text())


def test_without_a_gpu_it_says_so(state, tmp_path):
    assert gpu_check.main(["--out", str(tmp_path)]) == 3
    report = report_of(tmp_path)
    assert report["verdict"].startswith("NO GPU: nothing was checked. ")
    assert {stage["status"] for stage in report["stages"].values()} == {"absent"}
    assert report["verdict"] in (tmp_path / "report.md").read_text()


@pytest.mark.timeout(240)
def test_a_rehearsal_runs_every_stage(state, tmp_path):
    if any(importlib.util.find_spec(name) is None for name in ("torch", "exllamav2")):
        pytest.skip("torch and exllamav2 are not installed: make exl2-deps")
    done = subprocess.run(
        [ROOT / "scripts/gpu-check", "--cpu", "--fresh", "--limit", "200", "--out", tmp_path],
        env={**os.environ, "PYTHON": sys.executable, "NENYA_GPU_STATE": str(state)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    report = report_of(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["verdict"].startswith("REHEARSED on a CPU")
    stages = report["stages"]
    assert {name: stage["status"] for name, stage in stages.items()} == {
        "build": "ok", "test": "ok", "bench": "ok",
    }  # fmt: skip
    outcomes = {case["name"]: case["outcome"] for case in stages["test"]["cases"]}
    assert outcomes["test_answers::test_who_leaves_frees_its_pages"] == "passed"
    assert outcomes["test_kernels::test_the_extension_is_compiled"] == "skipped"
    assert stages["bench"]["measured"]["rows"]
    assert "| fp16 | 4 |" in (tmp_path / "report.md").read_text()
    assert done.stdout.endswith((tmp_path / "report.md").read_text() + "\n")


def test_what_the_machine_lacks_is_named():
    found = {"torch": "2", "exllamav2": "0.3.2", "gpu": "X", "missing": ["rich", "ninja"]}
    assert "lacks ninja, rich" in gpu_check.without_gpu(found, rehearsal=False)
    assert "lacks rich" in gpu_check.without_gpu(found, rehearsal=True)
    assert gpu_check.without_gpu({**found, "missing": []}, rehearsal=False) == ""
    assert "no GPU" in gpu_check.without_gpu({**found, "missing": [], "gpu": None}, rehearsal=False)
    assert "--pack" in gpu_check.without_gpu({**found, "exllamav2": None}, rehearsal=False)


def stage(status, **more):
    return {"status": status, "seconds": 1.0, "detail": "x", **more}


@pytest.mark.parametrize(
    ("stages", "asked", "code", "words"),
    [
        ({"build": stage("ok"), "test": stage("ok"), "bench": stage("ok")}, None, 0, "PASSED"),
        ({"build": stage("ok")}, ("build",), 0, "INCOMPLETE: right so far; to be run: test, bench"),
        ({"build": stage("ok"), "test": stage("failed")}, ("test",), 1, "FAILED: test failed"),
        ({"build": stage("cut")}, ("build",), 1, "FAILED: build cut"),
        ({"build": stage("failed"), "test": stage("ok")}, ("test",), 0, "FAILED: build failed"),
        (
            {
                **dict.fromkeys(("build", "test", "bench"), stage("ok")),
                "exllamav3": stage("failed"),
            },
            ("exllamav3",),
            1,
            "FAILED: exllamav3 failed",
        ),
        (
            {
                **dict.fromkeys(("build", "test", "bench"), stage("ok")),
                "exllamav3": stage("failed"),
            },
            None,
            0,
            "PASSED",
        ),
        ({"test": stage("absent")}, ("test",), 3, "NO GPU: nothing was checked. x"),
    ],
    ids=str,
)
def test_the_verdict(stages, asked, code, words):
    report = {"stages": stages, "rehearsal": False}
    assert gpu_check.verdict(report, asked or gpu_check.STAGES) == (code, words)


def test_stages_of_several_calls_make_one_report(state, tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu_check, "machine", lambda *_: {"torch": "2", "exllamav2": "0", "gpu": "X"}
    )
    runs = {name: lambda *_, **__: stage("ok") for name in gpu_check.STAGES}
    monkeypatch.setattr(gpu_check, "RUN", runs)
    for name, verdict in (("build", "INCOMPLETE"), ("test", "INCOMPLETE"), ("bench", "PASSED")):
        assert gpu_check.main(["--stage", name, "--out", str(tmp_path / name)]) == 0
        assert report_of(tmp_path / name)["verdict"].startswith(verdict)
    assert gpu_check.main(["--cpu", "--stage", "build", "--out", str(tmp_path / "x")]) == 0
    assert list(report_of(tmp_path / "x")["stages"]) == ["build"]  # a rehearsal is no result


def test_exllamav3_is_compiled_before_it_is_tested(tmp_path, monkeypatch):
    ran = []

    def run(command, environment, limit, log):
        ran.append((command[-1] if "-c" in command else command[command.index("-k") + 1], limit))
        return gpu_check.Ended(0 if len(ran) == 1 else 1, 1.0, "done", cut=False)

    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(gpu_check, "EXTENSIONS", tmp_path / "ext")
    (tmp_path / "ext/exllamav3_ext").mkdir(parents=True)
    (tmp_path / "ext/exllamav3_ext/lock").touch()  # of a build that was killed
    ended = gpu_check.RUN["exllamav3"]({}, tmp_path, 100.0, rehearsal=False)
    assert ended["status"] == "failed"
    assert [name for name, _ in ran] == ["exllamav3", "exllamav3"]
    assert ran[1][1] <= 100.0
    assert not (tmp_path / "ext/exllamav3_ext/lock").exists()


def test_a_stage_that_takes_too_long_is_cut_and_says_what_it_knows(tmp_path):
    code = (
        "import signal, sys, time, subprocess\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "def stop(*_):\n print('two of three', flush=True)\n sys.exit(1)\n"
        "signal.signal(signal.SIGINT, stop)\nprint('begun', flush=True)\ntime.sleep(600)\n"
    )
    done = gpu_check.run([sys.executable, "-c", code], dict(os.environ), 1.0, tmp_path / "log")
    assert done.cut
    assert done.seconds < 10
    assert gpu_check.result(done, "")["status"] == "cut"
    assert "two of three" in done.output


def test_cases_are_read_from_pytests_report(tmp_path):
    test = tmp_path / "test_x.py"
    test.write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): assert 1 == 2, 'wrong'\n"
        "def test_c(): pytest.skip('no such thing')\n"
        "@pytest.fixture\ndef broken(): raise ValueError('broken')\n"
        "def test_d(broken): pass\n"
    )
    listed = tmp_path / "tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={listed}",
    ]
    subprocess.run(
        [*command, "--rootdir", tmp_path, test], capture_output=True, check=False, cwd=tmp_path
    )
    found = [(case["name"], case["outcome"], case["reason"]) for case in gpu_check.cases(listed)]
    assert [(name, outcome) for name, outcome, _ in found] == [
        ("test_x::test_a", "passed"), ("test_x::test_b", "failed"),
        ("test_x::test_c", "skipped"), ("test_x::test_d", "failed"),
    ]  # fmt: skip
    assert "wrong" in found[1][2]
    assert found[2][2] == "no such thing"
    assert gpu_check.cases(tmp_path / "absent.xml") == []


def test_where_cuda_is(tmp_path, monkeypatch):
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    (home / "bin/nvcc").write_text("")
    assert gpu_check.cuda_home({"CUDA_HOME": str(home)}) == home
    packages = tmp_path / "site-packages"
    for name in ("include", "lib"):
        (packages / "nvidia/cu13" / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(packages)])
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("CPATH", "/mine")
    environment = gpu_check.surroundings(rehearsal=False)
    assert environment["CPATH"] == f"{packages}/nvidia/cu13/include:/mine"
    assert environment["LIBRARY_PATH"].startswith(f"{packages}/nvidia/cu13/lib")
    assert environment["PATH"].startswith(f"{home}/bin:")
    assert str(ROOT) in environment["PYTHONPATH"].split(os.pathsep)
    assert environment["TORCH_EXTENSIONS_DIR"] == str(gpu_check.EXTENSIONS)


def test_a_pack_is_installed_without_a_network_and_once(state, tmp_path, monkeypatch):
    ran = []
    done = gpu_check.Ended(0, 1.0, "", cut=False)

    def run(command, *_):
        ran.append(command)
        gpu_check.SITE.mkdir(parents=True)
        return done

    monkeypatch.setattr(gpu_check, "run", run)
    assert gpu_check.install(tmp_path) == ""
    assert not ran  # nothing was packed: the Python must have it all
    gpu_check.WHEELS.mkdir(parents=True)
    for _ in range(2):
        assert gpu_check.install(tmp_path) == ""
    (command,) = ran
    assert {"--no-index", "--no-deps", "--require-hashes"} <= set(command)
    done.code, done.output = 1, "No matching distribution found for x\n"
    (gpu_check.SITE / ".stamp").write_text("old")
    assert (
        gpu_check.install(tmp_path) == "what was packed can't be installed: " + done.output.strip()
    )


def test_the_lock_has_what_the_pack_needs():
    named = {line.split("==")[0] for line in (ROOT / "scripts/lock/gpu.txt").read_text().splitlines()
             if "==" in line}  # fmt: skip
    wanted = {line.split("==")[0] for line in (ROOT / "scripts/lock/gpu.in").read_text().splitlines()
              if line and not line.startswith("#")}  # fmt: skip
    assert named == wanted

"""`nenya engines calibrate` and `list`: which engines are started, what is printed and kept, and exit codes."""

import json
import types

import pytest
import yaml

from engines import measured
from engines.base import Delta, EngineError, EngineInfo, Finish, Usage, WorkCosts
from engines.measured import Measured, remember, remembered, settings_of
from engines.specs import LlamaCppSpec, SimulatedSpec
from router.cli import engines_calibrate, main

CONFIG = """\
engines:
  a: {kind: llamacpp, model: starter, threads: 1}
  s: {kind: simulated, tokens_per_s: 5000, prefill_tokens_per_s: 1.0e+6, ttft_ms: 0, slots: 2}
  c: {kind: simulated, costs: {prefill_token_s: 1.0e-4, step_s: 0.01}}
models:
  m: {targets: [{engine: a}, {engine: s}, {engine: c}]}
"""
RENTED = "providers: {p: {base_url: 'http://h'}}\nmodels: {m: {targets: [{provider: p}]}}\n"
COSTS = WorkCosts(prefill_token_s=2e-4, attention_s=1e-8, step_s=0.02, request_s=0.001)
SPEC = LlamaCppSpec(model="starter", threads=1)


class Stub:
    """An engine that answers at once, and remembers what became of it."""

    def __init__(self, spec):
        self.spec = spec
        self.closed = False
        self.fails = None

    async def start(self):
        if self.fails:
            raise self.fails
        return EngineInfo("llamacpp", "starter", 4096, 1, 4096, self.spec.costs, "a CPU")

    async def generate(self, request):
        print("a library prints this")
        for _ in range(8):
            yield Delta(0, "x")
        yield Finish(0, "stop")
        yield Usage(100, 8)

    def health(self):
        raise NotImplementedError

    async def close(self):
        self.closed = True


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The stubs that were made in the place of llama.cpp; simulated engines are their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engines_calibrate, "device_of", lambda _: "a CPU")
    real, stubs, fails = engines_calibrate.make, [], []

    def make(spec):
        if not isinstance(spec, LlamaCppSpec):
            return real(spec)
        stubs.append(Stub(spec))
        stubs[-1].fails = fails[0] if fails else None
        return stubs[-1]

    monkeypatch.setattr(engines_calibrate, "make", make)
    return types.SimpleNamespace(stubs=stubs, fails=fails)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nenya.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return str(path)


def calibrate(capsys, *arguments):
    code = main(["engines", "calibrate", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def record(**changes):
    said = {"costs": COSTS, "model": "starter", "device": "a CPU", "at": 1.8e9, "error": 0.02}
    said["settings"] = settings_of(SPEC)
    return Measured(**(said | changes))


def test_every_engine_in_turn(made, file, capsys):
    code, out, err = calibrate(capsys, file)
    assert code == 0
    assert "a (llamacpp), starter on a CPU: measured now" in out
    assert "s (simulated): measured to compare; its costs are the figures of the config" in out
    assert "c (simulated): the config says its costs; --again measures, to compare" in out
    assert err.startswith("a: starts\n")
    assert "a: a prompt of 100 tokens takes " in err
    assert "s: a step of 2 answers over " in err
    assert "c: " not in err
    assert "a library prints this" not in out
    (stub,) = made.stubs
    assert stub.closed
    assert stub.spec.costs == engines_calibrate.UNMEASURED
    assert remembered(SPEC, "a CPU").costs.step_s > 0
    assert remembered(SimulatedSpec(), "") is None


def test_the_costs_can_be_pasted(made, file, capsys):
    remember(record())
    _, out, _ = calibrate(capsys, file, "--engine", "a")
    (line,) = [line for line in out.splitlines() if line.startswith("  costs: ")]
    said = yaml.safe_load(line)["costs"]
    assert said == {
        "prefill_token_s": 2e-4, "attention_s": 1e-8, "step_s": 0.02, "request_s": 0.001
    }  # fmt: skip
    assert "step_s                 20000 µs  for a step of all answers\n" in out
    assert "off by 2.0%" in out


def test_what_is_known_is_not_measured_again(made, file, capsys):
    kept = remember(record())
    code, out, err = calibrate(capsys, file, "--engine", "a")
    assert (code, err, made.stubs) == (0, "", [])
    assert "a (llamacpp), starter on a CPU: measured on 2027-01-15; --again measures anew" in out
    assert f"  kept in {kept}\n" in out


def test_what_is_known_only_once_the_device_is(made, file, capsys, monkeypatch):
    remember(record())
    monkeypatch.setattr(engines_calibrate, "device_of", lambda _: None)
    code, out, err = calibrate(capsys, file, "--engine", "a")
    assert (code, err) == (0, "a: starts\n")
    assert "measured on 2027-01-15" in out
    assert made.stubs[0].closed


def test_again(made, file, capsys):
    remember(record())
    code, out, _ = calibrate(capsys, file, "--engine", "a", "--again", "--engine", "c")
    assert code == 0
    assert "a (llamacpp), starter on a CPU: measured now" in out
    assert "c (simulated): measured to compare" in out
    assert remembered(SPEC, "a CPU") != record()


def test_one_that_fails_does_not_keep_the_others_from_it(made, file, capsys):
    made.fails.append(EngineError("invalid", "m doesn't fit: set `cache: q8`"))
    code, out, err = calibrate(capsys, file)
    assert code == 1
    assert "nenya: a can't be measured: m doesn't fit: set `cache: q8`\n" in err
    assert "s (simulated): measured to compare" in out
    assert made.stubs[0].closed


def test_json(made, file, capsys):
    made.fails.append(EngineError("invalid", "no"))
    code, out, _ = calibrate(capsys, file, "--json")
    a, s, c = json.loads(out)
    assert code == 1
    assert (a["engine"], a["state"], a["error"], a["costs"]) == ("a", "failed", "no", None)
    assert (s["state"], s["file"]) == ("simulated", None)
    assert s["costs"]["step_s"] > 0
    assert len(s["found"]["steps"]) == 3
    assert (c["state"], c["costs"]["step_s"], c["found"]) == ("config", 0.01, None)


def test_a_folder_that_cannot_be_written_to(made, file, capsys, monkeypatch):
    monkeypatch.setattr(measured, "remember", lambda _: None)
    code, out, err = calibrate(capsys, file, "--engine", "a")
    assert code == 0
    assert "a: its costs can't be kept: there is no folder for them that can be written to" in err
    assert "kept in" not in out


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (CONFIG, ["--engine", "b"], "nenya: there is no engine 'b'; there are a, s, c\n"),
        (RENTED, [], "nenya: the config has no engines\n"),
        ("models: {}\n", [], "models"),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_2(made, tmp_path, capsys, text, arguments, said):
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    code, out, err = calibrate(capsys, str(path), *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_ctrl_c(made, file, capsys, monkeypatch):
    async def calibrated(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(engines_calibrate, "calibrated", calibrated)
    assert calibrate(capsys, file)[0] == 130


# The table.


def test_a_list_of_engines(made, file, capsys):
    assert main(["engines", "list", file]) == 0
    assert (
        capsys.readouterr().out
        == """\
engine  kind       what                              slots  context   cache  serves  costs
a       llamacpp   starter, gguf, 2.56 M parameters      4     4096   16384  m       guess
s       simulated  made-up answers                       2     8192  131072  m       model
c       simulated  made-up answers                      32     8192  131072  m       config
"""
    )


def test_a_list_in_json(made, file, capsys):
    remember(record())
    assert main(["engines", "list", file, "--json"]) == 0
    a, s, c = json.loads(capsys.readouterr().out)
    assert (a["costs_from"], a["costs"]["step_s"], a["serves"]) == (
        "measured 2027-01-15",
        0.02,
        ["m"],
    )
    assert (s["costs_from"], s["costs"], c["costs_from"]) == ("model", None, "config")


def test_a_list_says_what_is_broken(made, tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text(
        "engines: {e: {kind: llamacpp, model: /nowhere.gguf}, f: {kind: exllamav2, model: /nowhere}}\n"
        "models: {m: {targets: [{engine: e}]}}\n"
    )
    assert main(["engines", "list", str(path)]) == 0
    out = capsys.readouterr().out
    assert "can't be served: there is no file /nowhere.gguf" in out
    assert "can't be served: there is no folder /nowhere" in out
    assert main(["engines", "list", "/nowhere.yaml"]) == 2

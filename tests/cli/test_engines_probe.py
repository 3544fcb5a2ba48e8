"""`nenya engines probe`: what it prints, a config that `nenya check` takes, and its exit codes."""

import json
import re
from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from engines import sizing
from engines.exl2.memory import GIB
from engines.gpus import Gpu
from engines.probe import probe
from engines.sizing import Wish
from engines.specs import ExLlamaV3Spec
from router.cli import engines_probe, machine, main
from router.cli.yaml_text import flow
from router.config.reader import parse, read
from tests.engines.folders import CONFIG, TOKENIZER_CONFIG, exl2, folder

NESTED = {"rope_type": "default", "rope_theta": 500_000.0}


@pytest.fixture
def gpus(monkeypatch):
    """Say what GPUs there are: GiB free on each of 24, or why nobody knows."""

    def say(*free, why=""):
        found = tuple(
            Gpu(at, "NVIDIA RTX 3090", 24 * GIB, int(one * GIB), "570.1", "8.6")
            for at, one in enumerate(free)
        )
        monkeypatch.setattr(engines_probe, "found_gpus", lambda: (found, why))

    say()
    monkeypatch.setattr(engines_probe, "free_memory", lambda: 4 * GIB)
    return say


@pytest.fixture
def printed(capsys, gpus):
    def run(*arguments):
        code = main(["engines", "probe", *map(str, arguments)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def quantized(path, **changes):
    config = CONFIG | {"quantization_config": {"quant_method": "exl2", "bits": 4.0}} | changes
    return folder(path, exl2(CONFIG), config=config)


def checked(tmp_path, text, capsys):
    """The config in ``text``, which `nenya check` has to take."""
    file = tmp_path / "probed.yaml"
    file.write_text(text, encoding="utf-8")
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().err == ""
    return read(file)


def test_a_model_is_described_and_its_config_can_be_used(tmp_path, printed, gpus, capsys):
    gpus(20, 22)
    path = quantized(tmp_path / "Tiny-Llama_4.0bpw")
    code, out, err = printed(path, "--context", 2048, "--parallel", 3, "--cache", "q8")
    assert (code, err) == (0, "")
    shown, _, config = out.partition("\n\n")
    assert shown.splitlines()[:6] == [
        str(path),
        "  what      EXL2, 4 bits a weight, 0.115 M parameters, LlamaForCausalLM",
        "  shape     2 layers, 4 heads of 16 over 2 of keys and values, 320 tokens, a head of its own",
        "  context   4096 tokens; rope_theta 500000 (rope_theta)",
        "  template  tokenizer_config.json; no tools",
        "  ends      3 <|im_end|>, 2 <|end|>",
    ]
    assert "  wished    3 requests of 2048 tokens at the same time:" in shown
    assert "GPU       1 NVIDIA RTX 3090: 22.0 GiB of 24.0 GiB free" in shown
    assert re.search(r"room      fits: .* of 22\.0 GiB free$", shown)
    spec = checked(tmp_path, config, capsys).engines["tiny-llama_4.0bpw"]
    assert (spec.model, spec.gpus, spec.cache) == (str(path), (1,), "q8")
    assert (spec.cache_tokens, spec.context_tokens, spec.slots) == (6144, 2048, 3)


def test_a_file_for_llama_cpp(tmp_path, printed, capsys):
    code, out, _ = printed("starter")
    assert code == 0
    assert "room      fits: " in out
    assert "GPU " not in out
    config = checked(tmp_path, out.partition("\n\n")[2], capsys)
    assert config.engines["starter"].model == "starter"
    assert config.models["starter"].targets[0].engine == "starter"


@pytest.mark.parametrize(
    "name", ["My Model: v2 #1", "true", "3.14", "a ${HOME} b", "x'y\"z", "null", "naïve", "-"]
)
def test_names_that_yaml_or_the_config_would_read_otherwise(tmp_path, printed, capsys, name):
    path = quantized(tmp_path / name)
    code, out, _ = printed(path)
    assert code == 0
    config = checked(tmp_path, out.partition("\n\n")[2], capsys)
    (spec,) = config.engines.values()
    assert spec.model == str(path)
    assert list(config.models) == list(config.engines)


def test_without_a_gpu_the_config_is_as_wished(tmp_path, printed, gpus):
    gpus(why="nvidia-smi says: Driver/library version mismatch")
    code, out, _ = printed(quantized(tmp_path / "m"))
    assert code == 0
    assert "room      nobody here says what is free: nvidia-smi says: Driver/library" in out
    assert "slots: 4}" in out


def test_what_is_made_smaller_is_said(tmp_path, printed, gpus):
    gpus(1.15)
    code, out, _ = printed(quantized(tmp_path / "m"), "--context", 4096, "--parallel", 256)
    assert code == 0
    assert "fits, with cache " in out
    assert re.search(r"cache: q\d", out)


def test_too_big_is_a_failure(tmp_path, printed, gpus):
    gpus(0.3)
    code, out, _ = printed(quantized(tmp_path / "m"))
    assert code == 1
    assert "too big: 307.2 MiB are free" in out
    assert "engines:" not in out


def test_problems_and_notes(tmp_path, printed):
    config = {name: value for name, value in CONFIG.items() if name != "rope_theta"}
    path = folder(
        tmp_path / "m",
        config=config | {"rope_parameters": NESTED},
        tokenizer_config={k: v for k, v in TOKENIZER_CONFIG.items() if k != "chat_template"},
    )
    code, out, _ = printed(path)
    assert code == 0
    assert "context   4096 tokens; rope_theta 500000 (rope_parameters)" in out
    assert "note      rope_theta 500000 stands under rope_parameters, where exllamav2" in out
    assert "template  none: completions only" in out
    (path / "model.safetensors").write_bytes(b"")
    code, out, _ = printed(path)
    assert code == 1
    assert "problem   model.safetensors is empty: download it again" in out
    assert "engines:" not in out


def test_a_kind_that_nobody_here_serves(tmp_path, printed):
    config = CONFIG | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    path = folder(tmp_path / "m", config=config)
    code, out, _ = printed(path)
    assert code == 1
    assert "what      AWQ, 4 bits a weight" in out
    assert "problem   exllamav2 can't read weights quantised by awq" in out
    assert "wished" not in out


def test_a_model_for_exllamav3(tmp_path, printed, gpus, capsys):
    gpus(20)
    config = CONFIG | {"quantization_config": {"quant_method": "exl3", "bits": 3.5}}
    path = folder(tmp_path / "m", {"a.trellis": ("I16", (2, 2, 56))}, config=config)
    code, out, _ = printed(path, "--cache", "q6")
    assert code == 0
    assert "what      EXL3, 3.5 bits a weight" in out
    spec = checked(tmp_path, out.partition("\n\n")[2], capsys).engines["m"]
    assert isinstance(spec, ExLlamaV3Spec)
    assert (spec.model, spec.cache, spec.slots) == (str(path), "q6", 4)


def test_several_paths_and_one_that_is_none(tmp_path, printed):
    code, out, err = printed(quantized(tmp_path / "m"), tmp_path / "nowhere", "starter")
    assert code == 1
    assert out.count("engines:") == 2
    assert err == f"nenya: there is no folder {tmp_path}/nowhere\n"


def test_json(tmp_path, printed, gpus, capsys):
    gpus(20)
    path = quantized(tmp_path / "m")
    code, out, err = printed(path, tmp_path / "nowhere", "--json")
    assert (code, err) == (1, "")
    good, bad = json.loads(out)
    assert (good["model"]["kind"], good["model"]["bits"], good["error"]) == ("exl2", 4.0, None)
    assert good["model"]["ends"] == [{"id": 3, "name": "<|im_end|>"}, {"id": 2, "name": "<|end|>"}]
    assert good["model"]["token_bytes"] == {"fp16": 256, "q8": 136, "q6": 104, "q4": 72}
    assert [need["cache"] for need in good["plan"]["needs"]] == ["fp16", "q8", "q6", "q4"]
    assert good["plan"]["room"] == "fits"
    assert good["gpus"][0]["name"] == "NVIDIA RTX 3090"
    assert list(checked(tmp_path, good["config"], capsys).engines) == ["m"]
    assert bad["error"] == {"kind": "invalid", "message": f"there is no folder {tmp_path}/nowhere"}
    assert bad["model"] is bad["plan"] is bad["config"] is None


@pytest.mark.parametrize(
    "wrong", [["--parallel", "0"], ["--parallel", "257"], ["--context", "-1"], ["--cache", "fp8"]]
)
def test_what_is_asked_wrongly_is_2(printed, wrong):
    code, out, err = printed("starter", *wrong)
    assert (code, out) == (2, "")
    assert "nenya" in err


def test_control_characters_of_a_model_stay_out_of_the_terminal(tmp_path, printed):
    odd = {"added_tokens": [{"id": 2, "content": "\x1b[2Jx"}], "model": {}}
    code, out, _ = printed(folder(tmp_path / "m", tokenizer=odd))
    assert code == 0
    assert "\x1b" not in out


def test_the_documents_example_is_what_is_printed():
    page = (Path(__file__).parents[2] / "docs/exllamav2.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (name,) = parse(block).engines
    spec = parse(block).engines[name]
    report = probe("starter").report
    report = replace(report, name=name, engine="exllamav2", path=spec.model)
    plan = sizing.in_memory(report, Wish(), None)
    assert engines_probe.config_of(report, replace(plan, spec=spec)) == block


# Values as YAML.


@pytest.mark.parametrize(
    "value",
    [
        1e-5,
        1.5e-07,
        2e16,
        0.25,
        3,
        True,
        None,
        "a",
        "1",
        "a: b",
        "yes",
        "",
        "é",
        {"a b": [1, "x"]},
        1e22,
    ],
)
def test_values_come_back_from_yaml_as_they_were(value):
    assert yaml.safe_load(flow(value)) == value
    assert "\n" not in flow(value)


# Who says what is free.


def test_torch_says_it_where_the_drivers_tool_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: None)
    monkeypatch.setattr(machine.importlib.metadata, "version", lambda _: "2.9.0+cu128")
    rows = json.dumps([[0, "NVIDIA H200", 100, 60, "9.0"]])
    monkeypatch.setattr(machine, "ask_python", lambda code, timeout_s: rows)
    assert machine.found_gpus() == ((Gpu(0, "NVIDIA H200", 100, 60, "", "9.0"),), "")
    monkeypatch.setattr(machine, "ask_python", lambda code, timeout_s: "")
    assert machine.found_gpus() == ((), "")


def test_a_torch_without_cuda_is_not_asked(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: None)
    monkeypatch.setattr(machine.importlib.metadata, "version", lambda _: "2.9.0+cpu")
    monkeypatch.setattr(machine, "ask_python", lambda code, timeout_s: pytest.fail("was asked"))
    assert machine.found_gpus() == ((), "")


def test_a_driver_that_fails_is_no_error(monkeypatch):
    def fail():
        raise machine.NoAnswer("nvidia-smi says: no")

    monkeypatch.setattr(machine, "gpus", fail)
    assert machine.found_gpus() == ((), "nvidia-smi says: no")
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert machine.found_gpus() == ((), "nvidia-smi sees no GPU")


def test_a_python_of_its_own():
    assert machine.ask_python("print(6 * 7)", 20) == "42\n"
    assert machine.ask_python("raise ValueError('so')", 20, lambda why: why) == "ValueError: so"
    assert "timed out" in machine.ask_python("import time; time.sleep(9)", 0.05, lambda why: why)


def test_free_memory(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 9 kB\nMemAvailable:   2048 kB\n")
    assert machine.free_memory(file) == 2 << 20
    file.write_text("nothing\n")
    assert machine.free_memory(file) is machine.free_memory(tmp_path / "none") is None

"""What lies at a path."""

from __future__ import annotations

import shutil

import pytest

from engines import starter
from engines.base import EngineError
from engines.probe import End, probe
from tests.engines.folders import CONFIG, TOKENIZER, TOKENIZER_CONFIG, exl2, folder, plain
from tests.engines.test_gguf import string, whole

TAGS = [{"id": 10, "content": "<tool_call>"}, {"id": 11, "content": "</tool_call>"}]


def report(path):
    return probe(str(path)).report


def test_the_starter_by_its_name_is_the_file():
    found = report("starter")
    assert (found.kind, found.engine, found.architecture) == ("gguf", "llamacpp", "llama")
    assert (found.layers, found.heads, found.kv_heads, found.head_dim) == (4, 4, 2, 64)
    assert (found.vocabulary, found.context_tokens) == (1536, 4096)
    assert found.parameters == report(starter.hf_path()).parameters
    assert found.token_bytes == {"fp16": report(starter.hf_path()).token_bytes["fp16"]}
    assert found.ends == (End(2, "<|im_end|>"),)
    assert 8 < found.bits < 9
    assert (found.tools, found.problems, found.warnings) == (True, (), ())


def test_the_starters_folder():
    found = report(starter.hf_path())
    assert (found.kind, found.engine, found.bits) == ("fp16", "exllamav2", 16)
    assert found.token_bytes == {"fp16": 2048, "q8": 1088, "q6": 832, "q4": 576}
    assert found.ends == (End(2, "<|im_end|>"), End(0, "<|endoftext|>"))
    assert (found.tied_embeddings, found.tools, found.calls, found.thinks) == (
        True,
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("tensors", "quantized", "kind", "engine", "bits"),
    [
        (plain(dtype="BF16"), None, "bf16", "exllamav2", 16),
        (plain(dtype="F32"), None, "fp32", "exllamav2", 32),
        (exl2(), {"quant_method": "exl2", "bits": 4.0}, "exl2", "exllamav2", 4),
        (plain() | {"a.trellis": ("I16", (2, 2, 64))}, {"quant_method": "exl3", "bits": 3.5}, "exl3", "exllamav3", 3.5),
        (plain(), {"quant_method": "awq", "bits": 4}, "awq", None, 4),
        (plain() | {"a.qweight": ("I32", (8, 8))}, {"quant_method": "gptq", "bits": 4}, "gptq", "exllamav2", 4),
    ],
)  # fmt: skip
def test_kinds(tmp_path, tensors, quantized, kind, engine, bits):
    config = CONFIG if quantized is None else CONFIG | {"quantization_config": quantized}
    found = report(folder(tmp_path, tensors, config=config))
    assert (found.kind, found.engine, found.bits) == (kind, engine, bits)
    assert bool(found.problems) == (engine is None)


def test_what_only_the_later_library_can_serve(tmp_path):
    config = CONFIG | {"architectures": ["Olmo3ForCausalLM"]}
    found = probe(str(folder(tmp_path / "a", config=config)))
    assert (found.report.engine, found.report.problems) == ("exllamav3", ())
    assert found.report.warnings[-1].startswith(
        "exllamav2 can't serve it: exllamav2 doesn't know Olmo3"
    )
    both = probe(str(folder(tmp_path / "b", config=config, tokenizer=None)))
    assert both.report.engine == "exllamav2"
    assert len(both.report.problems) == 2


def test_a_damaged_model_of_the_later_library(tmp_path):
    config = CONFIG | {"quantization_config": {"quant_method": "exl3", "bits": 3.5}}
    path = folder(tmp_path, {"a.trellis": ("I16", (2, 2, 56))}, config=config, tokenizer=None)
    found = report(path)
    assert (found.engine, found.kind) == ("exllamav3", "exl3")
    assert len(found.problems) == 1
    assert "there is no tokenizer.json" in found.problems[0]


@pytest.mark.parametrize(
    ("template", "tags", "tools", "calls", "thinks"),
    [
        ("{{ messages }}", TAGS, False, False, False),
        ("{% if tools %}{{ tools }}{% endif %}", TAGS, True, False, False),
        ("{% if tools %}<tool_call>{% endif %}", TAGS, True, True, False),
        ("{% if tools %}<tool_call>{% endif %}", [], True, False, False),
        ("{{ mytools }}<think>", TAGS, False, False, True),
    ],
)
def test_what_a_template_can(tmp_path, template, tags, tools, calls, thinks):
    path = folder(
        tmp_path,
        tokenizer_config=TOKENIZER_CONFIG | {"chat_template": template},
        tokenizer=TOKENIZER | {"added_tokens": [*TOKENIZER["added_tokens"], *tags]},
    )
    found = report(path)
    assert (found.tools, found.calls, found.thinks) == (tools, calls, thinks)


def test_where_positions_are_from(tmp_path):
    scaling = {"type": "linear", "factor": 4.0}
    found = report(folder(tmp_path, config=CONFIG | {"rope_scaling": scaling}))
    assert (found.rope_theta, found.rope_theta_from, found.rope_scaling) == (
        5e5,
        "rope_theta",
        "linear",
    )


def test_a_folder_with_one_file(tmp_path):
    shutil.copy(starter.gguf_path(), tmp_path / "m.gguf")
    shutil.copy(starter.gguf_path(), tmp_path / "mmproj-m.gguf")
    assert report(tmp_path).name == "m"


def test_a_folder_with_several_models(tmp_path):
    for name in ("a-q4.gguf", "a-q8.gguf"):
        shutil.copy(starter.gguf_path(), tmp_path / name)
    with pytest.raises(
        EngineError, match=r"several models, name one of them: a-q4\.gguf, a-q8\.gguf"
    ):
        report(tmp_path)


def parts(folder_, count):
    said = [
        ("general.architecture", 8, string("llama")),
        ("split.count", 2, count.to_bytes(2, "little")),
        ("tokenizer.ggml.tokens", 9, (8).to_bytes(4, "little") + (1).to_bytes(8, "little") + string("a")),
    ]  # fmt: skip
    for at in range(1, count + 1):
        (folder_ / f"m-{at:05}-of-{count:05}.gguf").write_bytes(whole((8, 4 * at), pairs=said))


def test_a_model_in_parts_is_counted_together(tmp_path):
    parts(tmp_path, 3)
    found = report(tmp_path)
    assert (found.name, found.parameters, found.problems) == (
        "m-00001-of-00003",
        8 * (4 + 8 + 12),
        (),
    )
    assert found.weight_bytes == 8 * (4 + 8 + 12)


def test_a_part_that_is_missing(tmp_path):
    parts(tmp_path, 3)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    assert report(tmp_path).problems == ("it is one of 3 files, and not all of them are beside it",)


def test_a_file_without_a_vocabulary_is_no_model(tmp_path):
    path = tmp_path / "adapter.gguf"
    path.write_bytes(whole((8, 4), pairs=[]))
    assert report(path).problems == (
        "it doesn't say its architecture",
        "it has no vocabulary: it is a part of a model, or an adapter",
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "there is no folder"),
        ("nowhere.gguf", "there is no file"),
        ("empty", "has no config.json: it is no model's folder"),
        ("text.txt", "is no GGUF file"),
    ],
)
def test_what_is_no_model(tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello, world")
    with pytest.raises(EngineError, match=said) as raised:
        report(tmp_path / name)
    assert raised.value.kind == "invalid"

"""What a model's folder is, and everything that is refused in one before anything is loaded; without torch."""

from __future__ import annotations

import json

import pytest

from engines import starter
from engines.base import EngineError
from engines.exl2.folder import read_folder
from tests.engines.folders import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    exl2,
    folder,
    plain,
    safetensors,
)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def without(mapping, *names):
    return {name: value for name, value in mapping.items() if name not in names}


@pytest.fixture
def read(tmp_path):
    def read(tensors=None, **files):
        return read_folder(folder(tmp_path / "a-model", tensors, **files))

    return read


def problem_of(found):
    assert len(found.problems) == 1, found.problems
    return found.problems[0]


def test_a_plain_folder(read):
    found = read()
    assert found.problems == found.warnings == ()
    assert (found.name, found.format, found.dtype, found.bits) == ("a-model", "fp16", "float16", 16)
    assert (found.layers, found.heads, found.kv_heads, found.head_dim) == (2, 4, 2, 16)
    assert (found.vocabulary, found.context_tokens, found.intermediate) == (320, 4096, 128)
    attention = 64 * 64 * 2 + 64 * 32 * 2
    blocks = 2 * (attention + 3 * 64 * 128 + 2 * 64)
    assert found.parameters == 2 * 320 * 64 + blocks + 64
    assert found.weight_bytes == 2 * found.parameters
    assert found.gpu_bytes == 2 * (found.parameters - 320 * 64)
    assert not found.tied


def test_the_starter_model():
    found = read_folder(starter.hf_path())
    assert found.problems == found.warnings == ()
    assert (found.tied, found.ends, found.end_names) == (
        True,
        (2, 0),
        ("<|im_end|>", "<|endoftext|>"),
    )
    assert found.template_from == "tokenizer_config.json"
    assert found.gpu_bytes == found.weight_bytes


def test_a_head_that_is_the_embedding_is_on_the_gpu(read):
    tied = read(plain(head=False))
    assert tied.tied
    assert tied.gpu_bytes == tied.weight_bytes == 2 * tied.parameters


def test_single_precision_is_loaded_as_half(read):
    wide = read(plain(dtype="F32"))
    assert wide.dtype == "float32"
    assert wide.weight_bytes == 4 * wide.parameters
    assert wide.gpu_bytes == 2 * (wide.parameters - 320 * 64)


def test_an_exl2_folder_counts_what_its_weights_stand_for(read):
    quantized = {"quant_method": "exl2", "bits": 4.0, "head_bits": 6}
    found = read(exl2(), config=CONFIG | {"quantization_config": quantized})
    assert found.problems == ()
    assert (found.format, found.method, found.bits) == ("exl2", "exl2", 4.0)
    assert found.parameters == read().parameters
    assert found.gpu_bytes == found.weight_bytes - 2 * 320 * 64


def test_bits_are_measured_where_nothing_says_them(read):
    assert 4 < read(exl2(bits=4)).bits < read(exl2(bits=5)).bits < 7


def test_gptq_by_its_tensors(read):
    tensors = without(plain(), "model.layers.0.mlp.up_proj.weight")
    tensors["model.layers.0.mlp.up_proj.qweight"] = ("I32", (64 * 4 // 32, 128))
    tensors["model.layers.0.mlp.up_proj.scales"] = ("F16", (1, 128))
    found = read(
        tensors, config=CONFIG | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    )
    assert (found.format, found.bits, found.problems) == ("gptq", 4, ())
    assert found.parameters == read().parameters


def test_what_sees_is_not_loaded(read):
    seeing = plain() | {"vision_tower.encoder.layers.0.fc1.weight": ("F16", (512, 512))}
    assert read(seeing).gpu_bytes == read().gpu_bytes
    assert read(seeing).parameters == read().parameters + 512 * 512


# Folders that are none.


def test_no_folder(tmp_path):
    with pytest.raises(EngineError, match="there is no folder") as raised:
        read_folder(tmp_path / "nowhere")
    assert raised.value.kind == "invalid"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a.gguf", "a .gguf file is for kind: llamacpp"),
        ("adapter_config.json", "it is a LoRA adapter: name it under `loras`"),
        ("5.0bpw/config.json", "a folder within it is: name that one"),
        ("README.md", "it is no model's folder$"),
    ],
)
def test_a_folder_of_something_else(tmp_path, name, hint):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(EngineError, match=hint):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["config", "generation_config", "tokenizer", "tokenizer_config"])
def test_json_that_is_none(tmp_path, name):
    path = folder(tmp_path)
    (path / f"{name}.json").write_text("{")
    with pytest.raises(EngineError, match=f"{name}.json can't be read: Expecting") as raised:
        read_folder(path)
    assert raised.value.kind == "invalid"


@pytest.mark.parametrize(
    "odd",
    [
        {"num_hidden_layers": "two"},
        {"rope_scaling": 3},
        {"text_config": [1]},
        {"eos_token_id": ["a"]},
    ],
)
def test_values_of_another_kind(read, odd):
    with pytest.raises(EngineError, match="can't be understood"):
        read(config=CONFIG | odd)


# Positions.


def test_a_base_at_the_top_is_read(read):
    rope = read().rope
    assert (rope.theta, rope.found_at, rope.at_top) == (500_000, "rope_theta", True)


def test_no_base_is_the_usual_one(read):
    rope = read(config=without(CONFIG, "rope_theta")).rope
    assert (rope.theta, rope.found_at, rope.at_top) == (10_000, "default", True)


def test_a_base_that_exllamav2_would_miss_is_set_at_load(read):
    nested = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    found = read(config=without(CONFIG, "rope_theta") | nested)
    assert (found.rope_theta, found.rope.at_top, found.problems) == (500_000, False, ())
    assert "rope_theta 500000 stands under rope_parameters" in found.warnings[0]


def test_the_usual_base_under_rope_parameters_is_no_news(read):
    nested = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    found = read(config=without(CONFIG, "rope_theta") | nested)
    assert (found.rope_theta, found.rope.at_top, found.warnings) == (10_000, True, ())


def test_a_base_for_each_kind_of_layer(read):
    nested = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    found = read(config=without(CONFIG, "rope_theta") | {"rope_parameters": nested})
    assert found.rope_theta == 1e6


@pytest.mark.parametrize("top", [{}, {"rope_theta": 500_000.0}])
def test_scaling_that_exllamav2_would_miss_is_refused_with_what_to_write(read, top):
    nested = {"rope_parameters": LLAMA3 | {"rope_theta": 500_000.0}}
    said = problem_of(read(config=without(CONFIG, "rope_theta") | top | nested))
    assert "its positions are scaled (llama3) under rope_parameters" in said
    written = json.loads("{" + said.partition("top of config.json: ")[2] + "}")
    assert written == {"rope_theta": 500_000.0, "rope_scaling": LLAMA3}
    assert read(config=CONFIG | nested | written).problems == ()


@pytest.mark.parametrize(
    "lacking", ["factor", "low_freq_factor", "original_max_position_embeddings"]
)
def test_scaling_that_lacks_a_figure(read, lacking):
    config = CONFIG | {"rope_scaling": without(LLAMA3, lacking)}
    assert problem_of(read(config=config)) == f"rope_scaling 'llama3' lacks {lacking}"


def test_scaling_without_a_base(read):
    config = without(CONFIG, "rope_theta") | {"rope_scaling": LLAMA3}
    rope = read(config=config).rope
    assert (rope.theta, rope.found_at, rope.scaling) == (10_000, "default", "llama3")
    broken = config | {"rope_scaling": {"type": "linear"}}
    assert problem_of(read(config=broken)) == "rope_scaling 'linear' lacks factor"


def test_long_rope_needs_its_original_length_at_the_top(read):
    scaling = {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}
    said = problem_of(read(config=CONFIG | {"rope_scaling": scaling}))
    assert "needs original_max_position_embeddings at the top" in said
    whole = CONFIG | {"rope_scaling": scaling, "original_max_position_embeddings": 4096}
    assert read(config=whole).problems == ()


def test_scaling_of_an_unknown_kind(read):
    said = problem_of(read(config=CONFIG | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}))
    assert said == "exllamav2 doesn't know the rope_scaling 'dynamic'"


def test_scaling_named_twice(read):
    scaling = {"type": "linear", "rope_type": "linear", "factor": 2.0}
    said = problem_of(read(config=CONFIG | {"rope_scaling": scaling}))
    assert said == "rope_scaling has both `type` and `rope_type`: remove one"


# Ends of a turn.


def test_all_ends_count_in_their_order(read):
    found = read()
    assert (found.ends, found.end_names) == ((3, 2), ("<|im_end|>", "<|end|>"))


def test_the_tokenizers_end_counts_too(read):
    config = without(CONFIG, "eos_token_id")
    assert read(config=config, generation_config=None).ends == (2,)


def test_no_end_at_all(read):
    said = problem_of(
        read(
            config=without(CONFIG, "eos_token_id"),
            generation_config=None,
            tokenizer_config=without(TOKENIZER_CONFIG, "eos_token"),
        )
    )
    assert said.startswith("no file says which token ends an answer: add eos_token_id")


@pytest.mark.parametrize("end", [320, -1])
def test_an_end_beyond_the_vocabulary(read, end):
    said = problem_of(read(generation_config={"eos_token_id": end}))
    assert f"the token {end} should end an answer, and the vocabulary has 320" in said


# Templates.


def test_where_the_template_stands(tmp_path):
    path = folder(tmp_path / "m", chat_template={"chat_template": "second"})
    assert (read_folder(path).template, read_folder(path).template_from) == (
        "second",
        "chat_template.json",
    )
    (path / "chat_template.jinja").write_text("first")
    assert (read_folder(path).template, read_folder(path).template_from) == (
        "first",
        "chat_template.jinja",
    )
    own = tmp_path / "own.jinja"
    own.write_text("mine")
    assert (read_folder(path, own).template, read_folder(path, own).template_from) == (
        "mine",
        "own.jinja",
    )


def test_of_several_templates_the_one_with_tools(read):
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert read(tokenizer_config=TOKENIZER_CONFIG | {"chat_template": named}).template == "b"


def test_no_template_is_a_warning(read):
    found = read(tokenizer_config=without(TOKENIZER_CONFIG, "chat_template"))
    assert (found.template, found.template_from, found.problems) == ("", "", ())
    assert found.warnings == (
        "it has no chat template: only /v1/completions, or set `template:` to a file",
    )


def test_a_template_that_cannot_be_read(tmp_path):
    with pytest.raises(EngineError, match="can't be read"):
        read_folder(folder(tmp_path), tmp_path / "nowhere.jinja")


# Architectures and sizes.


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (
            ["MambaForCausalLM"],
            "exllamav2 doesn't know MambaForCausalLM; it would take it for a Llama",
        ),
        ([], "config.json names 0 architectures, not one"),
        (["LlamaForCausalLM", "MistralForCausalLM"], "config.json names 2 architectures, not one"),
    ],
)
def test_architectures(read, named, said):
    assert problem_of(read(config=CONFIG | {"architectures": named})).startswith(said)


@pytest.mark.parametrize(
    ("architecture", "seeing", "files", "said"),
    [
        ("LlavaForConditionalGeneration", {"model_type": "clip_vision_model"}, True, "with Pixtral's vision alone"),
        ("LlavaForConditionalGeneration", None, False, "with Pixtral's vision alone"),
        ("Qwen2VLForConditionalGeneration", None, True, "config.json has no vision_config"),
        ("Qwen2VLForConditionalGeneration", {}, False, "there is no preprocessor_config.json"),
        ("Mistral3ForConditionalGeneration", {"model_type": "pixtral"}, True, ""),
        ("Qwen2ForCausalLM", None, False, ""),
    ],
)  # fmt: skip
def test_models_that_also_see(read, architecture, seeing, files, said):
    config = CONFIG | {"architectures": [architecture], "vision_config": seeing}
    found = read(config=config, preprocessor_config={} if files else None)
    assert not found.problems if said == "" else said in problem_of(found)


@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size"]
)
def test_a_size_that_is_missing(read, name):
    found = read(config=without(CONFIG, name, "num_key_value_heads"))
    assert f"config.json has no {name}" in found.problems


def test_heads_that_cannot_share(read):
    found = read(config=CONFIG | {"num_key_value_heads": 3})
    assert "4 attention heads can't share 3 heads of keys and values" in found.problems


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"hidden_size": 96}, "tokens are 64 wide, config.json says hidden_size 96"),
        ({"vocab_size": 400}, "320 tokens have weights, config.json says vocab_size 400"),
        ({"num_attention_heads": 8}, "q_proj is 64 wide, config.json says 8 heads of 16"),
        ({"num_key_value_heads": 4}, "k_proj is 32 wide, config.json says 4 heads of 16"),
        ({"num_hidden_layers": 3}, "1 of 3 layers have no tensors, the first is layer 2"),
    ],
)
@pytest.mark.parametrize("made", [plain, exl2])
def test_a_config_of_another_model(read, odd, said, made):
    found = read(made(), config=CONFIG | odd)
    assert said in problem_of(found)


def test_more_rows_than_tokens_is_padding(read):
    assert read(plain(CONFIG | {"vocab_size": 384})).problems == ()


def test_gemma_3_says_little_of_itself(read):
    text = without(CONFIG, "architectures", "eos_token_id", "num_attention_heads", "num_key_value_heads",
                   "head_dim", "vocab_size", "max_position_embeddings", "rope_theta")  # fmt: skip
    found = read(
        {"language_model.model.embed_tokens.weight": ("BF16", (262_208, 64))},
        config={"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text},
    )
    assert found.problems == ()
    assert (found.heads, found.kv_heads, found.head_dim) == (8, 4, 256)
    assert (found.vocabulary, found.context_tokens, found.rope_theta) == (262_208, 131_072, 1e6)


def test_no_tokenizer(read):
    assert problem_of(read(tokenizer=None)).startswith("there is no tokenizer.json; transformers")


# Weights.


@pytest.mark.parametrize("method", ["awq", "fp8", "bitsandbytes"])
def test_weights_quantised_by_others(read, method):
    config = CONFIG | {"quantization_config": {"quant_method": method}}
    assert problem_of(read(config=config)) == f"exllamav2 can't read weights quantised by {method}"


def test_awq_looks_like_gptq(read):
    tensors = plain() | {"model.layers.0.mlp.extra.qweight": ("I32", (8, 8))}
    found = read(
        tensors, config=CONFIG | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    )
    assert (found.format, found.problems) == (
        "other",
        ("exllamav2 can't read weights quantised by awq",),
    )


def test_exl3(read):
    tensors = plain() | {"model.layers.0.mlp.extra.trellis": ("I16", (4, 8, 64))}
    found = read(
        tensors, config=CONFIG | {"quantization_config": {"quant_method": "exl3", "bits": 4}}
    )
    assert found.format == "exl3"
    assert problem_of(found) == "it is an EXL3 model, for kind: exllamav3; exllamav2 can't read it"


def test_a_type_that_the_library_lacks(read):
    tensors = plain() | {"model.layers.0.mlp.extra.weight": ("F8_E4M3", (8, 8))}
    assert problem_of(read(tensors)) == "exllamav2 can't read tensors of type F8_E4M3"


def shards(path, parts, listed=None):
    """The tensors over ``parts`` files and an index that lists them."""
    (path / "model.safetensors").unlink()
    tensors = list(plain().items())
    where = {}
    for at in range(parts):
        name = f"model-{at + 1:05}-of-{parts:05}.safetensors"
        safetensors(path / name, dict(tensors[at::parts]))
        where |= {tensor: name for tensor, _ in tensors[at::parts]}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed or where}))
    return path


def test_shards(tmp_path):
    found = read_folder(shards(folder(tmp_path), 3))
    assert found.problems == ()
    assert found.parameters == read_folder(folder(tmp_path / "whole")).parameters


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_that_are_missing(tmp_path, indexed):
    path = shards(folder(tmp_path), 3)
    (path / "model-00002-of-00003.safetensors").unlink()
    (path / "model-00003-of-00003.safetensors").unlink()
    if not indexed:
        (path / "model.safetensors.index.json").unlink()
    said = "model-00002-of-00003.safetensors and 1 more of its files are missing: download it again"
    assert said in read_folder(path).problems


def test_files_that_the_index_does_not_name_do_not_count(tmp_path):
    path = shards(folder(tmp_path), 2)
    safetensors(path / "consolidated.safetensors", plain())
    assert read_folder(path).parameters == read_folder(folder(tmp_path / "whole")).parameters


def test_tensors_that_the_index_promises(tmp_path):
    path = shards(folder(tmp_path), 2)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.more.weight"] = "model-00001-of-00002.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    said = problem_of(read_folder(path))
    assert (
        said == "1 tensors of its index are in no file, model.more.weight first: download it again"
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-10], "model.safetensors is cut short: download it again"),
        (lambda data: data[:100], "model.safetensors is cut short: download it again"),
        (lambda data: b"", "model.safetensors is empty: download it again"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (lambda data: b"PK\3\4" + bytes(100), "model.safetensors is no safetensors file"),
        (lambda data: data.replace(b"dtype", b"dtyp!", 1), "model.safetensors has a damaged head (KeyError 'dtype')"),
        (lambda data: data.replace(b"[320, 64]", b"[321, 64]"), "has a damaged head (ValueError a tensor's shape"),
    ],
)  # fmt: skip
def test_files_that_are_damaged(tmp_path, damage, said):
    path = folder(tmp_path)
    file = path / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert any(said in problem for problem in read_folder(path).problems)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "pytorch_model.bin",
            "there are no .safetensors files (only .bin files, which can run code; convert them)",
        ),
        ("x", "there are no .safetensors files"),
    ],
)
def test_no_weights(tmp_path, name, said):
    path = folder(tmp_path)
    (path / "model.safetensors").rename(path / name)
    assert problem_of(read_folder(path)) == said


def test_the_tokenizer_names_its_tokens_by_id(read):
    odd = TOKENIZER | {"added_tokens": [{"id": "x", "content": "y"}]}
    with pytest.raises(EngineError, match="can't be understood"):
        read(tokenizer=odd)

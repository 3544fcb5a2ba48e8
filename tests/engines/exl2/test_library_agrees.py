"""What is read of a folder and reckoned before loading, against the library's own reading and arithmetic."""

from __future__ import annotations

import importlib

import pytest

from engines import starter
from engines.exl2 import memory
from engines.exl2.folder import ARCHITECTURES, read_folder
from engines.specs import ExLlamaV2Spec
from tests.engines.folders import CONFIG, exl2, folder

torch = pytest.importorskip("torch")

# What some architectures' configs have besides; the library insists on it.
BESIDE = {
    "CohereForCausalLM": {"layer_norm_eps": 1e-5},
    "Cohere2ForCausalLM": {"layer_norm_eps": 1e-5},
    "GPT2LMHeadModel": {"layer_norm_epsilon": 1e-5},
    "GPTBigCodeForCausalLM": {"layer_norm_epsilon": 1e-5},
    "Starcoder2ForCausalLM": {"layer_norm_epsilon": 1e-5},
    "Qwen3MoeForCausalLM": {
        "moe_intermediate_size": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "DbrxForCausalLM": {"ffn_config": {"moe_num_experts": 4, "moe_top_k": 2}},
    "LlavaForConditionalGeneration": {"vision_config": {"model_type": "pixtral"}},
    "Mistral3ForConditionalGeneration": {"vision_config": {"model_type": "pixtral"}},
    "Qwen2VLForConditionalGeneration": {"vision_config": {}},
    "Qwen2_5_VLForConditionalGeneration": {"vision_config": {}},
}
SPEC = ExLlamaV2Spec(model="/m", cache_tokens=4096)


@pytest.fixture
def library(exl2_harness):
    importlib.import_module("tests.engines.exl2.harness")  # the stub of its extension comes first
    return importlib.import_module("exllamav2")


def its_config(library, path):
    config = library.ExLlamaV2Config()
    config.model_dir = str(path)
    config.prepare(no_tensors=True)
    return config


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("lacking", [(), ("head_dim", "rope_theta"), ("num_key_value_heads",)])
def test_sizes_are_read_as_the_library_reads_them(library, tmp_path, capsys, architecture, lacking):
    config = CONFIG | BESIDE.get(architecture, {}) | {"architectures": [architecture]}
    path = folder(tmp_path, config={name: v for name, v in config.items() if name not in lacking})
    its, ours = its_config(library, path), read_folder(path)
    assert "unknown architecture" not in capsys.readouterr().out
    assert (ours.layers, ours.hidden, ours.vocabulary) == (
        its.num_hidden_layers,
        its.hidden_size,
        its.vocab_size,
    )
    assert (ours.heads, ours.kv_heads, ours.head_dim) == (
        its.num_attention_heads,
        its.num_key_value_heads,
        its.head_dim,
    )
    assert (ours.context_tokens, ours.rope_theta) == (its.max_seq_len, its.rotary_embedding_base)
    assert ours.intermediate >= its.intermediate_size


@pytest.mark.parametrize("form", ["fp16", "q8", "q6", "q4"])
def test_a_cache_takes_what_is_reckoned(library, form):
    names = {"fp16": "", "q8": "_Q8", "q6": "_Q6", "q4": "_Q4"}
    ours = read_folder(starter.hf_path())
    model = library.ExLlamaV2(library.ExLlamaV2Config(str(ours.path)), lazy_load=True)
    model.cache_map = {}
    kind = getattr(library, f"ExLlamaV2Cache{names[form]}")
    cache = kind(model, max_seq_len=1024, fixed_device="cpu")
    held = [*cache.key_states, *cache.value_states, *cache.key_scales, *cache.value_scales]
    for pair in getattr(cache, "temp_tensors", {}).values():
        held += pair
    assert sum(tensor.nbytes for tensor in held) == memory.cache_bytes(ours, 1024, form)


@pytest.mark.parametrize("made", [exl2, None])
def test_weights_and_scratch_take_what_is_reckoned(library, tmp_path, made):
    wide = CONFIG | {
        "head_dim": 64,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "vocab_size": 2048,
    }
    path = starter.hf_path() if made is None else folder(tmp_path, made(wide), config=wide)
    ours = read_folder(path)
    assert ours.problems == ()
    config = library.ExLlamaV2Config(str(path))
    config.max_input_len = 512
    model = library.ExLlamaV2(config, lazy_load=True)
    on_gpus = [
        one for one in model.modules if not isinstance(one, library.embedding.ExLlamaV2Embedding)
    ]
    footprint = sum(one.weight_footprint() for one in on_gpus)
    assert ours.gpu_bytes == pytest.approx(footprint, rel=0.02)  # it counts a permutation twice
    if made is not None:
        scratch = max(one.scratch_space_fixed() for one in on_gpus)
        assert memory.scratch_bytes(ours, 512) == pytest.approx(scratch, rel=0.01)

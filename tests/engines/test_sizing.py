"""How a model is best served on the GPUs there are: the wish where it fits, else the least loss."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from engines import sizing, starter
from engines.exl2 import memory
from engines.exl2.memory import GIB, estimate
from engines.gpus import Gpu
from engines.probe import probe
from engines.sizing import Wish
from engines.specs import ExLlamaV2Spec, LlamaCppSpec
from tests.engines.test_exl2_memory import llama_8b


def gpus(*free):
    return [
        Gpu(at, "a GPU", 80 * GIB, int(one * GIB), "570.1", "9.0") for at, one in enumerate(free)
    ]


@pytest.fixture
def model(tmp_path):
    return llama_8b(tmp_path)


def test_the_wish_where_nobody_knows_what_is_free(model):
    plan = sizing.on_gpus(model, Wish(parallel=3, context_tokens=10_000, cache="q8"), [])
    assert plan.spec == ExLlamaV2Spec(
        model=str(model.path), cache_tokens=30_208, cache="q8", context_tokens=10_000, slots=3
    )
    assert (plan.room, plan.free, plan.changes) == ("unknown", None, ())
    assert [need.cache for need in plan.needs] == ["fp16", "q8", "q6", "q4"]
    assert plan.total == plan.needs[1].total == estimate(model, plan.spec).total


def test_no_more_than_the_model_has(model):
    plan = sizing.on_gpus(model, Wish(context_tokens=1 << 20), [])
    assert plan.spec.context_tokens == plan.wished_tokens == 131_072
    assert sizing.on_gpus(model, Wish(), []).spec.context_tokens == 8192
    assert (
        sizing.on_gpus(replace(model, context_tokens=2048), Wish(), []).spec.context_tokens == 2048
    )


@pytest.mark.parametrize(
    ("free", "cache", "chosen", "tokens"),
    [
        ((12,), "fp16", (0,), 32768),
        ((2, 12), "fp16", (1,), 32768),
        ((10,), "q8", (0,), 32768),
        ((10, 10), "q8", (0,), 32768),  # hardly a loss, and no way between two GPUs
        ((9,), "q6", (0,), 32768),
        ((8.6, 6), "fp16", (0, 1), 32768),
        ((8.6,), "q4", (0,), 32768),
        ((8,), "q4", (0,), 21248),
        ((4.2, 4.1, 4.2), "q4", (0, 1, 2), None),
    ],
)
def test_the_least_loss_comes_first(model, free, cache, chosen, tokens):
    plan = sizing.on_gpus(model, Wish(), gpus(*free))
    assert (plan.room, plan.spec.cache, plan.spec.gpus) == ("fits", cache, chosen)
    assert tokens is None or plan.spec.cache_tokens == tokens
    assert plan.total == estimate(model, plan.spec).total <= plan.free


def test_what_changed_is_said(model):
    wished = Wish(parallel=1, context_tokens=65_536)
    assert sizing.on_gpus(model, wished, gpus(20)).changes == ()
    assert sizing.on_gpus(model, wished, gpus(12)).changes == ("cache q8 instead of fp16",)
    plan = sizing.on_gpus(model, wished, gpus(5, 5))
    fewer = plan.spec.cache_tokens
    assert plan.changes == (
        "cache q4 instead of fp16",
        "over 2 GPUs",
        f"{fewer} tokens of cache instead of 65536",
        f"{fewer} tokens of context instead of 65536",
    )
    assert memory.LEAST_TOKENS <= plan.context_tokens == fewer < 65_536


def test_too_big_for_everything(model):
    plan = sizing.on_gpus(model, Wish(), gpus(3, 3))
    assert (plan.room, plan.spec.gpus, plan.free) == ("too big", (0, 1), 6 * GIB)
    assert plan.total > plan.free


def test_a_wish_for_q4_is_not_widened(model):
    assert sizing.on_gpus(model, Wish(cache="q4"), gpus(80)).spec.cache == "q4"


def test_a_model_without_sizes_is_no_error(model):
    bare = replace(model, layers=0, kv_heads=0, heads=0, head_dim=0, context_tokens=0)
    assert sizing.on_gpus(bare, Wish(), gpus(1)).room == "too big"


# llama.cpp.


@pytest.mark.parametrize(
    ("free", "room", "context"),
    [(None, "unknown", 4096), (GIB, "fits", 4096), (285 << 20, "fits", 3328), (260 << 20, "too big", 4096)],
)  # fmt: skip
def test_in_memory(free, room, context):
    plan = sizing.in_memory(probe("starter").report, Wish(), free)
    assert plan.spec == LlamaCppSpec(model="starter", slots=4, context_tokens=context)
    assert (plan.room, plan.wished_tokens) == (room, 4096)
    assert plan.changes == (
        () if context == 4096 else (f"{context} tokens of context instead of 4096",)
    )
    assert plan.needs[0].keys_and_values == 4 * 4096 * 2048
    assert room == "too big" or free is None or plan.total <= free


def test_a_file_is_named_by_its_path(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(starter.gguf_path().read_bytes())
    plan = sizing.in_memory(probe(str(path)).report, Wish(), None)
    assert plan.spec.model == str(path)

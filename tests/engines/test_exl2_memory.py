"""What a model needs, whether it fits, what is advised where it doesn't, and that it is asked before loading."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
from msgspec.structs import replace

from engines import gpus
from engines.base import EngineError
from engines.exl2 import loading, memory
from engines.exl2.folder import ModelFolder
from engines.exl2.loading import Model
from engines.exl2.memory import GIB, judge
from engines.exl2.rope import Rope
from engines.gpus import Gpu, NoAnswer
from engines.specs import ExLlamaV2Spec, ExLlamaV3Spec

SPEC = ExLlamaV2Spec(model="/m", cache_tokens=32768)


def llama_8b(tmp_path, **changes):
    """Llama 3.1 8B at 5 bits a weight."""
    said = {
        "path": tmp_path, "architecture": "LlamaForCausalLM", "format": "exl2", "method": "exl2", "dtype": "float16",
        "bits": 5.0, "parameters": 8_030_261_248, "weight_bytes": 6_500_000_000, "gpu_bytes": 5_450_000_000,
        "layers": 32, "hidden": 4096, "intermediate": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128,
        "vocabulary": 128_256, "context_tokens": 131_072, "rope": Rope(5e5, "rope_theta"), "tied": False,
        "ends": (128_009,), "end_names": ("<|eot_id|>",), "template": "x", "template_from": "y",
        "calls": False, "names": {},
    }  # fmt: skip
    return ModelFolder(**(said | changes))


@pytest.fixture
def model(tmp_path):
    return llama_8b(tmp_path)


@pytest.mark.parametrize(
    ("form", "count"), [("fp16", 131072), ("q8", 69632), ("q6", 53248), ("q4", 36864)]
)
def test_a_tokens_cache(model, form, count):
    assert memory.token_bytes(model, form) == count


def test_a_quantised_cache_has_one_plain_layer_beside_it_on_each_gpu(model):
    plain_layer = 1000 * 4 * 8 * 128
    assert memory.cache_bytes(model, 1000, "fp16", gpus=2) == 1000 * 131072
    assert memory.cache_bytes(model, 1000, "q4") == 1000 * 36864 + plain_layer
    assert memory.cache_bytes(model, 1000, "q4", gpus=2) == 1000 * 36864 + 2 * plain_layer


def test_an_estimate_has_weights_cache_and_what_is_beside(model):
    found = memory.estimate(model, SPEC)
    assert found.weights == 5_450_000_000
    assert found.cache == 32768 * 131072
    head = 2 * 4096 * 128_256
    assert head + GIB < found.beside < head + 2 * GIB
    assert found.sure == found.weights + found.cache
    assert found.total == found.sure + found.beside


def test_of_exllamav3_the_weights_alone_are_sure(model):
    spec = ExLlamaV3Spec(model="/m", cache_tokens=32768)
    found, second = (memory.estimate(model, one) for one in (spec, SPEC))
    assert (found.sure, found.total) == (found.weights, second.total)
    assert judge(model, spec, 9 * GIB).room == "tight"
    assert judge(model, spec, 5 * GIB).room == "too big"


def test_cache_sizes_are_whole_pages(model):
    odd, whole = (
        memory.estimate(model, replace(SPEC, cache_tokens=count)) for count in (1000, 1024)
    )
    assert odd == whole


def test_plain_weights_need_no_room_to_be_made_plain(model):
    assert memory.scratch_bytes(replace(model, format="fp16"), 512) == 0


def test_scratch_is_what_the_largest_layer_takes(model):
    assert memory.scratch_bytes(model, 512) == 2 * 4096 * 128_256
    small_head = replace(model, vocabulary=1000)
    assert memory.scratch_bytes(small_head, 512) == 2 * 4096 * 14336 + 1024 * (4096 + 2 * 14336)
    assert memory.scratch_bytes(replace(model, vocabulary=1 << 20), 512) == GIB


def test_a_draft_counts_too(model, tmp_path):
    draft = llama_8b(tmp_path, gpu_bytes=700_000_000, layers=16)
    alone, both = memory.estimate(model, SPEC), memory.estimate(model, SPEC, draft)
    assert both.weights - alone.weights == 700_000_000
    assert both.cache - alone.cache == 32768 * 131072 // 2
    assert judge(model, SPEC, alone.total).room == "fits"
    assert judge(model, SPEC, alone.total, draft).room == "too big"


def test_more_gpus_have_more_beside(model):
    one, two = (memory.estimate(model, replace(SPEC, gpus=gpus)) for gpus in ((0,), (0, 1)))
    assert two.sure == one.sure
    assert two.beside > one.beside + GIB


@pytest.mark.parametrize("form", ["fp16", "q8", "q6", "q4"])
@pytest.mark.parametrize("free", [10 * GIB, 17 * GIB, 24 * GIB])
def test_the_most_tokens_fit_and_a_page_more_does_not(model, form, free):
    spec = replace(SPEC, cache=form)
    most = memory.most_cache_tokens(model, spec, free)
    page = memory.PAGE_TOKENS
    assert most % page == 0
    assert most > 0
    assert memory.estimate(model, replace(spec, cache_tokens=most)).total <= free
    more = memory.estimate(model, replace(spec, cache_tokens=most + 300 * page)).total
    assert more > free


def test_no_room_for_any_cache(model):
    assert memory.most_cache_tokens(model, SPEC, 3 * GIB) == 0


@pytest.mark.parametrize(
    ("free", "room", "ways"),
    [
        (12 * GIB, "fits", ""),
        (11 * GIB, "tight", "set `cache: q8`, or set `cache_tokens: "),
        (9 * GIB, "too big", "set `cache: q6`, or set `cache_tokens: "),
        (int(7.8 * GIB), "too big", "set `cache_tokens: "),
        (int(7.4 * GIB), "too big", "set `cache: q4` and `cache_tokens: "),
        (6 * GIB, "too big", "add a GPU to `gpus`, or take a model with fewer bits"),
    ],
)
def test_advice(model, free, room, ways):
    verdict = judge(model, SPEC, free)
    assert verdict.room == room
    if room == "fits":
        assert verdict.advice == ""
    else:
        needed, _, said = verdict.advice.partition(": ")
        assert needed == f"it needs about 11.2 GiB and {free / GIB:.1f} GiB are free"
        assert said.startswith(ways)


def test_advice_once_followed_fits(model):
    for free in range(7 * GIB, 12 * GIB, GIB // 4):
        for way in judge(model, SPEC, free).advice.partition(": ")[2].split(", or "):
            changes = dict(
                part.split(": ") for part in way.replace("set ", "").strip("`").split("` and `")
            ) if way.startswith("set ") else {}  # fmt: skip
            if "cache_tokens" in changes:
                changes["cache_tokens"] = int(changes["cache_tokens"])
            if changes:
                assert judge(model, replace(SPEC, **changes), free).room == "fits", way


# Before loading.


class Loading:
    """Stands for torch and for the library's loading."""

    def __init__(self):
        self.began = 0
        self.fails = None

    def weights(self, model, on_progress):
        self.began += 1
        if self.fails:
            raise self.fails
        return "weights"


@pytest.fixture
def loads(monkeypatch):
    stub = Loading()
    torch = types.ModuleType("torch")
    torch.OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})
    torch.cuda = types.SimpleNamespace(
        is_available=lambda: True,
        get_device_name=lambda _: "a GPU",
        device_count=lambda: 2,
        mem_get_info=lambda at: (GIB * (1 + at), 24 * GIB),
    )
    stub.torch = torch
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "exllamav2", types.ModuleType("exllamav2"))
    monkeypatch.setattr(loading, "weights", stub.weights)
    monkeypatch.setattr(loading, "machine", lambda model, weights, gpu: (weights, gpu))
    monkeypatch.setattr(loading, "ASK_AGAIN_S", 0)
    monkeypatch.setattr(loading, "RELEASE_S", 0)
    for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "EXLLAMA_NO_SDPA"):
        monkeypatch.setenv(name, "")
    return stub


def with_free(monkeypatch, *free):
    found = tuple(Gpu(at, "a GPU", 24 * GIB, one, "570.1", "9.0") for at, one in enumerate(free))
    monkeypatch.setattr(memory, "gpus", lambda: found)


def test_what_cannot_fit_is_refused_before_anything_is_loaded(loads, model, monkeypatch):
    with_free(monkeypatch, 4 * GIB, 20 * GIB)
    with pytest.raises(
        EngineError, match=r"doesn't fit: it needs about .* GiB and 4\.0 GiB"
    ) as raised:
        loading.load(Model(SPEC, model), lambda _: None)
    assert (raised.value.kind, loads.began) == ("invalid", 0)


def test_memory_that_is_being_released_is_waited_for(loads, model, monkeypatch):
    free = iter([2 * GIB, 2 * GIB, 20 * GIB])
    monkeypatch.setattr(memory, "free_bytes", lambda _: next(free))
    monkeypatch.setattr(loading, "RELEASE_S", 1)
    monkeypatch.setattr(loading, "ASK_AGAIN_S", 0.001)
    loading.load(Model(SPEC, model), lambda _: None)
    assert (loads.began, next(free, None)) == (1, None)


def test_waiting_for_memory_ends(loads, model, monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "free_bytes", lambda _: asked.append(1) or 2 * GIB)
    monkeypatch.setattr(loading, "RELEASE_S", 0.004)
    monkeypatch.setattr(loading, "ASK_AGAIN_S", 0.001)
    with pytest.raises(EngineError, match="doesn't fit"):
        loading.load(Model(SPEC, model), lambda _: None)
    assert len(asked) == 5
    assert loads.began == 0


def test_what_fits_is_loaded(loads, model, monkeypatch, caplog):
    with_free(monkeypatch, 4 * GIB, 20 * GIB)
    found = loading.load(Model(replace(SPEC, gpus=(1,)), model), lambda _: None)
    assert (found, loads.began) == (("weights", "a GPU"), 1)
    assert caplog.text == ""


def test_what_may_fit_is_tried_with_a_warning(loads, model, monkeypatch, caplog):
    with_free(monkeypatch, 11 * GIB)
    loading.load(Model(SPEC, model), lambda _: None)
    assert "may not fit: it needs about 11.2 GiB and 11.0 GiB are free" in caplog.text
    assert loads.began == 1


def test_a_failed_load_is_judged_by_what_had_been_free(loads, model, monkeypatch):
    with_free(monkeypatch, 11 * GIB)
    loads.fails = loads.torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(EngineError, match=r"11\.0 GiB are free: set `cache: q8`"):
        loading.load(Model(SPEC, model), lambda _: None)
    loads.fails = RuntimeError("Insufficient VRAM for model and cache")
    with_free(monkeypatch, 20 * GIB)
    with pytest.raises(EngineError, match="the GPU is full: set a smaller `cache_tokens`"):
        loading.load(Model(SPEC, model), lambda _: None)


def test_without_the_drivers_tool_torch_is_asked(loads, model, monkeypatch):
    monkeypatch.setattr(memory, "gpus", lambda: None)
    with pytest.raises(EngineError, match=r"3\.0 GiB are free"):
        loading.load(Model(SPEC, model), lambda _: None)


def test_where_nobody_knows_it_is_tried(loads, model, monkeypatch, caplog):
    def silent(_):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(memory, "gpus", lambda: None)
    loads.torch.cuda.mem_get_info = silent
    loading.load(Model(SPEC, model), lambda _: None)
    assert (loads.began, caplog.text) == (1, "")


# What the driver says.


def test_rows_of_nvidia_smi():
    found = gpus.parse(
        "0, NVIDIA H200, 143771, 143100, 570.124.06, 9.0\n"
        "1, NVIDIA GeForce RTX 3090, 24576, 24000, 470.1, [N/A]\n"
    )
    assert found[0] == Gpu(0, "NVIDIA H200", 143771 << 20, 143100 << 20, "570.124.06", "9.0")
    assert (found[1].index, found[1].capability) == (1, "")


@pytest.mark.parametrize("text", ["No devices were found", "0, A, [N/A], 1, 2, 3\n"])
def test_what_is_no_row(text):
    with pytest.raises(NoAnswer, match="nvidia-smi says"):
        gpus.parse(text)


def done(code, out="", err=""):
    return subprocess.CompletedProcess([], code, out, err)


def test_a_machine_without_a_driver(monkeypatch):
    monkeypatch.setattr(gpus.shutil, "which", lambda _: None)
    assert gpus.gpus() is None
    assert memory.free_bytes((0,)) is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (done(9, "Failed to initialize NVML: Driver/library version mismatch\n"), "nvidia-smi says: Failed to"),
        (done(6), "exit code 6"),
        (OSError("no such file"), "can't be asked: no such file"),
        (subprocess.TimeoutExpired("nvidia-smi", 20), "can't be asked: "),
    ],
)  # fmt: skip
def test_a_driver_that_does_not_answer(monkeypatch, answer, said):
    def run(*_, **__):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(gpus.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(gpus.subprocess, "run", run)
    with pytest.raises(NoAnswer, match=said):
        gpus.gpus()
    assert memory.free_bytes((0,)) is None


def test_free_is_of_the_gpus_asked_for(monkeypatch):
    with_free(monkeypatch, 1 * GIB, 2 * GIB, 4 * GIB)
    assert memory.free_bytes((0, 2)) == 5 * GIB
    assert memory.free_bytes((7,)) == 0

"""Every way to load, on the library's own classes: its loaders, which need a GPU, are replaced by ones that take the
same arguments and put nothing but the cache anywhere.
"""

from __future__ import annotations

import inspect
import json
import math
from types import SimpleNamespace

import msgspec
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402 - after the skip

import tests.engines.exl2.harness  # noqa: E402, F401 - the stub of the extension
from engines import starter  # noqa: E402
from engines.base import EngineError  # noqa: E402
from engines.exl2 import loading, memory, positions  # noqa: E402
from engines.specs import ExLlamaV2Spec  # noqa: E402

HEADS, DIM, LAYERS = 2, 64, 4
"""Of keys, in the starter model."""


def spec(**given):
    return ExLlamaV2Spec(
        **{"model": str(starter.hf_path()), "slots": 4, "cache_tokens": 1024, **given}
    )


class Loaders:
    """What stands in for the loaders: (name, arguments) of each call, bound to the real signature."""

    def __init__(self, monkeypatch):
        from exllamav2 import ExLlamaV2

        self.calls = []
        for name in ("load_autosplit_gen", "load_gen", "load_tp_gen"):
            monkeypatch.setattr(ExLlamaV2, name, self.like(name, getattr(ExLlamaV2, name)))

    def like(self, name, original):
        signature = inspect.signature(original)

        def load(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self.calls.append((name, bound.arguments))
            return self.run(name, **bound.arguments)

        return load

    def run(self, name, self_, cache=None, callback_gen=None, **rest):
        config = self_.config
        if name == "load_autosplit_gen":  # as the library does
            config.max_input_len = min(config.max_input_len, config.max_seq_len)
        if name == "load_tp_gen":
            halves = [("cpu", 0, 1), ("cpu", 1, 2)]
            self_.tp_context = SimpleNamespace(get_split=lambda _: halves)
        for at, module in enumerate(self_.modules):
            yield from callback_gen(at, len(self_.modules))
            module.set_device_idx(-1)
            if hasattr(module, "layer_idx") and module.name == "Attention":
                self_.cache_map[module.layer_idx] = "cpu"
                if cache is not None:
                    cache.update_cache_tensors()
        yield from callback_gen(len(self_.modules), len(self_.modules))


@pytest.fixture
def loaders(exl2_harness, monkeypatch):
    loaders = Loaders(monkeypatch)
    real = loaders.run
    loaders.run = lambda name, **given: real(name, given.pop("self"), **given)
    return loaders


def loaded(given, folder=None):
    """Load, and return the model, what lies on the GPUs, the machine and what was heard of progress."""
    model = loading.examine(given)
    if folder is not None:
        model = msgspec.structs.replace(
            model, folder=msgspec.structs.replace(model.folder, **folder)
        )
    heard = []
    weights = loading.weights(model, heard.append)
    return model, weights, loading.machine(model, weights, "none"), heard


@pytest.mark.parametrize("cache", ["fp16", "q8", "q6", "q4"])
@pytest.mark.parametrize("split", [None, (3.5,)])
def test_caches_are_what_the_estimate_says(loaders, cache, split):
    model, weights, machine, heard = loaded(spec(cache=cache, gpu_split_gib=split))
    ((name, arguments),) = loaders.calls
    if split is None:  # the cache grows with the layers
        assert name == "load_autosplit_gen"
        assert arguments["cache"] is weights.cache
    else:
        assert (name, arguments["gpu_split"]) == ("load_gen", [3.5])
    suffix = "" if cache == "fp16" else f"_{cache.upper()}"
    assert type(weights.cache).__name__ == f"ExLlamaV2Cache{suffix}"
    tensors = weights.cache.all_tensors()
    assert len(tensors) == LAYERS * (2 if cache == "fp16" else 4)
    beside = getattr(weights.cache, "temp_tensors", {})
    size = sum(t.nbytes for t in tensors) + sum(t.nbytes for pair in beside.values() for t in pair)
    assert size == memory.cache_bytes(model.folder, 1024, cache)
    assert machine.generator.max_pages == 4
    assert heard == sorted(heard)
    assert (heard[0], heard[-1]) == (0.0, 1.0)
    assert len(set(heard)) > LAYERS


@pytest.mark.parametrize("cache", ["fp16", "q8", "q6", "q4"])
def test_pages_are_copied_and_moved_in_every_cache(loaders, cache):
    """What sharing a prefix and tidying up do, in the library's own code."""
    _, weights, machine, _ = loaded(spec(cache=cache))
    generator, tensors = machine.generator, weights.cache.all_tensors()
    for tensor in tensors:
        tensor.copy_(torch.randint(0, 100, tensor.shape))
    before = [tensor.clone() for tensor in tensors]
    weights.cache.copy_states(weights.cache, 0, 100, 256, 100, 0, 1, 0, 1)
    for tensor, was in zip(tensors, before, strict=True):
        assert torch.equal(tensor[:, 256:356], was[:, :100])
        assert torch.equal(tensor[:, 356:], was[:, 356:])
    generator.access_serial += 1000
    for serial, page in zip((3, 1, 4, 2), generator.all_pages, strict=True):
        page.access_serial = serial
    copied = [tensor.clone() for tensor in tensors]
    old = [page.page_index for page in generator.all_pages]
    generator.defrag_cache()
    new = [page.page_index for page in generator.all_pages]
    assert new != old
    for tensor, was in zip(tensors, copied, strict=True):
        for a, b in zip(old, new, strict=True):
            assert torch.equal(tensor[:, b * 256 : b * 256 + 256], was[:, a * 256 : a * 256 + 256])


@pytest.mark.parametrize("cache", ["fp16", "q4"])
def test_tensor_parallel(loaders, monkeypatch, cache):
    from engines.exl2 import paged_attention

    monkeypatch.setattr(loading, "_check_tensor_parallel", lambda *_: None)
    monkeypatch.setattr(paged_attention, "has_flash_attn", lambda: True)
    monkeypatch.setattr("exllamav2.attn.has_flash_attn_with_paged", True)
    given = spec(tensor_parallel=True, gpus=(0, 1), gpu_split_gib=(4, 5), cache=cache)
    _, weights, machine, heard = loaded(given)
    ((name, arguments),) = loaders.calls
    assert name == "load_tp_gen"
    assert arguments["gpu_split"] == [4, 5]
    assert arguments["expect_cache_tokens"] == 1024
    assert type(weights.cache).__name__ == "ExLlamaV2Cache_TP"
    assert [type(part) for part in weights.cache.caches] == [arguments["expect_cache_base"]] * 2
    assert [part.num_key_value_heads for part in weights.cache.caches] == [1, 1]
    assert machine.attention == "flash-attn"
    assert heard[-1] == 1.0


def test_a_draft_goes_where_there_is_room(loaders):
    given = spec(draft_model=str(starter.hf_path()), gpu_split_gib=(4,), cache="q8", draft_tokens=3)
    model, weights, machine, heard = loaded(given)
    assert [name for name, _ in loaders.calls] == ["load_gen", "load_autosplit_gen"]
    assert type(weights.draft_cache) is type(weights.cache)
    generator = machine.generator
    assert (generator.draft_model, generator.num_draft_tokens) == (weights.draft_model, 3)
    assert heard == sorted(heard)
    assert weights.model.config.max_seq_len == model.context_tokens + 3


def test_guesses_from_what_was_said(loaders):
    _, _, machine, _ = loaded(spec(ngram_draft=True, draft_tokens=7))
    assert machine.generator.use_ngram_draft
    assert machine.generator.num_draft_tokens == 7


@pytest.mark.parametrize("small", [{"cache_tokens": 200}, {"context_tokens": 100, "slots": 200}])
def test_a_short_context_is_no_shorter_than_a_step(loaders, small):
    """The library cuts its longest input to the context, and then refuses chunks and batches."""
    model, weights, machine, _ = loaded(spec(**small))
    assert machine.generator.max_chunk_size == 512
    assert weights.model.config.max_input_len >= 8 * model.spec.slots
    assert model.context_tokens == small.get("context_tokens", 256)


# LoRAs.


def lora(folder, rank=2, alpha=4):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": alpha}))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    halves = {f"{name}_A.weight": torch.ones(rank, 256), f"{name}_B.weight": torch.ones(256, rank)}
    save_file(halves, str(folder / "adapter_model.safetensors"))
    return folder


def test_loras_are_one_set_for_all_requests(loaders, tmp_path):
    folders = [lora(tmp_path / name) for name in ("a", "b")]
    _, weights, machine, _ = loaded(spec(loras=tuple(str(folder) for folder in folders)))
    assert machine.generator.current_loras == list(weights.loras)
    projection = weights.model.modules_dict["model.layers.0.self_attn.q_proj"]
    assert set(projection.lora_a_tensors) == set(weights.loras)
    first = weights.loras[0]
    assert projection.lora_b_tensors[first].dtype == torch.half
    assert float(projection.lora_b_tensors[first][0, 0]) == 2.0  # alpha / rank


def test_a_lora_in_a_pickle_is_not_opened(tmp_path, loaders):
    folder = lora(tmp_path / "a")
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert len(loaded(spec(loras=(str(folder),)))[1].loras) == 1
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"no adapter_model\.safetensors"):
        loading.examine(spec(loras=(str(folder),)))


# Refused before anything is loaded.


@pytest.mark.parametrize(
    ("folder", "given", "message"),
    [
        ({}, {}, "needs EXL2 weights, these are fp16"),
        ({"format": "exl2", "architecture": "Qwen3ForCausalLM"}, {}, "this is Qwen3ForCausalLM"),
        ({"format": "exl2"}, {"gpus": (0, 1, 2), "gpu_split_gib": (1, 1, 1)}, "heads of keys, 2"),
        ({"format": "exl2"}, {"gpu_split_gib": (1, 1)}, "2 figures for 1 gpus"),
    ],
    ids=str,
)
def test_what_cannot_be_split_is_refused(monkeypatch, folder, given, message):
    real = loading.read_folder
    changed = lambda *args: msgspec.structs.replace(real(*args), **folder)
    monkeypatch.setattr(loading, "read_folder", changed)
    with pytest.raises(EngineError, match=message):
        loading.examine(spec(tensor_parallel=True, **given))


def test_tensor_parallel_wants_flash_attn_itself(loaders, monkeypatch):
    from engines.exl2 import paged_attention

    monkeypatch.setattr(loading, "_check_tensor_parallel", lambda *_: None)
    assert paged_attention.install() == "masked"  # which is not it
    with pytest.raises(EngineError, match=r"flash-attn 2\.5\.7"):
        loaded(spec(tensor_parallel=True))


# Positions.


def config(**given):
    plain = {
        "head_dim": 64, "partial_rotary_factor": 1.0, "scale_alpha_value": 1.0, "max_seq_len": 8192,
        "alt_rope_method": None, "arch": SimpleNamespace(lm=SimpleNamespace(rope_freq_half=False)),
    }  # fmt: skip
    return SimpleNamespace(**{**plain, **given})


def yarn(base, dim, factor, original):
    """YaRN as transformers computes it."""
    at = torch.arange(0, dim, 2).float() / dim
    plain = 1.0 / base**at

    def dimension(rotations):
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), dim - 1)
    ramp = ((torch.arange(dim // 2).float() - low) / (high - low)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp), 0.1 * math.log(factor) + 1


@pytest.mark.parametrize("served", [2048, 4096, 16384])
def test_yarn_is_the_trained_one_at_every_length(exl2_harness, served):
    from exllamav2 import rope

    positions.install()
    given = config(
        alt_rope_method="yarn", max_seq_len=served, yarn_rope_factor=4.0,
        yarn_rope_original_max_position_embeddings=4096,
    )  # fmt: skip
    frequencies, scale = rope.get_rope_params("cpu", given, 10000.0)
    wanted, factor = yarn(10000.0, 64, 4.0, 4096)
    assert torch.allclose(frequencies, wanted, rtol=1e-4)
    assert scale == pytest.approx(factor)


@pytest.mark.parametrize(("served", "factors"), [(2048, "short"), (4096, "short"), (8192, "long")])
def test_longrope_is_scaled_by_the_trained_length(exl2_harness, served, factors):
    from exllamav2 import rope

    positions.install()
    by = {"short": [1.0] * 32, "long": [4.0] * 32}
    given = config(
        alt_rope_method="su", max_seq_len=served, original_max_seq_len=4096,
        scale_short_factor=by["short"], scale_long_factor=by["long"],
    )  # fmt: skip
    setattr(given, positions.TRAINED, 131072)
    frequencies, scale = rope.get_rope_params("cpu", given, 10000.0)
    plain = 1.0 / 10000.0 ** (torch.arange(0, 64, 2).float() / 64)
    assert torch.allclose(frequencies, plain / by[factors][0])
    assert scale == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))


def test_plain_positions_stay_as_they_are(exl2_harness):
    given = config()
    assert positions.trained(given) is given

"""Loading by exllamav3, on the library's own classes; what needs a GPU is replaced by what takes the same arguments."""

from __future__ import annotations

import importlib
import inspect

import pytest

torch = pytest.importorskip("torch")

from engines import starter  # noqa: E402 - after the skip
from engines.base import EngineError  # noqa: E402
from engines.exl2 import loading as shared  # noqa: E402
from engines.exl2.folder import read_folder  # noqa: E402
from engines.exl3 import loading  # noqa: E402
from engines.exl3.sampling import Sampling  # noqa: E402
from engines.specs import ExLlamaV2Spec, ExLlamaV3Spec  # noqa: E402

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 0.0, "min_p": 0.0}


def spec(**given):
    return ExLlamaV3Spec(
        **{"model": str(starter.hf_path()), "slots": 4, "cache_tokens": 1024, **given}
    )


@pytest.fixture
def loads(exl3_harness, monkeypatch):
    """The arguments of each load, bound to the real signature."""
    importlib.import_module("tests.engines.exl3.harness")  # the stub first
    Model = importlib.import_module("exllamav3.model.model").Model  # noqa: N806
    signature = inspect.signature(Model.load_gen)
    calls = []

    def load(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        assert self.cache_weakrefs  # a cache comes before its model's weights
        calls.append(bound.arguments)
        for done in range(3):
            bound.arguments["callback"](done, 2)

    monkeypatch.setattr(Model, "load", load)
    return calls


@pytest.mark.parametrize(("cache", "bits"), [("fp16", None), ("q8", 8), ("q6", 6), ("q4", 4)])
def test_caches(loads, cache, bits):
    heard = []
    model = shared.examine(spec(cache=cache))
    weights = loading.weights(model, heard.append)
    layers = list(weights.cache.layers.values())
    assert len(layers) == model.folder.layers
    assert all(layer.max_num_tokens == 1024 for layer in layers)
    if bits is not None:
        assert {(layer.k_bits, layer.v_bits) for layer in layers} == {(bits, bits)}
    assert heard == [0.0, 0.5, 1.0, 1.0]
    (call,) = loads
    assert (call["use_per_device"], call["tensor_p"]) == (None, False)
    assert (call["max_chunk_size"], call["max_output_size"]) == (512, 32)


def test_a_draft_goes_where_there_is_room(loads):
    given = spec(
        draft_model=str(starter.hf_path()), gpus=(0, 1), gpu_split_gib=(4, 5), tensor_parallel=True
    )
    weights = loading.weights(shared.examine(given), lambda _: None)
    main, draft = loads
    assert (main["use_per_device"], main["tensor_p"]) == ([4, 5], True)
    assert (draft["use_per_device"], draft["tensor_p"]) == (None, False)
    assert weights.draft_cache.max_num_tokens == weights.cache.max_num_tokens
    assert weights.cache.max_history == 4


def test_a_folder_is_for_one_library_or_the_other(tmp_path):
    import json

    from safetensors.torch import save_file

    folder = tmp_path / "m"
    folder.mkdir()
    for file in starter.hf_path().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["SomethingNewForCausalLM"],
        "rope_parameters": {"rope_type": "yarn"},
    }
    del config["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    said = " ".join(read_folder(folder).problems)
    assert "doesn't know SomethingNewForCausalLM" in said
    assert "scaled (yarn)" in said
    assert not read_folder(folder, library="exllamav3").problems
    save_file(
        {"model.layers.0.mlp.up_proj.q_weight": torch.zeros(2, 2)}, folder / "model.safetensors"
    )
    assert "EXL2 model; exllamav3 can't read it" in " ".join(
        read_folder(folder, library="exllamav3").problems
    )
    with pytest.raises(EngineError, match="EXL2 model"):
        shared.examine(spec(model=str(folder)))
    save_file(
        {"model.layers.0.mlp.up_proj.trellis": torch.zeros(2, 2, 2)}, folder / "model.safetensors"
    )
    with pytest.raises(EngineError, match="EXL3 model"):
        shared.examine(ExLlamaV2Spec(model=str(folder)))


# Sampling.


def drawn(settings, logits, draws=4000):
    sampling = Sampling({**PLAIN, **settings}, len(logits) - 1, None, guesses=False)
    counts = [0] * len(logits)
    for at in range(draws):
        token = sampling.forward(logits.view(1, 1, -1), None, (at * (2**32 - 1)) // (draws - 1))
        assert token.shape == (1, 1)
        counts[int(token)] += 1
    return [count / draws for count in counts]


SHARES = torch.tensor([0.1, 0.4, 0.3, 0.0, 0.2, 0.9])
"""The last is padding of the vocabulary, which nothing may draw."""


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [0.1, 0.4, 0.3, 0, 0.2, 0]),
        ({"top_k": 1}, [0, 1, 0, 0, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 3 / 7, 0, 0, 0]),
        ({"top_p": 0.65}, [0, 4 / 7, 3 / 7, 0, 0, 0]),
        ({"min_p": 0.45}, [0, 4 / 9, 3 / 9, 0, 2 / 9, 0]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 9 / 30, 0, 4 / 30, 0]),
    ],
    ids=str,
)
def test_tokens_are_drawn_by_their_probability(settings, wanted):
    for kind in (torch.float, torch.half):
        assert drawn(settings, SHARES.log().to(kind)) == pytest.approx(wanted, abs=2e-3)

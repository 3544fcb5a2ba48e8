"""The engines of the contract suite."""

import importlib.util
import shutil

import msgspec
import pytest

from engines import starter
from engines.registry import make
from engines.specs import ExLlamaV2Spec, ExLlamaV3Spec, LlamaCppSpec, SimulatedSpec, WorkCosts
from tests.engines.node_client import NodeEngine

SIMULATED = SimulatedSpec(
    ttft_ms=2, tokens_per_s=500, prefill_tokens_per_s=1e6, slots=4, context_tokens=2048
)


COSTS = WorkCosts(prefill_token_s=1e-4, step_s=1e-3)
"""Said, so that no test waits for measuring them."""

EXLLAMAV2 = ExLlamaV2Spec(
    model=str(starter.hf_path()), slots=4, cache_tokens=16384, answer_tokens=2048
)


@pytest.fixture
def exl2_harness(monkeypatch):
    """ExLlamaV2 on a CPU, in this process and in nodes; skips where it isn't installed."""
    for package in ("torch", "exllamav2", "llguidance", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make exl2-deps, then scripts/check")
    monkeypatch.setenv("NENYA_EXLLAMAV2_LOADER", "tests.engines.exl2.harness")


EXLLAMAV3 = ExLlamaV3Spec(
    model=str(starter.hf_path()), slots=4, cache_tokens=16384, answer_tokens=2048, costs=COSTS
)


@pytest.fixture
def exl3_harness(exl2_harness, monkeypatch):
    """ExLlamaV3 on a CPU, likewise."""
    if importlib.util.find_spec("exllamav3") is None:
        pytest.skip("exllamav3 is not installed: make exl2-deps, then scripts/check")
    monkeypatch.setenv("NENYA_EXLLAMAV2_LOADER", "tests.engines.exl3.harness")


ENGINES = ["simulated", "llamacpp", "node", "exllamav2", "exllamav3"]
ON_GPU = {"gpu-exllamav2": EXLLAMAV2, "gpu-exllamav3": EXLLAMAV3}
if shutil.which("nvidia-smi"):
    marks = [pytest.mark.gpu, pytest.mark.timeout(300)]
    ENGINES += [pytest.param(name, marks=marks) for name in ON_GPU]


@pytest.fixture(params=ENGINES)
async def engine(request, monkeypatch):
    if request.param in ON_GPU:  # the library's own kernels, whatever stands in for them elsewhere
        if importlib.util.find_spec(request.param.removeprefix("gpu-")) is None:
            pytest.skip(f"{request.param.removeprefix('gpu-')} is not installed")
        monkeypatch.delenv("NENYA_EXLLAMAV2_LOADER", raising=False)
        engine = make(msgspec.structs.replace(ON_GPU[request.param], costs=COSTS))
    elif request.param == "exllamav2":
        request.getfixturevalue("exl2_harness")
        engine = make(EXLLAMAV2)
    elif request.param == "exllamav3":
        request.getfixturevalue("exl3_harness")
        engine = make(EXLLAMAV3)
    elif request.param == "llamacpp":
        pytest.importorskip("xllamacpp")
        if not starter.gguf_path().exists():
            pytest.skip("the starter model is not there")
        engine = make(LlamaCppSpec(model="starter", threads=1))
    else:
        engine = make(SIMULATED) if request.param == "simulated" else NodeEngine(SIMULATED)
    engine.info = await engine.start()
    yield engine
    await engine.close()

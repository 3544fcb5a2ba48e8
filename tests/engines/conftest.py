"""Hypothesis without its time limit, which a busy machine would break; and the engines of the contract suite."""

import pytest
from hypothesis import settings

from engines import starter
from engines.registry import make
from engines.specs import LlamaCppSpec, SimulatedSpec
from tests.engines.node_client import NodeEngine

settings.register_profile("engines", deadline=None)
settings.load_profile("engines")

SIMULATED = SimulatedSpec(
    ttft_ms=2, tokens_per_s=500, prefill_tokens_per_s=1e6, slots=4, context_tokens=2048
)


@pytest.fixture(params=["simulated", "llamacpp", "node"])
async def engine(request):
    if request.param == "llamacpp":
        pytest.importorskip("xllamacpp")
        if not starter.gguf_path().exists():
            pytest.skip("the starter model is not there")
        engine = make(LlamaCppSpec(model="starter", threads=1))
    else:
        engine = make(SIMULATED) if request.param == "simulated" else NodeEngine(SIMULATED)
    engine.info = await engine.start()
    yield engine
    await engine.close()

"""What only a GPU can answer: ``pytest -m gpu tests/gpu``, or scripts/gpu-check, which brings what it needs.

Elsewhere they are skipped, unless NENYA_GPU_REHEARSAL=1 runs those that can on the CPU harness. That shows that the
tests themselves run, and nothing about a GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil

import pytest

from engines import starter
from engines.specs import ExLlamaV2Spec, WorkCosts

REHEARSAL = os.environ.get("NENYA_GPU_REHEARSAL") == "1"
COSTS = WorkCosts(prefill_token_s=1e-4, step_s=1e-3)
"""Said, so that no test waits for measuring them."""


@functools.cache
def missing() -> str:
    """Why there is no GPU to test on; empty where there is one."""
    for package in ("torch", "exllamav2", "llguidance", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: see docs/gpu.md"
    if REHEARSAL:
        return ""
    if shutil.which("nvidia-smi") is None:
        return "there is no NVIDIA driver"
    import torch

    return "" if torch.cuda.is_available() else "torch sees no GPU"


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Skip without one; leave nothing of a test on it."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    if REHEARSAL:
        monkeypatch.setenv("NENYA_EXLLAMAV2_LOADER", "tests.engines.exl2.harness")
    yield
    if not REHEARSAL:
        import gc

        import torch

        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def kernels():
    """ExLlamaV2's compiled extension, and whatever else the harness can't stand in for."""
    if REHEARSAL:
        pytest.skip("needs the kernels")


@pytest.fixture
def spec():
    """Specs of the starter model, or of another folder."""

    def of(**given) -> ExLlamaV2Spec:
        chosen = {
            "model": str(starter.hf_path()), "slots": 8, "cache_tokens": 16384,
            "answer_tokens": 2048, "costs": COSTS, **given,
        }  # fmt: skip
        return ExLlamaV2Spec(**chosen)

    return of


@pytest.fixture
async def make_engine(spec):
    """Engines in this process, closed in the end."""
    from engines.exl2.engine import ExLlamaV2Engine

    engines = []

    async def make(**given):
        engine = ExLlamaV2Engine(spec(**given))
        engines.append(engine)
        engine.info = await engine.start()
        return engine

    yield make
    for engine in engines:
        await engine.close()


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory):
    """A small random Llama, its positions' base where transformers 5 writes it and ExLlamaV2 doesn't look."""
    if missing():
        pytest.skip(missing())
    from benchmarks.random_model import SMALL, make

    return make(tmp_path_factory.mktemp("random") / "llama", SMALL, theta_at_top=False)

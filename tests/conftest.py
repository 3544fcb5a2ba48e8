"""Hypothesis: `pytest --hypothesis-profile=nightly` looks longer than the gate has time for. And a cache of its own."""

import os

import pytest
from hypothesis import HealthCheck, settings

CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
"""A busy machine is slow at everything; that must not fail a test."""

settings.register_profile("gate", **CALM)
settings.register_profile("nightly", max_examples=2500, **CALM)
settings.load_profile("gate")


@pytest.fixture(scope="session", autouse=True)
def _no_costs_of_this_machine(tmp_path_factory):
    """What was measured for its user would be found by the engines that tests start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))

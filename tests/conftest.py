"""Hypothesis: `pytest --hypothesis-profile=nightly` looks longer than the gate has time for."""

from hypothesis import HealthCheck, settings

CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
"""A busy machine is slow at everything; that must not fail a test."""

settings.register_profile("gate", **CALM)
settings.register_profile("nightly", max_examples=2500, **CALM)
settings.load_profile("gate")

"""Hypothesis: `pytest --hypothesis-profile=nightly` looks longer than the gate has time for."""

from hypothesis import settings

settings.register_profile("nightly", max_examples=2500, deadline=None)

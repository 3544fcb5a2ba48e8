"""Hypothesis without its time limit: on a busy machine it would fail tests that are only slow."""

from hypothesis import settings

settings.register_profile("engines", deadline=None)
settings.load_profile("engines")

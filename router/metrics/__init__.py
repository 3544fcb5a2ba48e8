"""Metrics for Prometheus: fed by events, read by scrapes.

Names, labels and buckets are OpenTelemetry's GenAI conventions where they have a name, vLLM's for what a local engine
does inside, ``nenya_`` for the rest; docs/metrics.md lists them. Labels come from closed sets, and a series goes when
what it names goes.

    listener   counts events
    state      the router's state, at a scrape
    engines    local engines, both ways
    lag        the event loop
"""

from router.metrics.listener import Metrics

__all__ = ["Metrics"]

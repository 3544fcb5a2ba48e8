"""The page that is made of our counts is the page that prometheus_client makes of its own."""

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from router.counters import Counter, Histogram

BUCKETS = (0.005, 0.1, 1, 2.5, 1000)
VALUES = st.floats(0, 2000) | st.sampled_from(BUCKETS)


def page(counter, histogram, plain, values):
    registry = CollectorRegistry()
    requests = counter("requests", "Requests", ("model", "outcome"), registry=registry)
    seconds = histogram("seconds", "Time", ("model",), buckets=BUCKETS, registry=registry)
    lost = counter("lost", "Lost", registry=registry)
    spread = histogram("spread", "All", buckets=BUCKETS, registry=registry)
    for value in values:
        requests.labels("a", "ok").inc()
        requests.labels("b", 'quo"te').inc(value)
        seconds.labels("a").observe(value)
        plain(lost).inc()
        plain(spread).observe(value)
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


@given(st.lists(VALUES, max_size=30))
def test_same_page(values):
    ours = page(Counter, Histogram, lambda family: family.labels(), values)
    theirs = page(
        prometheus_client.Counter, prometheus_client.Histogram, lambda family: family, values
    )
    assert ours == theirs


def test_labels_must_be_all_there():
    counter = Counter("requests", "Requests", ("model",), registry=CollectorRegistry())
    with pytest.raises(ValueError, match="requests"):
        counter.labels()
    assert counter.labels("m") is counter.labels("m")

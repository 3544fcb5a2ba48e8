"""The page that is made of our counts says what prometheus_client's page of its own would."""

import math

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from router.counters import (
    OPEN,
    TEXT,
    Counter,
    Gauge,
    Histogram,
    Spread,
    content_type_of,
    page,
)

BUCKETS = (0.005, 0.1, 1, 2.5, 1000)
VALUES = st.floats(0, 2000) | st.sampled_from(BUCKETS)
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
ODD = 'quo"te\\ and\nline \\n é'


def ours(values) -> list:
    requests = Counter("requests", "Requests", ("model", "outcome"))
    seconds = Histogram("seconds", "Time\nin \\ two lines", ("model",), buckets=BUCKETS)
    lost = Counter("lost", "Lost")
    spread = Histogram("spread", "All", buckets=BUCKETS)
    depth = Gauge("depth", "Depth", ("model",))
    for value in values:
        requests.labels("a", "ok").inc()
        requests.labels("b", ODD).inc(value)
        seconds.labels("a").observe(value)
        lost.labels().inc()
        spread.labels().observe(value)
    rows = [((ODD,), sum(values))]
    return [
        requests.take(),
        seconds.take(),
        lost.take(),
        spread.take(),
        depth.taken(rows),
    ]


def theirs(values) -> CollectorRegistry:
    client, registry = prometheus_client, CollectorRegistry()
    requests = client.Counter("requests", "Requests", ("model", "outcome"), registry=registry)
    seconds = client.Histogram(
        "seconds", "Time\nin \\ two lines", ("model",), buckets=BUCKETS, registry=registry
    )
    lost = client.Counter("lost", "Lost", registry=registry)
    spread = client.Histogram("spread", "All", buckets=BUCKETS, registry=registry)
    depth = client.Gauge("depth", "Depth", ("model",), registry=registry)
    for value in values:
        requests.labels("a", "ok").inc()
        requests.labels("b", ODD).inc(value)
        seconds.labels("a").observe(value)
        lost.inc()
        spread.observe(value)
    depth.labels(ODD).set(sum(values))
    return registry


def read(families) -> list:
    return [
        (
            family.name, family.documentation, family.type,
            sorted((s.name, sorted(s.labels.items()), s.value) for s in family.samples
                   if not s.name.endswith("_created")),
        )
        for family in families if not family.name.endswith("_created")
    ]  # fmt: skip


@given(st.lists(VALUES, max_size=30))
def test_same_pages(values):
    taken = ours(values)
    assert read(text_families(page(taken, TEXT).decode())) == read(
        text_families(generate_latest(theirs(values)).decode())
    )
    assert read(open_families(page(taken, OPEN).decode())) == read(
        open_families(generate_open(theirs(values)).decode())
    )


def test_a_page_is_of_the_moment_in_which_it_was_taken():
    counter = Counter("requests", "Requests", ("model",))
    seconds = Histogram("seconds", "Time", ("model",), buckets=BUCKETS)
    kept = Spread(BUCKETS)
    counter.labels("m").inc()
    seconds.labels("m").observe(1)
    taken = [counter.take(), seconds.take(), seconds.taken([(("n",), kept)])]
    before = page(taken, TEXT)
    counter.labels("m").inc()
    counter.labels("n").inc()
    seconds.labels("m").observe(5)
    kept.observe(1)
    counter.keep({"model": ()})
    assert page(taken, TEXT) == before


def test_what_nobody_knows_any_more_goes():
    counter = Counter("requests", "Requests", ("model", "outcome"))
    seconds = Histogram("seconds", "Time", buckets=BUCKETS)
    for model in ("a", "b"):
        counter.labels(model, "ok").inc(3)
    for family in (counter, seconds):
        family.keep({"model": {"b", "c"}, "target": ()})
    text = page([counter.take(), seconds.take()], TEXT).decode()
    assert 'requests_total{model="b",outcome="ok"} 3.0' in text
    assert 'model="a"' not in text
    assert "seconds_count 0" in text
    counter.labels("a", "ok").inc()
    assert 'requests_total{model="a",outcome="ok"} 1.0' in page([counter.take()], TEXT).decode()


def test_several_of_one_value():
    one, many = Spread(BUCKETS), Spread(BUCKETS)
    for _ in range(7):
        one.observe(0.5)
    many.observe_times(0.5, 7)
    assert (one.counts, one.total) == (many.counts, many.total)
    assert one.copy().counts == one.counts


def test_numbers_that_are_none():
    gauge = Gauge("depth", "Depth", ("of",))
    rows = [(("inf",), math.inf), (("minus",), -math.inf), (("nan",), math.nan)]
    lines = page([gauge.taken(rows)], TEXT).decode().splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["+Inf", "-Inf", "NaN"]


def test_labels_must_be_all_there():
    counter = Counter("requests", "Requests", ("model",))
    with pytest.raises(ValueError, match="requests"):
        counter.labels()
    assert counter.labels("m") is counter.labels("m")


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html, text/plain", TEXT),
        ("application/openmetrics-text", OPEN),
        ("application/openmetrics-text; version=1.0.0; q=0", TEXT),
        ("application/openmetrics-text;q=nonsense,text/plain", TEXT),
        ("text/plain;q=0.9, APPLICATION/openmetrics-text;q=0.5", TEXT),
        (PROMETHEUS_2, OPEN),
        (PROMETHEUS_3, OPEN),
    ],
)
def test_the_format_that_is_asked_for(accept, wanted):
    assert content_type_of(accept) == wanted


@given(st.lists(st.lists(VALUES, max_size=20), max_size=5))
def test_values_counted_together_are_counted_as_one_by_one(batches):
    together, apart = Spread(BUCKETS), Spread(BUCKETS)
    for values in batches:
        for value in values:
            apart.observe(value)
        together.observe_all(values[:])
    assert together.counts == apart.counts
    assert together.total == pytest.approx(apart.total)

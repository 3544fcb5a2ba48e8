"""The pure parts of `nenya bench`: lengths, due times, prompts, objectives, figures, tests of difference."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from benchmarks.measure.figures import Client, client_of, figures, warnings
from benchmarks.measure.lengths import BadLength, lengths
from benchmarks.measure.numbers import (
    batches,
    mann_whitney,
    mean_of,
    quantile,
    ratio,
    student,
    trend,
)
from benchmarks.measure.prompts import Ruler, Writer
from benchmarks.measure.records import OK, UNFINISHED, Record, columns, rows
from benchmarks.measure.saturation import Saturation
from benchmarks.measure.schedule import Rising, dues, steady
from benchmarks.measure.search import search
from benchmarks.measure.sessions import Session, Shape, Turn, made_up, recorded
from benchmarks.measure.slo import BadSlo, Slo, shown_time, slo, span
from benchmarks.simulate.load import Load, Request


def answer(due, *, sent=None, first=0.1, pace=0.01, tokens=11, outcome=OK, cached=0):
    one = Record(0, due, 100, tokens, sent_s=due if sent is None else sent)
    one.first_s = one.sent_s + first
    one.end_s = one.first_s + pace * (tokens - 1)
    one.input_tokens, one.output_tokens, one.cached_tokens = 100, tokens, cached
    one.pieces, one.by_usage, one.outcome = tokens, True, outcome
    one.gaps_s = [pace] * (tokens - 1)
    return one


# Lengths


@pytest.mark.parametrize(
    ("text", "low", "high", "mean"),
    [
        ("512", 512, 512, 512),
        ("200-800", 200, 800, 500),
        ("exp:300", 1, 10_000, 300),
        ("normal:400:50", 100, 700, 400),
        ("lognormal:300:0.5", 10, 10_000, 300 * math.exp(0.125)),
    ],
)
def test_lengths_are_as_they_are_called(text, low, high, mean):
    rng = random.Random(1)
    found = lengths(text)
    drawn = [found.draw(rng) for _ in range(4000)]
    assert low <= min(drawn) <= max(drawn) <= high
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.05)
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    ["", "0", "-5", "9-3", "0-3", "exp", "exp:x", "normal:3", "cauchy:3:4", "exp:nan", "1e9"],
)
def test_bad_lengths_say_how_to_write_one(text):
    with pytest.raises(BadLength):
        lengths(text)


# Due times


def test_an_even_rate_is_even():
    first = list(itertools.islice(dues(steady(4.0), "even", random.Random(1)), 5))
    assert first == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_a_poisson_rate_has_exponential_gaps():
    found = list(itertools.islice(dues(steady(5.0), "poisson", random.Random(1)), 20_000))
    gaps = [later - one for one, later in itertools.pairwise(found)]
    assert statistics.fmean(gaps) == pytest.approx(0.2, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.03)


def test_a_rising_rate_rises():
    rising = Rising(2.0, 10.0, 60.0)
    found = list(itertools.takewhile(lambda at: at < 60, dues(rising, "even", random.Random(1))))
    assert len(found) == 360  # the mean rate times the time
    assert sum(at < 1 for at in found) == pytest.approx(2, abs=1)
    assert sum(at > 59 for at in found) == pytest.approx(10, abs=1)
    assert rising.at(30) == 6.0
    assert rising.at(90) == 10.0
    assert Rising(0.0, 4.0, 10.0).when(20) == pytest.approx(10.0)
    assert rising.when(360 + 10) == pytest.approx(61.0)


# Prompts


def test_prompts_have_the_wanted_words_and_begin_unlike_each_other():
    writer = Writer(Ruler(tokens_per_word=2.0, overhead_tokens=10, measured=True))
    shape = Shape(lengths("410"), lengths("10"))
    texts = [
        writer.opening(session)[0].content for session in itertools.islice(made_up(shape, 1), 50)
    ]
    assert {len(text.split()) for text in texts} == {200}
    assert len({" ".join(text.split()[:5]) for text in texts}) == 50


def test_texts_depend_on_the_salt_and_lengths_dont():
    shape = Shape(lengths("exp:100"), lengths("exp:10"))
    one, other = (
        list(itertools.islice(made_up(shape, 1), 5)),
        list(itertools.islice(made_up(shape, 1), 5)),
    )
    assert one == other
    session = one[0]
    assert Writer(Ruler(), salt="a").opening(session) != Writer(Ruler(), salt="b").opening(session)
    assert Writer(Ruler(), salt="a").opening(session) == Writer(Ruler(), salt="a").opening(session)


def test_a_long_prompt_goes_round_the_pool():
    assert len(Writer(Ruler(1.0)).text("k", 100_000).split()) == 100_000


def test_prefixes_are_shared():
    shape = Shape(lengths("50"), lengths("10"), prefix_tokens=1024, prefixes=2)
    writer = Writer(Ruler(1.0), prefix_tokens=1024)
    sessions = list(itertools.islice(made_up(shape, 1), 40))
    openings = [writer.opening(session) for session in sessions]
    assert {one[0].role for one in openings} == {"system"}
    assert len({one[0].content for one in openings}) == 2
    assert len({one[1].content for one in openings}) == 40
    assert {writer.blocks(session) for session in sessions} == {(0, 1), (2, 3)}
    assert {writer.length(session, 0) for session in sessions} == {1074}


def test_turns_carry_what_was_said():
    shape = Shape(lengths("20"), lengths("7"), turns=3, think_s=2.0)
    session = next(made_up(shape, 1))
    assert len(session.turns) == 3
    assert session.turns[0].think_s == 0 < session.turns[1].think_s
    writer = Writer(Ruler(1.0))
    said = writer.reply(session, 1, writer.opening(session), "Yes.")
    assert [one.role for one in said] == ["user", "assistant", "user"]
    assert said[1].content == "Yes."
    assert writer.length(session, 2) == 74  # two questions, two answers, a question


def test_recorded_blocks_are_equal_text():
    load = Load("l", (Request(0, 1100, 5, (1, 2)), Request(1, 1100, 5, (1, 3))))
    writer = Writer(Ruler(1.0))
    one, other = (writer.opening(session)[0].content.split() for session in recorded(load, 1))
    assert one[:512] == other[:512]
    assert one[512:520] != other[512:520]
    assert len(one) == 1100


# Objectives


def test_objectives():
    found = slo("ttft_p99=2s, tpot=80ms,e2e=1.5m")
    assert [(one.metric, one.seconds, one.percent) for one in found.limits] == [
        ("ttft", 2.0, 99.0),
        ("tpot", 0.08, None),
        ("e2e", 90.0, None),
    ]
    assert str(found) == "TTFT p99 ≤ 2.00 s, TPOT ≤ 80.0 ms, E2E ≤ 90.0 s"
    assert slo("") == Slo()


@pytest.mark.parametrize(
    "text", ["ttft", "ttft=", "ttft=fast", "p99=2s", "ttft_p0=1", "itl=3ms", "ttft=0s"]
)
def test_bad_objectives_say_how_to_write_one(text):
    with pytest.raises(BadSlo):
        slo(text)


def test_an_objective_of_each_request_asks_for_nine_in_ten():
    objective = slo("ttft=1s")
    good, bad = answer(0.0, first=0.5), answer(0.0, first=2.0)
    assert objective.met([good] * 9 + [bad])
    assert not objective.met([good] * 8 + [bad] * 2)
    assert not objective.met([good] * 8 + [answer(0.0, outcome="429")] * 2)


def test_an_objective_of_a_percentile_counts_failures_as_infinite():
    objective = slo("ttft_p90=1s")
    good, failed = answer(0.0, first=0.5), answer(0.0, outcome="500")
    assert objective.met([good] * 9 + [failed])
    assert not objective.met([good] * 8 + [failed] * 2)
    assert not objective.met([answer(0.0, outcome=UNFINISHED)])


def test_lateness_of_the_client_counts():
    late = answer(0.0, sent=1.0, first=0.5)
    assert not slo("ttft=1s").good(late)
    assert late.ttft_s == 1.5


def test_hopeless_when_more_failed_than_may():
    objective = slo("ttft=1s")
    bad, waiting = answer(0.0, first=2.0), Record(1, 5.0, 10, 10)
    assert not objective.hopeless([bad] * 10, 100, 10.0)
    assert objective.hopeless([bad] * 11, 100, 10.0)
    assert not objective.hopeless([waiting] * 11, 100, 5.5)
    assert objective.hopeless([waiting] * 11, 100, 6.5)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2), ("80ms", 0.08), ("1.5m", 90), ("1h", 3600), ("3", 3), ("x", None)],
)
def test_spans(text, seconds):
    assert span(text) == seconds


def test_times_are_shown_with_three_digits():
    shown = [shown_time(x) for x in (0.0012, 0.0456, 0.123, 1.5, 33.333, 600.0, math.inf)]
    assert shown == ["1.20 ms", "45.6 ms", "123 ms", "1.50 s", "33.3 s", "10.0 min", "∞"]


# Figures


def test_figures():
    records = [answer(float(at), first=0.1 * (at % 2 + 1), cached=50) for at in range(100)]
    records[10].outcome = "429"
    records[11].outcome = "timeout"
    records[99].outcome = UNFINISHED
    found = figures(records, slo("ttft=150ms"), duration_s=100.0)
    assert (found.requests, found.ok, found.unfinished) == (100, 97, 1)
    assert found.errors == {"429": 1, "timeout": 1}
    assert found.offered_rate == 1.0
    assert found.good_share == pytest.approx(49 / 99)
    assert (found.ttft.p50, found.ttft.p99) == (pytest.approx(0.1), pytest.approx(0.2))
    assert found.tpot.mean == pytest.approx(0.01)
    assert found.itl.count == 970
    assert found.e2e.most == pytest.approx(0.3)
    assert found.cached_share == 0.5
    assert found.by_usage
    assert found.achieved_rate == pytest.approx(0.97, rel=0.02)
    assert found.output_rate == pytest.approx(11, rel=0.05)
    assert found.concurrency == pytest.approx(0.25, rel=0.05)


def test_rates_dont_count_the_filling_of_the_server():
    """Answers take 20 s: as many end a second as begin, though nothing ends in the first twenty seconds."""
    records = [answer(float(at), first=10.0, pace=1.0) for at in range(60)]
    found = figures(records, Slo(), duration_s=60.0)
    assert found.achieved_rate == pytest.approx(1.0)
    assert found.output_rate == pytest.approx(11.0, rel=0.02)


def test_a_warm_up_isnt_counted():
    records = [answer(float(at), first=5.0 if at < 10 else 0.1) for at in range(40)]
    found = figures(records, Slo(), duration_s=40.0, warmup_s=10.0)
    assert found.requests == 30
    assert found.ttft.most == pytest.approx(0.1)


def test_figures_of_nothing():
    found = figures([], Slo(), duration_s=10.0)
    assert (found.requests, found.ttft, found.achieved_rate, found.good_share) == (
        0,
        None,
        0.0,
        0.0,
    )


def test_one_token_has_no_pace():
    assert answer(0.0, tokens=1).tpot_s is None
    assert figures([answer(0.0, tokens=1)], Slo(), duration_s=1.0).tpot is None


def test_a_slow_client_is_told():
    records = [answer(float(at), sent=at + 0.5, first=0.1) for at in range(100)]
    late = figures(records, Slo(), duration_s=100.0, client=client_of(records, [0.001], 0.2))
    assert [line for line in warnings(late) if "500 ms late" in line]
    fine = [answer(float(at)) for at in range(100)]
    assert not warnings(
        figures(fine, Slo(), duration_s=100.0, client=client_of(fine, [0.001], 0.2))
    )
    busy = Client(0.0, 0.0, 0.1, 0.97)
    told = warnings(figures(fine, Slo(), duration_s=100.0, client=busy))
    assert ["timers" in told[0], "97% of a core" in told[1]] == [True, True]


def test_a_server_that_doesnt_count_is_told():
    records = [answer(float(at)) for at in range(10)]
    for one in records:
        one.by_usage = False
    assert "doesn't report usage" in warnings(figures(records, Slo(), duration_s=10.0))[0]


def test_columns_keep_what_figures_need():
    records = [answer(float(at), cached=at) for at in range(5)]
    records[3].outcome, records[3].first_s = "connect", None
    back = rows(columns(records))
    for one, other in zip(records, back, strict=True):
        for name in (
            "due_s",
            "sent_s",
            "first_s",
            "end_s",
            "output_tokens",
            "cached_tokens",
            "outcome",
        ):
            assert getattr(one, name) == pytest.approx(getattr(other, name))


# Numbers


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile_"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.99, 8, 2.896),
        (0.975, 19, 2.093),
        (0.975, 1000, 1.962),
    ],
)
def test_students_quantiles(probability, freedom, quantile_):
    assert student(probability, freedom) == pytest.approx(quantile_, rel=0.01)


def test_batches_are_consecutive_and_whole():
    parts = batches(range(103), 20)
    assert len(parts) == 20
    assert [value for part in parts for value in part] == list(range(103))
    assert batches([1.0], 20) == [[1.0]]
    assert batches([], 20) == []


def test_a_mean_of_dependent_values_has_a_wide_interval():
    """Means of runs that wander must cover the truth about as often as they say."""
    rng = random.Random(1)
    covered = 0
    for _ in range(200):
        level, values = 0.0, []
        for _ in range(2000):
            level = 0.9 * level + rng.gauss(0, 1)
            values.append(level)
        found = mean_of(values)
        covered += abs(found.mean) <= found.half
    assert covered / 200 > 0.9


def test_a_trend_is_told_from_noise():
    rng = random.Random(1)
    flat = [(at, 10 + rng.gauss(0, 1)) for at in range(200)]
    rising = [(at, 10 + 0.05 * at + rng.gauss(0, 1)) for at in range(200)]
    assert not trend(flat).rises(0.99)
    found = trend(rising)
    assert found.rises(0.99)
    assert found.slope == pytest.approx(0.05, rel=0.2)
    assert not trend([(0.0, 1.0), (1.0, 5.0)]).rises(0.99)


def test_mann_whitney():
    rng = random.Random(1)
    same = [
        mann_whitney([rng.random() for _ in range(50)], [rng.random() for _ in range(40)])
        for _ in range(200)
    ]
    assert sum(p < 0.05 for p in same) / 200 == pytest.approx(0.05, abs=0.04)
    one = [rng.gauss(0, 1) for _ in range(60)]
    assert mann_whitney(one, [value + 1 for value in one]) < 1e-4
    assert mann_whitney([1.0] * 30, [1.0] * 30) == 1.0
    # Hollander & Wolfe's classic: U = 35 of 10 and 5 without ties, exact p = 0.2544, normal close to it
    a = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46]
    b = [1.15, 0.88, 0.90, 0.74, 1.21]
    assert mann_whitney(a, b) == pytest.approx(0.2544, abs=0.02)


def test_a_ratio_has_an_interval():
    rng = random.Random(2)
    one = [rng.expovariate(1) for _ in range(400)]
    other = [rng.expovariate(1) for _ in range(400)]
    same = ratio(one, other, quantile(0.5))
    assert not same.differs
    assert same.low < same.value < same.high
    slower = ratio(one, [1.5 * value for value in other], quantile(0.5))
    assert slower.differs
    assert slower == ratio(one, [1.5 * value for value in other], quantile(0.5))


# Saturation


def queue(load, seed, seconds=120.0, service=0.25, servers=8):
    """First tokens and requests in a queue with ``servers`` at ``load`` times what it can take."""
    rng = random.Random(seed)
    rate = load * servers / service
    at, free, requests = 0.0, [0.0] * servers, []
    while at < seconds:
        at += rng.expovariate(rate)
        free.sort()
        begin = max(at, free[0])
        free[0] = begin + rng.expovariate(1 / service)
        requests.append((at, begin, free[0]))
    return rate, requests


def first_sign(load, seed):
    rate, requests = queue(load, seed)
    watch = Saturation()
    firsts = sorted((begin + 0.05, begin + 0.05 - at) for at, begin, _ in requests)
    for second in range(1, 120):
        while firsts and firsts[0][0] <= second:
            watch.first_token(*firsts.pop(0))
        watch.in_server(second, sum(at <= second < end for at, _, end in requests), rate)
        if sign := watch.sign(float(second)):
            return sign
    return None


def test_a_queue_that_grows_is_saturated():
    for seed in range(10):
        sign = first_sign(1.3, seed)
        assert sign is not None
        assert "saturated after" in str(sign)


def test_a_queue_that_holds_is_not():
    for load in (0.7, 0.9):
        assert [seed for seed in range(10) if first_sign(load, seed) is not None] == []


def test_a_load_that_is_meant_to_rise_is_not_taken_for_one_that_is_too_high():
    """In the server as many as the rate says (Little), which doubles: nobody waits longer."""
    watch = Saturation()
    for second in range(1, 100):
        rate = 1 + second / 10
        watch.in_server(second, round(2 * rate), rate)
        watch.first_token(second, 0.1)
        assert watch.sign(float(second)) is None


# Search


@pytest.mark.parametrize("limit", [0.3, 1.0, 7.7, 40.0])
async def test_a_search_brackets_the_limit(limit):
    tried = []

    async def probe(rate):
        tried.append(rate)
        return rate <= limit

    found = await search(probe, 2.0, 0.05)
    assert found.held <= limit < found.failed <= 1.051 * found.held
    assert found.whole
    assert len(tried) < 16


async def test_a_search_that_is_interrupted_says_so():
    answers = iter([True, False, None])

    async def probe(_):
        return next(answers)

    found = await search(probe, 1.0, 0.05)
    assert (found.held, found.failed, found.whole) == (1.0, 2.0, False)


async def test_no_rate_is_low_enough():
    async def probe(_):
        return False

    found = await search(probe, 1.0, 0.05)
    assert found.held == 0
    assert found.failed is not None


def test_sessions_are_the_same_for_a_seed():
    shape = Shape(lengths("exp:100"), lengths("exp:10"), turns=2, think_s=1.0)
    first = list(itertools.islice(made_up(shape, 1), 3))
    assert first == list(itertools.islice(made_up(shape, 1), 3))
    assert first != list(itertools.islice(made_up(shape, 2), 3))
    assert isinstance(first[0], Session)
    assert isinstance(first[0].turns[0], Turn)

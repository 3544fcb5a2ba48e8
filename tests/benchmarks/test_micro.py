"""The small benchmarks run, and measure what they say."""

import logging

import msgspec
import pytest

from benchmarks import micro, upstream
from router.wire.completion import ChatCompletion, ChatCompletionChunk


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    loggers = [logging.getLogger(name) for name in (None, "nenya", "router", "engines")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def test_every_part_is_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(micro, "ROUNDS", 1)
    monkeypatch.setattr(micro, "ROUND_S", 0.0001)
    assert micro.main(["--json", str(tmp_path / "costs.json")]) == 0
    costs = msgspec.json.decode((tmp_path / "costs.json").read_bytes(), type=list[micro.Cost])
    assert len(costs) >= 12
    assert all(one.cost_us > 0 for one in costs)
    assert costs[0].ratio == 1
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.rsplit(None, 2)[0] for line in lines] == [one.part for one in costs]


def test_the_upstream_says_what_a_provider_says():
    whole = msgspec.json.decode(upstream.whole(), type=ChatCompletion)
    assert whole.choices[0].finish_reason == "stop"
    *events, done = upstream.events()
    chunks = [msgspec.json.decode(event[6:], type=ChatCompletionChunk) for event in events]
    assert done == b"data: [DONE]\n\n"
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) == upstream.CHUNKS

"""Local engines: what they say of themselves, and how fast they write, under the names that vLLM made common.

vLLM counts the time between two tokens; an answer's events come here several at a time, so its mean is counted, once
for each token.

Source: vLLM's production metrics, https://docs.vllm.ai/en/latest/usage/metrics.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from router.counters import Count, Counter, Gauge, Histogram, Spread, Taken
from router.events import Generated, NodeState
from router.metrics import buckets

if TYPE_CHECKING:
    from engines.base import EngineInfo, Health
    from router.app import EngineStats

_MODEL = ("engine", "model_name")
ENGINE_STATES = ("stopped", "starting", "loading", "ready", "draining", "backoff", "failed")


class _Written:
    """What one engine has answered."""

    def __init__(self) -> None:
        self.first_token = Spread(buckets.FIRST_TOKEN)
        self.between = Spread(buckets.PER_TOKEN)
        self.whole = Spread(buckets.DURATION)
        self.prompt, self.cached, self.output = Count(), Count(), Count()

    def add(self, event: Generated) -> None:
        """Count an answer."""
        self.first_token.observe(event.first_token_s)
        self.whole.observe(event.duration_s)
        self.prompt.inc(event.input_tokens)
        self.cached.inc(event.cached_input_tokens)
        self.output.inc(event.output_tokens)
        if event.output_tokens > 1:
            times = event.output_tokens - 1
            self.between.observe_times((event.duration_s - event.first_token_s) / times, times)


class EngineMetrics:
    """The families of local engines."""

    def __init__(self) -> None:
        self._written: dict[str, _Written] = {}
        self._restarts: dict[str, int] = {}
        self.restarts = Counter(
            "nenya_engine_restarts", "Times an engine's process ended without being asked to", ("engine",)
        )  # fmt: skip
        self.state = Gauge(
            "nenya_engine_state", "1 for the state an engine's process is in", ("engine", "state")
        )
        self.loaded = Gauge(
            "nenya_engine_loaded_ratio", "Share of the model that is loaded, where the engine tells", ("engine",)
        )  # fmt: skip
        self.free = Gauge(
            "nenya_engine_kv_free_tokens", "Tokens of the key-value cache that no request has set aside", ("engine",)
        )  # fmt: skip
        self.prefill = Gauge(
            "nenya_engine_prefill_remaining_tokens",
            "Prompt tokens of running requests that are still to be computed, where the engine tells", ("engine",),
        )  # fmt: skip
        self.iterations = Counter(
            "nenya_engine_iterations", "Steps of the engine's loop since its process started", ("engine",)
        )  # fmt: skip
        self.running = Gauge(
            "vllm:num_requests_running", "Requests that an engine works on", _MODEL
        )
        self.waiting = Gauge(
            "vllm:num_requests_waiting", "Requests that wait inside an engine", _MODEL
        )
        self.usage = Gauge(
            "vllm:kv_cache_usage_perc", "Share of the key-value cache that requests have set aside, 0 to 1", _MODEL
        )  # fmt: skip
        self.queries = Counter(
            "vllm:prefix_cache_queries", "Prompt tokens that were looked for in an engine's cache", _MODEL
        )  # fmt: skip
        self.hits = Counter("vllm:prefix_cache_hits", "Prompt tokens that were found there", _MODEL)
        self.prompt = Counter(
            "vllm:prompt_tokens", "Prompt tokens of answers that an engine wrote", _MODEL
        )
        self.output = Counter("vllm:generation_tokens", "Tokens that an engine wrote", _MODEL)
        self.first_token = Histogram(
            "vllm:time_to_first_token_seconds", "Time from the moment an engine was asked to its first token",
            _MODEL, buckets=buckets.FIRST_TOKEN,
        )  # fmt: skip
        self.between = Histogram(
            "vllm:inter_token_latency_seconds", "Time between two tokens: each answer's mean, once a token",
            _MODEL, buckets=buckets.PER_TOKEN,
        )  # fmt: skip
        self.whole = Histogram(
            "vllm:e2e_request_latency_seconds", "Time from the moment an engine was asked to its answer's end",
            _MODEL, buckets=buckets.DURATION,
        )  # fmt: skip

    def generated(self, event: Generated) -> None:
        """An engine wrote an answer."""
        written = self._written.get(event.engine)
        if written is None:
            written = self._written[event.engine] = _Written()
        written.add(event)

    def moved(self, event: NodeState) -> None:
        """An engine's process changed its state; into backoff it comes by a crash alone."""
        if event.state == "backoff":
            self._restarts[event.engine] = self._restarts.get(event.engine, 0) + 1

    def take(self, engines: tuple[EngineStats, ...]) -> Iterator[Taken]:
        """All families, of the engines that there are."""
        for counted in (self._written, self._restarts):
            for gone in counted.keys() - {one.name for one in engines}:
                del counted[gone]
        yield from self._processes(engines)
        known = [(one.info, one.name, one.health) for one in engines if one.info is not None]
        yield from self._caches(known)
        yield from self._answers([((name, info.model), name) for info, name, _ in known])

    def _processes(self, engines: tuple[EngineStats, ...]) -> Iterator[Taken]:
        names = [(one.name,) for one in engines]
        yield self.restarts.taken([(key, self._restarts.get(*key, 0)) for key in names])
        yield self.state.taken(
            [
                ((one.name, state), float(one.state == state))
                for one in engines
                for state in ENGINE_STATES
            ]
        )
        loaded = [(one.name, 1.0 if one.state == "ready" else one.loaded) for one in engines]
        yield self.loaded.taken([((name,), part) for name, part in loaded if part is not None])

    def _caches(self, known: list[tuple[EngineInfo, str, Health]]) -> Iterator[Taken]:
        """Of engines that were ready once."""
        own = [((name,), info.kv_tokens, health) for info, name, health in known]
        yield self.free.taken(
            [(key, max(0, size - health.kv_tokens_used)) for key, size, health in own]
        )
        yield self.prefill.taken([(key, health.prompt_tokens_left) for key, _, health in own])
        yield self.iterations.taken([(key, health.iterations) for key, _, health in own])
        keys = [((name, info.model), info.kv_tokens, health) for info, name, health in known]
        yield self.running.taken([(key, health.running) for key, _, health in keys])
        yield self.waiting.taken([(key, health.waiting) for key, _, health in keys])
        yield self.usage.taken(
            [(key, health.kv_tokens_used / (size or 1)) for key, size, health in keys]
        )

    def _answers(self, keys: list[tuple[tuple[str, str], str]]) -> Iterator[Taken]:
        written = [(key, self._written.get(name) or _Written()) for key, name in keys]
        yield self.queries.taken([(key, one.prompt.value) for key, one in written])
        yield self.hits.taken([(key, one.cached.value) for key, one in written])
        yield self.prompt.taken([(key, one.prompt.value) for key, one in written])
        yield self.output.taken([(key, one.output.value) for key, one in written])
        yield self.first_token.taken([(key, one.first_token) for key, one in written])
        yield self.between.taken([(key, one.between) for key, one in written])
        yield self.whole.taken([(key, one.whole) for key, one in written])

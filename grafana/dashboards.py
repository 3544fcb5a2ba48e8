"""The dashboards: what each shows, in Prometheus' words. `grafana.build` makes Grafana's JSON of them.

Rates and quantiles are taken over ``$__rate_interval``; quantiles come from summed buckets, never from an average of
quantiles. ``$model`` and ``$target`` are the dashboards' variables, ``$instance`` the routers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["lines", "bars", "stat", "states", "heat"]


class Query(NamedTuple):
    """An expression and how its series are called."""

    expr: str
    legend: str = ""


class Panel(NamedTuple):
    """One picture."""

    title: str
    unit: str
    """Grafana's name of the unit: ``s``, ``reqps``, ``percentunit``."""
    description: str
    queries: list[Query]
    kind: Kind = "lines"
    width: int = 12
    """Of 24 columns."""
    bound: float | None = None
    """From here on it is marked red."""


class Row(NamedTuple):
    """Panels under one heading."""

    title: str
    panels: list[Panel]


class Dashboard(NamedTuple):
    """One page."""

    uid: str
    title: str
    description: str
    variables: list[str]
    """Of ``model``, ``target`` and ``engine``; ``instance`` is everywhere."""
    rows: list[Row]


HERE = 'instance=~"$instance"'
MODEL = f'{HERE},model=~"$model"'
ASKED = f'{HERE},request_model=~"$model"'
TARGET = f'{HERE},target=~"$target"'
ENGINE = f'{HERE},engine=~"$engine"'
FAILED = (
    'outcome!~"ok|client_gone|client_too_slow|client_error|context_length_exceeded|content_filter|rate_limit_exceeded'
    '|insufficient_quota|model_not_found|invalid_.*"'
)
"""What is not the client's own doing."""


def rate(metric: str, labels: str, by: str = "") -> str:
    """Events a second, summed ``by`` labels."""
    return f"sum{_by(by)}(rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(q: float, metric: str, labels: str, by: str = "") -> str:
    """The ``q`` quantile of a histogram whose buckets are summed ``by`` labels."""
    buckets = f"sum{_by(','.join(filter(None, ['le', by])))}(rate({metric}_bucket{{{labels}}}[$__rate_interval]))"
    return f"histogram_quantile({q}, {buckets})"


def quantiles(metric: str, labels: str) -> list[Query]:
    """The three that matter."""
    return [Query(quantile(q, metric, labels), f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99)]


def share(part: str, whole: str) -> str:
    """``part`` of ``whole``; 0 where there is none of it yet."""
    return f"({part} or vector(0)) / {whole}"


def total(metric: str, labels: str, by: str = "") -> str:
    """The sum of gauges ``by`` labels."""
    return f"sum{_by(by)}({metric}{{{labels}}})"


def times(metric: str, labels: str, by: str = "") -> str:
    """How often it happened, for what is too seldom for a rate."""
    return f"sum{_by(by)}(increase({metric}{{{labels}}}[$__rate_interval]))"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


TTFT = "gen_ai_server_time_to_first_token_seconds"
TPOT = "gen_ai_server_time_per_output_token_seconds"
DURATION = "gen_ai_server_request_duration_seconds"
ATTEMPT = "gen_ai_client_operation_duration_seconds"
SPEED = "nenya_output_tokens_per_second"
DECISIONS = "nenya_routing_decisions_total"
TOKENS_S = "suffix: tokens/s"
SPILT = 'reason="spill"'
WAITED = 'reason=~"full|quota|resting|all_tried|unavailable"'
"""Reasons of decisions that made a request wait."""
SENT = 'reason!~"full|quota|resting|all_tried|unavailable"'

OVERVIEW = Dashboard(
    "nenya-overview",
    "Nenya: overview",
    "Traffic, errors, latency, tokens and cost of all routers.",
    ["model"],
    [
        Row("Now", [
            Panel("Requests", "reqps", "Requests that ended, a second.",
                  [Query(rate("nenya_requests_total", MODEL))], "stat", 4),
            Panel("Failed", "percentunit", "Share of requests that ended with an error that was not the client's doing.",
                  [Query(share(rate("nenya_requests_total", f"{MODEL},{FAILED}"), rate("nenya_requests_total", MODEL)))],
                  "stat", 4, 0.01),
            Panel("First token, p95", "s", "Time from a stream's request to its first token.",
                  [Query(quantile(0.95, TTFT, ASKED))], "stat", 4),
            Panel("Output", TOKENS_S, "Tokens written, a second.",
                  [Query(rate("nenya_tokens_total", f'{MODEL},type="output"'))], "stat", 4),
            Panel("In flight", "short", "Requests that targets are working on.",
                  [Query(total("nenya_target_inflight_requests", HERE))], "stat", 4),
            Panel("Cost", "currencyUSD", "At the models' prices, an hour.",
                  [Query(f"3600 * {rate('nenya_cost_usd_total', MODEL)}")], "stat", 4),
        ]),
        Row("Traffic", [
            Panel("Requests by model", "reqps", "Requests that ended, by the model they asked for.",
                  [Query(rate("nenya_requests_total", MODEL, "model"), "{{model}}")]),
            Panel("Errors by kind", "reqps", "Requests that did not end with a whole answer; client_gone: the client left.",
                  [Query(rate("nenya_requests_total", f'{MODEL},outcome!="ok"', "outcome"), "{{outcome}}")], "bars"),
            Panel("Tokens", TOKENS_S, "cached_input are part of input, reasoning of output.",
                  [Query(rate("nenya_tokens_total", MODEL, "type"), "{{type}}")]),
            Panel("Cost by model", "currencyUSD", "At the models' prices, an hour.",
                  [Query(f"3600 * {rate('nenya_cost_usd_total', MODEL, 'model')}", "{{model}}")]),
        ]),
        Row("Latency", [
            Panel("First token", "s", "Time from a stream's request to its first token.", quantiles(TTFT, ASKED)),
            Panel("Each further token", "s", "Time per token of a stream after its first.", quantiles(TPOT, ASKED)),
            Panel("Whole request", "s", "Time from a request's arrival to its answer's end.", quantiles(DURATION, ASKED)),
            Panel("Of that, ours", "s", "Time from a request's arrival to its first attempt, without waiting in line.",
                  quantiles("nenya_overhead_seconds", HERE)),
            Panel("First tokens over time", "s", "How many streams had their first token after how long.",
                  [Query(rate(f"{TTFT}_bucket", ASKED, "le"), "{{le}}")], "heat", 24),
        ]),
    ],
)  # fmt: skip

TARGETS = Dashboard(
    "nenya-targets",
    "Nenya: routing and targets",
    "Who serves, how well, and what the router does about it.",
    ["model", "target"],
    [
        Row("Health", [
            Panel("State", "short", "The state of health that each target is in.",
                  [Query(f"{total('nenya_target_state', TARGET, 'target, state')} > 0", "{{target}} {{state}}")], "states", 24),
            Panel("Ejections", "short", "Times a target was left alone because too much failed.",
                  [Query(times("nenya_target_ejections_total", TARGET, "target, reason"), "{{target}} {{reason}}")], "bars"),
            Panel("Failed attempts", "reqps", "Attempts that went wrong, by target and fault.",
                  [Query(rate(f"{ATTEMPT}_count", f'{TARGET},error_type!=""', "target, error_type"),
                         "{{target}} {{error_type}}")], "bars"),
        ]),
        Row("Load", [
            Panel("In flight", "short", "Requests each target is working on.",
                  [Query(total("nenya_target_inflight_requests", TARGET, "target"), "{{target}}")]),
            Panel("Attempts", "reqps", "Attempts that ended, by target.",
                  [Query(rate(f"{ATTEMPT}_count", TARGET, "target"), "{{target}}")]),
            Panel("Attempt time, p50", "s", "Half of the attempts took no longer.",
                  [Query(quantile(0.5, ATTEMPT, TARGET, "target"), "{{target}}")]),
            Panel("Attempt time, p95", "s", "One attempt in twenty took longer.",
                  [Query(quantile(0.95, ATTEMPT, TARGET, "target"), "{{target}}")]),
            Panel("Prompts before their first token", "suffix: tokens", "Prompt tokens sent to a target that are thought to be still uncomputed.",
                  [Query(total("nenya_target_pending_tokens", TARGET, "target"), "{{target}}")]),
            Panel("Speed against expectation", "percentunit", "How fast first tokens come, against what a target's costs say; compare targets of a kind.",
                  [Query(f"min by (target) (nenya_target_speed_ratio{{{TARGET}}})", "{{target}}")]),
        ]),
        Row("Choice", [
            Panel("Decisions", "reqps", "How requests were given a target: policy among several, only one admits, spill to a provider, probe, panic.",
                  [Query(rate(DECISIONS, f"{MODEL},{SENT}", "policy, reason"), "{{policy}} {{reason}}")], "bars"),
            Panel("Prompt found in the target's cache", "percentunit", "Share of a prompt that its target is thought to have had: half of the prompts had more than p50, one in ten more than p90.",
                  [Query(quantile(0.5, "nenya_prefix_match_ratio", MODEL), "p50"),
                   Query(quantile(0.9, "nenya_prefix_match_ratio", MODEL), "p90")]),
        ]),
        Row("Mending", [
            Panel("Retries", "reqps", "Attempts that failed before their first byte and were followed by another.",
                  [Query(rate("nenya_retries_total", TARGET, "target, reason"), "{{target}} {{reason}}")], "bars"),
            Panel("Retries refused", "reqps", "Failed attempts that the retry budget didn't let be followed by another.",
                  [Query(rate("nenya_retries_refused_total", MODEL, "model, reason"), "{{model}} {{reason}}")], "bars"),
            Panel("Streams that broke", "reqps", "What came of asking another target for the rest; continued, restarted and completed are good.",
                  [Query(rate("nenya_recoveries_total", TARGET, "target, outcome"), "{{target}} {{outcome}}")], "bars"),
            Panel("Burnt tokens", TOKENS_S, "Tokens that targets took and no answer has a part in.",
                  [Query(rate("nenya_burnt_tokens_total", MODEL, "provider, type"), "{{provider}} {{type}}")], "bars"),
            Panel("Hedges", "reqps", "Streams sent to a second target because the first was late; won: the second answered.",
                  [Query(rate("nenya_hedges_total", TARGET, "target, outcome"), "{{target}} {{outcome}}")], "bars"),
            Panel("Fallbacks", "reqps", "Requests that another model was asked to answer.",
                  [Query(rate("nenya_fallbacks_total", MODEL, "model, to, reason"), "{{model}} to {{to}}: {{reason}}")], "bars"),
        ]),
    ],
)  # fmt: skip

LIMITS = Dashboard(
    "nenya-limits",
    "Nenya: limits and quotas",
    "What keys may do here, and what providers let us do.",
    ["target"],
    [
        Row("Keys", [
            Panel("Refused", "reqps", "Requests refused because a key's limit or budget was reached.",
                  [Query(rate("nenya_ratelimit_decisions_total", f'{HERE},outcome!="admitted"', "resource, outcome"),
                         "{{resource}} {{outcome}}")], "bars"),
            Panel("Share refused", "percentunit", "Of the requests of keys that have limits.",
                  [Query(share(rate("nenya_ratelimit_decisions_total", f'{HERE},outcome!="admitted"'),
                               rate("nenya_ratelimit_decisions_total", HERE)))]),
            Panel("Usage records lost", "short", "Records that the accounts' database never took.",
                  [Query(times("nenya_usage_records_dropped_total", HERE))]),
        ]),
        Row("Providers", [
            Panel("Left of their limits", "percentunit", "What is thought to be left of each limit that a provider told of.",
                  [Query(f"min by (target, resource) (nenya_upstream_ratelimit_remaining{{{TARGET}}} / nenya_upstream_ratelimit_limit{{{TARGET}}})",
                         "{{target}} {{resource}}")]),
            Panel("Until they are whole", "s", "Time until a limit has all its room again, if nothing more is sent.",
                  [Query(f"max by (target, resource) (nenya_upstream_ratelimit_reset_seconds{{{TARGET}}})", "{{target}} {{resource}}")]),
            Panel("Refused by providers", "reqps", "Attempts that a provider refused for its limits; the router means to keep this near none.",
                  [Query(rate("nenya_upstream_429_total", TARGET, "target, resource"), "{{target}} {{resource}}")], "bars"),
            Panel("Passed over", "reqps", "Choices that passed a target over because its limits wouldn't have let the request through.",
                  [Query(rate("nenya_ratelimit_deferrals_total", TARGET, "target, resource"), "{{target}} {{resource}}")], "bars"),
        ]),
    ],
)  # fmt: skip

CAPACITY = Dashboard(
    "nenya-capacity",
    "Nenya: capacity",
    "Whether there is enough of everything: who waits, what is full, and how long it is.",
    ["model"],
    [
        Row("Line", [
            Panel("Waiting", "short", "Requests that wait for a target.",
                  [Query(total("nenya_queue_depth", MODEL, "model"), "{{model}}")]),
            Panel("Time in line", "s", "Of requests that had to wait, however it ended.",
                  quantiles("nenya_queue_wait_seconds", MODEL)),
            Panel("Why they wait", "reqps", "full: targets have as many as they may have; quota: providers' limits; resting: they asked to be left alone; "
                  "all_tried: each has failed the request once; unavailable: no process is up.",
                  [Query(rate(DECISIONS, f"{MODEL},{WAITED}", "model, reason"), "{{model}} {{reason}}")], "bars"),
            Panel("Refused by the line", "reqps", "Requests that the line didn't take, or that left it with an error.",
                  [Query(rate("nenya_queue_refusals_total", MODEL, "model, reason"), "{{model}} {{reason}}")], "bars"),
            Panel("Waiting by priority", "short", "Higher ones are served first.",
                  [Query(total("nenya_queue_depth", MODEL, "priority"), "{{priority}}")]),
            Panel("Answered elsewhere", "percentunit", "Share of requests that went to a provider although the model has engines of its own.",
                  [Query(f"{rate(DECISIONS, f'{MODEL},{SPILT}', 'model')} / {rate(DECISIONS, f'{MODEL},{SENT}', 'model')}",
                         "{{model}}")]),
        ]),
        Row("Work", [
            Panel("Tokens written", TOKENS_S, "Tokens a second, by who wrote them.",
                  [Query(rate("nenya_tokens_total", f'{MODEL},type="output"', "provider"), "{{provider}}")]),
            Panel("Speed of a stream", TOKENS_S, "Tokens a second after a stream's first: half of the streams are slower than p50, one in ten than p10.",
                  [Query(quantile(0.5, SPEED, MODEL, "provider"), "{{provider}} p50"),
                   Query(quantile(0.1, SPEED, MODEL, "provider"), "{{provider}} p10")]),
            Panel("Prompt tokens from a cache", "percentunit", "Share of the prompts' tokens that targets told they had not to compute.",
                  [Query(share(rate("nenya_tokens_total", f'{MODEL},type="cached_input"'), rate("nenya_tokens_total", f'{MODEL},type="input"')))]),
            Panel("Engines' memory", "percentunit", "Share of each engine's key-value cache that requests have set aside.",
                  [Query(f"max by (engine) (vllm:kv_cache_usage_perc{{{HERE}}})", "{{engine}}")]),
        ]),
        Row("The router itself", [
            Panel("Lateness of the event loop, p99", "s", "How late the loop did what was due; every stream waits for as long.",
                  [Query(quantile(0.99, "nenya_event_loop_lag_seconds", HERE, "instance, worker"), "{{instance}} {{worker}}")]),
            Panel("Time before the first attempt, p99", "s", "What the router itself takes, without waiting in line.",
                  [Query(quantile(0.99, "nenya_overhead_seconds", HERE, "instance"), "{{instance}}")]),
        ]),
    ],
)  # fmt: skip

ENGINES = Dashboard(
    "nenya-engines",
    "Nenya: local engines",
    "The engines on the routers' own machines: their processes, their memory, their speed.",
    ["engine"],
    [
        Row("Processes", [
            Panel("State", "short", "The state that each engine's process is in.",
                  [Query(f"{total('nenya_engine_state', ENGINE, 'engine, state')} > 0", "{{engine}} {{state}}")], "states", 24),
            Panel("Restarts", "short", "Times a process ended without being asked to, and was started again.",
                  [Query(times("nenya_engine_restarts_total", ENGINE, "engine"), "{{engine}}")], "bars", 8),
            Panel("Steps", "ops", "Of the engine's loop, a second; 0 while requests run is a hang.",
                  [Query(rate("nenya_engine_iterations_total", ENGINE, "engine"), "{{engine}}")], "lines", 8),
            Panel("Loaded", "percentunit", "Share of the model that is loaded, where the engine tells.",
                  [Query(f"min by (engine) (nenya_engine_loaded_ratio{{{ENGINE}}})", "{{engine}}")], "lines", 8),
        ]),
        Row("Load", [
            Panel("Running", "short", "Requests that the engine works on.",
                  [Query(total("vllm:num_requests_running", ENGINE, "engine"), "{{engine}}")], "lines", 8),
            Panel("Waiting inside", "short", "Requests that the engine has and doesn't work on yet.",
                  [Query(total("vllm:num_requests_waiting", ENGINE, "engine"), "{{engine}}")], "lines", 8),
            Panel("Prompt tokens to compute", "suffix: tokens", "Of running requests, where the engine tells.",
                  [Query(total("nenya_engine_prefill_remaining_tokens", ENGINE, "engine"), "{{engine}}")], "lines", 8),
            Panel("Memory set aside", "percentunit", "Share of the key-value cache that requests have set aside.",
                  [Query(f"max by (engine) (vllm:kv_cache_usage_perc{{{ENGINE}}})", "{{engine}}")], "lines", 8),
            Panel("Memory left", "suffix: tokens", "Tokens of the key-value cache that no request has set aside.",
                  [Query(f"min by (engine) (nenya_engine_kv_free_tokens{{{ENGINE}}})", "{{engine}}")], "lines", 8),
            Panel("Prompt tokens from the cache", "percentunit", "Of those that were looked for.",
                  [Query(f"{rate('vllm:prefix_cache_hits_total', ENGINE, 'engine')} / {rate('vllm:prefix_cache_queries_total', ENGINE, 'engine')}",
                         "{{engine}}")], "lines", 8),
        ]),
        Row("Speed", [
            Panel("First token", "s", "From the moment an engine was asked.",
                  quantiles("vllm:time_to_first_token_seconds", ENGINE)),
            Panel("Between two tokens", "s", "Each answer's mean, once for each of its tokens.",
                  quantiles("vllm:inter_token_latency_seconds", ENGINE)),
            Panel("Whole answer", "s", "From the moment an engine was asked to its answer's end.",
                  quantiles("vllm:e2e_request_latency_seconds", ENGINE)),
            Panel("Tokens", TOKENS_S, "Prompt tokens read, cached or not, and tokens written.",
                  [Query(rate("vllm:prompt_tokens_total", ENGINE, "engine"), "{{engine}} read"),
                   Query(rate("vllm:generation_tokens_total", ENGINE, "engine"), "{{engine}} written")]),
        ]),
    ],
)  # fmt: skip

DASHBOARDS = (OVERVIEW, TARGETS, LIMITS, CAPACITY, ENGINES)

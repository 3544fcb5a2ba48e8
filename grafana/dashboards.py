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
    """Of ``model`` and ``target``; ``instance`` is everywhere."""
    rows: list[Row]


HERE = 'instance=~"$instance"'
MODEL = f'{HERE},model=~"$model"'
ASKED = f'{HERE},request_model=~"$model"'
TARGET = f'{HERE},target=~"$target"'
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


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


TTFT = "gen_ai_server_time_to_first_token_seconds"
TPOT = "gen_ai_server_time_per_output_token_seconds"
DURATION = "gen_ai_server_request_duration_seconds"
ATTEMPT = "gen_ai_client_operation_duration_seconds"
SPEED = "nenya_output_tokens_per_second"

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
                  [Query(f"({rate('nenya_requests_total', f'{MODEL},{FAILED}')} or vector(0)) / {rate('nenya_requests_total', MODEL)}")],
                  "stat", 4, 0.01),
            Panel("First token, p95", "s", "Time from a stream's request to its first token.",
                  [Query(quantile(0.95, TTFT, ASKED))], "stat", 4),
            Panel("Output", "short", "Tokens written, a second.",
                  [Query(rate("nenya_tokens_total", f'{MODEL},type="output"'))], "stat", 4),
            Panel("In flight", "short", "Requests that targets are working on.",
                  [Query(f"sum(nenya_target_inflight_requests{{{HERE}}})")], "stat", 4),
            Panel("Cost", "currencyUSD", "At the models' prices, an hour.",
                  [Query(f"3600 * {rate('nenya_cost_usd_total', MODEL)}")], "stat", 4),
        ]),
        Row("Traffic", [
            Panel("Requests by model", "reqps", "Requests that ended, by the model they asked for.",
                  [Query(rate("nenya_requests_total", MODEL, "model"), "{{model}}")]),
            Panel("Errors by kind", "reqps", "Requests that did not end with a whole answer; client_gone: the client left.",
                  [Query(rate("nenya_requests_total", f'{MODEL},outcome!="ok"', "outcome"), "{{outcome}}")], "bars"),
            Panel("Tokens", "short", "Tokens a second; cached_input are part of input.",
                  [Query(rate("nenya_tokens_total", MODEL, "type"), "{{type}}")]),
            Panel("Cost by model", "currencyUSD", "At the models' prices, an hour.",
                  [Query(f"3600 * {rate('nenya_cost_usd_total', MODEL, 'model')}", "{{model}}")]),
        ]),
        Row("Latency", [
            Panel("First token", "s", "Time from a stream's request to its first token.", quantiles(TTFT, ASKED)),
            Panel("Each further token", "s", "Time per token of a stream after its first.", quantiles(TPOT, ASKED)),
            Panel("Whole request", "s", "Time from a request's arrival to its answer's end.", quantiles(DURATION, ASKED)),
            Panel("Of that, ours", "s", "Time from a request's arrival to its first attempt.",
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
    ["target"],
    [
        Row("Health", [
            Panel("State", "short", "The state of health that each target is in.",
                  [Query(f"sum by (target, state) (nenya_target_state{{{TARGET}}}) > 0", "{{target}} {{state}}")], "states", 24),
            Panel("Ejections", "short", "Times a target was left alone because too much failed.",
                  [Query(f"sum by (target, reason) (increase(nenya_target_ejections_total{{{TARGET}}}[$__rate_interval]))",
                         "{{target}} {{reason}}")], "bars"),
            Panel("Failed attempts", "reqps", "Attempts that went wrong, by target and fault.",
                  [Query(rate(f"{ATTEMPT}_count", f'{TARGET},error_type!=""', "target, error_type"),
                         "{{target}} {{error_type}}")], "bars"),
        ]),
        Row("Load", [
            Panel("In flight", "short", "Requests each target is working on.",
                  [Query(f"sum by (target) (nenya_target_inflight_requests{{{TARGET}}})", "{{target}}")]),
            Panel("Attempts", "reqps", "Attempts that ended, by target.",
                  [Query(rate(f"{ATTEMPT}_count", TARGET, "target"), "{{target}}")]),
            Panel("Attempt time, p50", "s", "Half of the attempts took no longer.",
                  [Query(quantile(0.5, ATTEMPT, TARGET, "target"), "{{target}}")]),
            Panel("Attempt time, p95", "s", "One attempt in twenty took longer.",
                  [Query(quantile(0.95, ATTEMPT, TARGET, "target"), "{{target}}")]),
        ]),
        Row("Mending", [
            Panel("Retries", "reqps", "Attempts that failed before their first byte and were followed by another.",
                  [Query(rate("nenya_retries_total", TARGET, "target, reason"), "{{target}} {{reason}}")], "bars"),
            Panel("Hedges", "reqps", "Streams sent to a second target because the first was late; won: the second answered.",
                  [Query(rate("nenya_hedges_total", TARGET, "target, outcome"), "{{target}} {{outcome}}")], "bars"),
            Panel("Fallbacks", "reqps", "Requests that another model was asked to answer.",
                  [Query(rate("nenya_fallbacks_total", HERE, "model, to, reason"), "{{model}} to {{to}}: {{reason}}")], "bars"),
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
                  [Query(f"({rate('nenya_ratelimit_decisions_total', f'{HERE},outcome!={chr(34)}admitted{chr(34)}')} or vector(0)) / "
                         f"{rate('nenya_ratelimit_decisions_total', HERE)}")]),
            Panel("Usage records lost", "short", "Records that the accounts' database never took.",
                  [Query(f"sum(increase(nenya_usage_records_dropped_total{{{HERE}}}[$__rate_interval]))")]),
        ]),
    ],
)  # fmt: skip

DASHBOARDS = (OVERVIEW, TARGETS, LIMITS)

"""The config as data: one tree of frozen Structs. `router.config.reader` makes it from YAML, embedders by hand.

Every knob has a default and, where the number isn't obvious, its reason beside it. Secrets never stand in a file:
``${NAME}`` in any string is replaced from the environment when the file is read.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from engines.specs import EngineSpec

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Priority = Annotated[int, Meta(ge=-1000, le=1000)]
Weight = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Money = Annotated[float, Meta(ge=0, le=1_000_000)]
"""USD. A bound keeps sums within 64 bits of billionths."""
Expiry = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?Z?)?$",
        description="a date or a time in UTC: 2027-01-31 or 2027-01-31T12:00:00Z",
    ),
]
"""A date is the last day on which a key is good."""
Policy = Literal[
    "round_robin",
    "weighted",
    "least_inflight",
    "least_tokens",
    "power_of_two",
    "lmetric",
    "cache_aware",
    "expected_cost",
    "local_first",
    "headroom",
]
Counts = Literal["usage", "uncached", "max_tokens", "input"]
"""How a provider counts a request against its limits of tokens; see `router.counting`."""


class _Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Parts of the tree refuse keys they don't know: a typo must not become a silent default."""


class Server(_Part, frozen=True):
    """Where the router listens and what it takes."""

    listen: str = "127.0.0.1:8080"
    admin: str | None = "127.0.0.1:9090"
    """The status page with its playground, /status, /metrics, /healthz, /readyz; null switches the port off."""
    admin_key: Annotated[str, Meta(min_length=16)] | None = None
    """Who has it may read the status from other machines, too; None shows it to this machine alone."""
    hosts: list[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+$", description="a host name without a port")]
    ] = []
    """Names by which a router without keys may be asked for, besides those of its own machine."""
    max_body_bytes: Count = 32 * 1024 * 1024
    """A million tokens of text are about 4 MiB; images inside a body need the rest."""
    header_timeout_s: Seconds = 10
    body_timeout_s: Seconds = 30
    keep_alive_s: Seconds = 75
    max_connections: Count = 10_000
    drain_s: Seconds = 30
    """How long running answers may take to end after SIGTERM."""

    def __repr__(self) -> str:
        return f"Server(listen={self.listen!r}, admin={self.admin!r})"


class Key(_Part, frozen=True):
    """A client's key. The secret is never shown again: ``repr`` leaves it out."""

    id: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_.-]{1,64}$",
            description="1 to 64 letters, digits, dots, hyphens or underscores",
        ),
    ]
    secret: Annotated[str, Meta(min_length=8)]
    tier: str | None = None
    """Whose limits it has; None is unlimited."""
    models: Annotated[list[str], Meta(min_length=1)] | None = None
    """What it may ask for, by name or alias; None is everything."""
    expires: Expiry | None = None
    budget_usd: Money | None = None
    """What it may spend in all, at the models' prices."""

    def __repr__(self) -> str:
        return f"Key(id={self.id!r})"


class Rates(_Part, frozen=True):
    """Limits of one key on one model; None is no limit. Tokens are input and output together."""

    rpm: Count | None = None
    """Requests a minute."""
    rpd: Count | None = None
    """Requests a day: 86,400 seconds, not a calendar's."""
    tpm: Count | None = None
    """Tokens a minute."""
    tpd: Count | None = None
    """Tokens a day."""


class Tier(Rates, frozen=True):
    """Limits that keys share by name; each key has them for itself, on each model."""

    priority: Priority = 0
    """Among those who wait for a target: higher first. Below 0 is sheddable: refused before the line is full."""
    models: dict[str, Rates] = {}
    """For these models, instead of the tier's own limits, all four."""


class Price(_Part, frozen=True):
    """USD for a million tokens."""

    input: Money
    output: Money
    cached_input: Money | None = None
    """Of input tokens that the target had in its cache; None is the price of input."""


class Accounts(_Part, frozen=True):
    """Where keys, usage and spending are kept."""

    database: str | None = None
    """A SQLite file; None keeps nothing beyond the process."""
    pepper: Annotated[str, Meta(min_length=16)] | None = None
    """Mixed into the hashes of the database's keys, so that the file alone is worth nothing."""
    usage: bool = True
    """Whether every request leaves a record in the database."""

    def __repr__(self) -> str:
        return f"Accounts(database={self.database!r}, usage={self.usage!r})"


class Provider(_Part, frozen=True, kw_only=True):
    """A server that speaks an API over HTTP."""

    kind: Literal["openai"] = "openai"
    base_url: Annotated[
        str,
        Meta(
            pattern=r"^https?://[^/?#@]+(/[^?#]*)?$",
            description="a URL such as https://api.together.xyz/v1, without user, query or fragment",
        ),
    ]
    """Up to and with the version: ``https://api.together.xyz/v1``."""
    api_key: str | None = None
    headers: dict[str, str] = {}
    """Sent with every request, for providers that want an organisation or a version."""
    max_connections: Count = 1024
    keep_alive_s: Seconds = 55
    """Under the 60 s after which many servers close an idle connection."""
    ca_file: str | None = None
    """PEM file of an authority to trust beside the system's; certificates are always verified."""
    extra_fields: list[Annotated[str, Meta(min_length=1)]] = []
    """Top-level fields of requests that aren't OpenAI's and are let through to this provider: ``[top_k, min_p]``."""
    continues: bool | Literal["auto"] = "auto"
    """Whether it goes on from an assistant's unfinished message: exactly, never, or to be told from what it writes."""
    continue_form: Literal["continue_final_message", "prefix", "message"] | None = None
    """How it is asked to; None goes by base_url."""
    counts: Counts | None = None
    """What its limits of tokens count; None goes by the host of base_url, else `usage`."""
    trace_headers: bool | Literal["auto"] = "auto"
    """Whether it hears ``traceparent`` and ``tracestate``: never, those of our spans where we trace, or else the
    client's own."""
    private_network: bool = False
    """Whether base_url's name may resolve to a private or loopback address; an address written out may always."""

    def __repr__(self) -> str:
        return f"Provider(kind={self.kind!r}, base_url={self.base_url!r})"


class Target(_Part, frozen=True):
    """Somebody who serves a model: one engine or one provider."""

    engine: str | None = None
    provider: str | None = None
    model: str | None = None
    """The model's name there; None is the name it has here."""
    weight: Weight = 1
    price: Price | None = None
    """What it costs us there; the policy `headroom` looks at it."""
    max_inflight: Count | None = None
    """Requests at once; more wait in line. None is unlimited until it says that it is overloaded."""


class Queue(_Part, frozen=True):
    """The line of those who wait for a model: for room, for a rest to end, for another attempt."""

    max: Count = 1024
    """Envoy's default for pending requests."""
    max_wait_s: Seconds = 60
    """Providers count by the minute: within it a limit has room again."""


class Model(_Part, frozen=True):
    """A model that clients may ask for, and who serves it."""

    targets: Annotated[list[Target], Meta(min_length=1)]
    aliases: list[str] = []
    context_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    policy: Policy | None = None
    """How one of several is chosen; None takes `expected_cost` where all are engines, `local_first` where some are,
    `headroom` where none is.
    """
    spill_s: Annotated[float, Meta(ge=0)] = 1
    """Of `local_first`: how much later than a provider's an engine's first token may be. A reader notices a second."""
    thrift: Share = 0.25
    """How much `headroom` looks at prices: 0 not at all, 1 as much as at the load."""
    owned_by: str = "nenya"
    price: Price | None = None
    """What it costs whoever asks; None is nothing."""
    fallback: list[str] = []
    """Models that answer in its stead, in this order, where it fails or keeps a request waiting; not theirs in turn."""
    context_fallback: list[str] = []
    """The same where it says that a request is longer than its context."""
    content_filter_fallback: list[str] = []
    """The same where its provider refuses a request for its content."""
    queue: Queue | None = None
    """Instead of the config's, both knobs."""


class Timeouts(_Part, frozen=True):
    """The clocks of a request; total covers all attempts together."""

    total_s: Seconds = 600
    connect_s: Seconds = 5
    first_token_s: Seconds = 120
    first_token_s_per_1k: Annotated[float, Meta(ge=0)] = 1
    """More for a thousand tokens of prompt: five times what an 8 B model on a 24 GB card takes."""
    answer_s: Seconds = 300
    """For a whole answer of a provider, which shows nothing before it is written: 9,000 tokens at 30 a second."""
    idle_s: Seconds = 60
    """Longest silence between two pieces of an answer."""


class Retry(_Part, frozen=True):
    """What happens to a request whose attempt failed before its first byte."""

    attempts: Count = 3
    """Attempts in all, the first included."""
    backoff_s: Seconds = 0.1
    """Before a target is tried again where no other is left; doubles each time, with full jitter."""
    budget_share: Share = 0.2
    """Retries of a model for each of its requests; Finagle's and linkerd's default."""
    budget_per_s: Annotated[float, Meta(ge=0)] = 10
    """Retries a second besides, kept for 10 s, so that few requests can be retried too; the same source."""
    hedge_share: Annotated[float, Meta(ge=0, le=1)] = 0
    """Of tokens that may be spent on asking a second provider when the first token is late; 0 never asks twice."""
    fallback_wait_s: Annotated[float, Meta(ge=0)] = 1
    """Longest wait for the model itself where a fallback could answer; a first token takes about as long."""


class Recovery(_Part, frozen=True):
    """What happens to a stream that broke after its first byte."""

    enabled: bool = True
    """Whether another target writes the rest."""
    keep_bytes: Count = 1024 * 1024
    """Of a stream, to go on from; one that is longer is given up if it breaks. About 5,000 tokens."""


class Health(_Part, frozen=True):
    """When a target is left alone."""

    failures: Count = 5
    """In a row; Envoy's default for consecutive 5xx."""
    window_s: Seconds = 30
    """Over which the rate of success is looked at; Finagle's default."""
    min_requests: Count = 20
    """The sample without which there is no rate; Hystrix's default. Of a target that is 95 % good, 11 of 20 are bad
    once in 10^9 samples."""
    min_success: Share = 0.5
    """Under it a target is ejected; Hystrix's default. 0 switches the rate off."""
    eject_s: Seconds = 30
    """Times the number of ejections in a row; then one probe."""
    max_ejected: Share = 0.8
    """Of a model's targets at once, rounded down, and one in any case. Envoy's 10 % is for hundreds of hosts; of three
    models' servers two may well be down."""
    slow_start_s: Annotated[float, Meta(ge=0)] = 30
    """How long after its readmission a target gets a growing part of its share; 0 is at once."""
    slow_start_aggression: Annotated[float, Meta(gt=0)] = 1
    """1 is a straight line, more gives more of it early; Envoy's default."""


class Tracing(_Part, frozen=True):
    """Spans for OpenTelemetry, sent as OTLP over HTTP. What isn't set here is OTEL_*'s in the environment."""

    endpoint: (
        Annotated[
            str,
            Meta(
                pattern=r"^https?://[^/?#@]+(/[^?#]*)?$",
                description="a URL such as http://127.0.0.1:4318/v1/traces",
            ),
        ]
        | None
    ) = None
    """Of the traces themselves, path and all; None takes OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318."""
    headers: dict[str, str] = {}
    """Sent with every export: where a collector wants a key, it is in one."""
    service_name: Annotated[str, Meta(min_length=1)] | None = None
    """None takes OTEL_SERVICE_NAME, else nenya."""
    sample_ratio: Share | None = None
    """Of requests whose client didn't decide; None takes OTEL_TRACES_SAMPLER, else all."""

    def __repr__(self) -> str:
        return f"Tracing(endpoint={self.endpoint!r}, service_name={self.service_name!r})"


class Config(_Part, frozen=True):
    """The whole."""

    models: Annotated[dict[str, Model], Meta(min_length=1)]
    server: Server = Server()
    keys: list[Key] = []
    tiers: dict[str, Tier] = {}
    accounts: Accounts = Accounts()
    providers: dict[str, Provider] = {}
    engines: dict[str, EngineSpec] = {}
    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()
    recovery: Recovery = Recovery()
    queue: Queue = Queue()
    health: Health = Health()
    tracing: Tracing | None = None

    @property
    def asks_for_keys(self) -> bool:
        """Without a key nobody is served."""
        return bool(self.keys) or self.accounts.database is not None

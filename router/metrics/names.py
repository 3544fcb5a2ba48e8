"""The closed sets that labels come from: the router's own names, the faults that exist, and ``other``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec

from router.errors import FaultKind

if TYPE_CHECKING:
    from router.app import Stats

OTHER = "other"
NONE = "none"
"""The target of a request that never had one."""

OUTCOMES = frozenset({
    "ok", "client_gone", "rate_limit_exceeded", "model_unavailable", "model_not_found", "context_length_exceeded",
    "invalid_value", "invalid_request_error", "insufficient_quota", "overloaded", "shutting_down", "internal_error",
    *(kind.value for kind in FaultKind),
})  # fmt: skip
"""What a request may end with by name; upstreams send codes of their own, and those are ``other``."""


class Names(msgspec.Struct, frozen=True):
    """What the router knows by name."""

    models: frozenset[str]
    targets: frozenset[str]
    providers: frozenset[str]
    engines: frozenset[str]

    @classmethod
    def of(cls, stats: Stats) -> Names:
        """Those that ``stats`` speak of."""
        return cls(
            models=frozenset(one.model for one in stats.routes),
            targets=frozenset(one.target for one in stats.targets),
            providers=frozenset(one.provider for one in stats.targets),
            engines=frozenset(one.name for one in stats.engines),
        )

    def model(self, name: str) -> str:
        """The label of a model."""
        return name if name in self.models else OTHER

    def target(self, name: str) -> str:
        """The label of a target; "" is none."""
        return name if name in self.targets else OTHER if name else NONE

    def provider(self, name: str) -> str:
        """The label of a provider or an engine; "" is none."""
        return name if name in self.providers else OTHER if name else NONE

    def engine(self, name: str) -> str:
        """The label of an engine."""
        return name if name in self.engines else OTHER

    def by_label(self) -> Mapping[str, Collection[str]]:
        """What may stand in each label that has names."""
        models = self.models | {OTHER}
        return {
            "model": models,
            "request_model": models,
            "to": models,
            "target": self.targets | {OTHER, NONE},
            "provider": self.providers | {OTHER, NONE},
            "engine": self.engines | {OTHER},
        }


def outcome(code: str) -> str:
    """The label of an error's code or of a reason."""
    return code if code in OUTCOMES else OTHER

"""Which of a model's targets may serve a request at all, whatever their state. Pure.

Engines answer chat requests and completions of texts. What they can't do of the older endpoint goes to providers where
the model has some, and is refused by name where it has none; embeddings are the providers' alone. A field that OpenAI
doesn't know goes only to engines, which take further samplers, and to providers whose config lets it through
(``extra_fields``): a request that has some is served by the targets that take all of them, and refused with OpenAI's
400 where there are none.
"""

from __future__ import annotations

from engines.base import Samplers
from router.config.schema import Config
from router.errors import ApiError, invalid_request
from router.member import Member
from router.pool import Route
from router.wire.chat import ChatRequest, unknown_fields
from router.wire.legacy import CompletionRequest, beyond_engines
from router.wire.request import Request
from router.wire.violations import unknown_field

OF_ENGINES = frozenset(Samplers.__struct_fields__)
"""Fields that OpenAI doesn't know and every engine takes."""


class Eligible:
    """The rules of one config."""

    def __init__(self, config: Config) -> None:
        self._taken = {name: frozenset(one.extra_fields) for name, one in config.providers.items()}
        of_engines: frozenset[str] = OF_ENGINES if config.engines else frozenset()
        self.extra_fields = of_engines.union(*self._taken.values())
        """Every field that somebody takes."""

    def narrow(self, route: Route, request: Request, body: bytes) -> Route:
        """``route`` with the members that may serve ``request``, decoded from ``body``. Raises ApiError: none may."""
        cap = route.model.max_completion_tokens
        if cap is not None:
            _check_limit(request, cap)
        if type(request) is ChatRequest:  # it was decoded without a field that OpenAI doesn't know
            return route
        extra = unknown_fields(request, body)
        if isinstance(request, ChatRequest) and not extra:
            return route
        members = _who_can(route, request)
        for name in extra:
            members = tuple(one for one in members if self._takes(one, name))
            if not members:
                raise unknown_field(name)
        return route if len(members) == len(route.members) else route.only(members)

    def _takes(self, member: Member, field: str) -> bool:
        if member.target.kind == "engine":
            return field in OF_ENGINES
        return field in self._taken.get(member.target.backend, ())


def _check_limit(request: Request, cap: int) -> None:
    """A model's own cap on what it writes. Raises ApiError."""
    asked = request.output_limit
    if asked is None or asked <= cap:
        return
    param = request.output_limit_name
    message = (
        f"{param} is too large: {asked}. This model supports at most {cap} completion tokens, "
        f"whereas you provided {asked}."
    )
    raise invalid_request(message, param=param, code="invalid_value")


def _who_can(route: Route, request: Request) -> tuple[Member, ...]:
    """The members that can serve such a request: providers any, engines what `beyond_engines` says. Raises ApiError."""
    providers = tuple(one for one in route.members if one.target.kind == "provider")
    if len(providers) == len(route.members):
        return providers
    beyond = _beyond_engines(route.name, request)
    if beyond is None:
        return route.members
    if not providers:
        raise beyond
    return providers


def _beyond_engines(model: str, request: Request) -> ApiError | None:
    if isinstance(request, ChatRequest):
        return None
    if isinstance(request, CompletionRequest):
        return beyond_engines(request)
    message = f"The model `{model}` does not support the v1/{request.operation.value} endpoint."
    return invalid_request(message, param="model", status=404)

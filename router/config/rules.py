"""What one part of a config means for another: names that must exist, names that must differ, who may connect.

Pure, but for `missing_files`. The rules run on whatever could be read, so that one pass tells everything; they
keep quiet about parts that already have a problem of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path as File
from urllib.parse import urlsplit

from engines.specs import ExLlamaSpec, LlamaCppSpec
from router.config import accounts_rules, address
from router.config.report import Path, Report, nearest, quoted
from router.config.schema import Config, Target

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SENDABLE = re.compile(r"[!-~]+")
"""What may stand in an Authorization header after the word Bearer: visible ASCII."""
STARTER = "starter"
"""The model that comes with the package; its file needs no path."""


def check(config: Config, report: Report) -> None:
    """Every rule; what is wrong goes to ``report``."""
    _targets(config, report)
    _model_names(config, report)
    _fallbacks(config, report)
    _keys(config, report)
    _admin_key(config, report)
    accounts_rules.check(config, report)
    _providers(config, report)
    _tracing(config, report)
    _listen(config, report)
    _unused(config, report)


def missing_files(config: Config, report: Report) -> None:
    """Models and certificates that the config names and this machine doesn't have."""
    for name, spec in config.engines.items():
        path: Path = ("engines", name, "model")
        if isinstance(spec, LlamaCppSpec | ExLlamaSpec) and spec.model not in {"", STARTER}:
            if isinstance(spec, LlamaCppSpec) and not File(spec.model).is_file():
                report.problem(path, "there is no such file")
            elif isinstance(spec, ExLlamaSpec) and not File(spec.model).is_dir():
                report.problem(path, "there is no such folder")
    for name, provider in config.providers.items():
        if provider.ca_file is not None and not File(provider.ca_file).is_file():
            report.problem(("providers", name, "ca_file"), "there is no such file")
    database = config.accounts.database
    if database is not None and not File(database).parent.is_dir():
        report.problem(("accounts", "database"), "there is no such folder")


def _each_target(config: Config) -> Iterator[tuple[Path, Target]]:
    for name, model in config.models.items():
        for index, target in enumerate(model.targets):
            yield ("models", name, "targets", index), target


def _targets(config: Config, report: Report) -> None:
    for path, target in _each_target(config):
        if target.engine is not None and target.provider is not None:
            report.problem(path, "names an engine and a provider; a target is one of them")
        elif target.engine is not None:
            _known(report, (*path, "engine"), target.engine, "engine", "provider")
        elif target.provider is not None:
            _known(report, (*path, "provider"), target.provider, "provider", "engine")
        elif not report.is_broken(path):
            report.problem(path, "needs `engine` or `provider`")


def _known(report: Report, path: Path, name: str, section: str, other: str) -> None:
    known = report.names(f"{section}s")
    if name in known or not name:
        return
    if name in report.names(f"{other}s"):
        shown = report.shown(path, name)
        hint = f"; {shown} is one of the {other}s: write `{other}: {shown[1:-1]}`"
    else:
        hint = nearest(name, known) or (f"; there are no {section}s" if not known else "")
    report.problem(path, f"there is no {section} {report.shown(path, name)}{hint}")


def _each_name(config: Config) -> Iterator[tuple[Path, str, str]]:
    for model in config.models:
        yield ("models", model), model, model
    for model, settings in config.models.items():
        for index, alias in enumerate(settings.aliases):
            yield ("models", model, "aliases", index), alias, model


def _model_names(config: Config, report: Report) -> None:
    owners: dict[str, str] = {}
    for path, name, model in _each_name(config):
        owner = owners.get(name.casefold())
        if owner is None:
            owners[name.casefold()] = model
        elif name:
            whose = "this model" if owner == model else quoted(owner)
            shown = report.shown(path, name)
            report.problem(path, f"{shown} is already a name of {whose}; case is ignored")


def _fallbacks(config: Config, report: Report) -> None:
    owners = {name.casefold(): model for _, name, model in _each_name(config)}
    for model, settings in config.models.items():
        for field in ("fallback", "context_fallback", "content_filter_fallback"):
            for index, name in enumerate(getattr(settings, field)):
                path: Path = ("models", model, field, index)
                owner = owners.get(name.casefold())
                known = report.names("models")
                if owner is None and name not in known:
                    hint = nearest(name, known)
                    report.problem(path, f"there is no model {report.shown(path, name)}{hint}")
                elif owner == model:
                    report.problem(path, "is this model itself")


def _keys(config: Config, report: Report) -> None:
    ids: dict[str, int] = {}
    secrets: dict[str, int] = {}
    for index, key in enumerate(config.keys):
        path: Path = ("keys", index)
        shown = report.shown((*path, "id"), key.id)
        first = ids.setdefault(key.id, index)
        if key.id and first != index:
            where = report.line(("keys", first, "id"))
            report.problem((*path, "id"), f"{shown} is used twice; first on line {where}")
        first = secrets.setdefault(key.secret, index)
        if key.secret and first != index:
            where = report.line(("keys", first, "secret"))
            report.problem((*path, "secret"), f"is the same secret as on line {where}")
        if key.secret and not _SENDABLE.fullmatch(key.secret):
            message = "may only have visible ASCII characters, without spaces"
            report.problem((*path, "secret"), message)


def _admin_key(config: Config, report: Report) -> None:
    key, path = config.server.admin_key, ("server", "admin_key")
    if key is None:
        return
    if not _SENDABLE.fullmatch(key):
        report.problem(path, "may only have visible ASCII characters, without spaces")
    if key in {client.secret for client in config.keys}:
        report.problem(path, "is the secret of a client's key, which must not open the status")


def _providers(config: Config, report: Report) -> None:
    for name, provider in config.providers.items():
        path: Path = ("providers", name)
        if provider.api_key is not None and not _SENDABLE.fullmatch(provider.api_key):
            message = "may only have visible ASCII characters, without spaces"
            report.problem((*path, "api_key"), message)
        if provider.base_url and not _is_url(provider.base_url):
            report.problem((*path, "base_url"), "is not a URL: see its host and port")
        _headers(provider.headers, path, report)


def _headers(headers: Mapping[str, str], path: Path, report: Report) -> None:
    for header, value in headers.items():
        if not _HEADER_NAME.fullmatch(header):
            report.problem((*path, "headers", header), "is not a header's name")
        if not value.isascii():
            report.problem((*path, "headers", header), "may only have ASCII characters")


def _tracing(config: Config, report: Report) -> None:
    tracing, path = config.tracing, ("tracing",)
    if tracing is not None:
        if tracing.endpoint and not _is_url(tracing.endpoint):
            report.problem((*path, "endpoint"), "is not a URL: see its host and port")
        _headers(tracing.headers, path, report)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and parts.port != 0 and " " not in text and text.isascii()
    except ValueError:
        return False


def _listen(config: Config, report: Report) -> None:
    addresses: list[address.Address] = []
    for name, text in (("listen", config.server.listen), ("admin", config.server.admin)):
        path: Path = ("server", name)
        if text is None or report.is_broken(path):
            continue
        found = address.split(text)
        if found is None:
            report.problem(path, "must be host:port, such as 127.0.0.1:8080 or [::1]:8080")
            continue
        if found.port and found in addresses:
            report.problem(path, "is the same address as `listen`")
        addresses.append(found)
        if not found.is_loopback and not config.asks_for_keys and not report.is_broken(("keys",)):
            report.problem(
                path,
                "refuses to start: other machines could connect, and there are no keys; "
                "add `keys:` (each an `id` and a `secret`) or use 127.0.0.1",
            )


def _unused(config: Config, report: Report) -> None:
    targets = [target for _, target in _each_target(config)]
    used = {
        "engines": {target.engine for target in targets},
        "providers": {target.provider for target in targets},
    }
    for section, names in used.items():
        for name in report.names(section):
            if name not in names:
                report.warn((section, name), "no model uses it")

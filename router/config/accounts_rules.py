"""Rules about who may ask for how much: tiers, keys, prices and the database must fit each other. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from router.config.moment import moment
from router.config.report import Path, Report, nearest, quoted
from router.config.schema import Config


def check(config: Config, report: Report) -> None:
    """Every rule; what is wrong goes to ``report``."""
    names = _model_names(config)
    _tiers(config, report, names)
    for index, key in enumerate(config.keys):
        path: Path = ("keys", index)
        if key.tier is not None and key.tier not in report.names("tiers"):
            _tier(report, (*path, "tier"), key.tier)
        for at, model in enumerate(key.models or ()):
            _model(report, (*path, "models", at), model, names)
        if key.expires is not None and moment(key.expires) is None:
            report.problem((*path, "expires"), "there is no such day or time")
        if key.budget_usd is not None:
            _priced(config, report, (*path, "budget_usd"))
    _database(config, report)


def _tiers(config: Config, report: Report, names: Mapping[str, str]) -> None:
    for name, tier in config.tiers.items():
        seen: set[str] = set()
        for model in tier.models:
            path: Path = ("tiers", name, "models", model)
            _model(report, path, model, names)
            found = names.get(model.casefold())
            if found in seen:
                report.problem(path, f"is the model {quoted(found)}, which is there already")
            elif found is not None:
                seen.add(found)


def _model_names(config: Config) -> dict[str, str]:
    """The model of every name and alias; these in lower case."""
    names = {name.casefold(): name for name in config.models}
    for name, model in config.models.items():
        names |= {alias.casefold(): name for alias in model.aliases}
    return names


def _model(report: Report, path: Path, name: str, names: Mapping[str, str]) -> None:
    if name and name.casefold() not in names:
        hint = nearest(name, {*names.values(), *names})
        report.problem(path, f"there is no model {report.shown(path, name)}{hint}")


def _tier(report: Report, path: Path, name: str) -> None:
    tiers = report.names("tiers")
    hint = nearest(name, tiers) or ("; there are no tiers" if not tiers else "")
    report.problem(path, f"there is no tier {report.shown(path, name)}{hint}")


def _priced(config: Config, report: Report, path: Path) -> None:
    if not any(model.price is not None for model in config.models.values()):
        report.warn(path, "no model has a `price`, so nothing is ever spent")


def _database(config: Config, report: Report) -> None:
    accounts = config.accounts
    if report.is_broken(("accounts",)):
        return
    if accounts.database is not None and accounts.pepper is None:
        message = (
            "a database needs `pepper`: a long random secret, such as `pepper: ${NENYA_PEPPER}`"
        )
        report.problem(("accounts", "database"), message)
    if accounts.database is None and accounts.pepper is not None:
        report.warn(("accounts", "pepper"), "does nothing without `database`")

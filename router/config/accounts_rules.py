"""Rules about who may ask for how much: tiers, keys, prices and the database must fit each other. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from router.config.moment import moment
from router.config.report import Path, Report, nearest
from router.config.schema import Config


def check(config: Config, report: Report) -> None:
    """Every rule; what is wrong goes to ``report``."""
    known = _model_names(config)
    for name, tier in config.tiers.items():
        for model in tier.models:
            _model(report, ("tiers", name, "models", model), model, known)
    for index, key in enumerate(config.keys):
        path: Path = ("keys", index)
        if key.tier is not None and key.tier not in report.names("tiers"):
            _tier(report, (*path, "tier"), key.tier)
        for at, model in enumerate(key.models or ()):
            _model(report, (*path, "models", at), model, known)
        if key.expires is not None and moment(key.expires) is None:
            report.problem((*path, "expires"), "there is no such day or time")
        if key.budget_usd is not None:
            _priced(config, report, (*path, "budget_usd"))
    _database(config, report)


def _model_names(config: Config) -> set[str]:
    """Every name and alias, in lower case."""
    names = {name.casefold() for name in config.models}
    return names | {a.casefold() for model in config.models.values() for a in model.aliases}


def _model(report: Report, path: Path, name: str, known: Iterable[str]) -> None:
    if name and name.casefold() not in known:
        hint = nearest(name, known)
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

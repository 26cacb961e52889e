"""The routing table: aliases, shares between versions (canary), shadows, and rollback. Pure data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adapter_export.errors import FormatError, InputError, RequestError
from adapter_export.format.files import canonical_json
from adapter_export.graph.adapter import check_name
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.output import Output
from adapter_export.words import quoted

_VERSION = "1.0"
_MOST_BEFORE = 100
"""Maximum tables that are kept for rollback."""

Known = Callable[[str], bool]
"""Returns whether a model exists."""


@dataclass(frozen=True)
class Route:
    """The models behind a name.

    Attributes:
        shares: the share of requests by model; the sum is 1.
        shadow: a model that computes the same requests for comparison; clients never get its answers.
    """

    shares: Mapping[str, float]
    shadow: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the route as JSON."""
        return {"shares": dict(self.shares), "shadow": self.shadow}

    def choose(self, name: str, request: str) -> str:
        """Return the model of a request; the same for every request with this id.

        A share that grows keeps its requests and takes some of the others.
        """
        digest = hashlib.sha256(f"{name}\0{request}".encode()).digest()
        place, end = int.from_bytes(digest[:7]) / 2**56, 0.0
        shares = [(model, share) for model, share in sorted(self.shares.items()) if share]
        for model, share in shares:
            end += share
            if place < end:
                return model
        return shares[-1][0]  # rounding: the sum may be slightly below 1


Table = Mapping[str, Route]


@dataclass(frozen=True)
class Routes:
    """The routing table, and earlier tables, most recent last."""

    table: Table = field(default_factory=lambda: MappingProxyType({}))
    before: tuple[Table, ...] = ()

    def choose(self, name: str, request: str) -> tuple[str, str | None]:
        """Return the model and the shadow of a name; without a route, the name itself and `None`."""
        route = self.table.get(name)
        return (name, None) if route is None else (route.choose(name, request), route.shadow)

    def having(self, name: str, route: Route, known: Known) -> Routes:
        """Return routes with a new route for a name.

        Raises:
            RequestError: the shares are invalid, or a model does not exist.
            AdapterError: the name is invalid.
        """
        check_name(name)
        _check(name, route, known)
        return self._then({**self.table, name: route})

    def lacking(self, name: str) -> Routes:
        """Return routes without that of a name; RequestError if it has none."""
        if name not in self.table:
            known = quoted(self.table) or "no routes exist"
            raise RequestError("there is no route with this name", found=f"`{name}`", expected=known)
        return self._then({other: route for other, route in self.table.items() if other != name})

    def back(self) -> Routes:
        """Return the routes from before the last change; RequestError if there was no change."""
        if not self.before:
            raise RequestError("there is no change to roll back")
        return Routes(self.before[-1], self.before[:-1])

    def leading_to(self, model: str) -> list[str]:
        """Return the names whose routes use a model."""
        return [name for name, route in self.table.items() if model in {*route.shares, route.shadow}]

    def document(self) -> dict[str, Any]:
        """Return the current table as JSON."""
        return {name: route.document() for name, route in self.table.items()}

    def _then(self, table: Table) -> Routes:
        return replace(self, table=table, before=(*self.before, self.table)[-_MOST_BEFORE:])


def _check(name: str, route: Route, known: Known) -> None:
    where = f"route `{name}`"
    for share in route.shares.values():
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise RequestError("a share is out of range", where=where, found=share, expected="a number from 0 to 1")
    total = math.fsum(route.shares.values())
    if abs(total - 1) > 1e-6:
        raise RequestError("the shares do not add up to 1", where=where, found=total, expected="1")
    for model in (*route.shares, *filter(None, [route.shadow])):
        if not known(model):
            raise RequestError(
                "names an unknown model",
                where=where,
                found=f"`{model}`",
                fix="load the model first, or name another one",
            )


def save_routes(routes: Routes, path: Path) -> None:
    """Write a state file atomically; WriteError if the system refuses."""
    tables = [{name: route.document() for name, route in table.items()} for table in routes.before]
    data = canonical_json({"version": _VERSION, "routes": routes.document(), "before": tables})
    with Output(path, force=True).file() as temporary:
        temporary.write_bytes(data)


def load_routes(path: Path) -> Routes:
    """Read a state file; a missing file means no routes.

    Raises:
        FileError, FormatError: the file cannot be read, or is no state file.
    """
    if not path.exists():
        return Routes()
    document = read_json(path)
    if not isinstance(document, Mapping) or document.get("version") != _VERSION:
        raise FormatError("is not a state file of `serve`", where=path, expected=f'`"version": "{_VERSION}"`')
    before = document.get("before")
    if not isinstance(before, list):
        raise FormatError("is not a state file of `serve`", where=path, expected="a list `before`")
    return Routes(_table(document.get("routes"), path), tuple(_table(table, path) for table in before))


def _table(document: object, path: Path) -> Table:
    try:
        if not isinstance(document, Mapping):
            raise RequestError("the routes are not a JSON object")
        table = {check_name(str(name)): route_of(route) for name, route in document.items()}
        for name, route in table.items():
            _check(name, route, lambda _: True)
    except InputError as error:
        raise FormatError(error.what, where=path, found=error.found, expected=error.expected) from error
    return MappingProxyType(table)


def route_of(document: object) -> Route:
    """Parse a route: `{"shares": {"a": 0.9, "b": 0.1}, "shadow": "c"}` or `{"alias": "a"}`.

    Raises:
        RequestError: the document is malformed.
    """
    if isinstance(document, Mapping) and set(document) <= {"alias", "shares", "shadow"}:
        alias, shares, shadow = (document.get(key) for key in ("alias", "shares", "shadow"))
        if alias is not None:
            shares = {alias: 1.0} if isinstance(alias, str) and shares is None else None
        numbers = isinstance(shares, Mapping) and all(
            isinstance(share, int | float) and not isinstance(share, bool) for share in shares.values()
        )
        if isinstance(shares, Mapping) and numbers and shares and (shadow is None or isinstance(shadow, str)):
            return Route({str(model): float(share) for model, share in shares.items()}, shadow)
    raise RequestError(
        "malformed route",
        expected='`{"alias": "a"}` or `{"shares": {"a": 0.9, "b": 0.1}}`, optionally with `"shadow": "c"`',
    )

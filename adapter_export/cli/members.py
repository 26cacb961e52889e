"""The members of a composition, read from their folders, and what the new adapter says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapter_export.cli.places import find_adapter, site_map_of
from adapter_export.errors import AdapterError
from adapter_export.graph.compose import COMPOSITION
from adapter_export.sites.given import SITE_MAP_KEY

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter


@dataclass(frozen=True)
class Members:
    """Adapters that are composed.

    Attributes:
        adapters: in their order.
        sha256: of the weights of each.
        site_map: the record of the site map that they were made with; empty where nothing is known of it.
    """

    adapters: tuple[Adapter, ...]
    sha256: tuple[str, ...]
    site_map: Mapping[str, str | None]

    def described(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The training record of a composition, with the sha256 of its members' weights."""
        composition = dict(record[COMPOSITION])
        facts = zip(composition["members"], self.sha256, strict=True)
        composition["members"] = [{**fact, "weights_sha256": sha256} for fact, sha256 in facts]
        return {**record, COMPOSITION: composition, **self.site_map}

    def finished(self, adapter: Adapter) -> Adapter:
        """The composition with the whole record."""
        return replace(adapter, training=self.described(adapter.training))


def read_members(places: Sequence[str], near: Path) -> Members:
    """Read adapters from folders, or by names that are looked up here, beside `near` and in `adapters`.

    What stands before `=` renames an adapter, as in `other=folder`.

    Raises:
        FileError, FormatError, AdapterError: one is not there, or damaged; or they were made with different site maps.
    """
    from adapter_export.format.adapter_files import WEIGHTS_FILE, read_adapter
    from adapter_export.format.files import sha256_of

    named = [place.rpartition("=") for place in places]
    folders = [find_adapter(place, near) for _, _, place in named]
    read = zip(named, map(read_adapter, folders), strict=True)
    adapters = tuple(replace(adapter, name=name) if name else adapter for (name, _, _), adapter in read)
    sha256 = tuple(sha256_of(folder / WEIGHTS_FILE) for folder in folders)
    return Members(adapters, sha256, _site_map(adapters))


def _site_map(adapters: Sequence[Adapter]) -> dict[str, str | None]:
    records = {adapter.name: found for adapter in adapters if (found := site_map_of(adapter)) is not None}
    given = {record[SITE_MAP_KEY] for record in records.values()}
    if len(given) > 1:
        raise AdapterError(
            "the members of a composition were made with different site maps",
            found=", ".join(f"`{name}`: {record[SITE_MAP_KEY] or 'none'}" for name, record in records.items()),
            fix="compose adapters of one site map",
        )
    return {SITE_MAP_KEY: given.pop()} if given else {}


def read_shares(_: click.Context, __: click.Parameter, text: str | None) -> Any:
    """`0.3,0.7` as numbers, `a=0.3,b=0.7` as numbers by name."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return tuple(map(float, text.split(",")))
        pairs = [item.rsplit("=", 1) for item in text.split(",")]
        weights = {name.strip(): float(number) for name, number in pairs}
        if len(weights) < len(pairs):
            raise click.BadParameter(f"`{text}` gives one adapter two weights")
        return weights
    except ValueError as error:
        raise click.BadParameter(f"`{text}` is no list of numbers such as `0.3,0.7` or `a=0.3,b=0.7`") from error

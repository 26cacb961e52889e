"""Where adapters are: `--adapters a,b` as folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapter_export.cli.output import emit_json, say, warn
from adapter_export.errors import AdapterError, FileError, UsageError
from adapter_export.graph.compose import COMPOSITION
from adapter_export.sites.site_map import SITE_MAP_KEY

if TYPE_CHECKING:
    from adapter_export.cli.sources import Source
    from adapter_export.graph.adapter import Adapter
    from adapter_export.sites.site_map import GivenSites


# What commands that make an adapter without training say at the end.


def report_adapter(
    adapter: Adapter, notes: Sequence[str], output: Path, as_json: bool, facts: Mapping[str, Any] | None = None
) -> None:
    """Say what was written, and warn of what was done on the way; `facts` is what the document says beside that."""
    for note in notes:
        warn(f"{note}.")
    parameters = adapter.cost().parameters
    if as_json:
        emit_json(
            {
                "adapter": str(output),
                "name": adapter.name,
                "kind": adapter.kind,
                "parameters": parameters,
                "sites": list(adapter.placements),
                "task": None if adapter.head is None else adapter.head.task,
                "labels": None if adapter.head is None else list(adapter.head.labels) or None,
                "notes": list(notes),
                **(facts or {}),
            }
        )
        return
    head = "" if adapter.head is None else f", a head for {adapter.head.task.replace('_', ' ')}"
    places = f"{len(adapter.placements)} sites{head}"
    say(f"wrote {output}: `{adapter.name}`, {adapter.kind}, {places}, {parameters:,} parameters.")
    say(f"Next: adapter-export build MODEL --adapters {output} -o bundle")


_FILES = ("adapter_graph.json", "weights.safetensors")
_COLLECTION = "adapters"


def read_adapters(listed: str, model: Path) -> list[Adapter]:
    """The adapters of a list such as `a,b` or `a=folders/first,b=folders/second`.

    Each item is a folder, or a name that is looked up in the current folder, beside the model and in `./adapters`. What
    stands before `=` renames the adapter.

    Raises:
        UsageError: an item is empty.
        FileError: no adapter is there.
        AdapterError: a name leads to several adapters, or two adapters have one name.
    """
    adapters = [_read(item.strip(), model) for item in listed.split(",")]
    counts = Counter(adapter.name for adapter in adapters)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise AdapterError(
            "two adapters have one name",
            where="`--adapters`",
            found=", ".join(f"`{name}` {counts[name]} times" for name in twice),
            expected="different names",
            fix=f"leave one out, or rename it: `--adapters {twice[0]},other={twice[0]}`",
        )
    return adapters


def with_site_map(adapter: Adapter, source: Source) -> Adapter:
    """An adapter that records the site map that its sites were looked up with, or that there was none."""
    given = None if source.given is None else source.given.digest
    return replace(adapter, training={**adapter.training, SITE_MAP_KEY: given})


def check_site_map(adapters: Iterable[Adapter], sites: GivenSites | None) -> None:
    """Refuse an adapter that was made with another site map: its sites may be other places of the same names.

    Nothing is known of adapters that neither `train` nor `pack` nor `import` made.

    Args:
        adapters: the adapters.
        sites: the site map; none without one.

    Raises:
        AdapterError: there is one.
    """
    given = None if sites is None else sites.digest
    for adapter in adapters:
        record = site_map_of(adapter)
        if record is not None and record[SITE_MAP_KEY] != given:
            raise AdapterError(
                "was made with another site map, or without one",
                where=f"adapter `{adapter.name}`",
                found=record[SITE_MAP_KEY] or "no site map",
                expected=given or "no site map",
                fix="give the site map that it was made with: `--site-map FILE`",
            )


def site_map_of(adapter: Adapter) -> dict[str, str | None] | None:
    """What an adapter's record says of the site map that it was made with; none if nothing is known."""
    record = adapter.training if SITE_MAP_KEY in adapter.training else adapter.training.get("settings")
    return {SITE_MAP_KEY: record.get(SITE_MAP_KEY)} if isinstance(record, Mapping) else None


def _read(item: str, model: Path) -> Adapter:
    from adapter_export.format.adapter_files import read_adapter

    name, _, place = item.rpartition("=")
    if not place:
        raise UsageError("an adapter without a name", where="`--adapters`", found=f"`{item}`", expected="`a,b`")
    adapter = read_adapter(find_adapter(place, model))
    return replace(adapter, name=name) if name else adapter


def find_adapter(place: str, model: Path) -> Path:
    """The folder that a path or a name leads to.

    Raises:
        FileError: no adapter is there.
        AdapterError: several are.
    """
    candidates = [Path(place)]
    if Path(place).name == place:
        candidates = list(dict.fromkeys([*candidates, model.parent / place, Path(_COLLECTION) / place]))
    found = list({path.resolve(): path for path in candidates if _looks_like_one(path)}.values())
    if len(found) > 1:
        raise AdapterError(
            "is the name of several adapters",
            where=f"`{place}`",
            found=", ".join(f"`{path}`" for path in found),
            fix=f"give the folder itself, such as `{found[0].resolve()}`",
        )
    if found:
        return found[0]
    there = [path for path in candidates if path.exists()]
    raise FileError(
        "is not an adapter",
        where=f"`{place}`",
        found=f"`{there[0]}` without `{_FILES[0]}`" if there else "nothing",
        expected=f"a folder with {' and '.join(f'`{name}`' for name in _FILES)}; looked at "
        + ", ".join(f"`{path}`" for path in candidates),
        fix="make one with `adapter-export train` or `adapter-export pack`",
    )


def _looks_like_one(path: Path) -> bool:
    """One of its files is enough: what the other lacks, its reader says better."""
    return any((path / name).is_file() for name in _FILES)


# The members of a composition, read from their folders, and what the new adapter says of them.


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

"""Adapters: read from folders, written, and checked against their base."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from adapter_export.address import Address, PathLike, is_remote, locate
from adapter_export.bases.base import Base
from adapter_export.errors import AdapterError, FileError, UsageError
from adapter_export.words import argument, command, quoted

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.sites.site_map import GivenSites

    Adapters: TypeAlias = Sequence[Adapter | Address] | Mapping[str, Adapter | Address]
    """Adapters or their folders; keys of a mapping, and `NAME=FOLDER`, rename them."""

_FILES = ("adapter_graph.json", "weights.safetensors")


def load_adapter(place: Address, *, name: str | None = None, near: PathLike | None = None) -> Adapter:
    """Read and validate an adapter.

    Args:
        place: its folder, a name that is looked up in the current folder, beside `near` and in `./adapters`, or a
            reference to fetch, such as `hf://owner/name@revision`.
        name: new name of the adapter.
        near: path beside which a name is looked up, too, such as the base's.

    Raises:
        FileError: there is no adapter.
        AdapterError: a name matches several adapters.
        FormatError: a file breaks the format; `VersionError`, `HashError` and `TensorError` are subclasses.
    """
    from adapter_export.format.adapter_files import read_adapter

    adapter = read_adapter(_find(str(place), Path() if near is None else Path(near)))
    return replace(adapter, name=name) if name else adapter


def _find(place: str, near: Path) -> Path:
    """Return the folder for a path or a name; one of its files is enough, because the reader reports the other."""
    candidates = [locate(place, "artifact").path if is_remote(place) else Path(place)]
    if Path(place).name == place:
        candidates = list(dict.fromkeys([*candidates, near.parent / place, Path("adapters", place)]))
    adapters = (path for path in candidates if any((path / name).is_file() for name in _FILES))
    folders = list({path.resolve(): path for path in adapters}.values())
    if len(folders) > 1:
        raise AdapterError(
            "matches several adapters",
            where=f"`{place}`",
            found=quoted(folders),
            fix=f"pass a folder, such as `{folders[0].resolve()}`",
        )
    if folders:
        return folders[0]
    existing = [path for path in candidates if path.exists()]
    looked = quoted(candidates)
    raise FileError(
        "is not an adapter",
        where=f"`{place}`",
        found=f"`{existing[0]}` without `{_FILES[0]}`" if existing else "nothing",
        expected=f"a folder with {' and '.join(f'`{name}`' for name in _FILES)}; looked at {looked}",
        fix="make one with " + command("train", "train") + " or " + command("pack", "pack"),
    )


def save(adapter: Adapter, folder: PathLike, *, force: bool = False) -> Path:
    """Write an adapter folder; equal adapters give equal bytes.

    Raises:
        OutputExistsError: `folder` exists and `force` is false.
        WriteError: the operating system refused; `folder` is unchanged.
    """
    from adapter_export.format.adapter_files import write_adapter

    write_adapter(adapter, Path(folder), force=force)
    return Path(folder)


def adapters_of(adapters: Adapters, base: Base) -> tuple[Adapter, ...]:
    """Read adapters for a base; raises `AdapterError` for equal names or another site map."""
    chosen = load_members(adapters, base.path)
    counts = Counter(adapter.name for adapter in chosen)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise AdapterError(
            "two adapters have the same name",
            found=", ".join(f"`{name}` {counts[name]} times" for name in twice),
            expected="different names",
            fix="remove one, or rename it: `other=FOLDER`",
        )
    check_site_map(chosen, base.given)
    return tuple(chosen)


def load_members(adapters: Adapters, near: Path | None = None) -> list[Adapter]:
    """Read adapters from their folders, located as by `load_adapter`; an empty name is a `UsageError`."""
    chosen = []
    for name, each in adapters.items() if isinstance(adapters, Mapping) else ((None, each) for each in adapters):
        place: Adapter | Address = each
        if isinstance(each, str):
            renamed, _, place = each.rpartition("=")
            name = name or renamed
            if not place:
                raise UsageError("the name of an adapter is empty", found=f"`{each}`", expected="a folder or a name")
        if isinstance(place, str | Path):
            chosen.append(load_adapter(place, name=name, near=near))
        else:
            chosen.append(replace(place, name=name or place.name))
    return chosen


def with_site_map(adapter: Adapter, base: Base) -> Adapter:
    """Return an adapter that records the site map of its sites, or that there was none."""
    from adapter_export.sites.site_map import SITE_MAP_KEY

    given = None if base.given is None else base.given.digest
    return replace(adapter, training={**adapter.training, SITE_MAP_KEY: given})


def check_site_map(adapters: Iterable[Adapter], sites: GivenSites | None) -> None:
    """Reject an adapter made with another site map: its sites may be other places with the same names."""
    digest = None if sites is None else sites.digest
    for adapter in adapters:
        record = _site_map_of(adapter)
        if record and digest not in record.values():
            raise AdapterError(
                "was made with a different site map, or without one",
                where=f"adapter `{adapter.name}`",
                found=next(iter(record.values())) or "no site map",
                expected=digest or "no site map",
                fix="pass the site map that it was made with: " + argument("site_map", words="FILE"),
            )


def _site_map_of(adapter: Adapter) -> dict[str, str | None]:
    """Return the site map in an adapter's record; empty for adapters that another package made."""
    from adapter_export.sites.site_map import SITE_MAP_KEY

    record = adapter.training if SITE_MAP_KEY in adapter.training else adapter.training.get("settings")
    return {SITE_MAP_KEY: record.get(SITE_MAP_KEY)} if isinstance(record, Mapping) else {}


def composition_record(record: Mapping[str, Any], members: Sequence[Adapter]) -> dict[str, Any]:
    """Return a composition's record with facts about its members: digests of weights, training data and site maps.

    Raises:
        AdapterError: the members have different site maps.
    """
    from adapter_export.format.tensors import tensor_bytes
    from adapter_export.graph.compose import COMPOSITION, data_of

    maps = {adapter.name: found for adapter in members if (found := _site_map_of(adapter))}
    if len({digest for found in maps.values() for digest in found.values()}) > 1:
        raise AdapterError(
            "the members of a composition were made with different site maps",
            found=", ".join(f"`{name}`: {next(iter(one.values())) or 'none'}" for name, one in maps.items()),
            fix="compose adapters with the same site map",
        )
    composition = dict(record[COMPOSITION])
    composition["members"] = [
        {
            **fact,
            "weights_sha256": hashlib.sha256(tensor_bytes(adapter.weights)).hexdigest(),
            **({"data": data} if (data := data_of(adapter.training)) else {}),
        }
        for fact, adapter in zip(composition["members"], members, strict=True)
    ]
    return {**record, COMPOSITION: composition, **next(iter(maps.values()), {})}

"""Where adapters are: `--adapters a,b` as folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_export.errors import AdapterError, FileError, UsageError
from adapter_export.sites.given import SITE_MAP_KEY

if TYPE_CHECKING:
    from adapter_export.cli.sources import Source
    from adapter_export.graph.adapter import Adapter
    from adapter_export.sites.given import GivenSites

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

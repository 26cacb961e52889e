"""Adapters: read from folders, written, and completed with facts about their base and their task."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from adapter_export.api.adapters.task_facts import with_facts
from adapter_export.api.models.base import Address, Base, PathLike
from adapter_export.errors import (
    AdapterError,
    FileError,
    OtherModulesError,
    UsageError,
    argument,
    command,
    quoted,
)
from adapter_export.graph.ops import POOLINGS
from adapter_export.hub.address import Located, is_remote, locate
from adapter_export.reporting import Reporter

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.importers.base_view import ImportRequest
    from adapter_export.importers.tensor_map import Imported, Tensors
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
    found = list({path.resolve(): path for path in adapters}.values())
    if len(found) > 1:
        raise AdapterError(
            "matches several adapters",
            where=f"`{place}`",
            found=quoted(found),
            fix=f"pass a folder, such as `{found[0].resolve()}`",
        )
    if found:
        return found[0]
    there = [path for path in candidates if path.exists()]
    looked = quoted(candidates)
    raise FileError(
        "is not an adapter",
        where=f"`{place}`",
        found=f"`{there[0]}` without `{_FILES[0]}`" if there else "nothing",
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
    given = None if sites is None else sites.digest
    for adapter in adapters:
        record = _site_map_of(adapter)
        if record and given not in record.values():
            raise AdapterError(
                "was made with a different site map, or without one",
                where=f"adapter `{adapter.name}`",
                found=next(iter(record.values())) or "no site map",
                expected=given or "no site map",
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


def import_request(folder: Path, name: str | None, member: str | None, by_number: bool) -> ImportRequest:
    """Return the request of an import; pickled tensors can be read if torch is installed."""
    from adapter_export.importers.base_view import ImportRequest

    request = ImportRequest(name or member or folder.resolve().name, member, by_number)
    if find_spec("torch") is None:
        return request

    def read_pickle(path: Path) -> Tensors:  # deferred: torch takes a second to load, and most files are not pickles
        from adapter_export.torch_backend.base.pickles import read_torch_file

        return read_torch_file(path)

    return replace(request, read_pickle=read_pickle)


def last_token_notes(adapter: Adapter, base: Base) -> tuple[str, ...]:
    """Return a note if a transformers head that reads the last token may read another token here.

    transformers reads the last token whose id is not `pad_token_id`; the exported head reads the last token of the
    mask.

    Raises:
        AdapterError: the tokenizer ends texts with that id, so the two never read the same token.
    """
    reads = adapter.head is not None and any(node.op == POOLINGS["last"].name for node in adapter.head.graph.nodes)
    if not reads or base.tokenizer is None:
        return ()
    from adapter_export.format.model_config import padding_id
    from adapter_export.text import ending_token

    ending = ending_token(base.tokenizer)
    padding = None if base.config is None else padding_id(base.config)
    if ending is None or (padding is not None and padding != ending):
        return ()
    if padding is None:
        return (
            f"the tokenizer ends texts with token {ending}, which the head reads: if that is the `pad_token_id` of "
            "the model, transformers reads the token before it",
        )
    raise AdapterError(
        "has a head that skips padding, but the tokenizer of its base ends texts with the padding token",
        where=adapter.name,
        found=f"`pad_token_id` {padding}",
        expected="a token that does not end texts",
        fix="train it with another padding token, or import it without the head:  " + argument("without_head", True),
    )


def base_of_import(base: Base | Address | None, found: Located) -> Base | Address:
    """Return the base that an adapter of another library is imported for.

    Raises:
        UsageError: there is none; the message includes its name in the adapter's configuration.
    """
    if base is not None:
        return base
    from adapter_export.format.model_config import named_base

    named = named_base(found.path)
    raise UsageError(
        "importing an adapter requires the model it was trained on",
        where=found.asked,
        found="no " + argument("base"),
        fix="pass the model: " + argument("base", words="MODEL")
        if named is None
        else f"its configuration names `{named}`: pass " + argument("base", named) + ", or a capture of it",
    )


@contextmanager
def naming_base(folder: Path) -> Iterator[None]:
    """Add the base named in an adapter's configuration to an `OtherModulesError` raised by the block."""
    try:
        yield
    except OtherModulesError as error:
        from adapter_export.format.model_config import named_base

        named = named_base(folder)
        if named is not None:
            hint = "check that " + argument("base") + f" is `{named}`, which its configuration names"
            error.fix = hint if error.fix is None else error.fix + "; " + hint
            error.args = (error.sentence(),)
        raise


def finished(
    imported: Imported, base: Base, facts: Mapping[str, Any], reporter: Reporter, found: Located | None = None
) -> Adapter:
    """Report the notes, and return the adapter with the facts of its task, its base's site map and its source.

    Raises:
        AdapterError: its head reads a mask that the base combines with a past.
    """
    _check_mask(imported.adapter, base)
    for note in imported.notes:
        reporter.warn(note)
    adapter = with_facts(imported.adapter, facts)
    if found is not None and found.source is not None:
        record = {**adapter.training.get("imported_from", {}), "source": found.source}
        adapter = replace(adapter, training={**adapter.training, "imported_from": record})
    return with_site_map(adapter, base)


def _check_mask(adapter: Adapter, base: Base) -> None:
    """Reject a head that pools tokens on a base with a cache, before `build` does: its mask covers past tokens."""
    pools = adapter.head is not None and "mask" in adapter.head.graph.inputs
    if pools and any(record.role == "cache" for record in base.inputs):
        raise AdapterError(
            "has a head that pools the tokens of a text, but the base was captured with its cache, for generation",
            where=f"adapter `{adapter.name}`",
            expected="a base without a cache",
            fix="capture the bare model ("
            + argument("bare", True)
            + "), or import the adapter without its head: "
            + argument("without_head", True),
        )

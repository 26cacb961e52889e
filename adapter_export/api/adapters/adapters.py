"""Adapters: read them from folders, write them, compose them, make them of tensors or of other libraries' files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Unpack

from adapter_export.api.adapters.kinds import kind_names, packed_options
from adapter_export.api.adapters.task_facts import TaskFacts, with_facts
from adapter_export.api.models.base import Base, OpenOptions, PathLike, recorded_base
from adapter_export.errors import AdapterError, FileError, Note, UsageError, argument, command, quoted
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.graph.task_names import DEFAULT_TYPE, ProblemType
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Option, OptionsOf
from adapter_export.reporting import SILENT, Reporter

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.graph.adapter import Adapter
    from adapter_export.importers.base_view import ImportRequest
    from adapter_export.importers.tensor_map import Imported, Tensors
    from adapter_export.sites.site_map import GivenSites

    Adapters: TypeAlias = Sequence[Adapter | PathLike] | Mapping[str, Adapter | PathLike]
    """Adapters or their folders; keys of a mapping, and `NAME=FOLDER`, rename them."""

WithoutHead = Annotated[bool, "Leave its prediction head out."]
Labels = Annotated[tuple[str, ...] | None, "The names of the head's classes, in the order of the logits."]
ByNumber = Annotated[
    bool, "Match layers by their numbers where the base has other names of modules or none, or another architecture."
]

_FILES = ("adapter_graph.json", "weights.safetensors")


def load_adapter(place: PathLike, *, name: str | None = None, near: PathLike | None = None) -> Adapter:
    """Read an adapter, and believe nothing before it is checked.

    Args:
        place: its folder, or a name that is looked up in the current folder, beside `near` and in `./adapters`.
        name: renames it.
        near: a path beside which a name is looked up, too, such as that of the base.

    Raises:
        FileError: no adapter is there.
        AdapterError: a name leads to several adapters.
        FormatError: a file breaks the format; `VersionError`, `HashError` and `TensorError` are kinds of it.
    """
    from adapter_export.format.adapter_files import read_adapter

    adapter = read_adapter(_find(str(place), Path() if near is None else Path(near)))
    return replace(adapter, name=name) if name else adapter


def _find(place: str, near: Path) -> Path:
    """Return the folder that a path or a name leads to; one of its files is enough, the reader names the other."""
    candidates = [Path(place)]
    if Path(place).name == place:
        candidates = list(dict.fromkeys([*candidates, near.parent / place, Path("adapters", place)]))
    adapters = (path for path in candidates if any((path / name).is_file() for name in _FILES))
    found = list({path.resolve(): path for path in adapters}.values())
    if len(found) > 1:
        raise AdapterError(
            "is the name of several adapters",
            where=f"`{place}`",
            found=quoted(found),
            fix=f"give the folder itself, such as `{found[0].resolve()}`",
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
        fix=f"make one with {command('train', 'train')} or {command('pack', 'pack')}",
    )


def save(adapter: Adapter, folder: PathLike, *, force: bool = False) -> Path:
    """Write an adapter folder; the same adapter always gives the same bytes.

    Raises:
        OutputExistsError: `folder` exists and `force` is not given.
        WriteError: the operating system refused; `folder` is as it was before.
    """
    from adapter_export.format.adapter_files import write_adapter

    write_adapter(adapter, Path(folder), force=force)
    return Path(folder)


def adapters_of(adapters: Adapters, base: Base) -> tuple[Adapter, ...]:
    """Read adapters for a base; two of one name, or one made with another site map, are an `AdapterError`."""
    chosen = load_members(adapters, base.path)
    counts = Counter(adapter.name for adapter in chosen)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise AdapterError(
            "two adapters have one name",
            found=", ".join(f"`{name}` {counts[name]} times" for name in twice),
            expected="different names",
            fix="leave one out, or rename it: `other=FOLDER`",
        )
    check_site_map(chosen, base.given)
    return tuple(chosen)


def load_members(adapters: Adapters, near: Path | None = None) -> list[Adapter]:
    """Read adapters from their folders, looked up as `load_adapter` does; an empty name is a `UsageError`."""
    chosen = []
    for name, each in adapters.items() if isinstance(adapters, Mapping) else ((None, each) for each in adapters):
        place: Adapter | PathLike = each
        if isinstance(each, str):
            renamed, _, place = each.rpartition("=")
            name = name or renamed
            if not place:
                raise UsageError("an adapter without a name", found=f"`{each}`", expected="its folder, or its name")
        if isinstance(place, str | Path):
            chosen.append(load_adapter(place, name=name, near=near))
        else:
            chosen.append(replace(place, name=name or place.name))
    return chosen


def with_site_map(adapter: Adapter, base: Base) -> Adapter:
    """Return an adapter that records the site map that its sites were looked up with, or that there was none."""
    from adapter_export.sites.site_map import SITE_MAP_KEY

    given = None if base.given is None else base.given.digest
    return replace(adapter, training={**adapter.training, SITE_MAP_KEY: given})


def check_site_map(adapters: Iterable[Adapter], sites: GivenSites | None) -> None:
    """Refuse an adapter that was made with another site map: its sites may be other places of the same names."""
    given = None if sites is None else sites.digest
    for adapter in adapters:
        record = _site_map_of(adapter)
        if record and given not in record.values():
            raise AdapterError(
                "was made with another site map, or without one",
                where=f"adapter `{adapter.name}`",
                found=next(iter(record.values())) or "no site map",
                expected=given or "no site map",
                fix=f"give the site map that it was made with: {argument('site_map', words='FILE')}",
            )


def _site_map_of(adapter: Adapter) -> dict[str, str | None]:
    """Return what an adapter's record says of its site map; nothing for adapters that this package did not make."""
    from adapter_export.sites.site_map import SITE_MAP_KEY

    record = adapter.training if SITE_MAP_KEY in adapter.training else adapter.training.get("settings")
    return {SITE_MAP_KEY: record.get(SITE_MAP_KEY)} if isinstance(record, Mapping) else {}


def compose(
    how: Literal["stack", "average", "fuse"],
    adapters: Adapters,
    *,
    name: str,
    weights: Annotated[
        tuple[float, ...] | Mapping[str, float] | None,
        "Of `average`, with the sum 1, and `fuse`; equal ones of sum 1 if not given.",
    ] = None,
    residual: Annotated[
        Literal["once", "literal"] | None,
        "Of `fuse`: whether `h` counts once, or once more for each weight.  [default: once]",
    ] = None,
    head: Annotated[str | None, Option("The member whose head it gets; none if not given.", "NAME")] = None,
) -> Adapter:
    """Make one adapter of several: one after the other, their average, or their weighted fusion.

    Args:
        how: `stack`, `average` or `fuse`.
        adapters: the members, in their order.
        name: what users will call the new adapter.

    Raises:
        UsageError: an option that this composition does not have, or weights that do not fit.
        AdapterError: the members do not go together.
        FileError, FormatError: one cannot be read.
    """
    from adapter_export.graph.compose import average, stack, weighted_fusion

    given = {key: value for key, value in (("weights", weights), ("residual", residual)) if value is not None}
    ways: Mapping[str, tuple[Callable[..., Adapter], tuple[str, ...]]] = {
        "stack": (stack, ()),
        "average": (average, ("weights",)),
        "fuse": (weighted_fusion, ("weights", "residual")),
    }
    make, own = ways[how]
    strangers = [key for key in given if key not in own]
    if strangers:
        raise UsageError(f"`{how}` has no such option", found=", ".join(map(argument, strangers)))
    members = load_members(adapters)
    made = make(*members, name=name, head=head, **given)
    return replace(made, training=composition_record(made.training, members))


def composition_record(record: Mapping[str, Any], members: Sequence[Adapter]) -> dict[str, Any]:
    """Return a composition's record with the sha256 of its members' weights and their site map, which must be one."""
    from adapter_export.format.tensors import tensor_bytes
    from adapter_export.graph.compose import COMPOSITION

    maps = {adapter.name: found for adapter in members if (found := _site_map_of(adapter))}
    if len({digest for found in maps.values() for digest in found.values()}) > 1:
        raise AdapterError(
            "the members of a composition were made with different site maps",
            found=", ".join(f"`{name}`: {next(iter(one.values())) or 'none'}" for name, one in maps.items()),
            fix="compose adapters of one site map",
        )
    composition = dict(record[COMPOSITION])
    composition["members"] = [
        {**fact, "weights_sha256": hashlib.sha256(tensor_bytes(adapter.weights)).hexdigest()}
        for fact, adapter in zip(composition["members"], members, strict=True)
    ]
    return {**record, COMPOSITION: composition, **next(iter(maps.values()), {})}


def pack(
    weights: PathLike | Mapping[str, np.ndarray],
    base: Base | PathLike,
    *,
    kind: Annotated[str, Option("What is computed, and where.", kind_names)],
    labels: Labels = None,
    pooling: Annotated[
        Literal["mean", "first"], "What the head reads: the mean over the tokens, or the first token."
    ] = "mean",
    task: Annotated[ProblemType | None, f"What the head answers, if there is one.  [default: {DEFAULT_TYPE}]"] = None,
    head_activation: Annotated[
        str, Option("The function behind each of its dense layers.", choices=ACTIVATIONS)
    ] = "tanh",
    l2_normalise: Annotated[bool, "Embeddings of length 1."] = False,
    name: Annotated[str | None, "What users will call it; the output's name if not given."] = None,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    reporter: Reporter = SILENT,
    **options: Annotated[Any, OptionsOf(packed_options, TaskFacts)],
) -> Adapter:
    """Make an adapter of tensors that are named after sites; `docs/adapters.md` has the tensors of every kind.

    Args:
        weights: tensors `<site>.<parameter>`, stored [in, out], or a safetensors file of them.
        base: the model that the adapter was trained on.
        reporter: receives notes on what was done to the tensors.

    Raises:
        UsageError: the kind is not known, or something is needed that the tensors do not show.
        TensorError: listing every tensor that is missing, left over, misshapen or not made of finite numbers.
        AdapterError: the tensors are not of this kind, or do not fit the base.
        FileError, FormatError: the file cannot be read.
    """
    from adapter_export.format.tensors import read_tensors
    from adapter_export.graph.heads import HeadOptions
    from adapter_export.graph.kinds import kind_named
    from adapter_export.importers import plain_tensors as plain

    given = {key: value for key, value in options.items() if value is not None}
    facts = {key: given.pop(key) for key in TaskFacts.__annotations__ if key in given}
    kind_named(kind).check_known(given)
    tensors = weights if isinstance(weights, Mapping) else read_tensors(Path(weights))
    opened = recorded_base(base, OpenOptions(site_map, trust_pickle))
    packed = plain.pack(
        tensors,
        plain.fitting_kind(tensors, kind, **given),
        opened.view,
        name=name or (kind if isinstance(weights, Mapping) else Path(weights).stem),
        labels=labels,
        task=task,
        look=HeadOptions(pooling, activation=head_activation, l2_normalise=l2_normalise),
    )
    return _finished(packed, opened, facts, reporter)


def import_adapterhub(
    folder: PathLike,
    base: Base | PathLike,
    *,
    name: str | None = None,
    member: str | None = None,
    by_number: ByNumber = False,
    without_head: WithoutHead = False,
    reporter: Reporter = SILENT,
    **facts: Unpack[TaskFacts],
) -> Adapter:
    """Make an adapter of one that AdapterHub's library saved, or of a setup of several.

    Args:
        folder: has `adapter_config.json` and `pytorch_adapter.bin` or `adapter.safetensors`, of which only tensors are
            read; or it is what `save_adapter_setup` wrote.
        base: the model that it was trained on.
        name: what users will call it; the folder's name if not given.
        member: which one, in a folder of several.
        reporter: receives notes on what was done on the way.

    Raises:
        UsageError: the folder has several adapters and none is named.
        AdapterError: it does not fit the base, or cannot be expressed; the message names what.
        FileError, FormatError: the folder's files break their format.
    """
    from adapter_export.importers import adapterhub

    opened, source = recorded_base(base), Path(folder)
    request = _request(source, name, member, by_number)
    imported = adapterhub.import_adapterhub(source, opened.view, request, with_head=not without_head)
    return _finished(imported, opened, facts, reporter)


def import_peft(
    folder: PathLike,
    base: Base | PathLike,
    *,
    name: str | None = None,
    member: str | None = None,
    task: Annotated[
        ProblemType | None, "What the head answers, where neither the folder nor the model says it."
    ] = None,
    labels: Labels = None,
    pooling: Annotated[
        Literal["first", "mean", "tokens"] | None,
        "What the head reads, where that is not known: the first token, the mean, or each token.",
    ] = None,
    activation: Annotated[
        str | None, Option("The function behind the head's dense layer, likewise.", choices=ACTIVATIONS)
    ] = None,
    by_number: ByNumber = False,
    dense: Annotated[
        bool, "Allow a change of full rank, which makes an adapter as large as the layers that it acts on."
    ] = False,
    without_head: WithoutHead = False,
    reporter: Reporter = SILENT,
    **facts: Unpack[TaskFacts],
) -> Adapter:
    """Make an adapter of one that PEFT saved, of every type whose change of the weights is fixed.

    Args:
        folder: has `adapter_config.json` and `adapter_model.safetensors` or `adapter_model.bin`, of which only tensors
            are read.
        base: the model that it was trained on.
        name: what users will call it; the folder's name if not given.
        member: which one, in a folder of several.
        reporter: receives notes on what was done on the way.

    Raises:
        UsageError: what is said of the head does not fit.
        AdapterError: it does not fit the base, or cannot be expressed; the message names what.
        FileError, FormatError: the folder's files break their format.
    """
    from adapter_export.format.model_config import known_labels, known_problem
    from adapter_export.importers import peft
    from adapter_export.importers.peft.head import HeadChoice

    opened, source = recorded_base(base), Path(folder)
    head = HeadChoice(pooling, activation, None if labels is None else tuple(labels), leave_out=without_head, task=task)
    if opened.config is not None:
        head = replace(head, known_labels=known_labels(opened.config), known_problem=known_problem(opened.config))
    request = _request(source, name, member, by_number)
    imported = peft.import_peft(source, opened.view, request, head=head, dense=dense)
    return _finished(imported, opened, facts, reporter)


def _request(folder: Path, name: str | None, member: str | None, by_number: bool) -> ImportRequest:
    """Return the request of an import; pickled tensors are read where torch is installed."""
    from adapter_export.importers.base_view import ImportRequest

    request = ImportRequest(name or member or folder.resolve().name, member, by_number)
    if find_spec("torch") is None:
        return request

    def read_pickle(path: Path) -> Tensors:  # most files are none, and torch takes a second to be loaded
        from adapter_export.torch_backend.base.pickles import read_torch_file

        return read_torch_file(path)

    return replace(request, read_pickle=read_pickle)


def _finished(imported: Imported, base: Base, facts: Mapping[str, Any], reporter: Reporter) -> Adapter:
    """Report the notes, and return the adapter with the facts of its task and the site map of its base."""
    for note in imported.notes:
        reporter.note(Note(note))
    return with_site_map(with_facts(imported.adapter, facts), base)

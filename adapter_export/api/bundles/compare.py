"""Adapters, bundles and models compared on the same labelled texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, cast

from adapter_export.api.adapters.adapters import load_adapter
from adapter_export.api.bundles.bundles import PRECISIONS, AllowBaseMismatch, OnProgress, build
from adapter_export.api.bundles.evaluate import MEDIA, labelled, reader_of
from adapter_export.api.models.base import Base, PathLike, open_base, require, silent
from adapter_export.errors import DataError, RequestError, UsageError, argument, command, quoted, within
from adapter_export.option import GROUP, LABEL, PAIR, SKIP_INCOMPLETE, START, TEXT, Option
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.analysis.comparison import Comparison, Contestant
    from adapter_export.analysis.eval_rows import Asked
    from adapter_export.analysis.member_attention import Attention
    from adapter_export.bundle.opened import OpenedBundle
    from adapter_export.format.manifest import Precision
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.tasks import Task
    from adapter_export.runtime import Bundle
    from adapter_export.runtime.answerer import Reader


@dataclass(frozen=True)
class _Entry:
    """An adapter in a bundle, where it came from, and what it is called among the others."""

    source: str
    bundle: OpenedBundle
    adapter: str
    name: str


def compare(
    *contestants: Bundle | Base | Adapter | PathLike,
    data: PathLike,
    base: Base | PathLike | None = None,
    only: Annotated[
        Sequence[str], Option("Compare this adapter, and others that are named so, alone. Repeatable.", "ADAPTER")
    ] = (),
    precisions: Annotated[
        tuple[str, ...], f"What adapters and models are built in: {', '.join(PRECISIONS)}. A bundle has its own."
    ] = ("fp32",),
    allow_base_mismatch: AllowBaseMismatch = False,
    text: Annotated[str, TEXT] = "text",
    pair: Annotated[str | None, PAIR] = None,
    label: Annotated[str, LABEL] = "label",
    start: Annotated[str | None, START] = None,
    group: Annotated[str | None, GROUP] = None,
    skip_incomplete: Annotated[bool, SKIP_INCOMPLETE] = False,
    limit: Annotated[int | None, Option("Only the first rows.", "N", least=1)] = None,
    rounds: Annotated[int, Option("How often calls are timed, in turns; 0 for never.", "N", least=0)] = 15,
    resamples: Annotated[int, Option("How often rows are drawn for the intervals; 0 for none.", "N", least=0)] = 1000,
    seed: Annotated[int, Option("Of these draws.", "N", least=0)] = 0,
    report: Annotated[PathLike | None, Option("Write a page of HTML, complete in itself.", "FILE")] = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Compare adapters, bundles and models on the same labelled texts, in ONNX Runtime.

    Of a bundle each adapter takes part, of a model its base head. Adapters and models are built as bundles that are
    thrown away, those of one topology together. Of a fusion, the mean attention weights of its members are shown.

    Args:
        contestants: bundles, adapters, models, or their folders and files. Two of one name are told apart by where
            they are.
        data: labelled texts, as `evaluate` reads them.
        base: the model of the adapters.
        force: replace what is at `report`.
        on_progress: is told each step before it begins.

    Raises:
        UsageError: there is a single contestant, or tasks differ, or arguments do not go together.
        InputError: a contestant or the data cannot be used; a label that one of the adapters does not have is a
            `DataError` that names the adapter.
        OutputExistsError, WriteError: the page cannot be written.
    """
    for library in ("sklearn", "scipy", "seqeval"):
        require(library, "evaluate", "`compare`")
    import onnxruntime as ort

    from adapter_export.analysis.comparison import Setting, comparison, timed
    from adapter_export.analysis.eval_rows import ask, by_bundle, judge, shown_text
    from adapter_export.analysis.evaluation_page import comparison_page
    from adapter_export.bundle.ablation import effects, note_of
    from adapter_export.format.labelled import Columns, data_digest

    say = on_progress or silent
    if report is not None:
        Output(Path(report), force).ensure_writable()
    if not Path(data).exists():
        raise DataError("is not there", where=data, expected="labelled texts", fix="check the path")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="adapter-export-")))
        maker = _Maker(folder, None if base is None else open_base(base), precisions, allow_base_mismatch, only, say)
        entries, notes = _entries(maker, contestants)
        tasks = [entry.bundle.runtime_session().answering(entry.adapter) for entry in entries]
        _check_tasks(entries, tasks)
        task = tasks[0]
        columns = Columns(task.input if text == "text" and task.input in MEDIA else text, pair, label, start)
        rows = labelled(Path(data), task, columns, skip_incomplete, {"group": group})
        digest, rows = data_digest(Path(data), rows), rows[:limit]
        readers = {id(entry.bundle): reader_of(entry.bundle, task) for entry in entries}
        asked = [
            ask(rows, readers[id(entry.bundle)], entry.adapter, own, group)
            for entry, own in zip(entries, tasks, strict=True)
        ]
        _check_labels(Path(data), entries, asked)
        repeated = len(rows) - len(asked[0].different())
        if repeated:
            notes.append(
                f"{repeated:,} rows repeat an earlier one, and the tests take rows as independent of each other"
            )
        results = []
        for entry, own in zip(entries, asked, strict=True):
            say(f"answering {len(own.rows):,} rows with `{entry.name}`")
            results.append(by_bundle(own, readers[id(entry.bundle)], entry.adapter))
        judged = []
        for entry, own, result in zip(entries, asked, results, strict=True):
            with within(f"`{entry.name}`"):
                judged.append(judge(own, result))
        fusions = _fusions(entries, asked, readers, say)
        described = [_described(entry) for entry in entries]
        tokens = None
        if rounds:
            say(f"timing {len(entries)} contestants, {rounds} rounds")
            at = _usual(asked[0])
            calls, tokens = _calls(entries, asked, readers, at)
            described = timed(described, calls, rounds)
        for entry, own in zip(entries, asked, strict=True):
            changes = map(note_of, effects(entry.bundle, [entry.adapter]))
            notes += [f"`{entry.name}`: {note}" for note in (*own.notes(), *changes) if note is not None]
        setting = Setting(task.type, Path(data).name, digest, resamples, seed, rounds, tokens)
        lines = [(row.line, shown_text(row)) for row in rows]
        runtime = f"onnxruntime {ort.__version__}"
        say("drawing rows for the intervals")
        made = comparison(setting, described, judged, lines, runtime, fusions=fusions, notes=notes)
    if report is not None:
        with Output(Path(report), force).file() as temporary:
            temporary.write_text(comparison_page(made), encoding="utf-8")
    return made


@dataclass
class _Maker:
    """Opens contestants, and builds those that are no bundles."""

    folder: Path
    base: Base | None
    precisions: tuple[str, ...]
    allow_mismatch: bool
    only: Sequence[str]
    say: OnProgress

    def __post_init__(self) -> None:
        unknown = [one for one in self.precisions if one not in PRECISIONS]
        if unknown or not self.precisions or len(set(self.precisions)) < len(self.precisions):
            raise UsageError(
                "are no different precisions",
                where=argument("precisions"),
                found=quoted(self.precisions) or "none",
                expected=f"some of {', '.join(PRECISIONS)}",
            )
        self.built = 0

    def bundles(
        self, base: Base, adapters: dict[str, Adapter], base_head: bool
    ) -> Iterator[tuple[Precision, OpenedBundle]]:
        """Build a bundle in each precision."""
        from adapter_export.bundle.opened import OpenedBundle

        if base.tokenizer is None and base.media is None:
            raise RequestError(
                "the model has no tokenizer, so what is built of it reads no texts",
                where=base.path,
                fix=f"build a bundle with a {argument('tokenizer')}, and compare that",
            )
        for precision in cast("tuple[Precision, ...]", self.precisions):
            self.built += 1
            made = build(
                base,
                adapters,
                self.folder / f"{self.built}",
                without_base_head=not base_head,
                allow_base_mismatch=self.allow_mismatch,
                base_precision=precision,
                variants=("slots",),
                on_progress=self.say,
                on_note=lambda _: None,  # what changes nothing is said of every contestant
            )
            yield precision, OpenedBundle(made.folder, made.manifest)


def _entries(
    maker: _Maker, contestants: Sequence[Bundle | Base | Adapter | PathLike]
) -> tuple[list[_Entry], list[str]]:
    """Open all contestants, in the order in which they were given, and name them apart."""
    from adapter_export.bundle.opened import OpenedBundle
    from adapter_export.graph.adapter import Adapter
    from adapter_export.runtime.bundle import Bundle

    _check_apart(contestants)
    notes: list[str] = []
    found: dict[int, list[tuple[_Entry, Path | None, str]]] = {}
    adapters: dict[int, tuple[Adapter, Path | None]] = {}
    models: dict[int, tuple[Base, str]] = {}
    for at, one in enumerate(contestants):
        path = Path(one) if isinstance(one, str | Path) else None
        if isinstance(one, Bundle) or (path is not None and (path / "manifest.json").is_file()):
            place = one.folder if isinstance(one, Bundle) else cast(Path, path)
            opened = OpenedBundle.open(place)
            found[at] = [
                (_Entry(str(place), opened, name, name), place, "") for name in _answering(opened, maker.only, notes)
            ]
        elif isinstance(one, Adapter):
            adapters[at] = one, None
        elif path is not None and _is_adapter(path, maker.base):
            adapters[at] = load_adapter(str(one), near=None if maker.base is None else maker.base.path), path
        else:
            base = open_base(one)
            models[at] = base, _base_head(base)
    there = [entry.adapter for own in found.values() for entry, *_ in own]
    _check_enough(
        there, [adapter.name for adapter, _ in adapters.values()] + [head for _, head in models.values()], maker
    )
    for at, (base, name) in models.items():
        if not maker.only or name in maker.only:
            found[at] = list(_of_model(maker, base, name))
    chosen = {at: pair for at, pair in adapters.items() if not maker.only or pair[0].name in maker.only}
    for at, entry, precision in _of_adapters(maker, chosen):
        found.setdefault(at, []).append((entry, adapters[at][1], precision))
    return _named([one for at in sorted(found) for one in found[at]]), notes


def _check_enough(there: Sequence[str], to_build: Sequence[str], maker: _Maker) -> None:
    """Refuse names that nobody has, and a single contestant, before anything is built."""
    known = [*there, *(name for name in to_build for _ in maker.precisions)]
    if not to_build and maker.precisions != ("fp32",):
        raise UsageError(
            "only adapters and models are built in a precision; a bundle has its own",
            where=argument("precisions"),
            found=quoted(maker.precisions),
            fix="leave it out, or give the adapters themselves with their model",
        )
    missing = [name for name in maker.only if name not in known]
    if missing:
        names = quoted(dict.fromkeys(known)) or "other names"
        raise UsageError("no such adapter", where=argument("only"), found=f"`{missing[0]}`", expected=names)
    taking = [name for name in known if not maker.only or name in maker.only]
    if len(taking) < 2:
        alone = command("evaluate(BUNDLE, FILE)", "evaluate BUNDLE --data FILE")
        raise UsageError(
            "there is nothing to compare with",
            found=f"`{taking[0]}` alone" if taking else "no adapter that answers",
            expected="at least two contestants",
            fix=f"give another one, or measure it alone: {alone}",
        )


def _check_tasks(entries: Sequence[_Entry], tasks: Sequence[Task]) -> None:
    """Refuse tasks that cannot be measured by the same rows."""
    kinds: dict[tuple[str, str], str] = {}
    for entry, task in zip(entries, tasks, strict=True):
        kinds.setdefault((task.type, task.input), entry.name)
    if len(kinds) > 1:
        found = (f"`{name}` answers `{kind}` of `{given}`" for (kind, given), name in kinds.items())
        raise UsageError(
            "contestants have different tasks",
            found=", ".join(found),
            expected="one task",
            fix=f"name the adapters to compare: {argument('only', words='NAME')}, as often as needed",
        )


def _check_apart(contestants: Sequence[object]) -> None:
    """Refuse a contestant that is given twice."""
    paths = Counter(Path(one).resolve() for one in contestants if isinstance(one, str | Path))
    twice = [path for path, count in paths.items() if count > 1]
    if twice:
        raise UsageError("a contestant is given twice", found=f"`{twice[0]}`", fix="leave one of them out")


def _is_adapter(path: Path, base: Base | None) -> bool:
    """Whether a path is an adapter's folder, or a name that is looked up beside the base."""
    if (path / "adapter_graph.json").is_file() or (path / "weights.safetensors").is_file():
        return True
    return base is not None and not path.exists()


def _answering(bundle: OpenedBundle, only: Sequence[str], notes: list[str]) -> Iterator[str]:
    """Yield the adapters of a bundle that answer, of those that are asked for."""
    for record in bundle.manifest.adapters:
        if only and record.name not in only:
            continue
        if record.task is None:
            what = "no head" if record.output is None else "a head without a task"
            if only:
                raise RequestError(
                    "nobody knows what the answers of this adapter mean",
                    where=f"{bundle.folder}, adapter `{record.name}`",
                    found=what,
                    fix="build the bundle with an adapter whose head has a task",
                )
            notes.append(f"`{record.name}` is left out: it has {what}")
        else:
            yield record.name


def _base_head(base: Base) -> str:
    """The name of the head that a model has of its own."""
    own = base.base_head
    if own is None or own.task is None:
        raise RequestError(
            "has no head of its own that answers, so it cannot be compared alone",
            where=base.path or "a module",
            found="a bare model" if own is None else "a head without a task",
            fix=f"give adapters, and this as their model: {argument('base')}",
        )
    return own.name


def _of_model(maker: _Maker, base: Base, head: str) -> Iterator[tuple[_Entry, Path | None, str]]:
    """Yield the head that a model has of its own, in each precision."""
    place = base.path
    maker.say(f"building {place or 'a model'} with its base head")
    for precision, bundle in maker.bundles(base, {}, base_head=True):
        yield _Entry(str(place or head), bundle, head, head if place is None else place.stem), place, precision


def _of_adapters(maker: _Maker, adapters: dict[int, tuple[Adapter, Path | None]]) -> Iterator[tuple[int, _Entry, str]]:
    """Build adapters, those of one topology in one bundle, so that none pays for the slots of another."""
    if not adapters:
        return
    base = maker.base
    if base is None:
        name = next(iter(adapters.values()))[0].name
        raise UsageError(
            "an adapter runs in its model",
            found=f"`{name}` without one",
            fix=f"give its model: {argument('base', words='MODEL')}",
        )
    from adapter_export.graph.graph import first_free
    from adapter_export.onnx_backend.slots import plan_slots

    groups: dict[str, dict[int, Adapter]] = {}
    for at, (adapter, _) in adapters.items():
        if adapter.task is None:
            raise RequestError(
                "nobody knows what the answers of this adapter mean",
                where=f"adapter `{adapter.name}`",
                found="no head" if adapter.head is None else "a head without a task",
                fix="give one whose head has a task",
            )
        groups.setdefault(plan_slots([adapter], base.sites.complete).digest, {})[at] = adapter
    for group in groups.values():
        apart: dict[str, tuple[int, Adapter]] = {}
        for at, adapter in group.items():
            name = first_free(adapter.name.casefold(), apart)
            apart[name] = (at, adapter if name == adapter.name.casefold() else replace(adapter, name=name))
        maker.say(f"building {len(apart)} adapters of one topology")
        for precision, bundle in maker.bundles(base, {one.name: one for _, one in apart.values()}, base_head=False):
            for at, adapter in apart.values():
                source = str(adapters[at][1] or adapters[at][0].name)
                yield at, _Entry(source, bundle, adapter.name, adapters[at][0].name), precision


def _named(found: Sequence[tuple[_Entry, Path | None, str]]) -> list[_Entry]:
    """Name contestants apart: by their own names, then with their folder, their whole path, and a number."""
    several = len({precision for *_, precision in found if precision}) > 1
    endings = [f" ({precision})" if several and precision else "" for *_, precision in found]

    def candidates(entry: _Entry, place: Path | None, ending: str) -> list[str]:
        parts = [entry.name]
        if place is not None:
            near = place.name if (place / "manifest.json").is_file() else place.resolve().parent.name
            parts += [f"{near}/{entry.name}", f"{place}: {entry.name}"]
        return [part + ending for part in parts]

    names = [candidates(entry, place, ending) for (entry, place, _), ending in zip(found, endings, strict=True)]
    level = [0] * len(names)
    while True:
        now = [own[min(at, len(own) - 1)] for own, at in zip(names, level, strict=True)]
        counts = Counter(now)
        again = [index for index, name in enumerate(now) if counts[name] > 1 and level[index] + 1 < len(names[index])]
        if not again:
            break
        for index in again:
            level[index] += 1
    seen: Counter[str] = Counter()
    entries = []
    for (entry, *_), name in zip(found, now, strict=True):
        seen[name] += 1
        entries.append(replace(entry, name=name if seen[name] == 1 else f"{name} #{seen[name]}"))
    return entries


def _check_labels(data: Path, entries: Sequence[_Entry], asked: Sequence[Asked]) -> None:
    """Refuse labels that a contestant does not have, before anything is computed; the message names all of these."""
    from adapter_export.analysis.eval_rows import strangers
    from adapter_export.format.labelled import some

    unknown = {entry.name: found for entry, own in zip(entries, asked, strict=True) if (found := strangers(own))}
    if not unknown:
        return
    knowing = [entry for entry in entries if entry.name not in unknown]
    alone = f"name those that have them, such as {argument('only', [knowing[0].adapter])}, " if knowing else ""
    raise DataError(
        "holds labels that not every contestant has",
        where=f"{data}, line {min(min(found.values()) for found in unknown.values())}",
        found="; ".join(f"`{name}` has no {some(found)}" for name, found in list(unknown.items())[:3])
        + (f"; {len(unknown) - 3} more contestants" if len(unknown) > 3 else ""),
        expected=f"labels that all {len(entries)} contestants have",
        fix=f"{alone}map the labels, or name their column: {argument('label')}",
    )


def _fusions(
    entries: Sequence[_Entry], asked: Sequence[Asked], readers: dict[int, Reader], say: OnProgress
) -> list[Attention]:
    """Return what the fusions among the contestants listen to, called by their names here."""
    from adapter_export.analysis.member_attention import attention, is_fusion

    found = []
    for entry, own in zip(entries, asked, strict=True):
        if is_fusion(entry.bundle.source(entry.adapter)):
            say(f"reading the attention weights of `{entry.name}`")
            reader = readers[id(entry.bundle)]
            texts = (reader.arrays([row], entry.adapter) for one in own.read for row in one.rows)
            found.append(replace(attention(entry.bundle, entry.adapter, texts), adapter=entry.name))
    return found


def _described(entry: _Entry) -> Contestant:
    from adapter_export.analysis.comparison import Contestant

    bundle, record = entry.bundle, entry.bundle.record(entry.adapter)
    sizes = {file.path: file.bytes for file in bundle.manifest.files}
    values = bundle.slots_model.graph.initializers.values()
    graph = bundle.manifest.graphs["slots"]
    places = {str(getattr(value.const_value, "location", "")) for value in values}
    beside = {str(Path(graph).parent / place) for place in places if place}
    return Contestant(
        entry.name,
        entry.source,
        entry.adapter,
        record.kind,
        bundle.numerics.precision,
        record.parameters,
        sizes[record.onnx_adapter],
        sum(sizes.get(path, 0) for path in {graph, *beside}),
    )


def _usual(asked: Asked) -> int:
    """The place of a text of usual length: the median of their tokens; of files the first."""
    if asked.task.input in MEDIA:
        return 0
    lengths = [len(one.rows[0].encoding.ids) for one in asked.read]
    return sorted(range(len(lengths)), key=lengths.__getitem__)[len(lengths) // 2]


def _calls(
    entries: Sequence[_Entry], asked: Sequence[Asked], readers: dict[int, Reader], at: int
) -> tuple[list[Callable[[], object]], int | None]:
    """Return a call for each contestant with one text, on sessions of one thread, and the tokens of the text."""
    sessions = {}
    for entry in entries:
        key, bundle = id(entry.bundle), entry.bundle
        if key not in sessions:
            sessions[key] = bundle.served.session(threads=1)
    calls: list[Callable[[], object]] = []
    for entry, own in zip(entries, asked, strict=True):
        arrays = readers[id(entry.bundle)].arrays([own.read[at].rows[0]], entry.adapter)
        calls.append(partial(sessions[id(entry.bundle)].run, arrays, entry.adapter))
    text = asked[0].task.input not in MEDIA
    return calls, len(asked[0].read[at].rows[0].encoding.ids) if text else None

"""Contestants of `compare` and `evaluate`: adapters from bundles, and adapters and models built for the call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from adapter_export.address import Address, locate
from adapter_export.bases.adapters import load_adapter
from adapter_export.bases.base import Base
from adapter_export.bases.opening import open_base
from adapter_export.commands.bundles.build import build
from adapter_export.errors import RequestError, UsageError
from adapter_export.format.precision import known_precisions
from adapter_export.reporting import Reporter
from adapter_export.tables import number_of
from adapter_export.words import argument, command, did_you_mean, quoted

if TYPE_CHECKING:
    from adapter_export.bundle.bundle_reader import OpenedBundle
    from adapter_export.format.manifest import Manifest
    from adapter_export.format.precision import PrecisionName
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.tasks import Task
    from adapter_export.plugins.lab.contest import Contestant
    from adapter_export.runtime import Bundle
    from adapter_export.runtime.answerer import Reader


def contestants_of(bundle: OpenedBundle, names: Sequence[str], source: str) -> Iterator[Contestant]:
    """Yield the adapters of a bundle as contestants that share one reader.

    Raises:
        RequestError: an adapter has no task, or the bundle cannot read its inputs.
    """
    from adapter_export.plugins.lab.contest import Contestant

    reader: Reader | None = None
    for name in names:
        task = task_of(bundle.manifest, name, bundle.folder)
        if reader is None:
            reader = bundle.bundle.reader(task.input, bundle.runtime_session())
        yield Contestant(name, source, bundle, name, reader)


def task_of(manifest: Manifest, name: str, folder: Path) -> Task:
    """Return an adapter's task from its bundle's manifest; raise `RequestError` if it has no task."""
    (record,) = (entry for entry in manifest.adapters if entry.name == name)
    if record.task is None:
        raise _no_task(f"{folder}, adapter `{name}`", has_head=record.output is not None)
    return record.task


def located(contestant: Bundle | Base | Adapter | Address, reporter: Reporter) -> Bundle | Base | Adapter | Address:
    """Fetch a reference or Hub id and return its local path; return any other contestant unchanged."""
    return locate(contestant, "any", reporter).path if isinstance(contestant, str | Path) else contestant


def task_before_opening(contestants: Sequence[Bundle | Base | Adapter | Address], only: Sequence[str]) -> Task | None:
    """Return the task of the first bundle or adapter, read from its files without opening it.

    `None` if all contestants are models. Contestants with other tasks are refused once they are opened.
    """
    from adapter_export.format.manifest_json import MANIFEST_FILE, read_manifest

    for path in (Path(contestant) for contestant in contestants if isinstance(contestant, str | Path)):
        tasks: list[tuple[str, Task | None]] = []
        if (path / MANIFEST_FILE).is_file():
            tasks = [(each.name, each.task) for each in read_manifest(path).adapters]
        elif (path / "adapter_graph.json").is_file():
            adapter = load_adapter(path)
            tasks = [(adapter.name, adapter.task)]
        task = next((task for name, task in tasks if task is not None and (not only or name in only)), None)
        if task is not None:
            return task
    return None


class _WithoutNotes(Reporter):
    """Reporter that forwards steps and drops notes."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        """Forward the step."""
        self._reporter.step(label, done, total)

    def warn(self, text: str) -> None:
        """Drop the note."""


@dataclass(frozen=True)
class _Place:
    """A contestant and what its unique name is made of.

    Attributes:
        order: its position among the call's arguments.
        contestant: the contestant.
        path: its source; `None` for an object in memory.
        precision: the precision it was built in; empty for an adapter from a bundle.
    """

    order: int
    contestant: Contestant
    path: Path | None
    precision: str = ""

    def names(self, *, with_precision: bool) -> list[str]:
        """Return increasingly specific names: its own, then with its folder, then with its path."""
        names, path = [self.contestant.name], self.path
        if path is not None:
            near = path.name if (path / "manifest.json").is_file() else path.resolve().parent.name
            names += [f"{near}/{self.contestant.name}", f"{path}: {self.contestant.name}"]
        return [f"{name} ({self.precision})" for name in names] if with_precision and self.precision else names


@dataclass(frozen=True)
class Contestants:
    """Opens contestants, and builds bundles of adapters and models.

    Attributes:
        folder: receives the bundles.
        base: the model of the adapters.
        precisions: the precisions to build in.
        allow_base_mismatch: accept adapters that were trained on other weights.
        only: names of the adapters to compare; empty for all.
        reporter: receives the steps of the builds.
        notes: reasons why contestants were skipped.
    """

    folder: Path
    base: Base | None
    precisions: tuple[str, ...]
    allow_base_mismatch: bool
    only: Sequence[str]
    reporter: Reporter
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        known_precisions(self.precisions)

    def open(self, contestants: Sequence[Bundle | Base | Adapter | Address]) -> list[Contestant]:
        """Open contestants in argument order, each under a unique name.

        Raises:
            UsageError: arguments exclude each other, or fewer than two contestants remain.
            InputError: a contestant cannot be used.
        """
        from adapter_export.bundle.bundle_reader import OpenedBundle
        from adapter_export.graph.adapter import Adapter
        from adapter_export.runtime.bundle import Bundle

        _check_given_once(contestants)
        bundles: dict[int, OpenedBundle] = {}
        adapters: dict[int, tuple[Adapter, Path | None]] = {}
        models: dict[int, Base] = {}
        for at, contestant in enumerate(contestants):
            path = Path(contestant) if isinstance(contestant, str | Path) else None
            if isinstance(contestant, Bundle) or (path is not None and (path / "manifest.json").is_file()):
                bundles[at] = OpenedBundle.open(
                    contestant.folder if isinstance(contestant, Bundle) else cast(Path, path)
                )
            elif isinstance(contestant, Adapter):
                adapters[at] = contestant, None
            elif path is not None and self._is_adapter(path):
                adapters[at] = load_adapter(str(contestant), near=None if self.base is None else self.base.path), path
            else:
                models[at] = open_base(contestant)
        heads = {at: _base_head(base) for at, base in models.items()}
        taking = {at: list(self._answering(bundle)) for at, bundle in bundles.items()}
        self._check_enough(
            [name for names in taking.values() for name in names],
            [*(adapter.name for adapter, _ in adapters.values()), *heads.values()],
        )
        places = [
            _Place(at, contestant, bundle.folder)
            for at, bundle in bundles.items()
            for contestant in contestants_of(bundle, taking[at], str(bundle.folder))
        ]
        places += [place for at, base in models.items() if self._takes(heads[at]) for place in self._of_model(at, base)]
        places += self._of_adapters({at: pair for at, pair in adapters.items() if self._takes(pair[0].name)})
        return _named(sorted(places, key=lambda place: place.order))

    def _takes(self, name: str) -> bool:
        return not self.only or name in self.only

    def _is_adapter(self, path: Path) -> bool:
        """Return True for an adapter's folder, or a name to look up beside the base."""
        if (path / "adapter_graph.json").is_file() or (path / "weights.safetensors").is_file():
            return True
        return self.base is not None and not path.exists()

    def _answering(self, bundle: OpenedBundle) -> Iterator[str]:
        """Yield the selected adapters of a bundle; an adapter without a task only if it is named."""
        for record in bundle.manifest.adapters:
            if record.task is not None or self.only:
                if self._takes(record.name):
                    yield record.name
            else:
                what = "no head" if record.output is None else "a head without a task"
                self.notes.append(f"`{record.name}` was skipped: it has {what}")

    def _check_enough(self, opened: Sequence[str], to_build: Sequence[str]) -> None:
        """Refuse unknown names and a single contestant before anything is built."""
        if not to_build and self.precisions != ("fp32",):
            raise UsageError(
                "only adapters and models can be built in a chosen precision; a bundle already has one",
                where=argument("precisions"),
                found=quoted(self.precisions),
                fix="omit the precision, or pass the adapters and their model instead of the bundle",
            )
        known = [*opened, *(name for name in to_build for _ in self.precisions)]
        missing = [name for name in self.only if name not in known]
        if missing:
            names = quoted(dict.fromkeys(known)) or "other names"
            where, fix = argument("only"), did_you_mean(missing[0], known, "choose one of these")
            raise UsageError("unknown adapter", where=where, found=f"`{missing[0]}`", expected=names, fix=fix)
        taking = list(filter(self._takes, known))
        if len(taking) < 2:
            alone = command("evaluate(BUNDLE, FILE)", "evaluate BUNDLE --data FILE")
            raise UsageError(
                "at least two contestants are needed",
                found=f"`{taking[0]}` only" if taking else "no adapter that answers",
                expected="at least two contestants",
                fix="add a contestant, or measure a single adapter: " + alone,
            )

    def _of_model(self, at: int, base: Base) -> Iterator[_Place]:
        """Yield the model's base head in each precision."""
        self.reporter.step(f"building {base.path or 'a model'} with its base head")
        for precision, bundle in self._built(base, {}):
            (name,) = (record.name for record in bundle.manifest.adapters)
            (contestant,) = contestants_of(bundle, [name], str(base.path or name))
            shown = contestant if base.path is None else replace(contestant, name=base.path.stem)
            yield _Place(at, shown, base.path, precision)

    def _of_adapters(self, adapters: Mapping[int, tuple[Adapter, Path | None]]) -> Iterator[_Place]:
        """Build one bundle per adapter topology, so that no adapter pays for another's slots."""
        if not adapters:
            return
        base = self.base
        if base is None:
            name = next(iter(adapters.values()))[0].name
            raise UsageError(
                "an adapter needs its model",
                found=f"`{name}` without one",
                fix="give its model: " + argument("base", words="MODEL"),
            )
        from adapter_export.graph.graph import first_free
        from adapter_export.onnx_backend.slots import plan_slots

        groups: dict[str, dict[str, int]] = {}  # topology → {name that is free in that bundle: position of the adapter}
        for at, (adapter, _) in adapters.items():
            if adapter.task is None:
                raise _no_task(f"adapter `{adapter.name}`", has_head=adapter.head is not None)
            group = groups.setdefault(plan_slots([adapter], base.sites.complete).digest, {})
            group[first_free(adapter.name.casefold(), group)] = at
        for group in groups.values():
            self.reporter.step(f"building {number_of(len(group), 'adapter')} of one topology")
            apart = {name: adapters[at][0] for name, at in group.items()}
            for name, adapter in apart.items():
                apart[name] = adapter if adapter.name.casefold() == name else replace(adapter, name=name)
            for precision, bundle in self._built(base, {adapter.name: adapter for adapter in apart.values()}):
                for at, unique in zip(group.values(), apart.values(), strict=True):
                    adapter, path = adapters[at]
                    (contestant,) = contestants_of(bundle, [unique.name], str(path or adapter.name))
                    yield _Place(at, replace(contestant, name=adapter.name), path, precision)

    def _built(self, base: Base, adapters: Mapping[str, Adapter]) -> Iterator[tuple[str, OpenedBundle]]:
        """Yield a bundle in each precision; without adapters, a bundle of the base head."""
        from adapter_export.bundle.bundle_reader import OpenedBundle

        if base.tokenizer is None and base.media is None:
            raise RequestError(
                "the model has no tokenizer, so a bundle built from it cannot read text",
                where=base.path,
                fix="build a bundle with a " + argument("tokenizer") + ", and compare that",
            )
        for precision in cast("tuple[PrecisionName, ...]", self.precisions):
            built = sum(1 for _ in self.folder.iterdir())
            bundle = build(
                base,
                adapters,
                self.folder / f"{built}",
                without_base_head=bool(adapters),
                allow_base_mismatch=self.allow_base_mismatch,
                base_precision=precision,
                variants=("slots",),
                # adapters without effect are reported per contestant later
                reporter=_WithoutNotes(self.reporter),
            )
            yield precision, OpenedBundle(bundle)


def _no_task(where: str, *, has_head: bool) -> RequestError:
    return RequestError(
        "the adapter's head has no task, so its answers cannot be scored",
        where=where,
        found="a head without a task" if has_head else "no head",
        fix="choose an adapter whose head has a task",
    )


def _base_head(base: Base) -> str:
    """Return the name of the model's base head."""
    head = base.base_head
    if head is None or head.task is None:
        raise RequestError(
            "has no head with a task, so it cannot be a contestant by itself",
            where=base.path or "a module",
            found="a bare model" if head is None else "a head without a task",
            fix="pass adapters, with this as their model: " + argument("base"),
        )
    return head.name


def _check_given_once(contestants: Sequence[object]) -> None:
    paths = Counter(Path(contestant).resolve() for contestant in contestants if isinstance(contestant, str | Path))
    twice = [path for path, count in paths.items() if count > 1]
    if twice:
        raise UsageError("the same contestant was given twice", found=f"`{twice[0]}`", fix="remove one of them")


def _named(places: Sequence[_Place]) -> list[Contestant]:
    """Return contestants under the shortest names that differ; equal names get a number."""
    several = len({place.precision for place in places if place.precision}) > 1
    names = [place.names(with_precision=several) for place in places]
    level = [0] * len(names)
    while True:
        now = [forms[min(at, len(forms) - 1)] for forms, at in zip(names, level, strict=True)]
        counts = Counter(now)
        again = [index for index, name in enumerate(now) if counts[name] > 1 and level[index] + 1 < len(names[index])]
        if not again:
            break
        for index in again:
            level[index] += 1
    seen: Counter[str] = Counter()
    contestants = []
    for place, name in zip(places, now, strict=True):
        seen[name] += 1
        contestants.append(replace(place.contestant, name=name if seen[name] == 1 else f"{name} #{seen[name]}"))
    return contestants

"""Trainings of a sweep: run in parallel, scored when they end, and stored in its folder."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_export.address import Contents, locate
from adapter_export.bases.adapters import load_adapter
from adapter_export.bases.base import Base
from adapter_export.bases.kinds import at_least_1, kind_options, make_kind, swept_options
from adapter_export.bases.opening import open_base
from adapter_export.commands.training.train import train
from adapter_export.errors import AdapterExportError, FileError, TrainingError, WriteError
from adapter_export.extras import require
from adapter_export.option import OptionsOf
from adapter_export.reporting import Reporter
from adapter_export.safe_io.output import Output
from adapter_export.training.fusion import FusionSpec
from adapter_export.training.loop.settings import LoopSpec, Machine, Schedule
from adapter_export.training.specs import DataSpec, HeadSpec
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.tasks.metrics import Metric
    from adapter_export.plugins.lab.search import Search
    from adapter_export.plugins.lab.sweep_results import Run, Setting, Space, Trial
    from adapter_export.safe_io.run_workers import Workers

_GIVEN = ("output", "name", "kind", "learning_rate", "seed", "resume", "force", "site_map", "trust_pickle", "reporter")

RUNS = "runs"
"""Folder of the adapters inside a sweep's folder."""

_SWEEP_FILE, _SEARCH_FILE, _LOCK_FILE = "sweep.json", "search.sqlite3", ".lock"
_FILES: Mapping[str, Contents] = {"validation_data": "table", "test_data": "table", "tokenizer": "tokenizer"}

_NOT_IDENTITY = ("threads", "restart")
"""Arguments of `train` that may differ when a sweep is resumed."""

Where = Base | tuple[Path, Path | None, bool]
"""The base, or the arguments another process needs to open it."""

_Outcome = tuple[AdapterExportError | None, list[str]]
"""Error that stopped a training, and notes about its data."""


def own_arguments() -> frozenset[str]:
    """Return the arguments of `train` that a sweep sets itself, and fusion arguments."""
    return swept_options() | {*_GIVEN, "fuse", *OptionsOf(FusionSpec).defaults()}


SWEEP_OPTIONS = OptionsOf(kind_options, DataSpec, HeadSpec, Schedule, LoopSpec, Machine, without=own_arguments)
"""Training options that the sweep does not set itself."""


@dataclass(frozen=True)
class SweepPlan:
    """Trainings of a sweep: one per setting and seed.

    Attributes:
        base: the base.
        where: opens the base in the training process.
        data: the training file.
        folder: the sweep's folder.
        space: the settings.
        seeds: seeds per setting.
        training: all other arguments of `train`.
    """

    base: Base
    where: Where
    data: Path
    folder: Path
    space: Space
    seeds: tuple[int, ...]
    training: Mapping[str, Any]

    def options(self, setting: Setting) -> dict[str, Any]:
        """Return the arguments of `train` for a setting."""
        from adapter_export.graph.kinds import kind_named

        maker = kind_named(setting.kind)
        width, place = maker.swept("width"), maker.swept("place")
        arguments = {**self.training, "kind": setting.kind, "learning_rate": setting.learning_rate}
        if width is not None and setting.bottleneck is not None:
            arguments[width] = setting.bottleneck
        if setting.placement is not None:
            arguments[place or "sublayers"] = tuple(
                setting.placement.split("+")
            )  # a kind without placements refuses the argument
        return {**arguments, **self._files}

    def shaped(self, setting: Setting) -> Adapter:
        """Return an untrained adapter with a setting; raise an error if it does not fit the base."""
        from adapter_export.plugins.lab.adapter_costs import shaped

        options = self.options(setting)
        of_kind = {name: options[name] for name in OptionsOf(kind_options).defaults() if name in options}
        return shaped(make_kind(setting.kind, of_kind), self.base.sites.complete)

    def run_folder(self, setting: Setting, seed: int) -> Path:
        """Return the folder of a training's adapter."""
        return self.folder / RUNS / f"{setting.name}-seed{seed}"

    def start(self, pool: Workers, setting: Setting, seed: int) -> Future[_Outcome]:
        """Start a training, or return a finished one."""
        place = self.run_folder(setting, seed)
        if place.exists():  # complete, because a folder is written under a temporary name first
            return _finished()
        return pool.submit(_train, self.where, self.data, place, {**self.options(setting), "seed": seed})

    def identity(self) -> dict[str, Any]:
        """Return the facts that identify a sweep, as JSON; files by their contents."""
        defaults = SWEEP_OPTIONS.defaults()
        arguments = {name: value for name, value in self.training.items() if name not in (*_NOT_IDENTITY, *_FILES)}
        space = self.space
        lists = {name: getattr(space, name) for name in ("bottlenecks", "placements", "learning_rates")}
        facts = {
            "model": self.base.fingerprint,
            "data": _digest(self.data),
            "kinds": list(space.kinds),
            **{name: list(values) if isinstance(values, tuple) else str(values) for name, values in lists.items()},
            "seeds": self.seeds,
            **{name: value for name, value in arguments.items() if value != defaults.get(name)},
            **{name: _digest(path) for name, path in self._files.items()},
        }
        document: dict[str, Any] = json.loads(json.dumps(facts, default=str))
        return document

    @cached_property
    def _files(self) -> dict[str, Path]:
        sources = {name: self.training[name] for name in _FILES if self.training.get(name) is not None}
        return {name: locate(source, _FILES[name]).path.absolute() for name, source in sources.items()}


@dataclass
class _Progress:
    """Finished trainings of a sweep.

    Attributes:
        total: number of trainings.
        runs: finished trainings, by setting and seed.
        metric: the metric of their scores.
        failed: the first failed training, and its error.
        notes: notes about the data, each once.
    """

    total: int
    runs: dict[Setting, dict[int, Run]] = field(default_factory=dict)
    metric: Metric | None = None
    failed: tuple[str, TrainingError] | None = None
    notes: set[str] = field(default_factory=set)

    @property
    def done(self) -> int:
        """Number of finished trainings."""
        return sum(map(len, self.runs.values()))

    def add(self, setting: Setting, seed: int, place: Path, outcome: _Outcome, reporter: Reporter) -> Run:
        """Add and report a finished training; raise an error that every training would hit."""
        from adapter_export.plugins.lab.sweep_results import Run

        error, notes = outcome
        for note in notes:
            if note not in self.notes:
                self.notes.add(note)
                reporter.warn(note)
        if error is None:
            run, self.metric = _scored(place, seed)
        elif isinstance(error, TrainingError):
            run = Run(seed, place.name, error=error.message)
            self.failed = self.failed or (place.name, error)
        else:
            raise error
        self.runs.setdefault(setting, {})[seed] = run
        if run.error is not None:
            reporter.warn(f"{run.adapter}: " + run.error)
        reporter.step(f"{run.adapter}: {'failed' if run.score is None else f'{run.score:.4f}'}")
        reporter.step("sweep", self.done, self.total)
        return run


def run_trials(plan: SweepPlan, pool: Workers, trials: int | None, reporter: Reporter) -> tuple[list[Trial], Metric]:
    """Train every setting, or those chosen by a search, and return the trials with their metric.

    Raises:
        TrainingError: every setting failed.
    """
    from adapter_export.plugins.lab.sweep_results import Trial

    search: Search | None = None
    chosen: Iterator[tuple[int, Setting]] = enumerate(plan.space.grid())
    if trials is not None:
        from adapter_export.plugins.lab.search import Search

        search = Search(plan.folder / _SEARCH_FILE, plan.space)
        chosen = search.settings(trials)
    progress = _Progress(len(plan.seeds) * (trials or sum(1 for _ in plan.space.grid())))
    of_trial: dict[int, list[Run]] = {}

    def start(setting: Setting, seed: int) -> Future[_Outcome]:
        return plan.start(pool, setting, seed)

    for number, setting, seed, future in _ended(chosen, plan.seeds, pool.count, start):
        run = progress.add(setting, seed, plan.run_folder(setting, seed), _outcome(future), reporter)
        runs = of_trial.setdefault(number, [])
        runs.append(run)
        if search is not None and len(runs) == len(plan.seeds):
            mean, metric = Trial.of(setting, runs, 0).mean, progress.metric
            search.tell(number, -mean if mean is not None and metric and not metric.more_is_better else mean)
    finished = [
        Trial.of(setting, [runs[seed] for seed in plan.seeds], plan.shaped(setting).cost().parameters)
        for setting, runs in progress.runs.items()
    ]
    if progress.metric is None or all(trial.mean is None for trial in finished):
        failed = progress.failed
        why = "no score" if failed is None else f"`{failed[0]}`: " + failed[1].message.rstrip(".")
        raise TrainingError("every setting failed", where=plan.folder, found=why)
    return finished, progress.metric


class _Notes(Reporter):
    """Reporter that keeps a training's notes for the parent process."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def warn(self, text: str) -> None:
        """Keep the note."""
        self.kept.append(text)


def _train(where: Where, data: Path, output: Path, options: Mapping[str, Any]) -> _Outcome:
    """Train in this process."""
    heard = _Notes()
    try:
        base = where if isinstance(where, Base) else _opened(*where)
        train(base, data, output, reporter=heard, **options)
    except AdapterExportError as error:
        return error, heard.kept
    except OSError as error:
        return WriteError(error.filename or output, error.strerror or error), heard.kept
    except (ArithmeticError, MemoryError, RuntimeError) as error:  # an error of torch, such as a device out of memory
        return TrainingError("torch could not go on", found=f"{type(error).__name__}: {error}"), heard.kept
    return None, heard.kept


@cache
def _opened(path: Path, site_map: Path | None, trust_pickle: bool) -> Base:
    """Open the base once per process."""
    return open_base(path, site_map=site_map, trust_pickle=trust_pickle)


def _ended(
    settings: Iterator[tuple[int, Setting]],
    seeds: Iterable[int],
    count: int,
    start: Callable[[Setting, int], Future[_Outcome]],
) -> Iterator[tuple[int, Setting, int, Future[_Outcome]]]:
    """Start a training per setting and seed, `count` at a time, and yield them as they finish."""
    waiting: deque[tuple[int, Setting, int]] = deque()
    running: list[tuple[int, Setting, int, Future[_Outcome]]] = []
    started: dict[tuple[Setting, int], Future[_Outcome]] = {}  # a search may choose a setting twice
    while True:
        while len(running) < count:
            if not waiting:
                waiting.extend((*following, seed) for following in islice(settings, 1) for seed in seeds)
            if not waiting:
                break
            number, setting, seed = waiting.popleft()
            future = started.get((setting, seed)) or start(setting, seed)
            started[setting, seed] = future
            running.append((number, setting, seed, future))
        if not running:
            return
        wait([future for *_, future in running], return_when=FIRST_COMPLETED)
        ended = [training for training in running if training[-1].done()]
        running = [training for training in running if training not in ended]
        yield from ended


def _finished() -> Future[_Outcome]:
    """Return the outcome of an earlier training."""
    ready: Future[_Outcome] = Future()
    ready.set_result((None, []))
    return ready


def _outcome(future: Future[_Outcome]) -> _Outcome:
    died = future.exception()
    if died is None:
        return future.result()
    what = "the training process died"
    fix = "provide more memory or use fewer " + argument("workers") + "; the same call retries it"
    return TrainingError(what, found=f"{type(died).__name__}: {str(died).splitlines()[0].rstrip('.')}", fix=fix), []


def _scored(folder: Path, seed: int) -> tuple[Run, Metric]:
    """Return the scores of a finished training, and the metric that selected its epoch."""
    from adapter_export.graph.tasks.metrics import Metric
    from adapter_export.plugins.lab.sweep_results import Run
    from adapter_export.training.loop.measure import LOSS, deciding

    adapter = load_adapter(folder)
    record = adapter.training
    labels = () if adapter.head is None else adapter.head.labels
    metric = deciding(record["task"], labels, record["settings"]["metric"]) or Metric(LOSS, more_is_better=False)
    score, test = record["validation"].get(metric.name), record.get("test", {}).get(metric.name)
    missing = None if score is not None else f"`{metric.name}` is not defined on its validation rows"
    return Run(seed, folder.name, score, test, missing), metric


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, of a folder's tokenizer, or of all files in it and their names."""
    from adapter_export.safe_io.regular_files import sha256_of

    if (path / "tokenizer.json").is_file():
        return sha256_of(path / "tokenizer.json")
    if not path.is_dir():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{sha256_of(file)} {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def ensure_sweepable(folder: Path) -> None:
    """Raise `FileError` for a folder that is not a sweep's."""
    try:
        strange = folder.exists() and not (folder / _SWEEP_FILE).is_file()
        if strange and (not folder.is_dir() or any(entry.name != _LOCK_FILE for entry in folder.iterdir())):
            raise FileError("contains something other than a sweep", where=folder, fix="choose another folder")
    except OSError as error:
        raise WriteError(folder, error.strerror or error) from error


@contextmanager
def claimed(folder: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Create or reopen a sweep's folder, and lock it for this process."""
    from filelock import FileLock, Timeout

    from adapter_export.format.files import canonical_json
    from adapter_export.safe_io.documents import read_json

    file, lock = folder / _SWEEP_FILE, FileLock(folder / _LOCK_FILE)
    ensure_sweepable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        fix = "wait until it ends, or choose another folder"
        raise FileError("another process runs a sweep in this folder", where=folder, fix=fix) from error
    except OSError as error:
        raise WriteError(folder, error.strerror or error) from error
    try:
        if any(folder.glob(f"{RUNS}/*")) or (folder / _SEARCH_FILE).exists():
            _check_same(read_json(file), identity, folder)
        else:
            with Output(file, force=True).file() as temporary:
                temporary.write_bytes(canonical_json(identity))
        yield
    finally:
        lock.release()


def _check_same(known: object, identity: Mapping[str, Any], folder: Path) -> None:
    """Refuse to resume a different sweep, and name all differences."""
    before = known if isinstance(known, dict) else {}
    by_digest = ("model", "data", *_FILES)
    differing = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
    if differing:
        raise TrainingError(
            "the folder contains another sweep",
            where=folder,
            found=", ".join(
                f"`{name}`" if name in by_digest else f"`{name}` {json.dumps(before.get(name))}" for name in differing
            ),
            expected=", ".join(
                "a different value" if name in by_digest else f"{json.dumps(identity.get(name))}" for name in differing
            ),
            fix="repeat its original arguments to resume it, or choose another folder",
        )


def workers_for(count: int | None, ray: str | None, training: Mapping[str, Any]) -> Workers:
    from adapter_export.safe_io.run_workers import Processes, RayWorkers, ThisProcess

    if ray is not None:
        require("ray", "ray", argument("ray"))
        accelerators = 1 if str(training.get("device")).startswith("cuda") else 0
        return RayWorkers(ray, count, training.get("threads") or 1, accelerators)
    return ThisProcess() if count is None else Processes(at_least_1("workers", count))

"""Many adapters for one task, trained alike: what each setting brings, and what it costs."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.api.adapters.adapters import load_adapter
from adapter_export.api.adapters.kinds import at_least_1, check_different, kind_options, make_kind, swept_options
from adapter_export.api.bundles.bundles import Callbacks, build
from adapter_export.api.models.base import (
    Base,
    OnNote,
    PathLike,
    Steps,
    open_base,
    require,
    silent,
    tell,
)
from adapter_export.api.training.fusion import FusionOptions
from adapter_export.api.training.train import OPTIONS, train
from adapter_export.errors import AdapterExportError, FileError, Note, TrainingError, UsageError, WriteError, argument
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Option, OptionsOf
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.analysis.run_workers import Workers
    from adapter_export.analysis.search import Search
    from adapter_export.analysis.sweep_results import Range, Run, Setting, Space, Sweep, Trial
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.tasks.metrics import Metric

OnRun = Callable[["Run", int], None]
"""Is told of a training that ended, and how many there are in all."""

_GIVEN = (
    *("output", "name", "kind", "learning_rate", "seed", "resume", "force", "site_map", "trust_pickle"),
    *("on_note", "progress", "fuse", *FusionOptions.__annotations__),
)

RUNS = "runs"
"""The folder of the adapters in that of a sweep."""

_SWEEP_FILE, _SEARCH_FILE, _LOCK_FILE = "sweep.json", "search.sqlite3", ".lock"
_FILES = ("validation_data", "test_data", "tokenizer")

_NO_MATTER = ("threads", "restart")
"""The arguments of `train` that do not make a sweep another one."""

_Where = Base | tuple[Path, Path | None, bool]
"""The base, or what another process opens it with."""

_Outcome = tuple[AdapterExportError | None, list[Note]]
"""The error that stopped a training, and what is doubtful in the data."""


def own_arguments() -> frozenset[str]:
    """Return the arguments of `train` that a sweep gives itself, and those of a fusion."""
    return swept_options() | frozenset(_GIVEN)


def sweep(
    model: Base | PathLike,
    data: PathLike,
    output: PathLike,
    *,
    kinds: Annotated[tuple[str, ...], "Kinds of adapter, by name."] = ("houlsby", "pfeiffer"),
    bottlenecks: Annotated[
        tuple[int, ...] | str, Option("Widths between their projections, ranks of LoRA; with --trials also a range.")
    ] = (16, 64, 256),
    placements: Annotated[
        tuple[str, ...],
        Option("Where they act: `attention,ffn,attention+ffn`, of LoRA `query+value`; by kind.", "A,B+C,…"),
    ] = (),
    learning_rates: Annotated[tuple[float, ...] | str, Option("The highest ones; with --trials also a range.")] = (
        0.001,
    ),
    seeds: Annotated[tuple[int, ...], "Each setting is trained once with each of them."] = (0, 1, 2),
    trials: Annotated[
        int | None, Option("Try so many settings, chosen by Optuna, instead of all.", "N", least=1)
    ] = None,
    workers: Annotated[
        int | None,
        Option("Trainings at a time, each in a process of its own.  [default: 1, in this one]", "N", least=1),
    ] = None,
    ray: Annotated[str | None, Option("Train on a Ray cluster: `auto`, `local`, or its address.", "ADDRESS")] = None,
    measure: Annotated[bool, "Also time each setting in ONNX Runtime, beside the base: one row, one thread."] = False,
    tokens: Annotated[int, Option("Tokens in that row; fewer if the model takes fewer.", "N", least=1)] = 128,
    plot: Annotated[PathLike | None, Option("Draw the scores over what they cost: `.svg` or `.png`.", "FILE")] = None,
    bundle: Annotated[PathLike | None, Option("Build a bundle of the best adapter.", "FOLDER")] = None,
    force: Annotated[bool, "Replace the picture and the bundle."] = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    on_run: OnRun | None = None,
    on_note: OnNote | None = None,
    on_progress: Callable[[str], None] | None = None,
    **training: Any,
) -> Sweep:
    """Train adapters of many settings on one table, each with several seeds, and compare what they bring and cost.

    A setting is a kind, a bottleneck, a placement and a learning rate. Without `trials`, every combination is tried.
    With it, Optuna chooses, and bottlenecks and learning rates may be ranges, such as `"4..256"` and `"1e-4..1e-2"`.
    The score is the metric that decides which epoch is kept, on the validation rows, its mean over the seeds. Test
    data are measured, and decide nothing.

    What is finished is kept: the same call goes on where it was interrupted, in the midst of a training too, and tries
    again what failed.

    Args:
        model: the base, one that torch can train.
        data: labelled texts, as `train` reads them.
        output: the folder to write; its `runs` has a folder for each adapter, with the record of its training.
        on_run: is told of each training that ends.
        on_note: is told what is doubtful in the data.
        on_progress: is told each step behind the trainings before it begins.
        training: all other arguments of `train`; with `restart`, trainings that were interrupted begin anew.

    Returns:
        What was found. A training that failed, or whose process died, is in it with its error.

    Raises:
        UsageError: arguments do not go together, or have a value that they cannot have.
        FileError: the folder holds something else, or another process sweeps in it.
        DataError, BaseModelError, AdapterError: as `train`.
        TrainingError: the folder holds another sweep, or every setting failed.
        OutputExistsError, WriteError: something cannot be written. What is finished stays.
    """
    from adapter_export.analysis.sweep_results import Run, Space, Sweep, Trial
    from adapter_export.graph.kinds import kind_named

    for path in (plot, bundle):
        if path is not None:
            Output(Path(path), force).ensure_writable(folder=path is bundle)
    if plot is not None:
        require("matplotlib", "torch", "drawing")
        from adapter_export.analysis.plot import check_picture

        check_picture(Path(plot))
    for option, given in (("kinds", kinds), ("seeds", seeds), ("placements", placements or ("",))):
        check_different(option, given)
    _check_training(training)
    space = Space(
        {kind: kind_named(kind).swept("width") is not None for kind in kinds},
        _values("bottlenecks", bottlenecks, int, trials),
        placements,
        _values("learning_rates", learning_rates, float, trials),
    )
    base = open_base(model, site_map=site_map, trust_pickle=trust_pickle)
    base.check_trainable()
    for setting in space.grid():  # so that none fails for what can be known before
        _shaped(base, setting, training)
    where: _Where = base
    if workers is not None or ray is not None:
        if base.path is None or (base.given is not None and site_map is None):
            raise UsageError("other processes must open the base themselves", fix="give the path of its file")
        where = (base.path.absolute(), None if site_map is None else Path(site_map).absolute(), trust_pickle)
    folder, source = Path(output).absolute(), Path(data).absolute()
    threads = training.get("threads")
    if threads is None and (workers is not None or ray is not None):
        threads = 1 if ray is not None else max(1, (os.cpu_count() or 1) // at_least_1("workers", workers or 1))
    files = {name: Path(training[name]).absolute() for name in _FILES if training.get(name) is not None}
    runs: dict[Setting, dict[int, Run]] = {}
    metric: Metric | None = None
    failed: tuple[str, TrainingError] | None = None
    with _claimed(folder, _identity(base, source, space, seeds, training)):
        search: Search | None = None
        asked: Iterator[tuple[int, Setting]] = enumerate(space.grid())
        if trials is not None:
            require("optuna", "sweep", argument("trials"))
            from adapter_export.analysis.search import Search

            search = Search(folder / _SEARCH_FILE, space)
            asked = search.settings(trials)
        total = len(seeds) * (trials or sum(1 for _ in space.grid()))
        notes, open_trials = set[str](), dict[int, list[Run]]()
        with _workers(workers, ray, threads, training.get("device")) as pool:

            def start(setting: Setting, seed: int) -> Future[_Outcome]:
                place = folder / RUNS / _name(setting, seed)
                if place.exists():  # and so whole: a folder is written under another name first
                    return _finished()
                options = {**training, **files, **_options(setting), "threads": threads, "seed": seed}
                return pool.submit(_train, where, source, place, options)

            for number, setting, seed, future in _ended(asked, seeds, pool.count, start):
                error, said = _outcome(future)
                tell([note for note in said if note not in notes], on_note)
                notes |= set(said)
                name = _name(setting, seed)
                if error is None:
                    run, metric = _scored(folder / RUNS / name, seed)
                elif isinstance(error, TrainingError):
                    run = Run(seed, name, error=Note(error.message))
                    failed = failed or (name, error)
                else:
                    raise error  # every training would meet it
                runs.setdefault(setting, {})[seed] = run
                of_trial = open_trials.setdefault(number, [])
                of_trial.append(run)
                if search is not None and len(of_trial) == len(seeds):
                    mean = Trial.of(setting, of_trial, 0).mean
                    search.tell(number, -mean if mean is not None and metric and not metric.more_is_better else mean)
                if on_run is not None:
                    on_run(run, total)
        shapes = {setting: _shaped(base, setting, training) for setting in runs}
        found = [
            Trial.of(setting, [of_seed[seed] for seed in seeds], shapes[setting].cost().parameters)
            for setting, of_seed in runs.items()
        ]
        if metric is None or all(trial.mean is None for trial in found):
            why = "no score" if failed is None else f"`{failed[0]}`: {failed[1].message.rstrip('.')}"
            raise TrainingError("every setting failed", where=folder, found=why)
        if measure:
            found = _timed(base, found, shapes, at_least_1("tokens", tokens), on_progress or silent)
        made = Sweep.of(source.name, metric, seeds, found)
        if plot is not None:
            from adapter_export.analysis.plot import draw_sweep

            draw_sweep(made, Path(plot), force=force)
        if bundle is not None:
            build(
                base,
                [folder / RUNS / made.adapter],
                bundle,
                force=force,
                reporter=Callbacks(on_progress, on_note),
            )
    return made


def _train(where: _Where, data: Path, output: Path, options: Mapping[str, Any]) -> _Outcome:
    """Train in this process."""
    notes: list[Note] = []
    try:
        base = where if isinstance(where, Base) else _opened(*where)
        train(base, data, output, on_note=notes.append, **options)
    except AdapterExportError as error:
        return error, notes
    except OSError as error:
        return WriteError(error.filename or output, error.strerror or error), notes
    except (ArithmeticError, MemoryError, RuntimeError) as error:  # of torch, such as a device whose memory is full
        return TrainingError("torch could not go on", found=f"{type(error).__name__}: {error}"), notes
    return None, notes


@cache
def _opened(path: Path, site_map: Path | None, trust_pickle: bool) -> Base:
    """Return the base that this process trains on, which is opened once."""
    return open_base(path, site_map=site_map, trust_pickle=trust_pickle)


def _ended(
    asked: Iterator[tuple[int, Setting]],
    seeds: Iterable[int],
    count: int,
    start: Callable[[Setting, int], Future[_Outcome]],
) -> Iterator[tuple[int, Setting, int, Future[_Outcome]]]:
    """Start a training for each seed of each setting, so many at a time, and yield them as they end."""
    waiting: deque[tuple[int, Setting, int]] = deque()
    running: list[tuple[int, Setting, int, Future[_Outcome]]] = []
    started: dict[tuple[Setting, int], Future[_Outcome]] = {}  # a search may draw a setting twice
    while True:
        while len(running) < count:
            if not waiting:
                waiting.extend((*following, seed) for following in islice(asked, 1) for seed in seeds)
            if not waiting:
                break
            number, setting, seed = waiting.popleft()
            future = started.get((setting, seed)) or start(setting, seed)
            started[setting, seed] = future
            running.append((number, setting, seed, future))
        if not running:
            return
        wait([future for *_, future in running], return_when=FIRST_COMPLETED)
        ended = [one for one in running if one[-1].done()]
        running = [one for one in running if one not in ended]
        yield from ended


def _finished() -> Future[_Outcome]:
    """Return what a training returns that was finished before."""
    ready: Future[_Outcome] = Future()
    ready.set_result((None, []))
    return ready


def _outcome(future: Future[_Outcome]) -> _Outcome:
    died = future.exception()
    if died is None:
        return future.result()
    what = "the process of the training died"
    fix = f"give it more memory, or fewer {argument('workers')}; the same call tries it again"
    return TrainingError(what, found=f"{type(died).__name__}: {str(died).splitlines()[0].rstrip('.')}", fix=fix), []


def _scored(folder: Path, seed: int) -> tuple[Run, Metric]:
    """Return the scores of a finished training, and the metric that decided which epoch was kept."""
    from adapter_export.analysis.sweep_results import Run
    from adapter_export.graph.tasks.metrics import Metric
    from adapter_export.torch_backend.train.measure import LOSS, deciding

    adapter = load_adapter(folder)
    record = adapter.training
    labels = () if adapter.head is None else adapter.head.labels
    metric = deciding(record["task"], labels, record["settings"]["metric"]) or Metric(LOSS, more_is_better=False)
    score, test = record["validation"].get(metric.name), record.get("test", {}).get(metric.name)
    missing = None if score is not None else Note(f"`{metric.name}` is not defined on its validation rows")
    return Run(seed, folder.name, score, test, missing), metric


def _timed(
    base: Base, trials: list[Trial], shapes: Mapping[Setting, Adapter], tokens: int, say: Callable[[str], None]
) -> list[Trial]:
    """Measure the latency of each setting."""
    from adapter_export.analysis.adapter_costs import Setup
    from adapter_export.analysis.latency import latencies

    with TemporaryDirectory(prefix="adapter-export-") as folder:
        onnx = base.exported(Path(folder), Steps(say))
        say("timing each setting beside the base")
        setup = Setup(1, tokens if base.max_tokens is None else min(tokens, base.max_tokens))
        times = latencies(onnx, [shapes[one.setting] for one in trials], setup)
    return [replace(one, latency=latency) for one, latency in zip(trials, times, strict=True)]


def _name(setting: Setting, seed: int) -> str:
    return f"{setting.name}-seed{seed}"


def _options(setting: Setting) -> dict[str, Any]:
    """Return what `train` calls the parts of a setting."""
    from adapter_export.graph.kinds import kind_named

    maker = kind_named(setting.kind)
    width, place = maker.swept("width"), maker.swept("place")
    found: dict[str, Any] = {"kind": setting.kind, "learning_rate": setting.learning_rate}
    if width is not None and setting.bottleneck is not None:
        found[width] = setting.bottleneck
    if setting.placement is not None:
        found[place or "sublayers"] = tuple(setting.placement.split("+"))  # refused by a kind without places
    return found


def _shaped(base: Base, setting: Setting, training: Mapping[str, Any]) -> Adapter:
    """Return an adapter of a setting, untrained; one that does not fit the base is an error."""
    from adapter_export.analysis.adapter_costs import shaped

    options = {**training, **_options(setting)}
    own = {name: options[name] for name in OptionsOf(kind_options).defaults() if name in options}
    return shaped(make_kind(setting.kind, own), base.sites.complete)


def _values(name: str, given: tuple[Any, ...] | str, number: type, trials: int | None) -> tuple[Any, ...] | Range:
    """Read a list or, where settings are searched, a range; all must be above 0."""
    from adapter_export.analysis.sweep_results import Range

    try:
        ends = tuple(map(number, given.split(".."))) if isinstance(given, str) else tuple(given)
    except ValueError:
        ends = ()
    ranged = isinstance(given, str)
    if any(one <= 0 for one in ends) or (ranged and not (len(ends) == 2 and ends[0] < ends[1])):
        expected = "numbers above 0, or a range such as `4..256`"
        raise UsageError(f"{argument(name)} are numbers above 0", found=given, expected=expected)
    if not ranged:
        check_different(name, ends)
        return ends
    if trials is None:
        fix = f"say how many settings to try, {argument('trials', 30)}, or give a list"
        raise UsageError("a range has no end of settings", where=argument(name), found=given, fix=fix)
    return Range(*ends)


def _check_training(training: Mapping[str, Any]) -> None:
    known = {*inspect.signature(train).parameters, *OPTIONS.defaults()} - {"base", "data", "options"}
    strangers = [name for name in training if name not in known]
    if strangers:
        raise UsageError("`train` has no such argument", found=", ".join(map(argument, strangers)))
    given = sorted(own_arguments().intersection(training))
    if given:
        raise UsageError(
            "a sweep gives this to `train` itself, or has no use for it", found=", ".join(map(argument, given))
        )


def _identity(
    base: Base, data: Path, space: Space, seeds: tuple[int, ...], training: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what makes a sweep what it is, as JSON; files by their contents."""
    defaults = {name: one.default for name, one in inspect.signature(train).parameters.items()}
    changed = {
        name: value for name, value in training.items() if value != defaults.get(name) and name not in _NO_MATTER
    }
    lists = {"bottlenecks": space.bottlenecks, "placements": space.placements, "learning_rates": space.learning_rates}
    found = {
        "model": base.fingerprint,
        "data": _digest(data),
        "kinds": list(space.kinds),
        **{name: list(values) if isinstance(values, tuple) else str(values) for name, values in lists.items()},
        "seeds": seeds,
        **{name: _digest(Path(value)) if name in _FILES else value for name, value in changed.items()},
    }
    made: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return made


def _digest(path: Path) -> str:
    """Return the sha256 of a file, of the tokenizer in a folder, or of all files there and their names."""
    from adapter_export.safe_io.regular_files import sha256_of

    if (path / "tokenizer.json").is_file():
        return sha256_of(path / "tokenizer.json")
    if not path.is_dir():
        return sha256_of(path)
    files = sorted(one for one in path.rglob("*") if one.is_file())
    lines = "".join(f"{sha256_of(one)} {one.relative_to(path).as_posix()}\n" for one in files)
    return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def _claimed(folder: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder of a sweep, or take up the one that is there, and let nobody else sweep in it."""
    from filelock import FileLock, Timeout

    from adapter_export.format.files import canonical_json
    from adapter_export.safe_io.documents import read_json

    file, lock = folder / _SWEEP_FILE, FileLock(folder / _LOCK_FILE)
    try:
        if folder.exists() and not file.is_file() and any(one.name != _LOCK_FILE for one in folder.iterdir()):
            raise FileError("holds something else than a sweep", where=folder, fix="give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        fix = "wait until it ends, or give another folder"
        raise FileError("another process sweeps here", where=folder, fix=fix) from error
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
    """Refuse to go on with another sweep, and name all that differs."""
    before = known if isinstance(known, dict) else {}
    by_digest = ("model", "data", *_FILES)
    differing = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
    if differing:
        raise TrainingError(
            "another sweep lies here",
            where=folder,
            found=", ".join(
                f"`{name}`" if name in by_digest else f"`{name}` {json.dumps(before.get(name))}" for name in differing
            ),
            expected=", ".join(
                "another one" if name in by_digest else f"{json.dumps(identity.get(name))}" for name in differing
            ),
            fix="give what it was started with to go on with it, or give another folder",
        )


def _workers(count: int | None, ray: str | None, threads: int | None, device: object) -> Workers:
    from adapter_export.analysis.run_workers import Processes, RayWorkers, ThisProcess

    if ray is not None:
        require("ray", "ray", argument("ray"))
        return RayWorkers(ray, count, threads or 1, accelerators=1 if str(device).startswith("cuda") else 0)
    return ThisProcess() if count is None else Processes(at_least_1("workers", count))

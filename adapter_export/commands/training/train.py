"""Train an adapter on a table of labelled rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address, PathLike
from adapter_export.bases.adapters import composition_record, load_members
from adapter_export.bases.base import Base
from adapter_export.bases.kinds import kind_names, kind_options, make_kind
from adapter_export.commands.adapters._made_adapter import ADAPTER_FOLDER, AdapterOutput, adapter_document, show_adapter
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import UsageError
from adapter_export.extras import require
from adapter_export.option import LABELLED_DATA, SITE_MAP, TRUST_PICKLE, Force, Option, OptionsOf
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import Table, duration
from adapter_export.training.fusion import FusionSpec
from adapter_export.training.job import TrainingJob
from adapter_export.training.learners import NewAdapter, NewFusion
from adapter_export.training.loop.settings import ContrastiveLoss, LoopSpec, Machine, Schedule
from adapter_export.training.rows import open_trainable, tables_before_opening
from adapter_export.training.specs import DataSpec, HeadSpec
from adapter_export.words import argument, joined

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.kinds import Kind

_DEFAULT_KIND = "houlsby"

TRAIN_OPTIONS = OptionsOf(kind_options, FusionSpec, DataSpec, HeadSpec, Schedule, LoopSpec, ContrastiveLoss, Machine)
"""Options of a training besides its files, kind and output."""


def _schemes() -> tuple[str, ...]:
    from adapter_export.graph.initialise import SCHEMES

    return tuple(SCHEMES)


INIT = Option("Weight initialization; the default depends on the kind.", choices=_schemes)


def train(
    base: Annotated[Base | Address, Option(metavar="MODEL")],
    data: Annotated[Address, LABELLED_DATA],
    output: Annotated[PathLike | None, ADAPTER_FOLDER] = None,
    *,
    kind: Annotated[str | Kind | None, Option(f"Adapter kind; defaults to {_DEFAULT_KIND}.", kind_names)] = None,
    init: Annotated[str | None, INIT] = None,
    name: Annotated[str | None, "Name of the adapter; defaults to that of the output."] = None,
    fuse: Annotated[
        Sequence[Adapter | Address],
        Option(
            "Train a fusion of these adapters, which stay unchanged, instead of an adapter; `NAME=FOLDER` renames one.",
            "A,B,…",
            commas=True,
        ),
    ] = (),
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
    **options: Annotated[Any, TRAIN_OPTIONS],
) -> Adapter:
    """Train an adapter with a head for MODEL, or a fusion of adapters, on labelled rows.

    `--task` names the task: one label by default, sets of labels, labels of words, answers in texts, choices, numbers,
    vectors, rankings, or writing. docs/reference/task-types.md has the tables of each, and images and audio.

    The best epoch on the validation rows is kept. Equal arguments give bit-identical results,
    and the same command resumes an interrupted run. With `--fuse`, the named adapters stay unchanged, and a new
    head and the weights by which each token combines them are trained. docs/how-to/train.md has more.

    Args:
        base: the model; torch must be able to train it.
        data: labelled texts: csv, tsv, jsonl or Parquet; of `causal_lm` texts, prompts and answers, conversations
            (`messages`), or a `.txt` file with a text in each line. For a base with a processor: a folder with a folder
            of images or audio for each label, or such a table with their paths.
        output: the adapter folder to write, with its learning curve. The same call resumes an interrupted run.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        fuse: adapters to fuse, instead of training a new adapter; they stay unchanged.
        force: replace `output`.
        reporter: receives progress, the measurements of each step, and notes about the data.

    Started by `torchrun` or `accelerate launch`, all processes share the rows of each step, and the first one writes.

    Returns:
        The adapter; its `training` is the record of the run: settings, data, scores of each epoch and of the test data.

    Raises:
        UsageError: arguments exclude each other or are out of range.
        BaseModelError: the base cannot be trained this way.
        DataError: the data cannot be used.
        AdapterError: the kind or a member of the fusion does not fit the base.
        TrainingError: the loss is not finite, or the interrupted run had other arguments.
    """
    of_kind, of_fusion, of_data, of_head, of_schedule, of_loop, of_loss, of_machine = TRAIN_OPTIONS.split(
        "train", options
    )
    rows, machine, fusion = DataSpec(data, **of_data), Machine(**of_machine), FusionSpec(**of_fusion)
    path, sources = None if output is None else Path(output), [rows.validation_data, rows.test_data, rows.tokenizer]
    target = AdapterOutput(output, force, [base, data, *sources, fuse])
    fusion.check(fuse)
    if fuse:
        _check_no_kind({**of_kind, "kind": kind, "init": init})
    head, schedule = HeadSpec(**of_head), Schedule(**of_schedule)
    loop = ContrastiveLoss(**of_loss).loop(LoopSpec(**of_loop))
    loop = fusion.loop(loop) if fuse else loop
    head.check(rows, class_weights=loop.class_weights, temperature=loop.temperature, fuse=fuse)
    chosen = _kind(kind, of_kind)
    partial = machine.checkpoints(path)
    title = target.name(name) or ("fusion" if fuse else chosen.name)
    members = load_members(fuse, base.path if isinstance(base, Base) else Path(base))
    learner = NewFusion(members, fusion, title) if members else NewAdapter(chosen, title, init, of_kind)
    unopened = open_trainable(base, site_map, trust_pickle=trust_pickle)
    tables = tables_before_opening(unopened, rows, head)
    require("torch", "torch", "training")
    require("accelerate", "torch", "training")
    job = TrainingJob(unopened, learner, rows, head, loop, schedule, machine, partial, tables)
    done = job.run(reporter)
    record = done.record
    if members:
        begun = {} if done.model.adapter is None else done.model.adapter.training
        record = composition_record({**record, **begun}, members)
    adapter = done.model.to_adapter(training=record)
    if path is not None and done.writes:
        target.save(adapter)
        job.finish(done, path, f"{adapter.name} ({adapter.kind})", reporter)
    return adapter


def _check_no_kind(options: Mapping[str, Any]) -> None:
    """Refuse a kind and its options for a fusion."""
    passed = [name for name, value in options.items() if value is not None]
    if passed:
        raise UsageError(
            "a fusion consists of its adapters and has no kind",
            found=joined(map(argument, passed)),
            fix="remove it, or remove " + argument("fuse"),
        )


def _kind(kind: str | Kind | None, options: Mapping[str, Any]) -> Kind:
    """Make a kind from its name and options; a kind object takes no options."""
    if kind is None or isinstance(kind, str):
        return make_kind(kind or _DEFAULT_KIND, options)
    if options:
        raise UsageError("options need a kind given by name", found=joined(map(argument, options)))
    return kind


def _show(adapter: Adapter, screen: Screen) -> None:
    from adapter_export.graph.tasks.metrics import Metric

    record = adapter.training
    others = list(_baselines(record, "test")) if "test" in record else []

    def without(name: str) -> str:
        scores = ", ".join(f"{other} {values[name]:.3f}" for other, _, values in others if name in values)
        return f" ({scores})" if scores else ""

    test = [
        f"{Metric(name).words} {value:.3f}" + without(name)
        for name, value in record.get("test", {}).items()
        if name != "loss"
    ]
    screen.show(_epochs(record), *([f"test {', '.join(test)}"] if test else ()))
    if (curve := _curve(screen)) is not None:
        screen.report(f"wrote the learning curve to {curve}")
    show_adapter(adapter, screen)


def _document(adapter: Adapter, screen: Screen) -> Mapping[str, object]:
    curve = _curve(screen)
    facts = {"bytes": adapter.cost().bytes, "curve": None if curve is None else str(curve), **adapter.training}
    return {**facts, **adapter_document(adapter, screen)}


def _curve(screen: Screen) -> Path | None:
    """Return the path of the learning curve, or `None` without matplotlib."""
    from adapter_export.training.loop.record import CURVE_FILE

    path = Path(screen.given["output"]) / CURVE_FILE
    return path if path.exists() else None


def _baselines(record: Mapping[str, Any], part: str) -> Iterator[tuple[str, str | None, Mapping[str, float]]]:
    """Yield the name of each baseline with its explanation, if it needs one, and its scores."""
    from adapter_export.training.specs import LINEAR

    majority, other = record.get("majority", {}).get(part), record.get("baseline")
    if majority is not None:
        yield "majority", None, majority
    if other is not None:
        short = "linear" if other["name"] == LINEAR else "base"
        yield short, f"{other['name']} without an adapter", other[part]


def _epochs(record: Mapping[str, Any]) -> Table:
    from adapter_export.graph.tasks.metrics import worded_scores

    names = [name for name in record["validation"] if name != "loss"]
    rows = [
        (
            f"{epoch['epoch']}{' *' if epoch['epoch'] == record['best_epoch'] else ''}",
            f"{epoch['training_loss']:.4f}",
            f"{epoch['validation']['loss']:.4f}",
            *(f"{epoch['validation'].get(name, float('nan')):.4f}" for name in names),
            duration(epoch["seconds"]),
        )
        for epoch in record["history"]
    ]
    words = [name for name, _ in worded_scores(record["validation"])]
    columns = ("epoch", "training loss", "validation loss", *words, "time")
    notes, majority = ["* kept"], record.get("majority", {}).get("validation")
    if majority is not None:
        notes.append(f"majority: always answering `{majority['label']}`")
    for name, meaning, scores in _baselines(record, "validation"):
        rows.append((name, "", "", *(f"{scores[each]:.4f}" if each in scores else "" for each in names), ""))
        notes += [] if meaning is None else [f"{name}: {meaning}"]
    title = f"Epochs ({'; '.join(notes)})"
    return Table(columns, rows, title, "l" + "r" * (len(columns) - 1))


SECTIONS: Mapping[str, Sequence[str | OptionsOf]] = {
    "data": (OptionsOf(DataSpec),),
    "task": (OptionsOf(HeadSpec),),
    "kind": ("kind", "init", OptionsOf(kind_options)),
    "fusion": ("fuse", OptionsOf(FusionSpec)),
    "training": (OptionsOf(Schedule), OptionsOf(LoopSpec), OptionsOf(ContrastiveLoss)),
    "machine": (OptionsOf(Machine), "site_map", "trust_pickle"),
}
"""Sections of training options, also used by the help pages of `sweep` and `distil`."""

COMMAND = Command(
    train,
    _show,
    document=_document,
    examples=(
        "adapter-export train model.pt --data train.csv --validation-data dev.csv --test-data test.csv \\",
        "    --kind pfeiffer --bottleneck 32 --epochs 2 -o sentiment",
        "adapter-export train model.pt --data train.tsv --kind lora --modules query,value --rank 8 --alpha 16 -o c",
        "adapter-export train model.pt --data ner.jsonl --task token --text tokens --label tags -o ner",
        "adapter-export train model.pt --data train.tsv --fuse a,b,c --fusion-temperature 50 -o fused",
        "adapter-export train model.pt --data pairs.jsonl --task embedding --text query --pair passage -o search",
        "adapter-export train decoder.pt --task causal_lm --data conversations.jsonl -o replies",
    ),
    sections=SECTIONS,
    common=(
        *("text", "label", "validation_data", "test_data", "kind", "bottleneck", "fuse"),
        *("epochs", "learning_rate", "seed"),
    ),
)

"""`adapter-export train`: a table of labelled texts becomes an adapter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click
from click.core import ParameterSource

import adapter_export as ae
from adapter_export.api.adapters import check_site_map, composition_record, load_members
from adapter_export.api.base import require
from adapter_export.cli.kind_options import TRAINED, kind_option, make_kind, names_of, with_options
from adapter_export.cli.options import (
    PATH,
    check_free,
    examples,
    force_option,
    json_option,
    output_option,
    site_map_option,
    trust_pickle_option,
)
from adapter_export.cli.output import Bar, console, duration, emit_json, progress_bar, say, size, table
from adapter_export.cli.training_options import (
    fused,
    fusion_options,
    fusion_settings,
    head_of,
    head_options,
    take_fusion_options,
    take_head_options,
)
from adapter_export.errors import BaseMismatchError, BaseModelError, TrainingError, UsageError
from adapter_export.graph.initialise import SCHEMES
from adapter_export.sites.site_map import SITE_MAP_KEY

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter, Head
    from adapter_export.graph.kinds import Kind
    from adapter_export.sites.site import SiteMap
    from adapter_export.sites.site_map import GivenSites
    from adapter_export.text import Tokenizer
    from adapter_export.torch_backend.attach import AdaptedModel
    from adapter_export.torch_backend.base.base import TorchBase
    from adapter_export.torch_backend.train.record import EpochRecord, TrainingSettings
    from adapter_export.torch_backend.train.task import TextTask


# What learns when `train` runs: an adapter of a kind with a head, or a fusion of adapters that stay as they are.


class Learner(Protocol):
    """What learns."""

    @property
    def start(self) -> str:
        """What its first weights are called, for messages."""

    @property
    def options(self) -> dict[str, Any]:
        """What the record says of it."""

    def attached(self, base: TorchBase, sites: SiteMap, name: str, head: Head, seed: int) -> AdaptedModel:
        """The base with it and a fresh head, ready to be trained."""

    def described(self, record: dict[str, Any], first: Adapter) -> dict[str, Any]:
        """The record of a run, with what else is known of the adapter before it."""


@dataclass(frozen=True)
class Fresh:
    """An adapter of a kind.

    Attributes:
        kind: what is computed, and where.
        scheme: how its first weights are drawn.
    """

    kind: Kind
    scheme: str

    @property
    def start(self) -> str:
        """The scheme."""
        return f"`{self.scheme}`"

    @property
    def options(self) -> dict[str, Any]:
        """The scheme."""
        return {"initialisation": self.scheme}

    def attached(self, base: TorchBase, sites: SiteMap, name: str, head: Head, seed: int) -> AdaptedModel:
        """The base with a fresh adapter."""
        from adapter_export.torch_backend.attach import attach
        from adapter_export.torch_backend.train.fresh import fresh_adapter

        made = fresh_adapter(
            self.kind, sites, name=name, base=base.fingerprint, scheme=self.scheme, seed=seed, head=head
        )
        return attach(base, made, sites=sites)

    def described(self, record: dict[str, Any], first: Adapter) -> dict[str, Any]:  # noqa: ARG002
        """The record as it is."""
        return record


@dataclass(frozen=True)
class Fusion:
    """A fusion of adapters.

    Attributes:
        chosen: its options, as the command line has them.
        members: the adapters.
        given: the site map of this call; none without one.
    """

    chosen: Mapping[str, Any]
    members: Sequence[Adapter]
    given: GivenSites | None

    @property
    def start(self) -> str:
        """The fusion, its members in it."""
        return f"the fresh fusion of {', '.join(f'`{adapter.name}`' for adapter in self.members)}"

    @property
    def options(self) -> dict[str, Any]:
        """What was chosen; the members are described elsewhere."""
        return {name: value for name, value in self.chosen.items() if name != "fuse"}

    def attached(self, base: TorchBase, sites: SiteMap, name: str, head: Head, seed: int) -> AdaptedModel:
        """The base with the fusion, of which the members do not learn.

        Raises:
            BaseMismatchError: a member was trained on another base.
            UsageError, AdapterError: the members do not go together.
        """
        from adapter_export.graph.compose.members import own_tensors
        from adapter_export.torch_backend.attach import attach
        from adapter_export.torch_backend.train.fresh import with_head

        for adapter in self.members:
            if adapter.base != base.fingerprint:
                raise BaseMismatchError(
                    adapter.name, found=adapter.base, expected=base.fingerprint, can_be_allowed=False
                )
        check_site_map(self.members, self.given)
        made = fused(self.chosen, tuple(self.members), name, seed)
        whole = with_head(made, head, seed=seed)
        fresh = [tensor for tensor in whole.weights if tensor not in made.weights]
        return attach(base, whole, sites=sites, learned=[*own_tensors(made), *fresh])

    def described(self, record: dict[str, Any], first: Adapter) -> dict[str, Any]:
        """With the members."""
        return composition_record({**record, **first.training}, self.members)


# What `train` shows: a bar while it runs, and a table of its epochs.

_SMOOTHING = 0.95


class TrainingBar:
    """A bar with the running mean of the loss and the last value of the first metric."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._bar: Bar | None = None
        self._loss: float | None = None
        self._metric = ""

    def started(self, steps: int, done: int) -> None:
        """Show the bar, and say so if an interrupted run goes on."""
        if done:
            say(f"going on with the interrupted run, after step {done:,} of {steps:,}.")
        self._bar = self._stack.enter_context(progress_bar("training", steps))
        self._bar.advance(done)

    def stepped(self, loss: float) -> None:
        """Advance the bar."""
        assert self._bar is not None
        self._loss = loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._bar.advance(note=f"loss {self._loss:.3f}{self._metric}")

    def epoch_finished(self, record: EpochRecord) -> None:
        """Show the metric from now on."""
        from adapter_export.torch_backend.train.objectives import metric_name

        assert self._bar is not None
        name, value = next(iter(record.validation.metrics.items()))
        self._metric = f"  {metric_name(name)} {value:.3f}"
        self._bar.describe(f"training, {record.epoch} epoch{'s' if record.epoch > 1 else ''} done")


@contextmanager
def bar() -> Iterator[TrainingBar]:
    """A bar for a run; it ends when the block ends."""
    with ExitStack() as stack:
        yield TrainingBar(stack)


def report(adapter: Adapter, output: Path, notes: tuple[str, ...], *, as_json: bool) -> None:
    """Tell what was made: one JSON document, or a table and lines."""
    from adapter_export.torch_backend.train.curve import CURVE_FILE

    cost, record = adapter.cost(), adapter.training
    if as_json:
        made = {"adapter": str(output), "name": adapter.name, "kind": adapter.kind}
        sizes = {"parameters": cost.parameters, "bytes": cost.bytes, "sites": list(adapter.placements)}
        assert adapter.head is not None
        labels = list(adapter.head.labels) or None
        emit_json(
            {**made, **sizes, "labels": labels, "notes": list(notes), "curve": str(output / CURVE_FILE), **record}
        )
        return
    console().print(_epochs(record))
    if "test" in record:
        console().print(f"test {', '.join(f'{name} {value:.3f}' for name, value in _metrics(record['test']))}")
    say(
        f"wrote {output}: `{adapter.name}`, {adapter.kind}, {len(adapter.placements)} sites, "
        f"{cost.parameters:,} parameters, {size(cost.bytes)}; its learning curve is {output / CURVE_FILE}."
    )
    say(f"Next: adapter-export build MODEL --adapters {output} -o bundle")


def _epochs(record: Mapping[str, Any]) -> object:
    rows = [
        (
            f"{epoch['epoch']}{' *' if epoch['epoch'] == record['best_epoch'] else ''}",
            f"{epoch['training_loss']:.4f}",
            f"{epoch['validation']['loss']:.4f}",
            *(f"{value:.4f}" for _, value in _metrics(epoch["validation"])),
            duration(epoch["seconds"]),
        )
        for epoch in record["history"]
    ]
    names = [name for name, _ in _metrics(record["validation"])]
    columns = ("epoch", "training loss", "validation loss", *names, "time")
    return table("Epochs (* kept)", columns, rows, numbers="l" + "r" * (len(columns) - 1))


def _metrics(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """The metrics among scores, each by its name for people."""
    from adapter_export.torch_backend.train.objectives import metric_name

    return [(metric_name(name), value) for name, value in scores.items() if name != "loss"]


# What `train` does: from its options to an adapter folder.

MAX_TOKENS = 128
"""Where texts are cut if nobody says it and the model takes as many."""

_ROWS_MEASURED = 32


@dataclass(frozen=True)
class Call:
    """The options, by their names on the command line."""

    model: Path
    data: Path
    text: str
    label: str
    skip_incomplete: bool
    validation: float | None
    validation_data: Path | None
    test_data: Path | None
    tokenizer: Path | None
    max_tokens: int | None
    kind: str
    kind_options: Mapping[str, Any]
    init: str | None
    head_options: Mapping[str, Any]
    fusion_options: Mapping[str, Any]
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    patience: int
    seed: int
    threads: int | None
    name: str | None
    resume: bool
    restart: bool
    output: Path
    site_map: Path | None
    force: bool
    trust_pickle: bool
    as_json: bool

    def __post_init__(self) -> None:
        for one, other in (("validation", "validation_data"), ("resume", "restart")):
            if getattr(self, one) not in (None, False) and getattr(self, other) not in (None, False):
                names = [f"`--{name.replace('_', '-')}`" for name in (one, other)]
                raise UsageError(f"{names[0]} and {names[1]} exclude each other", fix="give one of them")

    @cached_property
    def given(self) -> GivenSites | None:
        """The site map, if there is one."""
        from adapter_export.format.site_map_json import read_site_map

        return None if self.site_map is None else read_site_map(self.site_map)

    @property
    def checkpoints(self) -> Path:
        """Where an interrupted run is kept, beside the output."""
        return self.output.with_name(f"{self.output.name}.partial")

    def learner(self) -> Learner:
        """What learns: an adapter of a kind, or a fusion of adapters."""
        if self.fusion_options:
            return Fusion(self.fusion_options, load_members(self.fusion_options["fuse"], self.model), self.given)
        kind = make_kind(self.kind, self.kind_options)
        return Fresh(kind, self.init or kind.scheme)

    def settings(self) -> TrainingSettings:
        """Those of the training loop."""
        from adapter_export.torch_backend.train.record import TrainingSettings

        return TrainingSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            patience=self.patience,
            seed=self.seed,
            **fusion_settings(self.fusion_options),
        )


def run(call: Call) -> None:
    """Train an adapter, write it, and tell."""
    from adapter_export.cli.output import say, warn

    check_free(call.output, force=call.force)
    torch = require("torch", "torch", "training")
    learner, settings = call.learner(), call.settings()
    if call.threads is not None:
        torch.set_num_threads(call.threads)
    _prepare_checkpoints(call)
    base = ae.open_base(call.model, trust_pickle=call.trust_pickle).torch
    _check_no_cache(call, base)
    task = _read_task(call, base)
    for note in task.notes:
        warn(f"{note}.")
    sites = _sites(call, base)
    head = head_of(call.head_options, task, sites.width)
    model = learner.attached(base, sites, call.name or call.output.resolve().name, head, call.seed)
    change = _first_change(model, task)
    learnt = f"{len(task.labels)} classes" if task.labels else f"{task.numbers} numbers"
    say(
        f"{len(task.training.texts):,} rows to learn from, {len(task.validation.texts):,} to validate by, "
        f"{learnt}; {learner.start} moves the final hidden state by {change:.2%} at the start."
    )
    _finish(call, settings, learner, model, task, change)


def _check_no_cache(call: Call, base: TorchBase) -> None:
    """Rows of a table have no past, and a head reads the hidden state, not the next word."""
    caches = [record.name for record in base.inputs if record.role == "cache"]
    if caches:
        raise BaseModelError(
            "was captured with its cache, as it generates, and rows of a table have no past",
            where=call.model,
            found=f"{len(caches)} inputs such as `{caches[0]}`",
            expected="the bare model",
            fix="capture it again without `--with-cache` and train on that; its fingerprint is another, so build the "
            "adapter into the decoder with `--allow-base-mismatch`",
        )


def _prepare_checkpoints(call: Call) -> None:
    if call.restart:
        shutil.rmtree(call.checkpoints, ignore_errors=True)
    if call.resume and not call.checkpoints.exists():
        raise TrainingError(
            "there is no interrupted run", where=call.checkpoints, fix="leave `--resume` out to begin one"
        )


def _read_task(call: Call, base: TorchBase) -> TextTask:
    from adapter_export.torch_backend.train.task import TaskFiles, read_task

    validation = call.validation_data or (0.1 if call.validation is None else call.validation)
    learnt = call.head_options["task"]
    files = TaskFiles(call.data, validation, call.test_data, call.text, call.label, call.skip_incomplete, learnt)
    return read_task(files, _tokenizer(call, base), tuple(record.name for record in base.inputs), call.seed)


def _tokenizer(call: Call, base: TorchBase) -> Tokenizer:
    from adapter_export.text import Tokenizer

    limit = MAX_TOKENS if base.max_tokens is None else min(MAX_TOKENS, base.max_tokens)
    if call.max_tokens is not None:
        limit = call.max_tokens
        if base.max_tokens is not None and limit > base.max_tokens:
            raise UsageError(
                "`--max-tokens` is more than the model takes", found=limit, expected=f"at most {base.max_tokens}"
            )
    if call.tokenizer is not None:
        return Tokenizer.from_folder(call.tokenizer, limit)
    if base.tokenizer is None:
        raise UsageError(
            "the model brings no tokenizer",
            where=call.model,
            fix="name the folder of its `tokenizer.json`: `--tokenizer FOLDER`",
        )
    return Tokenizer.from_json(base.tokenizer, limit)


def _sites(call: Call, base: TorchBase) -> SiteMap:
    from adapter_export.sites.site_map import sites_of
    from adapter_export.torch_backend.view import flow_graph

    return sites_of(flow_graph(base.module()), "torch", call.given)


def _first_change(model: AdaptedModel, task: TextTask) -> float:
    """How far the fresh adapter moves the final hidden state on the first rows."""
    import numpy as np

    from adapter_export.torch_backend.train.fresh import relative_change

    rows = np.arange(min(_ROWS_MEASURED, len(task.training.texts)))
    return relative_change(model, task.training.inputs(rows))


def _finish(
    call: Call, settings: TrainingSettings, learner: Learner, model: AdaptedModel, task: TextTask, change: float
) -> None:
    """Train, measure, write, and tell."""
    pass  # MOVE
    from adapter_export.format.adapter_files import write_adapter
    from adapter_export.torch_backend.train.curve import CURVE_FILE, draw_curve
    from adapter_export.torch_backend.train.objectives import OBJECTIVES
    from adapter_export.torch_backend.train.record import training_record
    from adapter_export.torch_backend.train.train import TrainingData, evaluate
    from adapter_export.torch_backend.train.train import train as learn

    with bar() as progress:
        data = TrainingData(task.training, task.validation)
        result = learn(model, data, settings, progress=progress, checkpoints=call.checkpoints)
    test = None if task.test is None else evaluate(model, task.test, call.batch_size)
    options = {**learner.options, "initial_change": change, **_options(call, task)}
    record = training_record(settings, options, task, result, test)
    assert model.adapter is not None  # it was attached
    adapter = model.to_adapter(training=learner.described(record, model.adapter))
    write_adapter(adapter, call.output, force=call.force)
    draw_curve(
        result.history,
        result.best_epoch,
        f"{adapter.name} ({adapter.kind})",
        call.output / CURVE_FILE,
        loss_name=OBJECTIVES[task.task].loss_name,
    )
    shutil.rmtree(call.checkpoints, ignore_errors=True)
    report(adapter, call.output, task.notes, as_json=call.as_json)


def _options(call: Call, task: TextTask) -> dict[str, Any]:
    """What the record says beside the settings of the loop and of what learns."""
    return {
        **call.kind_options,
        **call.head_options,
        "max_tokens": task.training.tokenizer.max_tokens,
        **({} if call.given is None else {SITE_MAP_KEY: call.given.digest}),
    }


@click.command(
    epilog=examples(
        "adapter-export train model.pt --data train.tsv --text text --label label --kind houlsby -o a",
        "adapter-export train model.pt --data train.csv --validation-data dev.csv --test-data test.csv \\",
        "    --kind pfeiffer --bottleneck 32 --epochs 2 -o sentiment",
        "adapter-export train HF_FOLDER --data rows.jsonl --tokenizer HF_FOLDER --kind parallel -o b",
        "adapter-export train model.pt --data train.tsv --kind lora --on query,value --rank 8 --alpha 16 -o c",
        "adapter-export train model.pt --data ner.jsonl --task token_classification --text tokens --label tags -o ner",
        "adapter-export train model.pt --data scores.csv --task regression --head-layers 1 -o grade",
        "adapter-export train model.pt --data train.tsv --fuse a,b,c --temperature 50 -o fused",
    )
)
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, required=True, metavar="FILE", help="Labelled texts: csv, tsv or jsonl in UTF-8.")
@click.option("--text", default="text", show_default=True, metavar="COLUMN", help="The column of the texts.")
@click.option("--label", default="label", show_default=True, metavar="COLUMN", help="The column of the labels.")
@click.option("--skip-incomplete", is_flag=True, help="Leave rows without text or label out, instead of stopping.")
@click.option(
    "--validation", type=float, metavar="FRACTION", help="The part of each class kept for validation.  [default: 0.1]"
)
@click.option("--validation-data", type=PATH, metavar="FILE", help="Validate by this file instead.")
@click.option("--test-data", type=PATH, metavar="FILE", help="Measure the finished adapter on this file.")
@click.option(
    "--tokenizer", type=PATH, metavar="FOLDER", help="Where `tokenizer.json` is; the model's own if not given."
)
@click.option("--max-tokens", type=int, help=f"Cut texts there.  [default: {MAX_TOKENS}, or less if the model says so]")
@kind_option(default="houlsby", show_default=True)
@with_options(TRAINED)
@click.option(
    "--init",
    type=click.Choice(tuple(SCHEMES)),
    help="How the first weights are drawn; by kind if not given, `small_normal` for `houlsby`.",
)
@fusion_options
@head_options
@click.option("--epochs", type=int, default=4, show_default=True, help="Passes over the data, at most.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Rows in a step.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="The highest one.")
@click.option("--warmup", type=float, default=0.1, show_default=True, help="The part of the steps that warms up.")
@click.option("--weight-decay", type=float, default=0.01, show_default=True, help="On the projections.")
@click.option("--patience", type=int, default=3, show_default=True, help="Stop after so many epochs without a better.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, split, order and dropout.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads; as many as torch takes if not given.")
@click.option("--name", help="What users will call it; the output's name if not given.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run, and stop if there is none.")
@click.option("--restart", is_flag=True, help="Forget an interrupted run.")
@output_option("The adapter folder")
@site_map_option
@force_option
@trust_pickle_option
@json_option
def train(**given: Any) -> None:
    """Train an adapter for MODEL, a torch archive or a Hugging Face folder, on a table of labelled texts.

    For `--task token_classification` the column of the texts holds words and that of the labels a label for each word:
    lists in a jsonl file, or words with spaces between them. For `--task regression` the labels are numbers, one or a
    list. An embedding learns from labels: texts of one label shall be near each other.

    The model stays as it is. The epoch that does best on the validation rows is kept: the best accuracy, the macro-F1
    of tokens, the least error of numbers, the accuracy of nearest neighbours. A run that was interrupted goes on when
    the same command is given again, and ends with the same weights.

    With `--fuse`, the named adapters stay as they are, and what is learnt is a new head and how each token weighs them
    (AdapterFusion), or one weight for each of them.
    """
    head, fusion = take_head_options(given), take_fusion_options(given)
    options = {name: given.pop(name) for name in names_of(TRAINED)}
    kind_options = {name: value for name, value in options.items() if value is not None}
    if fusion:
        _refuse_with_fusion([*kind_options, *(name for name in ("kind", "init") if _was_given(name))])
    run(Call(kind_options=kind_options, head_options=head, fusion_options=fusion, **given))


def _was_given(name: str) -> bool:
    """Whether an option stands on the command line, and not for its default."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def _refuse_with_fusion(names: list[str]) -> None:
    if names:
        raise UsageError(
            "a fusion is made of its adapters and has no kind of its own",
            found=", ".join(f"`--{name.replace('_', '-')}`" for name in names),
            fix="leave it out, or leave `--fuse` out",
        )

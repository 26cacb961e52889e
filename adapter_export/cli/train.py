"""`adapter-export train`: a table of labelled texts becomes an adapter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapter_export.cli.head_options import head_of, head_options, take_head_options
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
from adapter_export.cli.sources import read_given
from adapter_export.errors import BaseModelError, TrainingError, UsageError
from adapter_export.graph.initialise import SCHEMES
from adapter_export.graph.kinds import Kind
from adapter_export.sites.given import SITE_MAP_KEY

if TYPE_CHECKING:
    from adapter_export.sites.given import GivenSites
    from adapter_export.sites.site import SiteMap
    from adapter_export.text import Tokenizer
    from adapter_export.torch.attach import AdaptedModel
    from adapter_export.torch.base import TorchBase
    from adapter_export.torch.settings import TrainingSettings
    from adapter_export.torch.task import TextTask

_MAX_TOKENS = 128
_ROWS_MEASURED = 32


@click.command(
    epilog=examples(
        "adapter-export train model.pt --data train.tsv --text text --label label --kind houlsby -o a",
        "adapter-export train model.pt --data train.csv --validation-data dev.csv --test-data test.csv \\",
        "    --kind pfeiffer --bottleneck 32 --epochs 2 -o sentiment",
        "adapter-export train HF_FOLDER --data rows.jsonl --tokenizer HF_FOLDER --kind parallel -o b",
        "adapter-export train model.pt --data train.tsv --kind lora --on query,value --rank 8 --alpha 16 -o c",
        "adapter-export train model.pt --data ner.jsonl --task token_classification --text tokens --label tags -o ner",
        "adapter-export train model.pt --data scores.csv --task regression --head-layers 1 -o grade",
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
@click.option(
    "--max-tokens", type=int, help=f"Cut texts there.  [default: {_MAX_TOKENS}, or less if the model says so]"
)
@kind_option(default="houlsby", show_default=True)
@with_options(TRAINED)
@click.option(
    "--init",
    type=click.Choice(tuple(SCHEMES)),
    help="How the first weights are drawn; by kind if not given, `small_normal` for `houlsby`.",
)
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
    """
    head = take_head_options(given)
    options = {name: given.pop(name) for name in names_of(TRAINED)}
    kind_options = {name: value for name, value in options.items() if value is not None}
    _train(_Call(kind_options=kind_options, head_options=head, **given))


@dataclass(frozen=True)
class _Call:
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
        return None if self.site_map is None else read_given(self.site_map)

    @property
    def checkpoints(self) -> Path:
        """Where an interrupted run is kept, beside the output."""
        return self.output.with_name(f"{self.output.name}.partial")

    def made_kind(self) -> Kind:
        return make_kind(self.kind, self.kind_options)

    def settings(self) -> TrainingSettings:
        from adapter_export.torch.settings import TrainingSettings

        return TrainingSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            patience=self.patience,
            seed=self.seed,
        )


def _train(call: _Call) -> None:
    from adapter_export.cli.output import say, warn
    from adapter_export.cli.sources import open_torch, require

    check_free(call.output, force=call.force)
    torch = require("torch", "torch", "training")
    kind, settings = call.made_kind(), call.settings()
    if call.threads is not None:
        torch.set_num_threads(call.threads)
    _prepare_checkpoints(call)
    base = open_torch(call.model, trust_pickle=call.trust_pickle)
    _check_no_cache(call, base)
    task = _read_task(call, base)
    for note in task.notes:
        warn(f"{note}.")
    model = _attached(call, kind, base, task)
    change = _first_change(model, task)
    learnt = f"{len(task.labels)} classes" if task.labels else f"{task.numbers} numbers"
    say(
        f"{len(task.training.texts):,} rows to learn from, {len(task.validation.texts):,} to validate by, "
        f"{learnt}; `{call.init or kind.scheme}` moves the final hidden state by {change:.2%} at the "
        "start."
    )
    _finish(call, settings, model, task, {"initialisation": call.init or kind.scheme, "initial_change": change})


def _check_no_cache(call: _Call, base: TorchBase) -> None:
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


def _prepare_checkpoints(call: _Call) -> None:
    if call.restart:
        shutil.rmtree(call.checkpoints, ignore_errors=True)
    if call.resume and not call.checkpoints.exists():
        raise TrainingError(
            "there is no interrupted run", where=call.checkpoints, fix="leave `--resume` out to begin one"
        )


def _read_task(call: _Call, base: TorchBase) -> TextTask:
    from adapter_export.torch.task import TaskFiles, read_task

    validation = call.validation_data or (0.1 if call.validation is None else call.validation)
    learnt = call.head_options["task"]
    files = TaskFiles(call.data, validation, call.test_data, call.text, call.label, call.skip_incomplete, learnt)
    return read_task(files, _tokenizer(call, base), tuple(record.name for record in base.inputs), call.seed)


def _tokenizer(call: _Call, base: TorchBase) -> Tokenizer:
    from adapter_export.text import Tokenizer

    limit = _MAX_TOKENS if base.max_tokens is None else min(_MAX_TOKENS, base.max_tokens)
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


def _attached(call: _Call, kind: Kind, base: TorchBase, task: TextTask) -> AdaptedModel:
    from adapter_export.torch.attach import attach
    from adapter_export.torch.fresh import fresh_adapter

    sites = _sites(call, base)
    adapter = fresh_adapter(
        kind,
        sites,
        name=call.name or call.output.resolve().name,
        base=base.fingerprint,
        scheme=call.init,
        seed=call.seed,
        head=head_of(call.head_options, task, sites.width),
    )
    return attach(base, adapter, sites=sites)


def _sites(call: _Call, base: TorchBase) -> SiteMap:
    from adapter_export.sites.given import sites_of
    from adapter_export.torch.flow import flow_graph

    return sites_of(flow_graph(base.module()), "torch", call.given)


def _first_change(model: AdaptedModel, task: TextTask) -> float:
    """How far the fresh adapter moves the final hidden state on the first rows."""
    import numpy as np

    from adapter_export.torch.fresh import relative_change

    rows = np.arange(min(_ROWS_MEASURED, len(task.training.texts)))
    return relative_change(model, task.training.inputs(rows))


def _finish(
    call: _Call, settings: TrainingSettings, model: AdaptedModel, task: TextTask, start: Mapping[str, Any]
) -> None:
    """Train, measure, write, and tell."""
    from adapter_export.cli.training_report import bar, report
    from adapter_export.format.adapter_files import write_adapter
    from adapter_export.torch.curve import CURVE_FILE, draw_curve
    from adapter_export.torch.metrics import evaluate
    from adapter_export.torch.objectives import OBJECTIVES
    from adapter_export.torch.record import training_record
    from adapter_export.torch.train import TrainingData
    from adapter_export.torch.train import train as learn

    with bar() as progress:
        data = TrainingData(task.training, task.validation)
        result = learn(model, data, settings, progress=progress, checkpoints=call.checkpoints)
    test = None if task.test is None else evaluate(model, task.test, call.batch_size)
    record = training_record(settings, _options(call, task, start), task, result, test)
    adapter = model.to_adapter(training=record)
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


def _options(call: _Call, task: TextTask, start: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says beside the settings of the loop."""
    return {
        **call.kind_options,
        **start,
        **call.head_options,
        "max_tokens": task.training.tokenizer.max_tokens,
        **({} if call.given is None else {SITE_MAP_KEY: call.given.digest}),
    }

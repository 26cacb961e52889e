"""What `train` does: from its options to an adapter folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_export.cli.fusion_options import fusion_settings
from adapter_export.cli.head_options import head_of
from adapter_export.cli.kind_options import make_kind
from adapter_export.cli.learners import Fresh, Fusion, Learner
from adapter_export.cli.members import read_members
from adapter_export.cli.options import check_free
from adapter_export.cli.sources import read_given
from adapter_export.errors import BaseModelError, TrainingError, UsageError
from adapter_export.sites.given import SITE_MAP_KEY

if TYPE_CHECKING:
    from adapter_export.sites.given import GivenSites
    from adapter_export.sites.site import SiteMap
    from adapter_export.text import Tokenizer
    from adapter_export.torch.attach import AdaptedModel
    from adapter_export.torch.base import TorchBase
    from adapter_export.torch.settings import TrainingSettings
    from adapter_export.torch.task import TextTask

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
        return None if self.site_map is None else read_given(self.site_map)

    @property
    def checkpoints(self) -> Path:
        """Where an interrupted run is kept, beside the output."""
        return self.output.with_name(f"{self.output.name}.partial")

    def learner(self) -> Learner:
        """What learns: an adapter of a kind, or a fusion of adapters."""
        if self.fusion_options:
            return Fusion(self.fusion_options, read_members(self.fusion_options["fuse"], self.model), self.given)
        kind = make_kind(self.kind, self.kind_options)
        return Fresh(kind, self.init or kind.scheme)

    def settings(self) -> TrainingSettings:
        """Those of the training loop."""
        from adapter_export.torch.settings import TrainingSettings

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
    from adapter_export.cli.sources import open_torch, require

    check_free(call.output, force=call.force)
    torch = require("torch", "torch", "training")
    learner, settings = call.learner(), call.settings()
    if call.threads is not None:
        torch.set_num_threads(call.threads)
    _prepare_checkpoints(call)
    base = open_torch(call.model, trust_pickle=call.trust_pickle)
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
    from adapter_export.torch.task import TaskFiles, read_task

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
    call: Call, settings: TrainingSettings, learner: Learner, model: AdaptedModel, task: TextTask, change: float
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

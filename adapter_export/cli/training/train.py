"""`adapter-export train` and `distil`: a table of labelled texts becomes an adapter, or a model without one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import adapter_export as ae
from adapter_export.api.adapters.kinds import kind_options
from adapter_export.api.training.fusion import FusionSpec
from adapter_export.api.training.specs import DataSpec, HeadSpec
from adapter_export.cli.options import AdapterFolder, Force, Json, LabelledData, command
from adapter_export.cli.output import emit_json, say, show
from adapter_export.cli.reporter import TerminalReporter, duration
from adapter_export.option import Option, OptionsOf
from adapter_export.tables import Table
from adapter_export.torch_backend.train.settings import LoopSpec, Machine

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter


SECTIONS: Mapping[str, tuple[str, ...]] = {
    "data": tuple(OptionsOf(DataSpec).defaults()),
    "task": tuple(OptionsOf(HeadSpec).defaults()),
    "kind": ("kind", "init", *OptionsOf(kind_options).defaults()),
    "fusion": ("fuse", *OptionsOf(FusionSpec).defaults()),
    "training": tuple(OptionsOf(LoopSpec).defaults()),
    "machine": (*OptionsOf(Machine).defaults(), "site_map", "trust_pickle"),
}
"""Those of the options of `train`, on its help page and on that of `sweep`."""


@command(
    "adapter-export train model.pt --data train.csv --validation-data dev.csv --test-data test.csv \\",
    "    --kind pfeiffer --bottleneck 32 --epochs 2 -o sentiment",
    "adapter-export train model.pt --data train.tsv --kind lora --modules query,value --rank 8 --alpha 16 -o c",
    "adapter-export train model.pt --data ner.jsonl --task token --text tokens --label tags -o ner",
    "adapter-export train model.pt --data train.tsv --fuse a,b,c --temperature 50 -o fused",
    "adapter-export train decoder.pt --task causal_lm --data replies.jsonl -o replies",
    like=ae.train,
    sections=SECTIONS,
    common=(
        *("text", "label", "validation_data", "test_data", "kind", "bottleneck", "fuse"),
        *("epochs", "learning_rate", "seed"),
    ),
)
def train(
    model: Path,
    *,
    data: LabelledData,
    output: AdapterFolder,
    fuse: Annotated[
        tuple[str, ...],
        "Learn a fusion of these adapters, which stay as they are, in the place of a new adapter; `NAME=FOLDER` "
        "renames one.",
    ] = (),
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Train an adapter for MODEL, a torch archive or a Hugging Face folder, on labelled texts.

    `--task` says what is learnt: one label by default, label sets, labels of words, answers in texts, choices, numbers,
    vectors, rankings, or to write. docs/tasks.md has the tables of each, and images and audio.

    The model stays as it is, and the epoch that does best on the validation rows is kept. A run that was interrupted
    goes on when the same command is given again, and ends with the same weights. With `--fuse`, the named adapters stay
    as they are, too, and a new head and how each token weighs them is learnt. docs/training.md has all of it.
    """
    with TerminalReporter("training") as reporter:
        made = ae.train(model, data, output, fuse=fuse, force=force, reporter=reporter, **options)
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
        _report(made, output, reporter.notes, as_json)


@command(
    "adapter-export distil model.pt --adapter adapters/trec --data train.tsv -o student",
    "adapter-export distil model.pt --adapter adapters/trec --data train.tsv --layers 3 --epochs 10 -o student",
    "adapter-export distil model.pt --adapter a --data train.tsv --unlabelled more.txt --hard 0.5 -o student",
    "adapter-export distil model.pt --data train.tsv -o tuned      # no teacher: full fine-tuning",
    like=ae.distil,
    sections=SECTIONS,
    common=("text", "label", "validation_data", "test_data", "epochs", "learning_rate"),
)
def distil(
    model: Path,
    *,
    data: Annotated[Path, Option("Labelled rows, as `train` reads them.", "PATH")],
    output: Annotated[Path, Option("The folder to write.", "PATH", "-o")],
    adapter: Annotated[Path | None, Option("The teacher's adapter, a folder; labels alone if not given.")] = None,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Let a student without adapters learn from MODEL with an adapter, its teacher.

    All weights of the student learn. It is MODEL, whole or with some of its layers, and starts from MODEL's weights and
    the adapter's head. What is learnt are the teacher's results at a temperature, its hidden states before each layer
    that is kept and at the end, and the labels, each with a weight. Without --adapter, labels alone are learnt: full
    fine-tuning.

    The folder has the student as a model with its head (`model.pt`, which `build`, `sites` and `train` take), as plain
    ONNX without slots (`model.onnx`), and the report (`distillation.json`). A run that was interrupted goes on when the
    same command is given again, and ends with the same weights.
    """
    with TerminalReporter("training") as reporter:
        found = ae.distil(model, data, output, adapter=adapter, force=force, reporter=reporter, **options)
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        return
    if as_json:
        emit_json({**found.to_json(), "warnings": reporter.notes})
        return
    show(found.table())
    for note in found.notes:
        say(f"  {note}")
    say(f"wrote {output}.")
    say(f"Next: adapter-export build {output / 'model.pt'} -o bundle")


def _report(made: Adapter, output: Path, notes: list[str], as_json: bool) -> None:
    from adapter_export.cli.bases import report_adapter
    from adapter_export.torch_backend.train.record import CURVE_FILE

    record, curve = made.training, output / CURVE_FILE
    if not as_json:
        test = [f"{name} {value:.3f}" for name, value in _metrics(record.get("test", {}))]
        show(_epochs(record), *([f"test {', '.join(test)}"] if test else ()))
        say(f"the learning curve is {curve}.")
    facts = {"bytes": made.cost().bytes, "curve": str(curve), **record}
    report_adapter(made, (), output, as_json, facts, notes)


def _epochs(record: Mapping[str, Any]) -> Table:
    names = [name for name in record["validation"] if name != "loss"]
    rows = [
        (
            f"{epoch['epoch']}{' *' if epoch['epoch'] == record['best_epoch'] else ''}",
            f"{epoch['training_loss']:.4f}",
            f"{epoch['validation']['loss']:.4f}",
            *(f"{epoch['validation'].get(name, math.nan):.4f}" for name in names),
            duration(epoch["seconds"]),
        )
        for epoch in record["history"]
    ]
    words = [name for name, _ in _metrics(record["validation"])]
    columns = ("epoch", "training loss", "validation loss", *words, "time")
    return Table(columns, rows, "Epochs (* kept)", "l" + "r" * (len(columns) - 1))


def _metrics(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """The metrics among scores, each by its name for people."""
    from adapter_export.graph.tasks.metrics import Metric

    return [(Metric(name).words, value) for name, value in scores.items() if name != "loss"]

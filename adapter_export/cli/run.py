"""`adapter-export run`: a bundle on texts or arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from adapter_export.cli.options import PATH, check_free, examples, force_option, json_option
from adapter_export.cli.places import read_shares
from adapter_export.errors import UsageError
from adapter_export.graph.tasks import TASKS

if TYPE_CHECKING:
    from adapter_export.cli.choices import Choice
    from adapter_export.cli.rows import Text
    from adapter_export.graph.tasks import Task
    from adapter_export.runtime import Session

_CHOICES = ("adapter", "adapters", "adapter_column")
_SOURCES = ("texts", "data", "arrays")
_OPTION = {"texts": "--text"}


@click.command(
    epilog=examples(
        "adapter-export run bundle --adapter trec --text 'How far is the moon?' --text 'Who wrote Faust?'",
        "adapter-export run bundle --adapters trec,sentiment,- --text 'How far?' --text 'Well done.' --text 'And?'",
        "adapter-export run bundle --adapter fused --weights calm=0.3,warm=0.7 --text 'How far is the moon?'",
        "adapter-export run bundle --data requests.jsonl --adapter-column adapter --many > answers.jsonl",
        "adapter-export run bundle --adapter sentiment < sentences.txt",
        "adapter-export run bundle --arrays inputs.npz --out outputs.npz",
        "adapter-export run bundle --adapter-file new.onnx_adapter --labels no,yes --text 'Is it new?'",
    )
)
@click.argument("bundle", type=PATH)
@click.option("--adapter", metavar="NAME", help="An adapter for all rows; the base alone if nothing is chosen.")
@click.option("--adapters", metavar="A,B,-", help="An adapter for each row, `-` for the base, in one call.")
@click.option("--adapter-column", metavar="NAME", help="The column of `--data` that names the adapter of each row.")
@click.option(
    "--weights",
    metavar="A=0.3,B=0.7",
    callback=read_shares,
    help="Of an `--adapter` that is a weighted fusion: weights for all its members, in the place of its own.",
)
@click.option(
    "--adapter-file", type=PATH, metavar="FILE", help="Load this `.onnx_adapter` file, built for the same graph, too."
)
@click.option("--labels", metavar="A,B,…", help="The names of its classes, in the order of its logits.")
@click.option("--task", type=click.Choice(TASKS), help="What its head is for; by its labels if not given.")
@click.option("--text", "texts", multiple=True, help="A text; may be repeated. Without it, each line of stdin is one.")
@click.option("--data", type=PATH, metavar="FILE", help="Texts: lines of a `.txt`, or rows of a csv, tsv or jsonl.")
@click.option("--text-column", metavar="NAME", default="text", show_default=True, help="Its column with the texts.")
@click.option(
    "--arrays", type=PATH, metavar="FILE", help="A `.npz` or `.safetensors` with an array for each input, not texts."
)
@click.option("--out", type=PATH, metavar="FILE", help="Write all outputs to this `.npz` or `.safetensors`.")
@click.option(
    "--many", is_flag=True, help="For many rows: put together by length, each of its own; one JSON document a line."
)
@click.option("--token-budget", type=click.IntRange(min=1), metavar="N", help="Most tokens in a call of `--many`.")
@click.option(
    "--allow-mixed-rows", is_flag=True, help="Mix rows in one call although the base lets them influence each other."
)
@click.option(
    "--provider", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True, help="Where to compute."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of one operation; ONNX Runtime's choice if not given."
)
@force_option
@json_option
def run(**given: Any) -> None:
    """Run BUNDLE on texts or arrays, with its adapters or with the base alone.

    What an adapter prints is the result of its task: the labels of texts or of their tokens with their probabilities,
    numbers, or the beginning of each vector. The base alone, and an adapter without a head, print a summary of the
    outputs. Rows with different adapters need the bundle's graph `bank`.
    """
    _run(_Call(**given))


@dataclass(frozen=True)
class _Call:
    """The options, by their names on the command line."""

    bundle: Path
    adapter: str | None
    adapters: str | None
    adapter_column: str | None
    weights: Any
    adapter_file: Path | None
    labels: str | None
    task: Task | None
    texts: tuple[str, ...]
    data: Path | None
    text_column: str
    arrays: Path | None
    out: Path | None
    many: bool
    token_budget: int | None
    allow_mixed_rows: bool
    provider: Literal["cpu", "cuda"]
    threads: int | None
    force: bool
    as_json: bool


def _run(call: _Call) -> None:
    from adapter_export.cli import run_batches
    from adapter_export.cli import run_batches as run_many
    from adapter_export.cli.arrays import read_arrays, write_arrays
    from adapter_export.cli.choices import check_names
    from adapter_export.cli.rows import ArrayRows, Rows, TextRows
    from adapter_export.runtime import Bundle

    _check(call)
    bundle = Bundle.open(call.bundle)
    texts = [] if call.arrays else _texts(call)
    rows: Rows = ArrayRows(bundle, read_arrays(call.arrays)) if call.arrays else TextRows(bundle, texts)
    session = bundle.session(provider=call.provider, threads=call.threads, on_demand=True)
    loaded = _load(session, call)
    check_names(texts, session)
    choice = _choice(call, loaded, texts, len(rows))
    base = [record.name for record in bundle.manifest.base_outputs]
    if call.many:
        run_many.run_lines(session, rows, choice, base, token_budget=call.token_budget)
        return
    batches = run_batches.run_batches(session, rows, choice, together=call.out is not None or call.arrays is not None)
    if call.out:
        write_arrays(call.out, batches[0].outputs, force=call.force)
    run_batches.show(rows, choice.heads(session), batches, base, as_json=call.as_json)


def _check(call: _Call) -> None:
    from adapter_export.cli.arrays import check_form

    _check_one(call, _CHOICES)
    _check_one(call, _SOURCES)
    if call.labels is not None and call.adapter_file is None:
        raise UsageError("`--labels` names the classes of `--adapter-file`, which is not given")
    if call.task is not None and call.adapter_file is None:
        raise UsageError("`--task` is that of `--adapter-file`, which is not given")
    if call.adapter_column is not None and call.data is None:
        raise UsageError("`--adapter-column` is one of `--data`, which is not given")
    if call.token_budget is not None and not call.many:
        raise UsageError("`--token-budget` is that of `--many`, which is not given")
    if call.weights is not None and call.adapter is None:
        raise UsageError("`--weights` are those of an `--adapter`, which is not given")
    if call.weights is not None and not isinstance(call.weights, Mapping):
        raise UsageError("`--weights` names the members", found=call.weights, expected="`a=0.3,b=0.7`")
    alone = {"--out": call.out, "--weights": call.weights}
    other = next((name for name, value in alone.items() if value is not None), None)
    if call.many and other is not None:
        raise UsageError(f"`--many` and `{other}` do not go together", fix="leave one out")
    if call.out is not None:
        check_form(call.out)
        check_free(call.out, force=call.force)


def _check_one(call: _Call, names: Sequence[str]) -> None:
    given = [f"`{_OPTION.get(name, '--' + name.replace('_', '-'))}`" for name in names if getattr(call, name)]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} do not go together", fix="give one of them")


def _load(session: Session, call: _Call) -> str | None:
    """Load the file that is given, and say what it is called."""
    if call.adapter_file is None:
        return None
    labels = None if call.labels is None else [label.strip() for label in call.labels.split(",")]
    name = call.adapter_file.name.partition(".")[0]
    name = f"{name}.loaded" if name in session.adapters else name
    session.load(name, call.adapter_file, labels=labels, task=call.task)
    return name


def _texts(call: _Call) -> list[Text]:
    from adapter_export.cli.rows import given_texts, read_table_texts

    if call.data is not None:
        return read_table_texts(call.data, call.text_column, call.adapter_column)
    return given_texts(call.texts)


def _choice(call: _Call, loaded: str | None, texts: Sequence[Text], rows: int) -> Choice:
    """What each row runs through; a file that is given and nothing chosen is meant to be used."""
    from adapter_export.cli.choices import Choice, check_rows, parse_adapters

    names: tuple[str | None, ...] = (call.adapter or loaded,) * rows
    if call.adapters is not None:
        names = parse_adapters(call.adapters)
        check_rows(names, rows)
    elif call.adapter_column is not None:
        names = tuple(text.adapter for text in texts)
    return Choice(names, call.allow_mixed_rows, call.weights)

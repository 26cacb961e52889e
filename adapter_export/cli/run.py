"""`adapter-export run`: a bundle on texts or arrays."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from adapter_export.cli.options import PATH, check_free, examples, force_option, json_option
from adapter_export.errors import UsageError
from adapter_export.graph.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.cli.results import Token
    from adapter_export.graph.tasks import Task
    from adapter_export.runtime import Bundle, Session
    from adapter_export.text import Tokenizer

Arrays = dict[str, "np.ndarray"]

_ROWS_AT_ONCE = 32


@click.command(
    epilog=examples(
        "adapter-export run bundle --adapter trec --text 'How far is the moon?' --text 'Who wrote Faust?'",
        "adapter-export run bundle --adapter sentiment < sentences.txt",
        "adapter-export run bundle --arrays inputs.npz --out outputs.npz",
        "adapter-export run bundle --adapter-file new.onnx_adapter --labels no,yes --text 'Is it new?'",
    )
)
@click.argument("bundle", type=PATH)
@click.option("--adapter", metavar="NAME", help="An adapter of the bundle; the base alone if not given.")
@click.option(
    "--adapter-file", type=PATH, metavar="FILE", help="Load this `.onnx_adapter` file, built for the same graph, too."
)
@click.option("--labels", metavar="A,B,…", help="The names of its classes, in the order of its logits.")
@click.option("--task", type=click.Choice(TASKS), help="What its head is for; by its labels if not given.")
@click.option("--text", "texts", multiple=True, help="A text; may be repeated. Without it, each line of stdin is one.")
@click.option("--arrays", type=PATH, metavar="FILE", help="An `.npz` with an array for each input, instead of texts.")
@click.option("--out", type=PATH, metavar="FILE", help="Write all outputs to this `.npz`.")
@click.option(
    "--provider", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True, help="Where to compute."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of one operation; ONNX Runtime's choice if not given."
)
@force_option
@json_option
def run(**given: Any) -> None:
    """Run BUNDLE on texts or arrays, with one of its adapters or with the base alone.

    What an adapter prints is the result of its task: the labels of texts or of their tokens with their probabilities,
    numbers, or the beginning of each vector. The base alone, and an adapter without a head, print a summary of the
    outputs.
    """
    _run(_Call(**given))


@dataclass(frozen=True)
class _Call:
    """The options, by their names on the command line."""

    bundle: Path
    adapter: str | None
    adapter_file: Path | None
    labels: str | None
    task: Task | None
    texts: tuple[str, ...]
    arrays: Path | None
    out: Path | None
    provider: Literal["cpu", "cuda"]
    threads: int | None
    force: bool
    as_json: bool


@dataclass(frozen=True)
class _Batches:
    """What was run: the texts, if there were any, and the inputs and outputs of each batch."""

    texts: Sequence[str]
    inputs: Sequence[Arrays]
    outputs: Sequence[Arrays]


def _run(call: _Call) -> None:
    from adapter_export.runtime import Bundle

    _check(call)
    bundle = Bundle.open(call.bundle)
    texts = () if call.arrays else _texts(call)
    batches = _batches(bundle, call, texts)
    session = bundle.session(provider=call.provider, threads=call.threads)
    adapter = _chosen(session, call)
    outputs = [session.run(batch, adapter) for batch in batches]
    if call.out:
        _write(outputs[0], call.out, call.force)
    if adapter is not None and session.task(adapter) is not None:
        _show_results(bundle, session, call, adapter, _Batches(texts, batches, outputs))
    else:
        _show_outputs(call, adapter, outputs)


def _check(call: _Call) -> None:
    if call.texts and call.arrays:
        raise UsageError("texts and arrays do not go together", fix="give `--text` or `--arrays`")
    if call.labels is not None and call.adapter_file is None:
        raise UsageError("`--labels` names the classes of `--adapter-file`, which is not given")
    if call.task is not None and call.adapter_file is None:
        raise UsageError("`--task` is that of `--adapter-file`, which is not given")
    if call.out is not None:
        check_free(call.out, force=call.force)


def _chosen(session: Session, call: _Call) -> str | None:
    """The adapter to run with; a file that is given without `--adapter` is meant to be used."""
    if call.adapter_file is None:
        return call.adapter
    labels = None if call.labels is None else [label.strip() for label in call.labels.split(",")]
    name = call.adapter_file.name.partition(".")[0]
    name = f"{name}.loaded" if name in session.adapters else name
    session.load(name, call.adapter_file, labels=labels, task=call.task)
    return call.adapter or name


def _texts(call: _Call) -> tuple[str, ...]:
    if call.texts:
        return call.texts
    if sys.stdin.isatty():
        raise UsageError("there is nothing to run on", fix="give `--text`, `--arrays`, or lines on stdin")
    lines = tuple(line.rstrip("\r\n") for line in sys.stdin if line.strip())
    if not lines:
        raise UsageError("there is nothing to run on", found="no lines on stdin", fix="give `--text` or `--arrays`")
    return lines


def _batches(bundle: Bundle, call: _Call, texts: Sequence[str]) -> list[Arrays]:
    """The inputs; all texts at once where the outputs are wanted, since those of one batch have one length."""
    if call.arrays:
        return [_read(call.arrays)]
    tokenizer = _tokenizer(bundle)
    names = tuple(record.name for record in bundle.manifest.inputs)
    rows = len(texts) if call.out else _ROWS_AT_ONCE
    return [dict(tokenizer.batch(texts[start : start + rows], names)) for start in range(0, len(texts), rows)]


def _tokenizer(bundle: Bundle) -> Tokenizer:
    from adapter_export.cli.sources import read_tokenizer, require

    record = bundle.manifest.text
    if record is None:
        raise UsageError(
            "the bundle has no tokenizer, so it cannot read texts",
            fix="give `--arrays`, or build it again with `--tokenizer`",
        )
    require("tokenizers", "text", "reading texts")
    from adapter_export.text import Tokenizer

    return Tokenizer.from_json(read_tokenizer(bundle.folder / record.tokenizer), record.max_tokens)


def _read(path: Path) -> Arrays:
    import zipfile

    import numpy as np

    from adapter_export.errors import FormatError
    from adapter_export.format.files import unreadable

    try:
        with path.open("rb") as file:  # NumPy leaves a file open that it cannot read
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise ValueError("one array without a name")
            return {name: found[name] for name in found.files}
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(
            "is not an `.npz` of arrays", where=path, found=error, fix="write it with `numpy.savez(path, name=array)`"
        ) from error


def _write(outputs: Mapping[str, np.ndarray], path: Path, force: bool) -> None:
    import numpy as np

    from adapter_export.format.files import new_file

    with new_file(path, force=force) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **outputs)


def _show_results(bundle: Bundle, session: Session, call: _Call, adapter: str, batches: _Batches) -> None:
    """Show what the adapter's head gave."""
    from adapter_export.cli.results import Results, show

    task, output = session.task(adapter), session.output(adapter)
    assert task is not None  # an adapter with a task has an output
    assert output is not None
    rows = [row for outputs in batches.outputs for row in outputs[output]]
    names = list(batches.texts) or [f"row {index}" for index in range(len(rows))]
    tokens = _tokens(bundle, batches) if task == "token_classification" else []
    show(Results(adapter, task, session.labels(adapter) or (), names, rows, tokens), as_json=call.as_json)


def _tokens(bundle: Bundle, batches: _Batches) -> list[list[Token]]:
    """The tokens of every row, batch by batch as they were encoded."""
    import numpy as np

    from adapter_export.cli.results import array_tokens, text_tokens

    if not batches.texts:
        mask = next((record.name for record in bundle.manifest.inputs if record.role == "mask"), None)
        shape = next(iter(batches.inputs[0].values())).shape[:2]
        return array_tokens(np.ones(shape) if mask is None else batches.inputs[0][mask])
    tokenizer, start, found = _tokenizer(bundle), 0, []
    for arrays in batches.inputs:
        end = start + len(next(iter(arrays.values())))
        found += text_tokens(tokenizer, batches.texts[start:end])
        start = end
    return found


def _show_outputs(call: _Call, adapter: str | None, outputs: Sequence[Arrays]) -> None:
    from adapter_export.cli.output import console, emit_json, table

    rows = [summary for index, arrays in enumerate(outputs) for summary in _summaries(arrays, index)]
    if call.as_json:
        emit_json({"adapter": adapter, "outputs": rows})
        return
    cells = [
        (r["output"], r["dtype"], r["shape"], f"{r['min']:.4g}", f"{r['mean']:.4g}", f"{r['max']:.4g}") for r in rows
    ]
    title = "the base alone" if adapter is None else f"adapter `{adapter}`"
    console().print(table(title, ("output", "type", "shape", "min", "mean", "max"), cells, numbers="lllrrr"))


def _summaries(arrays: Arrays, batch: int) -> Iterator[dict[str, Any]]:
    for name, array in arrays.items():
        numbers = {"min": float(array.min()), "mean": float(array.mean()), "max": float(array.max())}
        yield {"output": name, "batch": batch, "dtype": array.dtype.name, "shape": list(array.shape), **numbers}

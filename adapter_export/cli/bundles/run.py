"""`adapter-export run`: a bundle on texts, images, audio or arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import adapter_export as ae
from adapter_export.cli.bases import listed, stepping
from adapter_export.cli.options import Force, Json, check_together, command
from adapter_export.cli.output import emit_json, say, warn
from adapter_export.cli.reporter import TerminalReporter
from adapter_export.errors import UsageError, within
from adapter_export.graph.tasks import ProblemType
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.option import Option, OptionsOf
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.runtime import Bundle, Session
    from adapter_export.runtime.answerer import AnsweredRow, Answerer, Reader, Row

_BASE = "-"
_FEW = 3

_Files = make_dataclass(
    "_Files",
    [(name, Annotated[Sequence[str], Option(one.option, "FILE")], ()) for name, one in FILE_MODALITIES.items()],
)
"""The options for files: one for each modality."""

_QUICK = 256
"""Maximum rows without a progress bar."""


@command(
    "adapter-export run bundle --adapter trec --text 'How far is the moon?' --text 'Who wrote Faust?'",
    "adapter-export run bundle --adapters trec,sentiment,- --text 'How far?' --text 'Well done.' --text 'And?'",
    "adapter-export run bundle --adapters trec,sentiment,- --text 'How far is the moon?'",
    "adapter-export run bundle --adapter trec --strength 0.5 --text 'How far is the moon?'",
    "adapter-export run bundle --adapter fused --weights calm=0.3,warm=0.7 --text 'How far is the moon?'",
    "adapter-export run bundle --data requests.jsonl --adapter-column adapter --many > answers.jsonl",
    "adapter-export run bundle --adapter trec --data reviews.parquet --many --shards answers --ray auto",
    "adapter-export run bundle --adapter sentiment < sentences.txt",
    "adapter-export run bundle --adapter digits --image seven.png",
    "adapter-export run bundle --arrays inputs.npz --out outputs.npz",
    sections={
        "adapters": (
            "adapter",
            "adapters",
            "fan_out",
            "adapter_column",
            "weights",
            "strength",
            "adapter_file",
            "labels",
            "task",
        ),
        "input": (
            "text",
            "pair",
            "image",
            "audio",
            "data",
            "text_column",
            "pair_column",
            "long_texts",
            "stride",
            "arrays",
        ),
        "calls": ("many", "token_budget", "allow_mixed_rows", "provider", "threads"),
        "shards": ("shards", "shard_rows", "ray", "workers"),
    },
)
def run(
    bundle: Path,
    *,
    adapter: Annotated[
        str | None, Option("Adapter for all rows. Default: the base head, or the base model.", "NAME")
    ] = None,
    adapters: Annotated[
        str | None, Option("One adapter per row, `-` for the base; a single row runs through all of them.", "A,B,-")
    ] = None,
    fan_out: Annotated[bool, "Run every row through all `--adapters`."] = False,
    adapter_column: Annotated[
        str | None, Option("The column of `--data` that names the adapter of each row.", "NAME")
    ] = None,
    weights: Annotated[
        Mapping[str, float] | None,
        Option("Override the member weights of an `--adapter` that is a weighted fusion."),
    ] = None,
    strength: Annotated[
        float | None,
        Option("Scale the adapter (1 = as trained, 0 = base, negative = subtract). Heads are not scaled.", "S"),
    ] = None,
    adapter_file: Annotated[
        Path | None, Option("Load an additional adapter file built for this graph.", "FILE")
    ] = None,
    labels: Annotated[tuple[str, ...] | None, "The names of its classes, in the order of its logits."] = None,
    task: Annotated[ProblemType | None, "What it answers; by its labels if not given."] = None,
    texts: Annotated[
        Sequence[str], Option("A text; may be repeated. Without it, each line of stdin is one.", flags="--text")
    ] = (),
    pairs: Annotated[
        Sequence[str],
        Option("The second text of a pair, one for each `--text`; of one text, several are choices.", flags="--pair"),
    ] = (),
    data: Annotated[Path | None, Option("Texts: lines of a `.txt`, or rows of a csv, tsv or jsonl.", "FILE")] = None,
    text_column: Annotated[str, Option("Its column with the texts.", "NAME")] = "text",
    pair_column: Annotated[
        str | None, Option("Its column with the second texts of pairs, or lists of choices.", "NAME")
    ] = None,
    long_texts: Annotated[
        Literal["cut", "refuse", "windows"],
        "A text of more tokens than its adapter takes is cut, refused, or read in windows.",
    ] = "cut",
    stride: Annotated[
        int | None, Option("How many tokens neighbouring windows share; a quarter of one if not given.", "N", least=0)
    ] = None,
    arrays: Annotated[
        Path | None, Option("A `.npz` or `.safetensors` with an array for each input, not texts.", "FILE")
    ] = None,
    out: Annotated[Path | None, Option("Write all outputs to this `.npz` or `.safetensors`.", "FILE")] = None,
    many: Annotated[
        bool, "Write one JSON document per line, in the order of the rows, while they are answered."
    ] = False,
    token_budget: Annotated[int | None, Option("Maximum tokens per call, padding included.", "N", least=1)] = None,
    allow_mixed_rows: Annotated[bool, "Let rows share a call even if the base is not batch-invariant."] = False,
    provider: Annotated[Literal["cpu", "cuda"], "Where to compute."] = "cpu",
    threads: Annotated[
        int | None, Option("Threads of one operation; ONNX Runtime's choice if not given.", least=1)
    ] = None,
    shards: Annotated[
        Path | None,
        Option("Write the answers of `--many` to this folder in shards; the same command goes on after an end.", "DIR"),
    ] = None,
    shard_rows: Annotated[int | None, Option("Rows of a shard; 16,384 if not given.", "N", least=1)] = None,
    ray: Annotated[
        str | None, Option("Compute `--shards` with Ray Data: `auto`, `local`, or an address.", "ADDRESS")
    ] = None,
    workers: Annotated[int | None, Option("Shards at a time on Ray.", "N", least=1)] = None,
    force: Force = False,
    as_json: Json = False,
    **files: Annotated[Any, OptionsOf(_Files)],
) -> None:
    """Run BUNDLE on texts, images, audio or arrays, with its adapters or with the base alone.

    An adapter's answer is that of its task: the labels of texts or of their tokens with their probabilities,
    numbers, or the beginning of each vector. The base alone, and an adapter without a task, give a summary of the
    outputs; `--json`, `--many` and `--out` give them whole. A row gets the answer that it has alone, whatever rows it
    shares a call with.
    """
    from adapter_export.batch.table_rows import Columns
    from adapter_export.cli.bundles import run_results, run_rows
    from adapter_export.runtime import Bundle
    from adapter_export.runtime.answerer import Answerer, Reading

    check_together(
        apart=(
            ("adapter", "adapters", "adapter_column"),
            ("texts", "data", "arrays", *FILE_MODALITIES),
            *((medium, other) for medium in FILE_MODALITIES for other in ("long_texts", "pairs")),
            ("many", "out"),
            *(("shards", other) for other in ("adapters", "adapter_file", "texts", *FILE_MODALITIES, "arrays")),
            ("weights", "strength"),
            ("arrays", "long_texts"),
            ("arrays", "pairs"),
        ),
        needs={
            "labels": ("adapter_file", "names the classes of"),
            "task": ("adapter_file", "is that of"),
            "adapter_column": ("data", "is one of"),
            "pair_column": ("data", "is one of"),
            "pairs": ("texts", "belongs to"),
            "stride": ("long_texts", "is that of"),
            "weights": ("adapter", "are those of an"),
            "fan_out": ("adapters", "takes the list of"),
            "shards": ("many", "are those of"),
            **dict.fromkeys(("shard_rows", "ray", "workers"), ("shards", "is that of")),
        },
    )
    if out is not None:
        run_rows.check_suffix(out)
        Output(out, force).ensure_writable()
    if stride is not None and long_texts != "windows":
        raise UsageError("only windows have a stride", found=f"`--long-texts {long_texts}`", fix="give `windows`")
    if out is not None and long_texts == "windows":
        raise UsageError("`--out` has one row for each text, and windows are several", fix="leave one of them out")
    if shards is not None:
        if data is None:
            raise UsageError("`--shards` are those of `--data`, which is not given")
        options: dict[str, Any] = {} if shard_rows is None else {"shard_rows": shard_rows}
        options |= {"adapter": adapter, "adapter_column": adapter_column, "token_budget": token_budget}
        options |= {"strength": strength, "weights": weights}
        options |= {"text_column": text_column, "pair_column": pair_column, "long_texts": long_texts, "stride": stride}
        options |= {"allow_mixed_rows": allow_mixed_rows, "provider": provider, "threads": threads or 1, "force": force}
        with stepping("answering shards") as step:
            options["on_shard"] = lambda done, total: step(done, total, "")
            done = ae.run_many(bundle, data, shards, ray=ray, workers=workers, **options)
        if as_json:
            emit_json({"folder": str(done.folder), "shards": done.shards, "reused": done.reused})
        else:
            say(f"wrote {done.folder}: {done.shards:,} shards, of which {done.reused:,} were there before")
        return
    opened = Bundle.open(bundle)
    medium = next((name for name in FILE_MODALITIES if files.get(name)), None)
    if arrays is not None:
        rows = run_rows.array_rows(opened, run_rows.read_arrays(arrays))
    elif medium is not None:
        rows = run_rows.file_rows(files[medium])
    elif data is None:
        rows = run_rows.text_rows(texts, pairs)
    else:
        rows = run_rows.read_file(data, Columns(text_column, pair_column, adapter_column))
    session = opened.session(provider=provider, threads=threads, on_demand=True)
    if adapter_file is not None:
        name = adapter_file.name.partition(".")[0]
        name = f"{name}.loaded" if name in session.adapters else name
        session.load(name, adapter_file, labels=labels, task=task)
        adapter = adapter or name  # a file that is given and nothing chosen is meant to be used
    if adapters is not None:
        rows = _with_adapters(rows, _listed(adapters), fan_out=fan_out)
    else:
        rows = [replace(row, adapter=adapter if row.adapter is None else row.adapter) for row in rows]
    rows = [replace(row, strength=1.0 if strength is None else strength, weights=weights) for row in rows]
    _check_adapters(rows, session)
    reader = None if arrays is not None else _reader(opened, session, medium)
    reading = Reading(long_texts, stride, token_budget, allow_mixed_rows, outputs=out is not None)
    answered = _counting(Answerer(session, reader, reading), rows, bar=many or len(rows) > _QUICK)
    cut: dict[str, int] = {}
    if many:
        for row in answered:
            cut |= {row.row.where: row.cut} if row.cut else {}
            run_results.write_line(row)
    else:
        found = []
        outputs = []
        for row in answered:
            cut |= {row.row.where: row.cut} if row.cut else {}
            found.append(run_results.document_of(row) if as_json else run_results.Result.of(row))
            outputs += [(row.head.output, row.outputs[0])] if out is not None else []
        if out is not None:
            run_rows.write_arrays(out, run_results.stacked(outputs, opened.manifest), force=force)
        run_results.show_results(found, as_json=as_json)
    _warn_of_cuts(cut, medium)


def _counting(answerer: Answerer, rows: Sequence[Row], *, bar: bool) -> Iterator[AnsweredRow]:
    """Answer rows, with a progress bar if there are many."""
    if not bar:
        yield from answerer.answer(rows)
        return
    with TerminalReporter("running") as reporter:
        yield from answerer.answer(rows, reporter)


def _reader(bundle: Bundle, session: Session, medium: str | None) -> Reader:
    if medium is not None:
        return bundle.files(medium, session)
    if bundle.manifest.media is not None:
        modality = bundle.manifest.media.modality
        what = f"the bundle reads {modality.word}s, not texts"
        raise UsageError(what, fix=f"give `--{modality.name} FILE` or `--arrays`")
    if bundle.manifest.text is None:
        fix = "give `--arrays`, or build it again with `--tokenizer`"
        raise UsageError("the bundle has no tokenizer, so it cannot read texts", fix=fix)
    return bundle.texts(session)


def _warn_of_cuts(cut: Mapping[str, int], medium: str | None) -> None:
    """Say which texts or files were not read whole."""
    if cut:
        named = "; ".join(f"{where}: {count:,}" for where, count in list(cut.items())[:_FEW])
        more = f"; and {len(cut) - _FEW:,} more texts" if len(cut) > _FEW else ""
        if medium is not None:
            warn(f"{FILE_MODALITIES[medium].word}s were cut, so many of their samples are not read: {named}{more}")
            return
        fix = "`--long-texts windows` reads them whole, `refuse` refuses them"
        warn(f"texts were cut, so many of their tokens are not read: {named}{more}; {fix}")


def _listed(given: str) -> tuple[str | None, ...]:
    names = listed(given)
    if "" in names:
        raise UsageError(
            "an adapter without a name", where="`--adapters`", found=f"`{given}`", expected=f"`a,b,{_BASE}`"
        )
    return tuple(None if name == _BASE else name for name in names)


def _with_adapters(rows: Sequence[Row], adapters: tuple[str | None, ...], *, fan_out: bool) -> list[Row]:
    """Return one row per adapter: each row through all of them, or each through its own."""
    if fan_out or len(rows) == 1:
        return [replace(row, adapter=adapter) for row in rows for adapter in adapters]
    if len(adapters) != len(rows):
        raise UsageError(
            "there is not one adapter for each row",
            where="`--adapters`",
            found=f"{len(adapters)} adapters for {len(rows)} rows",
            fix=f"name one per row, `{_BASE}` for the base; `--fan-out` runs every row through all of them, and "
            "`--adapter` is for all rows",
        )
    return [replace(row, adapter=adapter) for row, adapter in zip(rows, adapters, strict=True)]


def _check_adapters(rows: Sequence[Row], session: Session) -> None:
    """Raise an error for an adapter that is not loaded before anything is computed; it names the first such row."""
    for row in {row.adapter: row for row in reversed(rows)}.values():
        if row.adapter is not None:
            with within(row.where):
                session.task(row.adapter)

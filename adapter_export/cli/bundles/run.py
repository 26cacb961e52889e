"""`adapter-export run`: a bundle on texts, pictures, clips or arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import adapter_export as ae
from adapter_export.api.models.base import check_free
from adapter_export.api.option import Option
from adapter_export.cli.bases import listed, stepping
from adapter_export.cli.options import Force, Json, check_together, command
from adapter_export.cli.output import emit_json, progress_bar, say, show, warn
from adapter_export.errors import UsageError, within
from adapter_export.graph.tasks import ProblemType

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.cli.bundles.run_results import Result
    from adapter_export.cli.bundles.run_rows import Rows
    from adapter_export.offline.rows import Text
    from adapter_export.runtime import Bundle, Session
    from adapter_export.runtime.answers import Head
    from adapter_export.runtime.media_reader import MediaReader
    from adapter_export.runtime.text_reader import TextReader

_BASE = "-"
_FEW = 3
_ROWS_AT_ONCE = 32


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
        str | None, Option("An adapter for all rows; the base alone if nothing is chosen.", "NAME")
    ] = None,
    adapters: Annotated[
        str | None, Option("An adapter for each row, `-` for the base, in one call; for one row, all of them.", "A,B,-")
    ] = None,
    fan_out: Annotated[bool, "Run every row through all `--adapters`."] = False,
    adapter_column: Annotated[
        str | None, Option("The column of `--data` that names the adapter of each row.", "NAME")
    ] = None,
    weights: Annotated[
        Mapping[str, float] | None,
        Option("Weights for all members of an `--adapter` that is a weighted fusion, in the place of its own."),
    ] = None,
    strength: Annotated[
        float | None,
        Option("How much of an adapter's updates is added: 0.5 half, 0 nothing, -1 takes them off. Heads stay.", "S"),
    ] = None,
    adapter_file: Annotated[
        Path | None, Option("Load this `.onnx_adapter` file, built for the same graph, too.", "FILE")
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
    images: Annotated[Sequence[str], Option("A picture, such as a PNG; may be repeated.", "FILE", "--image")] = (),
    clips: Annotated[Sequence[str], Option("A clip, a WAV file; may be repeated.", "FILE", "--audio")] = (),
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
        bool, "For many rows: batched by length, each a request of its own; one JSON document a line."
    ] = False,
    token_budget: Annotated[int | None, Option("Most tokens in a call of `--many`.", "N", least=1)] = None,
    allow_mixed_rows: Annotated[
        bool, "Put rows of different adapters in one call although the base lets rows influence each other."
    ] = False,
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
) -> None:
    """Run BUNDLE on texts, pictures, clips or arrays, with its adapters or with the base alone.

    An adapter's result is that of its task: the labels of texts or of their tokens with their probabilities,
    numbers, or the beginning of each vector. The base alone, and an adapter without a head, print a summary of the
    outputs. Rows with different adapters need the bundle's graph `bank`.
    """
    from adapter_export.cli.bundles import run_rows
    from adapter_export.offline.rows import Text
    from adapter_export.runtime import Bundle

    check_together(
        apart=(
            ("adapter", "adapters", "adapter_column"),
            ("texts", "data", "arrays", "images", "clips"),
            *((files, other) for files in ("images", "clips") for other in ("long_texts", "pairs")),
            ("many", "out"),
            ("many", "weights"),
            *(("shards", other) for other in ("adapters", "adapter_file", "texts", "images", "clips", "arrays")),
            *(("shards", other) for other in ("fan_out", "weights", "strength")),
            ("fan_out", "strength"),
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
            "token_budget": ("many", "is that of"),
            "weights": ("adapter", "are those of an"),
            "fan_out": ("adapters", "takes the list of"),
            "shards": ("many", "are those of"),
            **dict.fromkeys(("shard_rows", "ray", "workers"), ("shards", "is that of")),
        },
    )
    if out is not None:
        run_rows.check_suffix(out)
        check_free(out, force=force)
    if stride is not None and long_texts != "windows":
        raise UsageError("only windows have a stride", found=f"`--long-texts {long_texts}`", fix="give `windows`")
    if out is not None and long_texts == "windows":
        raise UsageError("`--out` has one row for each text, and windows are several", fix="leave one of them out")
    if shards is not None:
        if data is None:
            raise UsageError("`--shards` are those of `--data`, which is not given")
        options: dict[str, Any] = {} if shard_rows is None else {"shard_rows": shard_rows}
        options |= {"adapter": adapter, "adapter_column": adapter_column, "token_budget": token_budget}
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
    found: list[Text] = []
    given = None
    if arrays is not None:
        given = run_rows.ArrayRows(opened, run_rows.read_arrays(arrays))
    elif images or clips:
        found = [Text(path, f"file {at}") for at, path in enumerate(images or clips)]
    elif data is None:
        found = run_rows.read_texts(texts, pairs)
    else:
        found = run_rows.read_file(data, text_column, pair_column, adapter_column)
    session = opened.session(provider=provider, threads=threads, on_demand=True)
    if adapter_file is not None:
        name = adapter_file.name.partition(".")[0]
        name = f"{name}.loaded" if name in session.adapters else name
        session.load(name, adapter_file, labels=labels, task=task)
        adapter = adapter or name  # a file that is given and nothing chosen is meant to be used
    count = len(found) if given is None else len(given)
    if adapters is not None:
        chosen = _listed(adapters)
        to_all = fan_out or count == 1
        each = len(chosen) if to_all else 1
        found = [text for text in found for _ in range(each)]
        if given is not None:
            given.repeat(each)
        names = chosen * count if to_all else _for_each_row(chosen, count)
    elif adapter_column is not None:
        names = _of_table(found, session)
    else:
        names = (adapter,) * count
    names = tuple(opened.manifest.head if name is None else name for name in names)
    reader: TextReader | MediaReader | None = None
    if given is None:
        asked = opened.images if images else opened.audio if clips else None
        reader = _reader(opened, session) if asked is None else asked(session)
    rows = given or run_rows.TextRows(reader, found, names, long_texts, stride)
    base = [record.name for record in opened.manifest.base_outputs]
    call = _Call(session, rows, names, base, allow_mixed_rows, strength)
    if many:
        call.write_lines(token_budget)
    else:
        at_once = 1 if clips else _ROWS_AT_ONCE  # clips may differ in length
        batches = call.batches(weights, size=len(rows) if out or arrays else at_once)
        if out is not None:
            run_rows.write_arrays(out, batches[0].outputs, force=force)
        call.show(batches, as_json=as_json)
    _warn_of_cuts(rows.cut, clips=bool(clips))


def _reader(bundle: Bundle, session: Session) -> TextReader:
    if bundle.manifest.media is not None:
        medium = bundle.manifest.media.medium
        what = f"the bundle reads {'pictures' if medium == 'image' else 'clips'}, not texts"
        raise UsageError(what, fix=f"give `--{medium} FILE` or `--arrays`")
    if bundle.manifest.text is None:
        fix = "give `--arrays`, or build it again with `--tokenizer`"
        raise UsageError("the bundle has no tokenizer, so it cannot read texts", fix=fix)
    return bundle.texts(session)


def _warn_of_cuts(cut: Mapping[str, int], *, clips: bool) -> None:
    """Say which texts or clips were not read whole."""
    if cut:
        named = "; ".join(f"{where}: {count:,}" for where, count in list(cut.items())[:_FEW])
        more = f"; and {len(cut) - _FEW:,} more texts" if len(cut) > _FEW else ""
        if clips:
            warn(f"clips were cut, so many of their samples are not read: {named}{more}")
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


def _for_each_row(adapters: tuple[str | None, ...], rows: int) -> tuple[str | None, ...]:
    if len(adapters) != rows:
        raise UsageError(
            "there is not one adapter for each row",
            where="`--adapters`",
            found=f"{len(adapters)} adapters for {rows} rows",
            fix=f"name one for each, `{_BASE}` for the base; `--fan-out` runs every row through all of them, and "
            "`--adapter` is for all rows",
        )
    return adapters


def _of_table(texts: Sequence[Text], session: Session) -> tuple[str | None, ...]:
    """Return the adapter of each text; one that is not loaded is an error before anything is computed."""
    for text in {text.adapter: text for text in reversed(texts)}.values():
        if text.adapter is not None:
            with within(text.where):
                session.task(text.adapter)
    return tuple(text.adapter for text in texts)


@dataclass(frozen=True)
class _Batch:
    """The rows of one call, how many rows of its outputs are those of each, and the outputs by name."""

    rows: range
    parts: Sequence[int]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Call:
    """Rows, the adapter of each (none is the base), and the outputs that every row has."""

    session: Session
    rows: Rows
    names: tuple[str | None, ...]
    base: Sequence[str]
    allow_mixed_rows: bool
    strength: float | None = None

    def heads(self) -> list[Head]:
        """Return what the result of each row means."""
        known = {name: self.session.head(name) for name in dict.fromkeys(self.names)}
        return [known[name] for name in self.names]

    def batches(self, weights: Mapping[str, float] | None, size: int) -> list[_Batch]:
        """Run the rows in their order, `size` at a time."""
        found: list[_Batch] = []
        for start in range(0, len(self.rows), size):
            end = min(start + size, len(self.rows))
            feed = self.rows.feed(start, end)
            pairs = zip(self.names[start:end], feed.parts, strict=True)
            names = [name for name, count in pairs for _ in range(count)]
            if len(set(names)) == 1:
                outputs = self.session.run(feed.arrays, names[0], weights=weights, strength=self.strength)
            else:
                mixed = self.allow_mixed_rows
                outputs = self.session.run(feed.arrays, adapters=names, strength=self.strength, allow_mixed_rows=mixed)
            found.append(_Batch(range(start, end), feed.parts, outputs))
        return found

    def show(self, batches: Sequence[_Batch], *, as_json: bool) -> None:
        """Write the result of each row, or without any head a summary of the outputs."""
        from adapter_export.cli.bundles import run_results

        heads = self.heads()
        if len(set(heads)) == 1 and heads[0].task is None:
            outputs = [batch.outputs for batch in batches]
            run_results.show_outputs(heads[0].adapter, outputs, self.rows.cut, as_json=as_json)
            return
        found = [result for batch in batches for result in self._results(batch, heads)]
        if as_json:
            emit_json(run_results.document(found))
            return
        show(*run_results.tables(found))
        if {result.type for result in found} == {"embedding"}:
            say("`--out FILE.npz` or `--json` gives the vectors whole.")

    def _results(self, batch: _Batch, heads: Sequence[Head]) -> Iterator[Result]:
        start = 0
        for row, count in zip(batch.rows, batch.parts, strict=True):
            places = range(start, start + count)
            yield self._result(row, heads[row], [{n: a[at] for n, a in batch.outputs.items()} for at in places])
            start += count

    def _result(self, row: int, head: Head, outputs: Sequence[Mapping[str, np.ndarray]]) -> Result:
        """Return the result of a row from the outputs of its rows in calls."""
        from adapter_export.cli.bundles.run_results import Result
        from adapter_export.runtime.answers import own_classes

        texts, cut = self.rows.facts(row), self.rows.cut_of(row)
        if head.task is not None and head.output is not None:
            said = self.rows.said(row, [own_classes(found[head.output]) for found in outputs], head.task)
            return Result(texts, head, said, {}, cut)
        own = {name: outputs[0][name] for name in self.base}
        if head.output is not None:
            own[head.output] = own_classes(outputs[0][head.output])
        return Result(texts, head, None, own, cut)

    def write_lines(self, token_budget: int | None) -> None:
        """Run each row as a request of its own, and write one JSON document a line, in their order."""
        from adapter_export.cli.bundles.run_results import full_facts
        from adapter_export.offline.job import WINDOW
        from adapter_export.runtime import Request

        heads = self.heads()
        budget = {} if token_budget is None else {"token_budget": token_budget}
        strength = 1.0 if self.strength is None else self.strength
        finished = 0

        def advance(done: int, _: int) -> None:
            nonlocal finished
            reached = start + done * len(window) // len(requests)
            bar.advance(reached - finished)
            finished = reached

        with progress_bar("running", len(self.rows)) as bar:
            for start in range(0, len(self.rows), WINDOW):
                window = range(start, min(start + WINDOW, len(self.rows)))
                calls = {row: self.rows.calls(row) for row in window}
                requests = [Request(arrays, self.names[row], strength) for row in window for arrays in calls[row]]
                with within(f"rows from {start} on"):
                    outputs = iter(
                        self.session.run_many(
                            requests, progress=advance, allow_mixed_rows=self.allow_mixed_rows, **budget
                        )
                    )
                for row in window:
                    found = [{name: array[0] for name, array in next(outputs).items()} for _ in calls[row]]
                    result = self._result(row, heads[row], found)
                    emit_json(full_facts(result), indent=None)

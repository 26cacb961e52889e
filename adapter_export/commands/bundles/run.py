"""Run a bundle on texts, images, audio or arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from adapter_export.address import Address, PathLike, locate
from adapter_export.commands.command import Command, Screen
from adapter_export.decoding import Decoding
from adapter_export.errors import UsageError
from adapter_export.graph.task_names import ProblemType
from adapter_export.option import DELIMITER, ENCODING, Force, FormOption, Option, OptionsOf
from adapter_export.providers import ProviderName
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.tables import Described, number_of
from adapter_export.words import argument, command, joined

if TYPE_CHECKING:
    from adapter_export.format.manifest import Manifest
    from adapter_export.runtime import Bundle, Session
    from adapter_export.runtime.answerer import AnsweredRow, Reader, Row
    from adapter_export.runtime.generation.transcriber import Transcript

_FEW = 3

GENERATE = command("generate(BUNDLE, [PROMPT])", "generate BUNDLE --prompt TEXT")
"""The call that continues prompts."""

_CHAT = command("generate", "generate BUNDLE --chat")
"""The command that holds a conversation."""

_QUICK = 256
"""Maximum rows without a progress bar."""


def _files() -> type:
    """Return one file option per modality."""
    from adapter_export.modalities import FILE_MODALITIES

    options = [
        (name, Annotated[Sequence[str], Option(modality.option, "FILE")], ())
        for name, modality in FILE_MODALITIES.items()
    ]
    return make_dataclass("_Files", options)


_OPTIONS = {"texts": "text", "pairs": "pair"}
"""Options whose names differ from their parameters'."""

_NEEDS = {
    "labels": "adapter_file",
    "task": "adapter_file",
    "adapter_column": "data",
    "pair_column": "data",
    "delimiter": "data",
    "pairs": "texts",
    "stride": "long_texts",
    "weights": "adapter",
    "fan_out": "adapters",
}
"""Arguments, and the argument that each one needs."""


AllRows = Annotated[
    str | None,
    Option("Adapter for all rows; `base` for the base without adapters. Required if adapters have tasks.", "NAME"),
]
AdapterFile = Annotated[PathLike | None, Option("Load an additional adapter file built for this graph.", "FILE")]
FileLabels = Annotated[tuple[str, ...] | None, "Class names of the additional adapter, in logit order."]
FileTask = Annotated[ProblemType | None, "Task type of the additional adapter. Default: inferred from its labels."]
MemberWeights = Annotated[
    Mapping[str, float] | None,
    Option("Override the member weights of an `--adapter` that is a weighted fusion."),
]
Strength = Annotated[
    float | None,
    Option("Scale the adapter (1 = as trained, 0 = base, negative = subtract). Heads are not scaled.", "S"),
]
Side = Annotated[
    Literal["query", "document"] | None,
    "Side of all texts, for adapters with query and document prefixes.",
]
TextColumn = Annotated[str, Option("Column of the texts.", "NAME")]
PairColumn = Annotated[str | None, Option("Column of the second texts of pairs, or of lists of choices.", "NAME")]
LongTexts = Annotated[
    Literal["cut", "refuse", "windows"] | None,
    "Truncate (`cut`) or reject (`refuse`) long texts, or split them into `windows`. Default: `cut`.",
]
Stride = Annotated[
    int | None, Option("Tokens shared by neighbouring windows. Default: a quarter of a window.", "N", least=0)
]
TokenBudget = Annotated[int | None, Option("Maximum tokens per call, padding included.", "N", least=1)]
MixedRows = Annotated[bool, "Let rows share a call even if the base is not batch-invariant."]
Provider = Annotated[ProviderName, "Execution provider."]
"""Options of commands that answer rows."""


@dataclass(frozen=True, repr=False)
class Answers(Described):
    """Answered rows.

    Attributes:
        rows: computed lazily, in the order of the input.
        many: render each as a line of JSON.
        token_text: returns the text of a vocabulary entry. Default: its id.
    """

    rows: Iterator[AnsweredRow]
    many: bool
    token_text: Callable[[int], str] = str

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"rows": "computed as they are read", "many": self.many}


@dataclass(frozen=True, repr=False)
class Transcripts(Described):
    """Texts of audio files.

    Attributes:
        rows: computed lazily, in the order of the files.
        many: render each as a line of JSON.
    """

    rows: Iterator[Transcript]
    many: bool

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"rows": "computed as they are read", "many": self.many}


def run(
    bundle: Bundle | Address,
    *,
    adapter: AllRows = None,
    adapters: Annotated[
        tuple[str, ...] | None,
        Option(
            "One adapter per row, `base` or `-` for the base; a single row runs through all of them.",
            "A,B,-",
            commas=True,
        ),
    ] = None,
    fan_out: Annotated[bool, Option("Run every row through all `--adapters`.")] = False,
    adapter_column: Annotated[
        str | None, Option("Column of `--data` with the adapter of each row, `base` or `-` for the base.", "NAME")
    ] = None,
    weights: MemberWeights = None,
    strength: Strength = None,
    side: Side = None,
    adapter_file: AdapterFile = None,
    labels: FileLabels = None,
    task: FileTask = None,
    texts: Annotated[
        Sequence[str], Option("Text to answer. Repeatable. Default: each line of stdin.", flags="--text")
    ] = (),
    pairs: Annotated[
        Sequence[str],
        Option("Second text of a pair, one per `--text`. For a single text, several are its choices.", flags="--pair"),
    ] = (),
    data: Annotated[
        Address | None, Option("Texts: lines of a `.txt` file, or rows of a CSV, TSV, JSONL or Parquet file.", "FILE")
    ] = None,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    delimiter: Annotated[str | None, DELIMITER] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    long_texts: LongTexts = None,
    stride: Stride = None,
    language: Annotated[
        str | None, Option("Language of speech, such as `en`. Default: the model's, which usually detects it.", "CODE")
    ] = None,
    translate: Annotated[bool, "Write speech of any language in English."] = False,
    timestamps: Annotated[bool, "Write the times of the segments of speech."] = False,
    arrays: Annotated[
        PathLike | None, Option("A `.npz` or `.safetensors` file with an array per input, instead of texts.", "FILE")
    ] = None,
    out: Annotated[PathLike | None, Option("Write all outputs to this `.npz` or `.safetensors` file.", "FILE")] = None,
    many: Annotated[bool, "Stream one JSON document per row, in the order of the input."] = False,
    token_budget: TokenBudget = None,
    allow_mixed_rows: MixedRows = False,
    provider: Provider = "cpu",
    form: FormOption = "given",
    threads: Annotated[int | None, Option("Threads per operation. Default: ONNX Runtime's.", least=1)] = None,
    force: Force = False,
    reporter: Reporter = SILENT,
    **options: Annotated[Any, OptionsOf(_files)],
) -> Answers | Transcripts:
    """Run BUNDLE on texts, images, audio or arrays, with its adapters or the base.

    An adapter answers by its task: labels of texts or tokens with their probabilities, numbers, or the first elements
    of each vector. For the base, or an adapter without a task, outputs are summarized; `--json`, `--many` and `--out`
    contain them in full. A row's answer does not depend on the rows that share its call. `generate` continues prompts.
    A speech model that was captured with its cache writes the text of each audio file.

    Args:
        bundle: the bundle, or its folder.
        reporter: receives the number of answered rows, and a note about truncated texts and files.

    Returns:
        The answers, or the texts of audio files, computed lazily.

    Raises:
        UsageError: arguments exclude each other, or no adapter is named although adapters have tasks.
        RequestError: a row or an adapter does not fit.
        InputError: the bundle or the data cannot be used.
        OutputExistsError, WriteError: an output cannot be written.
    """
    (files,) = OptionsOf(_files).split("run", options)
    _check_together({**locals(), **files}, tuple(OptionsOf(_files).defaults()))
    from adapter_export.commands.bundles import _run_rows as run_rows
    from adapter_export.commands.bundles._transcripts import reads_speech, transcripts
    from adapter_export.format.tabular.table_files import TableFormat
    from adapter_export.format.tabular.table_rows import Columns
    from adapter_export.modalities import FILE_MODALITIES

    output = None if out is None else Output(Path(out), force)
    if output is not None:
        run_rows.check_suffix(output.path)
        output.ensure_writable()
    if stride is not None and long_texts != "windows":
        actual, fix = argument("long_texts", long_texts), "give " + argument("long_texts", "windows")
        raise UsageError("a stride needs windows", found=actual, fix=fix)
    if output is not None and long_texts == "windows":
        what = argument("out") + " has one row per text, but windows make several"
        raise UsageError(what, fix="remove one of them")
    medium = next((name for name in FILE_MODALITIES if files.get(name)), None)
    rows: list[Row] = []
    if medium is not None:
        rows = run_rows.media_rows(files[medium])
    elif arrays is None:
        columns = Columns(text_column, pair_column, adapter_column, TableFormat(delimiter, encoding))
        file = None if data is None else locate(data, "table", reporter).path
        read = run_rows.text_rows(texts, pairs, encoding) if file is None else run_rows.read_file(file, columns)
        rows = list(read.rows)
        for note in read.notes:
            reporter.warn(note)
    from adapter_export.bundle.chosen_form import chosen_form
    from adapter_export.bundle.open_bundle import open_bundle
    from adapter_export.runtime.answerer import Answerer, Reading
    from adapter_export.runtime.generation.transcriber import SpeechOptions

    chosen = chosen_form(bundle, form, provider)
    opened = open_bundle(chosen.bundle)
    if arrays is not None:
        rows = run_rows.array_rows(opened, run_rows.read_arrays(Path(arrays)))
    session = opened.session(provider=chosen.provider, threads=threads, on_demand=True)
    if adapter_file is not None:
        loaded = run_rows.load_adapter_file(session, Path(adapter_file), labels, task)
        adapter = adapter or loaded  # an adapter file without a chosen adapter is the one to use
    if adapters is not None:
        names = [None if name == run_rows.BASE else session.named(name) for name in adapters]
        rows = run_rows.with_adapters(rows, names, fan_out=fan_out)
    elif adapter_column is not None:
        rows = [row if row.adapter is None else replace(row, adapter=session.named(row.adapter)) for row in rows]
    else:
        adapter = None if adapter == run_rows.BASE else session.named(adapter)
        rows = [replace(row, adapter=adapter) for row in rows]
    factor = 1.0 if strength is None else strength
    rows = [replace(row, strength=factor, weights=weights).on_side(side) for row in rows]
    run_rows.check_adapters(rows, session)
    if medium is not None and reads_speech(opened):
        if (strength, weights, out) != (None, None, None):
            raise UsageError("texts of files have no strength, weights or outputs", fix="remove these options")
        spoken = SpeechOptions(language, "translate" if translate else None, timestamps)
        return Transcripts(transcripts(opened, session, rows, spoken), many)
    if language is not None or translate or timestamps:
        what = joined((argument("language"), argument("translate", True), argument("timestamps", True)))
        fix = "remove " + what + ", or capture a speech model with its cache"
        raise UsageError("the bundle writes no texts of speech", fix=fix)
    reader = None if arrays is not None else _reader(opened, session, medium)
    reading = Reading(long_texts or "cut", stride, token_budget, allow_mixed_rows, outputs=output is not None)
    shown = reporter if many or len(rows) > _QUICK else SILENT
    answered = Answerer(session, reader, reading).answer(rows, shown)
    written = _write_at_end(answered, opened.manifest, medium, output, reporter)
    return Answers(written, many, str if reader is None else reader.token_text)


def _check_together(arguments: Mapping[str, object], media: Sequence[str]) -> None:
    """Refuse arguments that exclude each other or lack the argument that they need."""
    from adapter_export.commands.bundles._run_rows import check_together

    apart = (
        ("adapter", "adapters", "adapter_column"),
        ("texts", "data", "arrays", *media),
        *((medium, other) for medium in media for other in ("long_texts", "pairs", "side")),
        ("many", "out"),
        ("weights", "strength"),
        ("arrays", "long_texts"),
        ("arrays", "side"),
        ("arrays", "pairs"),
    )
    check_together(arguments, apart, _NEEDS, _OPTIONS)


def _write_at_end(
    rows: Iterable[AnsweredRow], manifest: Manifest, medium: str | None, output: Output | None, reporter: Reporter
) -> Iterator[AnsweredRow]:
    """Yield rows; after the last one, write their outputs and report truncation."""
    from adapter_export.commands.bundles._run_results import stacked
    from adapter_export.commands.bundles._run_rows import write_arrays

    cut: dict[str, int] = {}
    outputs = []
    for row in rows:
        cut |= {row.row.where: row.cut} if row.cut else {}
        outputs += [(row.head.output, row.outputs[0])] if output is not None else []
        yield row
    if output is not None:
        write_arrays(output, stacked(outputs, manifest))
    if cut:
        reporter.warn(_cuts(cut, medium))


def _cuts(cut: Mapping[str, int], medium: str | None) -> str:
    """Report truncated texts and files."""
    from adapter_export.modalities import FILE_MODALITIES

    named = "; ".join(f"{where}: {count:,}" for where, count in list(cut.items())[:_FEW])
    more = f"; and {number_of(len(cut) - _FEW, 'more text')}" if len(cut) > _FEW else ""
    if medium is not None:
        return f"{FILE_MODALITIES[medium].word}s were truncated; samples dropped: {named}{more}"
    fix = argument("long_texts", "windows") + " reads them in full, `refuse` refuses them"
    return f"texts were truncated; tokens dropped: {named}{more}; " + fix


def _reader(bundle: Bundle, session: Session, medium: str | None) -> Reader:
    if medium is not None:
        return bundle.files(medium, session)
    if bundle.manifest.media is not None:
        modality = bundle.manifest.media.modality
        fix = "give " + argument(modality.name, words="FILE") + " or " + argument("arrays", words="FILE")
        raise UsageError(f"the bundle reads {modality.word}s, not texts", fix=fix)
    if any(record.role == "cache" for record in bundle.manifest.inputs):
        fix = "call " + GENERATE + ", or give " + argument("arrays", words="FILE")
        raise UsageError("the bundle generates text from prompts and cannot answer texts", fix=fix)
    if bundle.manifest.text is None:
        arrays, tokenizer = argument("arrays", words="FILE"), argument("tokenizer", words="tokenizer.json")
        fix = "give its inputs as arrays, " + arrays + ", or rebuild it with " + tokenizer
        raise UsageError("the bundle has no tokenizer, so it cannot read text", fix=fix)
    return bundle.texts(session)


def _show(answers: Answers | Transcripts, screen: Screen) -> None:
    if isinstance(answers, Transcripts):
        from adapter_export.commands.bundles._transcripts import show_transcripts

        show_transcripts(answers.rows, screen, many=answers.many)
        return
    from adapter_export.commands.bundles._run_results import Result, show_results

    if answers.many:
        for row in answers.rows:
            screen.write(row.json_line())
    else:
        show_results([Result.of(row, answers.token_text) for row in answers.rows], screen)


def _document(answers: Answers | Transcripts, _: Screen) -> Mapping[str, object]:
    if isinstance(answers, Transcripts):
        return {"rows": [row.document() for row in answers.rows]}
    return {"rows": [{**row.row.texts, **row.document()} for row in answers.rows]}


COMMAND: Command[Answers | Transcripts] = Command(
    run,
    _show,
    document=_document,
    examples=(
        "adapter-export run bundle --adapter trec --text 'How far is the moon?' --text 'Who wrote Faust?'",
        "adapter-export run bundle --adapters trec,sentiment,- --text 'How far?' --text 'Well done.' --text 'And?'",
        "adapter-export run bundle --adapters trec,sentiment,- --text 'How far is the moon?'",
        "adapter-export run bundle --adapter trec --strength 0.5 --text 'How far is the moon?'",
        "adapter-export run bundle --adapter fused --weights calm=0.3,warm=0.7 --text 'How far is the moon?'",
        "adapter-export run bundle --data requests.jsonl --adapter-column adapter --many > answers.jsonl",
        "adapter-export run bundle --adapter sentiment < sentences.txt",
        "adapter-export run bundle --adapter digits --image seven.png",
        "adapter-export run whisper --adapter medical --audio visit.wav --language en",
        "adapter-export run bundle --arrays inputs.npz --out outputs.npz",
    ),
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
            "delimiter",
            "encoding",
            "long_texts",
            "stride",
            "language",
            "translate",
            "timestamps",
            "arrays",
        ),
        "calls": ("many", "token_budget", "allow_mixed_rows", "provider", "form", "threads"),
    },
    common=("text", "pair", "adapter", "data"),
    moved={**dict.fromkeys(("prompt", *OptionsOf(Decoding).defaults()), GENERATE), "chat": _CHAT},
)

"""`adapter-export check`: does a bundle compute what it should?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapter_export.cli.options import PATH, examples, json_option, site_map_option, trust_pickle_option
from adapter_export.errors import UsageError

if TYPE_CHECKING:
    from adapter_export.bundle.cases import Case
    from adapter_export.bundle.plan import Plan
    from adapter_export.bundle.prove import Original, Reference
    from adapter_export.bundle.report import Report

_MISMATCH = 1
_ROWS_AT_ONCE = 16


@click.command(
    epilog=examples(
        "adapter-export check bundle --against model.pt",
        "adapter-export check bundle",
        "adapter-export check bundle --against model.pt --data test.tsv --text text",
        "adapter-export check bundle --against model.pt --only trec --case batch3_tokens7_padded",
        "adapter-export check bundle --flavour bank",
        "adapter-export check bundle --json > report.json",
    )
)
@click.argument("bundle", type=PATH)
@click.option(
    "--against",
    type=PATH,
    metavar="MODEL",
    help="The model that the bundle was built from: a torch archive, a Hugging Face folder or an ONNX file. "
    "Without it the golden vectors in the bundle are the reference, and torch is not needed.",
)
@click.option("--only", multiple=True, metavar="ADAPTER", help="Check this adapter alone, or `base`; may be repeated.")
@click.option(
    "--flavour",
    "flavours",
    multiple=True,
    metavar="FLAVOUR",
    help="Check this graph of the bundle alone: slots, inputs, bank or baked; may be repeated.",
)
@click.option("--case", "cases", multiple=True, metavar="CASE", help="Try this shape alone; may be repeated.")
@click.option(
    "--data",
    type=PATH,
    metavar="FILE",
    help="A table (csv, tsv, jsonl) with texts, on which the bundle's classes are compared with those of MODEL.",
)
@click.option("--text", metavar="COLUMN", help="The column of FILE that holds the texts.")
@site_map_option
@trust_pickle_option
@json_option
def check(
    bundle: Path,
    against: Path | None,
    only: tuple[str, ...],
    flavours: tuple[str, ...],
    cases: tuple[str, ...],
    data: Path | None,
    text: str | None,
    site_map: Path | None,
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Prove that BUNDLE computes what it should, for the base and every adapter.

    Compares every output of every graph in the bundle at a matrix of shapes: the graph with slots at ONNX Runtime's
    optimization levels none, basic and all, the bank also in batches whose rows run through different adapters. Then
    every adapter at every site with float64 arithmetic, and what must hold in any case: switching leaves no trace, idle
    slots change nothing, rows of a batch stay apart, all files are as they were written. What is allowed follows from
    the computation, and is printed with its reason.

    A bundle whose base has another precision than MODEL is held against MODEL in that same precision; how far that is
    from MODEL itself is reported beside, on random inputs or on the texts of FILE.

    Exit codes: 0 everything is within its budget, 1 something is not, 3 the bundle or the model cannot be used,
    4 nothing was compared.
    """
    from adapter_export.bundle.plan import plan_check
    from adapter_export.bundle.report import to_document
    from adapter_export.cli.output import emit_json

    if (data is None) != (text is None) or (data is not None and against is None):
        raise UsageError("`--data`, `--text` and `--against` go together", fix="give all three, or `--against` alone")
    plan = plan_check(bundle, only=only, cases=cases, forms=flavours)
    texts = None if data is None or text is None else _texts(data, text)
    with _sides(plan, against, texts, trust_pickle, site_map) as (reference, original):
        report = _prove(plan, reference, original)
    report.require_compared()
    if as_json:
        emit_json(to_document(report))
    else:
        from adapter_export.cli.check_tables import show

        show(report)
    if not report.passed:
        raise click.exceptions.Exit(_MISMATCH)


def _prove(plan: Plan, reference: Reference | None, original: Original | None) -> Report:
    from adapter_export.bundle.prove import prove, steps, with_agreements
    from adapter_export.cli.output import progress_bar

    total = steps(plan, reference) + (0 if original is None else original.steps(plan))
    with progress_bar("checking", total) as bar:
        report = prove(plan, reference, lambda note: bar.advance(note=note))
        if original is not None:
            report = with_agreements(report, plan, original, lambda note: bar.advance(note=note))
    return report


def _texts(data: Path, column: str) -> tuple[str, ...]:
    from adapter_export.torch_backend.train.task import read_texts

    return read_texts(data, column)


@contextmanager
def _sides(
    plan: Plan, against: Path | None, texts: Sequence[str] | None, trust_pickle: bool, site_map: Path | None
) -> Iterator[tuple[Reference | None, Original | None]]:
    """The reference in the bundle's precision, and the model as it is where the two differ or texts are given."""
    if against is None:
        yield None, None
        return
    import onnx_ir as ir

    from adapter_export.bundle.prove import Original, Reference
    from adapter_export.cli.sources import model_of, precision_of, runner_of, same_precision
    from adapter_export.onnx_backend.base.numerics import numerics

    source = model_of(plan.manifest, against, trust_pickle=trust_pickle, site_map=site_map)
    wanted = numerics(ir.load(plan.folder / plan.manifest.graphs["slots"]))
    with same_precision(source, wanted) as runner:
        if texts is None and wanted.precision == precision_of(source):
            yield Reference(str(against), runner), None
            return
        cases = plan.cases if texts is None else _text_cases(plan, texts)
        inputs = "random inputs" if texts is None else f"{len(texts):,} texts"
        yield Reference(str(against), runner), Original(runner_of(source, allow_mismatch=True), cases, inputs)


def _text_cases(plan: Plan, texts: Sequence[str]) -> list[Case]:
    from adapter_export.bundle.cases import case_of
    from adapter_export.cli.sources import read_tokenizer, require

    record = plan.manifest.text
    if record is None:
        raise UsageError("the bundle has no tokenizer, so it cannot read texts", fix="leave `--data` out")
    require("tokenizers", "text", "reading texts")
    from adapter_export.text import Tokenizer

    tokenizer = Tokenizer.from_json(read_tokenizer(plan.folder / record.tokenizer), record.max_tokens)
    names = [each.name for each in plan.manifest.inputs]
    batches = [texts[start : start + _ROWS_AT_ONCE] for start in range(0, len(texts), _ROWS_AT_ONCE)]
    return [
        case_of(f"texts {number * _ROWS_AT_ONCE + 1}…", tokenizer.batch(batch, names), plan.manifest.inputs)
        for number, batch in enumerate(batches)
    ]

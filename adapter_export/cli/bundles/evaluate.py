"""`adapter-export evaluate` and `compare`: how well adapters do on labelled texts, one alone or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

import adapter_export as ae
from adapter_export.cli.bases import opened, stepping
from adapter_export.cli.options import Force, Json, LabelledData, SiteMapFile, TrustPickle, command
from adapter_export.cli.output import emit_json, say, say_failed, show, steps, warn
from adapter_export.errors import UsageError
from adapter_export.option import Option
from adapter_export.reporting import Reporter

if TYPE_CHECKING:
    from adapter_export.analysis.comparison import Comparison
    from adapter_export.analysis.evaluation import Evaluation

_MISSED = 1


@command(
    "adapter-export evaluate bundle --data test.tsv --text text --label label",
    "adapter-export evaluate bundle --adapter trec --data test.tsv --gate accuracy=0.92 --slices language",
    "adapter-export evaluate bundle --data sts.jsonl --text first --pair second --label score",
    "adapter-export evaluate bundle --data test.tsv --against model.pt --report evaluation.html",
    like=ae.evaluate,
)
def evaluate(
    bundle: Path,
    *,
    data: LabelledData,
    gate: Annotated[
        Sequence[str],
        Option("The least that a metric must be; the most, where less is better. May be repeated.", "METRIC=N"),
    ] = (),
    against: Annotated[
        Path | None,
        Option(
            "The model that the bundle was built from: it answers the same rows, and where both part is shown.", "MODEL"
        ),
    ] = None,
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Measure an adapter of BUNDLE on labelled rows: the graph that is shipped, in ONNX Runtime, from text or file.

    The metrics are those of the adapter's task, with intervals of 95 %: accuracy and macro-F1 of classes, F1 and
    average precision of sets of labels, F1 of entities, exact match and F1 of answers in a text, correlations of
    numbers, MRR and NDCG of rankings, Spearman's correlation of the cosines of pairs. Rows are read as `train` reads
    them. If the adapter's training was measured on this very file, its scores are held to these.

    Exit codes: 0 measured, 1 a gate is missed or the record of training is contradicted, 2 wrong call, 3 bundle, model
    or data cannot be used.
    """
    base = None if against is None else opened(against, site_map, trust_pickle)
    with stepping("answering") as show:
        reporter = _Steps(lambda label, done, total: show(done, total or 0, label))
        found = ae.evaluate(bundle, data, gate=_gates(gate), against=base, force=force, reporter=reporter, **options)
    _show(found, as_json=as_json)
    for fault in found.faults():
        say_failed(fault.sentence("shell"))
    if options.get("report") is not None:
        say(f"the page is {options['report']}.")
    if not found.passed:
        raise click.exceptions.Exit(_MISSED)


@command(
    "adapter-export compare bundle --only trec --only trec-small --data test.tsv --text text --label label",
    "adapter-export compare bundle-fp32 bundle-int8 --only trec --data test.tsv --report comparison.html",
    "adapter-export compare adapters/a adapters/b student.pt --base model.pt --precisions fp32,int8 --data test.tsv",
    like=ae.compare,
)
def compare(
    contestants: Sequence[str],
    *,
    data: LabelledData,
    base: Annotated[Path | None, Option("The model of the adapters.", "MODEL")] = None,
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Compare CONTESTANTS on the same labelled rows: bundles, adapter folders (with --base), models with heads.

    Scores have intervals of 95 %. Whether two differ beyond chance is tested on the same rows: exact McNemar where
    each row is right or wrong, else paired permutation or bootstrap, with Holm's correction for more than two. Beside
    that: how often they agree, rows on which they differ, sizes, latency of calls in turns, and for fusions how much
    each layer listens to each member.

    Exit codes: 0 compared, 2 wrong call, 3 a contestant or the data cannot be used.
    """
    model = None if base is None else opened(base, site_map, trust_pickle)
    with steps() as begin:
        reporter = _Steps(lambda label, done, _: None if done else begin(label))
        found = ae.compare(*contestants, data=data, base=model, force=force, reporter=reporter, **options)
    _show(found, as_json=as_json)
    if options.get("report") is not None:
        say(f"the page is {options['report']}.")


class _Steps(Reporter):
    """Pass each step on.

    Args:
        show: receives the label, the finished units and their number.
    """

    def __init__(self, show: Callable[[str, int, int | None], None]) -> None:
        self._show = show

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        """Pass a step on."""
        self._show(label, done, total)


def _show(found: Evaluation | Comparison, *, as_json: bool) -> None:
    for note in found.notes:
        warn(f"{note}.")
    if as_json:
        emit_json(found.to_json())
    else:
        for table in found.tables():
            show(str(table.title), replace(table, title=None), "")
        for remark in found.remarks():
            say(remark)


def _gates(given: Sequence[str]) -> dict[str, float]:
    gates: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            bound = float(number)
        except ValueError:
            bound = float("nan")
        if bound != bound or not name.strip():
            raise UsageError("is no gate", where="`--gate`", found=f"`{text}`", expected="such as `accuracy=0.92`")
        if name.strip() in gates:
            raise UsageError("one metric has two gates", where="`--gate`", found=f"`{name.strip()}`")
        gates[name.strip()] = bound
    return gates

"""Look for common mistakes in an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.adapters import load_adapter
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import UsageError
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Option, OptionsOf, changed
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import number_of
from adapter_export.training.specs import DataSpec
from adapter_export.words import argument, joined

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.graph.adapter import Adapter
    from adapter_export.plugins.lab.mistakes import Lint, SiteValues

_DATA_OPTIONS = OptionsOf(DataSpec)

_ROWS, _TOKENS = 64, 64
"""Rows and tokens that the base reads while the adapter is observed."""


def lint(
    adapter: Adapter | Address,
    *,
    base: Annotated[Base | Address | None, Option("Base model of the adapter.", "MODEL")] = None,
    data: Annotated[
        Address | None,
        Option("Training table: CSV, TSV, JSONL or Parquet.", "FILE"),
    ] = None,
    fresh: Annotated[bool, "Treat the adapter as untrained: measure the initial change of the hidden state."] = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    reporter: Reporter = SILENT,
    **options: Annotated[Any, _DATA_OPTIONS],
) -> Lint:
    """Look for common mistakes in an adapter.

    A finding shows the measurement, the expected value, the reason and a remedy. It reports a bottleneck that is too
    wide or too narrow, more parameters than the rows can teach, no residual path, a site without effect, an effective
    rank far below the width, an outlier layer, another base, an initialization that disturbs the base, units that never
    fire, and sites that cost much but change little. Some checks need a base that torch can run; it reads the first
    rows of the data, or random tokens. Skipped checks are listed with what they need.

    Data options are those of `train`: options of tokenization apply, and held-out rows are not counted.

    Args:
        adapter: the adapter, or its folder.
        base: the base model of the adapter.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        reporter: receives notes about changes made to the base when it was opened.

    Returns:
        The findings. A mistake raises no error; call `raise_for_failure()` for that.

    Raises:
        FileError, FormatError: the adapter cannot be read; `TensorError` if it contains NaN or Inf.
        UsageError: `fresh` without a base, data without a tokenizer, or data options without data.
        BaseModelError, AdapterError: the base cannot be used, or the adapter does not fit it.
        DataError: the data cannot be read.
    """
    if fresh and base is None:
        raise UsageError(argument("fresh") + " needs the adapter's base", found="no base", fix="add the base")
    loaded = load_adapter(adapter) if isinstance(adapter, str | Path) else adapter
    (of_data,) = _DATA_OPTIONS.split("lint", options)
    spec = DataSpec("" if data is None else data, **of_data)
    texts = None
    if data is not None:
        from adapter_export.format.tabular.labelled import read_texts

        texts, notes = read_texts(locate(data, "table", reporter).path, spec.columns)
        for note in notes:
            reporter.warn(note)
    elif changed(spec):
        about = joined(map(argument, changed(spec)))
        raise UsageError(about + ": these are about data", found="no " + argument("data"), fix="add it")
    from adapter_export.plugins.lab.mistakes import Subject, lint_adapter

    recorded = loaded.training.get("data")
    rows = recorded.get("training_rows") if isinstance(recorded, Mapping) else None
    if rows is None and texts is not None:
        rows = len(texts) - round(len(texts) * (spec.validation or 0))
    settings = loaded.training.get("settings")
    start = settings.get("initial_change") if isinstance(settings, Mapping) else None
    subject: dict[str, Any] = {
        "rows": rows,
        "validated": bool(loaded.training.get("validation")),
        "start": start,
        "trained": not fresh,
    }
    if base is not None:
        opened = base_for(base, OpenOptions(site_map, trust_pickle), reporter)
        subject |= {"base": opened.fingerprint, "norms": {s.name: s.norm for s in opened.sites.map if s.norm}}
        if opened.trainable:
            read = None if texts is None else _read(opened, texts[:_ROWS], spec)
            values, moved = _watched(opened, loaded, read)
            subject |= {"values": values, **({"start": moved} if fresh else {})}
    return lint_adapter(Subject(loaded, **subject))


def _watched(base: Base, adapter: Adapter, read: dict[str, np.ndarray] | None) -> tuple[dict[str, SiteValues], float]:
    """Return the values at the sites of an adapter, and its relative change of the final hidden state.

    The base reads the given inputs, or random ones.
    """
    import numpy as np
    import torch

    from adapter_export.bundle.latency import sample
    from adapter_export.plugins.lab.mistakes import SiteValues
    from adapter_export.torch_backend.attach import attach
    from adapter_export.training.loop.init_adapter import relative_change

    arrays = sample(base.inputs, _ROWS // 4, _TOKENS, base.lengths) if read is None else read
    inputs = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    model = attach(base.torch, adapter, sites=base.sites.map, allow_mismatch=True)
    with torch.inference_mode(), model.observed() as calls:
        model.hidden(**inputs)
    values = {}
    for site, placement in adapter.placements.items():
        call, replaces = calls[site], adapter.graphs[placement.graph].replaces
        read = {name: value.double().numpy() for name, value in call.read.items()}
        if replaces in read:
            values[site] = SiteValues(read, read[replaces], call.result.double().numpy())
    return values, relative_change(model, inputs)


def _read(base: Base, texts: list[tuple[str, str | None]], data: DataSpec) -> dict[str, np.ndarray]:
    """Tokenize texts for the base, truncated to a few tokens if no limit is given."""
    from adapter_export.extras import require
    from adapter_export.text import Pair
    from adapter_export.training.rows import tokenizer_of

    require("tokenizers", "text", "reading texts")
    limit = data.max_tokens or min(base.max_tokens or _TOKENS, _TOKENS)
    tokenizer = tokenizer_of(base, data.tokenizer, limit)
    rows = [data.prefix + text if pair is None else Pair(data.prefix + text, pair) for text, pair in texts]
    encoded = tokenizer.rows(rows, sides=[data.truncation or tokenizer.side] * len(rows))
    return dict(tokenizer.arrays([row.encoding for row in encoded], [record.name for record in base.inputs]))


def _show(report: Lint, screen: Screen) -> None:
    if report.findings:
        screen.show(f"adapter `{report.adapter}`", report.table())
    else:
        screen.show(f"adapter `{report.adapter}`: {number_of(len(report.looked_for), 'check')} passed")
    reasons: dict[str, list[str]] = {}
    for rule, reason in report.skipped.items():
        reasons.setdefault(reason, []).append(rule)
    for reason, rules in reasons.items():
        screen.report(f"skipped: {', '.join(rules)}: " + reason)


COMMAND = Command(
    lint,
    _show,
    passed=lambda found: found.passed,
    exit_codes="0 no mistake, 1 a mistake, 2 wrong call, 3 adapter, model or data cannot be used",
    examples=(
        "adapter-export lint adapters/trec",
        "adapter-export lint adapters/trec --base model.pt --data train.tsv",
        "adapter-export lint adapters/trec --base model.pt --json | jq '.findings[].rule'",
    ),
    sections={"data": (OptionsOf(DataSpec),)},
    common=("text", "pair", "label", "tokenizer", "max_tokens"),
)

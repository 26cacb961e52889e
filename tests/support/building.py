"""Build bundles in one call, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from adapter_export.bundle.build_plan import BuildPlan, GraphOptions, ModelFacts
from adapter_export.format.manifest import Manifest
from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.runner import Runner
from adapter_export.numerics.sample_inputs import InputCase
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.quantise.precision import convert_precision
from adapter_export.reporting import Reporter
from adapter_export.safe_io.output import Output


class _Quiet(Reporter):
    """Ignores notes, too: what `build` notes has tests of its own."""

    def warn(self, text: str) -> None:
        pass


QUIET = _Quiet()


def build_bundle(
    base: OnnxBase,
    adapters: Sequence[Adapter],
    out: Path,
    *,
    references: Runner,
    cases: Sequence[InputCase],
    force: bool = False,
    reporter: Reporter = QUIET,
    **settings: Any,
) -> Manifest:
    """Build a bundle; further settings are fields of `GraphOptions`, `ModelFacts` and `BuildPlan`."""

    def taken(kind: type[Any]) -> Any:
        names = {field.name for field in fields(kind)} & settings.keys()
        return kind(**{name: settings.pop(name) for name in names})

    plan = BuildPlan(base, adapters, references, cases, taken(GraphOptions), taken(ModelFacts), **settings)
    return plan.run(Output(out, force), reporter)


def in_precision(base: OnnxBase, name: PrecisionName, folder: Path, **options: bool) -> OnnxBase:
    """Write a base in the precision that a name and options describe, and open it."""
    return convert_precision(base, Precision.of(name, **options), folder)

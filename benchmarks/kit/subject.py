"""Subjects of benchmarks: a base, random adapters, and bundles of them in a temporary folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from adapter_export.bundle.build_plan import BuildPlan, GraphOptions
from adapter_export.format.adapter_files import write_adapter
from adapter_export.format.manifest import VariantName
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle
from adapter_export.safe_io.output import Output
from kit.adapters import random_houlsby

EXAMPLES = Path(__file__).parents[2] / "examples"

_FEW_TOKENS = 4
"""Golden vectors are not benchmarked here."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A base with adapters.

    Attributes:
        folder: folder of all outputs.
        source: the base for commands: a torch archive, or the passed ONNX file.
        base: the base as ONNX.
        adapters: random adapters, each in a folder of its name in `folder`.
        bundle: bundle of all adapters, the first one also as constants of a separate graph.
        small: bundle with only the first adapter.
    """

    folder: Path
    source: Path
    base: OnnxBase
    adapters: tuple[Adapter, ...]
    bundle: Bundle
    small: Bundle

    @property
    def names(self) -> list[str]:
        """Names of the adapters."""
        return [adapter.name for adapter in self.adapters]

    def inputs(self, batch: int, tokens: int) -> Arrays:
        """Inputs of one shape, no token masked."""
        return inputs_of(self.bundle, batch, tokens)


def inputs_of(bundle: Bundle, batch: int, tokens: int) -> Arrays:
    """Inputs of one shape for a bundle, no token masked."""
    records = bundle.manifest.inputs
    batches = {record.axes[0] for record in records if record.axes}
    axes = {axis for record in records for axis in record.axes if isinstance(axis, str)}
    shape = {axis: batch if axis in batches else tokens for axis in axes}
    return input_cases(records, seed=0, shapes=[shape])[0].arrays


@contextmanager
def prepared(model: Path | None, adapters: int, bottleneck: int) -> Iterator[Subject]:
    """Open a base, make adapters and build bundles.

    Args:
        model: a torch archive, a Hugging Face folder or an ONNX file; all-MiniLM-L6-v2 if not given.
        adapters: how many.
        bottleneck: their width.
    """
    with TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        source, base = _opened(_minilm() if model is None else model, folder)
        made = tuple(random_houlsby(f"a{number}", base, bottleneck, number) for number in range(adapters))
        for adapter in made:
            write_adapter(adapter, folder / adapter.name)
        bundle = built(base, made, folder / "bundle", bake=[made[0].name])
        yield Subject(folder, source, base, made, bundle, built(base, made[:1], folder / "small", bake=["a0"]))


def _minilm() -> Path:
    sys.path.insert(0, str(EXAMPLES))
    import demo_data

    return demo_data.base_folder()


def _opened(model: Path, folder: Path) -> tuple[Path, OnnxBase]:
    if model.suffix == ".onnx":
        return model, open_onnx(model)
    from adapter_export.torch_backend.base.huggingface_folder import capture_folder
    from adapter_export.torch_backend.base.to_onnx import export_onnx
    from adapter_export.torch_backend.base.torch_base import load_base

    if model.is_dir():
        capture_folder(model, folder / "model.pt")
        model = folder / "model.pt"
    export_onnx(load_base(model), folder / "exported" / "base.onnx")
    return model, open_onnx(folder / "exported" / "base.onnx")


def built(
    base: OnnxBase,
    adapters: tuple[Adapter, ...],
    out: Path,
    bake: Sequence[str] = (),
    variants: Sequence[VariantName] | None = None,
) -> Bundle:
    """Build a bundle with few golden vectors."""
    first, *_, last = input_cases(base.inputs, seed=0, max_tokens=_FEW_TOKENS)
    BuildPlan(base, adapters, CutRunner(base), [first, last], GraphOptions(variants, bake)).run(Output(out))
    return Bundle.open(out)

"""The base that goes into a bundle, and what computes the outputs that it must have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from adapter_export.cli.sources import OnnxSource, Source, open_source, require
from adapter_export.errors import BaseModelError, UsageError

if TYPE_CHECKING:
    from adapter_export.format.manifest import Manifest, Precision
    from adapter_export.onnx.base import OnnxBase
    from adapter_export.onnx.numerics import Numerics
    from adapter_export.onnx.remake import Deviation
    from adapter_export.reference.runner import Runner

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-weights", "int4-weights")

Tell = Callable[[str], None]

_SEED, _TOKENS = 1, 7
"""Of the inputs that a treated base is compared with the plain one on."""


@dataclass(frozen=True)
class Treatment:
    """What is done to a base before the slots go in.

    Attributes:
        precision: the precision that it gets; `fp32` leaves it as it is.
        int8_embeddings: whether embeddings get 8 bits beside weights of 8 or 4.
        optimize: whether operators are fused.
    """

    precision: Precision = "fp32"
    int8_embeddings: bool = False
    optimize: bool = False

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: fused operators in another precision: their weights would stay in float32, and none but the
                fused graph itself could be the reference. Or 8-bit embeddings without quantised weights.
            MissingExtraError: onnxscript is not installed.
        """
        if self.optimize and self.precision != "fp32":
            raise UsageError(
                "`--optimize` and `--base-precision` do not go together",
                found=f"`--base-precision {self.precision}`",
                fix="leave one of them out; ONNX Runtime fuses what it can when it loads the graph",
            )
        if self.int8_embeddings and self.precision in ("fp32", "fp16"):
            raise UsageError(
                "`--int8-embeddings` goes with quantised weights",
                found=f"`--base-precision {self.precision}`",
                fix="give `--base-precision int8-weights` or `int4-weights` with it",
            )
        if self.optimize:
            require("onnxscript", "torch", "`--optimize`")


@contextmanager
def prepared(
    source: Source, treatment: Treatment, allow_mismatch: bool, tell: Tell
) -> Iterator[tuple[OnnxBase, Runner]]:
    """The base as it goes into a bundle, and what computes its golden vectors.

    That is the model itself, or the treated base cut open at its sites where the precision is another: the model in
    float32 says nothing about rounding in 8 bits.
    """
    with TemporaryDirectory(prefix="adapter-export-") as folder:
        plain = as_onnx(source, Path(folder), tell)
        if treatment.optimize:
            yield _optimized(plain, Path(folder), tell), runner_of(source, allow_mismatch)
        elif treatment.precision != "fp32":
            made = _in_precision(plain, treatment, Path(folder), tell)
            _tell_deviation(plain, made, tell)
            yield made, _cut_runner(made)
        else:
            yield plain, runner_of(source, allow_mismatch)


@contextmanager
def same_precision(source: Source, wanted: Numerics) -> Iterator[Runner]:
    """The reference for a bundle: a model, in the precision that the bundle has."""
    if precision_of(source) == wanted.precision:
        yield runner_of(source, allow_mismatch=True)
        return
    with TemporaryDirectory(prefix="adapter-export-") as folder:
        plain = as_onnx(source, Path(folder), lambda _: None)
        embeddings = wanted.int8_tables and wanted.precision != "int8"
        treatment = Treatment(wanted.precision, int8_embeddings=embeddings)
        yield _cut_runner(_in_precision(plain, treatment, Path(folder), lambda _: None))


def model_of(manifest: Manifest, path: Path, *, trust_pickle: bool, site_map: Path | None) -> Source:
    """Open the model that a bundle was built from.

    Raises:
        BaseModelError: it is another one.
        InputError: it cannot be opened.
    """
    source = open_source(path, trust_pickle=trust_pickle, site_map=site_map)
    if source.fingerprint != manifest.base:
        raise BaseModelError(
            "is another base than the bundle's",
            where=path,
            found=f"base fingerprint {source.fingerprint}",
            expected=manifest.base,
            fix="give the model that the bundle was built from",
        )
    return source


def precision_of(source: Source) -> Precision:
    """The precision that a base has of itself; a torch base is run in float32."""
    if not isinstance(source, OnnxSource):
        return "fp32"
    from adapter_export.onnx.numerics import numerics

    return numerics(source.base.model).precision


def runner_of(source: Source, allow_mismatch: bool) -> Runner:
    """Runs a base as it is, in torch where there is a torch model."""
    if isinstance(source, OnnxSource):
        return _cut_runner(source.base)
    from adapter_export.torch.runner import TorchRunner

    return TorchRunner(source.base, sites=source.sites(), allow_mismatch=allow_mismatch)


def _cut_runner(base: OnnxBase) -> Runner:
    from adapter_export.onnx.cut_runner import CutRunner

    return CutRunner(base)


def as_onnx(source: Source, folder: Path, tell: Tell) -> OnnxBase:
    """The base as an ONNX graph, exported into a folder if it is none, with its site map if it has one."""
    if isinstance(source, OnnxSource):
        return source.base
    from adapter_export.onnx.base import open_onnx
    from adapter_export.torch.to_onnx import export_onnx

    tell("exporting the base to ONNX")
    path = folder / "exported" / "base.onnx"
    path.parent.mkdir()
    export_onnx(source.base, path)
    return open_onnx(path, given=source.given)


def _in_precision(plain: OnnxBase, treatment: Treatment, folder: Path, tell: Tell) -> OnnxBase:
    from adapter_export.onnx.precision import with_precision

    tell(f"bringing the base into {treatment.precision}")
    out = folder / "precision"
    out.mkdir()
    return with_precision(plain, treatment.precision, out, int8_embeddings=treatment.int8_embeddings)


def _optimized(plain: OnnxBase, folder: Path, tell: Tell) -> OnnxBase:
    from adapter_export.onnx.optimize import check_deviation, optimized

    tell("fusing operators of the base")
    out = folder / "optimized"
    out.mkdir()
    made, fusions = optimized(plain, out)
    tell("fused " + (", ".join(f"{count} {name}" for name, count in fusions.items()) or "nothing"))
    for found in _tell_deviation(plain, made, tell):
        check_deviation(found)
    return made


def _tell_deviation(plain: OnnxBase, made: OnnxBase, tell: Tell) -> list[Deviation]:
    """Say how far the treated base lies from the plain one."""
    from adapter_export.onnx.remake import deviations
    from adapter_export.reference.inputs import input_cases

    found = deviations(plain, made, input_cases(plain.inputs, seed=_SEED, max_tokens=_TOKENS))
    for each in found:
        tell(f"`{each.output}` deviates from the plain base by {each.absolute:.1e} of {each.scale:.3g}")
    return found

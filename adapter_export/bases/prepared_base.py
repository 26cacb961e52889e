"""Prepare a base for a bundle: its precision, operator fusion, and the reference for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_export.address import Address
from adapter_export.bases.base import Base
from adapter_export.bases.opening import open_base
from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.reporting import Reporter
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.words import Words, argument, command, quoted

if TYPE_CHECKING:
    from adapter_export.bundle.latency import Latency
    from adapter_export.bundle.proof.exact_tensors import Origin
    from adapter_export.format.manifest import Manifest
    from adapter_export.numerics.runner import Runner
    from adapter_export.numerics.sample_inputs import InputCase
    from adapter_export.onnx_backend.base.onnx_base import OnnxBase
    from adapter_export.onnx_backend.quantise.rewritten import Deviation

_FEW_TOKENS = 2
"""Length of the golden vectors of a large base: each row of a product takes time."""

_SLOW = 1.05
"""Lower quartile of the time over that in float32 from which a precision is called slow."""


@contextmanager
def open_prepared_base(
    base: Base, precision: Precision, optimize: bool, allow_mismatch: bool, reporter: Reporter
) -> Iterator[tuple[OnnxBase, Runner]]:
    """Yield the base to store in a bundle, and the runner that computes its golden vectors.

    The runner is the model, or in another precision the quantized base split at its sites: the float32 model has no
        8-bit rounding. Fused operators are compared with the operators they replace.
    """
    from adapter_export.onnx_backend.onnx_runner import CutRunner

    with temporary_folder() as folder:
        plain = base.checked_export(folder, reporter)
        base_in_precision = plain
        if precision.name != "fp32":
            reporter.step(f"converting the base to {precision.name}")
            base_in_precision = _in_precision(plain, precision, folder)
            _warn_of_far(_deviations(plain, base_in_precision, reporter), precision, reporter)
        references = (
            base.runner(allow_mismatch=allow_mismatch) if base_in_precision is plain else CutRunner(base_in_precision)
        )
        if optimize:
            if base_in_precision is not plain:  # verify the fusion before quantizing, whose rounding would hide a fault
                _fused(plain, folder / "plain", reporter)
            base_in_precision = _fused(base_in_precision, folder / "optimized", reporter)
        if precision.name != "fp32":
            _warn_of_slow(plain, base_in_precision, precision, reporter)
        yield base_in_precision, references


def _fused(base: OnnxBase, out: Path, reporter: Reporter) -> OnnxBase:
    """Return a base with fused operators; `BaseModelError` if its outputs change."""
    from adapter_export.onnx_backend.quantise.optimize import check_deviation, optimize_base

    reporter.step("fusing operators of the base")
    out.mkdir()
    made, fusions = optimize_base(base, out)
    reporter.step("fused " + (", ".join(f"{count} {name}" for name, count in fusions.items()) or "nothing"))
    for found in _deviations(base, made, reporter):
        check_deviation(found)
    return made


@contextmanager
def same_precision(base: Base, wanted: Precision) -> Iterator[tuple[Runner, Callable[[bool], OnnxBase]]]:
    """Yield the reference for a bundle in the precision of its graph, and a function that exports the graph again.

    The function takes whether operators are fused, and must be called within the context.
    """
    from adapter_export.onnx_backend.onnx_runner import CutRunner

    with temporary_folder() as folder:
        if base.precision != wanted.name:
            exported = _in_precision(base.exported(folder), wanted, folder)
            runner: Runner = CutRunner(exported)
        else:
            exported, runner = None, base.runner(allow_mismatch=True)

        def again(optimize: bool) -> OnnxBase:
            unfused = base.exported(folder) if exported is None else exported
            if not optimize:
                return unfused
            from adapter_export.onnx_backend.quantise.optimize import optimize_base

            (folder / "optimized").mkdir()
            return optimize_base(unfused, folder / "optimized")[0]

        yield runner, again


def origin_of(base: Base, precision: PrecisionName, *, optimized: bool) -> Origin:
    """Return the origin of a bundle's constants: the tensors of a model, and the libraries that export its graph."""
    own = base.precision == precision
    libraries = (*(() if own and not optimized else ("onnxruntime",)), *(("onnxscript",) if optimized else ()))
    origin = base.origin()
    return replace(origin, made_by=(*origin.made_by, *libraries), optimized=optimized)


def model_of(manifest: Manifest, model: Base | Address) -> Base:
    """Open the model that a bundle was built from; `BaseModelError` for another model."""
    from adapter_export.format.files import IDENTITY_FILE

    base = open_base(model)
    if base.fingerprint != manifest.base:
        base = base.captured_as(manifest)  # a language model's folder, with or without its cache
    if base.fingerprint != manifest.base:
        raise BaseModelError(
            "does not match the base this bundle was built from",
            where=base.path,
            found=f"base fingerprint {base.fingerprint}",
            expected=manifest.base,
            fix="pass the model that the bundle was built from",
        )
    if base.form != "genai" and any(file.path == IDENTITY_FILE for file in manifest.files):
        raise BaseModelError(
            "contains the original weights of the model, but the bundle was built from a converted model",
            where=base.path,
            found=f"a {base.form_name}",
            expected="the onnxruntime-genai folder",
            fix="pass that folder",
        )
    return base


def golden_cases(base: OnnxBase, longest: int | None, references: Runner) -> list[InputCase]:
    """Return the inputs of the golden vectors: two short ones for a large base, which takes seconds per input."""
    from adapter_export.format.manifest import token_lengths
    from adapter_export.numerics.sample_inputs import input_cases, less_padded
    from adapter_export.onnx_backend.base.external import is_large
    from adapter_export.onnx_backend.base.onnx_base import probe_lengths

    if is_large(base.model):
        first, *_, last = input_cases(
            base.inputs, seed=0, lengths=base.lengths, max_tokens=min(longest or _FEW_TOKENS, _FEW_TOKENS)
        )
        return [first, last]
    cases = input_cases(base.inputs, seed=0, lengths=base.lengths, max_tokens=longest)
    case = max(cases, key=lambda case: max(size for array in case.arrays.values() for size in array.shape))
    try:
        references.run(case.arrays, None)
    except RequestError as error:
        most = token_lengths(base.inputs, probe_lengths(base).lengths).maximum
        raise RequestError(
            "the base cannot run an input of this length",
            where=f"`{case.name}`",
            found=error.found,
            expected="inputs that the base can run" if most is None else f"at most {most} tokens",
            fix="if its maximum is lower, pass it as " + argument("max_tokens", most),
        ) from error
    # store only the outputs of the base: readers compare every stored output
    while references.find_undefined(cases[-1].arrays, None) and (shorter := less_padded(cases[-1], base.inputs)):
        cases[-1] = shorter
    return cases


def _in_precision(plain: OnnxBase, precision: Precision, folder: Path) -> OnnxBase:
    from adapter_export.onnx_backend.quantise.precision import convert_precision

    out = folder / "precision"
    out.mkdir()
    return convert_precision(plain, precision, out)


def _deviations(plain: OnnxBase, rounded: OnnxBase, reporter: Reporter) -> list[Deviation]:
    """Return and report the difference of the quantized or optimized base from the original."""
    from adapter_export.numerics.sample_inputs import loss_cases
    from adapter_export.onnx_backend.quantise.rewritten import deviations

    found = deviations(plain, rounded, loss_cases(plain.inputs, plain.lengths))
    for each in found:
        reporter.step(str(each))
    return found


def _warn_of_slow(plain: OnnxBase, rounded: OnnxBase, precision: Precision, reporter: Reporter) -> None:
    """Time the base in its precision beside the plain one, and warn if it is slower on this machine."""
    from adapter_export.bundle.latency import beside

    reporter.step("timing the base beside float32")
    found = beside(rounded, plain)
    if found is not None:
        reporter.step(f"takes {found} of the time of float32 on one thread here")
        if (note := slow_note(found, precision)) is not None:
            reporter.warn(note)


def slow_note(latency: Latency, precision: Precision) -> Words | None:
    """Return a warning if a precision takes longer than float32, by the lower quartile of its times over these."""
    if latency.low <= _SLOW:
        return None
    return (
        f"{precision.name} is slower than fp32 on this machine: a short text takes {latency} times as long on one "
        "thread; measure every precision with " + command("bench(MODEL)", "bench MODEL")
    )


def _warn_of_far(found: Sequence[Deviation], precision: Precision, reporter: Reporter) -> None:
    far = [each.output for each in found if each.is_far]
    name = precision.name
    measure = command(f'compare(…, precisions=("fp32", "{name}"))', f"compare … --precisions fp32,{name}")
    if far:
        reporter.warn(
            f"in {name}, {quoted(far)} differs much from the float32 base, so answers may change:  "
            "measure both with " + measure + ", or build with another " + argument("base_precision")
        )

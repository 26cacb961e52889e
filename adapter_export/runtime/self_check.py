"""Proof of a session by golden data before it answers: vectors, parts and recorded runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from adapter_export.errors import FormatError, HashError
from adapter_export.format.manifest import GoldenRecord, InputRecord, PartRecord
from adapter_export.format.sketch import read_fill, sketched
from adapter_export.providers import PROVIDERS
from adapter_export.runtime.generation.golden_schedule import golden_texts, replay_schedule
from adapter_export.runtime.graphs import Arrays
from adapter_export.runtime.session import Session
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_bytes

if TYPE_CHECKING:
    from adapter_export.runtime.bundle import Bundle

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1", "BOOL": "?"}
"""Element types of safetensors in golden data, and NumPy's."""

_LENGTH = 8
"""Number of bytes before the header of a safetensors file, which contain its length."""


def projection(actual: np.ndarray | None, expected: np.ndarray, weight: np.ndarray) -> float:
    """Return Σ weight · (actual - expected) in float64; NaN if the shapes do not fit.

    `actual` may be longer along the last axis, as outputs of a bank are; the rest is ignored.
    """
    values = None if actual is None or actual.ndim == 0 else actual[..., : expected.shape[-1]]
    if values is None or values.shape != expected.shape or weight.shape != expected.shape:
        return math.nan
    return float(np.vdot(weight.astype(np.float64), values.astype(np.float64) - expected))


def part_values(
    parts: Sequence[PartRecord],
    actual: Sequence[Mapping[str, np.ndarray]],
    expected: Sequence[Mapping[str, np.ndarray]],
    weights: Sequence[Mapping[int, np.ndarray]],
) -> list[float]:
    """Return the value of each golden part: 0 up to rounding in a correct program, near 1 with its fault.

    Args:
        parts: the golden parts of an adapter.
        actual: outputs of a program in each case. Outputs of a bank may have more classes.
        expected: outputs of the reference.
        weights: int8 weights of some parts in each case, by their position in `parts`.

    Returns:
        NaN if an output is missing, has another shape or contains NaN.
    """
    sums = [0.0] * len(parts)
    for outputs, wanted, case_weights in zip(actual, expected, weights, strict=True):
        for at, weight in case_weights.items():
            name = parts[at].output
            sums[at] += projection(outputs.get(name), wanted[name], weight)
    return [part.factor * total for part, total in zip(parts, sums, strict=True)]


def check_session(bundle: Bundle, session: Session, adapters: Collection[str] | None = None) -> None:
    """Compare the results of a session for the base and for adapters with golden data.

    Where the provider's budget is recorded bits, the release matches and the base has its recorded bits, an adapter
    passes by its own: that takes a run or two. Otherwise golden vectors and golden parts are compared. A provider that
    is proved when it opens also computes them in the graph `bank`, if it runs that.

    Args:
        bundle: of the session; golden data are read from its folder, not from a private copy.
        session: computes.
        adapters: names of adapters to run; default: all of the bundle.

    Raises:
        FormatError: an output exceeds its budget, or moves as with a fault.
        FileError, HashError: golden data cannot be read, or do not match the manifest.
    """
    manifest = bundle.manifest
    golden = {record.name: record.golden for record in manifest.adapters if adapters is None or record.name in adapters}
    by_bits = PROVIDERS[session.provider].budget == "recorded bits"
    trusted = by_bits and _Check(bundle, session, None, manifest.golden).has_recorded_bits()
    if not trusted:
        for by_row in ways(session, None):
            _Check(bundle, session, None, manifest.golden, by_row).compare_vectors()
    for name, record in golden.items():
        for by_row in ways(session, name):
            check = _Check(bundle, session, name, record, by_row)
            if not (trusted and check.has_recorded_bits()):
                check.compare_vectors()
                check.compare_parts()


def check_joined_rows(bundle: Bundle, session: Session, adapters: Collection[str] | None = None) -> None:
    """Compare texts that a session writes with rows that join and leave with golden texts: a bounded number of them.

    Does nothing if the bundle does not generate text.

    Args:
        bundle: of the session.
        session: computes.
        adapters: names of adapters to run; default: all of the bundle.

    Raises:
        FormatError: a row has other tokens than the reference.
    """
    records = bundle.manifest.adapters
    names = [record.name for record in records if adapters is None or record.name in adapters]
    texts = golden_texts(bundle.manifest, [None, *names])
    if bundle.manifest.generation is None or not texts:
        return
    replay = replay_schedule(session.decoder, texts, brief=True)
    for name, faults in replay.faults.items():
        what = "generates other texts than the reference when rows join and leave"
        raise _error(bundle, session, name, what, faults[0], "the golden texts")


def ways(session: Session, adapter: str | None) -> tuple[bool, ...]:
    """Return the ways in which a session computes golden data: all rows at once, and by row in a bank (`True`).

    The latter for a provider that is proved when it opens, with an adapter that its bank contains.
    """
    return (False, True) if PROVIDERS[session.provider].proved and session.may_mix([adapter]) else (False,)


class _Check:
    """The golden data of the base or of an adapter, and a session that runs them: as a whole, or `by_row` in a bank."""

    def __init__(
        self, bundle: Bundle, session: Session, adapter: str | None, record: GoldenRecord, by_row: bool = False
    ) -> None:
        self._bundle, self._session, self._adapter, self._record = bundle, session, adapter, record
        self._by_row = by_row
        self._vectors = read_golden(bundle, record.path)

    def has_recorded_bits(self) -> bool:
        """Return whether the session reproduces the bits that were recorded with this runtime."""
        manifest, expected = self._bundle.manifest, self._record.recorded.get("slots")
        recorded, here = manifest.recorded, (ort.__version__, PROVIDERS[self._session.provider].device)
        # a session does not return checksums, which digests cover
        if expected is None or recorded is None or manifest.checksums is not None:
            return False
        if (recorded.runtime, recorded.provider) != here:
            return False
        digest = hashlib.sha256()
        for case in recorded.cases:
            outputs = self._run(self._vectors, case)
            for output in sorted(self._record.absolute):
                value = outputs[output]
                # little-endian, so that the digest does not depend on the machine
                digest.update(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest() == expected

    def compare_vectors(self) -> None:
        """Compare golden vectors; FormatError if an output exceeds its budget."""
        for case in self._record.cases:
            outputs = self._run_stored(self._vectors, case)
            for output, allowed in self._record.absolute.items():
                if output == self._bundle.manifest.checksums:
                    continue
                expected, value = self._vectors[f"{case}.output.{output}"], outputs.get(output)
                same = value is not None and value.shape == expected.shape
                off = float(np.abs(value - expected).max(initial=0.0)) if same and value is not None else math.inf
                if not off <= allowed:  # NaN fails
                    what = "does not compute what the reference computed"
                    raise self._error(what, f"`{output}` in `{case}` deviates by {off:.3g}", f"at most {allowed:.3g}")

    def compare_parts(self) -> None:
        """Compare golden parts; FormatError if outputs move as with a fault."""
        record = self._record.parts
        if record is None:
            return
        tensors = read_golden(self._bundle, record.path)
        parts, outputs = range(len(record.parts)), {part.output for part in record.parts}
        values = part_values(
            record.parts,
            [self._run_stored(tensors, case) for case in record.cases],
            [
                {name: tensors[key] for name in outputs if (key := f"{case}.output.{name}") in tensors}
                for case in record.cases
            ],
            [{at: tensors[key] for at in parts if (key := f"{case}.part.{at}") in tensors} for case in record.cases],
        )
        wrong = [at for at in parts if not abs(values[at]) <= record.parts[at].limit]
        if wrong:
            # NaN differs from itself, and comes last
            likeliest = min(wrong, key=lambda at: abs(values[at] - 1) if values[at] == values[at] else math.inf)
            part, value = record.parts[likeliest], values[likeliest]
            actual = f"outputs move as with `{part.fault}`, {value:.2g} of ±{part.limit:g}"
            raise self._error("applies an adapter in part, or wrongly", actual, "outputs that do not")

    def _run_stored(self, tensors: Mapping[str, np.ndarray], case: str) -> Arrays:
        """Return the outputs of a case in the form of golden data."""
        return sketched(self._run(tensors, case), self._bundle.manifest.sketches)

    def _run(self, tensors: Mapping[str, np.ndarray], case: str) -> Arrays:
        inputs = {record.name: self._input(tensors, case, record) for record in self._bundle.manifest.inputs}
        if not self._by_row:
            return self._session.run(inputs, self._adapter, allow_padding=True)
        rows = len(next(iter(inputs.values())))
        return self._session.run(inputs, adapters=[self._adapter] * rows, allow_padding=True)

    def _input(self, tensors: Mapping[str, np.ndarray], case: str, record: InputRecord) -> np.ndarray:
        """Return an input that is stored whole, or as a seed and a shape."""
        fill = tensors.get(f"{case}.fill.{record.name}")
        if fill is None:
            return tensors[f"{case}.input.{record.name}"]
        try:
            return read_fill(fill, record.dtype)
        except ValueError as error:
            raise self._error("has golden data of an impossible shape", str(error), "a shape within memory") from error

    def _error(self, what: str, actual: str, expected: str) -> FormatError:
        return _error(self._bundle, self._session, self._adapter, what, actual, expected)


def _error(bundle: Bundle, session: Session, adapter: str | None, what: str, actual: str, expected: str) -> FormatError:
    where = f"{bundle.folder}" if adapter is None else f"{bundle.folder}, adapter `{adapter}`"
    if session.provider != "cpu":
        where = f"{where}, provider `{session.provider}`"
    fix = "run `adapter-export verify` on the bundle; take it from its source again, or use another ONNX Runtime"
    return FormatError(what, where=where, found=actual, expected=expected, fix=fix)


def read_golden(bundle: Bundle, path: str) -> Arrays:
    """Read a file of golden data from the folder of a bundle.

    Raises:
        FileError, FormatError: it cannot be read.
        HashError: it does not match the manifest.
    """
    file = bundle.folder / path
    data = read_bytes(file)
    expected = next(record.sha256 for record in bundle.manifest.files if record.path == path)
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise HashError(file, found=actual, expected=expected)

    def refusal(reason: str) -> FormatError:
        return FormatError("is not a safetensors file", where=file, found=reason, fix="build the bundle again")

    # parsed here because the runtime package has no safetensors library; the hash was compared
    with parsing(refusal):
        start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        header: Any = parse_json(data[_LENGTH:start], file)
        header.pop("__metadata__", None)
        tensors: Arrays = {}
        for name, entry in header.items():
            begin, end = (start + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return tensors

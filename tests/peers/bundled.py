"""Adapters of another library in bundles: their import, their answers, and the comparison with the library's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from outcomes import BY_NUMBER, PASSED, UNCHANGED, WRONG, refusal

import adapter_export as ae
from adapter_export.errors import AdapterExportError
from adapter_export.format.manifest import Axis, InputRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.runtime.batches import Request
from adapter_export.runtime.bundle import Bundle

TOLERANCE = 1e-4
"""Tolerance relative to the largest value: a few layers in float32."""

TOGETHER = 12
"""Adapters of a bundle."""

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Peers:
    """Adapters of another library on one base.

    Args:
        base: the base.
        inputs: a request to it.
        plain: the library's answer without an adapter, of tokens that are not padding.
        load: imports an adapter from a folder; takes `by_number`.
        folder: a folder to work in.
    """

    base: ae.Base
    inputs: Inputs
    plain: np.ndarray
    load: Callable[..., Adapter]
    folder: Path

    def outcomes(self, answers: Mapping[str, tuple[Path, np.ndarray]]) -> dict[str, str]:
        """Import adapters, build them in verified bundles, and compare their answers with those of the library.

        Args:
            answers: by title, the folder of an adapter, and the library's answer.

        Returns:
            The outcome of each title.
        """
        outcomes, imported, by_number = dict[str, str](), dict[str, Adapter](), set[str]()
        for number, (title, (folder, _)) in enumerate(answers.items()):
            try:
                imported[title], advised = self._import(folder, f"a{number}")
            except Exception as error:  # a traceback is an outcome, too
                outcomes[title] = refusal(error, self.folder)
                continue
            by_number |= {title} if advised else set()
        titles = list(imported)
        for start in range(0, len(titles), TOGETHER):
            group = {title: imported[title] for title in titles[start : start + TOGETHER]}
            for title, answer in self._built(group):
                if isinstance(answer, str):
                    outcomes[title] = answer
                    continue
                outcomes[title] = _verdict(answer, answers[title][1], self.plain)
                outcomes[title] += BY_NUMBER if title in by_number and outcomes[title] == PASSED else ""
        return outcomes

    def _import(self, folder: Path, name: str) -> tuple[Adapter, bool]:
        """Import an adapter; if the error advises to match layers by number, do so, as a user would."""
        try:
            return self.load(folder, self.base, name=name), False
        except AdapterExportError as error:
            if "by_number=True" not in error.facts().get("fix", ""):
                raise
        return self.load(folder, self.base, name=name, by_number=True), True

    def _built(self, adapters: Mapping[str, Adapter]) -> Iterator[tuple[str, np.ndarray | str]]:
        """Yield the answer of a bundle for each adapter, by its title, or the outcome of an error.

        If the bundle fails, each adapter is built in its own, to find out which of them it concerns.
        """
        place = self.folder / "bundle"
        shutil.rmtree(place, ignore_errors=True)
        try:
            ae.build(self.base, list(adapters.values()), place, variants=["slots"])
            ae.verify(place).raise_for_failure()
            session = Bundle.open(place).session()
        except Exception as error:
            if len(adapters) == 1:
                yield next(iter(adapters)), refusal(error, self.folder)
                return
            for title, adapter in adapters.items():
                yield from self._built({title: adapter})
            return
        for title, adapter in adapters.items():
            output = adapter.head.output if adapter.head is not None else self.base.outputs[0].name
            try:
                (outputs,) = session.run_many([Request(self.inputs, adapter.name)])  # removes padding that counts
                yield title, real(outputs[output], self.inputs)
            except Exception as error:
                yield title, refusal(error, self.folder)


def request(base: ae.Base, arrays: Inputs) -> Inputs:
    """Return the inputs of a base: some arrays, masks of ones, types of tokens of zeros, and empty caches."""
    sizes = {
        axis: size
        for record in base.inputs
        if record.name in arrays
        for axis, size in zip(record.axes, arrays[record.name].shape, strict=True)
    }
    return {record.name: arrays.get(record.name, _default(record, sizes)) for record in base.inputs}


def _default(record: InputRecord, sizes: Mapping[Axis, int]) -> np.ndarray:
    shape = [axis if isinstance(axis, int) else sizes.get(axis, 0) for axis in record.axes]
    return np.full(shape, record.role == "mask", record.dtype)


def real(answer: np.ndarray, inputs: Inputs) -> np.ndarray:
    """Return the values of tokens that are not padding, or all of an answer that has none for each token."""
    mask = inputs.get("attention_mask")
    return answer if mask is None or answer.shape[:2] != mask.shape else answer[mask == 1]


def _verdict(answer: np.ndarray, expected: np.ndarray, plain: np.ndarray) -> str:
    """Return the outcome of an answer, beside that of the other library with the adapter, and without it."""
    if answer.shape != expected.shape:
        return f"{WRONG}the answer is {list(answer.shape)}, and {list(expected.shape)} is expected"
    tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    error = float(np.abs(answer - expected).max())
    if not error <= tolerance:
        return f"{WRONG}off by {error:.1e}, where {tolerance:.1e} is allowed"
    has_effect = expected.shape != plain.shape or np.abs(expected - plain).max() > 10 * tolerance
    return PASSED if has_effect else UNCHANGED

"""Golden batches of a bundle: rows with answers computed one by one by the reference, replayed in shared calls.

Rows are drawn until the usual mistakes of a client change their answers: left padding, padding that affects results,
token types of 0, a span outside its context, mixed-up rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Allowance, Golden
from adapter_export.bundle.texts import answer_faults
from adapter_export.errors import RequestError
from adapter_export.format.axes import names as names_of
from adapter_export.format.check_report import Finding
from adapter_export.format.golden_batches import GOLDEN_BATCHES_VERSION, GoldenBatch, GoldenBatches, GoldenBatchRow
from adapter_export.format.lengths import axis_lengths
from adapter_export.format.manifest import Axis, Manifest, OutputRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks import Task
from adapter_export.numerics.runner import Arrays, Runner, run
from adapter_export.onnx_backend.slots import HeadSum, SlotPlan, adapter_output, slot_tensors
from adapter_export.runtime.answerer import Answerer, Row
from adapter_export.runtime.session import Session
from adapter_export.tables import number_of, verb_for

CHECK = "golden batches"
"""Name of the check in reports."""

_TOKENS = (5, 6, 7)
"""Lengths of an adapter's rows: similar, so that a client which limits padding still batches them."""

_FEW_TOKENS = (3, 2, 3)
"""Lengths of rows without a task, whose answer is every output."""

_SHARED = 1
"""Index of the row whose tokens all adapters answer: only the adapter distinguishes these rows."""

_ADAPTERS = 6
"""Maximum adapters per batch, each with all of its rows."""

_DRAWS = 3
"""Maximum draws of a row until it exposes every mistake."""

_MORE_TOKENS = 4
"""Tokens of padding added to a row to measure the effect of padding."""

_LABELS = 8
"""Maximum number of an adapter's rows that are included because of their label."""

_LABEL_TOKENS = 4
"""Tokens of these rows: answers of short rows differ most."""

_DRAWN_TOKENS = 2**10
"""Total tokens of the rows that are searched for labels."""

_ROW_NUMBERS, _ALL_NUMBERS = 2**14, 2**15
"""Maximum numbers in the answer of one row, and in all answers: clients parse them as JSON."""

_TYPES = "token_type_ids"


def padding_by_name(manifest: Manifest, plan: SlotPlan, adapters: Sequence[Adapter]) -> dict[str, bool]:
    """Return for each adapter, by name, whether padding leaves its results unchanged.

    Args:
        manifest: records the effect of padding.
        plan: slots that the adapters fill.
        adapters: the adapters.
    """
    slots = [slot for slot in manifest.slots if slot.graph in manifest.counts_padding]

    def is_idle(adapter: Adapter) -> bool:
        tensors = slot_tensors(plan, adapter)
        return all(
            tensors[slot.name].shape == slot.neutral and (tensors[slot.name] == slot.neutral_value).all()
            for slot in slots
        )

    neutral = manifest.padding_neutral
    return {adapter.name: neutral and (not slots or is_idle(adapter)) for adapter in adapters}


@dataclass(frozen=True)
class _Subject:
    """An adapter, or the base, for which rows are drawn.

    Attributes:
        adapter: the adapter; `None` is the base.
        output: the output of its head.
        golden: its golden vectors, whose budgets are the minimum.
        pads: whether its rows may be padded.
    """

    adapter: Adapter | None
    output: str | None
    golden: Golden
    pads: bool

    @property
    def name(self) -> str | None:
        return None if self.adapter is None else self.adapter.name

    @property
    def task(self) -> Task | None:
        """Task of the head, if it has one."""
        return None if self.adapter is None or self.output is None else self.adapter.task


@dataclass(frozen=True)
class BatchMaker:
    """Makes golden batches.

    Attributes:
        manifest: the bundle's manifest, with the effect of padding.
        references: computes the answers; never the exported graph.
        allowance: determines the budgets of answers.
        pads: whether rows may be padded, by the name of their adapter.
        graph: bundle whose graph with slots shows which inputs get which labels; no answer comes from it.
    """

    manifest: Manifest
    references: Runner
    allowance: Allowance
    pads: Mapping[str, bool]
    graph: OpenedBundle

    def make(
        self, base: Golden, adapters: Sequence[tuple[Adapter, Golden]], heads: Sequence[HeadSum]
    ) -> GoldenBatches | None:
        """Return batches with rows of every adapter, and of the base unless a base head answers for it.

        Args:
            base: golden vectors of the base.
            adapters: each adapter with its golden vectors.
            heads: the outputs of heads.

        Returns:
            `None` if an input is not an integer or is a cache, or if every answer is too large.
        """
        subjects = self._subjects(adapters, heads)
        if self.manifest.head is None:
            subjects = [_Subject(None, None, base, self.manifest.padding_neutral), *subjects]
        return _batched([row for subject in subjects for row in self._rows(subject)], self.references.description)

    def add(
        self, old: GoldenBatches | None, adapters: Sequence[tuple[Adapter, Golden]], heads: Sequence[HeadSum]
    ) -> GoldenBatches | None:
        """Return the batches of a bundle with added rows of new adapters.

        Args:
            old: batches of the bundle, if any.
            adapters: each new adapter with its golden vectors.
            heads: the outputs of heads.
        """
        rows = [row for subject in self._subjects(adapters, heads) for row in self._rows(subject)]
        described = self.references.description
        if old is not None:
            rows = [*(row for batch in old.batches for row in batch.rows), *rows]
            described = old.reference if described in old.reference else f"{old.reference}, {described}"
        return _batched(rows, described)

    def _subjects(self, adapters: Sequence[tuple[Adapter, Golden]], heads: Sequence[HeadSum]) -> list[_Subject]:
        return [
            _Subject(adapter, adapter_output(heads, adapter), golden, self.pads[adapter.name])
            for adapter, golden in adapters
            if adapter.task is None or adapter.task.kind.has_golden_batches
        ]

    def _takes_integers(self) -> bool:
        """Return whether all inputs are integer arrays with a batch axis, without caches."""
        inputs = self.manifest.inputs
        first = {record.axes[0] if record.axes else None for record in inputs}
        axes = {axis for record in inputs for axis in record.axes if isinstance(axis, str)}
        return (
            len(first) == 1
            and all(isinstance(axis, str) or axis == 1 for axis in first)
            and all(np.dtype(record.dtype).kind == "i" and record.role != "cache" for record in inputs)
            and all(names_of(axis) == (axis,) for axis in axes)
        )

    def _rows(self, subject: _Subject) -> list[GoldenBatchRow]:
        """Return the rows of one adapter, independent of the other adapters: these may be added and removed."""
        rows: list[GoldenBatchRow] = []
        turns = len(_TOKENS) if self.references.keeps_weights else 1  # a run takes seconds if weights are not kept
        for turn in range(turns) if self._takes_integers() and self._has_rows(subject) else ():
            row = self._row(subject, turn, rows)
            if row is not None and _count(row.answer) <= _ROW_NUMBERS:
                rows.append(row)
        if rows and self.references.keeps_weights and subject.task is not None and subject.task.kind.one_label:
            rows += self._rows_of_labels(subject, rows)
        return rows

    def _rows_of_labels(self, subject: _Subject, rows: Sequence[GoldenBatchRow]) -> Iterator[GoldenBatchRow]:
        """Yield rows for labels that could be swapped unnoticed, because their numbers are close in other rows.

        In 8 bits, the budget may exceed the difference of two unlikely labels. One of the two labels is enough.
        """
        alike = _alike(rows)
        if len(alike) < 2:
            return
        drawn = self._many(subject)
        results = self._results(subject, drawn)
        ranked = np.sort(results, axis=-1)
        leads = ranked[:, -1] - ranked[:, -2]
        missing = len(alike)
        for at, label in enumerate(rows[0].answer["probabilities"]):
            candidates = np.flatnonzero(results.argmax(-1) == at)
            if label not in alike or not len(candidates) or missing < 2 or missing <= len(alike) - _LABELS:
                continue
            row = self._answer(subject, drawn[candidates[leads[candidates].argmax()]])
            if row.decided and row.answer["label"] == label:
                missing -= 1
                yield row

    def _many(self, subject: _Subject) -> list[Arrays]:
        """Draw many short rows."""
        rng = np.random.default_rng(crc32(str(subject.name).encode()))
        first = self._draw(subject, _LABEL_TOKENS, 0, rng)
        count = max(1, _DRAWN_TOKENS // max(array.size for array in first.values()))
        count = count if self._batch_is_free() else min(count, _LABELS)  # otherwise each row needs a separate run
        return [first, *(self._draw(subject, _LABEL_TOKENS, 0, rng) for _ in range(count - 1))]

    def _batch_is_free(self) -> bool:
        return all(isinstance(record.axes[0], str) for record in self.manifest.inputs)

    def _results(self, subject: _Subject, rows: Sequence[Arrays]) -> np.ndarray:
        """Return the graph's output for the head of an adapter, [rows, classes]."""
        assert subject.adapter is not None  # only adapters have a task
        tensors = slot_tensors(self.graph.plan, subject.adapter)
        together = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        requests = [together] if self._batch_is_free() else rows
        results = self.graph.run_slots([{**arrays, **tensors} for arrays in requests])
        return np.concatenate([outputs[str(subject.output)] for outputs in results])

    def _row(self, subject: _Subject, turn: int, others: Sequence[GoldenBatchRow]) -> GoldenBatchRow | None:
        """Return the first drawn row that exposes every mistake, or the one that exposes the most."""
        number = crc32(str(subject.name).encode())
        is_last = turn == len(_TOKENS) - 1 or not self.references.keeps_weights
        tokens = _FEW_TOKENS[turn] if subject.task is None else _TOKENS[turn] + (number % 2 if is_last else 0)
        draws = _DRAWS if self.references.keeps_weights and turn != _SHARED else 1
        best: tuple[list[bool], GoldenBatchRow] | None = None
        for draw in range(draws):
            seed = [turn] if turn == _SHARED else [turn, draw, number]
            arrays = self._draw(subject, tokens, turn, np.random.default_rng(seed))
            try:
                row = self._answer(subject, arrays)
            except RequestError:  # the reference returns NaN, or rejects these inputs
                continue
            missed = [not row.decided, *(not _distinguishes(row, other) for other in others)]
            missed += [not exposes for exposes in self._exposed_mistakes(subject, row, arrays)] if draws > 1 else []
            # mistakes missed in two draws have no effect on this base, such as left padding with relative positions
            is_final = not any(missed) or (best is not None and missed == best[0])
            if best is None or sum(missed) < sum(best[0]):
                best = missed, row
            if is_final:
                break
        return None if best is None else best[1]

    def _draw(self, subject: _Subject, tokens: int, turn: int, rng: np.random.Generator) -> Arrays:
        """Draw the inputs of a row, [1, ...], of a length that the base accepts, without padding.

        A base that accepts lengths in steps gets one of the two smallest.
        """
        most = None if subject.task is None else subject.task.max_tokens
        sizes: dict[Axis, int] = {}
        axes = dict.fromkeys(axis for record in self.manifest.inputs for axis in record.axes[1:])
        for at, axis in enumerate(axes):  # different lengths expose mixed-up axes
            lengths = axis_lengths(axis, self.manifest.lengths)
            near = lengths.near(tokens + at if lengths.unbroken else 1)
            near = near if lengths.unbroken or turn == 0 else lengths.at_least(near + 1) or near
            sizes[axis] = near if most is None or near <= most else lengths.at_most(most) or near
        arrays: Arrays = {}
        for record in self.manifest.inputs:
            shape = [1, *(sizes[axis] for axis in record.axes[1:])]
            array = np.zeros(shape, record.dtype)
            if record.role == "mask":
                array[:] = 1
            elif record.name == _TYPES and (record.limit or 0) > 1:
                array[:, shape[1] // 2 :] = 1  # two segments, as tokenizers mark them
            elif record.role == "ids" and record.limit is not None:
                array = rng.integers(0, record.limit, shape).astype(record.dtype)
            arrays[record.name] = array
        return arrays

    def _answer(self, subject: _Subject, arrays: Arrays) -> GoldenBatchRow:
        outputs = self._run(subject, arrays)
        budgets = [self.allowance.budget(value) for value in outputs.values()]
        budgets += [subject.golden.budgets[name] for name in outputs]
        absolute = max(budget.absolute for budget in budgets)
        context, decided = None, True
        if subject.task is not None:
            result = outputs[str(subject.output)]
            context = _context(subject.task, result, absolute) if subject.task.kind.needs_context else None
            decided = subject.task.is_decided(result, absolute, _within(context, result))
        inputs = {name: array[0].tolist() for name, array in arrays.items()}
        return GoldenBatchRow(subject.name, inputs, context, _document(subject, outputs, context), absolute, decided)

    def _run(self, subject: _Subject, arrays: Arrays, real: Mapping[Axis, slice] | None = None) -> Arrays:
        """Return the reference's results for one row: its head's output, or all outputs if it has no task.

        `real` are the non-padding tokens along each padded axis.
        """
        outputs = run(self.references, arrays, subject.adapter, self._base_outputs(), subject.output)
        return {
            record.name: outputs[record.name][0][tuple((real or {}).get(axis, slice(None)) for axis in record.axes[1:])]
            for record in self._outputs(subject)
        }

    def _outputs(self, subject: _Subject) -> list[OutputRecord]:
        """Return the outputs that answer a row: its head's, or all if it has no task."""
        names = {subject.output} if subject.task is not None else {subject.output, *self._base_outputs()}
        return [record for record in self.manifest.outputs if record.name in names]

    def _base_outputs(self) -> list[str]:
        return [record.name for record in self.manifest.base_outputs]

    def _has_rows(self, subject: _Subject) -> bool:
        """Return whether each output has one row per row of the inputs."""
        (batch,) = {record.axes[0] for record in self.manifest.inputs}
        return all(record.axes[:1] == (batch,) for record in self._outputs(subject))

    def _padded_axes(self) -> list[Axis]:
        """Return the axes that have a padding mask."""
        masks = [record for record in self.manifest.inputs if record.role == "mask" and len(record.axes) == 2]
        return list(dict.fromkeys(record.axes[1] for record in masks))

    def _exposed_mistakes(self, subject: _Subject, row: GoldenBatchRow, arrays: Arrays) -> Iterator[bool]:
        """Yield for each possible mistake of a client whether it changes the answer of a row."""

        def exposes(changed: Arrays, tokens: Mapping[Axis, slice] | None = None) -> bool:
            try:
                answer = _document(subject, self._run(subject, changed, tokens), row.context)
            except RequestError:
                return True
            return _differ(answer, row)

        if _TYPES in arrays and arrays[_TYPES].any():
            yield exposes({**arrays, _TYPES: np.zeros_like(arrays[_TYPES])})
        if subject.task is not None and row.context is not None:
            yield _moves(_document(subject, self._run(subject, arrays), None), row.answer)
        for axis in self._padded_axes():
            size = next(arrays[record.name].shape[1] for record in self.manifest.inputs if axis in record.axes[1:2])
            longer = axis_lengths(axis, self.manifest.lengths)
            total = longer.at_least(size + _MORE_TOKENS) or longer.at_least(size + 1)
            if total is None:
                continue
            yield exposes(self._padded(arrays, axis, total - size, 0), {axis: slice(total - size, total)})
            if not subject.pads:
                yield exposes(self._padded(arrays, axis, 0, total - size), {axis: slice(size)})

    def _padded(self, arrays: Arrays, axis: Axis, before: int, after: int) -> Arrays:
        return {
            record.name: np.pad(
                arrays[record.name], [(before, after) if each == axis else (0, 0) for each in record.axes]
            )
            for record in self.manifest.inputs
        }


def _alike(rows: Sequence[GoldenBatchRow]) -> set[str]:
    """Return labels that could be swapped unnoticed: no row has them, and their numbers are too close."""
    labels = list(rows[0].answer["probabilities"])
    shares = np.array([[row.answer["probabilities"][label] for label in labels] for row in rows])
    near = np.ones((len(labels), len(labels)), bool)
    for row, share in zip(rows, shares, strict=True):
        near &= np.abs(np.subtract.outer(share, share)) <= row.absolute
    answered = [row.decided and row.answer["label"] for row in rows]
    unseen = np.array([label not in answered for label in labels])
    near &= np.outer(unseen, unseen) & ~np.eye(len(labels), dtype=bool)
    return {labels[at] for at in np.flatnonzero(near.any(axis=1))}


def _batched(rows: Sequence[GoldenBatchRow], reference: str) -> GoldenBatches | None:
    """Return rows as batches: all rows of some adapters together, as many adapters as fit."""
    groups: dict[str | None, list[GoldenBatchRow]] = {}
    for row in rows:
        groups.setdefault(row.adapter, []).append(row)
    grouped, numbers = list[list[GoldenBatchRow]](), 0
    for group in groups.values():
        numbers += sum(_count(row.answer) for row in group)
        if numbers <= _ALL_NUMBERS:
            grouped.append(group)
    # interleave adapters, so that adjacent rows use different ones
    batches = [_in_turn(grouped[at : at + _ADAPTERS]) for at in range(0, len(grouped), _ADAPTERS)]
    named = tuple(GoldenBatch(f"batch {at}", tuple(some)) for at, some in enumerate(batches, 1))
    return GoldenBatches(GOLDEN_BATCHES_VERSION, reference, named) if named else None


def _in_turn(groups: Sequence[Sequence[GoldenBatchRow]]) -> list[GoldenBatchRow]:
    return [row for some in zip_longest(*groups) for row in some if row is not None]


def without(batches: GoldenBatches, adapters: Sequence[str]) -> GoldenBatches | None:
    """Return batches without the rows of some adapters; `None` if no row is left."""
    rows = [row for batch in batches.batches for row in batch.rows if row.adapter not in adapters]
    return _batched(rows, batches.reference)


def replay_batches(
    bundle: OpenedBundle, batches: GoldenBatches, names: Sequence[str | None], variants: Collection[str]
) -> Finding:
    """Answer golden batches the way a client does, and compare each row with its separate answer.

    Args:
        bundle: the bundle.
        batches: its golden batches.
        names: adapters whose rows are compared; all rows of a batch run.
        variants: graphs that may run; nothing runs without `slots`.
    """
    rows = sum(row.adapter in names for batch in batches.batches for row in batch.rows)
    if "slots" not in variants:
        return Finding.tested(CHECK, "bundle", True, f"{number_of(rows, 'row')}, not run")
    session = bundle.runtime_session(only=variants)
    faults = [fault for batch in batches.batches for fault in _faults(session, bundle.manifest, batch, names)]
    requests = number_of(len(batches.batches), "request")
    detail = f"{number_of(rows, 'row')} in {requests}, each matches the reference's separate answer"
    if faults:
        detail = f"{len(faults)} of {number_of(rows, 'row')} {verb_for(len(faults), 'differ')}; " + faults[0]
    return Finding.tested(CHECK, "bundle", not faults, detail)


def _faults(session: Session, manifest: Manifest, batch: GoldenBatch, names: Sequence[str | None]) -> Iterator[str]:
    """Yield the differences of a batch's rows from their separate answers."""
    try:
        requests = [_row_of(manifest, row, f"`{batch.name}`, row {at}") for at, row in enumerate(batch.rows)]
        answered = list(Answerer(session).answer(requests))
    except RequestError as error:
        yield f"`{batch.name}` is rejected: {error}"
        return
    for at, (row, answer) in enumerate(zip(batch.rows, answered, strict=True)):
        if row.adapter not in names:
            continue
        try:
            document = {key: value for key, value in answer.document().items() if key not in ("adapter", "task")}
            fault = next(answer_faults(document, row.answer, row.absolute, decided=row.decided), None)
        except RequestError as error:  # NaN
            fault = error.what
        if fault is not None:
            yield f"`{batch.name}`, row {at} (`{row.adapter or 'base'}`): " + fault


def _row_of(manifest: Manifest, row: GoldenBatchRow, where: str) -> Row:
    dtypes = {record.name: record.dtype for record in manifest.inputs}
    arrays = {name: row.array(name).astype(dtypes.get(name, "int64")) for name in row.inputs}
    context = None
    if row.context is not None:
        output = next((record.output for record in manifest.adapters if record.name == row.adapter), None)
        axis = next((record.axes[1] for record in manifest.outputs if record.name == output), None)
        reads = next((record.name for record in manifest.inputs if axis in record.axes[1:2]), manifest.inputs[0].name)
        context = _within(row.context, arrays[reads][0])
    return Row(arrays, row.adapter, context=context, where=where)


def _document(subject: _Subject, outputs: Arrays, context: tuple[int, int] | None) -> Mapping[str, Any]:
    """Return the fields of a row's answer from the outputs of that row."""
    if subject.task is None:
        return {"outputs": {name: _listed(value) for name, value in outputs.items()}}
    result = outputs[str(subject.output)]
    answer = subject.task.answer(result, None, _within(context, result)).document()
    return {"vector": _listed(result)} if "vector" in answer else answer


def _listed(values: np.ndarray) -> list[Any]:
    """Return an array as nested lists; float32 numbers get the fewest digits that read back as the same float32."""
    if not np.isfinite(values).all():
        raise RequestError("an output is NaN or infinite")
    if values.dtype != np.float32:
        plain: list[Any] = values.tolist()
        return plain
    short: list[Any] = np.array([float(str(number)) for number in values.ravel()]).reshape(values.shape).tolist()
    return short


def _within(context: tuple[int, int] | None, result: np.ndarray) -> npt.NDArray[np.bool_] | None:
    places = np.arange(len(result))
    return None if context is None else (places >= context[0]) & (places < context[1])


def _context(task: Task, result: np.ndarray, absolute: float) -> tuple[int, int]:
    """Return context tokens such that the best span lies outside them, if possible."""
    count, free = len(result), task.answer(result).document()
    ends = sorted({0, 1, count // 2, count, free["first_token"], free["last_token"] + 1})
    contexts = [pair for pair in combinations(ends, 2) if pair[1] - pair[0] > 1] or [(0, count)]

    def worth(context: tuple[int, int]) -> tuple[int, int]:
        restricted = task.answer(result, None, _within(context, result)).document()
        decided = task.is_decided(result, absolute, _within(context, result))
        return 2 * _moves(free, restricted) + decided, context[1] - context[0]

    return max(contexts, key=worth)


def _differ(answer: Mapping[str, Any], row: GoldenBatchRow) -> bool:
    """Return whether an answer differs by more than twice the budget, so that a client within budget still differs."""
    return any(answer_faults(answer, row.answer, 2 * row.absolute, decided=row.decided))


def _moves(first: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two spans have different positions."""
    return any(first[place] != other[place] for place in ("first_token", "last_token"))


def _distinguishes(row: GoldenBatchRow, other: GoldenBatchRow) -> bool:
    """Return whether two rows have different answers in both directions, so that a mix-up is visible."""
    return _differ(row.answer, other) and _differ(other.answer, row)


def _count(value: object) -> int:
    """Return the number of numbers in an answer."""
    if isinstance(value, Mapping):
        return sum(map(_count, value.values()))
    return sum(map(_count, value)) if isinstance(value, list | tuple) else 1

"""Single calls: what is chosen for a call or for each row, held against the inputs, and the graph that takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from adapter_export.errors import RequestError
from adapter_export.format.axes import length, names
from adapter_export.format.manifest import Axis, InputRecord, Manifest, MixRecord
from adapter_export.graph.tasks import Task
from adapter_export.runtime.answers import check_task, row_results, wanted_outputs
from adapter_export.runtime.bank import Bank
from adapter_export.runtime.catalogue import Catalogue, Entry
from adapter_export.runtime.graphs import FAILURES, Graphs, Provider, incomputable, on_device

# The inputs of a call, held against the manifest before ONNX Runtime sees them.


def check_inputs(inputs: Mapping[str, np.ndarray], records: Sequence[InputRecord]) -> dict[str, np.ndarray]:
    """The inputs as contiguous arrays.

    Raises:
        RequestError: an input is missing, unknown, of a wrong type or shape, empty, has ids out of range, or is a mask
            that leaves a row no token.
    """
    expected = {record.name for record in records}
    if set(inputs) != expected:
        wrong = [f"no `{name}`" for name in sorted(expected - set(inputs))]
        wrong += [f"unknown `{name}`" for name in sorted(set(inputs) - expected)]
        raise RequestError(
            "the inputs are not those of the graph",
            found="; ".join(wrong),
            expected=", ".join(f"`{record.name}`" for record in records),
        )
    arrays = {record.name: np.ascontiguousarray(inputs[record.name]) for record in records}
    sizes: dict[str, int] = {}
    for record in records:
        _check_type(arrays[record.name], record)
        _check_shape(np.shape(inputs[record.name]), record, sizes)
        _check_ids(arrays[record.name], record)
        _check_mask(arrays[record.name], record)
    for record in records:  # once more: now the names in every sum have their lengths
        _check_shape(np.shape(inputs[record.name]), record, sizes)
    return arrays


def check_rows(
    arrays: Mapping[str, np.ndarray], choices: Sequence[object], manifest: Manifest, allow_mixed_rows: bool
) -> None:
    """A choice for each row, and no rows of different choices in one call if they influence each other.

    Raises:
        RequestError: it is not so.
    """
    rows = len(next(iter(arrays.values())))
    if len(choices) != rows:
        raise RequestError("a mixed batch has one choice for each row", found=len(choices), expected=rows)
    mixed = any(choice != choices[0] for choice in choices)
    if mixed and not (manifest.batch_invariant or allow_mixed_rows):
        raise RequestError(
            "the rows of a batch influence each other in this bundle, so that a row's results would depend on whose "
            "rows are in the call",
            found=f"precision `{manifest.base_precision}`",
            fix="give each call one `adapter`, or say `allow_mixed_rows=True` if all rows are one user's",
        )


def _check_type(array: np.ndarray, record: InputRecord) -> None:
    if array.dtype != record.dtype:
        raise RequestError(
            "an input has a wrong type",
            where=f"`{record.name}`",
            found=array.dtype,
            expected=record.dtype,
            fix=f'give `{record.name}.astype("{record.dtype}")`',
        )


def _check_shape(shape: tuple[int, ...], record: InputRecord, sizes: dict[str, int]) -> None:
    """ONNX Runtime does not see it when an axis of one name has two lengths; a cache may hold nothing yet."""
    fits = len(shape) == len(record.axes) and (0 not in shape or record.role == "cache")
    for axis, size in zip(record.axes, shape, strict=False):
        fits = fits and size == _expected(axis, size, sizes)
    if not fits:
        named = [f"{axis} = {length(axis, sizes)}" if _is_known(axis, sizes) else str(axis) for axis in record.axes]
        least = "" if record.role == "cache" else ", at least 1 along each axis"
        raise RequestError(
            "an input has a wrong shape",
            where=f"`{record.name}`",
            found=list(shape),
            expected=f"[{', '.join(named)}]{least}",
        )


def _expected(axis: Axis, found: int, sizes: dict[str, int]) -> int:
    """The length that an axis must have: whatever was found, if its name or a name in its sum comes up first here."""
    if isinstance(axis, int):
        return axis
    if names(axis) == (axis,):
        return sizes.setdefault(axis, found)
    return length(axis, sizes) if _is_known(axis, sizes) else found


def _is_known(axis: Axis, sizes: Mapping[str, int]) -> bool:
    return isinstance(axis, str) and all(name in sizes for name in names(axis))


def _check_mask(array: np.ndarray, record: InputRecord) -> None:
    """A row without tokens has no answer, and a mask of other numbers means something else in every base."""
    if record.role != "mask" or array.dtype.kind == "f":
        return
    if not (((array == 0) | (array == 1)).all() and array.any(axis=-1).all()):
        raise RequestError(
            "a mask that leaves no token, or is none",
            where=f"`{record.name}`",
            expected="1 for each token, 0 for padding, and a token in each row",
        )


def _check_ids(array: np.ndarray, record: InputRecord) -> None:
    """Negative ids count from the end of the table without a word."""
    if record.limit is None:
        return
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= record.limit:
        raise RequestError(
            "an id is out of range",
            where=f"`{record.name}`",
            found=lowest if lowest < 0 else highest,
            expected=f"0 to {record.limit - 1}",
            fix="use the tokenizer that belongs to the base",
        )


# Weights of a weighted fusion that a call gives, in the place of those that the adapter has.

Weighting = Mapping[str, float] | Sequence[Mapping[str, float]]
"""A finite weight for each member of a fusion, by name: for all rows of a batch, or a mapping for each row."""


def weight_choices(weights: Weighting, rows: int) -> list[object]:
    """What each row of a batch chose."""
    return [None] * rows if isinstance(weights, Mapping) else [sorted(row.items()) for row in weights]


def weight_tensors(entry: Entry | None, weights: Weighting) -> dict[str, np.ndarray]:
    """The tensors, float32 [1, members] or [batch, members], for every slot that holds weights of the fusion.

    Raises:
        RequestError: the adapter is no weighted fusion of the bundle, or a row does not give a finite weight for each
            member.
    """
    record = _record(entry)
    given = [weights] if isinstance(weights, Mapping) else list(weights)
    for row, one in enumerate(given):
        _check(one, record, None if isinstance(weights, Mapping) else row)
    array = np.array([[one[name] for name in record.members] for one in given], np.float32)
    return dict.fromkeys(record.slots, array)


def _record(entry: Entry | None) -> MixRecord:
    if entry is None or entry.mix is None:
        raise RequestError(
            "has no weights that a call could give",
            where="the base alone" if entry is None else f"adapter `{entry.name}`",
            expected="a weighted fusion of the bundle",
            fix="make one with `adapter-export compose fuse`, and `build` or `add` it",
        )
    return entry.mix


def _check(weights: Mapping[str, float], record: MixRecord, row: int | None) -> None:
    """Every member by its name: one left out would be a guess."""
    largest = float(np.finfo(np.float32).max)
    fits = set(weights) == set(record.members) and all(abs(weight) <= largest for weight in weights.values())
    if not fits:  # NaN is not below anything
        raise RequestError(
            "a fusion needs a finite weight for each of its members",
            where=None if row is None else f"row {row}",
            found=", ".join(f"`{name}`: {weight}" for name, weight in weights.items()) or "none",
            expected=", ".join(f"`{name}`" for name in record.members),
        )


# Calls whose tensors stay where the graph runs, by ONNX Runtime's IO binding.
#
# Native adapters (`RunOptions.add_active_adapter`) are ignored there without an error: adapters are bound as the inputs
# that they are.


def run_bound(
    session: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, ort.OrtValue], provider: Provider
) -> dict[str, ort.OrtValue]:
    """Compute outputs that stay on the device; what is fed from there is not copied.

    Raises:
        RequestError: ONNX Runtime cannot compute these inputs.
    """
    binding = session.io_binding()
    try:
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, provider, 0)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
    except FAILURES as error:
        raise incomputable(error) from error
    return dict(zip(names, binding.get_outputs(), strict=True))


Inputs = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]
Rows = Sequence[str | None]
"""An adapter for each row of a batch; none is the base."""


class Calls:
    """Runs one call at a time, any number of them at once.

    Args:
        graphs: the bundle's.
        catalogue: the session's adapters.
        bank: runs rows through different adapters.
    """

    def __init__(self, graphs: Graphs, catalogue: Catalogue, bank: Bank) -> None:
        self._graphs = graphs
        self._catalogue = catalogue
        self._bank = bank

    @property
    def manifest(self) -> Manifest:
        """That of the bundle."""
        return self._graphs.manifest

    def entry(self, name: str | None) -> Entry | None:
        """The adapter of a name; none is the base.

        Raises:
            RequestError: it is not loaded.
        """
        return None if name is None else self._catalogue.entry(name)

    def run(
        self,
        inputs: Inputs,
        adapter: str | None,
        adapters: Rows | None,
        weights: Weighting | None,
        allow_mixed_rows: bool,
    ) -> Outputs:
        """Compute the outputs, as `Session.run` says it."""
        if adapter is not None and adapters is not None:
            raise RequestError("one call has one choice", expected="`adapter` or `adapters`")
        if weights is not None and adapter is None:
            raise RequestError("weights are those of a fusion's members", expected="`adapter`, the name of the fusion")
        arrays = check_inputs(inputs, self.manifest.inputs)
        if adapters is not None:
            return self._rows(arrays, self._entries(adapters), allow_mixed_rows)
        return self._one(arrays, self.entry(adapter), weights, allow_mixed_rows)

    def together(self, arrays: Outputs, entries: Sequence[Entry | None]) -> Outputs:
        """Run checked inputs whose rows may stand in one call; rows of one adapter need no bank."""
        if len({None if entry is None else entry.serial for entry in entries}) == 1:
            return self._one(arrays, entries[0])
        return self._bank.run(_fed(arrays), entries)

    def on_device(self, inputs: Inputs, adapter: str | None) -> dict[str, ort.OrtValue]:
        """Compute the outputs and leave them on the device, as `Session.run_on_device` says it."""
        entry = self.entry(adapter)
        arrays = check_inputs(inputs, self.manifest.inputs)
        feeds = {name: on_device(array, self._graphs.provider) for name, array in arrays.items()}
        feeds.update({} if entry is None else self._catalogue.resident(entry).feeds)
        return run_bound(self._graphs.session("slots"), self._outputs(entry), feeds, self._graphs.provider)

    def results(
        self,
        inputs: Inputs,
        adapter: str | None,
        adapters: Sequence[str] | None,
        task: Task,
        weights: Weighting | None = None,
    ) -> tuple[list[np.ndarray], Sequence[Entry | None]]:
        """What the heads give for each row, if they are for this task, and each row's adapter.

        Raises:
            RequestError: none or both are given, an adapter's task is another one, or as `run`.
        """
        if (adapter is None) == (adapters is None):
            raise RequestError("no adapter is chosen", expected="`adapter`, or `adapters` with one for each row")
        if adapters is None:
            entry = self.entry(adapter)
            output = check_task(entry, task)
            found = self._one(check_inputs(inputs, self.manifest.inputs), entry, weights)[output]
            return list(found), [entry] * len(found)
        if weights is not None:
            raise RequestError("weights are those of a fusion's members", expected="`adapter`, the name of the fusion")
        entries = self._entries(adapters)
        for one in entries:
            check_task(one, task)
        outputs = self._rows(check_inputs(inputs, self.manifest.inputs), entries, allow_mixed_rows=False)
        return row_results(outputs, entries), entries

    def _entries(self, names: Rows) -> list[Entry | None]:
        """Each name is looked up once, so that all its rows have the same weights."""
        found = {name: self.entry(name) for name in dict.fromkeys(names)}
        return [found[name] for name in names]

    def _outputs(self, entry: Entry | None) -> list[str]:
        filled = () if entry is None or entry.output is None else (entry.output,)
        return wanted_outputs(self.manifest, [filled])

    def _one(
        self,
        arrays: Outputs,
        entry: Entry | None,
        weights: Weighting | None = None,
        allow_mixed_rows: bool = False,
    ) -> Outputs:
        feeds = _fed(arrays)
        feeds.update({} if entry is None else self._catalogue.resident(entry).feeds)
        if weights is not None:
            choices = weight_choices(weights, len(next(iter(arrays.values()))))
            check_rows(arrays, choices, self.manifest, allow_mixed_rows)
            feeds.update(_fed(weight_tensors(entry, weights)))
        return self._graphs.run("slots", self._outputs(entry), feeds)

    def _rows(self, arrays: Outputs, entries: Sequence[Entry | None], allow_mixed_rows: bool) -> Outputs:
        check_rows(arrays, [None if one is None else one.serial for one in entries], self.manifest, allow_mixed_rows)
        return self._bank.run(_fed(arrays), entries)


def _fed(arrays: Outputs) -> dict[str, ort.OrtValue]:
    return {name: on_device(array, "cpu") for name, array in arrays.items()}

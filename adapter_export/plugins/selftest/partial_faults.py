"""Adapters applied only partly or crossed while all files of a client agree: only golden data expose them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.separation import faults_of
from adapter_export.bundle.report import BASE
from adapter_export.bundle.variants import VARIANTS
from adapter_export.dtypes import Weights
from adapter_export.graph.adapter import HEAD
from adapter_export.plugins.selftest.fault import Copy, Place, Plant, kinds_of
from adapter_export.plugins.selftest.weight_faults import replace_values, values_of


@dataclass(frozen=True)
class _Partial:
    """An adapter as a faulty client applies it: `tensors` are its wrong slots."""

    adapter: str
    tensors: Weights
    places: Sequence[Place]


Applied = Callable[[OpenedBundle, str], Sequence[_Partial]]
"""Lists faulty applications of an adapter."""


def _off(*, layers: bool) -> Applied:
    """List the sites of an adapter, or its layers, whose absence golden data are recorded to expose."""

    def applied(bundle: OpenedBundle, name: str) -> list[_Partial]:
        separation = bundle.record(name).golden.separation
        own, found = bundle.tensors(name), list[_Partial]()
        for fault in faults_of(bundle, name) if separation is not None else ():
            wrong = {slot: tensor for slot, tensor in fault.tensors.items() if tensor is not own[slot]}
            sites = list(dict.fromkeys(slot.site for slot in bundle.manifest.slots if slot.name in wrong))
            partial = fault.name.endswith(" off") and sites != [HEAD]
            known = separation is not None and fault.name not in separation.weak
            if partial and known and fault.name.startswith("layer ") == layers:
                found.append(_Partial(name, wrong, [fault.name, *sites, name]))
        return found

    return applied


def _of_another(bundle: OpenedBundle, name: str) -> list[_Partial]:
    """List matrices of an adapter that another adapter has too, at sites where golden data expose a change."""
    if bundle.manifest.recorded is None:
        return []
    shown = {each.places[1] for each in _off(layers=False)(bundle, name)}
    own, found = bundle.tensors(name), list[_Partial]()
    for other in (each for each in bundle.names if each not in (None, name)):
        theirs, neutral = bundle.tensors(other), bundle.tensors(None)
        for slot in (one for one in bundle.manifest.slots if one.site in shown):
            mine, its = own[slot.name], theirs[slot.name]
            if mine.ndim < 2 or any(np.array_equal(each, neutral[slot.name]) for each in (mine, its)):
                continue
            fitted, common = np.zeros_like(mine), tuple(map(slice, map(min, mine.shape, its.shape)))
            fitted[common] = its[common]
            if not np.array_equal(mine, fitted):
                found.append(_Partial(name, {slot.name: fitted}, [slot.name, slot.site, name]))
    return found


def _in_files(applied: Applied) -> Plant:
    """Write an adapter with a fault to both of its files."""

    def plant(copy: Copy) -> Sequence[Place] | None:
        bundle = copy.opened()
        chosen = copy.choose([each for name in bundle.names if name is not None for each in applied(bundle, name)])
        if chosen is None:
            return None
        tensors = {**bundle.tensors(chosen.adapter), **chosen.tensors}
        copy.fill(chosen.adapter, tensors, precision=bundle.record(chosen.adapter).precision)
        return chosen.places

    return plant


def _in_bank(applied: Applied) -> Plant:
    """Write an adapter with a fault to the bank, in each graph with a bank."""

    def plant(copy: Copy) -> Sequence[Place] | None:
        bundle, bank = copy.opened(), copy.manifest.bank
        names = () if bank is None else [name for name in bank.rows if name is not None]
        chosen = copy.choose([each for name in names for each in applied(bundle, name)])
        if bank is None or chosen is None:
            return None
        row = bank.rows.index(chosen.adapter)

        def change(slot: str, array: np.ndarray) -> None:
            own = chosen.tensors.get(slot)
            if own is not None:
                wide = [(0, most - size) for most, size in zip(array.shape[1:], own.shape, strict=True)]
                array[row] = np.pad(own, wide)

        _change_bank(copy, change)
        return chosen.places

    return plant


def _change_bank(copy: Copy, change: Callable[[str, np.ndarray], None]) -> None:
    """Change the tensors of the bank, by the names of their slots, in each graph with a bank."""
    bank = copy.manifest.bank
    for variant in (one.name for one in VARIANTS.values() if one.by_row):
        model = copy.graph(variant)
        if model is None or bank is None:
            continue
        for each in bank.tensors:
            if each.slot is not None:
                value = model.graph.initializers[each.name]
                array = values_of(value)
                change(each.slot, array)
                replace_values(value, array)
        copy.keep(model, variant)


def _rows_shifted(copy: Copy) -> Sequence[Place] | None:
    """Assign to each adapter of the bank the tensors of the previous one; heads are unchanged."""
    bank, sites = copy.manifest.bank, {slot.name: slot.site for slot in copy.manifest.slots}
    if bank is None or len(bank.rows) < 2:
        return None
    first = 0 if len(bank.rows) == 2 else 1  # a single adapter swaps with the base

    def change(slot: str, array: np.ndarray) -> None:
        if sites[slot] != HEAD:
            array[first:] = np.roll(array[first:], 1, 0)

    _change_bank(copy, change)
    return [name or BASE for name in bank.rows[first:]]


def _in_baked(applied: Applied) -> Plant:
    """Bake an adapter with a fault."""

    def plant(copy: Copy) -> Sequence[Place] | None:
        bundle = copy.opened()
        files = {record.name: record.baked for record in copy.manifest.adapters if record.baked is not None}
        chosen = copy.choose([each for name in files for each in applied(bundle, name)])
        if chosen is None:
            return None
        file = files[chosen.adapter]
        model = ir.load(copy.folder / file)
        for slot, tensor in chosen.tensors.items():
            replace_values(model.graph.initializers[slot], tensor)
        copy.change(file).write_bytes(ir.to_proto(model).SerializeToString())
        return [*chosen.places, file]

    return plant


_SITE, _LAYER = _off(layers=False), _off(layers=True)

GOLDEN = kinds_of(
    "golden data",
    {
        "one site neutral": _in_files(_SITE),
        "one layer neutral": _in_files(_LAYER),
        "one site neutral in the bank": _in_bank(_SITE),
        "one layer neutral in the bank": _in_bank(_LAYER),
        "the rows of the bank shifted by one": _rows_shifted,
        "one site neutral in a baked graph": _in_baked(_SITE),
        "one layer neutral in a baked graph": _in_baked(_LAYER),
    },
)
RECORDED = kinds_of(
    "recorded runs",
    {
        "one tensor of another adapter": _in_files(_of_another),
        "one tensor of another adapter in the bank": _in_bank(_of_another),
        "one tensor of another adapter in a baked graph": _in_baked(_of_another),
    },
)

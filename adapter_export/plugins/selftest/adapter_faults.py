"""Faults in the files of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adapter_export.bundle.bundle_reader import Graph
from adapter_export.bundle.golden.golden_vectors import write_golden
from adapter_export.format.adapter_files import write_adapter
from adapter_export.format.tensors import read_tensors
from adapter_export.onnx_backend.slots import slot_tensors
from adapter_export.plugins.selftest.fault import FILES, Copy, Place, Plant, kinds_of
from adapter_export.plugins.selftest.site_faults import alike_slots
from adapter_export.plugins.selftest.weight_faults import (
    ArrayChange,
    change_largest,
    exchange,
    next_number,
    replace_values,
    values_of,
)


def _filled(change: ArrayChange, *, rank: int | None = None, head: bool = False, files: Sequence[str] = FILES) -> Plant:
    """Change one tensor of one adapter."""

    def plant(copy: Copy) -> list[Place] | None:
        able = []
        for record in copy.manifest.adapters:
            tensors = read_tensors(copy.folder / record.safetensors)
            for slot in copy.manifest.slots:
                tensor = tensors[slot.name]
                busy = tensor.size > 1 and (tensor != slot.neutral_value).any()
                if busy and (rank is None or tensor.ndim == rank) and (slot.site == "head") == head:
                    able.append((record.name, slot.name, slot.site))
        chosen = copy.choose(able)
        if chosen is None:
            return None
        name, key, site = chosen
        record = next(one for one in copy.manifest.adapters if one.name == name)
        tensors = read_tensors(copy.folder / record.safetensors)
        array = np.ascontiguousarray(change(tensors[key].copy(), copy.rng), np.float32)
        if array.tobytes() == tensors[key].tobytes():
            return None
        copy.fill(name, {**tensors, key: array}, files)
        return [key] if site == "head" else [key, site]

    return plant


def _crossed(*kinds: str) -> Plant:
    """Swap the files of two adapters."""

    def plant(copy: Copy) -> list[Place] | None:
        records = copy.manifest.adapters
        if len(records) < 2:
            return None
        one, other = (records[int(at)] for at in copy.rng.choice(len(records), 2, replace=False))
        for kind in kinds:
            first, second = (copy.change(getattr(record, kind)) for record in (one, other))
            aside = first.with_name("aside")
            first.rename(aside)
            second.rename(first)
            aside.rename(second)
        return [one.name, other.name]

    return plant


def _site_idle(copy: Copy) -> list[Place] | None:
    record = copy.choose(copy.manifest.adapters)
    if record is None:
        return None
    tensors = read_tensors(copy.folder / record.safetensors)
    own = [s for s in copy.manifest.slots if s.site not in ("head", "shared") and tensors[s.name].shape != s.neutral]
    site = copy.choose(sorted({slot.site for slot in own}))
    if site is None:
        return None
    neutral = {
        slot.name: np.full(slot.neutral, slot.neutral_value, np.float32)
        for slot in copy.manifest.slots
        if slot.site == site
    }
    copy.fill(record.name, {**tensors, **neutral})
    return [site]


def _two_sites(copy: Copy) -> list[Place] | None:
    record = copy.choose(copy.manifest.adapters)
    if record is None:
        return None
    tensors = read_tensors(copy.folder / record.safetensors)
    alike = [(one, other, tensors[one.name], tensors[other.name]) for one, other in alike_slots(copy)]
    chosen = copy.choose([each for each in alike if each[2].shape == each[3].shape and (each[2] != each[3]).any()])
    if chosen is None:
        return None
    one, other, first, second = chosen
    copy.fill(record.name, {**tensors, one.name: second, other.name: first})
    return [one.name, other.name, one.site, other.site]


def _slot_missing(copy: Copy) -> list[Place] | None:
    record, slot = copy.choose(copy.manifest.adapters), copy.choose(copy.manifest.slots)
    if record is None or slot is None:
        return None
    tensors = dict(read_tensors(copy.folder / record.safetensors))
    del tensors[slot.name]
    copy.fill(record.name, tensors)
    return [slot.name]


def _everything_of_an_adapter(copy: Copy) -> list[Place] | None:
    """Change an adapter everywhere in the bundle, even source and golden vectors: only the user's copy is correct."""
    record = copy.choose([one for one in copy.manifest.adapters if one.baked is None])
    if record is None:
        return None
    name, bundle = record.name, copy.opened()
    source, plan = bundle.source(name), bundle.plan
    key = copy.choose([key for key, tensor in source.weights.items() if tensor.size > 1 and tensor.any()])
    if key is None:
        return None
    other = replace(source, weights={**source.weights, key: source.weights[key] * np.float32(1.01)})
    write_adapter(other, copy.change(record.source), force=True)
    tensors, bank, model = slot_tensors(plan, other), copy.manifest.bank, copy.graph("bank")
    copy.fill(name, tensors)
    if bank is not None and model is not None and name in bank.rows:
        for each in bank.tensors:
            if each.slot is not None:
                held, own = values_of(model.graph.initializers[each.name]), tensors[each.slot]
                row = bank.rows.index(name)
                wide = [(0, most - size) for most, size in zip(held.shape[1:], own.shape, strict=True)]
                held[row] = np.pad(own, wide)
                replace_values(model.graph.initializers[each.name], held)
        copy.keep(model, "bank")
    changed, golden = copy.opened(), bundle.golden(name)
    graph = Graph(changed, "slots", copy.manifest.graphs["slots"])
    found = [graph.run(case.arrays, (name,) * case.batch) for case in golden.cases]
    outputs = [{output: each[output] for output in golden.budgets} for each in map(golden.stored, found)]
    copy.change(record.golden.path).unlink()
    write_golden(replace(golden, outputs=outputs), copy.folder, record.golden.path)
    return [name]


def _one_ulp(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return change_largest(array, rng, next_number)


ADAPTERS = kinds_of(
    "adapters",
    {
        "one number of an adapter off by an ulp": _filled(_one_ulp),
        "one number of an adapter off by a thousandth": _filled(
            lambda a, rng: change_largest(a, rng, lambda n: n * np.float32(1.001))
        ),
        "a tensor of an adapter scaled by 1.001": _filled(lambda a, _: a * np.float32(1.001)),
        "a tensor of an adapter negated": _filled(lambda a, _: -a),
        "a tensor of an adapter zeroed": _filled(lambda a, _: a * 0),
        "two rows of an adapter swapped": _filled(lambda a, rng: exchange(a, 0, rng), rank=2),
        "a vector of an adapter shifted": _filled(lambda a, _: np.roll(a, 1), rank=1),
        "an adapter rounded to float16": _filled(lambda a, _: a.astype(np.float16).astype(np.float32)),
        "an adapter that overflows": _filled(lambda a, rng: change_largest(a, rng, lambda _: np.float32(1e38)), rank=2),
        "two classes of a head swapped": _filled(lambda a, rng: exchange(a, 0, rng), rank=2, head=True),
        "a head scaled by 1.001": _filled(lambda a, _: a * np.float32(1.001), rank=2, head=True),
        "the bias of a head off by a thousandth": _filled(lambda a, _: a + np.float32(1e-3), rank=1, head=True),
        "only the .safetensors file is wrong": _filled(_one_ulp, files=("safetensors",)),
        "only the .onnx_adapter file is wrong": _filled(_one_ulp, files=("onnx_adapter",)),
        "the files of two adapters swapped": _crossed("safetensors", "onnx_adapter"),
        "the .onnx_adapter files of two adapters swapped": _crossed("onnx_adapter"),
        "the sources of two adapters swapped": _crossed("source"),
        "an adapter idle at one site": _site_idle,
        "the tensors of two sites swapped in an adapter": _two_sites,
        "a tensor missing from an adapter": _slot_missing,
        "an adapter with its source and golden vectors": _everything_of_an_adapter,
    },
)

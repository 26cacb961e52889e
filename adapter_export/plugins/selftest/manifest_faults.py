"""Faults in the manifest and in golden vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import AdapterRecord, GoldenRecord, Manifest
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.plugins.selftest.fault import Copy, Place, Plant, kinds_of


def _said(change: Callable[[Copy, Manifest], tuple[Manifest, Sequence[Place]] | None]) -> Plant:
    def plant(copy: Copy) -> Sequence[Place] | None:
        found = change(copy, copy.manifest)
        if found is None or found[0] == copy.manifest:
            return None
        copy.claim(found[0])
        return found[1]

    return plant


def _with_adapter(manifest: Manifest, at: int, record: AdapterRecord) -> Manifest:
    return replace(manifest, adapters=(*manifest.adapters[:at], record, *manifest.adapters[at + 1 :]))


def _wide(golden: GoldenRecord) -> GoldenRecord:
    return replace(golden, absolute={name: 1000 * most for name, most in golden.absolute.items()})


def _wide_of_adapter(copy: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    record = copy.choose(manifest.adapters)
    if record is None:
        return None
    wide = replace(record, golden=_wide(record.golden))
    return _with_adapter(manifest, manifest.adapters.index(record), wide), ["allowance", record.name]


def _labels(copy: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    able = [(at, one, one.task) for at, one in enumerate(manifest.adapters) if one.task and len(one.task.labels) > 1]
    chosen = copy.choose(able)
    if chosen is None:
        return None
    at, record, task = chosen
    one, two, *rest = task.labels
    return _with_adapter(manifest, at, replace(record, task=replace(task, labels=(two, one, *rest)))), ["labels"]


def _paths(copy: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    able = [at for at, site in enumerate(manifest.sites) if site.path is not None]
    if len(able) < 2:
        return None
    one, two = (int(at) for at in copy.rng.choice(able, 2, replace=False))
    sites = list(manifest.sites)
    sites[one], sites[two] = replace(sites[one], path=sites[two].path), replace(sites[two], path=sites[one].path)
    return replace(manifest, sites=tuple(sites)), [sites[one].name, sites[two].name, "paths"]


def _longer(_: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    able = {axis: own for axis, own in manifest.lengths.items() if own.maximum is not None and not own.fixed}
    if not able:
        return None
    wider = {axis: replace(own, maximum=(own.maximum or 0) + own.multiple_of) for axis, own in able.items()}
    return replace(manifest, lengths={**manifest.lengths, **wider}), list(able)


def _shorter(_: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    able = {axis: own for axis, own in manifest.lengths.items() if own.maximum is not None and own.maximum > 2}
    less = {axis: Lengths.of(own.minimum, (own.maximum or 0) // 2) for axis, own in able.items()}
    known = {axis: own for axis, own in less.items() if own is not None}
    return (replace(manifest, lengths={**manifest.lengths, **known}), list(known)) if known else None


def _golden(change: Callable[[Weights, Copy], None]) -> Plant:
    def plant(copy: Copy) -> Sequence[Place] | None:
        path = copy.change(copy.manifest.golden.path)
        tensors = {name: value.copy() for name, value in read_tensors(path).items()}
        change(tensors, copy)
        path.unlink()
        write_tensors(path, tensors)
        return ["golden", "base", copy.manifest.golden.path]

    return plant


def _one_case(_: Copy, manifest: Manifest) -> tuple[Manifest, Sequence[Place]] | None:
    # recorded runs name golden cases, so drop them too
    golden = replace(manifest.golden, cases=manifest.golden.cases[:1], recorded={})
    adapters = tuple(replace(one, golden=replace(one.golden, recorded={})) for one in manifest.adapters)
    return replace(manifest, golden=golden, adapters=adapters, recorded=None), ["golden", golden.path]


def _shift_outputs(tensors: Weights, _: Copy) -> None:
    for name in [name for name in tensors if ".output." in name]:
        tensors[name] = (tensors[name] + 0.01 * np.abs(tensors[name]).max()).astype(tensors[name].dtype)


def _other_ids(tensors: Weights, _: Copy) -> None:
    for name in [name for name in tensors if ".input." in name]:
        if tensors[name].dtype.kind == "i":
            tensors[name] = np.where(tensors[name] > 1, tensors[name] - 1, tensors[name])
        else:
            tensors[name] = tensors[name][::-1].copy() + np.float32(0.1)


MANIFEST = kinds_of(
    "manifest",
    {
        "golden budgets times 1000": _said(
            lambda _, m: (replace(m, golden=_wide(m.golden)), ["golden", "allowance", m.golden.path])
        ),
        "an adapter's golden budgets times 1000": _said(_wide_of_adapter),
        "golden cases cut to one": _said(_one_case),
        "golden outputs shifted": _golden(_shift_outputs),
        "golden inputs replaced": _golden(_other_ids),
        "two labels swapped": _said(_labels),
        "the paths of two sites swapped": _said(_paths),
        "maximum length increased": _said(_longer),
        "maximum length decreased": _said(_shorter),
        "padding recorded as neutral": _said(
            lambda _, m: (
                None if m.padding_neutral else (replace(m, padding_neutral=True), ["padding", "padding_neutral"])
            )
        ),
        "padding recorded as not neutral": _said(
            lambda _, m: (
                (replace(m, padding_neutral=False, counts_padding=()), ["padding", "padding_neutral"])
                if m.padding_neutral
                else None
            )
        ),
        "padding recorded as neutral for all adapters": _said(
            lambda _, m: (
                (replace(m, counts_padding=()), ["padding", "counts_padding", *m.counts_padding])
                if m.counts_padding
                else None
            )
        ),
        "base recorded as batch-invariant": _said(
            lambda _, m: None if m.batch_invariant else (replace(m, batch_invariant=True), ["batch_invariant"])
        ),
        "base recorded as not batch-invariant": _said(
            lambda _, m: (replace(m, batch_invariant=False), ["batch_invariant"]) if m.batch_invariant else None
        ),
        "zero-filling recorded as neutral": _said(
            lambda _, m: (
                (replace(m, bank=replace(m.bank, fillable=True)), ["width padding", "fillable"])
                if m.bank is not None and not m.bank.fillable
                else None
            )
        ),
        "another base": _said(lambda _, m: (replace(m, base="sha256:" + "0" * 64), ["base"])),
        "another model version": _said(
            lambda _, m: (replace(m, model_version=m.model_version % (2**31 - 2) + 1), ["model_version"])
        ),
        "a vocabulary without its last word": _said(
            lambda _, m: (
                replace(m, inputs=tuple(replace(one, limit=one.limit and max(1, one.limit - 1)) for one in m.inputs)),
                [one.name for one in m.inputs if one.limit],
            )
        ),
    },
)

"""Merge an adapter into its base, and show that the result computes what both computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.api.adapters.adapters import check_site_map, load_adapter
from adapter_export.api.models.base import Base, OnNote, PathLike, open_base, silent, tell
from adapter_export.api.models.layers import layer_finder
from adapter_export.errors import AdapterError, BaseMismatchError, BaseModelError, ParityError, argument
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.format.lengths import Bounds
    from adapter_export.format.manifest import InputRecord
    from adapter_export.graph.adapter import Adapter
    from adapter_export.onnx_backend.base.onnx_base import OnnxBase
    from adapter_export.torch_backend.base.torch_base import TorchBase

    Outputs = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

MERGED_KEY = "adapter_export.merged"
"""The key, in the metadata of an ONNX graph, of what was merged into it: JSON."""

_ALLOWED = 1e-4
"""How far an output may be from that of base and adapter, as a part of the largest value: float32 rounds once more."""

_MOST_BYTES = 2**31 - 2**20
"""The largest graph that is written as one file: what protobuf takes."""

_MOST_TOKENS = 12


@dataclass(frozen=True)
class Merged:
    """A base with an adapter inside.

    `tensors` are the names of the weights and biases that were written anew, `error` the largest difference of an
    output to that of base and adapter, `scale` the largest output, `compared` how many values were compared.
    """

    path: Path
    fingerprint: str
    tensors: tuple[str, ...]
    error: float
    scale: float
    compared: int


def merge(
    base: Base | PathLike,
    adapter: Adapter | PathLike,
    output: PathLike,
    *,
    without_head: Annotated[bool, "Leave its prediction head out."] = False,
    force: Annotated[bool, "Replace what is at the output's place."] = False,
    on_note: OnNote | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Merged:
    """Write a base whose weights have an adapter inside, and compare it with base and adapter.

    Args:
        base: a torch archive, a Hugging Face folder, or an ONNX graph, with weights in floats.
        adapter: one that is a fixed change of linear layers or norms, such as a LoRA, of whatever kind it is.
        output: the archive, or the ONNX file, to write.
        on_note: is told what became of heads.

    Raises:
        AdapterError: it cannot be merged; the message says where and why. `BaseMismatchError` is a kind of it.
        BaseModelError: the base is of a form that cannot be written again.
        ParityError: the merged base does not compute what base and adapter do; nothing is written.
        OutputExistsError, WriteError: it cannot be written.
    """
    from adapter_export.numerics.merged_layers import merged_layers, stored

    path, say = Path(output), on_progress or silent
    Output(path, force).ensure_writable(sources=[base, adapter])
    opened = open_base(base)
    chosen = load_adapter(adapter, near=opened.path) if isinstance(adapter, str | Path) else adapter
    if chosen.base != opened.fingerprint:
        raise BaseMismatchError(chosen.name, found=chosen.base, expected=opened.fingerprint, can_be_allowed=False)
    check_site_map([chosen], opened.given)
    if not chosen.placements:
        raise AdapterError("acts at no site: there is nothing to merge", where=f"adapter `{chosen.name}`")
    if chosen.head is not None and opened.is_onnx and not without_head:
        raise AdapterError(
            "has a head, which an ONNX graph of a base has no place for",
            where=f"adapter `{chosen.name}`",
            fix=f"leave it out with {argument('without_head', True)}, or merge into the torch archive",
        )
    say("computing the weights")
    found = merged_layers(chosen, opened.sites.complete, layer_finder(opened))
    tensors = {name: tensor for change in found.values() for name, tensor in stored(*change).items()}
    record = {"adapter": chosen.name, "weights_sha256": _sha256(chosen), "base": opened.fingerprint}
    if opened.is_onnx:
        return _merge_onnx(opened.onnx, chosen, tensors, record, (path, force), say)
    merged, notes = _merge_torch(opened.torch, chosen, tensors, record, (path, force), without_head, say)
    tell(notes, on_note)
    return merged


def _sha256(adapter: Adapter) -> str:
    from adapter_export.format.tensors import tensor_bytes

    return hashlib.sha256(tensor_bytes(adapter.weights)).hexdigest()


def _without_head(adapter: Adapter) -> Adapter:
    from adapter_export.graph.adapter import HEAD

    weights = {name: tensor for name, tensor in adapter.weights.items() if not name.startswith(f"{HEAD}.")}
    return replace(adapter, head=None, weights=weights)


def _merge_torch(
    base: TorchBase,
    adapter: Adapter,
    tensors: Mapping[str, np.ndarray],
    record: Mapping[str, str],
    output: tuple[Path, bool],
    without_head: bool,
    say: Callable[[str], None],
) -> tuple[Merged, list[str]]:
    """Write the archive, with the adapter's head in the place of the base's own; returns what became of heads, too."""
    import torch

    from adapter_export.graph.adapter import BASE_HEAD
    from adapter_export.torch_backend.base.derive import with_weights
    from adapter_export.torch_backend.base.torch_base import write_base
    from adapter_export.torch_backend.torch_runner import TorchRunner

    state, notes = base.program.state_dict, list[str]()
    weights = {name: torch.from_numpy(array.copy()).to(state[name].dtype) for name, array in tensors.items()}
    made, head = with_weights(base, weights), base.base_head
    if adapter.head is not None and not without_head:
        head = replace(adapter.without(list(adapter.placements)), name=BASE_HEAD, kind="base_head")
        instead = "" if base.base_head is None else ", in the place of the one that it had"
        notes.append(f"the adapter's head is the merged base's own{instead}")
    said = f"`{record['adapter']}` (weights {record['weights_sha256'][:12]}…) was merged into {record['base'][:19]}…"
    made = replace(
        made, base_head=None if head is None else replace(head, base=made.fingerprint), notes=(*base.notes, said)
    )
    say("comparing it with base and adapter")
    alone = _without_head(adapter)
    before, after = TorchRunner(base), TorchRunner(made)
    compared = _compared(
        base.inputs, base.lengths, lambda inputs: before.run(inputs, alone), lambda inputs: after.run(inputs, None)
    )
    write_base(made, output[0], force=output[1])
    return Merged(output[0], made.fingerprint, tuple(tensors), *compared), notes


def _merge_onnx(
    base: OnnxBase,
    adapter: Adapter,
    tensors: Mapping[str, np.ndarray],
    record: Mapping[str, str],
    output: tuple[Path, bool],
    say: Callable[[str], None],
) -> Merged:
    """Write the graph as its file has it, with other weights and a fingerprint of its own."""
    import numpy as np
    import onnx_ir as ir

    from adapter_export.onnx_backend.base.external import in_memory, read_model, settle_external_data
    from adapter_export.onnx_backend.base.onnx_base import FINGERPRINT_KEY, open_onnx
    from adapter_export.onnx_backend.model_session import open_session
    from adapter_export.onnx_backend.rewrite.insert import insert_slots
    from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
    from adapter_export.runtime.graphs import run_session

    model = read_model(base.path, lambda reason: BaseModelError("cannot be read again", where=base.path, found=reason))
    settle_external_data(model, base.path)
    known = model.graph.initializers
    for name, array in tensors.items():
        value = known.get(name)
        if value is None or value.const_value is None:
            raise BaseModelError(
                "keeps a weight in another way than as an initializer",
                where=f"{base.path}, `{name}`",
                fix="merge into the model that it was exported from, and export that",
            )
        value.const_value = ir.Tensor(np.ascontiguousarray(array, value.const_value.numpy().dtype), name=name)
    total = sum(value.const_value.nbytes for value in known.values() if value.const_value is not None)
    if total > _MOST_BYTES:
        raise BaseModelError(
            "is too large to be written as one file",
            where=base.path,
            found=f"{total / 1e9:.1f} GB",
            expected="2 GB",
            fix="merge into the model that it was exported from, and export that",
        )
    for value in known.values():
        if value.const_value is not None:
            value.const_value = in_memory(value.const_value)
    model.metadata_props.pop(FINGERPRINT_KEY, None)
    model.metadata_props[MERGED_KEY] = json.dumps(record, sort_keys=True)
    plan = plan_slots([alone := _without_head(adapter)], base.sites)
    slots = slot_tensors(plan, alone)
    with Output(output[0], output[1]).file() as temporary:
        ir.save(model, temporary)
        made = open_onnx(temporary)
        say("comparing it with base and adapter")
        before = open_session(insert_slots(base, plan), base.folder)
        after = open_session(made.model, made.folder)
        compared = _compared(
            base.inputs,
            base.lengths,
            lambda inputs: run_session(before, {**inputs, **slots}),
            lambda inputs: run_session(after, inputs),
        )
    return Merged(output[0], made.fingerprint, tuple(tensors), *compared)


def _compared(
    inputs: Sequence[InputRecord], lengths: Bounds, before: Outputs, after: Outputs
) -> tuple[float, float, int]:
    """Return the largest difference, the largest value and their number; a ParityError if it is no rounding."""
    import numpy as np

    from adapter_export.numerics.sample_inputs import input_cases

    error, scale, count = 0.0, 0.0, 0
    for case in input_cases(inputs, seed=0, lengths=lengths, max_tokens=_MOST_TOKENS):
        wanted, found = before(case.arrays), after(case.arrays)
        for name in wanted.keys() & found.keys():
            finite = np.isfinite(wanted[name])
            if not np.array_equal(finite, np.isfinite(found[name])):
                raise ParityError(
                    f"`{name}`, `{case.name}`", found="NaN or infinity", expected="what base and adapter give"
                )
            error = max(error, float(np.abs(wanted[name] - found[name])[finite].max(initial=0)))
            scale = max(scale, float(np.abs(wanted[name][finite]).max(initial=0)))
            count += wanted[name].size
    if not count or error > _ALLOWED * scale:
        raise ParityError("the merged base", found=f"a difference of {error:.1e}", expected=f"{_ALLOWED * scale:.1e}")
    return error, scale, count

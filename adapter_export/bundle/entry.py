"""What a bundle holds of one adapter: its files, and what the manifest says of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from adapter_export.bundle.golden import Golden
from adapter_export.dtypes import Weights
from adapter_export.errors import (
    AdapterError,
    BaseMismatchError,
    BaseModelError,
    OutputExistsError,
    ParityError,
    RequestError,
    WriteError,
)
from adapter_export.format.adapter_files import write_adapter
from adapter_export.format.manifest import AdapterRecord, GoldenRecord, MixRecord
from adapter_export.format.tensors import write_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.sums import MIX, weighted_members
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.base.base import OnnxBase
from adapter_export.onnx_backend.slots import HeadSum, SlotPlan, adapter_output, slot_tensors, topology_key
from adapter_export.runtime.graphs import FAILURES

# The number that a bundle's graph and its adapter files share, so that an adapter of another bundle is told apart.

_UNSAID = (0, 1)
"""What other programs write where they mean nothing."""


def model_version(base: OnnxBase, plan: SlotPlan) -> int:
    """The `model_version` of a graph with slots and of every adapter file that fits it."""
    return model_version_of(base.fingerprint, plan, None if base.given is None else base.given.digest)


def model_version_of(fingerprint: str, plan: SlotPlan, site_map: str | None) -> int:
    """31 bits of the sha256 over what decides whether an adapter file fits, a positive int32.

    The precision of the base is not in it: adapters of one precision fit another.

    Args:
        fingerprint: that of the base.
        plan: the slots, of which the topology counts.
        site_map: the digest of the site map that moved the sites of the base, if there was one.
    """
    digest = hashlib.sha256("\n".join((fingerprint, plan.digest, site_map or "")).encode()).digest()
    number = int.from_bytes(digest[:4], "little") & 0x7FFFFFFF
    return number if number not in _UNSAID else number + len(_UNSAID)


# ONNX Runtime's own adapter files, `.onnx_adapter`: written here, read by every binding that knows them.

_ADAPTER_VERSION = 1
"""ONNX Runtime compares it with nothing, nor the version of the model."""


def write_adapter_file(path: Path, tensors: Weights, model_version: int) -> None:
    """Write an adapter file, and read it again to see that all of it arrived.

    Args:
        path: where.
        tensors: one for every slot of the graph.
        model_version: that of the graph, as `identity.model_version` gives it.

    Raises:
        WriteError: the file could not be written as a whole.
    """
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(_ADAPTER_VERSION)
    adapter.set_model_version(model_version)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(tensors[name]) for name in sorted(tensors)})
    try:
        adapter.export_adapter(str(path))
        written = ort.AdapterFormat.read_adapter(str(path))  # its values point into it, so it must outlive them
    except FAILURES as error:
        raise WriteError(path, str(error).partition("\n")[0]) from error
    if written.get_model_version() != model_version or not _same(written.get_parameters(), tensors):
        raise WriteError(path, "what was written is not what is there")


def _same(written: Mapping[str, ort.OrtValue], tensors: Weights) -> bool:
    return written.keys() == tensors.keys() and all(
        np.array_equal(value.numpy(), tensors[name]) for name, value in written.items()
    )


# Which slots hold the weights of a weighted fusion, and whether each row of a batch can have its own.


def mix_record(plan: SlotPlan, adapter: Adapter) -> MixRecord | None:
    """What a request must know to give a fusion weights of its own; none for an adapter that has no such weights."""
    members = weighted_members(adapter)
    if members is None:
        return None
    own = {(owner, topology_key(graph)) for owner, graph, _ in adapter.parts()}
    slots = [
        group.slot(MIX) for group in plan.groups if (group.owner, group.key) in own and MIX in group.graph.parameters
    ]
    return MixRecord(tuple(dict.fromkeys(slots)), members)


def check_rows_apart(
    run: Callable[[Mapping[str, np.ndarray]], Arrays], record: MixRecord, tensors: Weights, golden: Golden
) -> None:
    """Hold that weights of one row leave the others alone: every second row has the adapter's, the others have zeros.

    Args:
        run: the graph, from inputs and tensors to outputs.
        record: where the weights go.
        tensors: the adapter's.
        golden: its golden vectors.

    Raises:
        BaseModelError: they act on other rows, as where tokens come before the batch and no shape says so.
    """
    for index, case in enumerate(golden.cases):
        batch = len(next(iter(case.arrays.values())))
        for first in range(2) if batch > 1 else ():
            mask = (np.arange(batch) % 2 == first).astype(np.float32)[:, None]
            feeds = {**case.arrays, **tensors, **{slot: mask * tensors[slot] for slot in record.slots}}
            try:
                found = run(feeds)
                for row in range(first, batch, 2):
                    golden.compare_row(index, row, found, "a fusion with weights for each row")
            except (ParityError, RequestError) as error:
                raise BaseModelError(
                    "has no batch as the first axis where a fusion acts, so that rows cannot have weights of their own",
                    found=error.found,
                    fix="compose the adapters with fixed weights: `adapter-export compose average`",
                ) from error


BASE_NAME = "base"
"""What stands for no adapter, in file names and in reports."""

_ADAPTERS, _GOLDEN = "adapters", "golden"


@dataclass(frozen=True)
class EntryWriter:
    """Writes the files of adapters into a bundle.

    Attributes:
        folder: the bundle.
        plan: the slots of its graph.
        heads: the outputs that heads fill.
        model_version: the number of its graph.
    """

    folder: Path
    plan: SlotPlan
    heads: Sequence[HeadSum]
    model_version: int

    def golden(self, adapter: str | None, golden: Golden) -> GoldenRecord:
        """Write the golden vectors of an adapter, or of the base alone."""
        path = f"{_GOLDEN}/{BASE_NAME if adapter is None else adapter}.safetensors"
        return golden.write(self._new(path), path)

    def adapter(self, adapter: Adapter, golden: Golden) -> AdapterRecord:
        """Write everything about one adapter.

        Raises:
            AdapterError: it does something for which the graph has no slots.
            WriteError: the operating system refused a write.
        """
        tensors = slot_tensors(self.plan, adapter)
        source = f"{_ADAPTERS}/{adapter.name}"
        write_adapter_file(self._new(f"{source}.onnx_adapter"), tensors, self.model_version)
        write_tensors(self._new(f"{source}.safetensors"), tensors)
        write_adapter(adapter, self.folder / source)
        return AdapterRecord(
            name=adapter.name,
            kind=adapter.kind,
            labels=None if adapter.head is None else adapter.head.labels or None,
            parameters=adapter.cost().parameters,
            onnx_adapter=f"{source}.onnx_adapter",
            safetensors=f"{source}.safetensors",
            source=source,
            base=adapter.base,
            golden=self.golden(adapter.name, golden),
            task=None if adapter.head is None else adapter.head.task,
            output=adapter_output(self.heads, adapter),
            mix=mix_record(self.plan, adapter),
        )

    def _new(self, path: str) -> Path:
        """A place where nothing is: a file of a bundle may have further names, and must not be written into."""
        file = self.folder / path
        if file.exists():
            raise OutputExistsError(file)
        file.parent.mkdir(exist_ok=True)
        return file


def check_bases(adapters: Sequence[Adapter], fingerprint: str, *, allow_mismatch: bool) -> None:
    """Refuse adapters of another base.

    Raises:
        BaseMismatchError: there is one, and that is not allowed.
    """
    for adapter in adapters:
        if adapter.base != fingerprint and not allow_mismatch:
            raise BaseMismatchError(adapter.name, found=adapter.base, expected=fingerprint)


def check_names(names: Sequence[str], taken: Sequence[str] = ()) -> None:
    """Refuse names of adapters that two files cannot have side by side.

    Args:
        names: those of the adapters to come.
        taken: those that the bundle has.

    Raises:
        AdapterError: a name occurs twice, or is that of the base.
    """
    counts = Counter(name.casefold() for name in (*taken, *names))
    twice = [name for name in names if counts[name.casefold()] > 1]
    if twice:
        raise AdapterError(
            "the bundle has an adapter of this name" if taken else "two adapters have one name",
            found=", ".join(f"`{name}`" for name in twice),
            expected="names that differ in more than case",
            fix=f"remove the old one first, or add the new one as `other={twice[0]}`"
            if taken
            else "rename the folder of one of them",
        )
    if BASE_NAME in counts:
        raise AdapterError(f"`{BASE_NAME}` stands for no adapter", fix="rename the adapter")

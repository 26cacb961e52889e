"""What a bundle holds of one adapter: its files, and what the manifest says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_export.errors import AdapterError, BaseMismatchError, OutputExistsError
from adapter_export.format.adapter_files import write_adapter
from adapter_export.format.manifest import AdapterRecord, GoldenRecord
from adapter_export.format.tensors import write_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.onnx.adapter_file import write_adapter_file
from adapter_export.onnx.golden import Golden
from adapter_export.onnx.head_outputs import HeadSum, adapter_output
from adapter_export.onnx.mix import mix_record
from adapter_export.onnx.slots import SlotPlan, slot_tensors

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

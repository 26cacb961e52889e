"""Merge an adapter into a model's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike
from adapter_export.bases.adapters import check_site_map, load_adapter
from adapter_export.bases.base import Base, MergedWeights, OpenOptions
from adapter_export.bases.comparing import compare_outputs
from adapter_export.bases.opening import base_for
from adapter_export.commands.command import Command, Screen, next_line
from adapter_export.errors import AdapterError, BaseMismatchError, moved
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Force, Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.tables import Described, number_of

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter


@dataclass(frozen=True, repr=False)
class Merged(Described):
    """A base with a merged adapter.

    `tensors` are the names of the changed weights and biases, `error` the largest difference between its outputs and
    those of base and adapter, `scale` the largest output, `compared` the number of compared values.
    """

    path: Path
    fingerprint: str
    tensors: tuple[str, ...]
    error: float
    scale: float
    compared: int

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        facts: dict[str, object] = {"path": self.path, "tensors": len(self.tensors), "error": self.error}
        return {**facts, "scale": self.scale, "fingerprint": self.fingerprint[:19]}


def merge(
    base: Annotated[Base | Address, Option(metavar="MODEL")],
    adapter: Annotated[Adapter | Address, Option("Folder of the adapter.", "FOLDER", "--adapter")],
    output: Annotated[PathLike, Option("The archive, or the ONNX file, to write.", "FILE", "-o")],
    *,
    without_head: Annotated[bool, "Omit the prediction head."] = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Merged:
    """Merge an adapter into a model's weights, so that it costs nothing at run time.

    MODEL is a torch archive, a Hugging Face folder or an ONNX file. The adapter must be a fixed change of linear
    layers, such as a LoRA. The result has a new fingerprint and is compared with model and adapter before it is
    written. A merged adapter cannot be swapped.

    Args:
        base: a torch archive, a Hugging Face folder, or an ONNX graph, with weights in floats.
        adapter: an adapter of any kind that is a fixed change of linear layers or norms, such as a LoRA.
        output: the archive, or the ONNX file, to write.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        force: replace an existing file.
        reporter: receives each step, and notes on heads.

    Raises:
        AdapterError: it cannot be merged; its subclass `BaseMismatchError`: it belongs to another base.
        BaseModelError: this form of base cannot be rewritten.
        ParityError: the merged base and the adapted base disagree; nothing is written.
        OutputExistsError, WriteError: the output cannot be written.
    """
    from adapter_export.graph.adapter import refuse_prefixes
    from adapter_export.numerics.merged_layers import merged_layers, stored

    path = Path(output)
    Output(path, force).ensure_writable(sources=[base, adapter])
    opened = base_for(base, OpenOptions(site_map, trust_pickle), reporter)
    chosen = load_adapter(adapter, near=opened.path) if isinstance(adapter, str | Path) else adapter
    if chosen.base != opened.fingerprint:
        raise BaseMismatchError(chosen.name, found=chosen.base, expected=opened.fingerprint, can_be_allowed=False)
    check_site_map([chosen], opened.given)
    refuse_prefixes([chosen], "merged into weights")
    if not chosen.placements:
        raise AdapterError("acts at no site: there is nothing to merge", where=f"adapter `{chosen.name}`")
    head = None
    if chosen.head is not None and not without_head:
        opened.check_takes_head(chosen)
        head = chosen.without(list(chosen.placements))
    reporter.step("computing the weights")
    changes = merged_layers(chosen, opened.sites.complete, opened.layer_at)
    tensors = {name: tensor for change in changes.values() for name, tensor in stored(*change).items()}
    record = {"adapter": chosen.name, "weights_sha256": _sha256(chosen), "base": opened.fingerprint}
    with Output(path, force).file() as temporary, moved(temporary, path):
        merged_base = opened.write_merged(MergedWeights(tensors, record, head), temporary)
        reporter.step("comparing with base and adapter")
        after = merged_base.runner()
        compared = compare_outputs(opened, chosen.without_head(), partial(after.run, adapter=None), "the merged base")
    if head is not None:
        instead = "" if opened.base_head is None else "; it replaces the previous one"
        reporter.warn(f"the adapter's head becomes the merged base's head{instead}")
    return Merged(path, merged_base.fingerprint, tuple(tensors), *compared)


def _sha256(adapter: Adapter) -> str:
    from adapter_export.format.tensors import tensor_bytes

    return hashlib.sha256(tensor_bytes(adapter.weights)).hexdigest()


def _show(merged: Merged, screen: Screen) -> None:
    new = f"{number_of(len(merged.tensors), 'tensor')} of {screen.given['base'].name} changed"
    screen.report(f"wrote {merged.path}: {new}, fingerprint {merged.fingerprint[:19]}…")
    within = f"are within {merged.error:.1e} of model and adapter"
    screen.report(f"{number_of(merged.compared, 'value')}, up to {merged.scale:.3g}, {within}.")
    screen.report(f"Next: {next_line('build', merged.path, '-o', 'bundle')}")


def _document(merged: Merged, screen: Screen) -> Mapping[str, object]:
    return {
        "model": str(merged.path),
        "fingerprint": merged.fingerprint,
        "tensors": list(merged.tensors),
        "error": merged.error,
        "scale": merged.scale,
        "compared": merged.compared,
        "notes": list(screen.notes),
    }


COMMAND = Command(
    merge,
    _show,
    document=_document,
    examples=(
        "adapter-export merge model.pt --adapter lora -o merged.pt",
        "adapter-export merge model.onnx --adapter lora -o merged.onnx --without-head",
    ),
)

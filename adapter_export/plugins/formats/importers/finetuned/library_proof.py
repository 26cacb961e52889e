"""Comparison of an imported checkpoint with transformers' own forward of that checkpoint.

The model of the checkpoint runs twice: as it is, which measures what an approximation loses; and with the adapter's
changes of the base in place of its own weights, which must equal base and adapter. The second run proves that every
module and every setting of the configuration is accounted for, also where weights are approximated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adapter_export.errors import ParityError
from adapter_export.numerics.merged_layers import Layer
from adapter_export.numerics.runner import head_output
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.plugins.formats.importers.finetuned.finetuned_importer import ImportedCheckpoint
from adapter_export.plugins.formats.importers.placing import norm_sites
from adapter_export.sites.site import Site
from adapter_export.torch_backend.checkpoint_folder import CheckpointFolder, LibraryModel

if TYPE_CHECKING:
    from adapter_export.bases.base import Base

_ALLOWED = 1e-4
"""Maximum deviation of an output, relative to the largest value: float32 rounds once more."""

_MOST_TOKENS = 12

_IDS, _MASK = "input_ids", "attention_mask"

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Deviation:
    """Largest difference of outputs on sample inputs, and the largest output."""

    difference: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference relative to the largest output."""
        return self.difference / self.scale if self.scale else self.difference


def prove_import(imported: ImportedCheckpoint, checkpoint: CheckpointFolder, base: Base) -> Deviation:
    """Compare base and adapter with the checkpoint in transformers; return the difference to its outputs.

    Raises:
        ParityError: the checkpoint with the adapter's weights computes something else than base and adapter; or it is
            imported without loss, and outputs differ.
    """
    library, adapter = LibraryModel(checkpoint.path, base.torch, imported.head.library), imported.adapter
    cases = list(_cases(base, checkpoint, pooled=imported.head.library is not None))
    originals = [library.run(case) for case in cases]
    library.replace(_Replaced(imported, base).tensor)
    runner, original, approximated = base.runner(), list[Deviation](), list[Deviation]()
    names = _result_names(imported, base)
    for case, before in zip(cases, originals, strict=True):
        after, outputs = library.run(case), runner.run(case, adapter)
        for name, other in names.items():
            approximated.append(deviation(outputs[name], after[other]))
            original.append(deviation(outputs[name], before[other]))
    _check(_worst(approximated), "with the weights of the adapter")
    lost = _worst(original)
    if imported.exact and checkpoint.dtype in ("float32", "float64"):
        _check(lost, "as it is")
    return lost


def _result_names(imported: ImportedCheckpoint, base: Base) -> dict[str, str]:
    """Return names of outputs in the library, by their names in base and adapter."""
    outputs, head = [record.name for record in base.outputs], imported.adapter.head
    if head is None or imported.head.library is None:
        return {name: name for name in outputs}
    return {head_output(outputs, head.output): "logits"}


def _check(measured: Deviation, what: str) -> None:
    if not measured.relative <= _ALLOWED:
        raise ParityError(
            f"the checkpoint in transformers, {what}",
            found=f"a difference of {measured.difference:.1e} to base and adapter, of outputs up to "
            f"{measured.scale:.1e}",
            expected=f"at most {_ALLOWED * measured.scale:.1e}; the configurations of both models may differ",
        )


def deviation(first: np.ndarray, second: np.ndarray) -> Deviation:
    """Return the largest difference; infinite if shapes or infinities differ, or if there is a NaN."""
    finite = np.isfinite(second)
    if first.shape != second.shape or np.isnan(first).any() or not np.array_equal(first[~finite], second[~finite]):
        return Deviation(float("inf"), 1.0)
    return Deviation(
        float(np.abs(first[finite] - second[finite]).max(initial=0)), float(np.abs(second[finite]).max(initial=0))
    )


def _worst(deviations: Sequence[Deviation]) -> Deviation:
    return Deviation(
        max((each.difference for each in deviations), default=float("inf")),
        max((each.scale for each in deviations), default=1.0),
    )


def _cases(base: Base, checkpoint: CheckpointFolder, *, pooled: bool) -> Iterator[dict[str, np.ndarray]]:
    """Yield sample inputs that transformers reads like a mask does.

    Its heads for the last token look for `pad_token_id` instead of the mask; without one, they read single rows.
    """
    padding = checkpoint.config.get("pad_token_id")
    for case in input_cases(base.inputs, seed=0, lengths=base.lengths, max_tokens=_MOST_TOKENS):
        arrays = dict(case.arrays)
        ids, mask = arrays.get(_IDS), arrays.get(_MASK)
        if not pooled or ids is None or mask is None or mask.shape != ids.shape:
            yield arrays
        elif isinstance(padding, int):
            other = np.where(ids == padding, padding - 1 if padding else 1, ids)
            yield arrays | {_IDS: np.where(mask == 0, padding, other).astype(ids.dtype)}
        elif len(ids) == 1 and mask.all():
            yield arrays


class _Replaced:
    """Weights of the checkpoint's model after the import: those of the base, with the adapter's changes."""

    def __init__(self, imported: ImportedCheckpoint, base: Base) -> None:
        self._imported, self._base = imported, base
        self._sites: dict[str, Site] = {}
        for site in base.sites.complete.of_roles(("linear",)):
            if site.path is not None and site.name in imported.adapter.placements:
                self._sites.setdefault(site.path, site)
        self._norms = {
            path: site
            for path, (site, _) in norm_sites(base.sites.complete).items()
            if site.name in imported.adapter.placements
        }

    def tensor(self, name: str) -> np.ndarray | None:
        """Return a tensor by its name in the model; `None` for one that the head contains."""
        if name in self._imported.head.read:
            return None
        renamed = self._imported.comparison.renaming(name)
        for known in (renamed, name):  # the bare model of a folder has no prefix
            of_base = None if known is None else self._base.tensor(known)
            if of_base is not None and known is not None:
                return self._changed(known, of_base)
        return None

    def _changed(self, name: str, of_base: np.ndarray) -> np.ndarray:
        path, _, role = name.rpartition(".")
        if path in self._sites:
            layer = self._base.layer_at(self._sites[path])
            assert layer is not None, "an adapted layer has tensors"
            weight, bias = _adapted(layer, self._imported.adapter.parameters(self._sites[path].name))
            if role == "bias":
                return bias
            return weight.T if layer.in_first else weight
        if path in self._norms:
            parameters = self._imported.adapter.parameters(self._norms[path].name)
            scale = parameters.get("scaling.weight", np.ones(1, np.float32)).astype(np.float64)
            return of_base * scale + (parameters.get("lora_B.bias", 0) if role == "bias" else 0)
        return of_base


def _adapted(layer: Layer, parameters: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight [out, in] and bias of a layer after the change of `changed_layer_graph`."""
    wide = {name: tensor.astype(np.float64) for name, tensor in parameters.items()}
    scale = wide.get("scaling.weight", np.ones(len(layer.weight)))
    delta = wide["delta.weight"] if "delta.weight" in wide else wide["lora_A.weight"] @ wide["lora_B.weight"]
    shift = wide.get("lora_B.bias", wide.get("delta.bias", np.zeros(len(layer.weight))))
    bias = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    return scale[:, None] * layer.weight + delta.T, scale * bias + shift

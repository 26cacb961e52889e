"""Comparison of a checkpoint's tensors with those of its base, and refusal of another base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adapter_export.errors import OtherModulesError, TensorError
from adapter_export.plugins.formats.importers.match import Renaming, find_renaming
from adapter_export.reporting import Reporter
from adapter_export.tables import number_of
from adapter_export.words import argument, quoted

if TYPE_CHECKING:
    from adapter_export.torch_backend.checkpoint_folder import CheckpointFolder

_ALIKE = 0.5
"""Smallest cosine of a weight and its fine-tuned version; unrelated ones have a cosine of about 0, fine-tuned ones of
more than 0.9."""

_NAMED = 3
"""Number of layers that a refusal names."""


@dataclass(frozen=True)
class BaseWeights:
    """The tensors of a base by name, without copies, and its fingerprint."""

    tensors: Mapping[str, np.ndarray]
    fingerprint: str


@dataclass(frozen=True)
class TensorComparison:
    """A checkpoint's tensors beside those of the base.

    Attributes:
        renaming: from names in the checkpoint's model to names in the base.
        changed: names in the base of tensors that differ, with the name in the checkpoint.
        equal: number of equal tensors, after rounding to the checkpoint's types.
        extra: names in the checkpoint of tensors that the base does not have.
        missing: names in the base of tensors that the checkpoint does not have.
    """

    renaming: Renaming
    changed: Mapping[str, str]
    equal: int
    extra: tuple[str, ...]
    missing: tuple[str, ...]


def compare_tensors(checkpoint: CheckpointFolder, base: BaseWeights, reporter: Reporter) -> TensorComparison:
    """Compare each tensor of a checkpoint with the base's, one at a time.

    Raises:
        OtherModulesError: the checkpoint was not made from this base; the message names the nearest layers.
        TensorError: a tensor contains NaN or infinity.
    """
    shapes = checkpoint.shapes()
    renaming = find_renaming(shapes, base.tensors, checkpoint.path)
    if renaming is None:
        raise _other_base(checkpoint, base, "no tensor with a name of the base's", quoted([*shapes][:_NAMED]))
    common = {name: known for name in shapes if (known := renaming(name)) in base.tensors and known is not None}
    _check_shapes(checkpoint, base, common)
    changed, cosines = dict[str, str](), dict[str, float]()
    for count, (name, known) in enumerate(common.items()):
        reporter.step("comparing with the base", count, len(common))
        stored, of_base = checkpoint.tensor(name), base.tensors[known]
        floating = stored.dtype.kind == "f"
        if floating and not np.isfinite(stored).all():
            raise TensorError("contains NaN or infinity", where=checkpoint.path, found=f"`{name}`")
        if floating and stored.ndim > 1:
            cosines[name] = _cosine(stored, of_base)
        if not np.array_equal(stored, checkpoint.rounded(name, of_base) if floating else of_base):
            changed[known] = name
    _check_alike(checkpoint, base, cosines)
    reached = set(common.values())
    return TensorComparison(
        renaming,
        changed,
        len(common) - len(changed),
        tuple(name for name in shapes if name not in common),
        tuple(name for name in base.tensors if name not in reached),
    )


def _check_shapes(checkpoint: CheckpointFolder, base: BaseWeights, common: Mapping[str, str]) -> None:
    shapes = checkpoint.shapes()
    wrong = [
        f"`{name}` {list(shapes[name])}, not {list(base.tensors[known].shape)}"
        for name, known in common.items()
        if shapes[name] != base.tensors[known].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise _other_base(checkpoint, base, "tensors of other shapes", "; ".join(wrong[:_NAMED]) + more)


def _check_alike(checkpoint: CheckpointFolder, base: BaseWeights, cosines: Mapping[str, float]) -> None:
    """Reject a checkpoint most of whose matrices have nothing in common with the base's."""
    unlike = [name for name, cosine in cosines.items() if cosine < _ALIKE]
    if len(unlike) * 2 > len(cosines):
        apart = sorted(unlike, key=lambda name: cosines[name])[:_NAMED]
        found = "; ".join(f"`{name}` {cosines[name]:.2f}, {_nearest(checkpoint, base, name)}" for name in apart)
        raise _other_base(
            checkpoint,
            base,
            f"{len(unlike)} of {number_of(len(cosines), 'matrix', 'matrices')} without likeness (cosine)",
            found,
        )


def _nearest(checkpoint: CheckpointFolder, base: BaseWeights, name: str) -> str:
    """Return the base's matrix that is most like one of the checkpoint."""
    stored = checkpoint.tensor(name)
    cosines = {
        other: _cosine(stored, tensor)
        for other, tensor in base.tensors.items()
        if tensor.shape == stored.shape and tensor.dtype.kind == "f"
    }
    best = max(cosines, key=lambda other: cosines[other])
    return f"nearest is `{best}` with {cosines[best]:.2f}"


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Return the cosine of the angle between two tensors; 0 if one is zero."""
    length = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    return float(np.vdot(first, second)) / length if length else float(np.array_equal(first, second))


def check_complete(checkpoint: CheckpointFolder, base: BaseWeights, missing: Sequence[str]) -> None:
    """Reject a checkpoint that lacks tensors of the base's layers, such as one with fewer layers."""
    if missing:
        raise _other_base(checkpoint, base, "no such tensors", quoted(missing[:_NAMED]))


def _other_base(checkpoint: CheckpointFolder, base: BaseWeights, what: str, found: str) -> OtherModulesError:
    return OtherModulesError(
        "was not fine-tuned from this base",
        where=checkpoint.path,
        found=f"{what}: {found}",
        expected=f"the tensors of the base {base.fingerprint[:19]}…, some of them trained further",
        fix="pass the model that it was fine-tuned from: " + argument("base", words="MODEL"),
    )

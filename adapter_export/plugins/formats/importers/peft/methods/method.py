"""Interface of PEFT types: the linear layer as input of a formula, and the resulting change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter_export.errors import AdapterError
from adapter_export.plugins.formats.importers.peft.peft_values import Config
from adapter_export.plugins.formats.importers.tensor_map import TensorMap

Matrix = npt.NDArray[np.floating[Any]]
"""An array of float64."""


@dataclass(frozen=True)
class Change:
    """The layer `scale⊙(W u) + up·(down u) + dense·u + bias` instead of `W u + b`.

    `scale` [out], `down` [r, in], `up` [out, r], `dense` [out, in], `bias` [out]. Absent terms are `None`;
    without a `bias` the layer keeps its own.
    """

    scale: Matrix | None = None
    down: Matrix | None = None
    up: Matrix | None = None
    dense: Matrix | None = None
    bias: Matrix | None = None

    def smaller(self) -> Change:
        """Return the change with `up` and `down` multiplied if that is smaller, or if there is a dense matrix."""
        if self.up is None or self.down is None:
            return self
        rank, (out, width_in) = len(self.down), (len(self.up), self.down.shape[1])
        if self.dense is None and rank * (out + width_in) < out * width_in:
            return self
        product = self.up @ self.down
        return replace(self, up=None, down=None, dense=product if self.dense is None else self.dense + product)

    def applied(self, weight: Matrix, bias: Matrix) -> tuple[Matrix, Matrix]:
        """The layer's weight [out, in] and bias [out] after the change."""
        changed = weight if self.scale is None else self.scale[:, None] * weight
        if self.up is not None and self.down is not None:
            changed = changed + self.up @ self.down
        if self.dense is not None:
            changed = changed + self.dense
        return changed, bias if self.bias is None else self.bias


class IncompleteError(Exception):
    """A tensor is missing or does not fit; the fault is recorded in the `TensorMap`."""


@dataclass(frozen=True)
class Shared:
    """Parts shared by all layers of an adapter: config, tensors, and tensors outside of modules.

    `keys` maps names of the latter, such as `vera_A`, to their keys.
    """

    config: Config
    mapped: TensorMap
    keys: Mapping[str, str]

    def tensor(self, key: str) -> Matrix:
        """Return a floating-point tensor by its key in the file."""
        tensor = self.mapped.tensor(key)
        if tensor is None:
            raise IncompleteError
        return tensor.astype(np.float64)


@dataclass(frozen=True)
class Layer:
    """One adapted linear layer of the base, `width_in` to `width` features.

    `keys` maps tensor names of the layer to keys; `base` returns the base's `weight` [out, in] or `bias` of the layer,
    the latter after training.
    """

    path: str
    width: int
    width_in: int
    keys: Mapping[str, str]
    shared: Shared
    base: Callable[[str], np.ndarray | None]

    def __getitem__(self, name: str) -> Matrix:
        """Return a floating-point tensor; if missing, record a fault and raise IncompleteError."""
        return self.shared.tensor(self.keys[name] if name in self.keys else self._missing(name))

    def get(self, name: str) -> Matrix | None:
        """Return a floating-point tensor, or `None` if absent."""
        return self[name] if name in self.keys else None

    def whole(self, name: str, most: int) -> npt.NDArray[np.int64]:
        """Return a tensor of positions below `most`, of the layer or the whole adapter."""
        key = self.keys.get(name) or self.shared.keys.get(name) or self._missing(name)
        tensor = self.shared.mapped.tensors[key]
        self.shared.mapped.forget([key])
        numbers = tensor.astype(np.int64)
        if (
            tensor.dtype.kind not in "iuf"
            or (numbers != tensor).any()
            or (numbers < 0).any()
            or (numbers >= most).any()
        ):
            self.shared.mapped.fault(f"`{key}` contains values other than positions below {most}")
            raise IncompleteError
        return numbers

    def ignore(self, *names: str) -> None:
        """Mark redundant tensors as used."""
        keys = (self.keys.get(name) or self.shared.keys.get(name) for name in names)
        self.shared.mapped.forget(key for key in keys if key is not None)

    def common(self, name: str, fix: str) -> Matrix:
        """Return a tensor of the whole adapter; AdapterError with `fix` if it was not saved."""
        if name not in self.shared.keys:
            raise AdapterError(
                "was saved without a tensor that its layers depend on",
                where=f"`{self.path}`",
                found=f"no `base_model.{name}`",
                fix=fix,
            )
        return self.shared.tensor(self.shared.keys[name])

    @property
    def config(self) -> Config:
        """Config of the adapter."""
        return self.shared.config

    @cached_property
    def weight(self) -> Matrix:
        """Weight of the base, [out, in]."""
        stored, shape = self.base("weight"), (self.width, self.width_in)
        if stored is None or stored.shape != shape:
            raise AdapterError(
                "depends on the base's weights, which this base does not expose",
                where=f"`{self.path}`",
                found="no such weight" if stored is None else f"a weight {list(stored.shape)}",
                expected=f"a weight {list(shape)}",
                fix="pass the model that it was trained on as a torch archive or a Hugging Face folder",
            )
        return stored.astype(np.float64)

    @cached_property
    def bias(self) -> Matrix | None:
        """Bias [out] of the layer, if any."""
        bias = self.base("bias")
        return None if bias is None else bias.astype(np.float64)

    def _missing(self, name: str) -> str:
        key, role = next(((key, role) for role, key in self.keys.items()), ("", ""))
        self.shared.mapped.fault(f"`{key.removesuffix(role)}{name}` is missing")
        raise IncompleteError


Formula = Callable[[Layer], Change]


@dataclass(frozen=True)
class Method:
    """One `peft_type` whose change of the weights is fixed.

    `prefix` is how the names of its tensors begin, a regular expression; `reads` are the keys of the config that
    `formula` computes with.
    """

    formula: Formula
    prefix: str
    reads: frozenset[str] = frozenset()

"""The tensors of a PEFT adapter, sorted by the module of the base that they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import AdapterError, TensorError
from adapter_export.importers.peft.options import TENSORS, Options

Arrays = Mapping[str, np.ndarray]

_PREFIX = "base_model.model."
_ORIGINAL = ".original_module."
_WRAPPED = (".modules_to_save.", ".base_layer.")
"""Names of wrappers that PEFT puts around modules; some versions leave them in the keys."""

_NEEDED = {"lora": {"lora_A.weight", "lora_B.weight"}, "ia3": {"ia3_l"}}
_ALLOWED = {"lora": {"lora_A.weight", "lora_B.weight", "lora_B.bias"}, "ia3": {"ia3_l"}}

_PARAMETER = re.compile(r"(?P<path>.+?)\.(?P<role>(?:lora_\w+|ia3_\w+)(?:\.\w+)?|weight|bias)")


@dataclass(frozen=True)
class Sorted:
    """Tensors by module path, the path as PEFT has it behind `base_model.model.`, and by their name there.

    Attributes:
        adapted: the trained matrices or vectors beside modules: `lora_A.weight` [r, in], `lora_B.weight` [out, r] and
            perhaps `lora_B.bias` [out], or `ia3_l` [out, 1] or [1, in].
        saved: the `weight` and `bias` of modules that were trained as a whole.
        biases: trained biases of the base itself.
    """

    adapted: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    saved: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    biases: dict[str, np.ndarray] = field(default_factory=dict)


def sort_tensors(tensors: Arrays, options: Options, where: object) -> Sorted:
    """Sort tensors by their keys.

    Raises:
        AdapterError: tensors of something that cannot be expressed; all of them are listed.
        TensorError: tensors are missing, left over, not floating-point or not finite; all of them are listed.
    """
    _check_expressible(tensors, where)
    found, faults = Sorted(), list(_unfit(tensors))
    for key, tensor in tensors.items():
        if _ORIGINAL not in key and not _put(key, tensor, options, found):
            faults.append(f"`{key}` is left over")
    faults += [f"`{_PREFIX}{path}.{role}` is missing" for path, role in _missing(found, options)]
    if not found.adapted and not faults:
        faults.append(f"no {options.kind} tensor is there")
    if faults:
        raise TensorError(
            "the tensors do not fit the config",
            where=where,
            found="; ".join(faults),
            fix="take the adapter's folder from its source again",
        )
    return found


def _check_expressible(tensors: Arrays, where: object) -> None:
    words = {key: next((word for word in TENSORS if word in key.split(".")), None) for key in tensors}
    faults = [f"`{key}`: {TENSORS[word]}" for key, word in words.items() if word is not None]
    faults += [
        f"`{key}` {list(tensor.shape)}: it belongs to a convolution, which has no site"
        for key, tensor in tensors.items()
        if ".lora_" in key and tensor.ndim > 2
    ]
    faults += [f"`{key}`: a weight of the base itself" for key in tensors if key.endswith(".base_layer.weight")]
    if faults:
        raise AdapterError(
            "has tensors that cannot be expressed",
            where=where,
            found="; ".join(faults),
            expected="LoRA and IA3 at linear layers",
            fix="train it at linear layers only",
        )


def _unfit(tensors: Arrays) -> Iterator[str]:
    for key, tensor in tensors.items():
        if tensor.dtype.name not in FLOAT_TYPES:
            yield f"`{key}` is {tensor.dtype}, not a floating-point type"
            continue
        with np.errstate(over="ignore"):
            unfit = int(np.count_nonzero(~np.isfinite(tensor.astype(np.float32))))
        if unfit:
            yield f"`{key}` holds {unfit} NaN, Inf or numbers beyond float32"
        if 0 in tensor.shape:
            yield f"`{key}` has an empty shape {list(tensor.shape)}"


def _put(key: str, tensor: np.ndarray, options: Options, found: Sorted) -> bool:
    """Put one tensor where it belongs; whether it belongs anywhere."""
    parsed = _PARAMETER.fullmatch(_unwrapped(key)) if key.startswith(_PREFIX) else None
    if parsed is None:
        return False
    path, role = parsed["path"], parsed["role"]
    if role in _ALLOWED[options.kind]:
        found.adapted.setdefault(path, {})[role] = tensor
    elif role in ("weight", "bias") and _is_saved(path, options):
        found.saved.setdefault(path, {})[role] = tensor
    elif role == "bias" and options.bias != "none":
        found.biases[path] = tensor
    else:
        return False
    return True


def _unwrapped(key: str) -> str:
    key = key.removeprefix(_PREFIX)
    for wrapper in _WRAPPED:
        key = key.replace(wrapper, ".")
    return key


def _is_saved(path: str, options: Options) -> bool:
    """Whether the module, or one that it lies in, was trained as a whole.

    PEFT matches the bare ends of paths (`peft.utils.other._set_trainable`): `classifier` saves `pre_classifier`, too.
    """
    parts = path.split(".")
    heads = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(head.endswith(options.saved) for head in heads)


def _missing(found: Sorted, options: Options) -> Iterator[tuple[str, str]]:
    for path, roles in found.adapted.items():
        yield from ((path, role) for role in sorted(_NEEDED[options.kind] - roles.keys()))

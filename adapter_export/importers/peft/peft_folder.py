"""The folder of one adapter of PEFT: `adapter_config.json`, and beside it tensors that belong to modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_export.errors import AdapterError, FileError, argument, quoted
from adapter_export.importers.peft.peft_options import TENSORS, Options, is_off, read_options
from adapter_export.importers.tensor_map import ReadPickle, TensorMap, Tensors, read_file
from adapter_export.safe_io.documents import read_json

CONFIG_FILE = "adapter_config.json"
TENSOR_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Possible files of the tensors; the first that exists is read."""

_WHOLE_MODELS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class PeftFolder:
    """Its config without what is off, what this says of the computation, and the tensors by PEFT's keys."""

    path: Path
    config: Mapping[str, Any]
    options: Options
    tensors: Tensors


def read_folder(folder: Path, name: str | None = None, read_pickle: ReadPickle | None = None) -> PeftFolder:
    """Read the folder of an adapter, or the one called `name` in a folder of several; errors name what is missing."""
    path = _adapter_in(folder, name)
    document: Any = read_json(path / CONFIG_FILE)
    options = read_options(document, path / CONFIG_FILE)
    config = {key: value for key, value in document.items() if not is_off(value)}
    files = [path / name for name in TENSOR_FILES if (path / name).is_file()]
    if not files:
        raise FileError(
            "has no tensors",
            where=path,
            expected=" or ".join(f"`{name}`" for name in TENSOR_FILES),
            fix="copy both files of the adapter",
        )
    return PeftFolder(path, config, options, read_file(files[0], read_pickle))


def _adapter_in(folder: Path, name: str | None) -> Path:
    if (folder / CONFIG_FILE).is_file():
        return folder
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}")) if folder.is_dir() else []
    if name in inside:
        return folder / name
    if len(inside) == 1:
        return folder / inside[0]
    if inside:
        instead = f"the adapters {quoted(inside)} in it"
    elif not folder.is_dir():
        instead = "no folder"
    elif any((folder / name).is_file() for name in _WHOLE_MODELS):
        instead = "a whole model, perhaps one that an adapter was merged into: it is a base of its own"
    else:
        instead = f"no `{CONFIG_FILE}`"
    several = f"name one of them with {argument('member', option='name')}"
    raise FileError(
        "is not the folder of a PEFT adapter",
        where=folder,
        found=instead,
        expected=f"a folder with `{CONFIG_FILE}` and `{TENSOR_FILES[0]}`",
        fix=several if inside else "give the folder that `save_pretrained` of PEFT wrote",
    )


_PREFIX = "base_model.model."
_WRAPPED = (".modules_to_save.", ".base_layer.")
"""Names of wrappers that PEFT puts around modules; some versions leave them in the keys."""

_ROOT = "base_model."
"""Prefix of the names of tensors outside any adapted module."""

_NEEDED: Mapping[str, frozenset[str]] = {
    "lora": frozenset({"lora_A.weight", "lora_B.weight"}),
    "ia3": frozenset({"ia3_l"}),
    "ln_tuning": frozenset({"ln_tuning_layers.weight"}),
}
_OPTIONAL: Mapping[str, frozenset[str]] = {
    "lora": frozenset({"lora_B.bias", "lora_magnitude_vector"}),
    "ln_tuning": frozenset({"ln_tuning_layers.bias"}),
}

_PREFIXES = {"lora": "lora_", "ia3": "ia3_", "ln_tuning": "ln_tuning_layers"}


@dataclass(frozen=True)
class Sorted:
    """The keys of tensors by module path, as PEFT has it behind `base_model.model.`, and by their name there.

    `adapted` are matrices or vectors beside modules, such as `lora_A.weight` [r, in], `lora_B.weight` [out, r] and
    perhaps `lora_B.bias` [out], or `ia3_l` [out, 1] or [1, in]. `saved` are the `weight` and `bias` of modules that
    were trained as a whole, `biases` those of the base itself that were trained. `kept` are weights of the base that
    PEFT saves along with a change of the language head. `own` lie at no module: they are the whole adapter's.
    """

    adapted: dict[str, dict[str, str]] = field(default_factory=dict)
    saved: dict[str, dict[str, str]] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)


def sort_tensors(mapped: TensorMap, options: Options, where: object) -> Sorted:
    """Sort tensors by their keys; those of a `method` count as used once its formula reads them.

    An AdapterError lists all that cannot be expressed, a TensorError all that are missing, left over or not finite.
    """
    if options.method is None:
        _check_expressible(mapped.tensors, where)
    found = Sorted()
    for key in mapped.tensors:
        if ".original_module." in key:
            mapped.forget([key])
        elif _put(key, options, found) and options.method is None:
            mapped.tensor(key)
    saved = (key for roles in found.saved.values() for key in roles.values())
    for key in [*saved, *found.biases.values(), *found.kept.values()]:
        mapped.tensor(key)
    for path, roles in found.adapted.items():
        for role in sorted(_NEEDED.get(options.kind, frozenset()) - roles.keys()):
            mapped.fault(f"`{_PREFIX}{path}.{role}` is missing")
    if not found.adapted:
        what = "the file holds what all layers share, and nothing of any layer: save it again with its indices"
        mapped.fault(what if found.own else f"no {options.kind} tensor is there")
    if options.method is None or not found.adapted:
        mapped.check()
    return found


def _check_expressible(tensors: Tensors, where: object) -> None:
    words = {key: next((word for word in TENSORS if word in key.split(".")), None) for key in tensors}
    faults = [f"`{key}`: {TENSORS[word]}" for key, word in words.items() if word is not None]
    faults += [
        f"`{key}` {list(tensor.shape)}: it belongs to a convolution, which has no site"
        for key, tensor in tensors.items()
        if ".lora_" in key and tensor.ndim > 2
    ]
    if faults:
        raise AdapterError(
            "has tensors that cannot be expressed",
            where=where,
            found="; ".join(faults),
            expected="tensors at linear layers",
            fix="train it at linear layers only",
        )


def _put(key: str, options: Options, found: Sorted) -> bool:
    """Put one key where it belongs; whether it belongs anywhere."""
    name = key.removeprefix(_PREFIX)
    for wrapper in _WRAPPED:
        name = name.replace(wrapper, ".")
    prefix = _PREFIXES[options.kind] if options.method is None else options.method.prefix
    if not key.startswith(_PREFIX):
        own = key.removeprefix(_ROOT)
        if options.method is None or own == key or not re.match(prefix, own):
            return False
        found.own[own] = key
        return True
    parsed = re.fullmatch(rf"(?P<path>.+?)\.(?P<role>(?:{prefix})\w*(?:\.\w+)*|weight|bias)", name)
    if parsed is None:
        return False
    path, role = parsed["path"], parsed["role"]
    allowed = _NEEDED.get(options.kind, frozenset()) | _OPTIONAL.get(options.kind, frozenset())
    if role in allowed or (options.method is not None and role not in ("weight", "bias")):
        found.adapted.setdefault(path, {})[role] = key
    elif role in ("weight", "bias") and _is_saved(path, options):
        found.saved.setdefault(path, {})[role] = key
    elif key.endswith(".base_layer.weight"):
        found.kept[path] = key
    elif role == "bias" and options.bias != "none":
        found.biases[path] = key
    else:
        return False
    return True


def _is_saved(path: str, options: Options) -> bool:
    """Return whether the module, or one that contains it, was trained as a whole.

    PEFT matches the bare ends of paths (`peft.utils.other._set_trainable`): `classifier` saves `pre_classifier`, too.
    """
    names = path.split(".")
    return any(".".join(names[:count]).endswith(options.saved) for count in range(1, len(names) + 1))

"""Folder of a PEFT adapter: `adapter_config.json` and tensors of modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from adapter_export.bases.base_view import ReadPickle
from adapter_export.errors import AdapterError, FileError
from adapter_export.plugins.formats.importers.peft.peft_options import TENSORS, Options, is_off, read_options
from adapter_export.plugins.formats.importers.tensor_map import TensorMap, Tensors, read_file
from adapter_export.safe_io.documents import read_json
from adapter_export.words import argument, quoted

CONFIG_FILE = "adapter_config.json"
TENSOR_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Possible files of the tensors; the first that exists is read."""

_WHOLE_MODELS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class PeftFolder:
    """A PEFT folder: config without options that are off, parsed options, and tensors by PEFT's keys."""

    path: Path
    config: Mapping[str, Any]
    options: Options
    tensors: Tensors


def read_folder(folder: Path, name: str | None = None, read_pickle: ReadPickle | None = None) -> PeftFolder:
    """Read an adapter's folder, or the adapter `name` in a folder of several."""
    path = adapter_in(folder, name)
    return parse_folder(path, read_json(path / CONFIG_FILE), partial(read_peft_tensors, path, read_pickle))


def parse_folder(path: Path, document: Any, tensors: Callable[[], Tensors]) -> PeftFolder:
    """Parse the config of a folder, then read its tensors, which may be large."""
    options = read_options(document, path / CONFIG_FILE)
    config = {key: value for key, value in document.items() if not is_off(value)}
    return PeftFolder(path, config, options, tensors())


def read_peft_tensors(path: Path, read_pickle: ReadPickle | None = None) -> Tensors:
    """Read the tensors of an adapter's folder."""
    files = [path / name for name in TENSOR_FILES if (path / name).is_file()]
    if not files:
        raise FileError(
            "has no tensors",
            where=path,
            expected=" or ".join(f"`{name}`" for name in TENSOR_FILES),
            fix="copy both files of the adapter",
        )
    return read_file(files[0], read_pickle)


def adapter_in(folder: Path, name: str | None = None) -> Path:
    """Return the folder of an adapter, or of the adapter `name` in a folder of several."""
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
        instead = "a whole model, possibly with a merged adapter, which is a base"
    else:
        instead = f"no `{CONFIG_FILE}`"
    several = "select one of them with " + argument("member", option="name")
    raise FileError(
        "is not the folder of a PEFT adapter",
        where=folder,
        found=instead,
        expected=f"a folder with `{CONFIG_FILE}` and `{TENSOR_FILES[0]}`",
        fix=several if inside else "pass the folder written by PEFT's `save_pretrained`",
    )


_PREFIX = "base_model.model."
_WRAPPED = (".modules_to_save.", ".base_layer.", ".token_adapter.")
"""Names of PEFT's module wrappers, which some versions keep in keys."""

_ROOT = "base_model."
"""Prefix of tensors outside of adapted modules."""

_NEEDED: Mapping[str, frozenset[str]] = {
    "lora": frozenset({"lora_A.weight", "lora_B.weight"}),
    "ia3": frozenset({"ia3_l"}),
    "ln_tuning": frozenset({"ln_tuning_layers.weight"}),
}
_OPTIONAL: Mapping[str, frozenset[str]] = {
    "lora": frozenset({"lora_B.bias", "lora_magnitude_vector"}),
    "ln_tuning": frozenset({"ln_tuning_layers.bias"}),
}

EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
"""Tensors of LoRA on an embedding, [r, tokens] and [width, r]."""

TRAINED_ROWS = "trainable_tokens_delta"
"""Tensor of trained rows of an embedding, [n, width], which replace those of the base."""

_OF_EMBEDDINGS = {EMBEDDING_A, EMBEDDING_B, TRAINED_ROWS}

_PREFIXES = {"trainable_tokens": TRAINED_ROWS, "lora": "lora_", "ia3": "ia3_", "ln_tuning": "ln_tuning_layers"}


@dataclass(frozen=True)
class Sorted:
    """Tensor keys by module path, without PEFT's prefix `base_model.model.`, and by name in the module.

    `adapted` are tensors of adapted modules, such as `lora_A.weight` [r, in], `lora_B.weight` [out, r] and optional
    `lora_B.bias` [out], or `ia3_l` [out, 1] or [1, in]. `saved` are `weight` and `bias` of fully trained modules,
    `biases` trained biases of the base. `base_weights` are weights of the base that PEFT saves with a change of the
    language head. `shared` belong to the whole adapter. `embeddings` are tensors of changed embeddings.
    """

    adapted: dict[str, dict[str, str]] = field(default_factory=dict)
    saved: dict[str, dict[str, str]] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    base_weights: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def changed(self) -> list[str]:
        """Paths of the adapted modules, embeddings included."""
        return [*self.adapted, *self.embeddings]


def sort_tensors(mapped: TensorMap, options: Options, where: object) -> Sorted:
    """Sort tensors by key; those of a `method` are marked as used when its formula reads them.

    Raises AdapterError, listing tensors that cannot be expressed, or TensorError, listing missing, unused and
    non-finite tensors.
    """
    if options.method is None:
        _check_expressible(mapped.tensors, where)
    sorted_keys = Sorted()
    for key in mapped.tensors:
        if ".original_module." in key:
            mapped.forget([key])
        elif _put(key, options, sorted_keys) and options.method is None:
            mapped.tensor(key)
    saved = (key for roles in sorted_keys.saved.values() for key in roles.values())
    for key in [*saved, *sorted_keys.biases.values(), *sorted_keys.base_weights.values()]:
        mapped.tensor(key)
    for path in sorted_keys.embeddings.keys() & sorted_keys.adapted.keys():
        sorted_keys.embeddings[path] |= sorted_keys.adapted.pop(path)
    for path, roles in sorted_keys.adapted.items():
        for role in sorted(_NEEDED.get(options.kind, frozenset()) - roles.keys()):
            mapped.fault(f"`{_PREFIX}{path}.{role}` is missing")
    if not sorted_keys.changed:
        what = "the file contains only shared tensors and none of a layer: save it again with its indices"
        mapped.fault(what if sorted_keys.shared else f"there is no {options.kind} tensor")
    if options.method is None or not sorted_keys.changed:
        mapped.check()
    return sorted_keys


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


def _put(key: str, options: Options, sorted_keys: Sorted) -> bool:
    """Sort one key; return whether it is known."""
    name = key.removeprefix(_PREFIX)
    for wrapper in _WRAPPED:
        name = name.replace(wrapper, ".")
    prefix = _PREFIXES[options.kind] if options.method is None else options.method.prefix
    if not key.startswith(_PREFIX):
        root_name = key.removeprefix(_ROOT)
        if options.method is None or root_name == key or not re.match(prefix, root_name):
            return False
        sorted_keys.shared[root_name] = key
        return True
    parsed = re.fullmatch(rf"(?P<path>.+?)\.(?P<role>(?:{prefix})\w*(?:\.\w+)*|{TRAINED_ROWS}|weight|bias)", name)
    if parsed is None:
        return False
    path, role = parsed["path"], parsed["role"]
    allowed = _NEEDED.get(options.kind, frozenset()) | _OPTIONAL.get(options.kind, frozenset())
    if role in _OF_EMBEDDINGS and options.method is None:
        sorted_keys.embeddings.setdefault(path, {})[role] = key
    elif role in allowed or (options.method is not None and role not in ("weight", "bias")):
        sorted_keys.adapted.setdefault(path, {})[role] = key
    elif role in ("weight", "bias") and _is_saved(path, options):
        sorted_keys.saved.setdefault(path, {})[role] = key
    elif key.endswith(".base_layer.weight"):
        sorted_keys.base_weights[path] = key
    elif role == "bias" and options.bias != "none":
        sorted_keys.biases[path] = key
    else:
        return False
    return True


def _is_saved(path: str, options: Options) -> bool:
    """Return whether the module, or a parent, was fully trained.

    PEFT matches path suffixes (`peft.utils.other._set_trainable`): `classifier` also saves `pre_classifier`.
    """
    names = path.split(".")
    return any(".".join(names[:count]).endswith(options.saved) for count in range(1, len(names) + 1))

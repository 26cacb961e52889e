"""Weights of a Hugging Face folder, one tensor at a time, by their names in the model of its class.

`from_pretrained` would hold a second copy of the weights. Files whose names are those of the class are read in place.
Others, which transformers renames, splits or fuses when it loads them, are written again by transformers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adapter_export.errors import BaseModelError, FormatError
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import open_regular
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.torch_backend.base.folder_size import bounded_model
from adapter_export.torch_backend.base.huggingface_folder import (
    changed_folder,
    named_class,
    one_choice,
    pretrained,
    quiet_transformers,
)
from adapter_export.torch_backend.base.log_capture import captured_logs
from adapter_export.torch_backend.base.sentences.sentence_folder import read_sentence_folder
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.words import quoted

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights by safetensors' names; quantized ones are no weights of a fine-tuned model."""

_CHOICES = "ForMultipleChoice"
"""End of the names of classes whose inputs have an axis of choices."""

_INTEGERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")

Outputs = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file: its name there, its shape, and its type as safetensors writes it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of transformers whose tensors are read one by one.

    Attributes:
        path: the folder.
        name: its class.
        config: its `config.json`.
        stored: tensors that the class reads, by name in its model; of tied tensors one.
        tied: names of further tensors in the model, by the name of the stored tensor that they share.
        unread: tensors of the files that the class does not read.
        dtype: type of most of its floating-point weights, by torch's name.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    stored: Mapping[str, StoredTensor]
    tied: Mapping[str, Sequence[str]]
    unread: tuple[str, ...]
    dtype: str

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, tied ones by all of their names."""
        shapes = {name: tensor.shape for name, tensor in self.stored.items()}
        return shapes | {other: shapes[name] for name, others in self.tied.items() for other in others}

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor; floating-point numbers become float32."""
        stored = self._stored(name)
        with _opened(stored.path) as file:
            tensor: Tensor = file.get_tensor(stored.name)
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    def rounded(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return float32 numbers after a rounding to the type in which the folder stores a tensor."""
        kind = _FLOATS.get(self._stored(name).dtype)
        return values if kind is None else torch.from_numpy(np.ascontiguousarray(values)).to(kind).float().numpy()

    def unit(self, name: str) -> float:
        """Return the largest relative error of rounding to the type of a tensor, at most that of float32."""
        kind = _FLOATS.get(self._stored(name).dtype, torch.float32)
        return max(torch.finfo(kind).eps, torch.finfo(torch.float32).eps) / 2

    def _stored(self, name: str) -> StoredTensor:
        found = self.stored.get(name)
        return found or next(self.stored[kept] for kept, others in self.tied.items() if name in others)


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[CheckpointFolder]:
    """Open a folder for reading its tensors; temporary files, if any, are deleted after the block.

    The folder is one of transformers, or one of sentence-transformers with its model.

    Raises:
        FileError, BaseModelError: the folder is incomplete, its class is unknown, or it lacks weights of its class.
        FormatError: a file of weights is invalid.
    """
    sentences = read_sentence_folder(folder)
    folder = folder if sentences is None else sentences.model
    kind, files = named_class(folder), _stored_in(_weight_files(folder))
    config: Any = read_json(folder / "config.json")
    known, groups = _model_tensors(folder, kind)
    names = {group[0]: group for group in groups}
    present = {name: next((each for each in group if each in files), None) for name, group in names.items()}
    direct = all(each is not None and files[each].shape == known[each] for each in present.values())
    dtype = Counter(tensor.dtype for tensor in files.values() if tensor.dtype in _FLOATS).most_common(1)
    if not dtype:
        raise BaseModelError("has no floating-point weights", where=folder)
    described = str(_FLOATS[dtype[0][0]]).removeprefix("torch.")
    if direct:
        stored = {each: files[each] for each in present.values() if each is not None}
        tied = {each: tuple(n for n in names[name] if n != each) for name, each in present.items() if each is not None}
        unread = tuple(name for name in files if name not in known)
        yield CheckpointFolder(folder, kind.__name__, config, stored, tied, unread, described)
        return
    with temporary_folder() as temporary:
        stored, unread = _written_again(folder, kind, [group[0] for group in groups], dtype[0][0], temporary)
        tied = {name: tuple(group[1:]) for name, group in names.items()}
        yield CheckpointFolder(folder, kind.__name__, config, stored, tied, unread, described)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of weights, one or the shards of an index."""
    if (folder / _FILE).is_file():
        return [folder / _FILE]
    index: Any = read_json(folder / _INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    names = dict.fromkeys(shards.values()) if isinstance(shards, dict) else {}
    wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if not names or wrong:
        raise FormatError(
            "is not an index of shards",
            where=folder / _INDEX,
            found=f"{wrong[0]!a}" if wrong else "no `weight_map`",
            expected="names of files in the folder",
            fix="get the folder from its source again",
        )
    return [folder / name for name in names]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Map a safetensors file; a file that is not regular, or broken, is refused."""
    with open_regular(path):
        pass
    with parsing(partial(_unreadable, path)), safe_open(path, framework="pt") as file:
        yield file


def _stored_in(paths: Sequence[Path]) -> dict[str, StoredTensor]:
    """Return the tensors in the headers of files."""
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        with _opened(path) as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 a file is no mapping
            records = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
        for name, (shape, dtype) in records.items():
            if dtype not in (*_FLOATS, *_INTEGERS):
                raise BaseModelError(
                    "has weights in a type that no adapter expresses",
                    where=path,
                    found=f"`{name}` in {dtype}",
                    expected=", ".join(_FLOATS),
                    fix="save the model in float32, float16 or bfloat16",
                )
            stored[name] = StoredTensor(path, name, shape, dtype)
    return stored


def _model_tensors(folder: Path, kind: Any) -> tuple[dict[str, tuple[int, ...]], list[list[str]]]:
    """Return the shapes of the tensors in a model of a class by name, and names that share a tensor."""
    with captured_logs(), quiet_transformers(), bounded_model(folder), parsing(partial(_not_made, folder)):
        config = kind.config_class.from_pretrained(str(folder), local_files_only=True)
        with torch.device("meta"):
            model: nn.Module = kind(config)
        model.tie_weights()  # type: ignore[operator]
        state = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        groups.setdefault(id(value), []).append(name)
    return {name: tuple(value.shape) for name, value in state.items()}, list(groups.values())


def _written_again(
    folder: Path, kind: Any, names: Sequence[str], dtype: str, temporary: Path
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Write the tensors as transformers loads them, in their type; return them and the names of unread ones."""
    model, info = pretrained(folder, kind)
    missing = [name for name in names if name in info["missing_keys"]]
    if missing:
        raise BaseModelError(
            "lacks weights of its class, which would be random",
            where=folder,
            found=quoted(missing[:3]) + (f" and {len(missing) - 3} more" * (len(missing) > 3)),
            expected=f"all weights of `{kind.__name__}`",
            fix="save the trained model again with `model.save_pretrained(folder)`",
        )
    state, path = model.state_dict(), temporary / _FILE
    narrow = {
        name: state[name].to(_FLOATS[dtype]) if state[name].is_floating_point() else state[name] for name in names
    }
    save_file({name: tensor.contiguous() for name, tensor in narrow.items()}, path)
    return _stored_in([path]), tuple(sorted(info["unexpected_keys"]))


class LibraryModel:
    """The folder's model in transformers, with inputs and outputs of a base; its weights can be replaced.

    Args:
        folder: the folder.
        base: the base.
        head: suffixes of classes with the adapter's head, and its number of results; `None` without a head.
    """

    def __init__(self, folder: Path, base: TorchBase, head: tuple[Sequence[str], int] | None) -> None:
        models: list[nn.Module] = []
        self.run: Outputs = changed_folder(folder, base, models.append, head)
        (self._model,) = models
        if head is not None and _CHOICES in head[0]:
            self._model.register_forward_pre_hook(one_choice, with_kwargs=True)

    def replace(self, value: Callable[[str], np.ndarray | None]) -> None:
        """Replace each floating-point tensor for which `value` returns an array; names are those of the model."""
        with torch.no_grad():
            for name, tensor in self._model.state_dict().items():
                array = value(name) if tensor.is_floating_point() else None
                if array is not None:
                    tensor.copy_(torch.from_numpy(np.ascontiguousarray(array, np.float32)))


def _unreadable(path: Path, reason: str) -> FormatError:
    return FormatError(
        "is not a valid safetensors file", where=path, found=reason, fix="get the file from its source again"
    )


def _not_made(folder: Path, reason: str) -> BaseModelError:
    return BaseModelError(
        "transformers cannot make the model of the folder",
        where=folder,
        found=reason,
        expected="an architecture that the installed transformers supports",
        fix="copy the folder again completely, or upgrade transformers",
    )

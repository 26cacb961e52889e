"""Detect the form of a base from the contents of files and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from adapter_export.errors import BaseModelError, FileError
from adapter_export.safe_io.regular_files import open_regular
from adapter_export.words import command

Form = Literal["archive", "folder", "onnx", "genai"]
"""Torch archive, Hugging Face folder, ONNX file, or onnxruntime-genai folder."""

FORM_NAMES: dict[Form, str] = {
    "archive": "torch archive",
    "folder": "Hugging Face folder",
    "onnx": "ONNX graph",
    "genai": "onnxruntime-genai folder",
}

_FORMS = "a torch archive (`.pt`, `.pt2`), a Hugging Face folder, an ONNX file or an onnxruntime-genai folder"
_GENAI_CONFIG = "genai_config.json"
_PICKLE = "a pickle, which could run code when loaded"
_NOT_MODELS = {
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), _PICKLE),
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file, such as a Keras model; `tf2onnx` converts Keras models",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it points to",
}
_ONNX_STARTS = b"\x08\x12\x1a\x22\x28\x32\x3a\x42\x72"
"""Tags of fields 1 to 8 and 14 of `ModelProto`: a file begins with its first field, usually `ir_version`."""
_FLATBUFFERS = {
    b"ORTM": "a model in ONNX Runtime's own format (`.ort`), which cannot have slots; use the original `.onnx` file",
    b"TFL3": "a TensorFlow Lite model; `tf2onnx` converts it",
}


def form_of(path: Path) -> Form:
    """Return the form of a path, by its contents and not its name; `BaseModelError` if it is not a base."""
    if path.is_dir():
        others = {"manifest.json": "a bundle", "adapter_graph.json": "an adapter"}
        clue = next((f"{name}: its `{file}` is there" for file, name in others.items() if (path / file).is_file()), "")
        if not clue and (path / _GENAI_CONFIG).is_file():  # check last: bundles of such folders contain this file, too
            return "genai"
        if any((path / name).is_file() for name in ("config.json", "modules.json")):
            return "folder"
        raise _not_a_base(path, clue or f"a folder without `config.json` or `{_GENAI_CONFIG}`")
    if not path.exists():
        raise FileError("does not exist", where=path, expected=_FORMS, fix="check the path for typos")
    with open_regular(path) as file:
        start = file.read(32)
    if start.startswith(b"PK"):
        return "archive"
    # protobuf has no magic number: any other file that starts with a field tag of a model is tried as ONNX
    text = start.isascii() and all(one.isprintable() or one in "\t\r\n" for one in start.decode("ascii"))
    other = (
        "a text file" if text else None if start[:1] in _ONNX_STARTS else f"a file starting with `{start[:8].hex(' ')}`"
    )
    other = next((name for mark, name in _NOT_MODELS.items() if start.startswith(mark)), other)
    other = _FLATBUFFERS.get(start[4:8], other)
    if start[8:].startswith(b"{"):
        other = "a safetensors file: weights without a model"
    if not start:
        other = "an empty file"
    if other is not None:
        raise _not_a_base(path, other)
    return "onnx"


def _not_a_base(path: Path, clue: str) -> BaseModelError:
    capture_it = command('capture(HF_FOLDER, "model.pt")', "capture HF_FOLDER -o model.pt")
    fix = "run " + capture_it + ", or save a torch module with `ae.capture`"
    if clue == _PICKLE:
        call = f'capture({str(path)!r}, "model.pt", trust_pickle=True)'
        trust = command(call, f"capture --trust-pickle {path} -o model.pt")
        once = "run " + trust + ", which runs its code once, and use `model.pt`, which contains no code"
        fix = "only if you trust its author, " + once
    return BaseModelError(
        "is not a model that can be opened",
        where=path,
        found=clue,
        expected=_FORMS,
        fix=fix,
    )

"""Files of others come in by one door: what opens them and what parses them, found in the source of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "adapter_export"

OPENING = {
    *("open", "Path.open", "read_bytes", "read_text", "os.open", "io.open", "fromfile", "memmap", "open_memmap"),
    *("onnx.load", "ir.load", "safe_open", "load_file", "from_file"),
}
"""Calls that open a file by its name."""

PARSING = {
    *("json.loads", "json.load", "np.load", "torch.load", "export.load", "from_pretrained", "deserialize"),
    *("from_str", "FromString", "ParseFromString", "from_proto", "wave.open", "image_of.open", "Image.open"),
    *("zipfile.ZipFile", "ort.InferenceSession", "AdapterFormat.read_adapter", "GetVectorAsNumpy"),
}
"""Calls of parsers, on bytes or on folders."""

_LAST = {name.rpartition(".")[2] for name in OPENING | PARSING}

FREE = {
    "safe_io/": "the door",
    "safe_io/output.py": "writes, and syncs what it wrote",
    "plugins/selftest/": "plants faults in copies of the user's own bundle",
    "bundle/proof/runtimes.py": "reads what its own program wrote, under another Python",
    "plugins/ship/files/": "programs for other environments, which the tool copies",
    "plugins/ship/layout.py": "files of the package itself",
    "plugins/serve/apis/front_page.py::__init__": "a page of the package itself",
    "plugins/serve/worker.py::of": "a line of the process that started it",
    "plugins/serve/worker.py::_listen": "lines of the process that started it",
    "plugins/serve/workers.py::_listen": "lines of a process that it started",
    "onnx_backend/base/external.py::_checkable": "a graph that was written a moment ago",
    "onnx_backend/quantise/": "graphs that quantisers and optimisers made in this process",
    "onnx_backend/base/normalise.py::_is_there": "opens a graph of one node, which it makes",
    "onnx_backend/base/normalise.py::_converted": "a graph that ONNX's converter made, with handlers of its own",
    "runtime/arena.py::_identity": "a graph of one node, which is part of the package",
    "runtime/bundle.py::__init__": "locks a folder that it made",
    "runtime/bundle.py::_remove_abandoned": "locks a folder that another process of ours made",
    "runtime/adapter_file.py::_parameter": "is called in a block of `parsing`",
    "torch_backend/checkpoint_folder.py::_opened": "maps a regular file, in a block of `parsing`",
    "torch_backend/processors/": "is called in blocks of `parsing`",
    "torch_backend/base/archive.py::stored_weights": "maps entries of a screened archive into memory",
    "torch_backend/peft_model.py::load": "a folder that `export` wrote; errors are caught where it is called",
    "torch_backend/base/pickles.py::foreign_globals": "a screen that answers with `ValueError`",
    "torch_backend/base/pickles.py::_pickles": "is called in a block of `parsing`",
    "torch_backend/base/program_file.py": "screens that answer yes or no",
}
"""Where a call may stand elsewhere, and why."""


def _calls(tree: ast.AST, function: str = "", guarded: bool = False) -> Iterator[tuple[ast.Call, str, bool]]:
    """Return all calls with the name of their function, and whether they are in a block of `parsing`."""
    for node in ast.iter_child_nodes(tree):
        inside, name = guarded, function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name
        if isinstance(node, ast.With):
            inside = guarded or any(
                isinstance(item.context_expr, ast.Call) and ast.unparse(item.context_expr.func) == "parsing"
                for item in node.items
            )
        if isinstance(node, ast.Call):
            yield node, name, inside
        yield from _calls(node, name, inside)


def _is(function: str, names: set[str]) -> bool:
    return any(function == name or function.endswith(f".{name}") for name in names)


def _writes(call: ast.Call) -> bool:
    words = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(isinstance(word, ast.Constant) and word.value in ("w", "wb", "a", "x") for word in words)


def _faults(source: str, place: str) -> Iterator[str]:
    if place.startswith(tuple(FREE)):
        return
    for call, function, guarded in _calls(ast.parse(source)):
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if (method or getattr(call.func, "id", "")) not in _LAST or f"{place}::{function}" in FREE or _writes(call):
            continue
        called, text = ast.unparse(call.func), ast.unparse(call)
        words = [*call.args, *(keyword.value for keyword in call.keywords)]
        reads = any(
            isinstance(word, ast.Constant) and isinstance(word.value, str) and word.value.startswith("r")
            for word in words
        )
        opens = (
            _is(called, OPENING - {"open", "read_bytes", "read_text"})
            or called == "open"
            or method in ("read_bytes", "read_text")
            or (method == "open" and reads)
        )
        if opens:
            yield f"{place}:{call.lineno} opens a file itself: {text}"
        if _is(called, PARSING) and not guarded and "json.dumps" not in text:
            yield f"{place}:{call.lineno} parses outside of `parsing`: {text}"


def test_files_are_opened_and_parsed_through_the_door_only() -> None:
    found = [
        fault
        for path in sorted(PACKAGE.rglob("*.py"))
        for fault in _faults(path.read_text(), path.relative_to(PACKAGE).as_posix())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "path.open('rb')",
        "path.read_bytes()",
        "path.read_text(encoding='utf-8')",
        "np.load(path)",
        "onnx.load(path)",
        "ir.load(path)",
        "json.loads(text)",
        "json.load(file)",
        "torch.load(path, weights_only=True)",
        "safe_open(path, framework='np')",
        "tokenizers.Tokenizer.from_file(path)",
        "ort.InferenceSession(path)",
        "zipfile.ZipFile(path)",
    ],
)
def test_a_way_beside_the_door_is_seen(line: str) -> None:
    assert list(_faults(f"def read(path):\n    return {line}\n", "cli/new.py"))

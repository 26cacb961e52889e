"""Entry points that are programs: clients in Node, Python, the browser and C++, the C interface, plain ONNX Runtime."""

from __future__ import annotations

import ctypes as c
import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from asked_bundles import Bundle
from asking import Document, EntryPoint, RefusedError, context_of, length, shape, stacked, together, weighing
from clients import Client, last_line
from oracle import Row, answer
from transformers_js import TransformersJs


def _run(client: Client, bundle: Bundle, *words: str | Path) -> list[Document]:
    done = client.call("run", bundle.folder, *words)
    if done.returncode:
        raise RefusedError(last_line(done))
    found = json.loads(done.stdout)
    return found["rows"] if isinstance(found, dict) else found  # type: ignore[no-any-return]


def _choice(rows: Sequence[Row]) -> list[str]:
    """The options of a call: an adapter and a strength for each row, and the weights of all."""
    if rows[0].weights is not None:
        weights = ",".join(f"{name}={weight:g}" for name, weight in rows[0].weights.items())
        return ["--adapter", str(rows[0].adapter), "--weights", weights]
    words = [word for row in rows for word in ("--adapter", row.adapter or "-")]
    if any(row.strength != 1 for row in rows):
        words += [word for row in rows for word in ("--strength", f"{row.strength:g}")]
    return words


def texts(bundle: Bundle, rows: Sequence[Row], client: Client) -> Sequence[Document]:
    """`run --text`."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        words = []
        for row in some:
            first = row.pieces[0]
            words += ["--text", first if isinstance(first, str) else first[0]]
            words += [word for piece in row.pieces if not isinstance(piece, str) for word in ("--pair", piece[1])]
        return _run(client, bundle, *words, *_choice(some))

    return together(rows, weighing, ask)


def inputs(bundle: Bundle, rows: Sequence[Row], client: Client) -> Sequence[Document]:
    """`run --inputs` on padded arrays."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        arrays = stacked(bundle, some)
        width = arrays["input_ids"].shape[1]
        contexts = [context_of(bundle, row, width) for row in some]
        words = [word for one in contexts if one for word in ("--context", ",".join(map(str, one)))]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "inputs.json")
            path.write_text(json.dumps({name: array.tolist() for name, array in arrays.items()}))
            return _run(client, bundle, "--inputs", path, *words, *_choice(some))

    return together(rows, lambda row: (weighing(row), length(bundle, row), context_of(bundle, row) is None), ask)


def ids(bundle: Bundle, rows: Sequence[Row], client: Client) -> Sequence[Document]:
    """`run --ids`, of a client without a tokenizer."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        words: list[str] = []
        for row in some:
            encoding = bundle.oracle.tokens(row)[0].encoding
            words += ["--ids", ",".join(map(str, encoding.ids))]
            if "token_type_ids" in bundle.oracle.inputs:
                words += ["--types", ",".join(map(str, encoding.type_ids))]
            context = context_of(bundle, row)
            if context is not None:
                words += ["--context", ",".join(map(str, context[: len(encoding.ids)]))]
        return _run(client, bundle, *words, *_choice(some))

    return together(rows, lambda row: (weighing(row), context_of(bundle, row) is None), ask)


@cache
def _plain(folder: Path, program: Path) -> tuple[dict[str, Any], Any]:
    import runpy

    found = runpy.run_path(str(program))
    return found, found["PlainBundle"](folder)


def plain(bundle: Bundle, rows: Sequence[Row], program: Path) -> Sequence[Document]:
    """The functions of `plain_onnxruntime.py`, row by row; results become answers as the oracle's do."""
    found = []
    try:
        called, opened = _plain(bundle.folder, program)
        for row in rows:
            record = next(one for one in bundle.manifest["adapters"] if one["name"] == row.adapter)
            arrays = called["tokenize"](opened, row.asked, record["task"])
            result = opened.run(arrays, row.adapter)[record["output"]][0]
            recipe = bundle.oracle.recipes[str(row.adapter)]
            (tokens,) = bundle.oracle.tokens(row)
            said = answer(recipe.task, result, tokens, row.asked).document
            cut = {"cut": tokens.cut} if tokens.cut else {}  # it does not report the adapter
            found.append({"adapter": row.adapter, "task": recipe.task["type"], **said, **cut})
    except SystemExit as ended:
        raise RefusedError(str(ended)) from ended
    return found


def plain_rows(bundle: Bundle, row: Row) -> bool:
    """Return whether the example supports a row: a text that an adapter classifies."""
    recipe = bundle.oracle.recipe(row)
    plain_row = row.adapter is not None and row.strength == 1 and row.weights is None
    return plain_row and recipe is not None and recipe.task["type"] == "single_label" and shape(row) == "text"


class _Array(c.Structure):
    _fields_ = (
        ("name", c.c_char_p),
        ("dtype", c.c_char_p),
        ("shape", c.POINTER(c.c_int64)),
        ("rank", c.c_size_t),
        ("data", c.c_void_p),
        ("bytes", c.c_size_t),
    )


class _Weight(c.Structure):
    _fields_ = (("member", c.c_char_p), ("weight", c.c_double))


class _Row(c.Structure):
    _fields_ = (
        ("inputs", c.POINTER(_Array)),
        ("input_count", c.c_size_t),
        ("adapter", c.c_char_p),
        ("strength", c.c_double),
        ("weights", c.POINTER(_Weight)),
        ("weight_count", c.c_size_t),
        ("context", c.POINTER(c.c_uint8)),
        ("context_size", c.c_size_t),
    )


class CLibrary:
    """`libadapter_export_c`, called as `adapter_export.h` says."""

    def __init__(self, path: Path) -> None:
        self._library = c.CDLL(str(path))
        self._library.ae_result_rows.restype = c.c_size_t
        self._bundles: dict[Path, c.c_void_p] = {}

    def answers(self, folder: Path, rows: Sequence[_Row]) -> list[Document]:
        if folder not in self._bundles:
            opened = c.c_void_p()
            self._call("ae_open", str(folder).encode(), c.c_int32(1), c.c_uint64(0), c.byref(opened))
            self._bundles[folder] = opened
        result = c.c_void_p()
        self._call("ae_run", self._bundles[folder], (_Row * len(rows))(*rows), c.c_size_t(len(rows)), c.byref(result))
        try:
            return [self._answer(result, at) for at in range(self._library.ae_result_rows(result))]
        finally:
            self._library.ae_result_free(result)

    def close(self) -> None:
        for opened in self._bundles.values():
            self._library.ae_close(opened)

    def _answer(self, result: c.c_void_p, at: int) -> Document:
        text = c.c_void_p()
        self._call("ae_result_answer", result, c.c_size_t(at), c.byref(text))
        return json.loads(self._taken(text) or "{}")  # type: ignore[no-any-return]

    def _call(self, name: str, *given: Any) -> None:
        error = c.c_void_p()
        if getattr(self._library, name)(*given, c.byref(error)):
            raise RefusedError(self._taken(error))

    def _taken(self, text: c.c_void_p) -> str:
        """A text that was given back, which is freed."""
        found = "" if text.value is None else c.string_at(text.value).decode()
        self._library.ae_free(text)
        return found


def c_interface(bundle: Bundle, rows: Sequence[Row], library: CLibrary) -> Sequence[Document]:
    """`ae_run`."""
    given, kept = [], []  # C keeps no references
    for row in rows:
        arrays = bundle.arrays(row)
        own = []
        for name, array in arrays.items():
            dims = (c.c_int64 * 1)(array.shape[1])
            kept.append((dims, array))
            own.append(_Array(name.encode(), b"int64", dims, 1, array.ctypes.data, array.nbytes))
        weights = [_Weight(name.encode(), weight) for name, weight in (row.weights or {}).items()]
        context = context_of(bundle, row) or []
        one = _Row(
            (_Array * len(own))(*own), len(own), None if row.adapter is None else row.adapter.encode(), row.strength
        )
        one.weights, one.weight_count = (_Weight * len(weights))(*weights), len(weights)
        if context:
            one.context, one.context_size = (c.c_uint8 * len(context))(*context), len(context)
        given.append(one)
    return library.answers(bundle.folder, given)


def shipped(bundle: Bundle, rows: Sequence[Row], transformers_js: TransformersJs) -> Sequence[Document]:
    """The folder of `ship --layout transformers.js`, in Node."""
    try:
        return transformers_js.answer(bundle.folder, [{"text": row.asked, "adapter": row.adapter} for row in rows])
    except ValueError as error:
        raise RefusedError(str(error)) from error


def shipped_rows(bundle: Bundle, row: Row) -> bool:
    """A text for one of the tasks that the folder answers, of a bundle that the layout takes."""
    recipe = bundle.oracle.recipe(row)
    plain_row = row.adapter is not None and row.strength == 1 and row.weights is None
    answered = recipe is not None and recipe.task["type"] in _SHIPPED_TASKS and shape(row) == "text"
    return plain_row and answered and bundle.name not in _UNSHIPPED


_SHIPPED_TASKS = ("single_label", "multi_label", "embedding", "regression")
_UNSHIPPED = ("steps", "fixed length")
"""Bases that take some lengths, whose answers padding changes."""


CLIENTS = (
    EntryPoint("Node", texts, needs="node_client"),
    EntryPoint("Node, padded inputs", inputs, "arrays", needs="node_client"),
    EntryPoint("browser", texts, needs="browser_client"),
    EntryPoint("Python client", texts, needs="python_client"),
    EntryPoint("Python client, padded inputs", inputs, "arrays", needs="python_client"),
    EntryPoint("C++ --ids", ids, "arrays", needs="cpp_client"),
    EntryPoint("C++ --inputs, padded", inputs, "arrays", needs="cpp_client"),
    EntryPoint("C", c_interface, "arrays", needs="c_library"),
    EntryPoint("transformers.js", shipped, "text", shipped_rows, "transformers_js", tasks=_SHIPPED_TASKS),
    EntryPoint("plain_onnxruntime.py", plain, "text", plain_rows, "plain_program"),
)

"""The entry points that platforms load: the model of KServe and the deployment of Ray Serve, without their servers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from asked_bundles import Bundle
from asking import Document, EntryPoint, RefusedError, answer_of_result, length, shape, stacked, together, weighing
from oracle import Row
from service_entry_points import text_of

FILES = Path(__file__).parents[2] / "adapter_export" / "plugins" / "ship" / "files"


class Platform:
    """A process that answers calls as the class of a platform does."""

    def __init__(self, python: str, program: Path, environment: Mapping[str, str]) -> None:
        words = [python, Path(__file__).with_name("platform_calls.py"), program]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(words, text=True, env=environment, **pipes)

    def call(self, bundle: Bundle, adapter: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        call = {"bundle": str(bundle.folder), "adapter": adapter, "payload": payload}
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "error" in found:
            raise RefusedError(found["error"])
        return found

    def close(self) -> None:
        self._process.communicate()


def _one_adapter(row: Row) -> tuple[Any, ...]:
    return row.adapter, row.strength, weighing(row)


def _choice(row: Row) -> dict[str, Any]:
    strength = {} if row.strength == 1 else {"strength": row.strength}
    return strength | ({} if row.weights is None else {"weights": row.weights})


def _asking(name: str) -> Any:
    def entry(bundle: Bundle, rows: Sequence[Row], platform: Platform) -> Sequence[Document]:
        def ask(some: Sequence[Row]) -> Sequence[Document]:
            payload = {name: [text_of(row) for row in some], **_choice(some[0])}
            return platform.call(bundle, str(some[0].adapter), payload)["rows"]  # type: ignore[no-any-return]

        return together(rows, _one_adapter, ask)

    return entry


def _parameters(row: Row) -> dict[str, Any]:
    """Return the options of a request in v2, where weights are JSON text."""
    found = _choice(row)
    return found | ({"weights": json.dumps(found["weights"])} if "weights" in found else {})


def kserve_texts(bundle: Bundle, rows: Sequence[Row], platform: Platform) -> Sequence[Document]:
    """The protocol v2 with text."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        columns = {"text": [row.asked for row in some]}
        if shape(some[0]) == "pair":
            columns = {name: [row.asked[at] for row in some] for at, name in enumerate(("text", "pair"))}
        inputs = [(name, [len(some)], "BYTES", data) for name, data in columns.items()]
        payload = {"inputs": inputs, "parameters": _parameters(some[0])}
        return platform.call(bundle, str(some[0].adapter), payload)["rows"]  # type: ignore[no-any-return]

    return together(rows, lambda row: (shape(row), *_one_adapter(row)), ask)


def kserve_tensors(bundle: Bundle, rows: Sequence[Row], platform: Platform) -> Sequence[Document]:
    """The protocol v2 with padded tensors, whose results become answers as the oracle's do."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        arrays = stacked(bundle, some)
        inputs = [(name, list(array.shape), "INT64", array.ravel().tolist()) for name, array in arrays.items()]
        payload = {"inputs": inputs, "parameters": _parameters(some[0])}
        found = platform.call(bundle, str(some[0].adapter), payload)
        results = np.array(found["data"], np.float32).reshape(found["shape"])
        return [answer_of_result(bundle, row, result) for row, result in zip(some, results, strict=True)]

    return together(rows, lambda row: (*_one_adapter(row), length(bundle, row)), ask)


def of_adapter(bundle: Bundle, row: Row) -> bool:
    """Rows that name an adapter: each is a model of its own."""
    return row.adapter is not None


def of_adapter_without_choices(bundle: Bundle, row: Row) -> bool:
    """Return whether a tensor of texts can represent a row."""
    return row.adapter is not None and shape(row) != "choices"


PLATFORMS = (
    EntryPoint("KServe v1", _asking("instances"), "text", of_adapter, "kserve"),
    EntryPoint("KServe v2", kserve_texts, "text", of_adapter_without_choices, "kserve"),
    EntryPoint("KServe v2, padded tensors", kserve_tensors, "arrays", of_adapter, "kserve"),
    EntryPoint("Ray Serve", _asking("texts"), "text", of_adapter, "ray_serve"),
)

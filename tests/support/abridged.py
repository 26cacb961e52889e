"""Golden data with sketches of outputs and seeds of inputs, computed element by element in plain Python."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tampering import edit

Sketches = Mapping[str, Mapping[str, Any]]


def mix(x: int) -> int:
    """Hash a 32-bit unsigned integer; larger ones count modulo 2^32."""
    x %= 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def filled(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the float32 input that a seed and a shape describe."""
    numbers = [(mix(seed + at) >> 24) / 64 - 2 for at in range(math.prod(shape))]
    return np.array(numbers, np.float32).reshape(shape)


def sketch(value: np.ndarray, record: Mapping[str, Any]) -> np.ndarray:
    """Return the sketch of an output, number by number."""
    leading = value.shape[: record["axes"]]
    rows = value.astype(np.float64).reshape(math.prod(leading), -1).tolist()
    numbers = [_of_row(at, row, record) for at, row in enumerate(rows)]
    return np.array(numbers, np.float32).reshape(*leading, -1)


def _of_row(at: int, row: list[float], record: Mapping[str, Any]) -> list[float]:
    width, columns = len(row), record["columns"]
    numbers = sorted(row, reverse=True)[: record["largest"]]
    numbers += numbers[-1:] * (record["largest"] - len(numbers))
    numbers += [row[mix(at * columns + j) % width] for j in range(columns)]
    for t, modulus in enumerate(record["moduli"]):
        sums = [0.0] * modulus
        for c, number in enumerate(row):
            sums[c % modulus] += number * (-1 if mix(mix(t + 1) + c) >> 31 else 1)
        numbers += [total / (2 * math.sqrt(math.ceil(width / modulus))) for total in sums]
    return numbers


def unchanged(value: np.ndarray) -> np.ndarray:
    return value


def abridge(
    bundle: Path,
    sketches: Sketches,
    seeds: Mapping[str, int] | None = None,
    change: Callable[[np.ndarray], np.ndarray] = unchanged,
) -> None:
    """Replace outputs by sketches and inputs by fills in all golden vectors of a bundle.

    Args:
        bundle: its folder.
        sketches: record of the manifest per output.
        seeds: seed per input; the stored input must equal the fill.
        change: applied to each full output before it is sketched.
    """
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    for golden in (manifest["golden"], *(adapter["golden"] for adapter in manifest["adapters"])):
        for record in (golden, golden["parts"]):
            if record is not None:
                edit(bundle / record["path"], lambda tensors: _abridge(tensors, sketches, seeds or {}, change))
    edit_manifest(bundle, lambda document: document.update(sketches=sketches))


def _abridge(
    tensors: dict[str, np.ndarray],
    sketches: Sketches,
    seeds: Mapping[str, int],
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    for key, value in list(tensors.items()):
        case, what, name = key.split(".", 2)
        if what == "output" and name in sketches:
            tensors[key] = sketch(change(value), sketches[name])
        elif what == "input" and name in seeds:
            assert np.array_equal(value, filled(seeds[name], value.shape))
            del tensors[key]
            tensors[f"{case}.fill.{name}"] = np.array([seeds[name], *value.shape])


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
    """Change a manifest as JSON, and list its files with their present hashes."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_text("utf-8"))
    change(document)
    document.pop("checksum", None)
    for file in document["files"]:
        data = (bundle / file["path"]).read_bytes()
        file |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    path.write_text(json.dumps(document), "utf-8")

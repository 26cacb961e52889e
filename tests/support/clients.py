"""The programs in `examples/` that run a bundle, each called as its user would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from toolchain import skip_or_fail

EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENTS = ("cpp_client", "node_client", "browser_client", "python_client")
"""The fixtures that give them."""

SECONDS = 300


class Again:
    """A process that runs a program repeatedly from its first line, with its imports loaded once.

    Args:
        driver: `again.mjs` or `again.py` of `tests/clients`, with its interpreter.
        program: the program.
        environment: required variables.
    """

    def __init__(self, driver: Sequence[str | Path], program: str | Path, environment: Mapping[str, str]) -> None:
        words = [*map(str, driver), str(program)]
        around = {**os.environ, **environment}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=around
        )

    def call(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run the program, and return its output and exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        patience = threading.Timer(SECONDS, self._process.kill)
        patience.start()
        try:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
            found = json.loads(self._process.stdout.readline())
        finally:
            patience.cancel()
        return subprocess.CompletedProcess(list(words), found["code"], found["stdout"], found["stderr"])

    def close(self) -> None:
        self._process.communicate()


@dataclass(frozen=True)
class Client:
    """A program with the command line that all clients share.

    Attributes:
        command: command before `verify BUNDLE`.
        variants: supported variants.
        environment: required variables.
        tokenizes: whether it has a tokenizer.
        again: a process that runs it; without one, or with other variables, each call starts a process.
    """

    command: tuple[str, ...]
    variants: frozenset[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    tokenizes: bool = True
    again: Again | None = None

    def alone(self) -> Client:
        """The client as its user calls it: a process for each call."""
        return replace(self, again=None)

    def call(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        if self.again and not environment:
            return self.again.call([*map(str, arguments)])
        words = [*self.command, *map(str, arguments)]
        around = {**os.environ, **self.environment, **environment}
        return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False, env=around)

    def verify(self, bundle: Path, **environment: str) -> list[dict[str, Any]]:
        """The findings, if all golden vectors hold."""
        return self._document("verify", bundle, "--json", **environment)

    def run(self, bundle: Path, inputs: Path, *arguments: str | Path) -> list[dict[str, Any]]:
        """An answer for each row."""
        return self._document("run", bundle, "--inputs", inputs, *arguments)

    def refuses(self, words: str, *arguments: str | Path) -> None:
        """An exit code, a sentence that holds these words, and no traceback."""
        done = self.call(*arguments)
        assert done.returncode == 1, done.stdout
        assert last_line(done).startswith("error: ")
        assert words in last_line(done), last_line(done)

    def _document(self, *arguments: str | Path, **environment: str) -> list[dict[str, Any]]:
        done = self.call(*arguments, **environment)
        assert done.returncode == 0, last_line(done)
        document: list[dict[str, Any]] = json.loads(done.stdout)
        return document


def alike(found: Any, expected: Any, close: float = 1e-5) -> None:
    """Hold an answer against another: equal keys, labels and places, and numbers that are some ulp of float32 apart."""
    if isinstance(expected, Mapping):
        assert set(found) == set(expected)
        for key, value in expected.items():
            alike(found[key], value, close)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            alike(*pair, close)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=close)
    else:
        assert found == expected


def write_adapter_file(bundle: Path, path: Path, tensors: Mapping[str, np.ndarray], version: int | None = None) -> Path:
    """Write tensors as an `.onnx_adapter` file for a bundle, or with another number than its own; return its path."""
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    manifest = json.loads((bundle / "manifest.json").read_text())
    adapter.set_model_version(manifest["model_version"] if version is None else version)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in tensors.items()})
    adapter.export_adapter(str(path))
    return path


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or [""])[-1]


def tool(name: str, package: str) -> str:
    """Where a program is."""
    found = shutil.which(name)
    if found is None:
        skip_or_fail(f"`{name}` is missing: install it, on Debian with `apt-get install {package}`")
    return found


def succeed(words: Sequence[str | Path], folder: Path) -> str:
    """Run a program that must exit with code 0, and return its output."""
    done = subprocess.run(list(map(str, words)), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


CPP_PACKAGES = {
    "onnxruntime": "libonnxruntime-dev",
    "nlohmann_json": "nlohmann-json3-dev",
    "flatbuffers": "libflatbuffers-dev",
    "OpenSSL": "libssl-dev",
    "httplib": "libcpp-httplib-dev",
}
"""Requirements of `examples/cpp`, by CMake name, with their Debian packages."""

FIND_PACKAGES = """
cmake_minimum_required(VERSION 3.16)
project(find_packages LANGUAGES CXX)
foreach(name onnxruntime nlohmann_json flatbuffers OpenSSL)
  find_package(${name} QUIET)
  if(NOT ${name}_FOUND)
    message(NOTICE "missing: ${name}")
  endif()
endforeach()
find_library(HTTPLIB cpp-httplib)
if(NOT HTTPLIB)
  message(NOTICE "missing: httplib")
endif()
"""


def missing_cpp_packages(cmake: str, folder: Path, *options: str) -> list[str]:
    """Debian's names of the packages that `examples/cpp` needs and CMake cannot find."""
    (folder / "CMakeLists.txt").write_text(FIND_PACKAGES)
    found = succeed([cmake, "-S", folder, "-B", folder / "build", *options], folder)
    return [package for name, package in CPP_PACKAGES.items() if f"missing: {name}\n" in found]

"""Fixtures of what may be missing: the clients in `examples/`, a browser, a registry, platforms, graphs of others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chromium import QUIET
from clients import CPP_PACKAGES, EXAMPLES, Again, Client, missing_cpp_packages, succeed, tool
from once import once
from tiers import extended
from toolchain import skip_or_fail
from transformers_js import HERE as TRANSFORMERS_JS
from transformers_js import TransformersJs

if TYPE_CHECKING:
    from oci_registry import OciRegistry

_STAGE = Path(__file__).parents[2] / "packages" / "runtime" / "stage.py"
_DRIVERS = Path(__file__).parents[1] / "clients"


@pytest.fixture(scope="session")
@extended
def cpp_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs of `examples/cpp`, and what its package installs in `installed`."""
    install = f"on Debian, `apt-get install {' '.join(['cmake', 'g++', *CPP_PACKAGES.values()])}`"
    absent = [program for program in ("cmake", "g++") if shutil.which(program) is None]
    if absent:
        skip_or_fail(f"the C++ client cannot be built without {' and '.join(absent)}: {install}")
    cmake = tool("cmake", "cmake")

    def make(folder: Path) -> None:
        # without optimization, which takes longer than it saves here; third-party headers are parsed once;
        # the compiler does not tidy its memory
        quick = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0"]
        quick.append("-DCMAKE_CXX_FLAGS=--param=ggc-min-heapsize=4000000")
        try:
            succeed([cmake, "-S", EXAMPLES / "cpp", "-B", folder, *quick], folder)
        except AssertionError:
            missing = missing_cpp_packages(cmake, tmp_path_factory.mktemp("find_packages"))
            if missing:
                skip_or_fail(f"the C++ client cannot be built without {', '.join(missing)}: {install}")
            raise
        succeed([cmake, "--build", folder, "--parallel", "2"], folder)
        succeed([cmake, "--install", folder, "--prefix", folder / "installed"], folder)

    return once(tmp_path_factory, "cpp", make)


@pytest.fixture(scope="session")
def cpp_client(cpp_build: Path) -> Client:
    variants = frozenset({"slots", "slots, fed", "inputs", "bank", "fanout", "baked"})
    return Client((str(cpp_build / "bundle_client"),), variants, tokenizes=False)


def _install(example: str, folder: Path) -> None:
    """Build a copy of an example with its packages, next to `examples/node`, whose sources the browser needs."""
    npm = tool("npm", "npm")
    for name in {"node", example}:
        shutil.copytree(EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns("node_modules", "dist"))
    succeed([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder / example)
    succeed([npm, "run", "build"], folder / example)


def _kept(client: Client) -> Iterator[Client]:
    """A client of one file that a process of its own runs again and again."""
    interpreter, program = client.command
    driver = _DRIVERS / ("again.py" if interpreter == sys.executable else "again.mjs")
    again = Again((interpreter, driver), program, client.environment)
    yield replace(client, again=again)
    again.close()


@pytest.fixture(scope="session")
@extended
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    node = tool("node", "nodejs")
    folder = once(tmp_path_factory, "node", partial(_install, "node")) / "node"
    variants = frozenset({"inputs", "bank", "fanout", "baked"})
    yield from _kept(Client((node, str(folder / "dist" / "main.js")), variants))


@pytest.fixture(scope="session")
@extended
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a browser that runs until the end."""
    profile = tmp_path_factory.mktemp("chromium")
    words = [tool("chromium", "chromium"), *QUIET, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        try:
            yield _address(profile / "DevToolsActivePort")
        finally:
            process.terminate()


def _address(file: Path) -> str:
    """Return the address from the file that Chromium writes to its profile once it listens: port and path."""
    for _ in range(600):
        if file.exists() and len(lines := file.read_text().split()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.1)
    raise TimeoutError("Chromium did not start within a minute")


@pytest.fixture(scope="session")
@extended
def browser_client(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[Client]:
    """The page, driven by its command line."""
    node = tool("node", "nodejs")
    folder = once(tmp_path_factory, "browser", partial(_install, "browser")) / "browser"
    variants = frozenset({"inputs", "bank", "fanout", "baked"})
    yield from _kept(Client((node, str(folder / "client.mjs")), variants, {"CHROMIUM": chromium}))


@pytest.fixture(scope="session")
@extended
def transformers_js(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersJs]:
    """transformers.js in Node, and its packages for browsers."""
    npm, node = tool("npm", "npm"), tool("node", "nodejs")

    def make(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(TRANSFORMERS_JS / name, folder / name)
        succeed([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"], folder)

    packages = once(tmp_path_factory, "transformers_js", make) / "node_modules"
    root = tmp_path_factory.mktemp("shipped")
    (root / "node_modules").symlink_to(packages)
    again = Again((node, _DRIVERS / "again.mjs"), TRANSFORMERS_JS / "ask.mjs", {"ORT_DISABLE_TELEMETRY": "1"})
    yield TransformersJs(root, again)
    again.close()


@pytest.fixture(scope="session")
@extended
def python_client() -> Iterator[Client]:
    program = EXAMPLES / "python" / "bundle_client.py"
    variants = frozenset({"slots", "inputs", "bank", "fanout", "baked"})
    yield from _kept(Client((sys.executable, str(program)), variants))


@pytest.fixture(scope="session")
@extended
def slim(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a program that imports `adapter_export_runtime`."""

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, _STAGE, folder / "source"], check=True)

    places = [str(once(tmp_path_factory, "slim", make) / "source"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="session")
@extended
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    """A real OCI registry."""
    from oci_registry import oci_registry  # needs `cryptography`, of the extras `hub` and `sign`

    with oci_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
@extended
def platform_python() -> str:
    """A Python with KServe's server and Triton's client, which want an older protobuf than the others."""
    python = Path(sys.prefix) / "kserve" / "bin" / "python"
    if not python.exists():
        skip_or_fail("KServe and Triton's client are missing: run `make setup`")
    return str(python)


@pytest.fixture(scope="session")
@extended
def foreign_graphs() -> Path:
    """A folder with packages that hold ONNX graphs of others, unpacked."""
    folder = Path(sys.prefix) / "graphs"
    if not folder.is_dir():
        skip_or_fail("the ONNX graphs of others are missing: run `make setup`")
    return folder

"""One bundle of the real base that every client has to reproduce, and the clients, each built once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toolchain import skip_or_fail

from adapter_export.graph.adapter import HEAD, Adapter, Head
from adapter_export.graph.kinds import Kind, classification_head, houlsby, parallel, pfeiffer
from adapter_export.onnx.base import OnnxBase, open_onnx
from adapter_export.onnx.bundle import build_bundle
from adapter_export.onnx.flavour_files import FLAVOURS, Forms
from adapter_export.reference.inputs import input_cases

EXAMPLES = Path(__file__).parents[2] / "examples"
ADAPTERS = ("wide", "narrow", "first")
SHAPES = ({"batch": 1, "sequence": 1}, {"batch": 4, "sequence": 7}, {"batch": 3, "sequence": 19})


@dataclass(frozen=True)
class Client:
    """A program with the command line that all clients share.

    Attributes:
        command: what to call before `verify BUNDLE`.
        flavours: what it can run.
    """

    command: tuple[str, ...]
    flavours: frozenset[str]

    def call(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        words = [*self.command, *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)

    def verify(self, bundle: Path) -> list[dict[str, Any]]:
        """The findings, if all golden vectors hold."""
        done = self.call("verify", bundle, "--json")
        assert done.returncode == 0, _last_line(done)
        findings: list[dict[str, Any]] = json.loads(done.stdout)
        return findings

    def refuses(self, words: str, *arguments: str | Path) -> None:
        """An exit code, a sentence that holds these words, or some of them between `|`, and no traceback."""
        done = self.call(*arguments)
        assert done.returncode == 1
        assert any(each in _last_line(done) for each in words.split("|")), _last_line(done)
        assert _last_line(done).startswith("error: ")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or [""])[-1]


@pytest.fixture(scope="session")
def conformance_bundle(minilm_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with three adapters of different topology, width and number of classes, in every flavour."""
    from adapter_export.torch.base import load_base
    from adapter_export.torch.runner import TorchRunner
    from adapter_export.torch.to_onnx import export_onnx

    folder = tmp_path_factory.mktemp("conformance")
    torch_base = load_base(minilm_archive)
    export_onnx(torch_base, folder / "base.onnx")
    base = open_onnx(folder / "base.onnx")
    adapters = [
        _adapter("wide", houlsby(), base, 32, ("a", "b", "c", "d")),
        _adapter("narrow", pfeiffer(), base, 8, ("yes", "no")),
        _adapter("first", parallel(), base, 16, ("x", "y", "z"), pooling="first"),
    ]
    build_bundle(
        base,
        adapters,
        folder / "bundle",
        references=TorchRunner(torch_base),
        cases=input_cases(base.inputs, seed=0, shapes=list(SHAPES)),
        tokenizer=torch_base.tokenizer,
        max_tokens=torch_base.max_tokens,
        forms=Forms(list(FLAVOURS), ["wide"]),
    )
    return folder / "bundle"


def _adapter(
    name: str, kind: Kind, base: OnnxBase, bottleneck: int, labels: Sequence[str], pooling: str = "mean"
) -> Adapter:
    """Random weights of standard deviation 0.2, the head's among them."""
    placements = kind.with_widths(b=bottleneck).placements(base.sites)
    head = Head(classification_head(pooling), {"d": base.sites.width, "classes": len(labels)}, tuple(labels))
    shapes = {
        f"{site}.{parameter}": shape
        for site, placement in placements.items()
        for parameter, shape in kind.graphs[placement.graph].parameter_shapes(placement.widths).items()
    }
    shapes |= {f"{HEAD}.{name}": shape for name, shape in head.graph.parameter_shapes(head.widths).items()}
    rng = np.random.default_rng([*name.encode()])
    weights = {key: (0.2 * rng.standard_normal(shape)).astype(np.float32) for key, shape in shapes.items()}
    return Adapter(name, kind.name, base.fingerprint, kind.graphs, placements, weights, head)


@pytest.fixture
def copied_bundle(conformance_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to damage; its large files are links to the same bytes."""

    def link(source: str, target: str) -> None:
        path = Path(target)
        path.hardlink_to(source) if path.suffix == ".bin" else shutil.copyfile(source, target)

    return shutil.copytree(conformance_bundle, tmp_path / "bundle", copy_function=link)


def _tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        skip_or_fail(f"`{name}` is missing: install it, on Debian with `apt-get install {package}`")
    return found


def _run(words: Sequence[str | Path], folder: Path) -> None:
    done = subprocess.run(list(map(str, words)), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def cpp_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs of `examples/cpp`."""
    packages = "cmake g++ libonnxruntime-dev nlohmann-json3-dev libflatbuffers-dev libssl-dev libcpp-httplib-dev"
    cmake = _tool("cmake", packages)
    _tool("g++", packages)
    if not Path("/usr/include/onnxruntime/onnxruntime_cxx_api.h").exists():
        skip_or_fail(f"ONNX Runtime for C++ is missing: on Debian, `apt-get install {packages}`")
    build = tmp_path_factory.mktemp("cpp")
    _run([cmake, "-S", EXAMPLES / "cpp", "-B", build, "-DCMAKE_BUILD_TYPE=Release"], build)
    _run([cmake, "--build", build, "--parallel", "2"], build)
    return build


@pytest.fixture(scope="session")
def cpp_client(cpp_build: Path) -> Client:
    flavours = frozenset({"slots", "slots, fed", "inputs", "bank", "mixture", "baked"})
    return Client((str(cpp_build / "bundle_client"),), flavours)


def _npm_install(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of an example with its packages; `examples/node` lies beside, whose sources the browser's needs."""
    node, npm = _tool("node", "nodejs"), _tool("npm", "npm")
    del node
    folder = tmp_path_factory.mktemp("examples")
    for example in {"node", name}:
        ignore = shutil.ignore_patterns("node_modules", "dist")
        shutil.copytree(EXAMPLES / example, folder / example, ignore=ignore)
    _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder / name)
    _run([npm, "run", "build"], folder / name)
    return folder / name


@pytest.fixture(scope="session")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = _npm_install("node", tmp_path_factory)
    return Client(("node", str(folder / "dist" / "main.js")), frozenset({"inputs", "bank", "mixture", "baked"}))


@pytest.fixture(scope="session")
def python_client() -> Client:
    program = EXAMPLES / "python" / "bundle_client.py"
    return Client((sys.executable, str(program)), frozenset({"slots", "inputs", "bank", "mixture", "baked"}))


@pytest.fixture(scope="session")
def browser_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built page."""
    _tool("chromium", "chromium")
    return _npm_install("browser", tmp_path_factory)

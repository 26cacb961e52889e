from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_onnx import VOCABULARY, build_tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from adapter_export.format.manifest_json import list_files, read_manifest, write_manifest
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.runtime import Bundle
from adapter_export.text import Tokenizer as TextTokenizer

PROGRAM = Path(__file__).parents[2] / "examples" / "plain_onnxruntime.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_padding(length=10)
    return build_tiny(tmp_path_factory.mktemp("built"), tokenizer=tokenizer.to_str())


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def _run(bundle: Path, *texts: str) -> subprocess.CompletedProcess[str]:
    """In a folder and with a path on which this project is not found by accident."""
    return subprocess.run(
        [sys.executable, str(PROGRAM), str(bundle), *texts],
        capture_output=True,
        text=True,
        check=False,
        cwd=bundle.parent,
        env={**os.environ, "PYTHONPATH": ""},
    )


def test_it_imports_nothing_of_this_project() -> None:
    imports = {
        name
        for node in ast.walk(ast.parse(PROGRAM.read_text()))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        + ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
    }
    others = imports - set(sys.stdlib_module_names)
    assert others == {"numpy", "onnxruntime", "tokenizers"}


def test_the_golden_vectors_hold(bundle: Path) -> None:
    done = _run(bundle)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["base", "wide", "narrow", "pfeiffer", "plain"]
    assert done.stderr == ""


def test_its_answers_are_those_of_the_runtime(bundle: Path) -> None:
    text = "w3 w17 w5"
    opened = Bundle.open(bundle)
    assert opened.manifest.text is not None
    tokenizer = TextTokenizer.from_json((bundle / "tokenizer.json").read_text(), opened.manifest.max_tokens)
    inputs = tokenizer.batch([text], [record.name for record in opened.manifest.inputs])
    session = opened.session()
    answers = {name: session.classify(inputs, name)[0] for name in ("wide", "narrow", "pfeiffer")}
    lines = _run(bundle, text).stdout.splitlines()
    at = lines.index(text)
    for line, (name, answer) in zip(lines[at + 1 :], answers.items(), strict=True):
        assert line.split() == [name, answer.label, f"{answer.probability:.2f}"]


def test_a_golden_vector_that_does_not_hold(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    path = bundle / manifest.adapters[0].golden.path
    tensors = read_tensors(path)
    tensors["batch3_tokens7.output.logits"] = tensors["batch3_tokens7.output.logits"] + 0.01
    write_tensors(path, tensors)
    write_manifest(replace(manifest, files=list_files(bundle)), bundle)
    assert _run(bundle).returncode == 1


def test_a_damaged_file(bundle: Path) -> None:
    path = bundle / "adapters" / "wide.onnx_adapter"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    done = _run(bundle)
    assert done.returncode == 1
    assert "wide.onnx_adapter has been changed" in done.stderr


def test_without_a_bundle_it_says_how_to_call_it() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "plain_onnxruntime.py bundle" in done.stdout

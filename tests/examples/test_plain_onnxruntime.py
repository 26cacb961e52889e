from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from abridged import abridge, edit_manifest
from abridged_bundle import SEED, build_abridged
from building import build_bundle
from small_bundle import build_small
from tampering import edit
from tiny_onnx import VOCABULARY, build_tiny, random_adapter, save_tiny, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest_json import list_files, read_manifest, write_manifest
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.graph.kinds import BottleneckOptions, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import LENGTHS_KEY, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle
from adapter_export.text import Tokenizer as TextTokenizer

PROGRAM = Path(__file__).parents[2] / "examples" / "plain_onnxruntime.py"


def words() -> Tokenizer:
    """A tokenizer that knows `w0`, `w1`, …"""
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_padding(length=10)
    return tokenizer


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("built"), tokenizer=words().to_str())


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that takes multiples of 8, an adapter, and one whose gate counts padding."""
    folder, model = tmp_path_factory.mktemp("gated"), tiny_model()
    lengths = {"tokens": asdict(Lengths(8, 24, 8))}
    model.metadata_props.add(key=LENGTHS_KEY, value=json.dumps({"lengths": lengths, "pads": True}))
    base = open_onnx(save_tiny(folder, model))
    adapters = [
        random_adapter("plain", pfeiffer(), base, labels="ab"),
        random_adapter("gated", pfeiffer(BottleneckOptions(gate=True)), base, labels="ab"),
    ]
    cases = input_cases(base.inputs, seed=0, lengths=base.lengths)
    references = CutRunner(base)
    build_bundle(base, adapters, folder / "bundle", references=references, cases=cases, tokenizer=words().to_str())
    return folder / "bundle"


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


def test_example_imports_nothing_of_this_project() -> None:
    imports = {
        name
        for node in ast.walk(ast.parse(PROGRAM.read_text()))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        + ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
    }
    others = imports - set(sys.stdlib_module_names)
    assert others == {"numpy", "onnxruntime", "tokenizers"}


@pytest.mark.extended
def test_the_golden_vectors_hold(bundle: Path) -> None:
    done = _run(bundle)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["base", "wide", "narrow", "pfeiffer", "plain"]
    assert done.stderr == ""


@pytest.mark.extended
def test_example_answers_as_the_runtime_does(bundle: Path) -> None:
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


@pytest.mark.extended
def test_example_runs_adapters_in_float16_and_int8(tmp_path: Path) -> None:
    """ONNX Runtime activates neither; their tensors are fed."""
    built = build_small(tmp_path, ["slots"], precisions={"topic": "int8", "tone": "float16"})
    done = _run(built.folder)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["base", "topic", "tone", "mood"]


@pytest.mark.extended
def test_a_text_is_padded_only_where_that_changes_nothing(gated: Path) -> None:
    """To a multiple of 8. The gate of one adapter is the mean over all tokens, padding among them."""
    manifest = read_manifest(gated)
    assert manifest.padding_neutral
    assert manifest.counts_padding
    done = _run(gated, "w3 w17 w5 w9 w2")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].split()[0] == "plain"  # the last adapter before the one that counts padding
    assert "has 5 along `tokens` and may not be padded" in done.stderr
    done = _run(gated, "w3 w17 w5 w9 w2 w8 w1 w4")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[-2:]] == ["plain", "gated"]


@pytest.mark.extended
def test_changed_golden_vectors_fail(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    path = bundle / manifest.adapters[0].golden.path
    tensors = read_tensors(path)
    tensors["batch3_tokens7.output.logits"] = tensors["batch3_tokens7.output.logits"] + 0.01
    write_tensors(path, tensors)
    write_manifest(replace(manifest, files=list_files(bundle)), bundle)
    assert _run(bundle).returncode == 1


SKETCHES = {
    "logits": {"axes": 2, "largest": 2, "columns": 3, "moduli": [5, 7]},
    "hidden": {"axes": 2, "largest": 20, "columns": 0, "moduli": [3]},  # more than the row has
}


@pytest.fixture
def abridged(tmp_path: Path) -> Path:
    build_abridged(tmp_path)
    return tmp_path / "bundle"


@pytest.mark.extended
def test_sketches_and_fills_pass_and_detect_changes(abridged: Path) -> None:
    """They pass as they are, and fail with another seed, shape or element."""
    abridge(abridged, SKETCHES, {"features": SEED})
    done = _run(abridged)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["base", "a", "b"]
    path = abridged / "golden/base.safetensors"
    for numbers, words in (
        ((SEED + 1, 3, 7, 16), ""),
        ((2**32, 3, 7, 16), "out of range"),
        ((0, 2**32, 2**32, 1), "out of range"),
        ((0, 3, -7, 16), "out of range"),
        ((0, 3, 7), "is not a seed and the shape"),
    ):
        _store(path, "batch3_tokens7.fill.features", np.array(numbers))
        done = _run(abridged)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def _store(path: Path, key: str, value: np.ndarray) -> None:
    """Replace a tensor in a file of a bundle."""
    edit(path, lambda tensors: tensors.update({key: value}))
    edit_manifest(path.parents[1])


def _raise_middle(value: np.ndarray) -> np.ndarray:
    changed = value.copy()
    changed[..., value.shape[-1] // 2] += np.float32(0.01)
    return changed


@pytest.mark.extended
def test_sketches_of_changed_outputs_fail(abridged: Path) -> None:
    abridge(abridged, {"logits": SKETCHES["logits"]}, change=_raise_middle)
    assert _run(abridged).returncode == 1


@pytest.mark.extended
def test_example_refuses_a_damaged_adapter_file(bundle: Path) -> None:
    path = bundle / "adapters" / "wide.onnx_adapter"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    done = _run(bundle)
    assert done.returncode == 1
    assert "wide.onnx_adapter has been changed" in done.stderr


@pytest.mark.extended
def test_example_without_arguments_prints_its_usage() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "plain_onnxruntime.py bundle" in done.stdout

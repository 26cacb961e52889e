"""`import adapterhub`: from the folder that the library wrote to a bundle that computes the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from adapterhub_bases import FIXTURES, Made, adapterhub_base
from safetensors.numpy import load_file

from adapter_export.format.adapter_files import read_adapter
from adapter_export.runtime import Bundle

KINDS = ("seq_bn_inv", "adapter_plus", "scaled_par_bn", "lora_everywhere", "ia3", "head_two_layers", "par_bn")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return adapterhub_base(tmp_path_factory, "bert")


@pytest.fixture(scope="module")
def onnx(base: Made) -> Path:
    return base.onnx.path


def test_imported_kinds_share_one_bundle_and_match_adapterhub(cli, base: Made, onnx: Path, tmp_path: Path) -> None:
    """Different kinds in one graph, one after the other: each computes what the library computed."""
    for name in KINDS:
        found = cli.done("import", "adapterhub", FIXTURES / "bert" / name, "--base", onnx, "-o", tmp_path / name)
        assert f"wrote {tmp_path / name}: `{name}`" in found.stderr
    adapters = ",".join(str(tmp_path / name) for name in KINDS)
    cli.done("build", onnx, "--adapters", adapters, "--max-tokens", 32, "-o", tmp_path / "bundle")
    session = Bundle.open(tmp_path / "bundle").session()
    for name in (*KINDS, *KINDS[::-1]):
        expected = load_file(FIXTURES / "bert" / name / "expected.safetensors")
        outputs = session.run(base.inputs, adapter=name)
        np.testing.assert_allclose(outputs["last_hidden_state"], expected["hidden"], rtol=0, atol=2e-5)
        if "logits" in expected:
            np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=0, atol=2e-5)


def test_json_matches_the_written_adapter(cli, onnx: Path, tmp_path: Path) -> None:
    folder = FIXTURES / "bert/head_two_layers"
    document = cli.json("import", "adapterhub", folder, "--base", onnx, "-o", tmp_path / "a", "--name", "tone")
    assert document["name"] == "tone"
    assert document["kind"] == "seq_bn"
    assert document["sites"] == ["layers.0.ffn", "layers.1.ffn"]
    assert document["task"]["labels"] == ["negative", "neutral", "positive"]
    assert document["notes"] == []
    adapter = read_adapter(tmp_path / "a")
    assert adapter.training["imported_from"]["config"]["non_linearity"] == "relu"
    assert adapter.training["imported_from"]["version"] == "adapters.1.3.0"


def test_import_notes_are_printed_as_warnings(cli, onnx: Path, tmp_path: Path) -> None:
    found = cli.done("import", "adapterhub", FIXTURES / "bert/legacy", "--base", onnx, "-o", tmp_path / "a")
    assert "warning: the file has no version: its activation `gelu` is now named `gelu_new`." in found.stderr


def test_name_selects_one_of_several_adapters(cli, onnx: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    for name in ("seq_bn", "lora"):
        shutil.copytree(FIXTURES / "bert" / name, folder / name)
    words = "contains several adapters; found `lora`, `seq_bn`. Pass `--name` with one of them."
    cli.refused(2, words, "import", "adapterhub", folder, "--base", onnx, "-o", tmp_path / "a")
    cli.done("import", "adapterhub", folder, "--base", onnx, "--name", "lora", "-o", tmp_path / "a")
    assert read_adapter(tmp_path / "a").name == "lora"


def test_a_head_is_left_out_where_the_user_says_so(cli, onnx: Path, tmp_path: Path) -> None:
    folder = FIXTURES / "bert/head_pooler"
    words = "Pass `--without-head` to import the adapter without its head."
    cli.refused(3, words, "import", "adapterhub", folder, "--base", onnx, "-o", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    cli.done("import", "adapterhub", folder, "--base", onnx, "--without-head", "-o", tmp_path / "a")
    assert read_adapter(tmp_path / "a").head is None


def test_base_of_another_architecture_is_refused_unless_by_number(cli, tmp_path: Path) -> None:
    """A folder records its architecture; an archive has other module names."""
    folder, base = FIXTURES / "bert/seq_bn", FIXTURES / "distilbert/model"
    words = "was trained on another architecture; found `bert`; expected `distilbert`."
    cli.refused(3, words, "import", "adapterhub", folder, "--base", base, "-o", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    found = cli.done("import", "adapterhub", folder, "--base", base, "--by-number", "-o", tmp_path / "a")
    assert "layers were matched by number" in found.stderr


def test_archive_of_another_architecture_is_refused_unless_by_number(
    cli, tmp_path_factory: pytest.TempPathFactory, base: Made, tmp_path: Path
) -> None:
    """RoBERTa's modules have BERT's names, and its archive records the architecture."""
    folder, roberta = FIXTURES / "bert/seq_bn", adapterhub_base(tmp_path_factory, "roberta").made / "model.pt"
    words = "was trained on another architecture; found `bert`; expected `roberta`."
    cli.refused(3, words, "import", "adapterhub", folder, "--base", roberta, "-o", tmp_path / "a")
    cli.done("import", "adapterhub", folder, "--base", roberta, "--by-number", "-o", tmp_path / "a")
    cli.done("import", "adapterhub", folder, "--base", base.made / "model.pt", "-o", tmp_path / "b")


def test_pickled_weights_require_torch(
    cli, base: Made, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FIXTURES / "bert/seq_bn_bare_bin"
    cli.done("import", "adapterhub", folder, "--base", onnx, "-o", tmp_path / "a")
    monkeypatch.setattr("adapter_export.plugins.formats.importing.find_spec", lambda _: None)
    words = "`torch` is not installed, and reading `pytorch_adapter.bin`, a pickle of tensors, needs it"
    cli.refused(2, words, "import", "adapterhub", folder, "--base", onnx, "-o", tmp_path / "b")


def test_a_near_miss_of_a_library_is_named(cli) -> None:
    cli.refused(2, "did you mean `adapterhub`?", "import", "adapterhubb", "x")

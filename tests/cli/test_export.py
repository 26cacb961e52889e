"""`export`: adapters for other libraries, from folders and from bundles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft_bases import peft_base
from peft_folders import FIXTURES, adapter_folder

import adapter_export as ae


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft_base(tmp_path_factory, "bert") / "model.onnx"


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    with pytest.warns(UserWarning, match="matches no module"):
        ae.import_peft(adapter_folder("bert_lora_patterns"), base, folder)
    return folder


def test_export_writes_peft_files_with_the_name_of_the_base(cli, lora: Path, base: Path, tmp_path: Path) -> None:
    shown = cli.done("export", lora, "--to", "peft", "--base", base, "--base-name", "org/bert", "-o", tmp_path / "out")
    assert "LORA at 6 modules, 12 tensors" in shown.stderr
    assert "within 0.0e+00 of the adapter, in float64" in shown.stderr
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/bert"
    cli.refused(3, "exists", "export", lora, "--to", "peft", "--base", base, "-o", tmp_path / "out")
    cli.done("export", lora, "--to", "peft", "--base", base, "-o", tmp_path / "out", "--force")


def test_wrong_calls_write_nothing(cli, lora: Path, base: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    cli.refused(2, "by module path", "export", lora, "--to", "peft", *out)
    cli.refused(2, "is for a bundle", "export", lora, "--adapter", "a", "--base", base, "--to", "peft", *out)
    cli.refused(3, "`nope`: is not an adapter; found nothing", "export", "nope", "--to", "peft", *out)
    cli.refused(3, "`nope`: is not an adapter", "export", "nope", "--base", base, "--to", "peft", *out)
    cli.refused(3, "is not an adapter", "export", tmp_path, "--base", base, "--to", "peft", *out)
    cli.refused(2, "'peft'", "export", lora, "--base", base, "--to", "onnx", *out)
    other = FIXTURES / "bases" / "electra"
    cli.refused(3, "another base", "export", lora, "--base", other, "--to", "peft", *out)
    into = ("-o", lora.parent, "--force")
    cli.refused(3, "would overwrite an input", "export", lora, "--base", base, "--to", "peft", *into)
    assert not (tmp_path / "out").exists()


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:the adapter's modules:UserWarning")
@pytest.mark.filterwarnings("ignore:PEFT does not save class names:UserWarning")
def test_peft_itself_computes_the_same_on_a_folder(tmp_path: Path) -> None:
    folder = FIXTURES / "bases" / "bert"
    for name in ("bert_lora_tag", "bert_ia3"):
        adapter = ae.import_peft(adapter_folder(name), folder)
        made = ae.export(adapter, tmp_path / name, to="peft", base=folder)
        assert made.loaded is not None
        assert made.loaded < 1e-5

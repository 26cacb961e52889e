"""Run the Python code of four pages of docs/how-to in the order of each page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from oci_registry import OciRegistry
from packed import unpacked
from peft_folders import adapter_folder, base_folder
from tokenizers import Tokenizer, models, pre_tokenizers

import adapter_export

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "python.md"
TRAINING = ROOT / "docs" / "how-to" / "train.md"
LOOP = ROOT / "docs" / "how-to" / "training-loop.md"
RETRIEVAL = ROOT / "docs" / "how-to" / "retrieval.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Provide the files that the pages name: a small BERT with a tokenizer, adapters of two libraries, a key pair."""
    model = shutil.copytree(base_folder("bert_lora"), tmp_path / "huggingface-folder")
    words = {
        word: number for number, word in enumerate(["[PAD]", "[UNK]", "good", "bad", "film", "play", "dull", "fine"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))
    shutil.copytree(adapter_folder("bert_lora_classify"), tmp_path / "saved" / "lora")
    shutil.copytree(unpacked("adapterhub") / "bert" / "seq_bn", tmp_path / "saved" / "seq_bn")
    rows = "".join(
        f"{one} {two}\t{'good' if one in ('good', 'fine') else 'bad'}\n"
        for one in words
        for two in words
        if " " not in one
    )
    (tmp_path / "train.tsv").write_text(f"text\tlabel\n{rows}")
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "release.pem").write_bytes(private)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "release.pub").write_bytes(public)
    return tmp_path


@pytest.mark.filterwarnings("default")
def test_code_of_the_python_page_runs(
    folder: Path, registry: OciRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("REGISTRY", registry.host)
    run(PAGE)
    assert "computing golden vectors of `lora`" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_the_page_of_training_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert run(TRAINING)["losses"].found


@pytest.mark.filterwarnings("default")
def test_the_page_of_the_loop_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert run(LOOP)["bundle"].session().adapters == ("reviews", "accelerated")


@pytest.mark.filterwarnings("default")
def test_the_page_of_retrieval_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert run(RETRIEVAL)["documents"].shape[0] == 2


def run(page: Path) -> dict[str, Any]:
    """Run the snippets of a page in one module, and return its namespace."""
    names: dict[str, Any] = {}
    for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)):
        exec(compile(snippet, f"{page.name}, snippet {number}", "exec"), names)  # noqa: S102 - the page's own
    return names


def test_the_page_names_every_verb() -> None:
    text = PAGE.read_text("utf-8")
    verbs = [name for name in adapter_export.__all__ if name != "__version__"]
    assert [name for name in verbs if f"`{name}`" not in text] == []
    assert [
        name for name in verbs if not re.search(rf"\bae\.{name}\(", text) and callable(getattr(adapter_export, name))
    ] == [
        "Base",
        "Inspection",
        "Reporter",
        "Sites",
    ]

"""The way from names on a hub to an adapter: capture, import, train, inspect, and what each records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hub_server import HubServer, Repository, hub_here
from safetensors.numpy import save

import adapter_export as ae

pytestmark = pytest.mark.extended


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("ADAPTER_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with hub_here(monkeypatch, tmp_path / "hf") as running:
        yield running


@pytest.fixture
def commit(hub: HubServer, hf_folder: Path) -> str:
    """The commit of `me/bert`, which is the small BERT with its tokenizer."""
    hub.repositories["me/bert"] = Repository()
    return hub.repositories["me/bert"].commit("main", {path.name: path.read_bytes() for path in hf_folder.iterdir()})


def peft_files(modules: str) -> dict[str, bytes]:
    random = np.random.default_rng(0)
    weights = {
        f"base_model.model.encoder.layer.{layer}.attention.self.{modules}.lora_{part}.weight": random.normal(
            0, 0.2, (4, 16) if part == "A" else (16, 4)
        ).astype(np.float32)
        for layer in (0, 1)
        for part in "AB"
    }
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": [modules], "bias": "none"}
    config["base_model_name_or_path"] = "me/bert"
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": save(weights)}


def test_a_captured_model_is_that_of_the_folder_and_names_its_commit(cli, commit: str, hf_folder: Path) -> None:
    made = cli.json("capture", "me/bert", "-o", "model.pt")
    assert made["fingerprint"] == ae.open_base(hf_folder).fingerprint
    assert made["tokenizer"]
    source = f"hf://me/bert@{commit}"
    for model in ("model.pt", "me/bert", source):
        found = cli.json("inspect", model)
        assert (found["fingerprint"], found["source"]) == (made["fingerprint"], source)
        assert source in cli.done("inspect", model).stdout
    assert cli.json("inspect", hf_folder)["source"] is None
    assert "opening and capturing me/bert" in cli.done("capture", "me/bert", "-o", "again.pt").stderr


def test_an_imported_adapter_names_its_commit_and_its_base(cli, hub: HubServer, commit: str, tmp_path: Path) -> None:
    hub.repositories["me/lora"] = Repository()
    own = hub.repositories["me/lora"].commit("main", {**peft_files("query"), "adapter_model.bin": b"\x80"})
    named = "Its configuration names `me/bert`: pass `--base me/bert`"
    cli.refused(2, named, "import", "peft", "me/lora", "-o", "a")
    cli.done("import", "peft", "me/lora", "--base", "me/bert", "-o", "a")
    assert ae.load_adapter("a").training["imported_from"]["source"] == f"hf://me/lora@{own}"
    assert f"hf://me/lora@{own}" in cli.done("inspect", "a").stdout
    hub.repositories["me/lora"].commit("main", peft_files("c_attn"))
    wrong = cli.refused(
        3, "acts on modules that the base does not have", "import", "peft", "me/lora", "--base", "me/bert", "-o", "b"
    )
    assert "check that `--base` is `me/bert`, which its configuration names" in wrong.stderr


def test_parquet_trains_and_evaluates_as_the_same_csv(cli, commit: str, tmp_path: Path) -> None:
    rows = [
        (f"{word} {word}", label) for label in ("x", "y") for word in ("good", "bad", "dull", "fine", "moon", "far")
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *(",".join(row) for row in rows)]) + "\n")
    table = pyarrow.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    for form in ("csv", "parquet"):
        options = ("--epochs", 1, "--kind", "pfeiffer", "--bottleneck", 4)
        cli.done("train", "me/bert", "--data", f"rows.{form}", *options, "-o", form)
    weights = [ae.load_adapter(form).weights for form in ("csv", "parquet")]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    cli.done("build", "me/bert", "--adapters", "csv", "-o", "bundle")
    scores = [cli.json("evaluate", "bundle", "--data", f"rows.{form}")["metrics"] for form in ("csv", "parquet")]
    assert scores[0] == scores[1]
    answers = [
        cli.json("run", "bundle", "--adapter", "csv", "--data", f"rows.{form}")["rows"] for form in ("csv", "parquet")
    ]
    assert answers[0] == answers[1]

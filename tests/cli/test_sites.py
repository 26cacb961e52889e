"""`sites`: every form of a base shows the same places."""

from __future__ import annotations

from pathlib import Path

import pytest


def _places(document: dict) -> list[tuple]:
    return [(site["name"], site["role"], site["layer"], site["width"]) for site in document["sites"]]


def test_archive_folder_and_graph_have_the_same_sites(cli, model: Path, hf_folder: Path, bundle: Path) -> None:
    archive = cli.json("sites", model)
    assert _places(archive) == [
        (f"layers.{layer}.{role}", role, layer, 16) for layer in range(2) for role in ("attention", "ffn")
    ]
    assert [site["path"] for site in archive["sites"]] == [
        f"encoder.layer.{layer}.{path}" for layer in range(2) for path in ("attention.output.dense", "output.dense")
    ]
    assert _places(cli.json("sites", hf_folder)) == _places(archive)
    inside = ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down")
    names = [f"layers.{at}.{name}" for at in range(2) for name in inside]
    assert [site["name"] for site in archive["linear"]] == [*names, "pooler.dense"]
    assert {site["name"]: site["norm"]["kind"] for site in archive["sites"]}["layers.1.ffn"] == "layer"
    assert archive["embeddings"][0]["path"] == "embeddings.LayerNorm"


def test_sites_are_shown_in_a_table_and_a_drawing(cli, model: Path) -> None:
    found = cli.done("sites", model).stdout
    assert "layers.1.attention" in found
    assert "encoder.layer.1.output.dense" in found
    assert "layers.0 … layers.1  (2 layers)" in found
    assert "▣ head" in found
    assert "query ▫  key ▫  value ▫  output ▫" in found
    assert "encoder.layer.*.attention.self.query" in found
    assert "layers.0.ffn.up …  (2)" in found
    assert "outside  pooler.dense ▫" in found


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "an empty file"),
        (b"\x80\x02}q\x00.", "a pickle"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file, such as a Keras model"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(40), "a TensorFlow Lite model"),
        (b"\x18\x00\x00\x00ORTM" + bytes(40), "ONNX Runtime's own format"),
        (b"PK\x03\x04 and nothing more", "archive"),
        (b"hello, I am a text", "ONNX"),
    ],
)
def test_files_that_are_not_models_are_refused(cli, tmp_path: Path, contents: bytes, words: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(contents)
    cli.refused(3, words, "sites", path)


def test_a_truncated_archive_is_refused(cli, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(model.read_bytes()[:-1000])
    cli.refused(3, "model.pt", "sites", path)


def test_a_folder_of_another_sort_is_named(cli, bundle: Path, adapters: Path, tmp_path: Path) -> None:
    cli.refused(3, "a bundle: its `manifest.json` is there", "sites", bundle)
    cli.refused(3, "an adapter: its `adapter_graph.json` is there", "sites", adapters / "tone")
    cli.refused(3, "a folder without `config.json`", "sites", tmp_path)
    cli.refused(3, "does not exist; expected a torch archive (`.pt`, `.pt2`), a", "sites", tmp_path / "nowhere.pt")

"""`inspect`: contents of a bundle, an adapter, a model."""

from __future__ import annotations

import shutil
from pathlib import Path


def test_inspect_shows_the_contents_of_a_bundle(cli, bundle: Path) -> None:
    found = cli.json("inspect", bundle)
    assert found["what"] == "bundle"
    assert [adapter["name"] for adapter in found["manifest"]["adapters"]] == ["topic", "tone"]
    shown = cli.done("inspect", bundle).stdout
    for words in (
        "bad, good",
        "adapters/topic.onnx_adapter",
        "last_hidden_state",
        "[batch, sequence]",
        "golden vectors",
    ):
        assert words in shown


def test_inspect_groups_many_files_in_its_tables(cli, bundle: Path, monkeypatch) -> None:
    from adapter_export.commands.bundles import inspect as inspect_bundle

    shown = cli.done("inspect", bundle).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    tensors = "down.bias [b], down.weight [16, b], up.bias [16], up.weight [b, 16]"
    assert f"layers.0–1.attention bottleneck_gelu {tensors}" in lines
    assert f"layers.0–1.ffn bottleneck_relu {tensors}" in lines
    assert any(line.startswith("bank model.bank.onnx") and "selected by each row of a batch" in line for line in lines)
    assert any(line.startswith("tone") and "logits ±" in line and "torch" in line for line in lines)
    assert any(line.startswith("adapters/tone/weights.safetensors") for line in lines)
    monkeypatch.setattr(inspect_bundle, "_MANY_FILES", 5)
    many = [" ".join(line.split()) for line in cli.done("inspect", bundle).stdout.splitlines()]
    size = sum((bundle / f"adapters/{name}/weights.safetensors").stat().st_size for name in ("topic", "tone"))
    assert f"adapters/*/weights.safetensors 2 {size:,}" in many
    assert f"base.bin 1 {(bundle / 'base.bin').stat().st_size:,}" in many


def test_inspect_shows_task_and_cost_of_an_adapter(cli, adapters: Path) -> None:
    found = cli.json("inspect", adapters / "tone")
    assert found["task"]["labels"] == ["bad", "good"]
    per_site = 2 * 16 * 4 + 4 + 16
    assert found["cost"]["parameters"] == 2 * per_site + 16 * 2 + 2
    assert found["cost"]["multiply_accumulates"] == 2 * 2 * 16 * 4 + 16 * 2
    shown = cli.done("inspect", adapters / "tone").stdout
    assert "linear → relu → linear → add" in shown
    assert "layers.1.ffn" in shown


def test_inspect_shows_inputs_and_sites_of_a_model(cli, model: Path, hf_folder: Path) -> None:
    archive, folder = cli.json("inspect", model), cli.json("inspect", hf_folder)
    assert archive["fingerprint"] == folder["fingerprint"]
    assert [record["role"] for record in archive["inputs"]] == ["ids", "mask", "ids"]
    assert archive["sites"] == 4
    shown = cli.done("inspect", model).stdout
    assert "ids below 19" in shown
    assert f"4, see `adapter-export sites {model}`" in " ".join(shown.split())


def test_inspect_refuses_damaged_or_incomplete_files(cli, bundle: Path, adapters: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    data = bytearray((copy / "base.bin").read_bytes())
    data[100] ^= 1
    (copy / "base.bin").write_bytes(data)
    cli.refused(3, "base.bin: has been changed or damaged", "inspect", copy)
    (copy / "base.bin").unlink()
    cli.refused(3, "base.bin: is missing from the bundle", "inspect", copy)
    lone = tmp_path / "adapter"
    lone.mkdir()
    shutil.copy(adapters / "tone" / "weights.safetensors", lone)
    cli.refused(3, "adapter_graph.json: is missing from an adapter folder", "inspect", lone)
    words = "does not exist; expected a bundle, an adapter folder or a model"
    cli.refused(3, words, "inspect", tmp_path / "nothing")

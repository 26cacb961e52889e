"""Files that are no base, or not the one that their name says: by content, one sentence each, in every command."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from tiny_onnx import save_tiny, tiny_model
from torch import nn


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())


def _script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own word on TorchScript
        torch.jit.trace(_module(), torch.zeros(1, 4)).save(str(path))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def _checkpoint(path: Path) -> None:
    torch.save({"model": _module().state_dict(), "epoch": 3}, path)


def _half(dtype: torch.dtype) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        program = torch.export.export(_module().to(dtype), (torch.zeros(2, 4, dtype=dtype),))
        with path.open("wb") as file:
            torch.export.save(program, file)

    return write


def _old_pickle(path: Path) -> None:
    torch.save(_module(), path, _use_new_zipfile_serialization=False)


def _bin_only(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 16}))
    torch.save({}, path / "pytorch_model.bin")


def _onnx_without_data(path: Path) -> None:
    path.mkdir()
    file = save_tiny(path)
    file.with_name("tiny.onnx.data").unlink()
    shutil.move(file, path.with_name("gone.onnx"))
    shutil.rmtree(path)
    path.with_name("gone.onnx").rename(path)


def _onnx_with_data_outside(path: Path) -> None:
    onnx.save(tiny_model(), path, save_as_external_data=True, location="data", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../data" if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())


_SAFE_WAY = ("could run code when loaded", "only if you trust", "capture --trust-pickle", "runs its code once")

BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a pickled module": (
        lambda path: torch.save(_module(), path),
        ("`torch.nn.modules.", *_SAFE_WAY),
    ),
    "an old pickled module": (_old_pickle, ("a pickle", *_SAFE_WAY)),
    "a TorchScript file": (_script, ("a TorchScript archive", "ae.capture(model, path, example_inputs=…)")),
    "a state dict": (lambda path: torch.save(_module().state_dict(), path), ("a state dict", "without its program")),
    "a checkpoint of weights": (_checkpoint, ("a state dict", "without its program", "ae.capture")),
    "another zip": (_zip, ("a zip file of another kind", "ae.capture")),
    "a text": (lambda path: path.write_text("text\tlabel\n"), ("found a text", "capture")),
    "an image": (
        lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)),
        ("starting with `89 50 4e 47", "capture"),
    ),
    "an archive in float16": (_half(torch.float16), ("`float16`", "`float32`", ".float()")),
    "an archive in bfloat16": (_half(torch.bfloat16), ("`bfloat16`", "`float32`", ".float()")),
    "a folder with weights as a pickle": (_bin_only, ("`pytorch_model.bin`, a pickle", "save_pretrained(folder)")),
    "a folder with nothing": (lambda path: path.mkdir(), ("a folder without `config.json`", "capture")),
}
BAD_GRAPHS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a graph whose weights are gone": (_onnx_without_data, ("is missing", "put it in the folder of")),
    "a graph with weights elsewhere": (
        _onnx_with_data_outside,
        ("outside its folder", "../data", "into one folder"),
    ),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "data.csv"
    rows = (f"{label} film {at},{label}\n" for at in range(8) for label in ("good", "bad"))
    path.write_text("".join(["text,label\n", *rows]))
    return path


@pytest.mark.parametrize("what", BAD)
def test_every_command_identifies_wrong_files_and_advises(
    cli, adapters: Path, table: Path, tmp_path: Path, what: str
) -> None:
    write, words = BAD[what]
    path = tmp_path / "model"
    write(path)
    out = tmp_path / "out"
    for call in (
        ("sites", path),
        ("build", path, "--adapters", adapters / "tone", "-o", out),
        ("train", path, "--data", table, "-o", out),
    ):
        found = cli.refused(3, words[0], *call)
        assert [word for word in words if word.casefold() not in found.stderr.casefold()] == []
        assert not out.exists()


@pytest.mark.parametrize("what", BAD_GRAPHS)
def test_graphs_without_complete_weights_are_refused(cli, adapters: Path, tmp_path: Path, what: str) -> None:
    write, words = BAD_GRAPHS[what]
    path = tmp_path / "model"
    write(path)
    for call in (("sites", path), ("build", path, "--adapters", adapters / "tone", "-o", tmp_path / "out")):
        found = cli.refused(3, words[0], *call)
        assert [word for word in words if word.casefold() not in found.stderr.casefold()] == []


@pytest.mark.parametrize("what", ["a pickled module", "a TorchScript file", "a state dict", "another zip"])
def test_files_without_a_program_are_refused_despite_trust(cli, tmp_path: Path, what: str) -> None:
    write, words = BAD[what]
    write(tmp_path / "model")
    found = cli.refused(3, words[0], "sites", tmp_path / "model", "--trust-pickle")
    assert words[-1] in found.stderr


def test_every_command_refuses_a_truncated_archive(
    cli, model: Path, adapters: Path, table: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(model.read_bytes()[:-1000])
    words = "a zip file that is truncated or damaged"
    cli.refused(3, words, "sites", path)
    cli.refused(3, words, "build", path, "--adapters", adapters / "tone", "-o", tmp_path / "out")
    cli.refused(3, words, "train", path, "--data", table, "-o", tmp_path / "out")


def test_outputs_never_overwrite_their_inputs(cli, model: Path, adapters: Path, table: Path, tmp_path: Path) -> None:
    """Also with `--force`, and if it is in a folder that would be replaced."""
    shutil.copy(model, tmp_path / "model.pt")
    shutil.copytree(adapters / "tone", tmp_path / "made" / "tone")
    shutil.copy(table, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for call in (
        ("build", "model.pt", "--adapters", "other=made/tone", "-o", "made"),
        ("build", "model.pt", "--adapters", "made/tone", "-o", "model.pt"),
        ("train", "model.pt", "--data", table.name, "-o", table.name),
        ("merge", "model.pt", "--adapter", "made/tone", "-o", "made/tone"),
        ("compose", "average", "made/tone", "-o", "made/tone"),
        ("pack", "made/tone/weights.safetensors", "--base", "model.pt", "--kind", "lora", "-o", "made/tone"),
    ):
        cli.refused(3, "would overwrite an input", *call, "--force", folder=tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_force_replaces_no_home_and_no_repository(
    cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home/me/work").mkdir(parents=True)
    (tmp_path / "project/.git").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home/me"))
    for place, found in (("home/me", "your home"), ("home", "parent of it"), ("project", "git repository")):
        cli.refused(3, found, "capture", model, "-o", tmp_path / place, "--force")
    assert (tmp_path / "home/me/work").is_dir()
    assert (tmp_path / "project/.git").is_dir()


def test_a_file_takes_the_place_of_no_folder(cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "work/kept").mkdir(parents=True)
    cli.refused(
        3, "work: is a folder; expected the name of a file", "capture", model, "-o", tmp_path / "work", "--force"
    )
    assert (tmp_path / "work/kept").is_dir()


def test_file_types_are_detected_by_content(cli, model: Path, tmp_path: Path) -> None:
    shutil.copy(model, tmp_path / "archive.onnx")
    (tmp_path / "graph.pt").write_bytes(tiny_model().SerializeToString())
    assert cli.json("sites", tmp_path / "archive.onnx")["sites"] == cli.json("sites", model)["sites"]
    assert len(cli.json("sites", tmp_path / "graph.pt")["sites"]) == 4

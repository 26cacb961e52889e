"""The form that `bench` saves beside bundles, and the commands that run it with `--form auto`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from heard import Heard
from once import once
from small_bundle import build_small, small_tokenizer

import adapter_export as ae
from adapter_export.bundle.chosen_form import chosen_form, form_file
from adapter_export.cli.main import main
from adapter_export.errors import FileError, FormatError, UsageError, VersionError
from adapter_export.plugins.lab.speed.forms import FormBenchmark
from adapter_export.plugins.serve.commands.serve import _settings, _with_forms


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        small = build_small(folder, ["slots", "inputs", "bank"], ("input_ids", "attention_mask"), small_tokenizer())
        ae.build(
            small.model, [small.folder / "adapters" / "tone"], folder / "int8", base_precision="int8", reporter=Heard()
        )
        shutil.copytree(folder / "bundle", folder / "plain")
        measured = ae.bench(folder / "bundle", folder / "plain", rows=1, tokens=8, seconds=0.001, save_form=True)
        assert measured.saved == tuple(str(form_file(folder / name)) for name in ("bundle", "plain"))

    return once(tmp_path_factory, "chosen_form", make)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def save(folder: Path, **changes: object) -> None:
    """Save the bundle `plain` with OpenVINO as the form of `bundle`, with changes."""
    measured = json.loads(form_file(folder / "plain").read_text())
    chosen = {"bundle": "plain", "provider": "openvino", "runtime": openvino()}
    form_file(folder / "bundle").write_text(json.dumps(measured | chosen | changes))


def openvino() -> str:
    import openvino

    return f"openvino {openvino.__version__.partition('-')[0]}"


def test_providers_take_part_with_the_graphs_that_they_may_run(built: Path) -> None:
    measured = ae.bench(built / "bundle", adapter="tone", seconds=0.001, providers=("openvino", "cuda"))
    assert isinstance(measured, FormBenchmark)
    forms = [(form.variant, form.provider) for form in measured.forms]
    assert forms == [
        *(("slots", "cpu"), ("inputs", "cpu"), ("bank", "cpu")),
        *(("inputs", "openvino"), ("bank", "openvino")),
    ]
    assert all(form.cosine > 1 - 1e-6 for form in measured.forms)
    assert "not available here" in measured.skipped["bundle, cuda"]
    assert "provider" in str(measured).splitlines()[0]


def test_auto_runs_the_bundle_and_provider_that_were_measured(folder: Path) -> None:
    save(folder)
    chosen = chosen_form(folder / "bundle")
    assert (Path(str(chosen.bundle)), chosen.provider) == (folder / "plain", "openvino")
    arrays = folder / "arrays.npz"
    np.savez(arrays, input_ids=np.array([[2, 4, 5]]), attention_mask=np.ones((1, 3), np.int64))
    call = ["run", str(folder / "bundle"), "--adapter", "tone", "--arrays", str(arrays), "--json"]
    given, automatic = (CliRunner().invoke(main, [*call, *words]) for words in ([], ["--form", "auto"]))
    assert automatic.exit_code == 0, automatic.output
    (actual,), (expected,) = (json.loads(done.stdout)["rows"] for done in (automatic, given))
    assert actual["label"] == expected["label"]
    assert actual["probability"] == pytest.approx(expected["probability"], abs=1e-5)
    shutil.rmtree(folder / "plain" / "golden")  # the form is proved when it opens, and its files are compared
    assert CliRunner().invoke(main, [*call, "--form", "auto"]).exit_code == 3


def test_a_server_keeps_the_name_of_the_bundle(folder: Path) -> None:
    save(folder)
    places, settings = _with_forms([str(folder / "bundle")], _settings({"form": "auto"}, None))
    assert places == [f"bundle={folder / 'plain'}"]
    assert settings.sessions.provider == "openvino"
    shutil.copytree(folder / "int8", folder / "other")
    ae.bench(folder / "other", providers=("cpu",), rows=1, tokens=8, seconds=0.001, save_form=True)
    with pytest.raises(UsageError, match="different providers"):
        _with_forms([str(folder / "bundle"), str(folder / "other")], _settings({"form": "auto"}, None))


@pytest.mark.parametrize(("key", "value"), [("processor", "x86_64 Another"), ("runtime", "openvino 2020.1.0")])
def test_measurements_of_other_machines_are_not_used(folder: Path, key: str, value: str) -> None:
    save(folder, **{key: value})
    with pytest.warns(RuntimeWarning, match=f"another {key}.*{value}.*runs as given"):
        chosen = chosen_form(folder / "bundle")
    assert (chosen.bundle, chosen.provider) == (folder / "bundle", "cpu")


def test_forms_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(FileError, match=r"no form was measured.*save_form=True"):
        chosen_form(folder / "int8")
    with pytest.raises(UsageError, match="exclude each other"):
        chosen_form(folder / "bundle", "auto", "openvino")
    save(folder, bundle="int8")
    with pytest.raises(FormatError, match=r"lacks adapters.*`topic`, `mood`"):
        chosen_form(folder / "bundle")
    save(folder, bundle="nothing")
    with pytest.raises(FileError, match="nothing"):
        chosen_form(folder / "bundle")
    save(folder, provider="gpu")
    with pytest.raises(UsageError, match="unknown provider"):
        chosen_form(folder / "bundle")
    save(folder, version="2.0.0")
    with pytest.raises(VersionError):
        chosen_form(folder / "bundle")
    save(folder, times=3)
    with pytest.raises(FormatError, match=re.escape("times")):
        chosen_form(folder / "bundle")
    save(folder)
    manifest = folder / "plain" / "manifest.json"
    document = json.loads(manifest.read_text())
    del document["checksum"]
    manifest.write_text(json.dumps({**document, "base": "sha256:" + "0" * 64}))
    with pytest.raises(FormatError, match=r"another base.*0000"):
        chosen_form(folder / "bundle")


def test_calls_follow_the_lengths_of_a_table(built: Path, tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    table.write_text("question\n" + "who wrote it\n" * 9 + "the good film and the bad book\n")
    options = ["--data", str(table), "--text-column", "question", "--providers", "cpu", "--seconds", "0.001", "--json"]
    done = CliRunner().invoke(main, ["bench", str(built / "bundle"), "--adapter", "tone", *options])
    assert done.exit_code == 0, done.output
    shapes = [(time["rows"], time["tokens"]) for time in json.loads(done.stdout)["forms"][0]["times"]]
    assert shapes == [(1, 5), (1, 9), (8, 9)]  # with [CLS] and [SEP]
    with pytest.raises(UsageError, match="decides rows and tokens"):
        ae.bench(built / "bundle", data=tmp_path / "texts.csv", rows=3)
    with pytest.raises(UsageError, match="is of bundles"):
        ae.bench(built / "base.onnx", save_form=True)

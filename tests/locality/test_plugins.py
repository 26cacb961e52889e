"""The core works without its plug-ins, and another distribution adds to it what they add."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_encoder import BAD, GOOD, OTHER, save_encoder

from adapter_export.plugin import plugins

if TYPE_CHECKING:
    from conftest import TrialChange

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"

IMPORT_ALL = """
import importlib, pkgutil, sys
import adapter_export
for module in pkgutil.walk_packages(adapter_export.__path__, "adapter_export."):
    if not module.name.startswith(("adapter_export.plugins.", "adapter_export.__main__")):
        importlib.import_module(module.name)
"""


def _remove(trial: TrialChange, *names: str) -> None:
    for name in names:
        shutil.rmtree(trial.folder / "adapter_export" / "plugins" / name)


def _train(trial: TrialChange, folder: Path, *options: str) -> None:
    """Train an adapter `a` on the base `model.pt`."""
    save_encoder(folder / "model.pt")
    rows = [
        f"{first} {second} {word}\t{label}"
        for label, words in (("good", GOOD), ("bad", BAD))
        for word in words
        for first, second in itertools.pairwise(OTHER)
    ]
    (folder / "train.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    trial.command("train", "model.pt", "--data", "train.tsv", "--epochs", "1", *options, "-o", "a")


@pytest.mark.parametrize("name", plugins())
def test_the_core_and_other_plugins_work_without_a_plugin(trial: TrialChange, name: str) -> None:
    _remove(trial, name)
    trial.python(IMPORT_ALL)
    missing = {command for modules in plugins()[name].commands.values() for command in modules}
    listed = trial.command("--help")
    for module in missing:
        command = module.rpartition(".")[2].rstrip("_").replace("_", "-")
        assert f"  {command} " not in listed
    for call in plugins()[name].calls:
        assert trial.python(f"import adapter_export as ae; print({call!r} in ae.__all__)") == "False\n"
    assert ("--self-test" in trial.command("check", "--help", "faults")) == (name != "selftest")


def test_the_core_goes_from_a_model_to_answers_without_any_plugin(trial: TrialChange, tmp_path: Path) -> None:
    shutil.rmtree(trial.folder / "adapter_export" / "plugins")
    trial.python(IMPORT_ALL)
    _train(trial, tmp_path)
    trial.command("build", "model.pt", "--adapters", "a", "-o", "bundle")
    trial.command("verify", "bundle")
    trial.command("check", "bundle", "--against", "model.pt", "--quick")
    trial.command("add", "bundle", "b=a", "--against", "model.pt")
    (row,) = trial.json("run", "bundle", "--adapter", "b", "--text", f"{GOOD[0]} {OTHER[0]}")["rows"]
    assert row["task"] == "single_label"
    trial.command("remove", "bundle", "b")
    trial.command("inspect", "bundle")


def test_another_distribution_adds_a_kind_and_a_command(trial: TrialChange, tmp_path: Path) -> None:
    """The example is installed as pip would: its package, and its metadata with the entry point."""
    shutil.copytree(EXAMPLE / "deep_adapters", trial.folder / "deep_adapters")
    metadata = trial.folder / "deep_adapters-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: deep-adapters\nVersion: 0.1.0\n")
    entry = "[adapter_export.plugins]\ndeep = deep_adapters:PLUGIN\n"
    assert 'deep = "deep_adapters:PLUGIN"' in (EXAMPLE / "pyproject.toml").read_text()
    (metadata / "entry_points.txt").write_text(entry)
    assert "h + U f(M f(D h))" in trial.command("formula", "deep")
    assert trial.python("import adapter_export as ae; print(ae.formula('deep'))").startswith("`h + U")
    _train(trial, tmp_path, "--kind", "deep", "--deep-width", "3")
    trial.command("build", "model.pt", "--adapters", "a", "-o", "bundle")
    trial.command("check", "bundle", "--against", "model.pt", "--quick")
    assert trial.json("run", "bundle", "--adapter", "a", "--text", "good film")["rows"][0]["task"] == "single_label"
    trial.close()
    kind = trial.folder / "deep_adapters" / "deep_kind.py"
    kind.write_text(kind.read_text().replace('Maker("deep"', 'Maker("lora"'), encoding="utf-8")
    record = trial.folder / "deep_adapters" / "__init__.py"
    record.write_text(record.read_text().replace("deep_adapters.formula", "deep_adapters.nothing"), encoding="utf-8")
    shown = trial.python(
        "import warnings\nwith warnings.catch_warnings(record=True) as caught:\n    warnings.simplefilter('always')\n"
        "    from adapter_export.cli.main import COMMANDS\n    from adapter_export.graph.kinds import KINDS\n"
        "print(KINDS['lora'].formula, 'formula' in COMMANDS, *(warning.message for warning in caught))"
    )
    assert "h + U f(M f(D h))" not in shown
    assert "the kind `lora` of a plug-in is left out: the name is taken" in shown
    assert "False `deep_adapters.nothing` of the plug-in `deep` is left out: No module named" in shown
    trial.close()
    (metadata / "entry_points.txt").write_text("[adapter_export.plugins]\ndeep = deep_adapters:NOTHING\n")
    warned = trial.python(
        "import warnings\nwith warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n    import adapter_export\nprint(*(one.message for one in caught))"
    )
    assert "plug-in `deep` of `deep-adapters` cannot be loaded: AttributeError" in warned

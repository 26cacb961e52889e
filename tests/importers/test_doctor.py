"""`doctor`: each broken folder gets its cause by name, and the verdict is that of the importer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import broken_folders as broken
import numpy as np
import pytest
import torch
from adapterhub_bases import FIXTURES as ADAPTERHUB
from broken_folders import BROKEN, FOLDERS, TENSORS, WORKING
from click.testing import CliRunner
from once import once
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM
from widths import WIDTHS, check_whole

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.errors import InputError, MistakeError, UsageError
from adapter_export.plugins.formats.doctor.causes import RULES
from adapter_export.plugins.formats.doctor.diagnosis import Diagnosis, ToolReading

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what it ignores, where it does

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A folder by its name, and the bases."""
    bases = once(tmp_path_factory, "doctor_bases", broken.write_bases)

    @cache
    def folder(name: str) -> Path:
        if name in ("llama", "gpt2", "bert", "merged"):
            return bases / name
        return once(tmp_path_factory, f"doctor_{name}", lambda path: FOLDERS[name].make(path / name)) / name

    return folder


@pytest.fixture(scope="module")
def bases(folders: Folders) -> Callable[[str], ae.Base]:
    return cache(lambda name: ae.open_base(folders(name)))


@pytest.fixture(scope="module")
def diagnosed(folders: Folders, bases: Callable[[str], ae.Base]) -> Callable[[str], Diagnosis]:
    return cache(lambda name: ae.doctor(folders(name), bases(FOLDERS[name].base)))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_gets_its_cause(name: str, diagnosed: Callable[[str], Diagnosis]) -> None:
    found = diagnosed(name)
    assert tuple(cause.name for cause in found.causes) == BROKEN[name].causes
    assert {cause.severity for cause in found.causes} == {"broken"}
    assert not found.passed
    with pytest.raises(MistakeError, match=BROKEN[name].causes[0]):
        found.raise_for_failure()


@pytest.mark.parametrize("name", WORKING)
def test_a_working_adapter_has_only_cautions(name: str, diagnosed: Callable[[str], Diagnosis]) -> None:
    found = diagnosed(name)
    assert tuple(cause.name for cause in found.causes) == WORKING[name].causes
    assert {cause.severity for cause in found.causes} <= {"caution"}
    assert found.passed
    found.raise_for_failure()


@pytest.mark.parametrize("name", FOLDERS)
def test_the_verdict_is_that_of_the_importer(
    name: str, folders: Folders, bases: Callable[[str], ae.Base], diagnosed: Callable[[str], Diagnosis]
) -> None:
    found = diagnosed(name)
    try:
        adapter = ae.import_peft(folders(name), bases(FOLDERS[name].base))
    except (InputError, UsageError):
        assert not found.fits
        assert any(cause.severity == "broken" for cause in found.causes)
    else:
        assert found.fits
        assert found.sites == len(adapter.placements)


def test_every_cause_is_tested_with_a_folder(diagnosed: Callable[[str], Diagnosis]) -> None:
    assert {rule.name for rule in RULES} <= {cause for folder in FOLDERS.values() for cause in folder.causes}


REPAIRS: dict[str, Callable[[Path], Path]] = {
    "compiled": lambda path: broken.changed_tensors(
        path, lambda old: {key.removeprefix("_orig_mod.").replace(".default.", "."): old[key] for key in old}
    ),
    "no_prefix": lambda path: broken.changed_tensors(
        path, lambda old: {f"base_model.model.{key}": old[key] for key in old}
    ),
    "transposed": lambda path: broken.changed_tensors(path, lambda old: {key: old[key].T for key in old}),
    "rank": lambda path: broken.changed_config(path, lambda config: config.update(r=4)),
}


@pytest.mark.parametrize("name", REPAIRS)
def test_a_proved_cause_is_the_whole_cause(
    name: str, folders: Folders, bases: Callable[[str], ae.Base], diagnosed: Callable[[str], Diagnosis], tmp_path: Path
) -> None:
    """The repair that doctor tried in memory works on the disk, and for PEFT's loader."""
    assert "import" in diagnosed(name).causes[0].found
    repaired = REPAIRS[name](broken.copied(folders(name), tmp_path / "repaired"))
    found = ae.doctor(repaired, bases(FOLDERS[name].base))
    assert found.passed
    assert tool(found, "PEFT").reads == "all"


def tool(found: Diagnosis, name: str) -> ToolReading:
    return next(reading for reading in found.tools if reading.tool == name)


def test_changes_and_factors_are_those_of_peft(folders: Folders, diagnosed: Callable[[str], Diagnosis]) -> None:
    for name, factor in (("good", 16 / 4), ("rslora", 16 / 4**0.5)):
        tensors = load_file(folders(name) / TENSORS)
        weights = load_file(folders("llama") / "model.safetensors")
        expected = []
        for layer in range(2):
            path = f"model.layers.{layer}.self_attn.v_proj"
            down, up = (tensors[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
            expected.append(np.linalg.norm(factor * up @ down) / np.linalg.norm(weights[f"{path}.weight"]))
        (group,) = (group for group in diagnosed(name).groups if group.place == "attention.value")
        assert (group.sites, group.kind, group.rank, group.of, group.zero) == (2, "lora", 4, "weight", 0)
        assert group.scale == pytest.approx(factor)
        np.testing.assert_allclose((group.least, group.most), sorted(expected), rtol=1e-6)
    assert diagnosed("good").groups[0].formula == "16/4"
    assert diagnosed("rslora").groups[0].formula == "16/√4"


def test_measured_changes_match_weights_merged_by_peft(folders: Folders, diagnosed: Callable[[str], Diagnosis]) -> None:
    for name in ("dora", "ia3"):
        base = AutoModelForCausalLM.from_pretrained(folders("llama"))
        before = {key: value.double() for key, value in base.state_dict().items()}
        merged = PeftModel.from_pretrained(base, str(folders(name))).merge_and_unload()
        changes = {
            key: float((value.double() - before[key]).norm() / before[key].norm())
            for key, value in merged.state_dict().items()
            if not torch.equal(value.double(), before[key])
        }
        groups = diagnosed(name).groups
        assert sum(group.sites for group in groups) == len(changes)
        np.testing.assert_allclose(max(group.most for group in groups), max(changes.values()), rtol=1e-4)
        np.testing.assert_allclose(min(group.least for group in groups), min(changes.values()), rtol=1e-4)


@pytest.mark.parametrize("name", ["untrained", "compiled", "no_prefix", "other_class"])
def test_peft_answers_as_the_base_in_silence(
    name: str, folders: Folders, diagnosed: Callable[[str], Diagnosis]
) -> None:
    """This is what doctor reports: PEFT loads the folder without an error, and nothing changes."""
    ids = torch.arange(3, 10)[None]
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(folders("llama")).eval()
        expected = base(ids).logits
        adapted = PeftModel.from_pretrained(base, str(folders(name))).eval()
        assert torch.equal(adapted(ids).logits, expected)
    found = diagnosed(name)
    assert tool(found, "PEFT").reads == ("all" if name == "untrained" else "none")
    assert name != "untrained" or found.idle == found.sites == 4


def test_doctor_predicts_how_other_tools_read_a_folder(diagnosed: Callable[[str], Diagnosis]) -> None:
    assert tool(diagnosed("rslora"), "llama.cpp").scale == "scales `q_proj` by 4 instead of 8"
    assert tool(diagnosed("rslora"), "vLLM").scale is None
    for name in ("vLLM", "llama.cpp"):
        assert tool(diagnosed("alpha_pattern"), name).scale == "scales `v_proj` by 4 instead of 16"
    assert tool(diagnosed("dora"), "vLLM").reason.startswith("DoRA is not supported")
    assert "`modules_to_save`" in tool(diagnosed("labels"), "vLLM").reason
    assert "size mismatch" in tool(diagnosed("labels"), "PEFT").reason
    more = diagnosed("more_layers")
    assert tool(more, "PEFT").reads == tool(more, "vLLM").reads == "part"
    assert all("layers.2" in key for key in (*tool(more, "PEFT").ignored, *tool(more, "vLLM").ignored))
    assert len(tool(more, "PEFT").ignored) == len(tool(more, "vLLM").ignored) == 4
    assert "missing: 4 tensors" in tool(diagnosed("fewer_layers"), "PEFT").reason
    for name in ("transposed", "wider", "empty", "lost_half"):
        assert tool(diagnosed(name), "vLLM").reads == tool(diagnosed(name), "llama.cpp").reads == "refuses"
    assert tool(diagnosed("good"), "AdapterHub").reads == "refuses"


@pytest.mark.extended
def test_doctor_accepts_files_archives_and_single_members(
    folders: Folders, bases: Callable[[str], ae.Base], diagnosed: Callable[[str], Diagnosis], tmp_path: Path
) -> None:
    found = ae.doctor(folders("good") / TENSORS, bases("llama"))
    assert found.groups == diagnosed("good").groups
    found = ae.doctor(folders("several"), bases("llama"), member="two")
    assert found.passed
    ae.capture(folders("llama"), tmp_path / "base.pt")
    found = ae.doctor(folders("other_class"), tmp_path / "base.pt")
    assert tool(found, "PEFT").reads == "not asked"
    assert found.passed


@pytest.fixture(scope="module")
def adapterhub_bert() -> ae.Base:
    return ae.open_base(ADAPTERHUB / "bert" / "model")


@pytest.mark.parametrize(
    ("name", "of", "scale"),
    [
        ("lora", "weight", 2.0),
        ("ia3", "weight", None),
        ("par_bn", "value", 4.0),
        ("scaled_par_bn", "value", None),
        ("setup_average", "value", None),
    ],
)
@pytest.mark.extended
def test_doctor_passes_adapterhub_folders(name: str, of: str, scale: float | None, adapterhub_bert: ae.Base) -> None:
    found = ae.doctor(ADAPTERHUB / "bert" / name, adapterhub_bert)
    assert found.passed
    assert {(group.of, group.scale) for group in found.groups} == {(of, scale)}
    if found.tools:
        assert tool(found, "AdapterHub").reads == "all"
        assert {tool(found, name).reads for name in ("PEFT", "vLLM", "llama.cpp")} == {"refuses"}


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": "much"},
        {"r": "4"},
        {"r": 10**9},
        {"target_modules": 3},
        {"peft_type": 3},
        {"peft_type": "NEWEST"},
        {"rank_pattern": [1]},
        {"task_type": "NO_TASK"},
        {"init_lora_weights": ["pissa"]},
        {"auto_mapping": 1, "task_type": None},
    ],
)
def test_any_config_gets_a_cause(
    config: dict[str, object], folders: Folders, bases: Callable[[str], ae.Base], tmp_path: Path
) -> None:
    folder = broken.copied(folders("good"), tmp_path / "adapter")
    broken.changed_config(folder, lambda values: values.update(config))
    found = ae.doctor(folder, bases("llama"))
    assert found.fits != any(cause.severity == "broken" for cause in found.causes)


def test_a_config_without_alpha_is_noted(diagnosed: Callable[[str], Diagnosis]) -> None:
    assert any("no `lora_alpha`" in note for note in diagnosed("no_alpha").notes)


@pytest.mark.extended
def test_adapterhub_ignores_tensors_of_another_name(adapterhub_bert: ae.Base, tmp_path: Path) -> None:
    folder = shutil.copytree(ADAPTERHUB / "bert" / "lora", tmp_path / "lora")
    broken.changed_config(folder, lambda config: config.update(name="renamed"))
    found = ae.doctor(folder, adapterhub_bert)
    assert not found.fits
    assert tool(found, "AdapterHub").reads == "none"
    assert found.causes[0].severity == "broken"


@pytest.mark.extended
def test_doctor_diagnoses_adapters_of_this_format(
    folders: Folders, bases: Callable[[str], ae.Base], tmp_path: Path
) -> None:
    adapter = ae.import_peft(folders("good"), bases("llama"), tmp_path / "own")
    assert ae.doctor(tmp_path / "own", bases("llama")).passed
    assert adapter.name == "own"
    found = ae.doctor(tmp_path / "own", bases("merged"))
    assert [cause.name for cause in found.causes] == ["other-base", "already-merged"]
    found = ae.doctor(tmp_path / "own", bases("gpt2"))
    assert not found.fits
    assert [cause.severity for cause in found.causes] == ["broken"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


@pytest.mark.extended
def test_doctor_command_prints_causes_and_json(folders: Folders) -> None:
    done = run(folders("rslora"), "--base", folders("llama"))
    assert done.exit_code == 0, done.output
    for words in ("`rslora`: PEFT LORA, 8 tensors", "scale = 16/√4", "8 of 8", "other-strength (caution)"):
        assert words in done.stdout
    assert "fits this base and changes 4 sites; 1 caution" in done.stdout
    done = run(folders("compiled"), "--base", folders("llama"))
    assert done.exit_code == 1
    assert "does not fit this base: adapter-name-in-keys, wrong-prefix" in done.stdout
    done = run(folders("untrained"), "--base", folders("llama"), "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document["fits"]
    assert not document["passed"]
    assert document["causes"][0]["name"] == "untrained"
    assert document["groups"][0]["zero"] == 2
    done = run(folders("several"), "--base", folders("llama"))
    assert "select one of them with `--name`" in done.stdout
    assert run(folders("several"), "--base", folders("llama"), "--name", "two").exit_code == 0
    done = run(folders("good") / "none", "--base", folders("llama"))
    assert done.exit_code == 3
    assert "none: does not exist" in done.stderr
    done = run(folders("good"))
    assert done.exit_code == 2
    assert "Pass the model: `--base MODEL`" in done.stderr


@pytest.mark.parametrize("name", ["more_layers", "labels", "other_class"])
@pytest.mark.parametrize("width", WIDTHS)
def test_tables_fit_a_terminal(name: str, width: int, diagnosed: Callable[[str], Diagnosis]) -> None:
    found = diagnosed(name)
    for table in (found.site_table(), found.tool_table(), found.cause_table()):
        check_whole(table, width)


def test_diagnosis_has_text_and_html_displays(diagnosed: Callable[[str], Diagnosis]) -> None:
    found = diagnosed("untrained")
    assert repr(found).startswith("Diagnosis(adapter='untrained', library='PEFT', fits=True, passed=False")
    assert "exactly zero at all 4 sites" in str(found)
    assert "<table>" in found._repr_html_()

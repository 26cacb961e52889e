"""Setup folders imported as a whole: parity with the compositions of AdapterHub's library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapterhub_bases import FIXTURES, Made, import_adapterhub
from safetensors.numpy import load_file, save_file
from slotted import Slotted

from adapter_export.errors import AdapterError, FormatError, UsageError
from adapter_export.numerics.evaluate_adapter import evaluate_head
from adapter_export.plugins.formats.importers.tensor_map import Imported

SETUPS = sorted(path.parent.name for path in (FIXTURES / "bert").glob("setup_*/adapter_setup.json"))
EXACT, SINGLE = 1e-10, 2e-5
Copy = Callable[[str], Path]


def imported(case: str | Path, base: Made, *, onnx: bool = False) -> Imported:
    sites, fingerprint = (base.onnx.sites, base.onnx.fingerprint) if onnx else (base.sites, base.source.fingerprint)
    return import_adapterhub(FIXTURES / "bert" / case, sites, name="whole", base=fingerprint)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("case", SETUPS)
def test_numpy_and_torch_compute_setups_as_adapterhub_does(case: str, bert: Made) -> None:
    expected = load_file(FIXTURES / "bert" / case / "expected.safetensors")
    adapter = imported(case, bert).adapter
    hidden, in_torch = bert.float64.run(bert.inputs, adapter), bert.torch.run(bert.inputs, adapter)
    close(hidden, expected["hidden_f64"], EXACT)
    close(in_torch["last_hidden_state"], expected["hidden"], SINGLE)
    assert (adapter.head is not None) == ("logits" in expected)
    if adapter.head is not None:
        logits = evaluate_head(adapter, hidden, bert.inputs["attention_mask"])
        close(logits, expected["logits_f64"], EXACT)
        close(in_torch["logits"], expected["logits"], SINGLE)


@pytest.mark.parametrize("case", ["setup_average", "setup_stack"])
def test_setups_in_pre_norm_bases_match_adapterhub(case: str, made: Callable[[str], Made]) -> None:
    base, expected = made("gpt2"), load_file(FIXTURES / "gpt2" / case / "expected.safetensors")
    adapter = imported(FIXTURES / "gpt2" / case, base).adapter
    close(base.float64.run(base.inputs, adapter), expected["hidden_f64"], EXACT)
    close(base.torch.run(base.inputs, adapter)["last_hidden_state"], expected["hidden"], SINGLE)


def test_onnxruntime_computes_all_setups_in_one_graph(bert: Made) -> None:
    adapters = {case: imported(case, bert, onnx=True).adapter for case in SETUPS}
    slotted = Slotted(bert.onnx, list(adapters.values()))
    for case, adapter in adapters.items():
        expected = load_file(FIXTURES / "bert" / case / "expected.safetensors")
        found = slotted.run(bert.inputs, adapter)
        close(found["last_hidden_state"], expected["hidden"], SINGLE)
        if "logits" in expected:
            close(found["logits"], expected["logits"], SINGLE)


def test_import_record_contains_setup_and_members(bert: Made) -> None:
    found = imported("setup_fuse_of_stacks", bert)
    record = found.adapter.training["imported_from"]
    assert (found.adapter.kind, record["setup"]["type"], list(record["members"])) == ("fusion", "Fuse", ["a", "b", "c"])
    assert record["members"]["b"]["use_gating"] is True
    assert any("gates and norms: those of `b` have no effect" in note for note in found.notes)


def test_import_notes_averages_that_are_divided_twice(bert: Made) -> None:
    for case in ("setup_average", "setup_stack_of_average", "setup_average_lora", "setup_average_ia3"):
        assert any("divides an average by the number of members" in note for note in imported(case, bert).notes)
    assert not imported("setup_stack", bert).notes


def test_the_first_invertible_adapter_acts_alone(copied: Copy, bert: Made) -> None:
    adapter = imported("setup_stack_invertible", bert).adapter
    assert next(iter(adapter.placements)) == "embeddings"
    folder = copied("bert/setup_stack_invertible")
    compose(folder, "Stack", "b", "a")
    found = imported(folder, bert)
    assert "embeddings" not in found.adapter.placements
    assert any("uses only the first invertible adapter: that of `a` has no effect" in note for note in found.notes)


def test_setups_keep_the_head_of_their_last_adapter(copied: Copy, bert: Made) -> None:
    """A stack has that of its last adapter, others the one that was saved for the whole, or none."""
    stacked = imported("setup_stack_head", bert)
    assert stacked.adapter.head is not None
    assert stacked.adapter.head.labels == ("x", "y", "z")
    assert stacked.notes == ("the heads of `a` were left out",)
    folder = copied("bert/setup_stack_head")
    compose(folder, "Average", "a", "b")
    averaged = imported(folder, bert)
    assert averaged.adapter.head is None
    assert "the heads of `a`, `b` were left out" in averaged.notes
    bare = import_adapterhub(
        FIXTURES / "bert/setup_fuse_head", bert.sites, name="a", base=bert.source.fingerprint, with_head=False
    )
    assert bare.adapter.head is None
    edit_setup(folder, head_setup={"type": "BatchSplit", "children": []})
    with pytest.raises(AdapterError, match=r"was saved with several heads.*without_head=True"):
        imported(folder, bert)


def test_invalid_member_names_are_replaced_in_parameters(copied: Copy, bert: Made) -> None:
    folder = copied("bert/setup_stack")
    (folder / "a").rename(folder / "fusion")
    config = folder / "fusion" / "adapter_config.json"
    config.write_text(config.read_text().replace('"name": "a"', '"name": "a"'))
    compose(folder, "Stack", "fusion", "b")
    graph = imported(folder, bert).adapter.graphs["stack"]
    assert {name.partition(".")[0] for name in graph.parameters} == {"member1", "b"}


def test_a_fusion_is_read_inside_its_folder(copied: Copy, bert: Made) -> None:
    """The library calls the folder of a fusion by the names in its members' configs."""
    folder = copied("bert/fusion_static")
    outside = folder.parent / "outside"
    (folder / "a,b").rename(f"{outside},b")
    config, file = folder / "a" / "adapter_config.json", folder / "a" / "adapter.safetensors"
    config.write_text(config.read_text().replace('"name": "a"', f'"name": "{outside}"'))
    save_file({key.replace(".adapters.a.", f".adapters.{outside}."): it for key, it in load_file(file).items()}, file)
    with pytest.raises(FormatError, match=rf"not a valid folder name; found `{outside},b`"):
        imported(folder, bert)


def compose(folder: Path, kind: str, *names: str, **kwargs: Any) -> None:
    children = [{"type": "single", "children": [name]} for name in names]
    edit_setup(folder, adapter_setup={"type": kind, "children": children, **({"kwargs": kwargs} if kwargs else {})})


def edit_setup(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_setup.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "config": {**document["config"], **changes}}))


def single(name: str) -> dict[str, Any]:
    return {"type": "single", "children": [name]}


TREES: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    r"selects an adapter per row of a batch.*found `Parallel`.*`a`, `b`; build all of them.*adapters=\[": (
        UsageError,
        {"type": "Parallel", "children": [single("a"), single("b")]},
    ),
    r"selects an adapter per part of a text, Aᵢ\(h\) from token.*found `Split` in a `Stack`": (
        UsageError,
        {"type": "Stack", "children": [{"type": "Split", "children": [single("a"), single("b")]}]},
    ),
    r"found `Average` in a `Average`": (
        UsageError,
        {"type": "Average", "children": [single("a"), {"type": "Average", "children": [single("b")]}]},
    ),
    r"a composition without children": (FormatError, {"type": "Stack", "children": []}),
    r"a single adapter without a name": (FormatError, {"type": "Stack", "children": [{"type": "single"}]}),
    r"not a valid folder name; found `../a`": (FormatError, {"type": "Stack", "children": [single("../a")]}),
    r"an adapter occurs twice in its composition; found `a`": (
        AdapterError,
        {"type": "Stack", "children": [single("a"), single("a")]},
    ),
    r"do not match its children; found `kwargs`: {'weights': \[1\]}": (
        FormatError,
        {"type": "Average", "children": [single("a"), single("b")], "kwargs": {"weights": [1]}},
    ),
    r"found `NaN`, which is not a JSON number": (
        FormatError,
        {"type": "Average", "children": [single("a"), single("b")], "kwargs": {"weights": [float("nan"), 1]}},
    ),
    r"found `kwargs`: {'weights': \['1', True\]}": (
        FormatError,
        {"type": "Average", "children": [single("a"), single("b")], "kwargs": {"weights": ["1", True]}},
    ),
}


@pytest.mark.parametrize("message", TREES)
def test_invalid_compositions_are_refused(message: str, copied: Copy, bert: Made) -> None:
    error, tree = TREES[message]
    folder = copied("bert/setup_stack")
    edit_setup(folder, adapter_setup=tree)
    with pytest.raises(error, match=message):
        imported(folder, bert)


def test_members_that_act_in_different_places_are_refused(copied: Copy, bert: Made) -> None:
    folder = copied("bert/setup_stack")
    compose(folder, "Average", "a", "b")
    change_config(folder / "b", leave_out=[0])
    with pytest.raises(AdapterError, match=r"layers.0.ffn`.*act in different places.*`Average`.*nothing of `b`"):
        imported(folder, bert)


def test_import_notes_results_dropped_by_a_parallel_adapter(bert: Made) -> None:
    for case, name in (("setup_stack_parallel_last", "b"), ("setup_stack_parallel_first", "a")):
        (note,) = imported(case, bert).notes
        assert f"drops results before a parallel adapter (`{name}`)" in note


def test_low_rank_adapters_are_composed_as_the_library_can(copied: Copy, bert: Made) -> None:
    folder = copied("bert/setup_stack_lora_bottleneck")
    compose(folder, "Average", "a", "b")
    with pytest.raises(AdapterError, match=r"LoRA and IA3 are stacked.*found `Average` of `a`, `b`.*member=.a.`"):
        imported(folder, bert)
    compose(folder, "Stack", "a", "b")
    shutil.rmtree(folder / "b")
    shutil.copytree(FIXTURES / "bert/setup_average_ia3/b", folder / "b")
    with pytest.raises(AdapterError, match="its members act in different places or ways"):
        imported(folder, bert)
    change_config(folder / "a", use_dora=True)
    with pytest.raises(AdapterError, match=r"a stack or an average with DoRA.*found `a`"):
        imported(folder, bert)
    wide = copied("bert/lora_ffn_only")
    shutil.copytree(wide, folder / "c")
    shutil.copytree(wide, folder / "d")
    compose(folder, "Stack", "c", "d")
    with pytest.raises(AdapterError, match=r"second LoRA reads what the first one adds.*found `layers\.0\.ffn\.down`"):
        imported(folder, bert)

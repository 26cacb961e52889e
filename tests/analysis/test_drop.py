"""AdapterDrop: what an adapter loses without its lowest layers, and adapters that learn to do without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from heard import Interrupt

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.torch_backend.attach import attach


def test_drop_writes_a_curve_and_a_smaller_adapter(taught: Path, tmp_path: Path) -> None:
    given = ["--base", taught / "model.pt", "--data", taught / "test.tsv", "--layers", 1, "-o", tmp_path / "upper"]
    given += ["--plot", tmp_path / "drop.svg", "--json"]
    ran = CliRunner().invoke(main, ["drop", str(taught / "teacher"), *map(str, given)])
    assert ran.exit_code == 0, ran.stderr
    found = json.loads(ran.stdout)
    whole, upper = ae.load_adapter(taught / "teacher"), ae.load_adapter(tmp_path / "upper")
    assert [one["layers"] for one in found["curve"]] == [[], [0], [0, 1]]
    assert [one["sites"] for one in found["curve"]] == [4, 2, 0]
    assert found["curve"][0]["scores"]["accuracy"]["value"] == whole.training["test"]["accuracy"]
    assert found["written"] == found["curve"][1]
    assert found["curve"][1]["parameters"] == upper.cost().parameters < whole.cost().parameters
    assert list(upper.placements) == [site for site in whole.placements if "layers.1" in site]
    assert upper.training["whole"]["training"] == whole.training
    assert b"<svg" in (tmp_path / "drop.svg").read_bytes()
    assert "idle slots take" in found["notes"][-1]
    base = ae.open_base(taught / "model.pt")
    bundle = ae.build(base, [upper], tmp_path / "bundle", variants=["slots"])
    assert {slot.site for slot in bundle.manifest.slots} == {*upper.placements, "head"}, "no slots where it was dropped"
    score = ae.evaluate(bundle, taught / "test.tsv").scores["accuracy"]
    assert score.value == found["curve"][1]["scores"]["accuracy"]["value"]


def test_left_out_layers_act_as_if_absent(taught: Path) -> None:
    base, whole = ae.open_base(taught / "model.pt"), ae.load_adapter(taught / "teacher")
    sites = base.sites.map
    lowest = next(iter(whole.layers(sites).values()))
    ids = torch.arange(10).reshape(2, 5)
    inputs = {record.name: ids if record.name == "input_ids" else torch.ones_like(ids) for record in base.inputs}
    model, smaller = attach(base.torch, whole, sites=sites), attach(base.torch, whole.without(lowest), sites=sites)
    before = model.head(**inputs)
    model.leave_out(lowest)
    assert torch.equal(model.head(**inputs), smaller.head(**inputs))
    assert not torch.equal(model.head(**inputs), before)
    model.leave_out(())
    assert torch.equal(model.head(**inputs), before)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layers": 3}, "acts in fewer layers"),
        ({"leave_out": (5,)}, "acts in other layers"),
        ({"layers": 1, "leave_out": (0,)}, "exclude each other"),
        ({"output": "upper"}, "no layers were chosen for the adapter to write"),
        ({"plot": "drop.pdf"}, "unknown chart format"),
    ],
    ids=str,
)
def test_drop_refuses_invalid_options(given: dict[str, Any], words: str, taught: Path) -> None:
    with pytest.raises(UsageError, match=words):
        ae.drop(taught / "teacher", taught / "model.pt", taught / "test.tsv", **given)


def test_a_head_alone_has_no_layers(taught: Path) -> None:
    whole = ae.load_adapter(taught / "teacher")
    with pytest.raises(AdapterError, match="acts in no layer"):
        ae.drop(whole.without(list(whole.placements)), taught / "model.pt", taught / "test.tsv")


def test_training_with_drops_ends_with_the_same_bits(taught: Path, tmp_path: Path) -> None:
    def train(name: str, drops: int = 1, **more: Any) -> Adapter:
        settings = {"kind": "pfeiffer", "bottleneck": 4, "epochs": 2, "batch_size": 8, "drop_layers": drops}
        return ae.train(taught / "model.pt", taught / "train.tsv", tmp_path / name, **settings, **more)

    whole, other = train("whole"), train("other", drops=0)
    with pytest.raises(KeyboardInterrupt):
        train("halted", reporter=Interrupt(15))
    halted = train("halted", resume=True)
    assert all(np.array_equal(tensor, halted.weights[name]) for name, tensor in whole.weights.items())
    assert any(not np.array_equal(tensor, other.weights[name]) for name, tensor in whole.weights.items())
    assert whole.training["settings"]["drop_layers"] == 1
    with pytest.raises(UsageError, match="at least one layer must always be trained"):
        train("all", drops=2)

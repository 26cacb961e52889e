"""A kind made of known ops: one new file, and every command has it with its options."""

from __future__ import annotations

import itertools
from pathlib import Path

from small_encoder import BAD, GOOD, OTHER, save_encoder

FILE = "graph/kinds/bent.py"
KIND = '''"""A kind for a trial: a bent low-rank update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from adapter_export.graph.chain import Chain
from adapter_export.graph.kinds.kind import Component, Kind, KindOption, LayerOptions, Maker, Places
from adapter_export.graph.ops import ACTIVATIONS


@dataclass(frozen=True)
class BentOptions(LayerOptions):
    """A width, a place, and a number that no tensor shows."""

    waist: Annotated[int, KindOption("Width of the bend.", least=1, sweeps="width")] = 3
    spots: Annotated[tuple[str, ...], KindOption("Where.", sweeps="place", packed="optional")] = ("ffn",)
    bend: Annotated[str, KindOption("Function of the bend.", choices=ACTIVATIONS, packed="required")] = "tanh"


def _kind(options: BentOptions) -> Kind:
    chain = Chain("x")
    chain.linear("inward", "d", "w")
    chain.activation(options.bend)
    chain.linear("outward", "w", "d", bias=False)
    delta, chain.value = chain.value, "h"
    chain.op("add", "result", delta)
    places = Places(options.spots, leave_out=options.left_out())
    return Kind("bent", (Component(f"bent_{options.bend}", chain.graph(), places, {"w": options.waist}),), width="w")


bent = Maker("bent", "`h + U(f(D x))`", _kind, BentOptions())
'''
TABLE = [
    *((f"{a} {b} {word}", label) for label, words in (("good", GOOD), ("bad", BAD)) for word in words
      for a, b in itertools.pairwise(OTHER)),
]  # fmt: skip


def test_a_kind_is_one_file(trial, tmp_path: Path) -> None:
    base, data = save_encoder(tmp_path / "model.pt"), tmp_path / "train.tsv"
    data.write_text("\n".join("\t".join(row) for row in [("text", "label"), *TABLE]) + "\n", encoding="utf-8")
    trial.add(FILE, KIND)
    assert "--waist INTEGER RANGE" in trial.command("train", "--help", "kind")
    settings = ("--kinds", "bent", "--bottlenecks", "2", "--placements", "ffn", "--seeds", "0", "--epochs", "1")
    own = ("--bend", "silu", "--leave-out", "0")
    trial.command("sweep", base, "--data", data, *settings, *own, "-o", tmp_path / "sweep")
    (mine,) = (tmp_path / "sweep" / "runs").iterdir()
    packing = ("--kind", "bent", *own, "--labels", "bad,good", "--base", base)
    packed = trial.json("pack", mine / "weights.safetensors", *packing, "-o", tmp_path / "packed")
    assert packed["sites"] == ["layers.1.ffn"]
    adapters = f"mine={mine},packed={tmp_path / 'packed'}"
    trial.command("build", base, "--adapters", adapters, "-o", tmp_path / "bundle")
    trial.command("check", tmp_path / "bundle", "--quick")
    assert trial.touched == [FILE]

"""The section on compositions in `docs/reference/kinds.md` against the code: costs, and the options of fusions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.compose import STATIC, adapter_fusion, average, stack, weighted_fusion
from adapter_export.graph.kinds import BottleneckOptions
from adapter_export.graph.kinds.bottleneck import Wiring, wired
from adapter_export.option import OptionsOf
from adapter_export.training.fusion import FusionSpec, FusionType

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "kinds.md").read_text(encoding="utf-8")
WIDTH, B, SITE = 12, 3, "layers.0.ffn"


def table(marker: str) -> list[list[str]]:
    """The cells of the table below a comment, without its two head lines, or of the list there, split at its colons."""
    lines = PAGE.split(f"<!-- {marker} -->\n", 1)[1].split("\n\n", 1)[0].splitlines()
    if lines[0].startswith("- "):
        return [line.removeprefix("- ").split(": ", 1) for line in lines]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


COSTS = {row[0]: row[3:] for row in table("compositions")}
MAKE: dict[str, Callable[..., Adapter]] = {
    "stack": stack,
    "average": average,
    "weighted fusion": weighted_fusion,
    "AdapterFusion, dynamic": adapter_fusion,
    "AdapterFusion, static": lambda *members, name: adapter_fusion(*members, name=name, options=STATIC),
}


def member(name: str) -> Adapter:
    graph, widths = wired(Wiring(), BottleneckOptions()), {"d": WIDTH, "b": B}
    weights = {f"{SITE}.{key}": np.ones(shape, np.float32) for key, shape in graph.parameter_shapes(widths).items()}
    return Adapter(name, "custom", "base", {"g": graph}, {SITE: Placement("g", widths)}, weights)


def number(formula: str, **symbols: int) -> int:
    assert re.fullmatch(r"[a-zN0-9·+() ]+", formula), formula
    return int(eval(formula.replace("·", "*"), {"__builtins__": {}}, symbols))  # noqa: S307 - our own page


def test_every_composition_has_a_row() -> None:
    assert COSTS.keys() == MAKE.keys()


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("name", MAKE)
def test_costs_are_those_of_the_code(name: str, count: int) -> None:
    members = [member(f"m{index}") for index in range(count)]
    whole, alone = MAKE[name](*members, name="c").cost(), [one.cost() for one in members]
    own = (
        whole.parameters - sum(one.parameters for one in alone),
        whole.multiply_accumulates - sum(one.multiply_accumulates for one in alone),
    )
    assert own == tuple(number(formula, d=WIDTH, N=count) for formula in COSTS[name])


def test_the_options_of_fusions_are_those_of_the_command() -> None:
    named = re.findall(r"`--([a-z-]+)`", " ".join(row[0] for row in table("fusion options")))
    assert sorted(named) == sorted(name.replace("_", "-") for name in ("fuse", *OptionsOf(FusionSpec).defaults()))
    kinds = next(row[1] for row in table("fusion options") if row[0] == "`--fusion`")
    assert tuple(re.findall(r"`([a-z]+)`", kinds)) == get_args(FusionType)

"""`docs/reference/kinds.md` against the code: every table."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from adapter_export.bases.kinds import kind_options, make_kind
from adapter_export.errors import UsageError
from adapter_export.graph.graph import cost
from adapter_export.graph.initialise import SCHEMES
from adapter_export.graph.kinds import (
    KINDS,
    REFUSED,
    BottleneckConfig,
    BottleneckOptions,
    LoraOptions,
)
from adapter_export.graph.kinds.kind import Component, RelativeWidth
from adapter_export.graph.slot_form import inference_form, neutral_parameters, neutral_widths
from adapter_export.option import OptionsOf
from adapter_export.sites.site import Site

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "kinds.md").read_text(encoding="utf-8")


def table(marker: str) -> list[list[str]]:
    """The cells of the table below a comment, without its two head lines, or of the list there, split at its colons."""
    lines = PAGE.split(f"<!-- {marker} -->\n", 1)[1].split("\n\n", 1)[0].splitlines()
    if lines[0].startswith("- "):
        return [line.removeprefix("- ").split(": ", 1) for line in lines]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


ROWS = {words(row[0])[0]: row[1:] for row in table("kinds")}


def test_every_kind_has_a_row() -> None:
    assert list(ROWS) == list(KINDS)


def number(formula: str, widths: dict[str, int]) -> int:
    assert re.fullmatch(r"[a-z_0-9·+() ]+", formula), formula
    return int(eval(formula.replace("·", "*"), {"__builtins__": {}}, widths))  # noqa: S307 - our own page


@pytest.mark.parametrize("name", KINDS)
def test_places_and_costs_are_those_of_the_code(name: str) -> None:
    acts_at, replaces, _, _, parameters, accumulates = ROWS[name]
    kind = KINDS[name]()
    assert acts_at == kind.places()
    assert words(replaces) == [part.graph.replaces for part in kind.components]
    for d, b in ((384, 12), (768, 64)):
        for part in kind.components:
            widths = {"d": d, "d_in": d, "b": b, "r": 6, "f": 10, "g": 20, "n": 4, "k": 1, "p": d // 4, "q": b // 4}
            shared = {shape for key, shape in part.graph.parameter_shapes(widths).items() if key in part.graph.shared}
            found = cost(part.graph, widths)
            rule = 64 if shared else 0
            assert number(parameters, widths) == found.parameters - rule
            assert number(accumulates, widths) == cost(inference_form(part.graph), widths).multiply_accumulates


@pytest.mark.parametrize("name", KINDS)
def test_the_widths_are_the_defaults(name: str) -> None:
    for part in KINDS[name]().components:
        for symbol in set(part.widths) & set("bfgr"):
            width = part.widths[symbol]
            shown = (
                f"d/{width.factor:g}"
                if isinstance(width, RelativeWidth) and isinstance(width.factor, float | int)
                else width
            )
            assert f"`{symbol}` = " in ROWS[name][3]
            assert ROWS[name][3].endswith(f"= {shown}")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_can_lie_idle(name: str) -> None:
    for part in KINDS[name]().components:
        form = inference_form(part.graph)
        assert neutral_parameters(form, neutral_widths(form, {"d": 12, "d_in": 12})).keys() == form.parameters.keys()


def test_documented_parameter_counts_match_the_kinds() -> None:
    """A base of 6 layers of width 384."""
    places = [(layer, role) for layer in range(6) for role in ("attention", "ffn")]
    layers = [Site(f"layers.{layer}.{role}", role, layer, 384, 384, "h") for layer, role in places]
    for name, said in (("houlsby", 595_200), ("seq_bn", 113_040), ("compacter", 14_320)):
        kind = KINDS[name]()
        rules = 64 * (len(list(kind.at(layers))) - 1) if name == "compacter" else 0
        found = sum(cost(part.graph, part.widths_at(site)).parameters for site, part in kind.at(layers)) - rules
        assert found == said
        assert f"{said:,}" in PAGE


def have(option: str, value: Any) -> list[str]:
    """The kinds that take an option."""
    taking = []
    for name in KINDS:
        try:
            make_kind(name, {option: value})
        except UsageError as error:
            if "no such option" in error.what:
                continue
        taking.append(name)
    return taking


def test_every_option_has_a_row_with_its_kinds() -> None:
    rows = {words(row[0])[0].removeprefix("--").replace("-", "_"): row[1] for row in table("options")}
    assert sorted(rows) == sorted(OptionsOf(kind_options).defaults())
    values: dict[str, Any] = {
        "sublayers": ("ffn",),
        "leave_out": ("0",),
        "modules": ("query",),
        "scaled_inputs": ("up",),
        "activation": "elu",
    }
    for option, kinds in rows.items():
        named = (
            [name for name in KINDS if isinstance(KINDS[name].defaults, BottleneckOptions)]
            if "bottlenecks" in kinds
            else []
        )
        named += [name for name in words(kinds) if not kinds.startswith("all")]
        if kinds.startswith("all"):
            named = [name for name in KINDS if name not in words(kinds)]
        assert have(option, values.get(option, 2)) == named, option


def test_documented_schemes_match_the_kinds() -> None:
    assert [words(row[0])[0] for row in table("schemes")] == list(SCHEMES)
    assert "`kaiming_zero_up` for its parallel ones and LoRA" in PAGE
    by_scheme: dict[str, list[str]] = {}
    for name in KINDS:
        by_scheme.setdefault(KINDS[name]().scheme, []).append(name)
    assert by_scheme == {
        "small_normal": ["houlsby", "pfeiffer", "parallel", "adapter_plus", "ia3"],
        "normal": ["seq_bn", "double_seq_bn", "compacter", "compacter++", "nice"],
        "kaiming_zero_up": ["par_bn", "scaled_par_bn", "lora"],
    }


def only(kind: str, options: Any = None) -> Component:
    return KINDS[kind](options).components[0]


TENSORS = {
    "bottlenecks": only("houlsby"),
    "with `--norm-before`": only("houlsby", BottleneckOptions(norm_before=True)),
    "with `--norm-after`": only("houlsby", BottleneckOptions(norm_after=True)),
    "with `--scaling learned`": only("houlsby", BottleneckOptions(scaling="learned")),
    "with `--scaling channel`": only("houlsby", BottleneckOptions(scaling="channel")),
    "with `--gate`": only("houlsby", BottleneckOptions(gate=True)),
    "with `--phm-dim`": only("houlsby", BottleneckOptions(phm_dim=4)),
    "`nice`": only("nice"),
    "`lora`": only("lora"),
    "with `--lora-bias`": only("lora", LoraOptions(lora_bias=True)),
    "`ia3`": only("ia3"),
}


def test_the_tensors_are_those_of_the_graphs() -> None:
    rows = {row[0]: re.findall(r"`(\S+)` \[([^\]]+)\]", row[1]) for row in table("tensors")}
    assert list(rows) == list(TENSORS)
    for row, part in TENSORS.items():
        said = {name: [int(dim) if dim.isdigit() else dim for dim in shape.split(", ")] for name, shape in rows[row]}
        found = {name: list(shape) for name, shape in part.graph.parameters.items()}
        if row.startswith("with") and "phm" not in row:
            assert said.items() <= found.items(), row
        else:
            assert said == found, row


def test_documentation_lists_every_configuration_field() -> None:
    said = [name for row in table("config") for name in words(row[0])]
    assert sorted(said) == sorted(field.name for field in fields(BottleneckConfig))


def test_documented_refusals_match_the_code() -> None:
    assert {words(row[0])[0]: row[1] for row in table("refused")} == REFUSED

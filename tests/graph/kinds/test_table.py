"""The table of kinds: every kind makes its graphs, takes its options and no others."""

from __future__ import annotations

import pkgutil
from dataclasses import fields
from importlib import import_module

import pytest

from adapter_export.errors import UsageError
from adapter_export.graph import kinds
from adapter_export.graph.kinds import KINDS, REFUSED, BottleneckOptions, LoraOptions, Maker, kind_named


def test_no_two_kinds_have_one_name() -> None:
    modules = [import_module(module.name) for module in pkgutil.iter_modules(kinds.__path__, f"{kinds.__name__}.")]
    makers = [one for module in modules for one in vars(module).values() if isinstance(one, Maker)]
    assert all(KINDS[maker.name] is maker for maker in makers)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_its_name_and_its_places(name: str) -> None:
    kind = KINDS[name]()
    assert kind.name == name
    assert kind.places()
    assert kind.graphs.keys() == {part.graph_name for part in kind.components}
    assert kind == KINDS[name].changed()


def test_kinds_act_at_their_documented_places() -> None:
    assert {name: kind().places() for name, kind in KINDS.items()} == {
        "houlsby": "attention or ffn",
        "pfeiffer": "ffn",
        "parallel": "ffn",
        "seq_bn": "ffn",
        "double_seq_bn": "attention or ffn",
        "par_bn": "ffn",
        "scaled_par_bn": "ffn",
        "adapter_plus": "ffn",
        "compacter": "attention or ffn",
        "compacter++": "ffn",
        "nice": "embeddings",
        "lora": "`query` or `value`",
        "ia3": "`key` or `value`; `ffn.down`",
    }


@pytest.mark.parametrize("name", [name for name in KINDS if isinstance(KINDS[name].defaults, BottleneckOptions)])
def test_a_changed_option_leaves_the_others(name: str) -> None:
    maker = KINDS[name]
    assert maker.changed(norm_before=True) == maker(BottleneckOptions(**{**_values(name), "norm_before": True}))
    assert "norm_before.weight" in maker.changed(norm_before=True).graph.parameters


def _values(name: str) -> dict[str, object]:
    defaults = KINDS[name].defaults
    return {field.name: getattr(defaults, field.name) for field in fields(defaults)}


def test_options_that_a_kind_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match=r"`lora` has no such option; found `activation`; expected .*`rank`, `alpha`"):
        KINDS["lora"].changed(activation="relu")
    with pytest.raises(UsageError, match="options of another kind; found LoraOptions; expected BottleneckOptions"):
        KINDS["houlsby"](LoraOptions())


def test_widths_that_a_kind_does_not_have_are_refused() -> None:
    assert KINDS["lora"]().with_widths(r=2).components[0].widths == {"r": 2}
    with pytest.raises(UsageError, match="kind `lora` has no width `b`; found 4"):
        KINDS["lora"]().with_widths(b=4)
    with pytest.raises(UsageError, match="the width `b` is too small; found 0"):
        KINDS["houlsby"]().with_widths(b=0)


def test_kronecker_products_have_biases() -> None:
    with pytest.raises(UsageError, match="projections of Kronecker products always have biases"):
        KINDS["compacter"].changed(no_bias=True)


@pytest.mark.parametrize("name", [*REFUSED, "DoRA", "prefix-tuning"])
def test_kinds_without_a_graph_are_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=rf"`{name}` cannot be expressed yet: it "):
        kind_named(name)


def test_an_unknown_kind_is_refused() -> None:
    assert kind_named("ia3") is KINDS["ia3"]
    with pytest.raises(UsageError, match="unknown kind; found `magic`; expected `houlsby`, `pfeiffer`"):
        kind_named("magic")

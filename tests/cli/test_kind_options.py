"""Options of kinds: each has its effect, and options that a kind lacks are errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from hand_made_sites import encoder, site

from adapter_export.bases.kinds import kind_options, make_kind, packed_options
from adapter_export.cli.main import main
from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.kinds import KINDS, BottleneckOptions, Ia3Options, LoraOptions
from adapter_export.option import OptionsOf
from adapter_export.sites.site import SiteMap

SITES = encoder()
OPTIONS = tuple(OptionsOf(kind_options).defaults())


@pytest.mark.parametrize("name", KINDS)
def test_default_options_give_the_published_kind(name: str) -> None:
    assert make_kind(name, dict.fromkeys(OPTIONS)) == KINDS[name]()


@pytest.mark.parametrize(
    ("name", "given", "options"),
    [
        (
            "houlsby",
            {"activation": "silu", "no_bias": True, "gate": True},
            BottleneckOptions("silu", no_bias=True, gate=True),
        ),
        ("par_bn", {"norm_after": True}, BottleneckOptions("relu", 4.0, norm_after=True)),
        ("adapter_plus", {"drop_path": 0.3, "scaling": 2.0}, BottleneckOptions("gelu", 2.0, drop_path=0.3)),
        ("houlsby", {"phm_dim": 2, "phm_rank": 3}, BottleneckOptions("gelu", phm_dim=2, phm_rank=3)),
        ("compacter", {"phm_rank": 2}, BottleneckOptions("gelu", phm_dim=4, phm_rank=2)),
        ("lora", {"rank": 4, "alpha": 8, "modules": ("value",)}, LoraOptions(("value",), 4, 8)),
        (
            "lora",
            {"rank": {"query": 2}, "alpha": {"value": 1}},
            LoraOptions(rank={"query": 2, "default": 8}, alpha={"value": 1}),
        ),
        ("lora", {"rs_lora": True, "lora_bias": True}, LoraOptions(rs_lora=True, lora_bias=True)),
        ("ia3", {"modules": ("key",), "scaled_inputs": ("ffn.down",)}, Ia3Options(("key",))),
    ],
)
def test_options_change_the_graph(name: str, given: dict[str, Any], options: Any) -> None:
    assert make_kind(name, given) == KINDS[name](options)


def widths(name: str, symbol: str = "b", **given: Any) -> dict[str, int]:
    placements = make_kind(name, given).placements(SITES)
    return {site.removeprefix("layers."): placement.widths[symbol] for site, placement in placements.items()}


def test_widths_are_numbers_or_parts_of_the_width() -> None:
    assert widths("pfeiffer") == {"0.ffn": 64, "1.ffn": 64}
    assert widths("pfeiffer", bottleneck=3) == {"0.ffn": 3, "1.ffn": 3}
    assert widths("seq_bn", reduction_factor=5) == {"0.ffn": 3, "1.ffn": 3}
    assert widths("seq_bn", reduction_factor={"1": 8, "default": 2}) == {"0.ffn": 8, "1.ffn": 2}
    assert widths("nice", "f", reduction_factor=4) == {"embeddings": 2}
    assert set(widths("lora", "r", rank={"query": 2}).values()) == {2, 8}


def test_places_are_sublayers_and_layers() -> None:
    assert list(widths("houlsby", sublayers=("attention",), leave_out=("0",))) == ["1.attention"]
    assert list(widths("pfeiffer", sublayers=("attention", "ffn"))) == ["0.attention", "0.ffn", "1.attention", "1.ffn"]
    assert list(widths("lora", "r", modules=("ffn.up",), leave_out=("1",))) == ["0.ffn.up"]


def flag(name: str) -> str:
    return f"`--{name.replace('_', '-')}`"


VALUES: dict[str, Any] = {
    **dict.fromkeys(OPTIONS, True),
    **dict.fromkeys(("bottleneck", "reduction_factor", "rank", "alpha", "phm_dim", "phm_rank", "scaling"), 3),
    **dict.fromkeys(("dropout", "drop_path"), 0.1),
    **{"sublayers": ("ffn",), "leave_out": ("0",), "modules": ("query",), "scaled_inputs": ("value",)},
    "activation": "elu",
}
HAVE = {
    "houlsby": "activation scaling dropout drop_path norm_before norm_after gate no_bias phm_dim phm_rank sublayers "
    "leave_out bottleneck reduction_factor",
    "lora": "dropout gate modules rank alpha rs_lora lora_bias leave_out",
    "ia3": "modules scaled_inputs leave_out",
    "nice": "activation reduction_factor",
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", HAVE)
def test_an_option_that_a_kind_does_not_have_is_an_error(name: str, option: str) -> None:
    given = {option: VALUES[option]}
    if option in HAVE[name].split():
        made = make_kind(name, given | ({"modules": ("query",)} if option == "scaled_inputs" else {}))
        assert made != KINDS[name](), "the option changes nothing"
    else:
        with pytest.raises(UsageError) as error:
            make_kind(name, given)
        words = error.value.sentence("shell")
        assert words.startswith(f"kind `{name}` has no such option; found {flag(option)}; expected `--")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("houlsby", {"bottleneck": 0}, "`--bottleneck` is too small"),
        ("houlsby", {"bottleneck": 4, "reduction_factor": 4}, "exclude each other"),
        ("houlsby", {"sublayers": ("head",)}, "`--sublayers` names no sublayer; found `head`"),
        ("houlsby", {"leave_out": ("first",)}, "`--leave-out` names no layer; found `first`"),
        ("houlsby", {"phm_dim": 0}, "`--phm-dim` is too small"),
        ("houlsby", {"reduction_factor": {"one": 2}}, "not a layer; found `one`"),
        ("nice", {"reduction_factor": {"0": 2}}, "has one reduction factor"),
        ("lora", {"rank": 1.5}, "`--rank` is a whole number; found 1.5"),
        ("lora", {"rank": {"key": 2}}, "at which LoRA does not act; found `key`"),
        ("lora", {"rank": {"query": 1.5}}, "`--rank` is a whole number; found 1.5"),
    ],
)
def test_invalid_kind_options_are_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make_kind(name, given)
    assert message in error.value.sentence("shell")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "lora",
            {"modules": ("query", "qurey")},
            "no site for kind `lora`; found embeddings, attention.query.*expected `qurey`",
        ),
        ("ia3", {"scaled_inputs": ("ffn.gate",)}, "no site for kind `ia3`.*expected `ffn.gate`"),
        (
            "houlsby",
            {"leave_out": ("0", "2")},
            "a layer is left out that the base does not have; found 2; expected below 2",
        ),
        (
            "houlsby",
            {"leave_out": ("0", "1")},
            "no site for kind `houlsby`.*expected attention or ffn outside the layers 0, 1",
        ),
    ],
)
def test_places_that_the_base_does_not_have(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        make_kind(name, given).placed(SITES)


def test_parts_of_a_fused_layer_are_places() -> None:
    fused = site("layers.0.attention.qkv", "linear", 0, 48)
    sites = SiteMap((replace(fused, parts={"query": (0, 16), "key": (16, 32), "value": (32, 48)}),), "final", 16)
    placed = make_kind("lora", {}).placements(sites)
    assert {name: place.widths["d"] for name, place in placed.items()} == {
        "layers.0.attention.query": 16,
        "layers.0.attention.value": 16,
    }
    assert list(make_kind("lora", {"modules": ("qkv",)}).placements(sites)) == ["layers.0.attention.qkv"]


def test_fused_layers_with_mixed_parts_are_named() -> None:
    sites = SiteMap((site("layers.0.attention.qkv", "linear", 0, 48),), "final", 16)
    advice = "computes `query`, `value` in one layer, mixed: name `attention.qkv` instead"
    with pytest.raises(AdapterError, match=advice):
        make_kind("lora", {}).placed(sites)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kind", "vera"), "`vera` cannot be expressed yet: it shares frozen random projections"),
        (("--kind", "magic"), "unknown kind; found `magic`"),
        (("--kind", "lora", "--alpha", "much"), "is neither a number nor a list such as `query=8,value=4`"),
        (("--kind", "houlsby", "--scaling", "big"), "is neither a number nor `learned` or `channel`"),
        (("--kind", "houlsby", "--sublayers", "attention,"), "has an empty item"),
    ],
)
def test_command_line_refuses_invalid_kind_options(options: tuple[str, ...], words: str) -> None:
    found = CliRunner().invoke(main, ["pack", "w", "--base", "b", *options, "-o", "a"])
    assert found.exit_code == 2, found.output
    assert words in " ".join(found.stderr.split())


def test_pack_takes_only_options_that_tensors_do_not_show() -> None:
    assert set(OptionsOf(packed_options).defaults()) == {
        *("sublayers", "leave_out", "modules", "scaled_inputs", "activation", "scaling", "alpha", "rs_lora"),
    }

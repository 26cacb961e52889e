"""Bases with two residual streams, and cross-attention, on graphs written by hand."""

from __future__ import annotations

import pytest

from adapter_export.errors import NoSitesError
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.sites.view import FlowGraph, FlowNode, NodeKind

KINDS: dict[str, NodeKind] = {
    "linear": "product",
    "matmul": "product",
    "sdpa": "attention",
    "add": "add",
} | dict.fromkeys(("softmax", "gelu"), "activation")

ATTENTION = """
    {h}q = linear {x}
    {h}k = linear {source}
    {h}v = linear {source}
    {h}s = matmul {h}q {h}k
    {h}p = softmax {h}s
    {h}c = matmul {h}p {h}v
    {h} = linear {h}c
    {out} = add {x} {h}
"""
FUSED = """
    {h}q = linear {x}
    {h}k = linear {source}
    {h}v = linear {source}
    {h}c = sdpa {h}q {h}k {h}v
    {h} = linear {h}c
    {out} = add {x} {h}
"""
FFN = """
    {h}u = linear {x}
    {h}f = gelu {h}u
    {h} = linear {h}f
    {out} = add {x} {h}
"""


def attention(x: str, out: str, *, source: str | None = None, text: str = ATTENTION) -> str:
    return text.format(x=x, h=f"h_{out}", source=source or x, out=out)


def ffn(x: str, out: str) -> str:
    return FFN.format(x=x, h=f"h_{out}", out=out)


def sites(*texts: str, outputs: tuple[str, ...] = ("d3",)) -> SiteMap:
    """Values that begin with `e` are [batch, source, 8], those that begin with `d` [batch, target, 8]."""
    nodes = []
    for line in filter(None, map(str.strip, "".join(texts).splitlines())):
        value, op, *read = line.replace(" = ", " ").split()
        trained = op == "linear"
        kind = KINDS.get(op, "other")
        nodes.append(
            FlowNode(value, kind, op, (*read,), (value,), trained, path=value, linear=trained, operands=(*read,))
        )
    values = {name for node in nodes for name in (*node.inputs, *node.outputs)}
    lengths = {name: "source" if name.removeprefix("h_").startswith("e") else "target" for name in values}
    return discover(FlowGraph(nodes, {name: ("batch", length, 8) for name, length in lengths.items()}, outputs))


def names(found: SiteMap) -> list[str]:
    return [site.name for site in found.sublayers]


ENCODER = attention("e0", "e1") + ffn("e1", "e2") + attention("e2", "e3") + ffn("e3", "e4")
DECODER = attention("d0", "d1") + attention("d1", "d2", source="e4") + ffn("d2", "d3")
LISTED = [
    *("encoder.layers.0.attention", "encoder.layers.0.ffn", "encoder.layers.1.attention", "encoder.layers.1.ffn"),
    *("decoder.layers.0.attention", "decoder.layers.0.cross_attention", "decoder.layers.0.ffn"),
]


@pytest.mark.parametrize("text", [ATTENTION, FUSED])
def test_sublayers_of_encoder_and_decoder_are_found_in_order(text: str) -> None:
    cross = attention("d1", "d2", source="e4", text=text)
    found = sites(ENCODER, attention("d0", "d1", text=text), cross, ffn("d2", "d3"))
    assert names(found) == LISTED
    assert [site.layer for site in found.sublayers] == [0, 0, 1, 1, 2, 2, 2]
    assert found.final == "d3"


def test_keys_and_values_of_cross_attention_read_the_encoder() -> None:
    found = {site.name: site for site in sites(ENCODER, DECODER) if site.role == "linear"}
    inside = {name: found[f"decoder.layers.0.cross_attention.{name}"].u for name in ("query", "key", "value")}
    assert inside == {"query": "d1", "key": "e4", "value": "e4"}


def test_the_decoder_may_begin_before_the_encoder() -> None:
    first, *others = DECODER.partition("    h_d2q")
    assert names(sites(first, ENCODER, *others)) == LISTED


def test_the_encoder_may_be_the_shorter_one() -> None:
    found = sites(attention("e0", "e1") + ffn("e1", "e4"), DECODER)
    assert names(found) == [LISTED[0], LISTED[1], *LISTED[4:]]


def test_a_decoder_alone_attends_to_an_input() -> None:
    found = sites(DECODER)
    assert names(found) == ["layers.0.attention", "layers.0.cross_attention", "layers.0.ffn"]


@pytest.mark.parametrize(
    ("order", "layers"),
    [
        (("cross", "self", "ffn", "cross", "self", "ffn"), [0, 0, 0, 1, 1, 1]),  # Mask2Former
        (("cross", "ffn", "self", "ffn", "self", "ffn"), [0, 0, 1, 1, 2, 2]),  # Perceiver
        (("self", "ffn", "cross", "ffn"), [0, 0, 1, 1]),  # Llama with images
    ],
)
def test_layers_are_numbered_in_any_sublayer_order(order: tuple[str, ...], layers: list[int]) -> None:
    parts = {"self": attention, "cross": lambda x, out: attention(x, out, source="e4"), "ffn": ffn}
    text = "".join(parts[name](f"d{at}", f"d{at + 1}") for at, name in enumerate(order))
    found = sites(text, outputs=(f"d{len(order)}",))
    assert [site.layer for site in found.sublayers] == layers


def test_two_streams_that_attend_to_each_other_are_refused() -> None:
    both = attention("e0", "e1", source="d0") + attention("d0", "d1", source="e0")
    both += attention("e1", "e2", source="d1") + attention("d1", "d2", source="e1")
    with pytest.raises(NoSitesError, match="2 streams, of 2, 2 sublayers"):
        sites(both, outputs=("e2", "d2"))


def test_an_encoder_beside_two_decoders_is_refused() -> None:
    second = attention("f0", "f1") + attention("f1", "f2", source="e4") + ffn("f2", "f3")
    with pytest.raises(NoSitesError, match="3 streams"):
        sites(ENCODER, DECODER, second, outputs=("d3", "f3"))

"""The rules of discovery, one by one, on graphs written by hand."""

from __future__ import annotations

import time

import pytest
from flows import flow
from hypothesis import given
from hypothesis import strategies as st

from adapter_export.errors import NoSitesError
from adapter_export.sites.discover import discover
from adapter_export.sites.view import Dim, FlowGraph, FlowNode


def names(graph: FlowGraph) -> list[str]:
    return [site.name for site in discover(graph).sublayers]


def refused(graph: FlowGraph) -> bool:
    try:
        discover(graph)
    except NoSitesError:
        return True
    return False


ATTENTION = """
    q = linear x
    k = linear x
    v = linear x
    scores = matmul q k
    weights = softmax scores
    context = matmul weights v
    h = linear context
    out = add x h
"""


def test_sums_with_weighted_results_are_sublayers():
    (site,) = discover(flow("inner = linear x \n act = gelu inner \n h = linear act \n out = add h x"))
    assert (site.name, site.role, site.layer, site.width) == ("layers.0.ffn", "ffn", 0, 8)
    assert (site.h, site.x, site.u, site.residual, site.followed_by) == ("h", "x", "x", "node_out", "output")
    assert site.path == "module.h"


def test_sublayers_with_a_product_of_activations_are_attention():
    assert names(flow(ATTENTION)) == ["layers.0.attention"]


def test_sublayers_with_a_fused_attention_are_attention():
    assert names(flow("qkv = linear x \n c = sdpa qkv \n h = linear c \n out = add x h")) == ["layers.0.attention"]


def test_router_softmax_does_not_make_a_sublayer_attention():
    experts = """
        gate = linear x
        share = softmax gate
        expert = linear x
        h = mul share expert
        out = add x h
    """
    assert names(flow(experts)) == ["layers.0.ffn"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "a = embed ids \n b = embed types \n out = add a b", id="embeddings: neither depends on the other"
        ),
        pytest.param("cube = pow x \n scaled = mul cube \n out = add x scaled", id="polynomial of GELU: no weights"),
        pytest.param("y = matmul x x \n out = add x y", id="product without weights"),
        pytest.param("a = linear x \n b = linear x \n out = add a b", id="two branches of x, but not x itself"),
        pytest.param("y = linear x \n out = linear y", id="no sum at all"),
        pytest.param("y = conv x \n z = relu y \n w = conv z \n out = add x w", id="convolutions: last axis is space"),
    ],
)
def test_graphs_without_residual_sums_are_refused(text):
    assert refused(flow(text))


def test_a_sum_of_unknown_width_is_none():
    text = "h = linear x \n out = add x h"
    unknown: tuple[Dim, ...] = ("batch", "tokens", "features")
    assert refused(flow(text, shapes=dict.fromkeys(("x", "h", "out"), unknown)))


def test_a_sum_of_images_is_none():
    text = "h = linear x \n out = add x h"
    assert refused(flow(text, shapes=dict.fromkeys(("x", "h", "out"), ("batch", 4, 8, 8))))


def test_a_sum_that_spreads_one_summand_is_none():
    text = "h = linear x \n out = add x h"
    assert refused(flow(text, shapes={"h": ("batch", 1, 8)}))


def test_mask_sums_inside_attention_are_not_sublayers():
    """`tokens` is fixed at 8, so that the scores look as wide as the stream."""
    layer = """
        q{n} = linear {x}
        s{n} = matmul q{n} {x}
        m{n} = add s{n} mask
        w{n} = softmax m{n}
        c{n} = matmul w{n} {x}
        h{n} = linear c{n}
        {out} = add {x} h{n}
    """
    text = layer.format(n=0, x="x", out="y") + layer.format(n=1, x="y", out="out")
    fixed: tuple[Dim, ...] = ("batch", 8, 8)
    graph = flow(text)
    sites = discover(FlowGraph(graph.nodes, dict.fromkeys(graph.shapes, fixed), graph.outputs))
    assert [(site.name, site.x) for site in sites.sublayers] == [
        ("layers.0.attention", "x"),
        ("layers.1.attention", "y"),
    ]


def test_a_sum_inside_a_sublayer_is_none():
    """An adapter that the base has built in adds to `h`, not to the stream."""
    layer = """
        inner{n} = linear {x}
        down{n} = linear inner{n}
        up{n} = linear down{n}
        h{n} = add inner{n} up{n}
        sum{n} = add {x} h{n}
        {out} = norm sum{n}
    """
    sites = discover(flow(layer.format(n=0, x="x", out="y") + layer.format(n=1, x="y", out="out")))
    assert [(site.name, site.h) for site in sites.sublayers] == [("layers.0.ffn", "h0"), ("layers.1.ffn", "h1")]


def test_a_chain_of_sums_inside_a_sublayer_is_no_second_stream():
    layer = """
        i{n} = linear {x}
        j{n} = linear i{n}
        a{n} = add i{n} j{n}
        k{n} = linear a{n}
        h{n} = add a{n} k{n}
        {out} = add {x} h{n}
    """
    ends = ["x", "p", "q", "out"]
    text = "".join(layer.format(n=n, x=ends[n], out=ends[n + 1]) for n in range(3))
    assert [site.h for site in discover(flow(text)).sublayers] == ["h0", "h1", "h2"]


def test_unused_sublayers_are_ignored():
    sites = discover(flow("h = linear x \n out = add x h \n g = linear out \n stray = add out g"))
    assert [site.h for site in sites.sublayers] == ["h"]


def test_the_stream_goes_through_norms_and_scales():
    text = """
        h = linear x
        sum = add x h
        y = norm sum
        kept = scale y
        g = linear y
        out = add kept g
    """
    first, second = discover(flow(text))
    assert (first.followed_by, second.x, second.h) == ("norm", "y", "g")


def test_u_is_the_value_that_every_path_reads():
    text = """
        square = pow x
        mean = mean square
        root = rsqrt mean
        normed = mul x root
        read = mul normed
        gate = linear read
        up = linear read
        inner = mul gate up
        h = linear inner
        out = add x h
    """
    (site,) = discover(flow(text, shapes={"mean": ("batch", "tokens", 1), "root": ("batch", "tokens", 1)}))
    assert site.u == "read"


def test_u_is_x_where_the_ways_part_at_once():
    text = """
        read = norm x
        gate = linear read
        up = linear x
        inner = mul gate up
        h = linear inner
        out = add x h
    """
    assert discover(flow(text)).sublayers[0].u == "x"


def test_u_is_taken_before_a_transposition():
    """Some attentions turn batch and tokens around first; an adapter that read that would be wrong."""
    text = "read = norm x \n turned = view read \n inner = linear turned \n h = view inner \n out = add x h"
    assert discover(flow(text)).sublayers[0].u == "read"


@pytest.mark.parametrize(("first", "second"), [("c", "f"), ("f", "c")])
def test_parallel_sublayers_summed_before_the_residual_are_found(first, second):
    text = f"""
        read = norm x
        q = linear read
        s = matmul q q
        c = linear s
        other = norm x
        g = linear other
        f = linear g
        both = add {first} {second}
        out = add both x
    """
    attention, ffn = discover(flow(text))
    assert (attention.name, attention.h, attention.u) == ("layers.0.attention", "c", "read")
    assert (ffn.name, ffn.h, ffn.u) == ("layers.0.ffn", "f", "other")
    assert attention.x == ffn.x == "x"
    assert attention.residual == ffn.residual == "node_both"


@pytest.mark.parametrize(("first", "second"), [("c", "f"), ("f", "c")])
def test_parallel_sublayers_added_in_sequence_are_found(first, second):
    text = f"""
        read = norm x
        q = linear read
        s = matmul q q
        c = linear s
        f = linear read
        part = add x {first}
        out = add part {second}
    """
    attention, ffn = discover(flow(text))
    assert (attention.name, attention.h, ffn.name, ffn.h) == ("layers.0.attention", "c", "layers.0.ffn", "f")
    assert attention.x == ffn.x == "x"
    assert attention.followed_by == ffn.followed_by == "output"


def test_parallel_sublayers_are_seen_though_their_sums_are_results():
    text = "q = linear x \n s = matmul q q \n c = linear s \n part = add x c \n f = linear x \n out = add part f"
    assert names(flow(text, outputs=("part", "out"))) == ["layers.0.attention", "layers.0.ffn"]


def test_a_sublayer_with_an_attention_upon_its_own_result_is_one():
    text = "g = linear x \n q = linear g \n s = matmul q q \n c = linear s \n h = add g c \n out = add x h"
    assert [(site.role, site.h) for site in discover(flow(text)).sublayers] == [("attention", "h")]


def test_a_low_rank_branch_is_part_of_its_sublayer():
    text = "wide = linear x \n low = linear x \n high = linear low \n h = add wide high \n out = add x h"
    assert [site.h for site in discover(flow(text)).sublayers] == ["h"]


def test_layers_start_at_attention_or_at_a_second_ffn():
    attention = "q{n} = linear {x} \n s{n} = matmul q{n} q{n} \n h{n} = linear s{n} \n {out} = add {x} h{n} \n"
    ffn = "h{n} = linear {x} \n {out} = add {x} h{n} \n"
    order = [attention, ffn, attention, attention, ffn, ffn]
    ends = ["x", "a", "b", "c", "d", "e", "out"]
    text = "".join(part.format(n=n, x=ends[n], out=ends[n + 1]) for n, part in enumerate(order))
    assert names(flow(text)) == [
        "layers.0.attention",
        "layers.0.ffn",
        "layers.1.attention",
        "layers.2.attention",
        "layers.2.ffn",
        "layers.3.ffn",
    ]


def test_final_is_the_last_norm():
    text = """
        h = linear x
        sum = add x h
        out = norm sum
        first = view out
        pooled = linear first
    """
    assert discover(flow(text, outputs=("out", "pooled"))).final == "out"


def test_final_is_the_last_norm_even_if_the_sum_is_returned():
    text = "h = linear x \n sum = add x h \n out = norm sum \n logits = linear out"
    assert discover(flow(text, outputs=("sum", "logits"))).final == "out"


def test_final_is_the_sum_where_two_results_go_different_ways():
    text = "h = linear x \n sum = add x h \n one = norm sum \n two = norm sum"
    assert discover(flow(text, outputs=("one", "two"))).final == "sum"


def test_final_stops_before_something_else_comes_in():
    text = "h = linear x \n sum = add x h \n last = norm sum \n masked = mul last mask \n out = mean masked"
    assert discover(flow(text, shapes={"out": ("batch", 8)})).final == "last"


def test_final_value_has_the_token_axis_restored():
    flat = dict.fromkeys(("rows", "h", "sum"), ("rows", 8))
    sites = discover(
        flow("rows = view x \n h = linear rows \n sum = add rows h \n y = view sum \n out = norm y", shapes=flat)
    )
    assert (sites.final, sites.sublayers[0].x) == ("out", "rows")


def test_a_stream_without_tokens_is_refused():
    assert refused(flow("h = linear x \n out = add x h", shapes=dict.fromkeys(("x", "h", "out"), ("batch", 8))))


def test_stages_of_different_width_are_one_stream():
    text = """
        h0 = linear x
        a = add x h0
        h1 = linear a
        b = add a h1
        wider = linear b
        h2 = linear wider
        c = add wider h2
        h3 = linear c
        out = add c h3
    """
    wide = dict.fromkeys(("wider", "h2", "c", "h3", "out"), ("batch", "tokens", 16))
    sites = discover(flow(text, shapes=wide))
    assert [(site.layer, site.width) for site in sites.sublayers] == [(0, 8), (1, 8), (2, 16), (3, 16)]
    assert sites.width == 16


def test_two_streams_side_by_side_are_refused():
    stream = "h{n} = linear {x} \n a{n} = add {x} h{n} \n g{n} = linear a{n} \n b{n} = add a{n} g{n} \n"
    text = stream.format(n=0, x="x") + stream.format(n=1, x="y")
    with pytest.raises(NoSitesError, match="several residual streams"):
        discover(flow(text, outputs=("b0", "b1")))


def test_a_convolution_before_the_layers_is_a_position_embedding():
    text = """
        turned = view x
        filtered = conv turned
        place = view filtered
        y = add x place
        h = linear y
        out = add y h
    """
    assert [(site.name, site.x) for site in discover(flow(text)).sublayers] == [("layers.0.ffn", "y")]


@given(st.integers(1, 6), st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_independent_nodes_does_not_matter(layers, norm_first, random):
    graph = _stack(layers, norm_first=norm_first)
    shuffled = FlowGraph(_reordered(list(graph.nodes), random), graph.shapes, graph.outputs)
    assert discover(shuffled) == discover(graph)


def test_thousands_of_nodes_take_no_time():
    graph = _stack(200, norm_first=True)
    assert len(graph.nodes) > 2000
    start = time.process_time()  # other tests run beside it
    sites = discover(graph)
    assert time.process_time() - start < 1.0
    assert len(sites.sublayers) == 400


def _stack(layers: int, *, norm_first: bool) -> FlowGraph:
    """Attention and ffn, layer after layer."""
    before = "r{n} = norm {x} \n" if norm_first else "r{n} = dropout {x} \n"
    after = "{out} = dropout s{n} \n" if norm_first else "{out} = norm s{n} \n"
    attention = "q{n} = linear r{n} \n k{n} = linear r{n} \n m{n} = matmul q{n} k{n} \n h{n} = linear m{n} \n"
    ffn = "i{n} = linear r{n} \n f{n} = gelu i{n} \n h{n} = linear f{n} \n"
    total = "s{n} = add {x} h{n} \n"
    parts = [before + body + total + after for _ in range(layers) for body in (attention, ffn)]
    ends = [f"x{n}" for n in range(len(parts))] + ["out"]
    return flow("".join(part.format(n=n, x=ends[n], out=ends[n + 1]) for n, part in enumerate(parts)))


def _reordered(nodes: list[FlowNode], random) -> list[FlowNode]:
    """Another order of evaluation: any node whose inputs are there may come next."""
    made = {name for node in nodes for name in node.outputs}
    done: set[str] = set()
    order = []
    while nodes:
        node = random.choice([node for node in nodes if all(name in done or name not in made for name in node.inputs)])
        nodes.remove(node)
        done.update(node.outputs)
        order.append(node)
    return order

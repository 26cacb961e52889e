"""The linear layers inside the sublayers, and the embeddings: the lists of a person, and the rules one by one."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from exported_bases import by_architecture

from adapter_export.onnx_backend.base.flow import flow_graph
from adapter_export.sites.discover import discover
from adapter_export.sites.site import Norm, Site, SiteMap

# Per site of the first layer: name in the layer, input and output widths, module, parts.
LISTED = {
    "bert": """
        embeddings             16  embeddings.LayerNorm
        attention.query    16  16  encoder.layer.0.attention.self.query
        attention.key      16  16  encoder.layer.0.attention.self.key
        attention.value    16  16  encoder.layer.0.attention.self.value
        attention.output   16  16  encoder.layer.0.attention.output.dense
        ffn.up             16  32  encoder.layer.0.intermediate.dense
        ffn.down           32  16  encoder.layer.0.output.dense
    """,
    "distilbert": """
        embeddings             16  embeddings.LayerNorm
        attention.query    16  16  transformer.layer.0.attention.q_lin
        attention.key      16  16  transformer.layer.0.attention.k_lin
        attention.value    16  16  transformer.layer.0.attention.v_lin
        attention.output   16  16  transformer.layer.0.attention.out_lin
        ffn.up             16  32  transformer.layer.0.ffn.lin1
        ffn.down           32  16  transformer.layer.0.ffn.lin2
    """,
    "albert": """
        embeddings             16  encoder.embedding_hidden_mapping_in
        attention.query    16  16  encoder.albert_layer_groups.0.albert_layers.0.attention.query
        attention.key      16  16  encoder.albert_layer_groups.0.albert_layers.0.attention.key
        attention.value    16  16  encoder.albert_layer_groups.0.albert_layers.0.attention.value
        attention.output   16  16  encoder.albert_layer_groups.0.albert_layers.0.attention.dense
        ffn.up             16  32  encoder.albert_layer_groups.0.albert_layers.0.ffn
        ffn.down           32  16  encoder.albert_layer_groups.0.albert_layers.0.ffn_output
    """,
    "gpt2": """
        embeddings             16  wte
        attention.qkv      16  48  h.0.attn.c_attn  query:0-16 key:16-32 value:32-48
        attention.output   16  16  h.0.attn.c_proj
        ffn.up             16  64  h.0.mlp.c_fc
        ffn.down           64  16  h.0.mlp.c_proj
    """,
    "llama": """
        embeddings             16  embed_tokens
        attention.query    16  16  layers.0.self_attn.q_proj
        attention.key      16  16  layers.0.self_attn.k_proj
        attention.value    16  16  layers.0.self_attn.v_proj
        attention.output   16  16  layers.0.self_attn.o_proj
        ffn.gate           16  32  layers.0.mlp.gate_proj
        ffn.up             16  32  layers.0.mlp.up_proj
        ffn.down           32  16  layers.0.mlp.down_proj
    """,
    "gpt_neox": """
        embeddings             16  embed_in
        attention.qkv      16  48  layers.0.attention.query_key_value  query:0-8 key:8-16 value:16-24 x2
        attention.output   16  16  layers.0.attention.dense
        ffn.up             16  32  layers.0.mlp.dense_h_to_4h
        ffn.down           32  16  layers.0.mlp.dense_4h_to_h
    """,
    "opt": """
        embeddings             16  decoder
        attention.query    16  16  decoder.layers.0.self_attn.q_proj
        attention.key      16  16  decoder.layers.0.self_attn.k_proj
        attention.value    16  16  decoder.layers.0.self_attn.v_proj
        attention.output   16  16  decoder.layers.0.self_attn.out_proj
        ffn.up             16  32  decoder.layers.0.fc1
        ffn.down           32  16  decoder.layers.0.fc2
    """,
    "mixtral": """
        embeddings             16  embed_tokens
        attention.query    16  16  layers.0.self_attn.q_proj
        attention.key      16  16  layers.0.self_attn.k_proj
        attention.value    16  16  layers.0.self_attn.v_proj
        attention.output   16  16  layers.0.self_attn.o_proj
    """,
    "electra": """
        embeddings             16  embeddings_project
        attention.query    16  16  encoder.layer.0.attention.self.query
        attention.key      16  16  encoder.layer.0.attention.self.key
        attention.value    16  16  encoder.layer.0.attention.self.value
        attention.output   16  16  encoder.layer.0.attention.output.dense
        ffn.up             16  32  encoder.layer.0.intermediate.dense
        ffn.down           32  16  encoder.layer.0.output.dense
    """,
    "deberta_v2": """
        embeddings             16  embeddings
        attention.query    16  16  encoder.layer.0.attention.self.query_proj
        attention.key      16  16  encoder.layer.0.attention.self.key_proj
        attention.value    16  16  encoder.layer.0.attention.self.value_proj
        attention.output   16  16  encoder.layer.0.attention.output.dense
        ffn.up             16  32  encoder.layer.0.intermediate.dense
        ffn.down           32  16  encoder.layer.0.output.dense
    """,
    "modernbert": """
        embeddings             16  embeddings.norm
        attention.qkv      16  48  layers.0.attn.Wqkv  query:0-16 key:16-32 value:32-48
        attention.output   16  16  layers.0.attn.Wo
        ffn.gate_up        16  64  layers.0.mlp.Wi  gate:0-32 up:32-64
        ffn.down           32  16  layers.0.mlp.Wo
    """,
    "mpnet": """
        embeddings             16  embeddings.LayerNorm
        attention.query    16  16  encoder.layer.0.attention.attn.q
        attention.key      16  16  encoder.layer.0.attention.attn.k
        attention.value    16  16  encoder.layer.0.attention.attn.v
        attention.output   16  16  encoder.layer.0.attention.attn.o
        ffn.up             16  32  encoder.layer.0.intermediate.dense
        ffn.down           32  16  encoder.layer.0.output.dense
    """,
    "qwen2": """
        embeddings             16  embed_tokens
        attention.query    16  16  layers.0.self_attn.q_proj
        attention.key      16   8  layers.0.self_attn.k_proj
        attention.value    16   8  layers.0.self_attn.v_proj
        attention.output   16  16  layers.0.self_attn.o_proj
        ffn.gate           16  32  layers.0.mlp.gate_proj
        ffn.up             16  32  layers.0.mlp.up_proj
        ffn.down           32  16  layers.0.mlp.down_proj
    """,
    "phi": """
        embeddings             16  embed_tokens
        attention.query    16  16  layers.0.self_attn.q_proj
        attention.key      16  16  layers.0.self_attn.k_proj
        attention.value    16  16  layers.0.self_attn.v_proj
        attention.output   16  16  layers.0.self_attn.dense
        ffn.up             16  32  layers.0.mlp.fc1
        ffn.down           32  16  layers.0.mlp.fc2
    """,
    "t5_encoder": """
        embeddings             16  encoder.embed_tokens
        attention.query    16  16  encoder.block.0.layer.0.SelfAttention.q
        attention.key      16  16  encoder.block.0.layer.0.SelfAttention.k
        attention.value    16  16  encoder.block.0.layer.0.SelfAttention.v
        attention.output   16  16  encoder.block.0.layer.0.SelfAttention.o
        ffn.up             16  32  encoder.block.0.layer.1.DenseReluDense.wi
        ffn.down           32  16  encoder.block.0.layer.1.DenseReluDense.wo
    """,
    "bart_encoder": """
        embeddings             16  layernorm_embedding
        attention.query    16  16  layers.0.self_attn.q_proj
        attention.key      16  16  layers.0.self_attn.k_proj
        attention.value    16  16  layers.0.self_attn.v_proj
        attention.output   16  16  layers.0.self_attn.out_proj
        ffn.up             16  32  layers.0.fc1
        ffn.down           32  16  layers.0.fc2
    """,
    "whisper_encoder": """
        embeddings             16  model
        attention.query    16  16  layers.0.self_attn.q_proj
        attention.key      16  16  layers.0.self_attn.k_proj
        attention.value    16  16  layers.0.self_attn.v_proj
        attention.output   16  16  layers.0.self_attn.out_proj
        ffn.up             16  32  layers.0.fc1
        ffn.down           32  16  layers.0.fc2
    """,
    "deit": """
        embeddings             16  embeddings
        attention.query    16  16  layers.0.attention.q_proj
        attention.key      16  16  layers.0.attention.k_proj
        attention.value    16  16  layers.0.attention.v_proj
        attention.output   16  16  layers.0.attention.o_proj
        ffn.up             16  32  layers.0.mlp.fc1
        ffn.down           32  16  layers.0.mlp.fc2
    """,
    "swiglu_block": """
        attention.qkv      16  48  0.qkv  query:0-16 key:16-32 value:32-48
        attention.output   16  16  0.out
        ffn.gate_up        16  64  0.gate_up  gate:0-32 up:32-64
        ffn.down           32  16  0.down
    """,
    "swin": """
        embeddings              8  embeddings.norm
        attention.query     8   8  encoder.layers.0.blocks.0.attention.q_proj
        attention.key       8   8  encoder.layers.0.blocks.0.attention.k_proj
        attention.value     8   8  encoder.layers.0.blocks.0.attention.v_proj
        attention.output    8   8  encoder.layers.0.blocks.0.attention.o_proj
        ffn.up              8  32  encoder.layers.0.blocks.0.mlp.fc1
        ffn.down           32   8  encoder.layers.0.blocks.0.mlp.fc2
    """,
    "wav2vec2": """
        embeddings             16  encoder.layer_norm
        attention.query    16  16  encoder.layers.0.attention.q_proj
        attention.key      16  16  encoder.layers.0.attention.k_proj
        attention.value    16  16  encoder.layers.0.attention.v_proj
        attention.output   16  16  encoder.layers.0.attention.out_proj
        ffn.up             16  32  encoder.layers.0.feed_forward.intermediate_dense
        ffn.down           32  16  encoder.layers.0.feed_forward.output_dense
    """,
    "torch_post_norm": """
        attention.qkv      16  48  layers.0.self_attn  query:0-16 key:16-32 value:32-48
        attention.output   16  16  layers.0.self_attn
        ffn.up             16  32  layers.0.linear1
        ffn.down           32  16  layers.0.linear2
    """,
    "hand_written": """
        attention.qkv      16  48  0.qkv  query:0-16 key:16-32 value:32-48
        attention.output   16  16  0.out
        ffn.gate           16  32  1.gate
        ffn.up             16  32  1.up
        ffn.down           32  16  1.down
        ffn.low            32   4  1.low
        ffn.high            4  16  1.high
    """,
}
LISTED |= {
    "roberta": LISTED["bert"],
    "cohere": LISTED["llama"],
    "gemma": LISTED["qwen2"],
    "vit": LISTED["deit"],
    "torch_pre_norm": LISTED["torch_post_norm"],
}


def listed(name: str) -> list[list[str]]:
    return [line.split() for line in LISTED[name].strip().splitlines()]


def row(site: Site) -> list[str]:
    parts = [f"{name}:{start}-{end}" for name, (start, end) in site.parts.items()]
    widths = [str(site.width)] if site.u is None else [str(site.width_in), str(site.width)]
    path = (site.path or "").removeprefix("model.")
    blocks = [f"x{site.blocks}"] if site.blocks > 1 else []
    return [site.name.removeprefix(f"layers.{site.layer}."), *widths, path, *parts, *blocks]


OUTSIDE = {
    "albert": ["encoder.embedding_hidden_mapping_in"],
    "electra": ["embeddings_project"],
    "swin": ["encoder.layers.0.downsample.reduction"],
    "wav2vec2": ["feature_projection.projection"],
}
"""Linear layers outside of sublayers."""


def inner(sites: SiteMap, layer: int | None) -> list[Site]:
    return [site for site in sites.of_roles(("embeddings", "linear")) if site.layer == layer and not site.is_outside]


@pytest.mark.parametrize("name", by_architecture(LISTED))
def test_the_linear_layers_are_those_that_a_person_lists(exported, name):
    sites = exported(name).torch_sites
    outside = [site.path.removeprefix("model.") for site in sites.of_roles(("linear",)) if site.is_outside]
    assert outside == OUTSIDE.get(name, [])
    first, second = inner(sites, 0), inner(sites, 1)
    assert [row(site) for site in (*inner(sites, None), *first)] == listed(name)
    ours, theirs = (
        [site.name.partition(".attention.")[2] or site.name[8:] for site in layer] for layer in (first, second)
    )
    assert not theirs or ours == theirs


def test_layers_that_read_tokens_before_batch_are_known(exported, in_onnx):
    """A bank would take the tokens for the rows of a batch there."""
    for sites in (exported("torch_pre_norm").torch_sites, in_onnx("torch_pre_norm").sites):
        found = {site.name for site in sites if site.layer == 0 and site.sequence_first}
        assert found == {f"layers.0.attention.{name}" for name in ("qkv", "query", "key", "value", "output")}
        assert [site.name for site in sites if site.layer == 0] == [
            "layers.0.attention.qkv",
            "layers.0.attention.query",
            "layers.0.attention.key",
            "layers.0.attention.value",
            "layers.0.attention.output",
            "layers.0.attention",
            "layers.0.ffn.up",
            "layers.0.ffn.down",
            "layers.0.ffn",
        ]


def view(body: str, weights: str, domain: str = "") -> SiteMap:
    """The sites of a graph from `x` to `out`, both [batch, tokens, 8]."""
    imports = ', "com.microsoft" : 1' if domain else ""
    text = f"""<ir_version: 10, opset_import: ["" : 20{imports}]>
        g (float[batch, tokens, 8] x) => (float[batch, tokens, 8] out) <{weights}>
        {{ {body} }}"""
    return discover(flow_graph(ir.from_proto(onnx.parser.parse_model(text))))


def only(sites: SiteMap, name: str) -> Site:
    return next(site for site in sites if site.name == name)


def weights(*shapes: str) -> str:
    return ", ".join(shapes)


MATRIX = "float[8, 8] {0} = {{" + ", ".join(["0.5"] * 64) + "}}"
VECTOR = "float[8] {0} = {{" + ", ".join(["0.5"] * 8) + "}}"


def test_a_bias_belongs_to_the_layer_and_a_scale_does_not():
    body = "p = MatMul(x, w) i = Add(p, c) s = Mul(i, d) f = Gelu(s) h = MatMul(f, v) out = Add(x, h)"
    sites = view(body, weights(MATRIX.format("w"), MATRIX.format("v"), VECTOR.format("c"), VECTOR.format("d")))
    up, down = only(sites, "layers.0.ffn.up"), only(sites, "layers.0.ffn.down")
    assert (up.u, up.h, down.u, down.h) == ("x", "i", "f", "h")
    assert (up.x, up.y, up.norm, up.residual, up.followed_by) == (None, None, None, None, "")
    assert sites.sites.index(down) < sites.sites.index(only(sites, "layers.0.ffn")), (
        "both are `h`: the layer comes first"
    )


def test_internally_scaled_products_are_not_linear_sites():
    body = "i = com.microsoft.FusedMatMul <alpha = 0.5> (x, w) f = Gelu(i) h = MatMul(f, v) out = Add(x, h)"
    text = weights(MATRIX.format("w"), MATRIX.format("v"), "float[batch, tokens, 8] i", "float[batch, tokens, 8] f")
    assert [site.name for site in view(body, text, "com.microsoft")] == ["layers.0.ffn.linear0", "layers.0.ffn"]


QUERIES = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose <perm = [0, 2, 1]> (k)"
ALL = [MATRIX.format(name) for name in ("wq", "wk", "wv", "wo")]


def products(sites: SiteMap) -> dict[str, str]:
    return {site.name.rpartition(".")[2]: site.h for site in sites.of_roles(("linear",))}


def test_products_weighted_by_the_softmax_are_values():
    sites = view(
        f"{QUERIES} s = MatMul(q, t) p = Softmax(s) c = MatMul(p, v) h = MatMul(c, wo) out = Add(x, h)", weights(*ALL)
    )
    assert products(sites) == {"query": "q", "key": "k", "value": "v", "output": "h"}


def test_linear_attention_multiplies_keys_with_values_first():
    sites = view(f"{QUERIES} s = MatMul(t, v) c = MatMul(q, s) h = MatMul(c, wo) out = Add(x, h)", weights(*ALL))
    assert products(sites) == {"query": "q", "key": "k", "value": "v", "output": "h"}


def test_the_names_follow_the_indices_of_an_einstein_sum():
    body = (
        'q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) s = Einsum <equation = "bkd,bqd->bqk"> (k, q) '
        'p = Softmax(s) c = Einsum <equation = "bqk,bkd->bqd"> (p, v) h = MatMul(c, wo) out = Add(x, h)'
    )
    assert products(view(body, weights(*ALL))) == {"query": "q", "key": "k", "value": "v", "output": "h"}


def test_parts_of_a_fused_layer_are_sites_of_their_own():
    """A reshape, a transposition, and a slice for each; the parts follow the layer, under their own names."""
    wide, narrow = "float[8, 24] w = {" + ", ".join(["0.5"] * 192) + "}", MATRIX.format("wo")
    ints = "int64[5] s = {0, 0, 3, 2, 4}, int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[3] flat = {0, 0, 8}"
    body = (
        "f = MatMul(x, w) r = Reshape(f, s) m = Transpose <perm = [2, 0, 3, 1, 4]> (r) q = Gather(m, zero) "
        "k = Gather(m, one) v = Gather(m, two) t = Transpose <perm = [0, 1, 3, 2]> (k) a = MatMul(q, t) "
        "p = Softmax(a) c = MatMul(p, v) b = Transpose <perm = [0, 2, 1, 3]> (c) l = Reshape(b, flat) "
        "h = MatMul(l, wo) out = Add(x, h)"
    )
    sites = view(body, weights(wide, narrow, ints))
    found = [(site.name, site.role, site.width, dict(site.parts), site.blocks) for site in sites]
    parts = {"query": (0, 8), "key": (8, 16), "value": (16, 24)}
    assert found[:4] == [
        ("layers.0.attention.qkv", "linear", 24, parts, 1),
        *((f"layers.0.attention.{name}", "part", 8, {name: place}, 1) for name, place in parts.items()),
    ]


def test_packed_inputs_of_grouped_attention_have_parts():
    wide, narrow = "float[8, 16] w = {" + ", ".join(["0.5"] * 128) + "}", MATRIX.format("wo")
    shapes = "float[batch, tokens, 16] f, float[batch, tokens, 8] c, int32[1] n = {1}, int32 total = {1}"
    attention = "com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (f, , , , , n, total)"
    sites = view(
        f"f = MatMul(x, w) c = {attention} h = MatMul(c, wo) out = Add(x, h)",
        weights(wide, narrow, shapes),
        "com.microsoft",
    )
    assert only(sites, "layers.0.attention.qkv").parts == {"query": (0, 8), "key": (8, 12), "value": (12, 16)}


def test_turned_scores_leave_queries_and_keys_untold():
    body = f"{QUERIES} s = MatMul(q, t) z = Transpose <perm = [0, 2, 1]> (s) p = Softmax(z) c = MatMul(p, v)"
    sites = view(f"{body} h = MatMul(c, wo) out = Add(x, h)", weights(*ALL))
    assert products(sites) == {"linear0": "q", "linear1": "k", "linear2": "v", "output": "h"}


def test_the_gate_is_the_branch_with_the_activation():
    body = "a1 = MatMul(x, wq) b1 = MatMul(x, wk) s = Sigmoid(b1) g = Mul(b1, s) m = Mul(a1, g) h = MatMul(m, wo)"
    assert products(view(f"{body} out = Add(x, h)", weights(*ALL))) == {"up": "a1", "gate": "b1", "down": "h"}


def test_two_branches_without_an_activation_have_numbers():
    body = "a1 = MatMul(x, wq) b1 = MatMul(x, wk) m = Mul(a1, b1) h = MatMul(m, wo) out = Add(x, h)"
    assert products(view(body, weights(*ALL))) == {"linear0": "a1", "linear1": "b1", "down": "h"}


PIECES = (
    "r = ReduceMean <axes = [-1]> (s) z = Sub(s, r) p = Pow(z, two) m = ReduceMean <axes = [-1]> (p) e = Add(m, eps)"
)


def written_out(tail: str, pieces: str = PIECES) -> Site:
    constants = (MATRIX.format("w"), VECTOR.format("g"), VECTOR.format("c"), "float two = {2.0}", "float eps = {0.25}")
    text = f"""<ir_version: 10, opset_import: ["" : 17]>
        g (float[batch, tokens, 8] x) => (float[batch, tokens, 8] out) <{", ".join(constants)}>
        {{ h = MatMul(x, w) s = Add(x, h) {pieces} {tail} }}"""
    return discover(flow_graph(ir.from_proto(onnx.parser.parse_model(text)))).sublayers[0]


def test_a_norm_that_is_written_out_is_read():
    site = written_out("q = Sqrt(e) d = Div(z, q) n = Mul(d, g) out = Add(n, c)")
    assert (site.y, site.norm) == ("out", Norm("layer", 0.25, "g", "c"))
    rms = written_out(
        "q = Sqrt(e) d = Div(s, q) out = Mul(d, g)", "p = Mul(s, s) m = ReduceMean <axes = [-1]> (p) e = Add(m, eps)"
    )
    assert (rms.y, rms.norm) == ("out", Norm("rms", 0.25, "g", None))


@pytest.mark.parametrize(
    "tail",
    [
        "q = Sqrt(e) d = Div(z, q) n = Mul(d, g) t = Tanh(n) out = Add(t, c)",
        "d = Div(z, e) n = Mul(d, g) out = Add(n, c)",
        "q = Sqrt(e) d = Div(s, q) n = Mul(d, g) out = Add(n, c)",
    ],
)
def test_another_norm_is_unknown(tail: str):
    site = written_out(tail)
    assert (site.y, site.norm) == ("out", Norm("unknown", 0.0, None, None))


def test_a_norm_of_something_else_than_the_sum_is_unknown():
    text = f"""<ir_version: 10, opset_import: ["" : 17]>
        g (float[batch, tokens, 8] x) => (float[batch, tokens, 8] out) <{MATRIX.format("w")}, {VECTOR.format("g")}>
        {{ h = MatMul(x, w) s = Add(x, h) t = Mul(s, g) out = LayerNormalization(t, g) }}"""
    (site,) = discover(flow_graph(ir.from_proto(onnx.parser.parse_model(text)))).sublayers
    assert (site.y, site.norm) == ("out", Norm("unknown", 0.0, None, None))

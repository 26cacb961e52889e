"""Both views of small bases of many architectures find the sublayers that a person lists, and the same values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from adapter_export.errors import NoSitesError
from adapter_export.onnx_backend.base.flow import flow_graph as onnx_flow
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.fx_view import flow_graph as torch_flow

ALBERT = "encoder.albert_layer_groups.0.albert_layers.0"  # one module for all layers

# Per sublayer: its name, the module that is its output projection, the module that computes what it reads.
# The last line has the module that computes the final hidden state; `.` is the model itself.
POST_NORM = {
    "bert": """
        layers.0.attention  encoder.layer.0.attention.output.dense  embeddings.dropout
        layers.0.ffn        encoder.layer.0.output.dense            encoder.layer.0.attention.output.LayerNorm
        layers.1.attention  encoder.layer.1.attention.output.dense  encoder.layer.0.output.LayerNorm
        layers.1.ffn        encoder.layer.1.output.dense            encoder.layer.1.attention.output.LayerNorm
        final               encoder.layer.1.output.LayerNorm
    """,
    "roberta": """
        layers.0.attention  encoder.layer.0.attention.output.dense  embeddings.dropout
        layers.0.ffn        encoder.layer.0.output.dense            encoder.layer.0.attention.output.LayerNorm
        layers.1.attention  encoder.layer.1.attention.output.dense  encoder.layer.0.output.LayerNorm
        layers.1.ffn        encoder.layer.1.output.dense            encoder.layer.1.attention.output.LayerNorm
        final               encoder.layer.1.output.LayerNorm
    """,
    "distilbert": """
        layers.0.attention  transformer.layer.0.attention.out_lin  embeddings.dropout
        layers.0.ffn        transformer.layer.0.ffn.lin2           transformer.layer.0.sa_layer_norm
        layers.1.attention  transformer.layer.1.attention.out_lin  transformer.layer.0.output_layer_norm
        layers.1.ffn        transformer.layer.1.ffn.lin2           transformer.layer.1.sa_layer_norm
        final               transformer.layer.1.output_layer_norm
    """,
    "albert": f"""
        layers.0.attention  {ALBERT}.attention.dense  encoder.embedding_hidden_mapping_in
        layers.0.ffn        {ALBERT}.ffn_output       {ALBERT}.attention.LayerNorm
        layers.1.attention  {ALBERT}.attention.dense  {ALBERT}.full_layer_layer_norm
        layers.1.ffn        {ALBERT}.ffn_output       {ALBERT}.attention.LayerNorm
        final               {ALBERT}.full_layer_layer_norm
    """,
    "wav2vec2": """
        layers.0.attention  encoder.layers.0.attention.out_proj           encoder.dropout
        layers.0.ffn        encoder.layers.0.feed_forward.output_dense    encoder.layers.0.layer_norm
        layers.1.attention  encoder.layers.1.attention.out_proj           encoder.layers.0.final_layer_norm
        layers.1.ffn        encoder.layers.1.feed_forward.output_dense    encoder.layers.1.layer_norm
        final               encoder.layers.1.final_layer_norm
    """,
    "torch_post_norm": """
        layers.0.attention  layers.0.self_attn  -
        layers.0.ffn        layers.0.linear2    layers.0.norm1
        layers.1.attention  layers.1.self_attn  layers.0.norm2
        layers.1.ffn        layers.1.linear2    layers.1.norm1
        final               layers.1.norm2
    """,
}

PRE_NORM = {
    "gpt2": """
        layers.0.attention  h.0.attn.c_proj  h.0.ln_1
        layers.0.ffn        h.0.mlp.c_proj   h.0.ln_2
        layers.1.attention  h.1.attn.c_proj  h.1.ln_1
        layers.1.ffn        h.1.mlp.c_proj   h.1.ln_2
        final               .
    """,
    "llama": """
        layers.0.attention  layers.0.self_attn.o_proj  layers.0.input_layernorm
        layers.0.ffn        layers.0.mlp.down_proj     layers.0.post_attention_layernorm
        layers.1.attention  layers.1.self_attn.o_proj  layers.1.input_layernorm
        layers.1.ffn        layers.1.mlp.down_proj     layers.1.post_attention_layernorm
        final               norm
    """,
    "gpt_neox": """
        layers.0.attention  layers.0.attention.dense    layers.0.input_layernorm
        layers.0.ffn        layers.0.mlp.dense_4h_to_h  layers.0.post_attention_layernorm
        layers.1.attention  layers.1.attention.dense    layers.1.input_layernorm
        layers.1.ffn        layers.1.mlp.dense_4h_to_h  layers.1.post_attention_layernorm
        final               final_layer_norm
    """,
    "cohere": """
        layers.0.attention  layers.0.self_attn.o_proj  layers.0.input_layernorm
        layers.0.ffn        layers.0.mlp.down_proj     layers.0.input_layernorm
        layers.1.attention  layers.1.self_attn.o_proj  layers.1.input_layernorm
        layers.1.ffn        layers.1.mlp.down_proj     layers.1.input_layernorm
        final               norm
    """,
    "opt": """
        layers.0.attention  decoder.layers.0.self_attn.out_proj  decoder.layers.0.self_attn_layer_norm
        layers.0.ffn        decoder.layers.0.fc2                 decoder.layers.0.final_layer_norm
        layers.1.attention  decoder.layers.1.self_attn.out_proj  decoder.layers.1.self_attn_layer_norm
        layers.1.ffn        decoder.layers.1.fc2                 decoder.layers.1.final_layer_norm
        final               decoder.final_layer_norm
    """,
    "vit": """
        layers.0.attention  layers.0.attention.o_proj  layers.0.layernorm_before
        layers.0.ffn        layers.0.mlp.fc2           layers.0.layernorm_after
        layers.1.attention  layers.1.attention.o_proj  layers.1.layernorm_before
        layers.1.ffn        layers.1.mlp.fc2           layers.1.layernorm_after
        final               layernorm
    """,
    "torch_pre_norm": """
        layers.0.attention  layers.0.self_attn  layers.0.norm1
        layers.0.ffn        layers.0.linear2    layers.0.norm2
        layers.1.attention  layers.1.self_attn  layers.1.norm1
        layers.1.ffn        layers.1.linear2    layers.1.norm2
        final               norm
    """,
    "hand_written": """
        layers.0.attention  0.out   0.norm
        layers.0.ffn        1.high  1.norm
        layers.1.attention  2.out   2.norm
        layers.1.ffn        3.high  3.norm
        final               4
    """,
}

# The exporter of torch does not manage these two.
IN_TORCH_ALONE = {
    "mixtral": """
        layers.0.attention  layers.0.self_attn.o_proj  layers.0.input_layernorm
        layers.0.ffn        layers.0.mlp.experts       layers.0.post_attention_layernorm
        layers.1.attention  layers.1.self_attn.o_proj  layers.1.input_layernorm
        layers.1.ffn        layers.1.mlp.experts       layers.1.post_attention_layernorm
        final               norm
    """,
    "swin": """
        layers.0.attention  encoder.layers.0.blocks.0.attention.o_proj  encoder.layers.0.blocks.0.layernorm_before
        layers.0.ffn        encoder.layers.0.blocks.0.mlp.fc2           encoder.layers.0.blocks.0.layernorm_after
        layers.1.attention  encoder.layers.1.blocks.0.attention.o_proj  encoder.layers.1.blocks.0.layernorm_before
        layers.1.ffn        encoder.layers.1.blocks.0.mlp.fc2           encoder.layers.1.blocks.0.layernorm_after
        layers.2.attention  encoder.layers.1.blocks.1.attention.o_proj  encoder.layers.1.blocks.1.layernorm_before
        layers.2.ffn        encoder.layers.1.blocks.1.mlp.fc2           encoder.layers.1.blocks.1.layernorm_after
        final               layernorm
    """,
}

IN_BOTH = POST_NORM | PRE_NORM
NO_PROJECTION_IS_H = {"hand_written", "swin", "mixtral"}


def listed(table: str) -> list[list[str]]:
    """The rows of a table, its modules named from the base's root."""
    rows = [line.split() for line in table.strip().splitlines()]
    roots = {"-": "-", ".": "model"}
    return [[name, *(roots.get(module, f"model.{module}") for module in modules)] for name, *modules in rows]


def found(sites: SiteMap, graph: torch.fx.GraphModule) -> list[list[str]]:
    modules = {node.name: node.path for node in torch_flow(graph).nodes}
    rows = [[site.name, site.path or "-", modules.get(site.u) or "-"] for site in sites.sublayers]
    return [*rows, ["final", modules[sites.final] or "-"]]


@pytest.mark.parametrize("name", IN_BOTH)
def test_the_sites_are_those_that_a_person_lists(views, name):
    base = views(name)
    assert found(base.in_torch, base.torch_graph) == listed(IN_BOTH[name])


@pytest.mark.parametrize("name", IN_TORCH_ALONE)
def test_the_sites_of_bases_without_an_onnx_graph(exported, name):
    graph = exported(name).torch_graph()
    sites = discover(torch_flow(graph))
    assert found(sites, graph) == listed(IN_TORCH_ALONE[name])
    assert sites.coverage.is_complete


@pytest.mark.parametrize("name", IN_BOTH)
def test_both_views_agree(views, name):
    def facts(sites: SiteMap) -> list[tuple[object, ...]]:
        return [(site.name, site.role, site.layer, site.width, site.path, site.followed_by) for site in sites.sublayers]

    base = views(name)
    assert facts(base.in_torch) == facts(base.in_onnx)
    assert base.in_torch.width == base.in_onnx.width == 16
    count = len(base.in_torch.sublayers)
    assert str(base.in_torch.coverage) == str(base.in_onnx.coverage) == f"{count} of {count} sublayers"


@pytest.mark.parametrize("name", IN_BOTH)
def test_both_views_mean_the_same_values(views, name):
    """At a shape that the export has not seen, `h`, `x`, `u` and the final state are equal, and not trivially so."""
    base = views(name)
    inputs = base.exported.architecture.inputs(3, 5)
    in_torch = torch_values(base.torch_graph, inputs, values(base.in_torch))
    in_onnx = onnx_values(base.onnx_graph, inputs, values(base.in_onnx))
    for ours, theirs in zip(values(base.in_torch), values(base.in_onnx), strict=True):
        assert np.ptp(in_torch[ours]) > 0.1
        np.testing.assert_allclose(in_onnx[theirs], in_torch[ours], rtol=0, atol=1e-4, err_msg=f"{ours} and {theirs}")


@pytest.mark.parametrize("name", sorted(set(IN_BOTH) - NO_PROJECTION_IS_H))
def test_h_is_what_the_output_projection_of_the_live_module_returns(views, name):
    base = views(name)
    inputs = base.exported.architecture.inputs(3, 5)
    returned = module_results(base.exported.module, {site.path for site in base.in_torch.sublayers}, inputs)
    in_torch = torch_values(base.torch_graph, inputs, [site.h for site in base.in_torch.sublayers])
    for site in base.in_torch.sublayers:
        np.testing.assert_allclose(in_torch[site.h], returned[site.path].pop(0), rtol=0, atol=1e-5, err_msg=site.name)


@pytest.mark.parametrize("name", POST_NORM)
def test_a_sublayer_without_a_norm_before_it_reads_the_stream_itself(views, name):
    assert all(site.u == site.x for site in (*views(name).in_torch.sublayers, *views(name).in_onnx.sublayers))


@pytest.mark.parametrize("name", PRE_NORM)
def test_a_sublayer_with_a_norm_before_it_reads_the_norm(views, name):
    assert all(site.u != site.x for site in (*views(name).in_torch.sublayers, *views(name).in_onnx.sublayers))


@pytest.mark.parametrize("name", ["gpt_neox", "cohere"])
def test_parallel_sublayers_start_from_one_value(views, name):
    attention, ffn, *_ = views(name).in_torch
    assert attention.x == ffn.x
    assert attention.h != ffn.h


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "cohere", "opt"])
def test_what_follows_each_sum_is_a_norm_even_in_small_pieces(views, name):
    assert {site.followed_by for site in views(name).in_torch.sublayers} == {"norm"}


@pytest.mark.parametrize("name", ["resnet", "cnn", "mlp", "linear"])
def test_a_base_without_a_residual_stream_is_refused(exported, name):
    base = exported(name)
    for flow in (torch_flow(base.torch_graph()), onnx_flow(base.onnx_graph())):
        with pytest.raises(NoSitesError, match="no residual stream") as caught:
            discover(flow)
        assert caught.value.facts().keys() >= {"what", "found", "expected", "fix"}


def test_the_refusal_counts_what_was_looked_at(exported):
    with pytest.raises(NoSitesError, match=r"6 products with trained weights and 2 sums .* 0 of them of shape"):
        discover(torch_flow(exported("resnet").torch_graph()))


def values(sites: SiteMap) -> list[str]:
    return [value for site in sites.sublayers for value in (site.h, site.x, site.u)] + [sites.final]


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps what its nodes compute."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph)
        self.kept: dict[str, np.ndarray] = {}

    def run_node(self, n: torch.fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.kept[n.name] = result.detach().numpy().copy()
        return result


def torch_values(
    graph: torch.fx.GraphModule, inputs: Mapping[str, torch.Tensor], names: list[str]
) -> dict[str, np.ndarray]:
    recorder = _Recorder(graph)
    with torch.no_grad():
        recorder.run(*(inputs[node.name] for node in graph.graph.nodes if node.op == "placeholder"))
    return {name: recorder.kept[name] for name in names}


def onnx_values(model: ir.Model, inputs: Mapping[str, torch.Tensor], names: list[str]) -> dict[str, np.ndarray]:
    """The values of a copy that has them as outputs; an input is its own value."""
    copy = model.clone()
    there = {value.name for value in (*copy.graph.inputs, *copy.graph.outputs)}
    computed = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(computed[name] for name in dict.fromkeys(names) if name not in there)
    session = onnxruntime.InferenceSession(ir.to_proto(copy).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in inputs.items()}
    outputs = [output.name for output in session.get_outputs()]
    return feeds | dict(zip(outputs, session.run(None, feeds), strict=True))


def module_results(
    module: torch.nn.Module, paths: set[str | None], inputs: Mapping[str, torch.Tensor]
) -> dict[str, list[np.ndarray]]:
    """What the modules at `paths` return, call by call."""
    results: dict[str, list[np.ndarray]] = defaultdict(list)

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: object, _args: object, result: object) -> None:
            first = result[0] if isinstance(result, tuple) else result
            results[path].append(first.detach().numpy().copy())

        return hook

    handles = [module.get_submodule(path).register_forward_hook(keep(path)) for path in paths if path]
    with torch.no_grad():
        module(**inputs)
    for handle in handles:
        handle.remove()
    return results

"""Both views of small bases of many architectures find the sublayers that a person lists, and the same values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from exported_bases import ExportedBase, by_architecture

from adapter_export.errors import NoSitesError
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.fx_view import flow_graph

ALBERT = "encoder.albert_layer_groups.0.albert_layers.0"  # one module for all layers

# Per sublayer: name, module of the output projection, module that computes its input.
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
        final               encoder.layer.0.output.LayerNorm
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
        final               encoder.layers.0.final_layer_norm
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
        final               norm
    """,
    "opt": """
        layers.0.attention  decoder.layers.0.self_attn.out_proj  decoder.layers.0.self_attn_layer_norm
        layers.0.ffn        decoder.layers.0.fc2                 decoder.layers.0.final_layer_norm
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


def found(base: ExportedBase) -> list[list[str]]:
    sites = base.torch_sites
    modules = {node.name: node.path for node in flow_graph(base.in_torch.flat).nodes}
    rows = [[site.name, site.path or "-", modules.get(site.u) or "-"] for site in sites.sublayers]
    return [*rows, ["final", modules[sites.final] or "-"]]


@pytest.mark.parametrize("name", by_architecture(IN_BOTH | IN_TORCH_ALONE))
def test_the_sites_are_those_that_a_person_lists(exported, name):
    base = exported(name)
    assert found(base) == listed((IN_BOTH | IN_TORCH_ALONE)[name])
    assert base.torch_sites.coverage.is_complete


@pytest.mark.parametrize("name", by_architecture(IN_BOTH))
def test_both_views_agree(exported, in_onnx, name):
    def facts(sites: SiteMap) -> list[tuple[object, ...]]:
        return [(site.name, site.role, site.layer, site.width, site.path, site.followed_by) for site in sites.sublayers]

    ours, theirs = exported(name).torch_sites, in_onnx(name).sites
    assert facts(ours) == facts(theirs)
    assert ours.width == theirs.width == 16
    count = len(ours.sublayers)
    assert str(ours.coverage) == str(theirs.coverage) == f"{count} of {count} sublayers"


@pytest.mark.parametrize("name", by_architecture(IN_BOTH))
def test_both_views_mean_the_same_values(exported, in_onnx, name):
    """At a shape that the export has not seen, `h`, `x`, `u` and the final state are equal, and not trivially so."""
    base, graph = exported(name), in_onnx(name)
    inputs = base.architecture.inputs(3, 5)
    in_torch = torch_values(base.in_torch.flat, inputs, values(base.torch_sites))
    of_onnx = onnx_values(graph, inputs, values(graph.sites))
    for ours, theirs in zip(values(base.torch_sites), values(graph.sites), strict=True):
        assert np.ptp(in_torch[ours]) > 0.1
        np.testing.assert_allclose(of_onnx[theirs], in_torch[ours], rtol=0, atol=1e-4, err_msg=f"{ours} and {theirs}")


@pytest.mark.parametrize("name", by_architecture(sorted(set(IN_BOTH) - NO_PROJECTION_IS_H)))
def test_h_equals_the_output_of_the_live_projection(exported, name):
    base = exported(name)
    sites, inputs = base.torch_sites.sublayers, base.architecture.inputs(3, 5)
    returned = module_results(base.module, {site.path for site in sites}, inputs)
    in_torch = torch_values(base.in_torch.flat, inputs, [site.h for site in sites])
    for site in sites:
        np.testing.assert_allclose(in_torch[site.h], returned[site.path].pop(0), rtol=0, atol=1e-5, err_msg=site.name)


@pytest.mark.parametrize("name", by_architecture(IN_BOTH))
def test_pre_norm_sublayers_read_the_norm(exported, in_onnx, name):
    for sites in (exported(name).torch_sites, in_onnx(name).sites):
        assert {site.u != site.x for site in sites.sublayers} == {name in PRE_NORM}


@pytest.mark.parametrize("name", by_architecture(["gpt_neox", "cohere"]))
def test_parallel_sublayers_start_from_one_value(exported, name):
    attention, ffn, *_ = exported(name).torch_sites.sublayers
    assert attention.x == ffn.x
    assert attention.h != ffn.h


@pytest.mark.parametrize("name", by_architecture(["bert", "gpt2", "llama", "cohere", "opt"]))
def test_every_residual_sum_is_followed_by_a_norm(exported, name):
    assert {site.followed_by for site in exported(name).torch_sites.sublayers} == {"norm"}


@pytest.mark.parametrize("name", ["resnet", "cnn", "mlp", "linear"])
def test_a_base_without_a_residual_stream_is_refused(exported, name):
    base = exported(name)
    for view in ("torch_sites", "in_onnx"):
        with pytest.raises(NoSitesError, match="no residual stream") as caught:
            getattr(base, view)
        assert caught.value.facts().keys() >= {"what", "found", "expected", "fix"}


def test_refusal_counts_the_inspected_products_and_sums(exported):
    with pytest.raises(NoSitesError, match=r"6 products with trained weights and 2 sums .* 0 of them of shape"):
        _ = exported("resnet").torch_sites


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


def onnx_values(base: OnnxBase, inputs: Mapping[str, torch.Tensor], names: list[str]) -> Mapping[str, np.ndarray]:
    """The values of a copy that has them as outputs; an input is its own value."""
    copy = base.model.clone()
    there = {value.name for value in (*copy.graph.inputs, *copy.graph.outputs)}
    computed = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(computed[name] for name in dict.fromkeys(names) if name not in there)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    return feeds | dict(run_session(open_session(copy, base.folder), feeds))


def module_results(
    module: torch.nn.Module, paths: set[str | None], inputs: Mapping[str, torch.Tensor]
) -> dict[str, list[np.ndarray]]:
    """Return the outputs of the modules at `paths`, call by call."""
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

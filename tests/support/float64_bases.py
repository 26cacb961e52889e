"""Small float64 transformers in NumPy, independent of the package except for values replaced by adapters.

BERT, RoBERTa and DistilBERT normalize after each sum; GPT-2 before each sublayer. Sites have the package's names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.evaluate_adapter import evaluate_site
from adapter_export.sites.site import Norm

Array = np.ndarray
Tensors = Mapping[str, Array]

_erf = np.vectorize(math.erf)


@dataclass(frozen=True)
class Base:
    """A model folder of transformers."""

    config: Mapping[str, object]
    tensors: Tensors

    @classmethod
    def read(cls, folder: Path) -> Base:
        tensors = load_file(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        return cls(config, {name: tensor.astype(np.float64) for name, tensor in tensors.items()})

    def run(self, inputs: Tensors, adapter: Adapter | None = None) -> Array:
        """The final hidden state [batch, tokens, width]."""
        compute = _gpt2 if self.config["model_type"] == "gpt2" else _bert
        return compute(_Pass(self, adapter), inputs["input_ids"], inputs["attention_mask"])


@dataclass(frozen=True)
class _Pass:
    """One pass through a base with an adapter, or none."""

    base: Base
    adapter: Adapter | None

    def __getitem__(self, name: str) -> Array:
        return self.base.tensors[name]

    def number(self, *names: str) -> int:
        return int(next(self.base.config[name] for name in names if name in self.base.config))

    def at(self, site: str, value: str, values: Tensors, norm: str | None = None) -> Array:
        """A site value, or what the adapter puts in its place."""
        adapter = self.adapter
        if adapter is None or site not in adapter.placements:
            return values[value]
        if adapter.graphs[adapter.placements[site].graph].replaces != value:
            return values[value]
        if norm is None:
            return evaluate_site(adapter, site, values)
        lent = {"base_norm.weight": self[f"{norm}.weight"], "base_norm.bias": self[f"{norm}.bias"]}
        return evaluate_site(adapter, site, {**values, **lent}, Norm("layer", self.epsilon, "weight", "bias"))

    @property
    def epsilon(self) -> float:
        config = self.base.config
        return float(config.get("layer_norm_eps", config.get("layer_norm_epsilon", 1e-12)))

    def norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + self.epsilon) * self[f"{name}.weight"] + self[f"{name}.bias"]

    def linear(self, name: str, site: str, u: Array) -> Array:
        weight = self[f"{name}.weight"]
        h = u @ (weight if self.base.config["model_type"] == "gpt2" else weight.T) + self[f"{name}.bias"]
        return self.at(site, "h", {"u": u, "h": h})

    def post_norm(self, site: str, x: Array, norm: str, compute: Callable[[Array], Array]) -> Array:
        values = {"x": x, "u": x, "h": compute(x)}
        values["h"] = self.at(site, "h", values, norm)
        values["y"] = self.norm(norm, values["h"] + x)
        return self.at(site, "y", values, norm)

    def pre_norm(self, site: str, x: Array, norm: str, compute: Callable[[Array], Array]) -> Array:
        u = self.norm(norm, x)
        values = {"x": x, "u": u, "h": compute(u)}
        values["h"] = self.at(site, "h", values)
        values["y"] = values["h"] + x
        return self.at(site, "y", values)


def _attend(q: Array, k: Array, v: Array, heads: int, allowed: Array) -> Array:
    """Attention of [batch, tokens, width]; `allowed` is [batch, 1, tokens or 1, tokens]."""
    batch, tokens, width = q.shape
    q, k, v = (a.reshape(batch, tokens, heads, width // heads).transpose(0, 2, 1, 3) for a in (q, k, v))
    scores = np.where(allowed, q @ k.transpose(0, 1, 3, 2) / math.sqrt(width // heads), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(batch, tokens, width)


@dataclass(frozen=True)
class _Names:
    """Where the modules of a layer are."""

    query: str
    key: str
    value: str
    output: str
    attention_norm: str
    up: str
    down: str
    ffn_norm: str


_BERT = _Names(
    "encoder.layer.{}.attention.self.query",
    "encoder.layer.{}.attention.self.key",
    "encoder.layer.{}.attention.self.value",
    "encoder.layer.{}.attention.output.dense",
    "encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layer.{}.intermediate.dense",
    "encoder.layer.{}.output.dense",
    "encoder.layer.{}.output.LayerNorm",
)
_DISTILBERT = _Names(
    "transformer.layer.{}.attention.q_lin",
    "transformer.layer.{}.attention.k_lin",
    "transformer.layer.{}.attention.v_lin",
    "transformer.layer.{}.attention.out_lin",
    "transformer.layer.{}.sa_layer_norm",
    "transformer.layer.{}.ffn.lin1",
    "transformer.layer.{}.ffn.lin2",
    "transformer.layer.{}.output_layer_norm",
)


def _bert(run: _Pass, ids: Array, mask: Array) -> Array:
    x = run.norm("embeddings.LayerNorm", _embedded(run, ids))
    x = run.at("embeddings", "h", {"h": x})
    names = _DISTILBERT if run.base.config["model_type"] == "distilbert" else _BERT
    for layer in range(run.number("num_hidden_layers", "n_layers")):
        x = _bert_layer(run, x, mask[:, None, None, :] > 0, layer, names)
    return x


def _embedded(run: _Pass, ids: Array) -> Array:
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    if run.base.config["model_type"] == "roberta":
        real = ids != run.base.config["pad_token_id"]
        positions = np.cumsum(real, axis=1) * real + run.number("pad_token_id")
    x = run["embeddings.word_embeddings.weight"][ids] + run["embeddings.position_embeddings.weight"][positions]
    types = run.base.tensors.get("embeddings.token_type_embeddings.weight")
    return x if types is None else x + types[0]


def _bert_layer(run: _Pass, x: Array, allowed: Array, layer: int, names: _Names) -> Array:
    site = f"layers.{layer}"

    def name(template: str) -> str:
        return template.format(layer)

    def attention(u: Array) -> Array:
        q, k, v = (
            run.linear(name(module), f"{site}.attention.{part}", u)
            for part, module in (("query", names.query), ("key", names.key), ("value", names.value))
        )
        mixed = _attend(q, k, v, run.number("num_attention_heads", "n_heads"), allowed)
        return run.linear(name(names.output), f"{site}.attention.output", mixed)

    def ffn(u: Array) -> Array:
        inner = run.linear(name(names.up), f"{site}.ffn.up", u)
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        return run.linear(name(names.down), f"{site}.ffn.down", inner)

    x = run.post_norm(f"{site}.attention", x, name(names.attention_norm), attention)
    return run.post_norm(f"{site}.ffn", x, name(names.ffn_norm), ffn)


def _gpt2(run: _Pass, ids: Array, mask: Array) -> Array:
    x = run["wte.weight"][ids] + run["wpe.weight"][np.arange(ids.shape[1])]
    x = run.at("embeddings", "h", {"h": x})
    causal = np.tri(ids.shape[1], dtype=bool) & (mask[:, None, None, :] > 0)
    for layer in range(run.number("n_layer")):
        x = _gpt2_layer(run, x, causal, layer)
    return run.norm("ln_f", x)


def _gpt2_layer(run: _Pass, x: Array, allowed: Array, layer: int) -> Array:
    site, name = f"layers.{layer}", f"h.{layer}"

    def attention(u: Array) -> Array:
        q, k, v = np.split(run.linear(f"{name}.attn.c_attn", f"{site}.attention.qkv", u), 3, axis=-1)
        mixed = _attend(q, k, v, run.number("n_head"), allowed)
        return run.linear(f"{name}.attn.c_proj", f"{site}.attention.output", mixed)

    def ffn(u: Array) -> Array:
        inner = run.linear(f"{name}.mlp.c_fc", f"{site}.ffn.up", u)
        inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        return run.linear(f"{name}.mlp.c_proj", f"{site}.ffn.down", inner)

    x = run.pre_norm(f"{site}.attention", x, f"{name}.ln_1", attention)
    return run.pre_norm(f"{site}.ffn", x, f"{name}.ln_2", ffn)

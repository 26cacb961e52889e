"""A site map written by hand, with every role that a kind can ask for."""

from __future__ import annotations

from collections.abc import Mapping

from adapter_export.sites.site import Norm, Role, Site, SiteMap

WIDTH, INNER = 16, 32
LINEARS = ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down")

BERT = {
    "attention.query": "encoder.layer.{}.attention.self.query",
    "attention.key": "encoder.layer.{}.attention.self.key",
    "attention.value": "encoder.layer.{}.attention.self.value",
    "attention.output": "encoder.layer.{}.attention.output.dense",
    "ffn.up": "encoder.layer.{}.intermediate.dense",
    "ffn.down": "encoder.layer.{}.output.dense",
}
"""The paths of its linear layers."""

DISTILBERT = {
    "attention.query": "transformer.layer.{}.attention.q_lin",
    "attention.key": "transformer.layer.{}.attention.k_lin",
    "attention.value": "transformer.layer.{}.attention.v_lin",
    "attention.output": "transformer.layer.{}.attention.out_lin",
    "ffn.up": "transformer.layer.{}.ffn.lin1",
    "ffn.down": "transformer.layer.{}.ffn.lin2",
}
"""Likewise."""

_LAST: Mapping[Role, str] = {"attention": "attention.output", "ffn": "ffn.down"}
"""The last linear layer of each sublayer."""


def site(
    name: str, role: Role, layer: int | None, width: int = WIDTH, width_in: int = WIDTH, path: str | None = None
) -> Site:
    """A site with all the values that its role has, named after it."""
    sublayer = role in ("attention", "ffn")
    return Site(
        name=name,
        role=role,
        layer=layer,
        width=width,
        width_in=width_in,
        h=f"{name}.h",
        x=f"{name}.x" if sublayer else None,
        u=None if role == "embeddings" else f"{name}.u",
        y=f"{name}.y" if sublayer else None,
        norm=Norm("layer", 1e-12, f"{name}.weight", f"{name}.bias") if sublayer else None,
        residual=f"{name}.add" if sublayer else None,
        path=path,
        followed_by="norm",
    )


def encoder(layers: int = 2, width: int = WIDTH, inner: int = INNER, paths: Mapping[str, str] | None = None) -> SiteMap:
    """A post-norm encoder with `inner` features inside the FFN: embeddings, sublayers and linear layers.

    `paths` are those of linear layers, with `{}` for the number of the layer.
    """
    known = paths or {}
    sites = [site("embeddings", "embeddings", None, width, width)]
    for layer in range(layers):
        where = {name: path.format(layer) for name, path in known.items()}
        for name in LINEARS:
            out, read = inner if name == "ffn.up" else width, inner if name == "ffn.down" else width
            sites.append(site(f"layers.{layer}.{name}", "linear", layer, out, read, where.get(name)))
        for role, last in _LAST.items():
            sites.append(site(f"layers.{layer}.{role}", role, layer, width, width, where.get(last)))
    return SiteMap(tuple(sites), "final", width)

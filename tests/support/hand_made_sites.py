"""A site map written by hand, with every role that a kind can ask for."""

from __future__ import annotations

from adapter_export.sites.site import Norm, Role, Site, SiteMap

WIDTH, INNER = 16, 32
LINEARS = ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down")


def site(name: str, role: Role, layer: int | None, width: int = WIDTH, width_in: int = WIDTH) -> Site:
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
        path=None,
        followed_by="norm",
    )


def encoder(layers: int = 2) -> SiteMap:
    """A post-norm encoder of `WIDTH`, with `INNER` inside the FFN: embeddings, sublayers and linear layers."""
    sites = [site("embeddings", "embeddings", None)]
    for layer in range(layers):
        for name in LINEARS:
            width = INNER if name == "ffn.up" else WIDTH
            width_in = INNER if name == "ffn.down" else WIDTH
            sites.append(site(f"layers.{layer}.{name}", "linear", layer, width, width_in))
        sites += [site(f"layers.{layer}.{role}", role, layer) for role in ("attention", "ffn")]
    return SiteMap(tuple(sites), "final", WIDTH)

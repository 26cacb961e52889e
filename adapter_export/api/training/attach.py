"""Attach an adapter to a model, for a training loop of your own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from adapter_export.api.adapters.adapters import load_adapter
from adapter_export.api.adapters.kinds import make_kind
from adapter_export.api.models.base import Base, PathLike, open_base, require

if TYPE_CHECKING:
    from torch.nn import Module

    from adapter_export.graph.adapter import Adapter, Head
    from adapter_export.sites.site import SiteMap
    from adapter_export.torch_backend.attach import AttachedAdapter
    from adapter_export.torch_backend.base.capture_module import AxisNames, Inputs


def attach(
    model: Module | Base | PathLike,
    adapter: Adapter | PathLike | None = None,
    *,
    kind: str = "houlsby",
    labels: Sequence[str] | None = None,
    pooling: Literal["mean", "first"] = "mean",
    head: Head | None = None,
    init: str | None = None,
    seed: int = 0,
    learned: Collection[str] | None = None,
    example_inputs: Inputs | None = None,
    axes: AxisNames | None = None,
    site_map: PathLike | None = None,
    **options: Any,
) -> AttachedAdapter:
    """Attach an adapter for a training loop of your own; when the block ends, the model is as it was.

    ::

        with ae.attach(model, kind="houlsby", bottleneck=64, labels=["bad", "good"]) as adapter:
            optimizer = torch.optim.AdamW(adapter.learned().values(), lr=1e-3)
            ...                       # model(**batch).logits, any loss, backward, step
            adapter.save("reviews")

    Your own module runs as always, with its `forward` and its dropout; everything in it but the adapter is frozen. It
    is compared with its captured graph first, at every site. What it returns, if that is a dict or an output of
    transformers, gets the head's result as `logits`. Of a base, the object that is returned is the model:
    `adapter(**inputs)`.

    Args:
        model: your module, with float32 weights on the CPU (move it when the adapter is attached); or a torch base.
        adapter: an adapter to train on; a fresh one if none is given.
        kind: of a fresh adapter: what is computed, and where.
        labels: of a fresh adapter: the classes of its head.
        pooling: what that head reads, the mean of the tokens or the first one.
        head: of a fresh adapter: a head of another look, in the place of that one.
        init: of a fresh adapter: how its weights are drawn; by kind.
        seed: of these weights.
        learned: the adapter's tensors that learn; all if not given.
        example_inputs: of a module: by name, or in the order of the arguments of `forward`; tokens, images or sound by
            their usual names need none.
        axes: of these inputs: the dynamic axes, as `capture` takes them.
        site_map: a file with sites that override or complete those that are found; a `Base` has its own.
        options: what is free in the kind, such as `bottleneck`, `rank`, `dropout`.

    Raises:
        UsageError: an option that the kind does not have, or inputs that are not those of the module.
        BaseModelError: torch cannot export the module; `NoSitesError`: a site lies inside a `forward`, where no hook
            reaches it: train on the captured base.
        AdapterError: the adapter does not fit.
    """
    require("torch", "torch", "training")
    from adapter_export.format.site_map_json import read_site_map
    from adapter_export.graph.heads import HeadOptions, make_head
    from adapter_export.sites.site_map import SITE_MAP_KEY
    from adapter_export.torch_backend import attach as bases
    from adapter_export.torch_backend.hooks import attach_to_module
    from adapter_export.torch_backend.train.init_adapter import init_adapter

    opened = open_base(model, site_map=site_map) if isinstance(model, str | Path | Base) else None
    given = opened.given if opened is not None else None if site_map is None else read_site_map(Path(site_map))

    def make(sites: SiteMap, fingerprint: str) -> Adapter:
        if adapter is not None:
            return load_adapter(adapter) if isinstance(adapter, str | Path) else adapter
        own = head
        if head is None and labels is not None:
            own = make_head(width=sites.width, labels=labels, options=HeadOptions(pooling))
        chosen = make_kind(kind, options)
        fresh = init_adapter(chosen, sites, name="adapter", base=fingerprint, scheme=init, seed=seed, head=own)
        return replace(fresh, training={SITE_MAP_KEY: None if given is None else given.digest})

    if opened is None:
        return attach_to_module(
            cast("Module", model), make, example_inputs=example_inputs, axes=axes, site_map=given, learned=learned
        )
    sites = opened.sites.complete
    return bases.attach(opened.torch, make(sites, opened.fingerprint), sites=sites, learned=learned)

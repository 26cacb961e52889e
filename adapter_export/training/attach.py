"""Attach an adapter to a model, for use in your own training loop."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from adapter_export.address import Address, PathLike
from adapter_export.bases.adapters import load_adapter
from adapter_export.bases.base import Base
from adapter_export.bases.kinds import kind_options, make_kind
from adapter_export.bases.opening import open_base
from adapter_export.extras import require
from adapter_export.graph.ops import POOLING_HELP, POOLINGS
from adapter_export.option import Option, OptionsOf

if TYPE_CHECKING:
    from torch.nn import Module

    from adapter_export.graph.adapter import Adapter, Head
    from adapter_export.graph.kinds import Kind
    from adapter_export.sites.site import SiteMap
    from adapter_export.torch_backend.attach import AttachedAdapter
    from adapter_export.torch_backend.base.capture_module import AxisNames, Inputs


@dataclass(frozen=True)
class Initialization:
    """Initial weights of a new adapter, and the head for its labels."""

    labels: Annotated[Sequence[str] | None, "Classes of the head. Default: no head."] = None
    pooling: Annotated[str, Option(POOLING_HELP, choices=tuple(POOLINGS))] = "mean"
    init: Annotated[str | None, "Weight initialization. Default: depends on the kind."] = None
    seed: Annotated[int, "Random seed."] = 0

    def adapter(self, kind: Kind, sites: SiteMap, base: str, head: Head | None) -> Adapter:
        """Return a new adapter at the sites of a base with this fingerprint."""
        from adapter_export.graph.heads import HeadOptions, make_head
        from adapter_export.training.loop.init_adapter import init_adapter

        if head is None and self.labels is not None:
            head = make_head(width=sites.width, labels=self.labels, options=HeadOptions(self.pooling))
        return init_adapter(kind, sites, name="adapter", base=base, scheme=self.init, seed=self.seed, head=head)


ATTACH_OPTIONS = OptionsOf(kind_options, Initialization)
"""Options of a new adapter."""


def attach(
    model: Module | Base | Address,
    adapter: Adapter | Address | None = None,
    *,
    kind: str = "houlsby",
    head: Head | None = None,
    learned: Collection[str] | None = None,
    example_inputs: Inputs | None = None,
    axes: AxisNames | None = None,
    site_map: PathLike | None = None,
    **options: Annotated[Any, ATTACH_OPTIONS],
) -> AttachedAdapter:
    """Attach an adapter for your own training loop; the model is restored when the block ends.

    ::

        with ae.attach(model, kind="houlsby", bottleneck=64, labels=["bad", "good"]) as adapter:
            optimizer = torch.optim.AdamW(adapter.learned().values(), lr=1e-3)
            ...                       # model(**batch).logits, any loss, backward, step
            adapter.save("reviews")

    Your module keeps its `forward` and its dropout; everything in it except the adapter is frozen. First, it is
    compared with its captured graph at every site. If it returns a dict or a transformers output, that gets the head's
    result as `logits`. For a base, the returned object is the model: `adapter(**inputs)`.

    Args:
        model: your module, with float32 weights on the CPU (move it after attaching the adapter); or a torch base.
        adapter: the adapter to train; `None` makes a new one.
        kind: kind of a new adapter.
        head: head of a new adapter; `None` makes one for its `labels`.
        learned: names of the adapter's tensors to train; `None` trains all.
        example_inputs: example inputs of a module, by name or in the order of `forward`; not needed for tokens, images
            and audio under their usual names.
        axes: dynamic axes of these inputs, as for `capture`.
        site_map: a file with sites that override or complete the detected ones; not for a `Base`.
        options: options of a new adapter: those of its kind, such as `bottleneck`, `rank` or `dropout`; `labels`, the
            classes of its head, and `pooling`, the head's input, such as `mean` or `last`; `init`, the initialization
            of its weights, and `seed`.

    Raises:
        UsageError: an option that the kind does not have, or inputs that do not match the module.
        BaseModelError: torch cannot export the module; `NoSitesError`: a site lies inside a `forward`, out of reach of
            hooks: train on the captured base instead.
        AdapterError: the adapter does not fit.
    """
    of_kind, of_start = ATTACH_OPTIONS.split("attach", options)
    require("torch", "torch", "training")
    from adapter_export.format.site_map_json import read_site_map
    from adapter_export.sites.site_map import SITE_MAP_KEY
    from adapter_export.torch_backend import attach as bases
    from adapter_export.torch_backend.hooks import attach_to_module

    opened = open_base(model, site_map=site_map) if isinstance(model, str | Path | Base) else None
    given_sites = opened.given if opened is not None else None if site_map is None else read_site_map(Path(site_map))

    def make(sites: SiteMap, fingerprint: str) -> Adapter:
        if adapter is not None:
            return load_adapter(adapter) if isinstance(adapter, str | Path) else adapter
        new = Initialization(**of_start).adapter(make_kind(kind, of_kind), sites, fingerprint, head)
        return replace(new, training={SITE_MAP_KEY: None if given_sites is None else given_sites.digest})

    if opened is None:
        return attach_to_module(
            cast("Module", model), make, example_inputs=example_inputs, axes=axes, site_map=given_sites, learned=learned
        )
    sites = opened.sites.complete
    return bases.attach(opened.torch, make(sites, opened.fingerprint), sites=sites, learned=learned)

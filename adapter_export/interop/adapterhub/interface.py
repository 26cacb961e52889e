"""Adapters that AdapterHub hooked into a model through its plug-in interface (`adapter_interface.json`).

There the model itself adds the residual and applies its norm, and a bottleneck reads what a hook saw. Where its config
reads the residual stream or the base's norm, what it saw depends on the interface, and one version of the library has
a defect: its hooks share one variable, so that every layer applies the norm of the last one (`init_bottleneck`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapter_export.errors import AdapterError
from adapter_export.graph.kinds.adapterhub import BottleneckConfig
from adapter_export.interop.adapterhub.config import LoraConfig
from adapter_export.sites.site import Site, SiteMap


def check_interface(document: Mapping[str, Any] | None, config: BottleneckConfig | LoraConfig, sites: SiteMap) -> None:
    """Refuse what an adapter of the plug-in interface computed otherwise than the graphs here.

    Args:
        document: the JSON of the interface; none for adapters of the library's own models.
        config: the adapter's.
        sites: of the base.

    Raises:
        AdapterError: the message names the reason.
    """
    if document is None or isinstance(config, LoraConfig):
        return
    interface = document.get("interface")
    if not isinstance(interface, dict):
        raise AdapterError("the file of the plug-in interface holds none", found=f"keys {', '.join(document)}")
    for role, hook, norm in (
        ("attention", "layer_pre_self_attn", "layer_ln_1"),
        ("ffn", "layer_pre_ffn", "layer_ln_2"),
    ):
        if config.mh_adapter if role == "attention" else config.output_adapter:
            places = [site for site in sites.sublayers if site.role == role]
            _check_place(config, places, interface.get(hook), interface.get(norm))


def _check_place(config: BottleneckConfig, places: list[Site], hook: str | None, norm: str | None) -> None:
    _check_output(places, norm)
    if config.is_parallel or config.original_ln_before:
        _check_residual(places, hook)
    if config.original_ln_before and not config.is_parallel:
        _check_norm(places, norm)


def _check_output(places: list[Site], norm: str | None) -> None:
    """The hook is behind the output projection: a norm between it and the sum, as in Gemma 2, would come after."""
    other = [site.name for site in places if norm is not None and site.norm is None]
    if other:
        sites = ", ".join(f"`{name}`" for name in other)
        raise AdapterError(
            "acted behind the output projection, perhaps before a norm that this base has in front of the sum",
            found=f"`{norm}` in the plug-in interface, and no norm behind the sum at {sites}",
            expected="an interface without that norm, or a base that normalises the sum",
            fix="train it again with an interface that leaves `layer_ln_1` and `layer_ln_2` out",
        )


def _check_residual(places: list[Site], hook: str | None) -> None:
    if hook is None:
        raise AdapterError(
            "reads the residual stream, which the plug-in interface does not name",
            found="`layer_pre_self_attn` or `layer_pre_ffn` is null",
        )
    inside = [site.name for site in places if site.x != site.u and f".{hook}." in f".{site.path}."]
    if inside:
        raise AdapterError(
            "took what the sublayer reads, behind its norm, for the residual stream",
            found=f"`{hook}` at {', '.join(f'`{name}`' for name in inside)}",
            expected="an interface that hooks the norm before the sublayer",
            fix="train it again with such an interface",
        )


def _check_norm(places: list[Site], norm: str | None) -> None:
    if norm is not None and len(places) > 1:
        raise AdapterError(
            "was trained with a defect of AdapterHub's plug-in interface: every layer applied the norm of the "
            "last layer, because its hooks share one variable",
            found=f"`original_ln_before` with `{norm}`",
            expected="an adapter of the library's own model classes, or one that does not read the base's norm",
            fix="train it again there, or as `double_seq_bn`, which has no such norm",
        )
    unread = [site.name for site in places if norm is None and site.norm is not None]
    if unread:
        raise AdapterError(
            "read the sum without the norm that this base has behind it",
            found=", ".join(f"`{name}`" for name in unread),
            expected="an interface that names the norm",
        )

"""Layers that a base calls beside their sites: an adapter of another library acts at every call of its module."""

from __future__ import annotations

from collections.abc import Iterable

from adapter_export.errors import AdapterError
from adapter_export.sites.site import Site


def check_calls(sites: Iterable[Site], where: object) -> None:
    """Refuse sites whose module the base calls elsewhere as well.

    Args:
        sites: where an adapter shall act.
        where: names the adapter in messages.

    Raises:
        AdapterError: there are such sites; all are listed.
    """
    found = [site for site in sites if site.other_calls]
    if found:
        raise AdapterError(
            "acts on layers that the base calls a second time, on what is no text, such as relative positions; "
            "there no adapter can act, so that the result would be another one",
            where=where,
            found=", ".join(f"`{site.path or site.name}`" for site in found),
            expected="layers that are called at their sites alone",
            fix="merge the adapter into the base with the library that trained it, and take the result as a base; or "
            "train it on other layers",
        )

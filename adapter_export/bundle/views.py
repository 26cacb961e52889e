"""Compare the sites of a torch base with those of its ONNX export: names and values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from adapter_export.errors import BaseModelError
from adapter_export.numerics.runner import Arrays
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.onnx_runner import Pieces
from adapter_export.onnx_backend.rewrite.surgery import GraphRewrite
from adapter_export.sites.site import Site, SiteMap

_TOLERANCE = 1e-3
"""Relative to the largest number: different values differ by more, rounding by less."""

_MOST_ELEMENTS = 2**18
"""Elements of inputs: a run that shows all values of an image or a recording needs much memory for each row."""

_FEW_TOKENS = 7

Compute = Callable[[Mapping[str, np.ndarray], Collection[str]], Arrays]
"""Function (inputs) → values of some nodes of the torch base, by name."""


def check_same_sites(in_torch: SiteMap, exported: OnnxBase, compute: Compute, max_tokens: int | None) -> None:
    """Reject a base whose sites in torch, on which adapters are trained, differ from those in its ONNX graph.

    Names and widths are compared, and values on one input of at most `max_tokens`, within rounding. A layer outside all
    sublayers may be a site on one side only: an adapter there does not fit the other. `BaseModelError` names the first
        site that differs.
    """
    torch_names, onnx_names = ({site.name for site in sites} for sites in (in_torch.sites, exported.sites.sites))
    ours = _in_both(in_torch, onnx_names)
    theirs = _in_both(exported.sites, torch_names)
    for site, its in zip(ours, theirs, strict=False):
        if _facts(site) != _facts(its):
            raise _differs(site.name, f"{_facts(its)} in the ONNX graph", f"{_facts(site)}, as in torch")
    if len(ours) != len(theirs):
        more, where = (ours, "torch") if len(ours) > len(theirs) else (theirs, "the ONNX graph")
        raise _differs(more[min(len(ours), len(theirs))].name, f"a site in {where} only", "a site in both")
    pairs = [("head", "hidden", in_torch.final, exported.sites.final)]
    pairs += [
        (site.name, name, value, getattr(its, name))
        for site, its in zip(ours, theirs, strict=True)
        for name in ("h", "x", "u", "y")
        if (value := getattr(site, name)) is not None
    ]
    few = min(max_tokens or _FEW_TOKENS, _FEW_TOKENS)
    cases = input_cases(exported.inputs, seed=2, lengths=exported.lengths, max_tokens=few)
    whole = [case.arrays for case in cases if not case.name.endswith("_padded")]
    sizes = [sum(array.size for array in each.values()) for each in whole]
    arrays = whole[sizes.index(max((size for size in sizes if size <= _MOST_ELEMENTS), default=min(sizes)))]
    rewrite = GraphRewrite(exported.model)
    shown: dict[str, str] = {}
    for value in dict.fromkeys(value for *_, value in pairs):
        shown[value] = f"site.{len(shown)}"
        rewrite.expose(rewrite.value(value), shown[value])
    actual = Pieces(rewrite.finish(), exported.folder, optimize=False).run(arrays)
    expected = compute(arrays, {value for _, _, value, _ in pairs})
    for owner, name, value, other in pairs:
        torch_value, onnx_value = expected[value], actual[shown[other]]
        scale = float(np.abs(torch_value[np.isfinite(torch_value)]).max(initial=0))
        if torch_value.size != onnx_value.size or not np.allclose(
            onnx_value.ravel(), torch_value.ravel(), rtol=0, atol=_TOLERANCE * scale, equal_nan=True
        ):
            apart = f"`{other}` in the ONNX graph differs from `{value}` in torch"
            raise _differs(f"{owner}`, `{name}", apart, "equal values on one input, within rounding")


def _in_both(sites: SiteMap, known: Collection[str]) -> list[Site]:
    """Return the sites to compare: all in the sublayers, then those outside by name: order may vary."""
    outside = [site for site in sites.sites if site.is_outside and site.name in known]
    return [site for site in sites.sites if not site.is_outside] + sorted(outside, key=lambda site: site.name)


def _facts(site: Site) -> str:
    parts = ", ".join(f"{name} {start}–{end}" for name, (start, end) in site.parts.items())
    values = "".join(name for name in ("h", "x", "u", "y") if getattr(site, name) is not None)
    return f"`{site.name}`, {site.role} {site.width_in} → {site.width} of {values}" + (f" ({parts})" if parts else "")


def _differs(site: str, actual: str, expected: str) -> BaseModelError:
    return BaseModelError(
        "the sites of the torch model differ from those of its ONNX export",
        where=f"site `{site}`",
        found=actual,
        expected=expected,
        fix="remove the site in a site map, or correct its values there",
    )

"""A base rewritten as a whole, by a quantiser or an optimiser: written, opened again, and compared with what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import BaseModelError, NoSitesError, NothingComparedError, UsageError
from adapter_export.numerics.budget import budget, extent
from adapter_export.numerics.sample_inputs import InputCase
from adapter_export.onnx_backend.base import external
from adapter_export.onnx_backend.base.base import FINGERPRINT_KEY, OnnxBase, open_onnx
from adapter_export.onnx_backend.base.normalise import correct_shapes
from adapter_export.onnx_backend.session import open_session
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.sites.site_map import GivenSites, SiteValues

_EMBEDDED_BYTES = 1024
"""Smaller tensors stay in the graph's own file."""


def in_memory(base: OnnxBase) -> ir.Model:
    """A copy of a base that holds its weights."""
    model = base.model.clone()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = external.in_memory(value.const_value)
    return model


def write_rewritten(model: ir.Model, base: OnnxBase, folder: Path, done: str) -> OnnxBase:
    """Write a rewritten base into a folder as `base.onnx` and `base.bin`, and open it.

    It keeps the fingerprint, so that adapters of the base fit it, the site map, and the module paths of its sites,
    which tools that rewrite graphs drop.

    Args:
        model: the rewritten graph.
        base: the base that it was made of.
        folder: where it goes.
        done: what was done to it, for messages, such as `optimised`.

    Raises:
        BaseModelError: its inputs, outputs or sites are no longer those of the base.
        OSError: the operating system refused a write.
    """
    model.graph.sort()  # the float16 converter puts the casts of inputs at the end
    model.metadata_props.clear()
    model.metadata_props.update({**base.model.metadata_props, FINGERPRINT_KEY: base.fingerprint})
    path = folder / "base.onnx"
    ir.save(model, path, external_data="base.bin", size_threshold_bytes=_EMBEDDED_BYTES)
    written = ir.load(path)
    if correct_shapes(written, folder, base.inputs):
        ir.save(written, path)
    made = _opened(path, base, done)
    facts = {
        "inputs": (made.inputs, base.inputs),
        "outputs": (made.outputs, base.outputs),
        "sites": tuple(
            tuple((site.name, site.role, site.width) for site in sites.sublayers) for sites in (made.sites, base.sites)
        ),
    }
    for what, (found, expected) in facts.items():
        if found != expected:
            raise BaseModelError(
                f"has other {what} when it is {done}",
                where=base.path,
                found=", ".join(map(str, found)) or "none",
                expected=", ".join(map(str, expected)),
                fix="build it without that, and report this with the base",
            )
    paths = {site.name: site.path for site in base.sites}
    sites = tuple(replace(site, path=paths.get(site.name, site.path)) for site in made.sites.sites)
    return replace(made, sites=replace(made.sites, sites=sites))


def _opened(path: Path, base: OnnxBase, done: str) -> OnnxBase:
    """Open what was rewritten, with the site map of the base where it has one."""
    if base.given is None:
        return open_onnx(path)
    try:
        found = open_onnx(path).sites
    except NoSitesError:
        found = None
    try:
        return open_onnx(path, given=_remapped(base, base.given, found))
    except UsageError as error:
        raise BaseModelError(
            f"has lost a value that the site map names when it is {done}",
            where=error.where,
            found=error.found,
            expected=error.expected,
            fix="build it without that, or give other values in the site map",
        ) from error


def _remapped(base: OnnxBase, given: GivenSites, rewritten: SiteMap | None) -> GivenSites:
    """The site map of a base as it reads in the graph that the base was rewritten as.

    Quantisers and fusions keep the names of values that they do not fuse away. Where a site is found in both graphs,
    its values may have other names, and what is found says which. So a given site that is made of values of a found
    one follows it, and other values keep their names; what is not there is refused when the sites are looked up.

    Args:
        base: the base.
        given: its site map.
        rewritten: the sites that were found in the rewritten graph; none if there are none.
    """
    try:
        found = discover(base.flow)
    except NoSitesError:
        found = None
    before = {site.name: site for site in found or ()}
    after = {site.name: site for site in rewritten or ()}
    names: dict[str | None, str] = {
        getattr(before[name], key): new
        for name in before.keys() & after.keys()
        for key in ("h", "x", "u", "y")
        if (new := getattr(after[name], key)) is not None
    }
    if found and rewritten:
        names[found.final] = rewritten.final
    sites = {
        name: None if site is None else replace(site, values={"onnx": _renamed(site.values["onnx"], names)})
        for name, site in given.sites.items()
        if site is not None or name in after
    }
    return replace(given, sites=sites, final={"onnx": names.get(base.sites.final, base.sites.final)})


def _renamed(values: SiteValues, names: Mapping[str | None, str]) -> SiteValues:
    h, x, u, y = (names.get(name, name) for name in (values.h, values.x, values.u, values.y))
    return SiteValues(h or values.h, x, u, y)


@dataclass(frozen=True)
class Deviation:
    """The distance of an output of a rewritten base from that of the base that it was made of.

    Attributes:
        output: its name.
        absolute: the largest difference of an element.
        scale: the largest absolute value of the output.
        allowed: by how much two correct computations in float32 may differ.
    """

    output: str
    absolute: float
    scale: float
    allowed: float


def deviations(base: OnnxBase, made: OnnxBase, cases: Sequence[InputCase]) -> list[Deviation]:
    """Run a base and what was made of it on the same inputs, and compare each output of floats.

    Raises:
        NothingComparedError: there are no cases.
        RequestError: one of the two cannot compute these inputs.
    """
    if not cases:
        raise NothingComparedError("the rewritten base was not compared with the base: there are no inputs")
    before, after = open_session(base.model, base.folder), open_session(made.model, made.folder)
    pairs = [(run_session(before, case.arrays), run_session(after, case.arrays)) for case in cases]
    size = extent(base.flow)
    inner = max(size.inner, *(length for case in cases for array in case.arrays.values() for length in array.shape))
    found = []
    for name in (record.name for record in base.outputs if record.dtype in FLOAT_TYPES):
        absolute = max(float(np.abs(new[name] - old[name]).max(initial=0)) for old, new in pairs)
        scale = max(float(np.abs(old[name]).max(initial=0)) for old, _ in pairs)
        allowed = budget(pairs[0][0][name].dtype.name, inner=inner, depth=size.depth, scale=scale).absolute
        found.append(Deviation(name, absolute, scale, allowed))
    return found

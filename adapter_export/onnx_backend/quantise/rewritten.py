"""A base that a tool has rewritten: written and opened again, with its sites, and compared with the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import BaseModelError, NoSitesError, NothingComparedError, UsageError
from adapter_export.numerics.budget import budget, extent
from adapter_export.numerics.sample_inputs import InputCase
from adapter_export.onnx_backend.base import external
from adapter_export.onnx_backend.base.normalise import correct_shapes
from adapter_export.onnx_backend.base.onnx_base import FINGERPRINT_KEY, OnnxBase, numerics, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.sites.site_map import GivenSite, GivenSites, SiteValues


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
    which tools that rewrite graphs drop. `done` says in messages what was done to it, such as `optimised`.
    `BaseModelError`: its inputs, outputs or sites are no longer those of the base.
    """
    model.graph.sort()  # the float16 converter puts the casts of inputs at the end
    model.metadata_props.clear()
    model.metadata_props.update({**base.model.metadata_props, FINGERPRINT_KEY: base.fingerprint})
    path = folder / "base.onnx"
    ir.save(model, path, external_data="base.bin", size_threshold_bytes=external.EMBEDDED_BYTES)
    written = external.read_model(path, partial(BaseModelError, "is not an ONNX model", where=path))
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
    # a layer outside of all sublayers has its name of its path, and is known by its value where that is lost
    outside = {(site.h, site.width_in): site for site in base.sites.sites if site.is_outside}
    again = [outside.get((site.h, site.width_in)) if site.is_outside else site for site in made.sites.sites]
    sites = tuple(
        replace(site, name=known.name, path=paths.get(known.name, site.path))
        for site, known in zip(made.sites.sites, again, strict=True)
        if known is not None
    )
    return replace(made, sites=replace(made.sites, sites=sites), lengths=base.lengths)


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
    sites: dict[str, GivenSite | None] = {}
    for name, site in given.sites.items():
        if site is None and name in after:
            sites[name] = None
        if site is not None:
            old = site.values["onnx"]
            x, u, y = (names.get(value, value) for value in (old.x, old.u, old.y))
            sites[name] = replace(site, values={"onnx": SiteValues(names.get(old.h, old.h), x, u, y)})
    return replace(given, sites=sites, final={"onnx": names.get(base.sites.final, base.sites.final)})


@dataclass(frozen=True)
class Deviation:
    """The largest difference of an element of an output of a rewritten base from that of the base it was made of.

    `scale` is the output's largest absolute value, `allowed` what two correct computations in the precision of the base
    that it was made of may differ by.
    """

    output: str
    absolute: float
    scale: float
    allowed: float


def deviations(base: OnnxBase, made: OnnxBase, cases: Sequence[InputCase]) -> list[Deviation]:
    """Run a base and what was made of it on the same inputs, and compare each output of floats."""
    if not cases:
        raise NothingComparedError("the rewritten base was not compared with the base: there are no inputs")
    before, after = open_session(base.model, base.folder), open_session(made.model, made.folder)
    pairs = [(run_session(before, case.arrays), run_session(after, case.arrays)) for case in cases]
    size, stored = extent(base.flow), numerics(base.model).precision.activations
    inner = max(size.inner, *(length for case in cases for array in case.arrays.values() for length in array.shape))
    found = []
    for name in (record.name for record in base.outputs if record.dtype in FLOAT_TYPES):
        absolute = max(float(np.abs(new[name] - old[name]).max(initial=0)) for old, new in pairs)
        scale = max(float(np.abs(old[name]).max(initial=0)) for old, _ in pairs)
        dtype = pairs[0][0][name].dtype.name
        allowed = budget(dtype, inner=inner, depth=size.depth, scale=scale, rounded_to=stored)
        found.append(Deviation(name, absolute, scale, allowed.absolute))
    return found

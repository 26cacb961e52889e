"""A base remade as a whole, by a quantiser or an optimiser: written, opened again, and held against what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import BaseModelError, NoSitesError, NothingComparedError, UsageError
from adapter_export.numerics.budget import budget, extent
from adapter_export.numerics.sample_inputs import InputCase
from adapter_export.onnx_backend.base.base import FINGERPRINT_KEY, OnnxBase, open_onnx
from adapter_export.onnx_backend.base.external import readable
from adapter_export.onnx_backend.base.observe import correct_shapes
from adapter_export.onnx_backend.session import open_session
from adapter_export.onnx_backend.view.flow import flow_graph
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.discover import discover
from adapter_export.sites.site import Site, SiteMap
from adapter_export.sites.site_map import GivenSite, GivenSites

# A site map carried over from a base to what it was remade as.


def carried(base: OnnxBase, remade: SiteMap | None) -> GivenSites | None:
    """The site map of a base as it reads in the graph that the base was remade as; none where it has none.

    Quantisers and fusions keep the names of values that they do not fuse away. Where a site is found in both graphs,
    its values may have other names, and what is found says which. So a given site that is made of values of a found
    one follows it, and other values keep their names; what is not there is refused when the sites are looked up.

    Args:
        base: the base, with the sites that somebody gave.
        remade: the sites that were found in the remade graph; none if there are none.
    """
    if base.given is None:
        return None
    found = _found(base)
    before = {site.name: site for site in found or ()}
    after = {site.name: site for site in remade or ()}
    names = {old: new for name in before.keys() & after.keys() for old, new in _pairs(before[name], after[name])}
    if found and remade:
        names[found.final] = remade.final
    sites = {
        name: None if site is None else _renamed(site, names)
        for name, site in base.given.sites.items()
        if site is not None or name in after
    }
    final = names.get(base.sites.final, base.sites.final)
    return replace(base.given, sites=sites, final={"onnx": final})


def _found(base: OnnxBase) -> SiteMap | None:
    try:
        return discover(flow_graph(base.model))
    except NoSitesError:
        return None


def _pairs(before: Site, after: Site) -> list[tuple[str, str]]:
    pairs = [(getattr(before, key), getattr(after, key)) for key in ("h", "x", "u", "y")]
    return [(old, new) for old, new in pairs if old is not None and new is not None]


def _renamed(site: GivenSite, names: Mapping[str, str]) -> GivenSite:
    given = site.values["onnx"]  # the base was opened with it
    keys = [each.name for each in fields(given) if getattr(given, each.name) is not None]
    values = {key: names.get(getattr(given, key), getattr(given, key)) for key in keys}
    return replace(site, values={"onnx": replace(given, **values)})


_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the graph's own file."""


def in_memory(base: OnnxBase) -> ir.Model:
    """A copy of a base that holds its weights."""
    model = base.model.clone()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                tensor = readable(value.const_value)
                value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name)
    return model


def write_remade(model: ir.Model, base: OnnxBase, folder: Path, done: str) -> OnnxBase:
    """Write a remade base into a folder as `base.onnx` and `base.bin`, and open it.

    It keeps the fingerprint, so that adapters of the base fit it, the site map, and the module paths of its sites,
    which tools that remake graphs drop.

    Args:
        model: the remade graph.
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
    ir.save(model, path, external_data="base.bin", size_threshold_bytes=_EXTERNAL_BYTES)
    written = ir.load(path)
    if correct_shapes(written, folder, base.inputs):
        ir.save(written, path)
    made = _opened(path, base, done)
    _check_same("inputs", made.inputs, base.inputs, base, done)
    _check_same("outputs", made.outputs, base.outputs, base, done)
    _check_same("sites", _identities(made.sites), _identities(base.sites), base, done)
    return replace(made, sites=_with_paths(made.sites, base.sites))


def _opened(path: Path, base: OnnxBase, done: str) -> OnnxBase:
    """Open what was remade, with the site map of the base where it has one."""
    try:
        found = open_onnx(path)
    except NoSitesError:
        if base.given is None:
            raise
        found = None
    if base.given is None:
        assert found is not None
        return found
    try:
        return open_onnx(path, given=carried(base, None if found is None else found.sites))
    except UsageError as error:
        raise BaseModelError(
            f"has lost a value that the site map names when it is {done}",
            where=error.where,
            found=error.found,
            expected=error.expected,
            fix="build it without that, or give other values in the site map",
        ) from error


def _identities(sites: SiteMap) -> tuple[tuple[str, str, int], ...]:
    return tuple((site.name, site.role, site.width) for site in sites.sublayers)


def _with_paths(made: SiteMap, known: SiteMap) -> SiteMap:
    paths = {site.name: site.path for site in known}
    return replace(made, sites=tuple(replace(site, path=paths.get(site.name, site.path)) for site in made.sites))


def _check_same(what: str, found: Sequence[object], expected: Sequence[object], base: OnnxBase, done: str) -> None:
    if tuple(found) != tuple(expected):
        raise BaseModelError(
            f"has other {what} when it is {done}",
            where=base.path,
            found=", ".join(map(str, found)) or "none",
            expected=", ".join(map(str, expected)),
            fix="build it without that, and report this with the base",
        )


@dataclass(frozen=True)
class Deviation:
    """How far an output of a remade base lies from that of the base that it was made of.

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
        raise NothingComparedError("the remade base was not compared with the base: there are no inputs")
    before, after = open_session(base.model, base.folder), open_session(made.model, made.folder)
    pairs = [(run_session(before, case.arrays), run_session(after, case.arrays)) for case in cases]
    size = extent(flow_graph(base.model))
    longest = max(length for case in cases for array in case.arrays.values() for length in array.shape)
    names = [record.name for record in base.outputs if record.dtype in FLOAT_TYPES]
    return [_deviation(name, pairs, max(size.inner, longest), size.depth) for name in names]


def _deviation(
    name: str, pairs: Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]], inner: int, depth: int
) -> Deviation:
    absolute = max(float(np.abs(after[name] - before[name]).max(initial=0)) for before, after in pairs)
    scale = max(float(np.abs(before[name]).max(initial=0)) for before, _ in pairs)
    allowed = budget(pairs[0][0][name].dtype.name, inner=inner, depth=depth, scale=scale).absolute
    return Deviation(name, absolute, scale, allowed)

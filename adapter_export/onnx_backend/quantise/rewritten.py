"""Base rewritten by a tool: written, reopened with its sites, and compared with the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import BaseModelError, NoSitesError, NothingComparedError, UsageError
from adapter_export.numerics.budget import budget, extent
from adapter_export.numerics.sample_inputs import InputCase, has_rows_per_token, shown_tokens
from adapter_export.onnx_backend.base import external
from adapter_export.onnx_backend.base.normalise import correct_shapes
from adapter_export.onnx_backend.base.onnx_base import FINGERPRINT_KEY, OnnxBase, numerics, open_onnx
from adapter_export.onnx_backend.base.weight_file import WeightFile
from adapter_export.onnx_backend.onnx_runner import Pieces
from adapter_export.sites.discover import discover
from adapter_export.sites.site import Site, SiteMap
from adapter_export.sites.site_map import GivenSite, GivenSites, SiteValues

_CLOSE, _NOTICEABLE = 0.98, 0.95
"""Minimum cosines of a base that is close to another one, and of one that is not far from it.

In MiniLM, the minimum cosine is 0.989 for `int8`, whose answers agree with float32 on 99.9 % of the rows of TREC, and
0.959 for `int4-weights`, with 98.8 % (docs/how-to/quantize.md).
"""

Verdict = Literal["close", "apart", "far"]
"""Distance of an output from that of the plain base: answers of a base that is far may change."""


def verdict_of(cosine: float) -> Verdict:
    """Return the distance of an output by its smallest cosine; NaN is `far`."""
    return "close" if cosine >= _CLOSE else "apart" if cosine >= _NOTICEABLE else "far"


Rewrite = Callable[[ir.Model, WeightFile], ir.Model]
"""Changes a copy of a base's graph, whose weights are on disk, and writes new weights to a file; returns the result."""


def rewrite_base(base: OnnxBase, folder: Path, done: str, rewrite: Rewrite) -> OnnxBase:
    """Write a rewritten base into a folder as `base.onnx` and `base.bin`, and open it.

    It keeps the fingerprint, so that adapters of the base fit it, the site map, and the module paths of its sites,
    which rewriting tools drop. `done` describes the rewriting in messages, such as `optimised`.

    Raises:
        BaseModelError: its inputs, outputs or sites no longer match the base.
    """
    with WeightFile(folder / external.WEIGHTS_FILE) as weights:
        model = rewrite(base.model.clone(), weights)
        weights.move(model)
    model.graph.sort()  # the float16 converter appends casts of inputs at the end
    model.metadata_props.clear()
    model.metadata_props.update({**base.model.metadata_props, FINGERPRINT_KEY: base.fingerprint})
    path = folder / "base.onnx"
    ir.save(model, path)
    written = external.read_model(path, partial(BaseModelError, "is not an ONNX model", where=path))
    if correct_shapes(written, folder, base.inputs):
        ir.save(written, path)
    rewritten = _open_rewritten(path, base, done)
    facts = {
        "inputs": (rewritten.inputs, base.inputs),
        "outputs": (rewritten.outputs, base.outputs),
        "sites": tuple(
            tuple((site.name, site.role, site.width) for site in sites.sublayers)
            for sites in (rewritten.sites, base.sites)
        ),
    }
    for what, (actual, expected) in facts.items():
        if actual != expected:
            raise BaseModelError(
                f"has different {what} when it is {done}",
                where=base.path,
                found=", ".join(map(str, actual)) or "none",
                expected=", ".join(map(str, expected)),
                fix="build without this step, and report this with the base",
            )
    paths = {site.name: site.path for site in base.sites}
    again = [_outside(base.sites, site) if site.is_outside else site for site in rewritten.sites.sites]
    sites = tuple(
        replace(site, name=known.name, path=paths.get(known.name, site.path))
        for site, known in zip(rewritten.sites.sites, again, strict=True)
        if known is not None
    )
    return replace(rewritten, sites=replace(rewritten.sites, sites=sites), lengths=base.lengths)


def _outside(before: SiteMap, site: Site) -> Site | None:
    """Return the site of a base that is a layer outside all sublayers in the rewritten graph.

    It is named by its path. If the path is lost, its value identifies it, unless a cast of an output took the name.
    """
    outside = [other for other in before.sites if other.is_outside and other.width_in == site.width_in]
    same_path = (other for other in outside if site.path is not None and other.path == site.path)
    same_value = (other for other in outside if other.h == site.h)
    return next(same_value, next((other for other in same_path if other.name == site.name), None))


def _open_rewritten(path: Path, base: OnnxBase, done: str) -> OnnxBase:
    """Open a rewritten base, with the site map of the original if there is one."""
    if base.given_sites is None:
        return open_onnx(path)
    try:
        detected = open_onnx(path).sites
    except NoSitesError:
        detected = None
    try:
        return open_onnx(path, given_sites=_remapped(base, base.given_sites, detected))
    except UsageError as error:
        raise BaseModelError(
            f"has lost a value of the site map when it is {done}",
            where=error.where,
            found=error.found,
            expected=error.expected,
            fix="build without this step, or use other values in the site map",
        ) from error


def _remapped(base: OnnxBase, given_sites: GivenSites, rewritten: SiteMap | None) -> GivenSites:
    """Return the site map of a base, adapted to its rewritten graph.

    Quantizers and fusions keep the names of values that they do not fuse away. If a site is detected in both graphs
    with different value names, given sites that use its values follow it; other values keep their names. Missing values
    are reported when the sites are looked up.
    """
    try:
        sites_before = discover(base.flow)
    except NoSitesError:
        sites_before = None
    before = {site.name: site for site in sites_before or ()}
    after = {site.name: site for site in rewritten or ()}
    names: dict[str | None, str] = {
        getattr(before[name], key): new
        for name in before.keys() & after.keys()
        for key in ("h", "x", "u", "y")
        if (new := getattr(after[name], key)) is not None
    }
    if sites_before and rewritten:
        names[sites_before.final] = rewritten.final
    sites: dict[str, GivenSite | None] = {}
    for name, site in given_sites.sites.items():
        if site is None and name in after:
            sites[name] = None
        if site is not None:
            old = site.values["onnx"]
            x, u, y = (names.get(value, value) for value in (old.x, old.u, old.y))
            sites[name] = replace(site, values={"onnx": SiteValues(names.get(old.h, old.h), x, u, y)})
    return replace(given_sites, sites=sites, final={"onnx": names.get(base.sites.final, base.sites.final)})


@dataclass(frozen=True)
class Deviation:
    """Difference of an output of a rewritten base from the original.

    Attributes:
        output: name of the output.
        absolute: largest difference of an element, without padding.
        padding: largest difference at a padded position, which no client reads; 0 without padding.
        scale: largest absolute value of the output, without padding.
        cosine: smallest cosine of two vectors along the last axis, without padding.
        allowed: difference that two correct computations in the precision of the base may have.
    """

    output: str
    absolute: float
    padding: float
    scale: float
    cosine: float
    allowed: float

    @property
    def largest(self) -> float:
        """Largest difference of an element, including padding; NaN if there is one."""
        return float(np.max([self.absolute, self.padding]))

    @property
    def is_far(self) -> bool:
        """True if answers may change."""
        return verdict_of(self.cosine) == "far"

    def __str__(self) -> str:
        """Return the difference and a verdict in one line."""
        words = {"close": "close to", "apart": "apart from", "far": "far from"}[verdict_of(self.cosine)]
        return (
            f"`{self.output}` is {words} the original base: minimum cosine {self.cosine:.4f}, "
            f"largest difference {self.absolute:.1e} of {self.scale:.3g}, without padding"
        )


def deviations(base: OnnxBase, rewritten: OnnxBase, cases: Sequence[InputCase]) -> list[Deviation]:
    """Run a base and its rewritten version on the same inputs, and compare each float output."""
    if not cases:
        raise NothingComparedError("the rewritten base was not compared with the original: there are no inputs")
    feeds = [case.arrays for case in cases]
    pairs = list(zip(*(Pieces(each.model, each.folder).run_all(feeds) for each in (base, rewritten)), strict=True))
    masks = [shown_tokens(base.inputs, case.arrays) for case in cases]
    size, stored = extent(base.flow), numerics(base.model).precision.activations
    inner = max(size.inner, *(length for case in cases for array in case.arrays.values() for length in array.shape))
    deviations_found = []
    for name in (record.name for record in base.outputs if record.dtype in FLOAT_TYPES):
        sides = [(old[name], new[name]) for old, new in pairs]
        whole = float(np.max([_largest(old) for old, _ in sides]))
        allowed = budget(sides[0][0].dtype.name, inner=inner, depth=size.depth, scale=whole, rounded_to=stored)
        split = [_without_padding(*side, real) for side, real in zip(sides, masks, strict=True)]
        deviations_found.append(
            Deviation(
                name,
                absolute=float(np.max([_largest(new - old) for (old, new), _ in split])),  # `max` would drop a NaN
                padding=float(np.max([_largest(new - old) for _, (old, new) in split])),
                scale=float(np.max([_largest(old) for (old, _), _ in split])),
                cosine=float(np.min([_smallest_cosine(*tokens) for tokens, _ in split])),
                allowed=allowed.absolute,
            )
        )
    return deviations_found


_Sides = tuple[np.ndarray, np.ndarray]
"""Values of the original and of the rewritten base, of one shape."""


def _without_padding(old: np.ndarray, new: np.ndarray, real: npt.NDArray[np.bool_] | None) -> tuple[_Sides, _Sides]:
    """Return the values of real tokens [tokens, …], and those of padding, which may be empty."""
    if real is None or not has_rows_per_token(old.shape, real):
        return (old, new), (old[:0], new[:0])
    return (old[real], new[real]), (old[~real], new[~real])


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0))


def smallest_cosine(old: np.ndarray, new: np.ndarray, real: npt.NDArray[np.bool_] | None) -> float:
    """Return the smallest cosine of two vectors along the last axis, without padding.

    Args:
        old: one side.
        new: the other side, of the same shape.
        real: the tokens that are not padding [batch, tokens]; `None` if all are.
    """
    return _smallest_cosine(*_without_padding(old, new, real)[0])


def _smallest_cosine(old: np.ndarray, new: np.ndarray) -> float:
    """Return the smallest cosine of two vectors along the last axis, in float64; zero vectors on both sides are equal.

    Values without such an axis, or with a last axis of length 1, are one vector.
    """
    width = old.shape[-1] if old.ndim > 1 and old.shape[-1] > 1 else old.size
    first, second = (side.astype(np.float64).reshape(-1, width) for side in (old, new))
    sizes = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    same = (first == second).all(-1)
    cosines = np.divide((first * second).sum(-1), sizes, out=np.zeros(len(first)), where=sizes > 0)
    return float(np.where(same, 1.0, cosines).min(initial=1.0))

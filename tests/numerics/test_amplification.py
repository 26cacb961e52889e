"""Effect of errors of the size of rounding on an output, with and without amplification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.kinds import ia3_graph
from adapter_export.numerics.budget import AMPLIFIED, MOST_AMPLIFIED, budget, product_error
from adapter_export.numerics.evaluate_adapter import evaluate_site
from adapter_export.numerics.runner import DRAWS, Arrays, measure_rounding, with_errors
from adapter_export.sites.site import Norm, Site, SiteMap

WIDTH = 8
STEP = product_error("float32", inner=WIDTH)
VALUES = {"values": np.random.default_rng(0).standard_normal((2, 3, WIDTH)).astype(np.float32)}


def site(name: str) -> Site:
    return Site(
        name=name,
        role="ffn",
        layer=0,
        width=WIDTH,
        width_in=WIDTH,
        h=f"{name}/h",
        x=f"{name}/x",
        u=f"{name}/x",
        y=None,
        norm=Norm("none", 0.0, None, None),
        residual=None,
        path=None,
        followed_by="other",
    )


SITES = SiteMap((site("layers.0.ffn"), site("layers.1.ffn")), "final", WIDTH)


@dataclass(frozen=True)
class Base:
    """Two identity sublayers, followed by a division by the distance of the features from 1.

    Attributes:
        offset: term added to the values divided by 1000: with 1, the features hardly differ.
    """

    offset: float

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter) -> Arrays:
        h = inputs["values"].astype(np.float64) / 1000 + self.offset
        for name in [each.name for each in SITES]:
            h = evaluate_site(adapter, name, {"h": h}) if name in adapter.placements else h
        centred = h - h.mean(-1, keepdims=True)
        return {"hidden": (centred / centred.std(-1, keepdims=True)).astype(np.float32), "count": np.array([1])}


def moved(base: Base, adapter: Adapter | None = None) -> dict[str, float]:
    return measure_rounding(base.run, [VALUES], adapter, sites=SITES, base="base", step=STEP)


def scaled(by: float) -> Adapter:
    weights = {"layers.1.ffn.scaling.weight": np.full(WIDTH, by, np.float32)}
    return Adapter(
        "a", "ia3", "base", {"rounding": ia3_graph()}, {"layers.1.ffn": Placement("rounding", {"d": WIDTH})}, weights
    )


def test_a_norm_over_features_that_hardly_differ_makes_errors_larger() -> None:
    """The amplification is the ratio of the common part to the differences: a thousand."""
    plain, amplified = moved(Base(0))["hidden"], moved(Base(1))["hidden"]
    assert STEP < plain < 10 * STEP
    assert 300 * STEP < amplified < 10_000 * STEP
    assert moved(Base(1)).keys() == {"hidden"}


@pytest.mark.parametrize("offset", [0, 1])
def test_rounding_itself_stays_within_what_was_measured(offset: float) -> None:
    """The same values with the rounding of float32 at each site, and with none."""
    h = VALUES["values"].astype(np.float64) / 1000 + offset
    results = []
    for value in (h, h.astype(np.float32).astype(np.float64)):
        centred = value - value.mean(-1, keepdims=True)
        results.append(centred / centred.std(-1, keepdims=True))
    assert np.abs(results[0] - results[1]).max() < moved(Base(offset))["hidden"]


def test_errors_of_a_thousandth_exceed_the_amplified_budget() -> None:
    """In the very base that makes errors larger: one feature of a site scaled by 1.001."""
    base, weight = Base(1), np.ones(WIDTH, np.float32)
    weight[0] = 1.001
    wrong = {"layers.1.ffn.scaling.weight": weight}
    right = base.run(VALUES, scaled(1))["hidden"]
    found = base.run(VALUES, Adapter("a", "ia3", "base", scaled(1).graphs, scaled(1).placements, wrong))["hidden"]
    scale = float(np.abs(right).max())
    allowed = budget("float32", inner=WIDTH, depth=2, scale=scale, moved=moved(base, scaled(1))["hidden"])
    assert np.abs(found - right).max() > 20 * allowed.absolute


def test_errors_are_put_at_every_site_and_into_every_tensor() -> None:
    one, other = with_errors(scaled(2), SITES, "base", [(1e-3, np.random.default_rng(n)) for n in range(2)])
    assert one.placements is other.placements
    assert one.placements["layers.0.ffn"].graph != one.placements["layers.1.ffn"].graph
    for name, value in (("layers.0.ffn", 1), ("layers.1.ffn", 2)):
        tensor = one.weights[f"{name}.scaling.weight"]
        np.testing.assert_allclose(np.abs(tensor / value - 1), 1e-3, rtol=1e-3)
        assert (tensor > value).any()
        assert (tensor < value).any()
        assert not np.array_equal(tensor, other.weights[f"{name}.scaling.weight"])
    (alone,) = with_errors(None, SITES, "base", [(1e-3, np.random.default_rng(0))])
    assert list(alone.placements) == ["layers.0.ffn", "layers.1.ffn"]


def test_common_deviations_of_a_reference_are_not_rounding_errors() -> None:
    """Runs are compared with each other: a common deviation does not count."""

    class Shifted(Base):
        def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter) -> Arrays:
            return {"hidden": super().run(inputs, adapter)["hidden"] + np.float32(0.5)}

    assert moved(Shifted(0))["hidden"] == pytest.approx(moved(Base(0))["hidden"], rel=0.2)


def test_nan_does_not_count_and_every_draw_is_run() -> None:
    runs = []

    def compute(inputs: Mapping[str, np.ndarray], adapter: Adapter) -> Arrays:
        runs.append(adapter)
        return {"hidden": np.array([np.nan, len(runs)], np.float32)}

    found = measure_rounding(compute, [VALUES], None, sites=SITES, base="base", step=STEP)
    assert len(runs) == DRAWS
    assert found == {"hidden": pytest.approx((DRAWS - 1) / np.sqrt(2))}


SIZES = {"inner": 64, "depth": 4, "scale": 2.0}


class TestBudget:
    def test_measured_amplification_widens_the_budget(self) -> None:
        plain = budget("float32", **SIZES)
        assert budget("float32", **SIZES, moved=plain.absolute / 2) == plain
        wider = budget("float32", **SIZES, moved=5 * plain.absolute)
        assert wider.absolute == AMPLIFIED * 5 * plain.absolute
        assert wider.reason.startswith(
            "2.5e-05: 2 times 1.2e-05, by which errors of 6.2e-07 at its sites move the reference; without that"
        )
        assert wider.reason.endswith(f"without that {plain.reason}")

    def test_amplification_is_limited_to_a_thousandth_of_the_scale(self) -> None:
        found = budget("float32", **SIZES, moved=0.5)
        assert found.absolute == MOST_AMPLIFIED * 2.0
        assert "2 times 5.0e-01, by which errors of 6.2e-07 at its sites move the reference" in found.reason
        assert "and at most 0.001 of the scale 2; without that" in found.reason

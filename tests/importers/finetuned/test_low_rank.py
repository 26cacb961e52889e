"""Ranks of differences: of merged LoRAs and DoRAs, of rounding errors, and of arbitrary changes."""

from __future__ import annotations

import numpy as np
import pytest

from adapter_export.plugins.formats.importers.finetuned import low_rank
from adapter_export.plugins.formats.importers.finetuned.low_rank import factors, weight_change

UNIT = 2.0**-24


def merged(shape: tuple[int, int], rank: int, *, decay: float = 1.0, scaled: bool = False) -> tuple[np.ndarray, ...]:
    """A weight before and after, in float32, and the factors per output."""
    random = np.random.default_rng(0)
    out, width_in = shape
    before = random.normal(0, 0.05, shape).astype(np.float32).astype(float)
    up = random.normal(0, 0.02, (out, rank)) * decay ** np.arange(rank)
    after = before + up @ random.normal(0, 0.02, (rank, width_in))
    scale = np.exp(random.normal(0, 0.1, out)) if scaled else np.ones(out)
    return before, (scale[:, None] * after).astype(np.float32).astype(float), scale


@pytest.mark.parametrize("shape", [(96, 96), (64, 192), (192, 64)])
@pytest.mark.parametrize("decay", [1.0, 0.6])
@pytest.mark.parametrize("scaled", [False, True], ids=["lora", "dora"])
def test_ranks_and_scales_of_merged_adapters_are_recovered(shape: tuple[int, int], decay: float, scaled: bool) -> None:
    before, after, scale = merged(shape, 6, decay=decay, scaled=scaled)
    change = weight_change(before, after, UNIT)
    assert change.rank == 6
    up, down = factors(before, after, change, 6)
    found = 1.0 if change.scale is None else change.scale[:, None]
    # float32 rounds each element of `after` once, by at most a unit
    assert np.linalg.norm(found * before + up @ down - after) <= 2 * UNIT * np.linalg.norm(after)
    if scaled:
        assert change.scale is not None
        np.testing.assert_allclose(change.scale, scale, rtol=1e-5)
    else:
        assert change.scale is None


def test_scaled_weights_have_rank_zero_and_a_scale() -> None:
    """As of a merged IA3."""
    before, _, scale = merged((64, 48), 1, scaled=True)
    change = weight_change(before, (scale[:, None] * before).astype(np.float32).astype(float), UNIT)
    assert change.rank == 0
    np.testing.assert_allclose(change.scale, scale, rtol=1e-6)


def test_full_rank_changes_have_no_low_rank() -> None:
    before, after, _ = merged((64, 64), 64)
    change = weight_change(before, after, UNIT)
    assert (change.rank, change.scale) == (None, None)
    np.testing.assert_allclose(change.sizes, np.linalg.svd(after - before, compute_uv=False), rtol=1e-6)
    assert change.captured(64) == 1
    assert change.captured(8) == pytest.approx(float(np.linalg.norm(change.sizes[:8]) / np.linalg.norm(change.sizes)))


def test_low_rank_of_large_matrices_is_found_by_sketching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Singular values of large matrices are those of a random sketch."""
    before, after, _ = merged((160, 320), 8)
    monkeypatch.setattr(low_rank, "_MOST_EXACT", 100)
    monkeypatch.setattr(low_rank, "_MOST_RANK", 32)
    change = weight_change(before, after, UNIT)
    assert change.rank == 8
    up, down = factors(before, after, change, 8)
    assert np.linalg.norm(before + up @ down - after) <= 2 * UNIT * np.linalg.norm(after)
    whole = weight_change(before, before + np.random.default_rng(1).normal(0, 1, before.shape), UNIT)
    assert whole.rank is None
    assert len(whole.sizes) == 32

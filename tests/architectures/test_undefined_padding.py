"""ModernBERT with a window of two tokens to each side: attention at padding far behind a text may see no token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from exported_bases import ExportedBase
from random_kinds import random_of_kind
from tiers import extended

import adapter_export as ae
from adapter_export.bases.forms import ArchiveBase
from adapter_export.graph.kinds import houlsby
from adapter_export.numerics.sample_inputs import InputCase, less_padded
from adapter_export.torch_backend.torch_runner import TorchRunner

WINDOW = 2
LENGTHS = np.array([7, 4, 1])


@pytest.fixture(scope="module")
@extended
def base(exported: Callable[[str], ExportedBase]) -> ae.Base:
    return ArchiveBase(None, loaded=exported("modernbert").in_torch)


def inputs(*lengths: int) -> dict[str, np.ndarray]:
    mask = (np.arange(7) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": 3 + np.arange(mask.size).reshape(mask.shape) % 40, "attention_mask": mask}


def unseeing(lengths: npt.NDArray[np.int64], tokens: int = 7) -> npt.NDArray[np.bool_]:
    """Positions [batch, tokens] more than a window behind the last token of their text."""
    return np.arange(tokens) > lengths[:, None] - 1 + WINDOW


def test_exactly_the_positions_that_see_no_token_are_undefined(base: ae.Base) -> None:
    (found,) = TorchRunner(base.torch).find_undefined(inputs(*LENGTHS)).values()
    np.testing.assert_array_equal(found.any(-1), unseeing(LENGTHS))
    assert TorchRunner(base.torch).find_undefined(inputs(7, 5, 6)) == {}


def test_half_of_the_padding_becomes_tokens(base: ae.Base) -> None:
    shorter = less_padded(InputCase("padded", inputs(*LENGTHS)), base.inputs)
    assert shorter is not None
    np.testing.assert_array_equal(shorter.arrays["attention_mask"].sum(1), [7, 6, 4])
    assert shorter.arrays["input_ids"].all()
    assert less_padded(InputCase("whole", inputs(7, 7)), base.inputs) is None


def test_a_bundle_is_compared_at_all_other_positions(base: ae.Base, tmp_path: Path) -> None:
    adapter = random_of_kind("a", houlsby().with_widths(b=4), base.sites.map, base.fingerprint)
    bundle = ae.build(base, [adapter], tmp_path / "bundle", variants=["slots"])
    report = ae.check(bundle, against=base)
    report.raise_for_failure()
    (case,) = {one.case for one in report.outputs if one.against == "golden" and one.part == "padding"}
    (told,) = (each for each in report.findings if (each.check, each.subject) == ("padding not compared", case))
    left_out, padding = unseeing(LENGTHS).sum(), (7 - LENGTHS).sum()
    assert told.detail.startswith(f"{left_out} of {padding} positions")
    shown = [each for each in report.outputs if each.part == "padding" and each.case == case]
    compared = {each.elements for each in shown if each.against == "reference"}
    assert compared == {16 * (padding - left_out)}
    golden = [each for each in report.outputs if each.part == "padding" and each.against == "golden"]
    assert golden  # with less padding, where all is defined
    assert all(each.elements == 16 for each in golden)

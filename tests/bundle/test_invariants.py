"""Invariants, tested on programs that break them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from adapter_export.bundle.golden.golden_vectors import Allowance, Case
from adapter_export.bundle.proof.invariants import check_row_order, check_swap, swaps
from adapter_export.numerics.budget import Budget

CASE = Case("rows", {"values": np.arange(12, dtype=np.float32).reshape(3, 4)}, {"batch": 3}, None)


def budgets(adapter: str | None, output: str, expected: np.ndarray) -> Budget:
    assert output
    return Allowance(4, 1).budget(expected)


def double(inputs: Mapping[str, np.ndarray], adapter: str | None) -> dict[str, np.ndarray]:
    return {"doubled": inputs["values"] * np.float32(2 if adapter is None else len(adapter))}


class Sticky:
    """A program in which an adapter has an effect on later runs."""

    def __init__(self) -> None:
        self.left = np.float32(0)

    def __call__(self, inputs: Mapping[str, np.ndarray], adapter: str | None) -> dict[str, np.ndarray]:
        outputs = {name: value + self.left for name, value in double(inputs, adapter).items()}
        self.left = np.float32(1e-6 if adapter == "a" else self.left)
        return outputs


def test_a_program_without_memory_may_swap() -> None:
    assert check_swap(double, CASE, "a", "bcd").passed


def test_small_remains_after_a_swap_are_detected() -> None:
    result = check_swap(Sticky(), CASE, "b", "a")
    assert not result.passed
    assert (result.subject, result.detail) == ("b → a → b", "changed: doubled")


def test_an_output_that_comes_and_goes_is_a_change() -> None:
    seen: list[str | None] = []

    def run(inputs: Mapping[str, np.ndarray], adapter: str | None) -> dict[str, np.ndarray]:
        seen.append(adapter)
        more = {"logits": np.ones(1, np.float32)} if len(seen) == 1 else {}
        return double(inputs, adapter) | more

    assert check_swap(run, CASE, "a", "b").detail == "changed: logits"


def test_no_outputs_at_all_do_not_pass() -> None:
    assert not check_swap(lambda inputs, adapter: {}, CASE, "a", "b").passed
    assert not check_row_order(lambda inputs, adapter: {}, CASE, None, budgets).passed


def test_swaps_cover_all_pairs_of_few_adapters() -> None:
    assert len(swaps([None, "a", "b"])) == 6
    many = swaps([None, *"abcdefgh"])
    assert len(many) == len(set(many)) == 2 * 9
    assert {first for first, _ in many} == {None, *"abcdefgh"}


def test_rows_that_keep_to_themselves_may_change_places() -> None:
    assert check_row_order(double, CASE, None, budgets).passed


@pytest.mark.parametrize("leak", [1e-3, np.nan])
def test_rows_that_see_their_place_are_caught(leak: float) -> None:
    def run(inputs: Mapping[str, np.ndarray], adapter: str | None) -> dict[str, np.ndarray]:
        values = inputs["values"].copy()
        values[0] += np.float32(leak)
        return {"shown": values}

    result = check_row_order(run, CASE, "a", budgets)
    assert not result.passed
    assert result.detail.startswith("shown: ")

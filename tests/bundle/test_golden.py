"""Matrix of shapes, and the parts of an output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_bundle import Built

from adapter_export.bundle.golden.golden_vectors import Case, case_of, check_cases, read_golden
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import InputRecord

IDS = InputRecord("ids", "int64", ("batch", "tokens"), "ids", 20)
MASK = InputRecord("mask", "int64", ("batch", "tokens"), "mask")


def padded(mask: list[list[int]]) -> Case:
    array = np.array(mask)
    return case_of("padded", {"ids": array, "mask": array}, [IDS, MASK])


def test_the_axes_of_a_case_have_the_names_of_the_base() -> None:
    assert padded([[1, 1, 0]]).axes == {"batch": 1, "tokens": 3}


def test_an_output_per_token_is_taken_apart() -> None:
    parts = dict(padded([[1, 1, 0], [1, 0, 0]]).parts((2, 3, 5)))
    assert parts["tokens"] is not None
    assert parts["padding"] is not None
    assert parts["tokens"].tolist() == [[[True], [True], [False]], [[True], [False], [False]]]
    assert (parts["tokens"] ^ parts["padding"]).all()


@pytest.mark.parametrize("shape", [(2, 5), (2,), (3, 2, 5)])
def test_an_output_per_row_is_one_part(shape: tuple[int, ...]) -> None:
    assert dict(padded([[1, 1, 0], [1, 0, 0]]).parts(shape)) == {"all": None}


def test_outputs_without_padding_have_one_part() -> None:
    assert dict(padded([[1, 1], [1, 1]]).parts((2, 2, 5))) == {"all": None}


def test_no_text_is_longer_than_the_base_takes(built: Built) -> None:
    def longest(cases: tuple[Case, ...]) -> int:
        return max(case.axes["tokens"] for case in cases)

    manifest = built.manifest
    assert longest(check_cases(manifest, ())) == 65
    assert longest(check_cases(manifest, [padded([[1] * 9])])) == 9
    assert longest(check_cases(replace(manifest, lengths={"tokens": Lengths(1, 5)}), ())) == 5


def test_the_inputs_are_others_than_those_of_the_golden_vectors(built: Built) -> None:
    golden = {case.name: case for case in read_golden(built.folder, None, built.manifest.golden, [IDS, MASK]).cases}
    checked = {case.name: case for case in check_cases(built.manifest, ())}
    common = golden.keys() & checked.keys()
    assert common
    assert all(not np.array_equal(golden[name].arrays["ids"], checked[name].arrays["ids"]) for name in common)

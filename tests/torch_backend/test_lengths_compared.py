"""Module and program are compared at the limits of their lengths, in bounded memory and whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from adapter_export.errors import BaseModelError
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import InputRecord
from adapter_export.torch_backend.base import length_facts
from adapter_export.torch_backend.base.length_facts import Facts, probed_lengths

WIDE = 3_000
IDS = [InputRecord("ids", "int64", ("batch", "tokens"), "ids", 9)]
FACTS = {"batch": Facts(), "tokens": Facts()}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length_facts, "_MOST_COMPUTED", 2**21)
    monkeypatch.setattr(length_facts, "_COMPARED", 2**18)


def wide(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    return [inputs["ids"].float()[..., None] * torch.linspace(-1, 1, WIDE)]


def test_outputs_are_compared_to_their_last_number() -> None:
    def program(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        (output,) = wide(inputs)
        # only outputs of several pieces, and only the last number
        output.flatten()[-1] += output.numel() > length_facts._COMPARED
        return [output]

    assert probed_lengths(wide, wide, IDS, FACTS, {})["tokens"] == Lengths()
    with pytest.raises(BaseModelError, match="a different result at length"):
        probed_lengths(wide, program, IDS, FACTS, {})


def test_the_size_of_outputs_limits_the_lengths_that_are_computed() -> None:
    numbers = []

    def counted(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        outputs = wide(inputs)
        numbers.append(outputs[0].numel())
        return outputs

    probed_lengths(counted, wide, IDS, FACTS, {})
    assert length_facts._MOST_COMPUTED // 2 < max(numbers) <= length_facts._MOST_COMPUTED

"""Square matrices and equal numbers of heads, rows and tokens: layouts come from the program, not from a shape."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
from kept import kept
from peft_types import CASES, SQUARE_SUFFIX, bases_of, capture_base, errors_of, open_types_base
from tiers import some_quick

QUICK = ("gpt2_square-LORA, DoRA", "gpt2_square-DEFT", "bert_square-IA3")
NAMES = [f"{base}-{title}" for title, case in CASES.items() for base in bases_of(case) if SQUARE_SUFFIX in base]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")
@pytest.mark.parametrize("name", some_quick(NAMES, *QUICK))
def test_every_type_computes_what_peft_computes(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Imported with the torch base and with the ONNX graph, which may store matrices in another layout."""
    base, _, title = name.partition("-")
    folder = kept(tmp_path_factory, f"peft_types_{base}", capture_base, base)
    error, _ = errors_of(CASES[title], open_types_base(folder, base), tmp_path / "a")
    assert error < CASES[title].tolerance


def test_every_architecture_has_a_square_base() -> None:
    assert {"bert_square", "llama_square", "gpt2_square"} <= {*chain(*map(bases_of, CASES.values()))}

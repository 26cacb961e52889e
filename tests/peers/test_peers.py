"""Stored outcomes of other libraries' test matrices: complete, without a wrong answer, and on their page."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapterhub_configurations import BASES, METHODS
from outcomes import NOT_MADE, PASSED, REFUSED, counted, not_made, read, refusal
from peers_page import PAGE, page
from peft_configurations import PEFT_BASES, configurations

from adapter_export.errors import AdapterError, ParityError


@pytest.mark.parametrize("name", PEFT_BASES)
def test_each_configuration_of_peft_has_an_outcome(name: str) -> None:
    assert read("peft")[name].keys() == {each.name for each in configurations(PEFT_BASES[name].task)}


@pytest.mark.parametrize("name", BASES)
def test_each_method_of_adapterhub_has_an_outcome(name: str) -> None:
    assert read("adapterhub")[name].keys() == METHODS.keys()


@pytest.mark.parametrize("library", ["peft", "adapterhub"])
def test_no_adapter_answers_otherwise_than_in_its_library(library: str) -> None:
    outcomes = [text for by_adapter in read(library).values() for text in by_adapter.values()]
    assert all(text.startswith((PASSED, REFUSED, NOT_MADE)) for text in outcomes)
    assert sum(text.startswith(PASSED) for text in outcomes) > len(outcomes) / 2


def test_the_page_has_the_stored_outcomes() -> None:
    """After a run with `--write`, or `python tests/peers/peers_page.py`, it has."""
    assert PAGE.read_text("utf-8") == page()


def test_an_error_that_is_no_refusal_is_a_wrong_outcome(tmp_path: Path) -> None:
    refused = refusal(AdapterError("cannot be read", found=tmp_path / "a"), tmp_path)
    outcomes = {"a": refused, "b": not_made(ValueError("no"), tmp_path), "c": PASSED}
    errors = (ValueError("bug"), ParityError("differs", found="1", expected="0"))
    outcomes |= {str(error): refusal(error, tmp_path) for error in errors}
    assert refused == "refused: cannot be read: /a"
    assert counted(outcomes) == "1 not made, 1 passed, 1 refused, 2 wrong"

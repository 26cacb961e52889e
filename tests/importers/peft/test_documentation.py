"""The page on importing says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter_export.plugins.formats.importers.peft.head import RECIPES
from adapter_export.plugins.formats.importers.peft.peft_options import NO_MATTER, PLAIN_STARTS

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "peft.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("word", [*RECIPES, *sorted(NO_MATTER), *PLAIN_STARTS])
def test_documentation_names_every_method_and_option(word: str) -> None:
    assert f"`{word}`" in TEXT


def test_the_activations_are_those_of_the_recipes() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines() if line.startswith("| `")]
    heads = {row[0]: row[1] for row in rows if row[1].startswith("first token")}
    listed = {name: text for names, text in heads.items() for name in RECIPES if f"`{name}`" in names}
    assert listed.keys() == RECIPES.keys()
    for name, recipe in RECIPES.items():
        assert recipe.pooling == "first"
        assert (f"`{recipe.activation}`" in listed[name]) == (recipe.dense is not None)

"""A message names arguments to Python callers and options to shell users."""

from __future__ import annotations

import pytest

from adapter_export.errors import AdapterExportError, OutputExistsError, argument, command, within, worded


@pytest.mark.parametrize(
    ("text", "python", "shell"),
    [
        (argument("force", True), "`force=True`", "`--force`"),
        (argument("site_map"), "`site_map`", "`--site-map`"),
        (argument("pooling", "first"), '`pooling="first"`', "`--pooling first`"),
        (argument("flavours", ["slots", "inputs"]), '`flavours=["slots", "inputs"]`', "`--flavours slots,inputs`"),
        (argument("inputs", option="input"), "`inputs`", "`--input`"),
        (argument("max_tokens", words="N"), "`max_tokens`", "`--max-tokens N`"),
        (
            command('capture(F, "m.pt")', "capture F -o m.pt"),
            '`capture(F, "m.pt")`',
            "`adapter-export capture F -o m.pt`",
        ),
        ("nothing of both", "nothing of both", "nothing of both"),
    ],
)
def test_each_face_has_its_words(text: str, python: str, shell: str) -> None:
    assert worded(f"give {text}, or not") == f"give {python}, or not"
    assert worded(f"give {text}, or not", "shell") == f"give {shell}, or not"


def test_all_facts_are_worded() -> None:
    option = argument("max_tokens")
    error = AdapterExportError("what", where=option, found=option, expected=option, fix=f"{option} it")
    assert str(error) == "`max_tokens`: what; found `max_tokens`; expected `max_tokens`. `max_tokens` it."
    assert error.sentence("shell").count("`--max-tokens`") == 4
    assert error.facts("shell")["where"] == "`--max-tokens`"
    assert error.facts()["fix"] == "`max_tokens` it"


def test_a_place_that_is_added_keeps_both() -> None:
    with pytest.raises(OutputExistsError) as raised, within("line 3"):
        raise OutputExistsError("a")
    assert str(raised.value) == "line 3, a: already exists. Choose another name, or give `force=True` to replace it."
    assert "`--force`" in raised.value.sentence("shell")

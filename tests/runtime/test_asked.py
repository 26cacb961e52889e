"""JSON of a text, a pair or choices; lists are refused as ambiguous."""

from __future__ import annotations

import pytest

from adapter_export.errors import RequestError
from adapter_export.runtime.answerer import asked_of
from adapter_export.text import Pair


def test_texts_pairs_and_choices_are_read() -> None:
    assert asked_of("") == ""
    pair = asked_of({"text": "a", "pair": "b"})
    assert isinstance(pair, Pair)
    assert pair == ("a", "b")
    choices = asked_of({"text": "a", "choices": ["b", "c"]})
    assert choices == [Pair("a", "b"), Pair("a", "c")]
    assert all(isinstance(one, Pair) for one in choices)


@pytest.mark.parametrize(
    "document",
    [
        ["w1"],
        ["w1", "w2"],
        ["w1", "w2", "w3"],
        {"text": "a"},
        {"text": "a", "pair": None},
        {"text": ["a"], "pair": "b"},
        {"text": "a", "pair": "b", "choices": ["c"]},
        {"text": "a", "pair": "b", "other": 1},
        {"text": "a", "choices": []},
        {"text": "a", "choices": "bc"},
        {"text": "a", "choices": ["b", 1]},
        {"pair": "b"},
        7,
        None,
    ],
)
def test_documents_of_other_forms_are_refused(document: object) -> None:
    with pytest.raises(RequestError, match="is not a text") as caught:
        asked_of(document)
    assert caught.value.expected == (
        'a string, `{"text": …, "pair": …}`, `{"text": …, "choices": […]}` or `{"text": …, "side": "query"}`'
    )

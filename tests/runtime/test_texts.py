"""Texts in, answers out, by the record of each adapter; wrong inputs raise clear errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_bundle import LIMIT, LONGEST, TASKS

from adapter_export.errors import RequestError
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.answers import (
    Choice,
    Numbers,
    Prediction,
    ReadText,
    Score,
    Span,
    TextAnswer,
    TokenLabels,
    Vector,
)
from adapter_export.runtime import Bundle
from adapter_export.runtime.answerer import Reading
from adapter_export.runtime.text_reader import TextReader
from adapter_export.text import EncodedText, Pair

TEXTS = ["How far is the moon?", "Who wrote Faust?", "zero\u200bwidth é 🙂"]
LONG = " ".join(f"word{number} is" for number in range(30))


@pytest.fixture(scope="module")
def reader(text_folder: Path) -> TextReader:
    return Bundle.open(text_folder / "bundle").texts()


def alone(reader: TextReader, text: Any, name: str) -> tuple[EncodedText, np.ndarray]:
    """Return a text as tokens, and the result of the head in a call of its own."""
    (row,) = reader.read([text], name)[0].rows
    outputs = reader.session.run(reader.arrays([row]), name)
    return row, outputs[str(reader.session.output(name))][0]


@pytest.mark.parametrize("name", TASKS)
def test_each_type_answers_as_the_session_does(reader: TextReader, name: str) -> None:
    texts: list[Any] = [Pair(text, f"{text} yes") for text in TEXTS] if TASKS[name].input == "pair" else TEXTS
    for text, found in zip(texts, reader.answer(texts, name), strict=True):
        row, result = alone(reader, text, name)
        context = None
        if name == "place":
            types = np.array(row.encoding.type_ids)
            context = (types == 1) & (np.arange(len(types)) < len(types) - 1)
        expected = TASKS[name].answer(result, None, context)
        assert (found.cut, found.windows) == (0, 1)
        if isinstance(expected, Prediction):
            assert isinstance(found.answer, Prediction)
            assert found.answer.label == expected.label
            assert found.answer.probabilities == pytest.approx(dict(expected.probabilities), abs=1e-5)
        elif isinstance(expected, TokenLabels):
            assert [token.text for token in found.tokens] == row.encoding.tokens[1:-1]
            assert [token.start for token in found.tokens] == [start for start, _ in row.encoding.offsets[1:-1]]
            assert isinstance(found.answer, TokenLabels)
            labels = [one.label for one in expected.tokens[1:-1] if one is not None]
            assert [one.label for one in found.answer.tokens if one is not None] == labels
        elif isinstance(expected, Span):
            assert isinstance(found.answer, Span)
            assert found.answer.first_token == expected.first_token
            assert found.answer.last_token == expected.last_token
            assert found.span is not None
            said, start, end = found.span
            places = row.encoding.offsets
            assert (start, end) == (places[expected.first_token][0], places[expected.last_token][1])
            assert text.second[start:end] == said
        elif isinstance(expected, Score):
            assert isinstance(found.answer, Score)
            assert found.answer.score == pytest.approx(expected.score, abs=1e-5)
        elif isinstance(expected, Numbers | Vector):
            (values,), (same,) = found.document().values(), vars(expected).values()
            np.testing.assert_allclose(values, same, atol=1e-5)
        else:
            assert found.document()["labels"] == list(expected.labels)


def test_a_prefix_stands_before_each_text(reader: TextReader) -> None:
    (row,) = reader.read(["moon"], "vector")[0].rows
    assert row.encoding.tokens == ["[CLS]", "query", ":", "moon", "[SEP]"]


def test_rows_have_the_limits_and_sides_of_their_adapters(reader: TextReader) -> None:
    read = reader.read([LONG] * 4, adapters=["topic", "tags", "words", None])
    whole = read[3].rows[0].total
    assert [len(one.rows[0].encoding.ids) for one in read] == [LIMIT, LIMIT, whole, whole]
    assert [one.cut for one in read] == [whole - LIMIT, whole - LIMIT, 0, 0]
    assert read[0].rows[0].encoding.tokens[1:4] == ["word", "##0", "is"]
    assert read[1].rows[0].encoding.tokens[-4:-1] == read[2].rows[0].encoding.tokens[-4:-1]
    found = reader.answer([LONG] * 3, adapters=["topic", "tags", "words"])
    for one, name in zip(found, ("topic", "tags", "words"), strict=True):
        (by_itself,) = reader.answer([LONG], name)
        assert one.document().get("cut", 0) == by_itself.cut
        assert one.document().keys() == by_itself.document().keys()


def test_multiple_choice_answers_match_single_scores(reader: TextReader) -> None:
    pairs = [Pair("Which?", text) for text in ("one", "the other one", "none of them")]
    scores = np.array([alone(reader, pair, "choice")[1][0] for pair in pairs], np.float64)
    found, single = reader.answer([pairs, pairs[1]], "choice")
    assert isinstance(found.answer, Choice)
    assert found.answer.choice == int(scores.argmax())
    assert found.answer.probabilities == pytest.approx(np.exp(scores) / np.exp(scores).sum(), abs=1e-5)
    assert found.document().keys() == {"choice", "probabilities"}
    assert single.document() == {"score": pytest.approx(scores[1], abs=1e-5)}


def test_each_text_has_its_own_strength(reader: TextReader) -> None:
    """Run texts with an adapter each, over all of their windows."""
    names, strengths = ["topic", "likeness"], [0.5, -2]
    texts = [LONG, Pair(*TEXTS[:2])]
    found = reader.answer(texts, adapters=names, strength=strengths, reading=Reading("windows"))
    for text, name, strength, one in zip(texts, names, strengths, found, strict=True):
        (alone,) = reader.answer([text], name, strength=strength, reading=Reading("windows"))
        (whole,) = reader.answer([text], name, reading=Reading("windows"))
        assert _numbers(one) == pytest.approx(_numbers(alone), abs=1e-5)
        assert _numbers(one) != pytest.approx(_numbers(whole), abs=1e-3)
    assert found[0].windows > 1
    with pytest.raises(RequestError, match=r"found 1.*expected 2, one for each row"):
        reader.answer(texts, adapters=names, strength=[0.5])


def _numbers(found: TextAnswer) -> list[float]:
    if isinstance(found.answer, Prediction):
        return list(found.answer.probabilities.values())
    assert isinstance(found.answer, Numbers)
    return list(found.answer.numbers)


def test_long_texts_are_refused(reader: TextReader) -> None:
    whole = reader.read([LONG])[0].rows[0].total
    with pytest.raises(RequestError, match=rf"text 1, adapter `topic`: has more .*found {whole} .*at most {LIMIT}"):
        reader.answer(["short", LONG], "topic", reading=Reading("refuse"))


def windows_of(reader: TextReader, text: Any, name: str, stride: int) -> tuple[ReadText, list[np.ndarray]]:
    (read,) = reader.read([text], name, long="windows", stride=stride)
    results = []
    for row in read.rows:
        outputs = reader.session.run(reader.arrays([row]), name)
        results.append(outputs[str(reader.session.output(name))][0])
    assert len(results) > 2
    return read, results


@pytest.mark.parametrize("stride", [0, 5])
def test_windows_give_the_mean(reader: TextReader, stride: int) -> None:
    _, results = windows_of(reader, LONG, "topic", stride)
    (found,) = reader.answer([LONG], "topic", reading=Reading("windows", stride))
    shares = np.mean([np.exp(one) / np.exp(one).sum() for one in results], axis=0)
    assert found.windows == len(results)
    assert found.cut == 0
    assert found.document()["windows"] == len(results)
    assert list(found.document()["probabilities"].values()) == pytest.approx(list(shares), abs=1e-5)
    _, results = windows_of(reader, LONG, "tags", stride)
    (found,) = reader.answer([LONG], "tags", reading=Reading("windows", stride))
    shares = np.mean([1 / (1 + np.exp(-one)) for one in results], axis=0)
    assert list(found.document()["probabilities"].values()) == pytest.approx(list(shares), abs=1e-5)
    longer = f"{LONG} {LONG} {LONG} {LONG}"
    _, results = windows_of(reader, longer, "vector", stride)
    (found,) = reader.answer([longer], "vector", reading=Reading("windows", stride))
    mean = np.mean(results, axis=0)
    np.testing.assert_allclose(found.document()["vector"], mean / np.linalg.norm(mean), atol=1e-5)


def test_windows_of_pairs_cut_the_second_text(reader: TextReader) -> None:
    pair = Pair("Who is it?", f"{LONG} {LONG} {LONG}")
    read, results = windows_of(reader, pair, "likeness", 7)
    assert all(row.encoding.tokens[:5] == ["[CLS]", "who", "is", "it", "?"] for row in read.rows)
    (found,) = reader.answer([pair], "likeness", reading=Reading("windows", 7))
    assert found.document()["numbers"] == pytest.approx(list(np.mean(results, axis=0)), abs=1e-5)


def test_span_tasks_refuse_an_empty_context(reader: TextReader) -> None:
    with pytest.raises(RequestError, match="text 0: no token may be the answer"):
        reader.answer([Pair("Who is it?", "")], "place")


def test_the_span_of_windows_is_the_best_of_all(reader: TextReader) -> None:
    pair = Pair("Who is it?", LONG)
    read, results = windows_of(reader, pair, "place", 6)
    best = max(
        float(result[start, 0] + result[end, 1])
        for row, result in zip(read.rows, results, strict=True)
        for start in range(6, len(row.encoding.ids) - 1)
        for end in range(start, min(start + 30, len(row.encoding.ids) - 1))
    )
    (found,) = reader.answer([pair], "place", reading=Reading("windows", 6))
    assert isinstance(found.answer, Span)
    assert found.span is not None
    said, start, end = found.span
    assert LONG[start:end] == said
    (whole,) = reader.read([pair])[0].rows
    assert whole.encoding.offsets[found.answer.first_token][0] == start
    assert whole.encoding.offsets[found.answer.last_token][1] == end
    reached = [
        float(result[places.index(found.answer.first_token), 0] + result[places.index(found.answer.last_token), 1])
        for places, result in ((list(row.places), result) for row, result in zip(read.rows, results, strict=True))
        if {found.answer.first_token, found.answer.last_token} <= set(places)
    ]
    assert max(reached) == pytest.approx(best, abs=1e-5)


def test_tokens_are_labelled_in_their_most_central_window(reader: TextReader) -> None:
    """Label each token with the number of its window, so that labels show their origin."""
    text = " ".join("a" for _ in range(40))
    windows = tuple(reader.tokenizer.windows(text, 22, 10))  # 20 tokens each, from the tokens 0, 10, 20
    task = Task("token", ("first", "second", "third"))
    results = []
    for number, window in enumerate(windows):
        result = np.zeros((len(window.encoding.ids), 3), np.float32)
        result[:, number] = 9
        results.append(result)
    found = ReadText(text, windows, "x", task).answered(results)
    assert isinstance(found.answer, TokenLabels)
    labels = [one.label for one in found.answer.tokens if one is not None]
    assert len(windows) == 3
    assert labels == ["first"] * 15 + ["second"] * 10 + ["third"] * 15
    assert [token.start for token in found.tokens] == list(range(0, 80, 2))


@pytest.mark.parametrize(
    ("texts", "name", "words"),
    [
        ([Pair("a", "b")], "topic", "text 0: is of another kind .*found a pair .*one text, as adapter `topic`"),
        (["fine", "a"], "follows", "text 0: is of another kind .*found one text; expected a pair"),
        ([[Pair("a", "b"), Pair("a", "c")]], "follows", "found a list of pairs; expected a pair of texts"),
        (["a"], "choice", "expected a pair of texts, or a list of such pairs"),
        ("a text", "topic", "a list of texts is required"),
        ([], "topic", "no texts"),
        (["fine", "a\0b"], "topic", "text 1: is not valid Unicode; found NUL at character 1"),
        (["fine", "\ud800"], "topic", "text 1: is not valid Unicode; found half of a surrogate pair"),
        (["x" * 5_000_000], "topic", "text 0: is too long; found 5,000,000 characters"),
        (["a"], "nobody", "nobody"),
        (["a"], "base", "the base by itself cannot answer"),
    ],
)
def test_unsuitable_texts_are_refused_in_one_sentence(
    reader: TextReader, texts: Any, name: str | None, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        reader.answer(texts, name)
    assert len(str(caught.value)) < 400


def test_an_adapter_of_another_tokenizer_gets_no_texts(text_folder: Path) -> None:
    bundle = Bundle.open(text_folder / "bundle")
    session = bundle.session()
    task = Task("single_label", ("a", "b", "c"), tokenizer="0" * 64)
    session.load("other", text_folder / "bundle/adapters/topic.onnx_adapter", task=task)
    reader = bundle.texts(session)
    assert reader.answer(["a"], "topic")
    with pytest.raises(RequestError, match="adapter `other`: was trained with another tokenizer"):
        reader.answer(["a"], "other")


@pytest.mark.extended
def test_the_runtime_needs_no_tokenizer_without_texts(text_folder: Path) -> None:
    code = f"""
import sys
sys.modules["tokenizers"] = None
from adapter_export.runtime import Bundle
bundle = Bundle.open({str(text_folder / "bundle")!r})
print(bundle.session().adapters[0])
bundle.texts()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout == "topic\n"
    assert "MissingExtraError" in found.stderr
    assert "pip install 'adapter-export[text]'" in found.stderr


def test_the_longest_text_of_the_base_is_read_whole(reader: TextReader) -> None:
    (read,) = reader.read(["x " * (LONGEST - 2)], "words")
    assert (len(read.rows[0].encoding.ids), read.cut) == (LONGEST, 0)

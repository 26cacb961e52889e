"""A base with few supported lengths: every client pads, truncates or rejects texts according to the record."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import CLIENTS, EXAMPLES, Client, alike, last_line
from small_bundle import LENGTHS
from tokenizers import Tokenizer

import adapter_export as ae
from adapter_export.errors import RequestError
from adapter_export.format.lengths import Lengths
from adapter_export.runtime import Bundle

FIXED, STEPS = LENGTHS
TOKENS = {FIXED: (3, 16, 17, 60), STEPS: (3, 8, 9, 17, 24, 40, 41, 60)}
"""Shorter than the record, equal to it, between two of its lengths, the one that it leaves out, and longer."""
REFUSED = [(FIXED, 15), (FIXED, 17), (STEPS, 4), (STEPS, 12), (STEPS, 24), (STEPS, 48)]
SAID = {FIXED: ("wrong shape", ", 16]"), STEPS: ("axis `tokens`", "8 to 40, multiples of 8, but not 24")}
TOO_MANY = "base does not support the number of tokens of a text"

every_client = pytest.mark.parametrize("client", CLIENTS, indirect=True)
both = pytest.mark.parametrize("lengths", LENGTHS, ids=str)


def _text(tokens: int) -> str:
    """Return a text of the given number of tokens, including two special ones."""
    words = ["who", "wrote", "a", "good", "book", "and", "was", "it", "the", "moon"]
    return " ".join(words[at % len(words)] for at in range(tokens - 2))


def _row(folder: Path, tokens: int, width: int) -> dict[str, np.ndarray]:
    """A text, cut and filled up by hand."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(_text(min(tokens, width))).ids
    assert len(ids) == min(tokens, width)
    columns = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    return {name: np.array([column + [0] * (width - len(ids))], np.int64) for name, column in columns.items()}


def _filled(folder: Path, tokens: int, lengths: Lengths) -> dict[str, np.ndarray]:
    """The row that the record asks for."""
    allowed = [16] if lengths is FIXED else [8, 16, 32, 40]
    return _row(folder, tokens, next((n for n in allowed if n >= tokens), allowed[-1]))


def _run(client: Client, folder: Path, tokens: tuple[int, ...], *arguments: str) -> list[dict[str, Any]]:
    """The answers to texts: in one call, or, where the client has no tokenizer, to the ids of each."""
    if client.tokenizes:
        calls = [[word for count in tokens for word in ("--text", _text(count))]]
    else:
        rows = [_row(folder, count, count)["input_ids"][0] for count in tokens]
        calls = [["--ids", ",".join(map(str, row))] for row in rows]
    found: list[dict[str, Any]] = []
    for call in calls:
        done = client.call("run", folder, *call, *arguments)
        assert done.returncode == 0, done.stderr
        found += json.loads(done.stdout)
    return found


def _refused(client: Client, folder: Path, asked: tuple[str, str], *words: str) -> None:
    done = client.call("run", folder, *asked, "--adapter", "base")
    assert done.returncode == 1, done.stdout
    assert last_line(done).startswith("error: ")
    assert all(word in last_line(done) for word in words), last_line(done)


@both
def test_the_bundle_is_sound(length_bundles: dict[Lengths, Path], lengths: Lengths) -> None:
    manifest = Bundle.open(length_bundles[lengths]).manifest
    assert manifest.tokens == lengths
    assert manifest.padding_neutral
    assert ae.check(length_bundles[lengths]).passed


@every_client
@both
def test_clients_pad_texts_to_supported_lengths(
    client: Client, length_bundles: dict[Lengths, Path], lengths: Lengths
) -> None:
    """Each is answered as the row that the record asks for, and without the padding of this row."""
    folder = length_bundles[lengths]
    bundle = Bundle.open(folder)
    session, reader, limit = bundle.session(), bundle.texts(), bundle.manifest.max_tokens or 0
    tokens = tuple(count for count in TOKENS[lengths] if client.tokenizes or count <= limit)
    topics = _run(client, folder, tokens, "--adapter", "topic")
    bases = _run(client, folder, tokens, "--adapter", "base")
    for count, topic, base in zip(tokens, topics, bases, strict=True):
        row = _filled(folder, count, lengths)
        expected = reader.answer([_text(count)], "topic")[0].document()
        alike(topic, {"adapter": "topic", "task": "single_label", **expected})
        alike(topic["probabilities"], dict(session.classify(row, "topic")[0].probabilities))
        assert topic.get("cut", 0) == max(0, count - limit)
        alike(base["outputs"]["hidden"], session.run(row)["hidden"][0][: min(count, limit)].tolist())


@every_client
@pytest.mark.parametrize(("lengths", "count"), REFUSED, ids=str)
def test_clients_refuse_arrays_of_unsupported_lengths(
    client: Client, length_bundles: dict[Lengths, Path], tmp_path: Path, lengths: Lengths, count: int
) -> None:
    path = tmp_path / "inputs.json"
    row = _row(length_bundles[lengths], count, count)
    path.write_text(json.dumps({name: array.tolist() for name, array in row.items()}))
    _refused(client, length_bundles[lengths], ("--inputs", str(path)), *SAID[lengths], str(count))


@every_client
@both
def test_clients_refuse_padding_that_changes_results(
    client: Client, length_bundles: dict[Lengths, Path], tmp_path: Path, lengths: Lengths
) -> None:
    """A text is refused whose length is none of the record; one of the same base with such a length is answered."""
    folder = _copied(length_bundles[lengths], tmp_path)
    (answer,) = _run(client, folder, (16,), "--adapter", "topic")
    expected = Bundle.open(folder).session().classify(_row(folder, 16, 16), "topic")[0]
    alike(answer["probabilities"], dict(expected.probabilities))
    short = ("--text", _text(9)) if client.tokenizes else ("--ids", "2,5,6,7,8,9,10,11,3")
    _refused(client, folder, short, TOO_MANY, "padding would change its result", "9", str(lengths))


def test_ids_that_are_too_many_are_not_cut(cpp_client: Client, length_bundles: dict[Lengths, Path]) -> None:
    """The special tokens are unknown."""
    for lengths, folder in length_bundles.items():
        ids = ",".join(map(str, _row(folder, 41, 41)["input_ids"][0]))
        _refused(cpp_client, folder, ("--ids", ids), TOO_MANY, "41", str(lengths))


@both
def test_runtime_refuses_unsupported_lengths(
    length_bundles: dict[Lengths, Path], tmp_path: Path, lengths: Lengths
) -> None:
    reader = Bundle.open(_copied(length_bundles[lengths], tmp_path)).texts()
    with pytest.raises(RequestError, match="padding would change its result") as refused:
        reader.answer([_text(9)], "topic")
    assert str(lengths) in str(refused.value)
    for other, count in REFUSED:
        if other is lengths:
            with pytest.raises(RequestError) as refused:
                reader.session.run(_row(length_bundles[lengths], count, count))
            assert all(words in str(refused.value) for words in (*SAID[lengths], str(count)))


@both
def test_onnxruntime_example_pads_to_supported_lengths(
    length_bundles: dict[Lengths, Path], tmp_path: Path, lengths: Lengths
) -> None:
    folder = length_bundles[lengths]
    program = runpy.run_path(str(EXAMPLES / "plain_onnxruntime.py"))
    bundle, session = program["PlainBundle"](folder), Bundle.open(folder).session()
    assert program["check_golden"](bundle)
    record = next(one for one in bundle.manifest["adapters"] if one["name"] == "topic")
    for count in TOKENS[lengths]:
        inputs, row = program["tokenize"](bundle, _text(count), record["task"]), _filled(folder, count, lengths)
        logits = bundle.run(inputs, "topic")[record["output"]]
        np.testing.assert_allclose(logits, session.run(row, "topic")[record["output"]], rtol=0, atol=1e-5)
    allowed = f"{lengths.minimum}, 'maximum': {lengths.maximum}, 'multiple_of': {lengths.multiple_of}"
    with pytest.raises(SystemExit, match=f"`input_ids` has 41 along `.*{allowed}"):  # shorter ones are padded
        bundle.run(_row(folder, 41, 41))
    unpadded = program["PlainBundle"](_copied(folder, tmp_path))
    with pytest.raises(SystemExit, match=f"has 9 along `.*` and may not be padded: .*{allowed}"):
        unpadded.run(program["tokenize"](unpadded, _text(9), record["task"]), "topic")


def _copied(folder: Path, to: Path) -> Path:
    """The same bundle, whose record says that padding changes the results."""
    copy = shutil.copytree(folder, to / "bundle")
    document = json.loads((copy / "manifest.json").read_text("utf-8"))
    document["padding_neutral"] = False
    del document["checksum"]
    (copy / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    return Path(copy)

"""`run` on texts: pairs, choices, long texts, and truncation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from text_bundle import LIMIT

from adapter_export.runtime import Bundle, Reading
from adapter_export.text import Pair

LONG = " ".join(f"word{number}" for number in range(40))


@pytest.fixture(scope="module")
def folder(text_folder: Path) -> Path:
    return text_folder / "bundle"


def test_pairs_are_read_from_options_and_tables(cli: Any, folder: Path, tmp_path: Path) -> None:
    pairs = [Pair("a man plays", "a man is playing"), Pair("it rains", "the sun")]
    expected = [one.document() for one in Bundle.open(folder).texts().answer(pairs, "follows")]
    given = [word for one in pairs for word in ("--text", one.first, "--pair", one.second)]
    found = cli.json("run", folder, "--adapter", "follows", *given)["rows"]
    assert [(row["text"], row["pair"]) for row in found] == pairs
    for row, one in zip(found, expected, strict=True):
        assert row["label"] == one["label"]
        assert row["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
    assert "a man plays | a man is playing" in cli.done("run", folder, "--adapter", "follows", *given).stdout
    table = tmp_path / "pairs.jsonl"
    table.write_text("".join(json.dumps({"text": one.first, "b": one.second}) + "\n" for one in pairs))
    for many in ((), ("--many",)):
        call = ("run", folder, "--adapter", "follows", "--data", table, "--pair-column", "b", *many)
        rows = [json.loads(line) for line in cli.done(*call).stdout.splitlines()] if many else cli.json(*call)["rows"]
        assert [row["label"] for row in rows] == [one["label"] for one in expected]


def test_run_selects_one_of_several_choices(cli: Any, folder: Path, tmp_path: Path) -> None:
    choices = ["one", "the other", "none"]
    given = [word for one in choices for word in ("--pair", one)]
    (row,) = cli.json("run", folder, "--adapter", "choice", "--text", "which?", *given)["rows"]
    (expected,) = Bundle.open(folder).texts().answer([[Pair("which?", one) for one in choices]], "choice")
    assert row["choice"] == expected.document()["choice"]
    assert row["choices"] == choices
    assert choices[row["choice"]] in cli.done("run", folder, "--adapter", "choice", "--text", "which?", *given).stdout
    table = tmp_path / "q.jsonl"
    table.write_text(json.dumps({"text": "which?", "c": choices}) + "\n")
    (same,) = cli.json("run", folder, "--adapter", "choice", "--data", table, "--pair-column", "c")["rows"]
    assert same == row


@pytest.mark.parametrize("many", [False, True])
def test_run_reports_truncated_texts(cli: Any, folder: Path, many: bool) -> None:
    (read,) = Bundle.open(folder).texts().read([LONG], "topic")
    options = ("--many",) if many else ("--json",)
    found = cli.done("run", folder, "--adapter", "topic", "--text", "short", "--text", LONG, *options)
    rows = [json.loads(line) for line in found.stdout.splitlines()] if many else json.loads(found.stdout)["rows"]
    assert [row.get("cut") for row in rows] == [None, read.cut]
    assert f"text 1: {read.cut}" in found.stderr
    assert "`--long-texts windows`" in found.stderr
    quiet = cli.done("run", folder, "--adapter", "topic", "--text", "short", *options)
    assert "truncated" not in quiet.stderr


def test_run_reports_truncated_texts_without_a_task(cli: Any, folder: Path) -> None:
    long = " ".join([LONG] * 5)
    found = cli.done("run", folder, "--adapter", "base", "--text", long, "--json")
    (read,) = Bundle.open(folder).texts().read([long])
    assert f"text 0: {read.cut}" in found.stderr


@pytest.mark.parametrize("many", [False, True])
def test_long_texts_are_read_in_windows_or_refused(cli: Any, folder: Path, many: bool) -> None:
    (expected,) = Bundle.open(folder).texts().answer([LONG], "topic", reading=Reading("windows", 4))
    call = ("run", folder, "--adapter", "topic", "--text", LONG, "--text", "short", "--long-texts")
    if many:
        rows = [json.loads(line) for line in cli.done(*call, "windows", "--stride", 4, "--many").stdout.splitlines()]
    else:
        rows = cli.json(*call, "windows", "--stride", 4)["rows"]
    assert rows[0]["probabilities"] == pytest.approx(expected.document()["probabilities"], abs=1e-5)
    assert rows[0]["windows"] == expected.windows > 2
    assert "windows" not in rows[1]
    options = ("--many",) if many else ()
    found = cli.refused(3, f"expected at most {LIMIT}", *call, "refuse", *options)
    assert found.stderr.startswith("error: text 0, adapter `topic`: has more tokens")
    assert "pass `--long-texts windows` or `cut`" in found.stderr


def test_run_refuses_invalid_texts_and_pairs(cli: Any, folder: Path, tmp_path: Path) -> None:
    cli.refused(2, "the number of pairs does not match", "run", folder, "--text", "a", "--text", "b", "--pair", "c")
    cli.refused(3, "expected a pair of texts", "run", folder, "--adapter", "follows", "--text", "a")
    cli.refused(
        3, "error: text 0: is of another kind", "run", folder, "--adapter", "topic", "--text", "a", "--pair", "b"
    )
    cli.refused(2, "a stride needs windows", "run", folder, "--text", "a", "--long-texts", "cut", "--stride", 3)
    cli.refused(2, " needs `--", "run", folder, "--text", "a", "--stride", 3)
    call = ("run", folder, "--adapter", "topic", "--text", "a", "--long-texts", "windows", "--out", tmp_path / "o.npz")
    cli.refused(2, "`--out` has one row per text", *call)
    long = tmp_path / "long.txt"
    long.write_text("x" * 5_000_000)
    found = cli.refused(3, "is too long", "run", folder, "--adapter", "topic", "--data", long)
    assert len(found.stderr) < 500
    nul = tmp_path / "nul.jsonl"
    nul.write_text(json.dumps({"text": "a\0b"}) + "\n")
    cli.refused(3, "line 1: is not valid Unicode; found NUL", "run", folder, "--adapter", "topic", "--data", nul)


def test_run_answers_with_spans_and_tokens(cli: Any, folder: Path) -> None:
    pair = Pair("who?", "Goethe wrote it in Weimar")
    (row,) = cli.json("run", folder, "--adapter", "place", "--text", pair.first, "--pair", pair.second)["rows"]
    assert pair.second[row["start"] : row["end"]] == row["answer"]
    shown = cli.done("run", folder, "--adapter", "place", "--text", pair.first, "--pair", pair.second).stdout
    assert row["answer"] in shown
    (row,) = cli.json("run", folder, "--adapter", "words", "--text", "Goethe wrote")["rows"]
    assert [(token["token"], token["start"], token["end"]) for token in row["tokens"]] == [
        ("goethe", 0, 6),
        ("wrote", 7, 12),
    ]


def test_the_base_head_of_a_base_answers_as_transformers_does(cli: Any, minilm_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    names = {"id2label": {0: "calm", 1: "warm", 2: "cold"}, "label2id": {"calm": 0, "warm": 1, "cold": 2}}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30522, max_position_embeddings=40, initializer_range=0.2, **sizes, **names)
    whole = BertForSequenceClassification(config).eval()
    whole.save_pretrained(tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (tmp_path / "hf" / name).write_bytes((minilm_folder / name).read_bytes())
    cli.done("build", tmp_path / "hf", "--variants", "slots", "-o", tmp_path / "bundle")
    texts = ["It is WARM today, é!", LONG, "cold"]
    given = [word for text in texts for word in ("--text", text)]
    found = cli.done("run", tmp_path / "bundle", *given, "--json")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text, row in zip(texts, json.loads(found.stdout)["rows"], strict=True):
        with torch.no_grad():
            inputs = tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
            (shares,) = whole(**inputs).logits.softmax(-1).tolist()
        assert row["label"] == ("calm", "warm", "cold")[shares.index(max(shares))]
        assert list(row["probabilities"].values()) == pytest.approx(shares, abs=1e-5)
    assert "text 1: " in found.stderr
    assert "texts were truncated" in found.stderr
    assert cli.json("verify", tmp_path / "bundle")["verdict"] == "passed"

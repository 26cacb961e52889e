"""`run` on rows with different adapters, and on many rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapter_export.errors import RequestError
from adapter_export.runtime import Bundle, Session
from adapter_export.runtime.text_reader import TextReader
from adapter_export.text import Tokenizer

TEXTS = ("how far is the moon", "good film", "who wrote this play")
NAMES = ("topic", None, "tone")
LABELS = {"topic": ("a", "b", "c"), "tone": ("bad", "good")}


@pytest.fixture(scope="module")
def mixed(cli: Any, hf_folder: Path, graph: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the graph for rows; `other` has the classes of `tone`."""
    path = tmp_path_factory.mktemp("mixed") / "bundle"
    listed = f"{adapters / 'topic'},{adapters / 'tone'},other={adapters / 'tone'}"
    text = ("--tokenizer", hf_folder, "--max-tokens", 80)
    cli.done("build", graph, *text, "--adapters", listed, "--variants", "bank", "-o", path)
    return path


@pytest.fixture(scope="module")
def session(mixed: Path) -> Session:
    return Bundle.open(mixed).session()


@pytest.fixture(scope="module")
def encode(mixed: Path) -> Any:
    manifest = Bundle.open(mixed).manifest
    assert manifest.text is not None
    tokenizer = Tokenizer.from_folder(mixed, manifest.max_tokens)
    return lambda *texts: dict(tokenizer.batch(texts, [record.name for record in manifest.inputs]))


def _texts(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--text", text)]


def _holds(session: Session, encode: Any, rows: list[dict[str, Any]], names: tuple[str | None, ...] = NAMES) -> None:
    """Each row equals the single result of its adapter for its text."""
    assert [row["adapter"] for row in rows] == list(names)
    for row, name in zip(rows, names, strict=True):
        if name is None:
            assert row["task"] is None
            expected = session.run(encode(row["text"]))["last_hidden_state"][0]
            np.testing.assert_allclose(row["outputs"]["last_hidden_state"], expected, rtol=0, atol=1e-5)
            continue
        (expected,) = session.classify(encode(row["text"]), name)
        assert row["label"] == expected.label
        assert row["probabilities"] == pytest.approx(dict(expected.probabilities), abs=1e-5)
        assert tuple(row["probabilities"]) == LABELS[name]


def test_run_selects_an_adapter_per_row(cli: Any, mixed: Path, session: Session, encode: Any) -> None:
    found = cli.json("run", mixed, "--adapters", "topic,-,tone", *_texts(*TEXTS))
    assert [row["text"] for row in found["rows"]] == list(TEXTS)
    _holds(session, encode, found["rows"])
    shown = cli.done("run", mixed, "--adapters", "topic,-,tone", *_texts(*TEXTS)).stdout
    for words in (*TEXTS, "topic", "tone", "base", "last_hidden_state", "probability"):
        assert words in shown


def test_fan_out_runs_several_adapters_on_each_row(
    cli: Any, mixed: Path, session: Session, encode: Any, tmp_path: Path
) -> None:
    found = cli.json("run", mixed, "--adapters", "topic,-,tone", *_texts(TEXTS[0]))
    assert [row["text"] for row in found["rows"]] == [TEXTS[0]] * 3
    _holds(session, encode, found["rows"])
    both = cli.json("run", mixed, "--fan-out", "--adapters", "tone,topic", *_texts(*TEXTS[:2]))
    assert [row["text"] for row in both["rows"]] == [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]]
    _holds(session, encode, both["rows"], ("tone", "topic") * 2)
    np.savez(tmp_path / "in.npz", **encode(*TEXTS[:2]))
    rows = cli.json("run", mixed, "--fan-out", "--adapters", "tone,-", "--arrays", tmp_path / "in.npz")["rows"]
    assert [(row["text"], row["adapter"]) for row in rows] == [
        (f"row {at}", name) for at in (0, 1) for name in ("tone", None)
    ]


@pytest.mark.parametrize("form", ["jsonl", "tsv", "csv"])
@pytest.mark.parametrize("many", [False, True], ids=["one call", "many"])
def test_a_table_names_the_adapters(
    cli: Any, mixed: Path, session: Session, encode: Any, tmp_path: Path, form: str, many: bool
) -> None:
    path = tmp_path / f"rows.{form}"
    base = "base" if form == "csv" else "-"
    cells = [(text, name or base) for text, name in zip(TEXTS, NAMES, strict=True)]
    if form == "jsonl":
        lines = [json.dumps({"words": text, "who": name}) for text, name in cells]
    else:
        lines = [("\t" if form == "tsv" else ",").join(row) for row in [("words", "who"), *cells]]
    path.write_text("\n".join(lines), encoding="utf-8")
    call = ("run", mixed, "--data", path, "--text-column", "words", "--adapter-column", "who")
    if many:
        rows = [json.loads(line) for line in cli.done(*call, "--many").stdout.splitlines()]
    else:
        rows = cli.json(*call)["rows"]
    _holds(session, encode, rows)


def test_run_answers_many_lines_in_order(
    cli: Any, mixed: Path, session: Session, encode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextReader, "window", 6)  # several windows, and no two with the same texts
    words = ["how", "far", "is", "the", "moon", "good", "film"]
    texts = [" ".join(words[: 1 + index * 5 % 7]) for index in range(20)]
    texts[9] = ""  # an empty line is an empty text: answers and lines correspond
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    found = cli.done("run", mixed, "--adapter", "topic", "--data", tmp_path / "a.txt", "--many", "--token-budget", "30")
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert [row["text"] for row in rows] == texts
    _holds(session, encode, rows, ("topic",) * 20)
    assert "answering rows" in found.stderr
    assert "20/20" in found.stderr


def test_run_writes_npz_and_safetensors(cli: Any, mixed: Path, session: Session, encode: Any, tmp_path: Path) -> None:
    arrays = encode(*TEXTS)
    np.savez(tmp_path / "in.npz", **arrays)
    save_file(arrays, tmp_path / "in.safetensors")
    expected = session.run(arrays, adapters=NAMES)
    for form in ("npz", "safetensors"):
        call = ("run", mixed, "--adapters", "topic,-,tone", "--arrays", tmp_path / f"in.{form}")
        rows = cli.json(*call, "--out", tmp_path / f"out.{form}")["rows"]
        assert [row["text"] for row in rows] == ["row 0", "row 1", "row 2"]
        out = load_file(tmp_path / f"out.{form}") if form == "safetensors" else dict(np.load(tmp_path / f"out.{form}"))
        assert out.keys() == expected.keys()
        assert all(np.array_equal(out[name], expected[name], equal_nan=True) for name in expected)
        lines = [json.loads(line) for line in cli.done(*call, "--many").stdout.splitlines()]
        assert [line.get("label") for line in lines] == [row.get("label") for row in rows]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--adapters", "topic,tone", *_texts("a", "b", "c")), "2 adapters for 3 rows"),
        (("--fan-out", "--adapter", "topic", *_texts("a")), "`--fan-out` needs `--adapters`"),
        (("--adapters", "topic,,tone", *_texts("a", "b", "c")), "has an empty item"),
        (("--adapter", "topic", "--adapters", "topic", *_texts("a")), "`--adapter` and `--adapters` exclude"),
        (("--out", "a.npz", "--many", *_texts("a")), "`--many` and `--out` exclude each other"),
        (("--out", "a.json", *_texts("a")), "`.npz` or `.safetensors`"),
        (("--adapter-column", "who", *_texts("a")), "`--adapter-column` needs `--data`"),
        (("--data", "a.tsv", *_texts("a")), "`--text` and `--data` exclude each other"),
    ],
)
def test_run_refuses_adapters_that_do_not_match_rows(
    cli: Any, mixed: Path, options: tuple[str, ...], words: str
) -> None:
    cli.refused(2, words, "run", mixed, *options)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ((), "Give one of `--text 'A TEXT'`, `--data FILE`, `--arrays FILE`"),
        (("--adapter", "topic", "--adapters", "topic", *_texts("a")), "Remove `--adapter` or `--adapters`."),
        (("--adapter-column", "who", *_texts("a")), "Add `--data`, or remove `--adapter-column`."),
        (("--out", "a.json", *_texts("a")), "Rename it: `--out a.npz`."),
        (("--stride", "3", "--long-texts", "cut", *_texts("a")), "Give `--long-texts windows`."),
        (("--adapters", "topic,tone", *_texts("a", "b", "c")), "`--fan-out` runs every row through all of them"),
        (("--pair", "b", "--pair", "c", *_texts("a", "d", "e")), "Give one per text, in the same order"),
        (("--weights", "a=1", *_texts("a")), "Add `--adapter`, or remove `--weights`."),
        (("--delimiter", ";", *_texts("a")), "Add `--data`, or remove `--delimiter`."),
    ],
)
def test_wrong_calls_suggest_the_missing_options(cli: Any, mixed: Path, options: tuple[str, ...], fix: str) -> None:
    cli.refused(2, fix, "run", mixed, *options)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tsv", b"text\twho\nhow\tnobody\n", "a.tsv, line 2, adapter `nobody`: is not loaded"),
        ("a.tsv", b"text\twho\nhow\ttnoe\n", "Did you mean `tone`? If not, load it, or choose a loaded one."),
        ("a.tsv", b"text\thow\nhow\ttone\n", "no column `who`"),
        ("a.tsv", b"text\twho\nhow\ttone\n\nfar\ttone\n", "a.tsv, line 3: a row has a wrong number of cells"),
        ("a.csv", b"text,who\nhow,tone\n\nfar,tone\n", "a.csv, line 3: a row has a wrong number of cells"),
        ("a.jsonl", b'{"text": "how", "who": "tone"}\n\n{"text": "far", "who": "tone"}\n', "line 2: is not JSON"),
        ("a.jsonl", b'{"text": null, "who": "tone"}', "a.jsonl, line 1: has no text"),
        ("a.jsonl", b'{"text": 3, "who": "tone"}', "a.jsonl, line 1: has no text"),
        ("a.jsonl", b'{"text": "a", "who": 3}', "a.jsonl, line 1: names no adapter"),
        ("a.jsonl", b'{"text": "a", "who": null}', "a.jsonl, line 1: names no adapter; found an empty cell"),
        ("a.csv", b"text,who\nhow,tone\nfar,\n", "a.csv, line 3: names no adapter"),
        ("a.tsv", b"text\twho\nhow\t  \n", "Write `base` to use the base."),
        ("a.jsonl", b'{"text": "a", "who"', "a.jsonl, line 1: is not JSON"),
        ("a.csv", b"text,who\n", "contains no texts"),
        ("a.csv", b"text,who\na,tone,more\n", "a wrong number of cells"),
        ("a.csv", b"text,who\n\x81,tone\n", "a.csv, line 2: is not UTF-8"),
        ("none.csv", None, "does not exist"),
    ],
)
def test_bad_tables_are_named_with_their_line(
    cli: Any, mixed: Path, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    cli.refused(3, words, "run", mixed, "--data", tmp_path / name, "--adapter-column", "who", "--many")


def test_empty_texts_of_a_table_are_answered(cli: Any, mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    (row,) = cli.json("run", mixed, "--data", tmp_path / "a.jsonl", "--adapter", "tone")["rows"]
    (typed,) = cli.json("run", mixed, *_texts(""), "--adapter", "tone")["rows"]
    assert row["probabilities"] == typed["probabilities"]


def test_damaged_files_of_lines_and_arrays_are_refused(cli: Any, mixed: Path, tmp_path: Path, encode: Any) -> None:
    lines = tmp_path / "a.txt"
    lines.write_bytes(b"how\n\x81\n")
    cli.refused(3, "a.txt, line 2: is not UTF-8", "run", mixed, "--data", lines)
    lines.write_bytes(b" \n\n")
    cli.refused(3, "contains no texts", "run", mixed, "--data", lines)
    cli.refused(2, "has no columns", "run", mixed, "--data", lines, "--adapter-column", "who")
    cli.refused(3, "does not exist", "run", mixed, "--data", tmp_path / "none.txt")
    (tmp_path / "a.safetensors").write_bytes(b"PK\x03\x04")
    cli.refused(3, "a.safetensors", "run", mixed, "--arrays", tmp_path / "a.safetensors")
    save_file({name: array[:0] for name, array in encode("how").items()}, tmp_path / "empty.safetensors")
    cli.refused(3, "at least 1 along each axis", "run", mixed, "--arrays", tmp_path / "empty.safetensors")


def test_run_answers_mixed_rows_without_a_bank(
    cli: Any, hf_folder: Path, graph: Path, adapters: Path, tmp_path: Path, encode: Any
) -> None:
    text = ("--tokenizer", hf_folder, "--max-tokens", 80)
    cli.done("build", graph, *text, "--adapters", adapters / "topic", "--variants", "inputs", "-o", tmp_path / "b")
    rows = cli.json("run", tmp_path / "b", "--adapters", "topic,-", *_texts("a", "b"))["rows"]  # one call each
    assert [row["adapter"] for row in rows] == ["topic", None]
    session = Bundle.open(tmp_path / "b").session()
    with pytest.raises(RequestError, match="no graph for rows"):
        session.run(encode("a", "a"), adapters=["topic", None])

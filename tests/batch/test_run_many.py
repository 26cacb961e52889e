"""Tables of any length: shards, computed anywhere, and after any failure of a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from small_bundle import OTHERS, text_bundle

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.errors import (
    AbandonedFileWarning,
    DataError,
    FileError,
    OutputExistsError,
    RequestError,
    UsageError,
)

NAMES = ("topic", "tone", "mood")


def _rows(count: int) -> list[dict[str, str]]:
    random, words = np.random.default_rng(0), OTHERS.split()
    texts = (" ".join(random.choice(words, random.integers(1, 12))) for _ in range(count))
    return [{"text": text, "who": NAMES[at % 3]} for at, text in enumerate(texts)]


def _lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def _joined(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("shard-*.jsonl")))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_bundle(tmp_path_factory)


def test_joined_shards_equal_the_output_of_one_process(bundle: Path, tmp_path: Path) -> None:
    table = _lines(tmp_path / "rows.jsonl", _rows(2500))
    table.write_text(table.read_text("utf-8") + "\n \n", encoding="utf-8")  # empty lines at the end are no rows
    options = ["run", str(bundle), "--data", str(table), "--adapter-column", "who", "--many"]
    whole = CliRunner().invoke(main, options)
    words = ["run-many", str(bundle), str(table), "-o", str(tmp_path / "out"), "--adapter-column", "who"]
    shards = CliRunner().invoke(main, [*words, "--shard-rows", "2048", "--json"])
    assert shards.exit_code == 0, shards.output
    assert json.loads(shards.stdout) == {"folder": str(tmp_path / "out"), "shards": 2, "reused": 0}
    assert _joined(tmp_path / "out") == whole.stdout_bytes


@pytest.mark.extended
def test_a_killed_process_is_gone_on_with(bundle: Path, tmp_path: Path) -> None:
    table, out = _lines(tmp_path / "rows.jsonl", _rows(900)), tmp_path / "out"
    options = [str(table), "-o", str(out), "--adapter-column", "who", "--shard-rows", "100"]
    command = [sys.executable, "-m", "adapter_export", "run-many", str(bundle), *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as killed:
        while not (out / "shard-00001.jsonl").exists():
            assert killed.poll() is None
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.jsonl")}
    assert 2 <= len(before) < 9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AbandonedFileWarning)  # the signal may come while a shard is written
        done = ae.run_many(bundle, table, out, adapter_column="who", shard_rows=100)
    assert (done.shards, done.reused) == (9, len(before))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole = ae.run_many(bundle, table, tmp_path / "whole", adapter_column="who", shard_rows=100)
    assert _joined(out) == _joined(whole.folder)


@pytest.mark.parametrize(
    ("row", "error", "words"),
    [
        ({"text": "who", "who": "nobody"}, RequestError, "`nobody`"),
        ({"text": "a", "who": ""}, DataError, "line 3: names no adapter; found an empty cell.*Write `base`"),
        ({"text": None, "who": "tone"}, DataError, "line 3: has no text"),
        ({"text": "a\0b", "who": "tone"}, RequestError, "line 3"),
        (["who"], DataError, "line 3: is not a JSON object"),
        ({"words": "who"}, DataError, "no column `text`"),
    ],
)
def test_unanswerable_rows_are_named_and_earlier_shards_kept(
    bundle: Path, tmp_path: Path, row: Any, error: type[Exception], words: str
) -> None:
    table = _lines(tmp_path / "rows.jsonl", [*_rows(2), row])
    with pytest.raises(error, match=words):
        ae.run_many(bundle, table, tmp_path / "out", adapter_column="who", shard_rows=2)
    assert [path.name for path in (tmp_path / "out").glob("shard-*")] == ["shard-00000.jsonl"]


@pytest.fixture
def answered(bundle: Path, tmp_path: Path) -> Path:
    """Return a folder with the answers of `topic` to `rows.jsonl`."""
    return ae.run_many(bundle, _lines(tmp_path / "rows.jsonl", _rows(4)), tmp_path / "out", adapter="topic").folder


def test_the_answers_of_another_job_stay(bundle: Path, tmp_path: Path, answered: Path) -> None:
    before = _joined(answered)
    again = ae.run_many(bundle, tmp_path / "rows.jsonl", answered, adapter="topic")
    assert again.reused == again.shards == 1
    with pytest.raises(FileError, match="another `adapter`"):
        ae.run_many(bundle, tmp_path / "rows.jsonl", answered, adapter="tone")
    _lines(tmp_path / "rows.jsonl", _rows(5))
    with pytest.raises(FileError, match="another `data`"):
        ae.run_many(bundle, tmp_path / "rows.jsonl", answered, adapter="topic")
    assert _joined(answered) == before
    ae.run_many(bundle, tmp_path / "rows.jsonl", answered, adapter="tone", force=True)
    assert _joined(answered).count(b'"tone"') == 5
    (tmp_path / "other").mkdir()
    _lines(tmp_path / "other" / "rows.jsonl", [])
    with pytest.raises(OutputExistsError):
        ae.run_many(bundle, tmp_path / "rows.jsonl", tmp_path / "other", adapter="tone", force=True)


def test_a_folder_of_files_is_read_in_the_order_of_their_names(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = _rows(5)
    _lines(tmp_path / "in" / "b.jsonl", rows[3:])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:3]), tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "_SUCCESS").touch()
    done = ae.run_many(bundle, tmp_path / "in", tmp_path / "out", adapter="topic")
    texts = [json.loads(line)["text"] for line in _joined(done.folder).splitlines()]
    assert texts == [row["text"] for row in rows]
    (tmp_path / "in" / "c.xlsx").touch()
    with pytest.raises(DataError, match=r"c\.xlsx: has no suffix of a table"):
        ae.run_many(bundle, tmp_path / "in", tmp_path / "out", adapter="topic")


@pytest.mark.parametrize("form", ["csv", "tsv", "txt", "parquet"])
def test_every_form_of_table_is_answered_as_by_one_process(bundle: Path, tmp_path: Path, form: str) -> None:
    texts = [row["text"] for row in _rows(7)]
    texts[2:4] = ["", "who, how"]
    table = tmp_path / f"rows.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": text} for text in texts]), table)
    else:
        cells = [f'"{text}"' if form == "csv" else text for text in texts]
        header = [] if form == "txt" else ["text,n" if form == "csv" else "text\tn"]
        ends = {"txt": "", "csv": ",1", "tsv": "\t1"}[form]
        table.write_text("".join(f"{line}\n" for line in [*header, *(f"{cell}{ends}" for cell in cells)]))
    # of the base, outputs are written whole
    for choice in (["--adapter", "topic", "--strength", "0.5"], ["--adapter", "base"]):
        whole = CliRunner().invoke(main, ["run", str(bundle), "--data", str(table), "--many", *choice])
        out = tmp_path / f"out{len(choice)}"
        words = ["run-many", str(bundle), str(table), "-o", str(out), *choice]
        shards = CliRunner().invoke(main, [*words, "--shard-rows", "3"])
        assert (whole.exit_code, shards.exit_code) == (0, 0), whole.output + shards.output
        one, other = ([json.loads(line) for line in data.splitlines()] for data in (whole.stdout_bytes, _joined(out)))
        assert [row["text"] for row in one] == texts
        for row, same in zip(one, other, strict=True):  # calls of other rows: rounding differs
            for name, numbers in same.pop("outputs", same.pop("probabilities", {})).items():
                wanted = row.get("outputs", row.get("probabilities"))[name]
                np.testing.assert_allclose(numbers, wanted, rtol=0, atol=1e-5)
            assert {key: row[key] for key in ("text", "adapter", "task")} == {
                key: same[key] for key in ("text", "adapter", "task")
            }


def test_a_damaged_parquet_is_named(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        ae.run_many(bundle, tmp_path / "rows.parquet", tmp_path / "out", adapter="topic")


def test_workers_need_ray(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`workers` requires `ray`"):
        ae.run_many(bundle, tmp_path / "rows.jsonl", tmp_path / "out", workers=2)

"""`run`: labels for texts, outputs for arrays, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adapter_export.errors import UsageError
from adapter_export.runtime import Bundle

TEXTS = ("how far is the moon", "who wrote this play")


def _text_options(texts=TEXTS) -> list[str]:
    return [word for text in texts for word in ("--text", text)]


def test_labels_have_their_probabilities(cli, bundle: Path) -> None:
    found = cli.json("run", bundle, "--adapter", "topic", *_text_options())
    assert [row["text"] for row in found["rows"]] == list(TEXTS)
    for row in found["rows"]:
        assert set(row["probabilities"]) == {"a", "b", "c"}
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["label"]]


def test_the_probabilities_are_those_of_the_session(cli, bundle: Path) -> None:
    from adapter_export.text import Tokenizer

    opened = Bundle.open(bundle)
    tokenizer = Tokenizer.from_folder(bundle, opened.manifest.max_tokens)
    arrays = tokenizer.batch(TEXTS, [record.name for record in opened.manifest.inputs])
    expected = opened.session().classify(arrays, "tone")
    found = cli.json("run", bundle, "--adapter", "tone", *_text_options())["rows"]
    assert [row["label"] for row in found] == [one.label for one in expected]
    assert [row["probabilities"] for row in found] == [pytest.approx(dict(one.probabilities)) for one in expected]


def test_an_adapter_of_no_strength_is_its_head_on_the_base(cli, bundle: Path) -> None:
    found = [
        cli.json("run", bundle, "--adapter", "topic", "--strength", strength, *_text_options())["rows"]
        for strength in ("0", "1")
    ]
    whole = cli.json("run", bundle, "--adapter", "topic", *_text_options())["rows"]
    assert found[1] == whole
    assert found[0] != whole
    for strength, expected in zip(("0", "1"), found, strict=True):
        lines = cli.done("run", bundle, "--adapter", "topic", "--strength", strength, "--many", *_text_options()).stdout
        for line, row in zip(map(json.loads, lines.splitlines()), expected, strict=True):
            assert line["probabilities"] == pytest.approx(row["probabilities"], abs=1e-6)
    both = cli.json("run", bundle, "--adapters", "topic,tone", "--fan-out", "--strength", "0", *_text_options())["rows"]
    for row, expected in zip(both[::2], found[0], strict=True):
        assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)


def test_few_texts_show_every_class_and_many_one_line_each(cli, bundle: Path) -> None:
    few = cli.done("run", bundle, "--adapter", "topic", *_text_options()).stdout
    assert few.count("█") > 0
    assert all(text in few for text in TEXTS)
    assert few.count("probability") == 2
    many = cli.done("run", bundle, "--adapter", "topic", stdin="\n".join([*TEXTS, "", *TEXTS]) + "\n").stdout
    assert many.count("probability") == 1
    assert many.count(TEXTS[0]) == 2


def test_the_base_alone_shows_its_outputs(cli, bundle: Path) -> None:
    (row,) = cli.json("run", bundle, "--adapter", "base", "--text", TEXTS[0])["rows"]
    assert (row["adapter"], row["task"]) == (None, None)
    assert np.shape(row["outputs"]["last_hidden_state"]) == (7, 16)
    assert cli.json("run", bundle, "--adapter", "-", "--text", TEXTS[0])["rows"] == [row]
    shown = cli.done("run", bundle, "--adapter", "base", "--text", TEXTS[0]).stdout
    for words in ("base", "last_hidden_state", "[7, 16]"):
        assert words in shown


def test_a_call_without_a_name_is_refused_where_adapters_answer(cli, bundle: Path, tmp_path: Path) -> None:
    """The base would answer, with success."""
    said = "no adapter is named; found adapters that answer: `topic`, `tone`; expected one of them, or `base`"
    np.savez(
        tmp_path / "in.npz", **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), np.ones((1, 3), int))
    )
    table = tmp_path / "rows.tsv"
    table.write_text("text\tlabel\ngood\tgood\n", encoding="utf-8")
    for words in (("--text", "x"), ("--arrays", tmp_path / "in.npz"), ("--data", table, "--many")):
        done = cli.refused(2, said, "run", bundle, *words)
        assert "`--adapter NAME`" in done.stderr
        assert not done.stdout
    cli.refused(2, said, "run-many", bundle, table, "-o", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    cli.refused(2, said, "evaluate", bundle, "--data", table)
    opened = Bundle.open(bundle)
    reader = opened.texts()
    arrays = reader.arrays(reader.read(["x"])[0].rows)
    for ask in (lambda: reader.answer(["x"]), lambda: reader.session.answer(arrays)):
        with pytest.raises(UsageError, match="no adapter is named"):
            ask()
    assert reader.session.named("base") is None
    assert reader.session.run(arrays).keys() == {"last_hidden_state", "pooler_output"}


def test_run_reads_and_writes_arrays(cli, bundle: Path, tmp_path: Path) -> None:
    ids = np.array([[2, 5, 6, 3], [2, 7, 3, 0]])
    arrays = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    np.savez(tmp_path / "in.npz", **arrays)
    call = (
        "run",
        bundle,
        "--adapter",
        "topic",
        "--arrays",
        tmp_path / "in.npz",
        "--out",
        tmp_path / "deep" / "out.npz",
    )
    assert [row["text"] for row in cli.json(*call)["rows"]] == ["row 0", "row 1"]
    expected = Bundle.open(bundle).session().run(arrays, "topic")
    with np.load(tmp_path / "deep" / "out.npz") as found:
        assert set(found.files) == set(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    cli.refused(3, "already exists", *call)
    cli.done(*call, "--force")


def test_another_adapter_file_is_loaded_at_run_time(cli, bundle: Path) -> None:
    file = bundle / "adapters" / "topic.onnx_adapter"
    own = cli.json("run", bundle, "--adapter", "topic", *_text_options())["rows"]
    loaded = cli.json("run", bundle, "--adapter-file", file, "--labels", "a,b,c", *_text_options())["rows"]
    assert loaded == [{**row, "adapter": "topic.loaded"} for row in own]
    unnamed = cli.json("run", bundle, "--adapter-file", file, *_text_options())
    assert all("logits" in row["outputs"] for row in unnamed["rows"])
    cli.refused(3, "labels and classes differ", "run", bundle, "--adapter-file", file, "--labels", "a", "--text", "x")


def test_run_refuses_conflicting_or_missing_inputs(cli, bundle: Path, tmp_path: Path) -> None:
    cli.refused(2, "exclude each other", "run", bundle, "--text", "x", "--arrays", tmp_path / "in.npz")
    cli.refused(2, "no lines on stdin", "run", bundle, "--adapter", "topic", stdin="\n \n")
    cli.refused(2, " needs `--", "run", bundle, "--labels", "a,b", "--text", "x")


def test_run_refuses_invalid_files_and_adapters(cli, bundle: Path, tmp_path: Path) -> None:
    cli.refused(3, "one of `topic`, `tone`", "run", bundle, "--adapter", "nobody", "--text", "x")
    cli.refused(3, "does not exist", "run", bundle, "--arrays", tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no arrays")
    cli.refused(3, "is not an `.npz` file of arrays", "run", bundle, "--arrays", tmp_path / "bad.npz")
    np.savez(tmp_path / "objects.npz", input_ids=np.array([{}], dtype=object))
    cli.refused(3, "is not an `.npz` file of arrays", "run", bundle, "--arrays", tmp_path / "objects.npz")
    np.savez(tmp_path / "few.npz", input_ids=np.ones((1, 3), np.int64))
    cli.refused(3, "attention_mask", "run", bundle, "--arrays", tmp_path / "few.npz")
    cli.refused(3, "is not a bundle", "run", tmp_path, "--text", "x")


def test_openvino_answers_as_the_cpu_does(cli, bundle: Path) -> None:
    call = ("run", bundle, "--adapter", "topic", "--text", "x")
    (found,), (expected,) = cli.json(*call, "--provider", "openvino")["rows"], cli.json(*call)["rows"]
    assert found["label"] == expected["label"]
    # float32 on both sides; a softmax changes by no more than its logits, whose budget is larger
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)


def test_cuda_is_refused_if_unavailable(cli, bundle: Path) -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        assert cli.json("run", bundle, "--provider", "cuda", "--adapter", "topic", "--text", "x")["rows"]
    else:
        cli.refused(2, "cuda", "run", bundle, "--provider", "cuda", "--adapter", "topic", "--text", "x")

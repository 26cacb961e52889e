"""The C++ client answers each row independently of the rest of its request: ids, padded arrays, golden batches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import build_bundle
from clients import Client, alike
from once import once
from small_bundle import LENGTHS, build_small
from tiny_onnx import random_adapter

from adapter_export.format.manifest_json import list_files
from adapter_export.graph.kinds import BottleneckOptions, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle, Session
from adapter_export.text import Pair

Arrays = Mapping[str, Sequence[Sequence[int]]]

STEPS = LENGTHS[1]
IDS = [2, 5, 6, 7, 12, 19, 3, 11]
"""As many as one of these lengths."""


def _ids(*rows: Sequence[int]) -> list[str]:
    return [word for row in rows for word in ("--ids", ",".join(map(str, row)))]


def _run(client: Client, bundle: Path, *words: str) -> list[dict[str, Any]]:
    done = client.call("run", bundle, *words)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _written(folder: Path, arrays: Arrays) -> str:
    path = folder / "arrays.json"
    path.write_text(json.dumps(arrays))
    return str(path)


def _alone(session: Session, ids: Sequence[int], adapter: str) -> dict[str, Any]:
    """The answer of Python to one row without padding."""
    row = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    return {"adapter": adapter, "task": "single_label", **session.classify(row, adapter)[0].document()}


def test_rows_of_several_lengths_and_adapters_equal_single_runs(
    cpp_client: Client, small_bundle: Path, tmp_path: Path
) -> None:
    """In one call of the command line, as ids and as arrays, an adapter that was loaded among them."""
    session = Bundle.open(small_bundle).session(threads=1)
    rows, names = [IDS, IDS[:3], IDS[:5], IDS[:3]], ["tone", "topic", "tone", "tone"]
    choices = [word for name in names for word in ("--adapter", name)]
    found = _run(cpp_client, small_bundle, *_ids(*rows), *choices)
    alike(found, [_alone(session, ids, name) for ids, name in zip(rows, names, strict=True)])
    ragged = {"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows]}
    assert _run(cpp_client, small_bundle, "--inputs", _written(tmp_path, ragged), *choices) == found
    file = small_bundle / "adapters" / "tone.onnx_adapter"
    mixed = _run(cpp_client, small_bundle, "--load", f"new={file}", *_ids(*rows[:2]), "--adapter", "new", *choices[2:4])
    alike(mixed[1], found[1])
    assert (mixed[0]["adapter"], mixed[0]["task"]) == ("new", None)
    np.testing.assert_allclose(
        mixed[0]["outputs"]["logits"],
        session.run({"input_ids": np.array([IDS]), "attention_mask": np.ones((1, 8), np.int64)}, "tone")["logits"][0],
        rtol=0,
        atol=1e-5,
    )


def test_padding_before_the_tokens_is_removed(cpp_client: Client, task_bundle: Path, tmp_path: Path) -> None:
    """Places of tokens are those in the caller's row; a hidden token between others stays where it is."""
    session = Bundle.open(task_bundle).session(threads=1)
    ids, mask = [0, 0, 0, *IDS, 0], [0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0]
    path = _written(tmp_path, {"input_ids": [ids], "attention_mask": [mask]})
    alone = {"input_ids": np.array([IDS]), "attention_mask": np.array([mask[3:11]])}
    (tokens,) = _run(cpp_client, task_bundle, "--inputs", path, "--adapter", "token")
    expected = session.answer(alone, "token")[0].document()["tokens"]
    alike(tokens["tokens"], [None] * 3 + expected + [None])
    assert expected[2] is None
    context = [0] * 3 + [0, 1, 1, 1, 1, 0, 0, 0] + [0]
    words = ["--context", ",".join(map(str, context))]
    (span,) = _run(cpp_client, task_bundle, "--inputs", path, "--adapter", "span", *words)
    own = session.answer(alone, "span", context=[np.array(context[3:11], bool)])[0].document()
    own = {**own, "first_token": own["first_token"] + 3, "last_token": own["last_token"] + 3}
    alike(span, {"adapter": "span", "task": "span", **own})
    (base,) = _run(cpp_client, task_bundle, "--inputs", path, "--adapter", "base")
    hidden = np.zeros((12, 16))
    hidden[3:11] = session.run(alone)["hidden"][0]
    np.testing.assert_allclose(base["outputs"]["hidden"], hidden, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of lengths in steps, with an adapter that counts padding and one that does not."""

    def make(folder: Path) -> None:
        base = build_small(folder, ["slots"], ("input_ids", "attention_mask"), lengths=STEPS).base
        build_bundle(
            base,
            [
                random_adapter("gated", pfeiffer(BottleneckOptions(gate=True)), base, bottleneck=4, labels="ab"),
                random_adapter("plain", pfeiffer(BottleneckOptions()), base, bottleneck=4, labels="ab"),
            ],
            folder / "gated",
            references=CutRunner(base),
            cases=input_cases(base.inputs, seed=1, lengths=base.lengths),
        )

    return once(tmp_path_factory, "gated", make) / "gated"


def test_adapters_that_count_padding_run_on_unpadded_rows(cpp_client: Client, gated: Path, tmp_path: Path) -> None:
    """They are not padded to a length that the base takes, and padding that comes with them is removed."""
    manifest = Bundle.open(gated).manifest
    assert manifest.padding_neutral
    assert manifest.counts_padding
    session = Bundle.open(gated).session(threads=1)
    short = _ids(IDS[:5])
    cpp_client.refuses("padding would change its results", "run", gated, *short, "--adapter", "gated")
    assert _run(cpp_client, gated, *short, "--adapter", "plain")
    assert _run(cpp_client, gated, *short, "--adapter", "base")
    padded = _written(tmp_path, {"input_ids": [IDS + [0] * 8] * 2, "attention_mask": [[1] * 8 + [0] * 8] * 2})
    found = _run(cpp_client, gated, "--inputs", padded, "--adapter", "gated", "--adapter", "plain")
    alike(found, [_alone(session, IDS, name) for name in ("gated", "plain")])
    moved = _written(tmp_path, {"input_ids": [[0] * 8 + IDS], "attention_mask": [[0] * 8 + [1] * 8]})
    alike(_run(cpp_client, gated, "--inputs", moved, "--adapter", "gated"), [_alone(session, IDS, "gated")])
    odd = _written(tmp_path, {"input_ids": [IDS[:5] + [0] * 3], "attention_mask": [[1] * 5 + [0] * 3]})
    assert _run(cpp_client, gated, "--inputs", odd, "--adapter", "plain")
    cpp_client.refuses("padding would change its results", "run", gated, "--inputs", odd, "--adapter", "gated")
    for strength, refused in (("0.5", True), ("1", True)):
        words = ["--inputs", odd, "--adapter", "gated", "--strength", strength]
        assert (cpp_client.call("run", gated, *words).returncode == 1) == refused


def test_loaded_adapters_that_count_padding_are_not_padded(cpp_client: Client, gated: Path) -> None:
    """Its tensors say so: nothing else is known of it."""
    for name in ("gated", "plain"):
        load = ["--load", f"new={gated / 'adapters' / f'{name}.onnx_adapter'}", "--adapter", "new"]
        done = cpp_client.call("run", gated, *_ids(IDS[:5]), *load)
        assert (done.returncode, "padding would change" in done.stderr) == (
            (1, True) if name == "gated" else (0, False)
        )


def test_rows_that_change_each_other_have_calls_of_their_own(cpp_client: Client, dependent: Path) -> None:
    """Each row is bit-identical to its single run, also next to rows of other adapters, and with a strength."""
    assert not Bundle.open(dependent).manifest.batch_invariant
    rows = [[at + 1, 2 * at + 3, 5] for at in range(8)]
    names = ["a", "a", "b", "-"] * 2
    options = [[*_ids(ids), "--adapter", name] for ids, name in zip(rows, names, strict=True)]
    for more in ([], ["--strength", "0.5"]):
        together = _run(cpp_client, dependent, *(word for words in options for word in words), *more)
        assert together == [_run(cpp_client, dependent, *words, *more)[0] for words in options]


PAIR = Pair("Who lives in Kraków?", "Zoë said that Odysseus lives in Kraków.")


def test_ids_of_pairs_need_their_types(cpp_client: Client, text_folder: Path) -> None:
    """With them an answer is that of the text; without them only a task of one text is answered."""
    bundle = text_folder / "bundle"
    reader = Bundle.open(bundle).texts()
    for name, asked in (("follows", PAIR), ("place", PAIR), ("choice", [PAIR]), ("topic", PAIR.first)):
        (read,) = reader.read([asked], name)
        encoding = read.rows[0].encoding
        types = ",".join(map(str, encoding.type_ids))
        assert ("1" in types) == (name != "topic")
        words = [*_ids(encoding.ids), "--adapter", name]
        context = ["--context", f"{types[:-1]}0"] if name == "place" else []  # without the last separator
        (found,) = _run(cpp_client, bundle, *words, "--types", types, *context)
        assert (found["adapter"], found["task"]) == (name, Bundle.open(bundle).session().answering(name).type)
        if name == "place":
            (answer,) = reader.answer([asked], name)
            assert found["probability"] == pytest.approx(answer.document()["probability"], abs=1e-5)
            cpp_client.refuses("a span needs its context", "run", bundle, *words, "--types", types)
        elif name != "choice":
            alike(found, {"adapter": name, "task": "single_label", **reader.answer([asked], name)[0].document()})
        if name == "topic":
            assert _run(cpp_client, bundle, *words) == [found]
        else:
            cpp_client.refuses("Give `--types 0,0,1,...`", "run", bundle, *words, *context)
    cpp_client.refuses("not one token type for each id", "run", bundle, *words, "--types", "0,0")
    cpp_client.refuses("only for a task of one text", "run", bundle, *_ids(encoding.ids), "--adapter", "base")
    assert cpp_client.call("run", bundle, *words, *words[:2], "--types", types).returncode == 2


def test_token_types_are_refused_by_a_base_without_them(cpp_client: Client, small_bundle: Path) -> None:
    words = [*_ids(IDS[:3]), "--types", "0,0,0", "--adapter", "base"]
    cpp_client.refuses("no such input", "run", small_bundle, *words)


def _swapped(rows: list[dict[str, Any]]) -> None:
    """The answers of two rows of one adapter, as a client that mixes rows up gives them."""
    first, second = (row for row in rows if row["adapter"] == "topic")
    first["answer"], second["answer"] = second["answer"], first["answer"]


def _left(rows: list[dict[str, Any]]) -> None:
    """Padding before the tokens, of which no mask says anything."""
    inputs = rows[1]["inputs"]
    for name, fill in (("input_ids", 0), ("attention_mask", 1), ("token_type_ids", 0)):
        inputs[name] = [fill, *inputs[name]]


def _without_types(rows: list[dict[str, Any]]) -> None:
    row = next(row for row in rows if 1 in row["inputs"]["token_type_ids"])
    row["inputs"]["token_type_ids"] = [0] * len(row["inputs"]["token_type_ids"])


def _whole_context(rows: list[dict[str, Any]]) -> None:
    row = next(row for row in rows if row["adapter"] == "place")
    row["context"] = [0, len(row["inputs"]["input_ids"])]


FAULTS: Mapping[str, Callable[[list[dict[str, Any]]], None]] = {
    "rows that change places": _swapped,
    "padding on the left": _left,
    "token types that are all 0": _without_types,
    "the question as context": _whole_context,
}


def _with_batches(bundle: Path, document: dict[str, Any]) -> None:
    path = bundle / "golden" / "batches.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest.pop("checksum", None)
    manifest["golden_batches"] = "golden/batches.json"
    manifest["files"] = [vars(record) for record in list_files(bundle)]
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def batches(text_folder: Path) -> dict[str, Any]:
    """Golden batches of the bundle of texts, with the answers to golden texts, which are the reference's."""
    document = json.loads((text_folder / "bundle" / "golden" / "texts.json").read_text("utf-8"))
    rows = []
    for name in ("topic", "place", "follows"):
        found = next(one for one in document["sets"] if one["adapter"] == name)
        for text in [one for one in found["texts"] if one["answer"] and one["decided"]][:2]:
            inputs = {
                "input_ids": text["ids"],
                "attention_mask": [1] * len(text["ids"]),
                "token_type_ids": text["token_type_ids"],
            }
            kept = {key: text[key] for key in ("answer", "context", "decided")}
            rows.append({"adapter": name, "inputs": inputs, "absolute": found["absolute"], **kept})
    return {"version": "1.0.0", "reference": "torch", "batches": [{"name": "texts", "rows": rows}]}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_golden_batches_pass_and_detect_faults_of_batching(
    cpp_client: Client, text_folder: Path, batches: dict[str, Any], tmp_path: Path, fault: str | None
) -> None:
    """They hold, and one fault of how rows are put together is enough for them to fail."""
    bundle = shutil.copytree(text_folder / "bundle", tmp_path / "bundle")
    document = json.loads(json.dumps(batches))
    if fault is not None:
        FAULTS[fault](document["batches"][0]["rows"])
    _with_batches(bundle, document)
    if fault is not None:
        cpp_client.refuses("does not compute what the reference computed", "verify", bundle)
        return
    (found,) = [one for one in cpp_client.verify(bundle) if one["variant"] == "batches"]
    assert 0 < found["worst"] <= 1


def test_empty_or_malformed_golden_batches_are_refused(cpp_client: Client, text_folder: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(text_folder / "bundle", tmp_path / "bundle")
    _with_batches(bundle, {"version": "1.0.0", "reference": "torch", "batches": []})
    cpp_client.refuses("holds no golden batches", "verify", bundle)
    _with_batches(bundle, {"version": "1.0.0", "reference": "torch", "batches": [{"name": "a", "rows": [{}]}]})
    cpp_client.refuses("holds no golden batches", "verify", bundle)

"""The clients in Node and browsers answer each row independently of the rest of its request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import build_bundle
from clients import Client, alike, last_line
from once import once
from small_bundle import LENGTHS, build_small, small_tokenizer
from tiny_onnx import random_adapter

from adapter_export.graph.kinds import BottleneckOptions, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle, Session

STEPS = LENGTHS[1]
IDS = [2, 5, 6, 7, 12, 19, 3, 11]
"""As many tokens as one of these lengths."""

every_client = pytest.mark.parametrize("client", ["node_client", "browser_client"], indirect=True)


def _run(client: Client, bundle: Path, *words: str | Path) -> list[dict[str, Any]]:
    done = client.call("run", bundle, *words)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _arrays(folder: Path, ids: Sequence[Sequence[int]], mask: Sequence[Sequence[int]]) -> list[str]:
    """The option for arrays, `[batch, tokens]`."""
    path = folder / "arrays.json"
    path.write_text(json.dumps({"input_ids": ids, "attention_mask": mask}))
    return ["--inputs", str(path)]


def _texts(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--text", text)]


def _adapters(*names: str) -> list[str]:
    return [word for name in names for word in ("--adapter", name)]


def _alone(session: Session, ids: Sequence[int], adapter: str) -> dict[str, Any]:
    """The answer of Python to one row without padding."""
    row = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    return {"adapter": adapter, "task": "single_label", **session.classify(row, adapter)[0].document()}


@every_client
def test_rows_of_several_lengths_and_adapters_equal_single_runs(client: Client, small_bundle: Path) -> None:
    """An adapter that was loaded, strengths and weights among them."""
    texts = ["who wrote it", "a good book", "moon", "a dull film and a book", "who wrote it"]
    names = ["tone", "topic", "new", "fusion", "-"]
    load = ["--load", f"new={small_bundle / 'adapters' / 'tone.onnx_adapter'}"]
    found = _run(client, small_bundle, *_texts(*texts), *load, *_adapters(*names))
    reader = Bundle.open(small_bundle).texts()
    for at in (0, 1, 3):
        expected = reader.answer([texts[at]], names[at])[0].document()
        alike(found[at], {"adapter": names[at], "task": "single_label", **expected})
    assert [(row["adapter"], row["task"], set(row["outputs"])) for row in (found[2], found[4])] == [
        ("new", None, {"hidden", "logits"}),
        (None, None, {"hidden"}),
    ]
    scaled = _run(client, small_bundle, *_texts(*texts[:2]), *_adapters("tone"), "--strength", "0.5", "--strength", "1")
    halved = reader.answer(texts[:2], "tone", strength=[0.5, 1])
    alike(scaled, [{"adapter": "tone", "task": "single_label", **one.document()} for one in halved])
    shares = ["tone=0.25,mood=1.5", "tone=0.9,mood=-0.4"]
    words = [word for share in shares for word in ("--weights", share)]
    weighted = _run(client, small_bundle, *_texts(texts[3], texts[3]), *_adapters("fusion"), *words)
    assert weighted[1]["probability"] == pytest.approx(found[3]["probability"], abs=1e-5)
    (fixed,) = reader.answer([texts[3]], "fixed")
    alike(weighted[0], {"adapter": "fusion", "task": "single_label", **fixed.document()})


@every_client
@pytest.mark.parametrize("kept", ["inputs", "bank"])
def test_either_graph_answers_rows_of_several_adapters(client: Client, damaged_bundle: Path, kept: str) -> None:
    """A bundle with either of the graphs answers them."""
    texts, names = ["who wrote it", "a good book"], ["tone", "topic"]
    expected = _run(client, damaged_bundle, *_texts(*texts), *_adapters(*names))
    path = damaged_bundle / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    del manifest["checksum"]
    graphs = {name: manifest["graphs"][name] for name in ("slots", kept)}
    manifest.update(graphs=graphs, fanout=None, bank=manifest["bank"] if kept == "bank" else None)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    alike(_run(client, damaged_bundle, *_texts(*texts), *_adapters(*names)), expected)


@every_client
def test_padding_before_the_tokens_is_removed(client: Client, task_bundle: Path, tmp_path: Path) -> None:
    """Places of tokens are those in the caller's row; a hidden token between others stays where it is."""
    session = Bundle.open(task_bundle).session(threads=1)
    ids, mask = [0, 0, 0, *IDS, 0], [0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0]
    words = _arrays(tmp_path, [ids], [mask])
    alone = {"input_ids": np.array([IDS]), "attention_mask": np.array([mask[3:11]])}
    (tokens,) = _run(client, task_bundle, *words, *_adapters("token"))
    expected = session.answer(alone, "token")[0].document()["tokens"]
    alike(tokens["tokens"], [None] * 3 + expected + [None])
    assert expected[2] is None
    context = [0] * 3 + [0, 1, 1, 1, 1, 0, 0, 0] + [0]
    (span,) = _run(client, task_bundle, *words, *_adapters("span"), "--context", ",".join(map(str, context)))
    own = session.answer(alone, "span", context=[np.array(context[3:11], bool)])[0].document()
    own = {**own, "first_token": own["first_token"] + 3, "last_token": own["last_token"] + 3}
    alike(span, {"adapter": "span", "task": "span", **own})
    (base,) = _run(client, task_bundle, *words, *_adapters("base"))
    hidden = np.zeros((12, 16))
    hidden[3:11] = session.run(alone)["hidden"][0]
    np.testing.assert_allclose(base["outputs"]["hidden"], hidden, rtol=0, atol=1e-5)
    short = ["--context", ",".join(map(str, context[1:]))]
    client.refuses("is not a 0 or 1 for each token", "run", task_bundle, *words, *_adapters("span"), *short)


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
            tokenizer=small_tokenizer(),
            variants=["slots", "inputs", "bank"],
        )

    return once(tmp_path_factory, "gated_texts", make) / "gated"


SHORT = "who wrote it"
"""Five tokens, fewer than the base takes."""
CHANGES = "padding would change its result"


@every_client
def test_adapters_that_count_padding_run_on_unpadded_rows(client: Client, gated: Path, tmp_path: Path) -> None:
    """They are not padded to a length that the base takes, and padding that comes with them is removed."""
    manifest = Bundle.open(gated).manifest
    assert manifest.padding_neutral
    assert manifest.counts_padding
    session = Bundle.open(gated).session(threads=1)
    short, whole = _texts(SHORT), _texts("who wrote a good book ?")
    client.refuses(CHANGES, "run", gated, *short, *_adapters("gated"))
    client.refuses(CHANGES, "run", gated, *short, *_adapters("gated"), "--strength", "0.5")
    client.refuses("row 1", "run", gated, *short, *short, *_adapters("plain", "gated"))
    assert _run(client, gated, *short, *_adapters("plain"))
    assert _run(client, gated, *short, *_adapters("base"))
    assert _run(client, gated, *whole, *_adapters("gated"))
    padded = _arrays(tmp_path, [IDS + [0] * 8] * 2, [[1] * 8 + [0] * 8] * 2)
    found = _run(client, gated, *padded, *_adapters("gated", "plain"))
    alike(found, [_alone(session, IDS, name) for name in ("gated", "plain")])
    moved = _arrays(tmp_path, [[0] * 8 + IDS], [[0] * 8 + [1] * 8])
    for name in ("gated", "plain"):
        alike(_run(client, gated, *moved, *_adapters(name)), [_alone(session, IDS, name)])
    odd = _arrays(tmp_path, [IDS[:5] + [0] * 3], [[1] * 5 + [0] * 3])
    assert _run(client, gated, *odd, *_adapters("plain"))
    client.refuses(CHANGES, "run", gated, *odd, *_adapters("gated"))


@every_client
def test_loaded_adapters_that_count_padding_are_not_padded(client: Client, gated: Path) -> None:
    """Its tensors show it: nothing else is known of it."""
    for name, code in (("gated", 1), ("plain", 0)):
        load = ["--load", f"new={gated / 'adapters' / f'{name}.onnx_adapter'}"]
        done = client.call("run", gated, *_texts(SHORT), *load, *_adapters("new"))
        assert (done.returncode, CHANGES in done.stderr) == (code, code == 1)


@every_client
def test_rows_that_change_each_other_have_calls_of_their_own(client: Client, dependent: Path, tmp_path: Path) -> None:
    """Each row is bit-identical to its single run, also next to rows of other adapters, and with a strength."""
    assert not Bundle.open(dependent).manifest.batch_invariant
    rows = [[at + 1, 2 * at + 3, 5] for at in range(8)]
    names = ["a", "a", "b", "-"] * 2
    path = tmp_path / "arrays.json"

    def answers(rows: list[list[int]], names: Sequence[str], *more: str) -> list[dict[str, Any]]:
        path.write_text(json.dumps({"input_ids": rows}))
        return _run(client, dependent, "--inputs", path, *_adapters(*names), *more)

    for more in ([], ["--strength", "0.5"]):
        alone = [answers([row], [name], *more)[0] for row, name in zip(rows, names, strict=True)]
        assert answers(rows, names, *more) == alone
    assert answers(rows[:2], ["a"]) == [answers([row], ["a"])[0] for row in rows[:2]]


@every_client
def test_arrays_of_pairs_need_their_types(client: Client, text_folder: Path, tmp_path: Path) -> None:
    words = _arrays(tmp_path, [[101, 2040, 102, 2002, 102]], [[1] * 5])
    client.refuses(
        "`token_type_ids`: an input is missing", "run", text_folder / "bundle", *words, *_adapters("follows")
    )


@every_client
def test_golden_batches_are_replayed_and_must_be_listed(client: Client, text_folder: Path, tmp_path: Path) -> None:
    """They are replayed, and a file of them that is another one fails."""
    (found,) = [one for one in client.verify(text_folder / "bundle") if one["variant"] == "batches"]
    assert (found["adapter"], found["mixed"], found["passed"], found["faults"]) == (None, True, True, [])
    assert 0 < found["worst"] <= 1
    bundle = shutil.copytree(text_folder / "bundle", tmp_path / "bundle")
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    del manifest["checksum"]
    path.write_text(json.dumps({**manifest, "golden_batches": "golden/others.json"}), encoding="utf-8")
    client.refuses("names a file without a hash", "verify", bundle)
    path.write_text(json.dumps({**manifest, "golden_batches": None}), encoding="utf-8")
    assert not [one for one in client.verify(bundle) if one["variant"] == "batches"]


def test_golden_batches_show_the_mistakes_of_a_client(node_client: Client, text_folder: Path) -> None:
    """Each of `planted.mjs` gives a wrong answer to some row."""
    node, program = node_client.command
    script = replace(node_client.alone(), command=(node, str(Path(__file__).with_name("planted.mjs"))))
    done = script.call(Path(program).parent, text_folder / "bundle")
    assert done.returncode == 0, last_line(done)
    found: Mapping[str, Any] = json.loads(done.stdout)
    assert found["none"]["faults"] == []
    assert 0 < found["none"]["worst"] <= 1
    rows = {mistake: {fault["name"] for fault in one["faults"]} for mistake, one in found.items()}
    assert len(rows) == 6
    assert all(names for mistake, names in rows.items() if mistake != "none")
    assert rows["rows of one adapter in another order"] >= {"batch 1, row 0", "batch 1, row 1"}

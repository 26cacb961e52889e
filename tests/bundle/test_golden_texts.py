"""Golden texts: results of a tokenizer and a reference, and ways in which a bundle may differ."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from heard import Heard
from tampering import rehash
from text_bundle import LIMIT, LONGEST, TASKS
from transformers import AutoTokenizer

import adapter_export as ae
from adapter_export.bundle.proof.proof_plan import plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.report import Report
from adapter_export.bundle.texts import answer_faults
from adapter_export.errors import AdapterError, BaseModelError, FormatError
from adapter_export.format.adapter_files import read_adapter, write_adapter
from adapter_export.format.golden_texts import parse_golden_texts, read_golden_texts
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import read_manifest
from adapter_export.graph.tasks import Task
from adapter_export.text import Pair, Tokenizer, tokenizer_digest

SCHEMAS = Path(__file__).parents[2] / "schemas"
Change = Callable[[Path], None]
ONE_CASE: Mapping[str, Any] = {"variants": ["slots"], "cases": ["batch1_sequence1"], "quick": True}


@pytest.fixture(scope="module")
def made(text_folder: Path) -> Path:
    """Folder with `hf`, `model.pt`, `adapters/NAME` and `bundle`."""
    return text_folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy for tampering."""
    return shutil.copytree(made / "bundle", tmp_path / "bundle")


def replayed(folder: Path) -> Report:
    """Verify only the graph that answers texts."""
    return prove(plan_check(folder, variants=["slots"], quick=True), None)


def texts_of(report: Report) -> dict[str, Any]:
    return {one.subject: one for one in report.findings if one.check == "golden texts"}


@contextmanager
def edited_texts(folder: Path) -> Iterator[dict[str, Any]]:
    """Edit the golden texts of a bundle, and the hashes, as an attacker would."""
    file = folder / "golden" / "texts.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    yield document
    file.write_text(json.dumps(document), encoding="utf-8")
    rehash(folder)


def test_the_ids_are_those_of_transformers(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "hf")
    texts = read_golden_texts(made / "bundle" / "golden" / "texts.json")
    assert [one.adapter for one in texts.sets] == [None, *TASKS]
    assert len(texts.sets[0].texts) >= 40
    for one in texts.sets:
        task = None if one.adapter is None else TASKS[one.adapter]
        tokenizer.truncation_side = "right" if task is None else task.truncation
        limit = LONGEST if task is None else task.max_tokens or LONGEST
        prefix = "" if task is None else task.prefix
        for text in one.texts:
            parts = (prefix + text.text,) if text.pair is None else (text.text, text.pair)
            expected = tokenizer(*parts, truncation=True, max_length=limit)
            assert list(text.ids) == expected["input_ids"], (one.adapter, text.name)
            assert list(text.token_type_ids) == expected["token_type_ids"], (one.adapter, text.name)
        assert max(len(text.ids) for text in one.texts) == limit


def test_the_answers_are_those_of_torch(made: Path) -> None:
    """Compare with the torch module with the adapter attached, and arithmetic of this test."""
    base = ae.open_base(made / "model.pt")
    texts = {one.adapter: one for one in read_golden_texts(made / "bundle" / "golden" / "texts.json").sets}
    from adapter_export.torch_backend.torch_runner import TorchRunner

    runner = TorchRunner(base.torch)
    for name in ("topic", "tags", "likeness", "vector"):
        adapter = read_adapter(made / "adapters" / name)
        for text in texts[name].texts[:5]:
            ids = np.array([text.ids], np.int64)
            arrays = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.array([text.token_type_ids], np.int64),
            }
            outputs = runner.run(arrays, adapter)
            (result,) = outputs["embedding" if name == "vector" else "logits"].astype(np.float64)
            shares = np.exp(result) / np.exp(result).sum() if name == "topic" else 1 / (1 + np.exp(-result))
            assert text.answer is not None
            if name in ("likeness", "vector"):
                assert next(iter(text.answer.values())) == pytest.approx(list(result), abs=1e-6)
                continue
            assert list(text.answer["probabilities"]) == list(TASKS[name].labels)
            assert list(text.answer["probabilities"].values()) == pytest.approx(list(shares), abs=1e-6)
            if name == "topic":
                assert text.answer["label"] == TASKS[name].labels[int(result.argmax())]
            else:
                over = shares >= TASKS[name].thresholds
                chosen = [label for label, holds in zip(TASKS[name].labels, over, strict=True) if holds]
                assert text.answer["labels"] == chosen


def test_the_file_conforms_to_its_schema(made: Path) -> None:
    schema = json.loads((SCHEMAS / "golden-texts.schema.json").read_text(encoding="utf-8"))
    document = json.loads((made / "bundle" / "golden" / "texts.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema)
    document["sets"][1]["texts"][0]["ids"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)
    with pytest.raises(FormatError, match=r"sets\[1\]\.texts\[0\]\.ids"):
        parse_golden_texts(json.dumps(document).encode(), "x")


def test_verify_replays_golden_texts(made: Path) -> None:
    report = ae.verify(made / "bundle")
    assert report.passed
    found = texts_of(report)
    assert list(found) == ["base", *TASKS]
    assert found["base"].detail == "62 texts, ids equal"
    for name in TASKS:
        assert "ids equal" in found[name].detail
        assert "answers within" in found[name].detail


def test_verify_notes_uncompared_ids_without_the_tokenizer_library(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    report = ae.verify(made / "bundle")
    assert report.passed
    for one in texts_of(report).values():
        assert "ids not compared: `tokenizers` is not installed" in one.detail


def _tokenizer(change: Callable[[dict[str, Any]], None]) -> Change:
    def planted(folder: Path) -> None:
        file = folder / "tokenizer.json"
        document = json.loads(file.read_text(encoding="utf-8"))
        change(document)
        text = json.dumps(document)
        file.unlink()
        file.write_text(text, encoding="utf-8")
        digest = tokenizer_digest(text)

        def changed(manifest: Manifest) -> Manifest:
            assert manifest.text is not None
            return replace(manifest, text=replace(manifest.text, digest=digest))

        rehash(folder, changed)

    return planted


def _cased(document: dict[str, Any]) -> None:
    document["normalizer"]["lowercase"] = False


def _bare(document: dict[str, Any]) -> None:
    document["post_processor"] = None


def _short(folder: Path) -> None:
    def changed(manifest: Manifest) -> Manifest:
        return replace(manifest, lengths={"sequence": Lengths(1, 100)})

    rehash(folder, changed)


def _task(name: str, change: Callable[[Task], Task]) -> Change:
    """Change the record of an adapter in all its places."""

    def planted(folder: Path) -> None:
        source = folder / "adapters" / name
        adapter = read_adapter(source)
        assert adapter.head is not None
        assert adapter.head.task is not None
        task = change(adapter.head.task)
        shutil.rmtree(source)
        write_adapter(replace(adapter, head=replace(adapter.head, task=task)), source)
        rehash(
            folder,
            lambda manifest: replace(
                manifest,
                adapters=tuple(
                    replace(record, task=task) if record.name == name else record for record in manifest.adapters
                ),
            ),
        )

    return planted


FAULTS: dict[str, tuple[Change, dict[str, str]]] = {
    "does not lowercase": (
        _tokenizer(_cased),
        {"base": "`plain`: ids found 101 100 2521", "topic": "ids found", "tokenizer": "made with the tokenizer"},
    ),
    "without special tokens": (
        _tokenizer(_bare),
        {"base": "62 of 62 texts differ; `plain`: ids found 2129 2521", "vector": "ids found"},
    ),
    "a limit of 100": (_short, {"base": "(100 tokens), expected"}),
    "rotated labels": (
        _task("topic", lambda task: replace(task, labels=("b", "c", "a"))),
        {"topic": "52 of 52 texts differ; `plain`: `label` found "},
    ),
    "rotated labels of tokens": (
        _task("words", lambda task: replace(task, labels=("NAME", "O"))),
        {"words": "52 of 52 texts differ; `plain`: `tokens[0].label` found "},
    ),
    "trained at 24, served at all": (
        _task("topic", lambda task: replace(task, max_tokens=None)),
        {"topic": f"29536 2271 1029 102 (27 tokens), expected … 15068 3802 2229 1011 102 ({LIMIT} tokens)"},
    ),
    "cut on the other side": (
        _task("tags", lambda task: replace(task, truncation="right")),
        {"tags": "12 of 52 texts differ; `french`: ids found 101 "},
    ),
    "without a prefix": (
        _task("vector", lambda task: replace(task, prefix="")),
        {"vector": "52 of 52 texts differ; `plain`: ids found 101 2129"},
    ),
    "other thresholds": (
        _task("tags", lambda task: replace(task, thresholds=(0.9, 0.9, 0.9))),
        {"tags": "`labels` found []"},
    ),
    "texts for pairs": (
        _task("follows", lambda task: replace(task, input="text")),
        {"follows": "is rejected: text: is of another kind than the task takes"},
    ),
}


TOGETHER = (
    ("does not lowercase",),
    ("without special tokens",),
    ("a limit of 100",),
    ("rotated labels", "rotated labels of tokens", "cut on the other side", "without a prefix", "texts for pairs"),
    ("trained at 24, served at all", "other thresholds"),
)
"""Changes of different adapters in one bundle: each is reported for its adapter."""


@pytest.mark.parametrize("faults", TOGETHER, ids=", ".join)
def test_each_fault_is_found_and_named(bundle: Path, faults: Sequence[str]) -> None:
    expected: dict[str, str] = {}
    for plant, words in map(FAULTS.__getitem__, faults):
        assert not expected.keys() & words.keys()
        plant(bundle)
        expected |= words
    report = replayed(bundle)
    assert not report.passed
    found = {name: one for name, one in texts_of(report).items() if not one.passed}
    for subject, words in expected.items():
        assert words in found[subject].detail
    if not expected.keys() & {"base", "tokenizer"}:  # nothing else is reported
        assert found.keys() == expected.keys()
    assert all(len(one.detail) < 500 for one in found.values())


def test_every_fault_is_planted() -> None:
    assert sorted(fault for faults in TOGETHER for fault in faults) == sorted(FAULTS)


def test_check_detects_rotated_labels(bundle: Path, made: Path) -> None:
    FAULTS["rotated labels"][0](bundle)
    report = ae.check(bundle, against=made / "model.pt", only=["topic"], **ONE_CASE)
    assert not texts_of(report)["topic"].passed
    assert not report.passed


def test_check_names_the_axis_that_takes_less_than_the_texts(bundle: Path, made: Path) -> None:
    FAULTS["a limit of 100"][0](bundle)
    report = ae.check(bundle, against=made / "model.pt", only=["base"], **ONE_CASE)
    (owed,) = [owed for owed in report.findings if owed.id == "manifest/lengths"]
    assert (owed.status, owed.where) == ("failed", "manifest.json: lengths.sequence")
    assert owed.detail == f"maximum 100 tokens; longest golden text {LONGEST}"


def test_check_compares_with_the_tokenizer_of_the_model(bundle: Path, made: Path) -> None:
    """Even if the golden texts are forged."""
    report = ae.check(bundle, against=made / "model.pt", only=["base", "topic"], **ONE_CASE)
    assert report.passed
    assert texts_of(report)["model"].detail == "the ids of 114 texts match the model's own tokenizer"
    _tokenizer(_cased)(bundle)
    digest = read_manifest(bundle).text.digest  # type: ignore[union-attr]
    forged = Tokenizer.from_folder(bundle, LONGEST)
    with edited_texts(bundle) as document:
        document["digest"] = digest
        for one in document["sets"]:
            task = TASKS[one["adapter"]] if one["adapter"] else None
            for text in one["texts"]:
                piece = (task.prefix if task else "") + text["text"]
                (row,) = forged.rows(
                    [piece if text["pair"] is None else Pair(text["text"], text["pair"])],
                    limits=[task.max_tokens if task else None],
                    sides=[task.truncation if task else "right"],
                )
                text |= {"ids": row.encoding.ids, "token_type_ids": row.encoding.type_ids, "answer": None}
    report = ae.check(bundle, against=made / "model.pt", only=["base", "topic"], **ONE_CASE)
    found = {one.subject: one for one in report.findings if one.status == "failed"}
    assert found.keys() == {"topic", "model"}
    assert found["topic"].check == "task"
    assert found["topic"].detail.startswith("was trained with the tokenizer ")
    assert "texts unlike the model's own tokenizer; base, `plain`: ids found" in found["model"].detail


def test_ids_are_those_that_transformers_made_at_capture(made: Path, tmp_path: Path) -> None:
    base = ae.open_base(made / "model.pt")
    assert base.texts is not None
    assert base.texts.tokenizer.startswith("transformers ")
    written = read_golden_texts(made / "bundle" / "golden" / "texts.json")
    assert written.tokenizer == base.texts.tokenizer
    assert written.sets[0].texts == base.texts.sets[0].texts


def test_a_folder_whose_two_tokenizers_differ_is_named_and_not_built(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "hf", tmp_path / "hf")
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    _cased(document)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    heard = Heard()
    base = ae.capture(folder, tmp_path / "model.pt", reporter=heard)
    notes = heard.notes
    (note,) = notes
    assert "and transformers disagree on the ids of 32 of 62 texts (`plain`, `upper case`, `mixed case` …)" in note
    adapter = read_adapter(made / "adapters" / "topic")
    assert adapter.head is not None
    assert adapter.head.task is not None
    head = replace(adapter.head, task=replace(adapter.head.task, tokenizer=None))
    with pytest.raises(BaseModelError, match="own library; found different ids for 32"):
        ae.build(base, [replace(adapter, head=head)], tmp_path / "b")


def test_answers_of_other_weights_are_found(bundle: Path) -> None:
    """Another adapter's tensors, whose golden vectors are not compared here, give other answers."""
    with edited_texts(bundle) as document:
        topic = document["sets"][1]
        topic["texts"][3]["answer"]["probabilities"]["a"] += 10 * topic["absolute"]
    detail = texts_of(replayed(bundle))["topic"].detail
    assert detail.startswith("1 of 52 texts differs; `mixed case`: `probabilities.a` found ")


def test_a_set_that_is_gone_is_missed(bundle: Path) -> None:
    with edited_texts(bundle) as document:
        document["sets"] = [one for one in document["sets"] if one["adapter"] != "tags"]
    found = texts_of(replayed(bundle))["tags"]
    assert (found.status, found.detail) == ("failed", "none for this adapter")
    with pytest.raises(FormatError, match="a tokenizer and golden texts require each other"):
        rehash(bundle, lambda manifest: replace(manifest, golden_texts=None))


def test_all_sets_that_are_gone_are_missed(bundle: Path, made: Path) -> None:
    with edited_texts(bundle) as document:
        document["sets"] = []
    assert not ae.check(bundle, against=made / "model.pt", only=["base"], **ONE_CASE).passed


def test_another_tokenizer_is_refused_when_an_adapter_names_its_own(made: Path, tmp_path: Path) -> None:
    document = json.loads((made / "hf" / "tokenizer.json").read_text(encoding="utf-8"))
    _cased(document)
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(AdapterError, match="adapter `topic`: was trained with another tokenizer"):
        ae.build(made / "model.pt", [made / "adapters" / "topic"], tmp_path / "b", tokenizer=other)
    assert not (tmp_path / "b").exists()


def test_a_limit_below_that_of_an_adapter_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter `topic`: was trained on longer texts .*found at most 8 tokens"):
        ae.build(made / "model.pt", [made / "adapters" / "topic"], tmp_path / "b", max_tokens=8)
    assert not (tmp_path / "b").exists()


def test_golden_texts_follow_added_and_removed_adapters(bundle: Path, made: Path) -> None:
    before = read_golden_texts(bundle / "golden" / "texts.json")
    ae.remove(bundle, ["topic", "words"])
    fewer = read_golden_texts(bundle / "golden" / "texts.json")
    assert fewer.sets == tuple(one for one in before.sets if one.adapter not in ("topic", "words"))
    ae.add(bundle, [made / "adapters" / "topic"], against=made / "model.pt")
    after = read_golden_texts(bundle / "golden" / "texts.json")
    assert after.sets == (*fewer.sets, before.sets[1])
    assert ae.verify(bundle).passed
    assert ae.open_bundle(bundle).manifest.golden_texts == "golden/texts.json"


def test_results_near_a_tie_are_undecided() -> None:
    single, several, span = Task("single_label", ("a", "b")), Task("multi_label", ("a", "b")), TASKS["place"]
    context = np.array([False, False, False, True, True, True, False])
    logits = np.zeros((len(context), 2), np.float32)
    logits[3, 0], logits[4, 1] = 1.0, 1.0
    cases: list[tuple[Task, np.ndarray, bool]] = [
        (single, np.array([0.0, 0.3], np.float32), True),
        (single, np.array([0.0, 0.1], np.float32), False),
        (several, np.array([2.0, -2.0], np.float32), True),
        (several, np.array([2.0, 0.1], np.float32), False),
        (Task("token", ("a", "b")), np.array([[0, 1], [0, 0.1]], np.float32), False),
        (span, logits, True),
        (span, logits * 0.1, False),
    ]
    for task, result, expected in cases:
        assert task.is_decided(result, 0.1, context) is expected, (task.type, result)


def test_differences_between_answers_are_described() -> None:
    def faults(found: Any, expected: Any, *, decided: bool = True) -> list[str]:
        return list(answer_faults(found, expected, 0.01, decided=decided))

    one = {"label": "a", "probability": 0.6, "probabilities": {"a": 0.6, "b": 0.4}}
    assert faults(one, one) == []
    assert faults({**one, "probability": 0.609}, one) == []
    assert faults({**one, "probability": 0.62}, one) == ["`probability` found 0.62, expected 0.6, budget 1.0e-02"]
    assert faults({**one, "probability": float("nan")}, one) != []
    assert faults({**one, "label": "b"}, one) == ["`label` found b, expected a"]
    assert faults({**one, "label": "b"}, one, decided=False) == []
    assert faults({**one, "probabilities": {"a": 0.6}}, one) == ["`probabilities` has a, expected a, b"]
    assert faults({"labels": ["a"]}, {"labels": []}) == ["`labels` found ['a'], expected []"]
    assert faults({"tokens": [None, one]}, {"tokens": [one, one]}) != []
    assert faults({"numbers": [1.0]}, {"numbers": [1.0, 2.0]}) == ["`numbers` has 1 value, expected 2"]
    span = {"first_token": 3, "last_token": 5, "probability": 0.5}
    assert faults({**span, "last_token": 4}, span) == ["`last_token` found 4, expected 5"]

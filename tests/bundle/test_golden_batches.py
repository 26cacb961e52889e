"""Golden batches: separate answers of the reference, and the mistakes of bundles or clients that they expose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from building import build_bundle, in_precision
from jsonschema import Draft202012Validator
from make_schemas import schema_text
from small_bundle import Built, build_small
from tampering import rehash
from text_bundle import TASKS
from tiny_onnx import VOCABULARY, random_adapter, save_tiny, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import adapter_export as ae
from adapter_export.bundle.change import add_adapters, remove_adapters
from adapter_export.bundle.proof.proof_plan import plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.texts import answer_faults
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.check_report import Finding
from adapter_export.format.golden_batches import GoldenBatches, GoldenBatchRow, read_golden_batches
from adapter_export.format.golden_texts import read_golden_texts
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import read_manifest
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, houlsby, pfeiffer
from adapter_export.graph.tasks.types.span import LONGEST_SPAN
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import LENGTHS_KEY, OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle

GATED = pfeiffer(BottleneckOptions(gate=True))
Inputs = dict[str, np.ndarray]


def batches_of(folder: Path) -> GoldenBatches:
    path = read_manifest(folder).golden_batches
    assert path is not None
    return read_golden_batches(folder / path)


def rows_of(folder: Path) -> list[GoldenBatchRow]:
    return [row for batch in batches_of(folder).batches for row in batch.rows]


def replayed(folder: Path, variants: Sequence[str] = ()) -> Finding:
    report = prove(plan_check(folder, quick=True, variants=variants), None)
    (found,) = [one for one in report.findings if one.check == "golden batches"]
    return found


@contextmanager
def edited_batches(folder: Path) -> Iterator[dict[str, Any]]:
    """Edit the golden batches of a bundle, and the hashes, as an attacker would."""
    file = folder / "golden" / "batches.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    yield document
    file.write_text(json.dumps(document), encoding="utf-8")
    rehash(folder)


def numbers_of(answer: Mapping[str, Any], name: str) -> Any:
    """Return the numbers of an answer, computed from a result by this test."""
    task = TASKS[name]
    if task.type == "token":
        return [[one["probabilities"][label] for label in task.labels] for one in answer["tokens"]]
    if "probabilities" in answer:
        return [answer["probabilities"][label] for label in task.labels]
    return next(iter(answer.values())) if "score" not in answer else [answer["score"]]


def expected_numbers(result: np.ndarray, name: str) -> Any:
    task = TASKS[name]
    if task.type in ("single_label", "token"):
        return (np.exp(result) / np.exp(result).sum(-1, keepdims=True)).tolist()
    return (1 / (1 + np.exp(-result))).tolist() if task.type == "multi_label" else result.tolist()


def best_span(result: np.ndarray, places: range) -> tuple[int, int]:
    pairs = [(first, last) for first in places for last in places if 0 <= last - first < LONGEST_SPAN]
    return max(pairs, key=lambda pair: result[pair[0], 0] + result[pair[1], 1])


@pytest.fixture(scope="module")
def results(text_folder: Path) -> list[tuple[GoldenBatchRow, np.ndarray | None]]:
    """Return each row with torch's separate result for it; `None` for the base."""
    from adapter_export.torch_backend.torch_runner import TorchRunner

    runner = TorchRunner(ae.open_base(text_folder / "model.pt").torch)
    found: list[tuple[GoldenBatchRow, np.ndarray | None]] = []
    for row in rows_of(text_folder / "bundle"):
        inputs = {name: row.array(name) for name in row.inputs}
        adapter = None if row.adapter is None else read_adapter(text_folder / "adapters" / row.adapter)
        outputs = runner.run(inputs, adapter)
        names = [name for name in ("logits", "token_logits", "embedding") if name in outputs]
        found.append((row, outputs[names[0]][0].astype(np.float64) if names else None))
    return found


def test_answers_are_those_of_torch_for_each_row_alone(
    results: list[tuple[GoldenBatchRow, np.ndarray | None]],
) -> None:
    names = [None, *TASKS]
    assert [row.adapter for row, _ in results] == names[:6] * 3 + names[6:] * 3
    for row, result in results:
        if row.adapter is None or result is None:
            assert list(row.answer) == ["outputs"]
            continue
        assert row.absolute < 1e-4
        task = TASKS[row.adapter]
        if task.type == "span":
            assert row.context is not None
            span = best_span(result, range(*row.context))
            assert (row.answer["first_token"], row.answer["last_token"]) == span
        else:
            assert row.context is None
            assert np.allclose(numbers_of(row.answer, row.adapter), expected_numbers(result, row.adapter), atol=1e-5)
        if task.type == "single_label":
            assert row.answer["label"] == task.labels[int(result.argmax())]


def test_rows_differ_in_length_and_have_token_types(text_folder: Path) -> None:
    for name in TASKS:
        own = [row for row in rows_of(text_folder / "bundle") if row.adapter == name]
        assert len({len(row.inputs["input_ids"]) for row in own}) == 3
        assert all(set(row.inputs["token_type_ids"]) == {0, 1} for row in own)
        assert all(set(row.inputs["attention_mask"]) == {1} for row in own)
    shared = [row.inputs["input_ids"] for row in rows_of(text_folder / "bundle") if len(row.inputs["input_ids"]) == 6]
    assert len(shared) == len(TASKS)
    assert all(ids == shared[0] for ids in shared), "only the adapter distinguishes these rows"


def test_the_span_without_its_context_lies_outside(
    results: list[tuple[GoldenBatchRow, np.ndarray | None]],
) -> None:
    asked = [(row, result) for row, result in results if row.context is not None]
    assert len(asked) == 3
    for row, result in asked:
        assert result is not None
        assert best_span(result, range(len(result))) != (row.answer["first_token"], row.answer["last_token"])


def test_the_file_conforms_to_its_schema(text_folder: Path) -> None:
    document = json.loads((text_folder / "bundle" / "golden" / "batches.json").read_text(encoding="utf-8"))
    assert list(Draft202012Validator(json.loads(schema_text("golden-batches"))).iter_errors(document)) == []


def padded_before(inputs: Inputs) -> Inputs:
    return {name: np.pad(array, [(0, 0), (4, 0)]) for name, array in inputs.items()}


def without_types(inputs: Inputs) -> Inputs:
    return {**inputs, "token_type_ids": np.zeros_like(inputs["token_type_ids"])}


@pytest.mark.parametrize("mistake", [padded_before, without_types])
def test_every_row_shows_a_mistake_with_its_inputs(text_folder: Path, mistake: Callable[[Inputs], Inputs]) -> None:
    """Test the unmodified graph with left padding, which shifts positions, or without token types."""
    session = Bundle.open(text_folder / "bundle").session()
    for row in rows_of(text_folder / "bundle"):
        if row.adapter is None:
            continue
        inputs = {name: row.array(name) for name in row.inputs}
        right, wrong = (
            session.run(one, row.adapter, allow_padding=True)[str(session.output(row.adapter))][0]
            for one in (inputs, mistake(inputs))
        )
        wrong = wrong[-len(right) :] if TASKS[row.adapter].type in ("token", "span") else wrong
        if row.context is not None:  # only positions may stay the same
            continue
        found = expected_numbers(wrong.astype(np.float64), row.adapter)
        same = np.abs(np.subtract(found, numbers_of(row.answer, row.adapter))).max() <= row.absolute
        assert not same, (row.adapter, mistake.__name__)


def test_rows_that_are_mixed_up_are_seen(text_folder: Path) -> None:
    rows = rows_of(text_folder / "bundle")
    for one in rows:
        for other in rows:
            if one is not other:
                assert list(answer_faults(one.answer, other.answer, other.absolute, decided=other.decided))


def test_verify_replays_golden_batches_in_every_graph(text_folder: Path) -> None:
    said = f"{3 * (len(TASKS) + 1)} rows in 2 requests, each matches the reference's separate answer"
    assert replayed(text_folder / "bundle") == Finding.tested("golden batches", "bundle", True, said)
    assert replayed(text_folder / "bundle", ["slots"]).detail == said
    assert replayed(text_folder / "bundle", ["bank"]).detail == f"{3 * (len(TASKS) + 1)} rows, not run"


@pytest.fixture
def text_copy(text_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(text_folder / "bundle", tmp_path / "bundle")


def test_an_answer_of_another_row_is_found_and_named(text_copy: Path) -> None:
    with edited_batches(text_copy) as document:
        rows = document["batches"][0]["rows"]
        rows[1]["answer"], rows[7]["answer"] = rows[7]["answer"], rows[1]["answer"]
    found = replayed(text_copy)
    assert found.status == "failed"
    assert found.detail.startswith("2 of 30 rows differ; `batch 1`, row 1 (`topic`): `")
    report = ae.verify(text_copy)
    assert not report.passed
    assert [owed.id for owed in report.findings if owed.status == "failed"] == ["golden-batches/bundle"]


def test_a_row_of_an_unknown_adapter_is_refused(text_copy: Path) -> None:
    with edited_batches(text_copy) as document:
        document["batches"][0]["rows"][3]["adapter"] = "nobody"
    assert "`batch 1` is rejected: `batch 1`, row 3, adapter `nobody`: is not loaded" in replayed(text_copy).detail


def test_a_task_that_was_changed_is_found(text_copy: Path) -> None:
    def rotated(manifest: Manifest) -> Manifest:
        (topic,) = [record for record in manifest.adapters if record.name == "topic"]
        assert topic.task is not None
        other = replace(topic, task=replace(topic.task, labels=("b", "c", "a")))
        return replace(manifest, adapters=tuple(other if one is topic else one for one in manifest.adapters))

    rehash(text_copy, rotated)
    session = Bundle.open(text_copy)  # without the sources, which would show it before anything runs
    from adapter_export.bundle.bundle_reader import OpenedBundle
    from adapter_export.bundle.golden.golden_batches import replay_batches

    opened = OpenedBundle(Bundle(text_copy, session.manifest, verified=False))
    found = replay_batches(opened, batches_of(text_copy), [None, *TASKS], list(session.manifest.graphs))
    assert found.detail.startswith("3 of 30 rows differ; `batch 1`, row 1 (`topic`): `label` found ")


def tiny_base(folder: Path, lengths: Lengths | None = None) -> OnnxBase:
    model = tiny_model()
    if lengths is not None:
        said = {"lengths": {"tokens": asdict(lengths)}, "pads": True}
        model.metadata_props.add(key=LENGTHS_KEY, value=json.dumps(said))
    return open_onnx(save_tiny(folder, model))


def gated_adapters(base: OnnxBase) -> list[Adapter]:
    return [random_adapter("gated", GATED, base, labels="ab"), random_adapter("plain", pfeiffer(), base, labels="xyz")]


def build(base: OnnxBase, adapters: Sequence[Adapter], folder: Path, **settings: Any) -> Manifest:
    cases = input_cases(base.inputs, seed=0, lengths=base.lengths)
    return build_bundle(base, adapters, folder, references=CutRunner(base), cases=cases, **settings)


@pytest.mark.parametrize("lengths", [None, Lengths(8, 40, 8)])
def test_golden_batches_expose_hidden_padding_dependence(tmp_path: Path, lengths: Lengths | None) -> None:
    """A client then pads the shorter of two rows, which changes the mean over all tokens that opens the gate."""
    base = tiny_base(tmp_path, lengths)
    manifest = build(base, gated_adapters(base), tmp_path / "bundle", variants=[] if lengths else None)
    assert manifest.padding_neutral
    assert manifest.counts_padding
    sizes = [len(row.inputs["input_ids"]) for row in rows_of(tmp_path / "bundle") if row.adapter == "gated"]
    assert len(set(sizes)) > 1
    assert replayed(tmp_path / "bundle").passed
    rehash(tmp_path / "bundle", lambda one: replace(one, counts_padding=()))
    found = replayed(tmp_path / "bundle")
    assert found.status == "failed"
    assert "(`gated`): " in found.detail


def test_padding_dependent_adapters_have_no_answers_for_padded_texts(tmp_path: Path) -> None:
    """Their ids are compared; a client refuses to answer them."""
    words = Tokenizer(WordLevel({f"w{at}": at for at in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    base = tiny_base(tmp_path, Lengths(8, 40, 8))
    manifest = build(base, gated_adapters(base), tmp_path / "bundle", variants=[], tokenizer=words.to_str())
    assert manifest.padding_neutral
    sets = {one.adapter: one for one in read_golden_texts(tmp_path / "bundle" / "golden" / "texts.json").sets}
    answered = {name: [len(text.ids) for text in sets[name].texts if text.answer] for name in ("gated", "plain")}
    assert {length % 8 for length in answered["gated"]} == {0}
    assert {length % 8 for length in answered["plain"]} > {0}
    assert len(sets["gated"].texts) == len(sets["plain"].texts) > len(answered["gated"])


def test_golden_batches_expose_a_base_that_counts_padding(tmp_path: Path) -> None:
    folder = build_small(tmp_path, counts_padding=True).folder
    assert not read_manifest(folder).padding_neutral
    assert replayed(folder).passed
    rehash(folder, lambda one: replace(one, padding_neutral=True))
    assert replayed(folder).status == "failed"


def test_golden_batches_expose_a_base_that_mixes_rows(tmp_path: Path) -> None:
    """The mask is scaled by the batch's largest id, so a manifest with `batch_invariant` is wrong."""
    mask = """
    numbers = Cast <to = 1> (input_ids)
    largest = ReduceMax <axes = [0, 1]> (numbers)
    penalty = Div(numbers, largest)
    axis = Constant <value = int64[1] {1}> ()
    bias = Unsqueeze(penalty, axis)
    """
    model = tiny_model(inputs="int64[batch, tokens] input_ids", mask=mask)
    base = open_onnx(save_tiny(tmp_path, model))
    adapters = [random_adapter(name, pfeiffer(), base, labels="ab") for name in "abcd"]
    assert not build(base, adapters, tmp_path / "bundle").batch_invariant
    assert replayed(tmp_path / "bundle").passed
    rehash(tmp_path / "bundle", lambda one: replace(one, batch_invariant=True))
    assert replayed(tmp_path / "bundle").status == "failed"


def test_a_base_of_one_length_has_rows_of_that_length(tmp_path: Path) -> None:
    built = build_small(tmp_path, ["slots"], lengths=Lengths(16, 16))
    assert {len(row.inputs["ids"]) for row in rows_of(built.folder)} == {16}


def test_bases_with_float_inputs_have_no_golden_batches(tmp_path: Path) -> None:
    text = tiny_model()
    names = {value.name for value in text.graph.input}
    assert "input_ids" in names
    base = tiny_base(tmp_path)
    floats = replace(base, inputs=tuple(replace(one, dtype="float32") for one in base.inputs))
    from adapter_export.bundle.bundle_reader import OpenedBundle
    from adapter_export.bundle.golden.golden_batches import BatchMaker

    manifest = build(base, [random_adapter("a", pfeiffer(), base, labels="ab")], tmp_path / "bundle")
    opened = OpenedBundle.open(tmp_path / "bundle", copy=False)
    maker = BatchMaker(replace(manifest, inputs=floats.inputs), CutRunner(base), None, {}, opened)  # type: ignore[arg-type]
    assert maker.make(None, [], []) is None  # type: ignore[arg-type]


def test_labels_that_are_exchanged_show_in_8_bits(tmp_path: Path) -> None:
    """In three rows the numbers of `v` and `w` are too close; a fourth row is included because its answer is `w`."""
    from adapter_export.bundle.bundle_reader import OpenedBundle
    from adapter_export.bundle.golden.golden_batches import replay_batches

    folder, base = tmp_path / "bundle", in_precision(tiny_base(tmp_path), "int8", tmp_path)
    manifest = build(base, [random_adapter("f", houlsby(), base, bottleneck=4, labels="uvw")], folder)
    rows = [row for row in rows_of(folder) if row.adapter == "f"]
    assert [row.answer["label"] for row in rows if row.decided] == ["u", "u", "u", "w"]
    (record,) = manifest.adapters
    assert record.task is not None
    exchanged = replace(record, task=replace(record.task, labels=("u", "w", "v")))
    wrong = OpenedBundle(Bundle(folder, replace(manifest, adapters=(exchanged,)), verified=False))
    found = replay_batches(wrong, batches_of(folder), ["f"], ["slots", "bank"])
    assert not found.passed
    assert "1 of 4 rows differ" in found.detail


def test_two_builds_write_the_same_file(built: Built, tmp_path: Path) -> None:
    again = build_small(tmp_path).folder
    assert (again / "golden/batches.json").read_bytes() == (built.folder / "golden/batches.json").read_bytes()


def test_golden_batches_follow_added_and_removed_adapters(tmp_path: Path) -> None:
    """The result matches a build with all adapters; removing the last rows removes the file."""
    base = tiny_base(tmp_path)
    adapters = [random_adapter(name, pfeiffer(), base, labels="ab") for name in ("a", "b", "c")]
    build(base, adapters, tmp_path / "all")
    build(base, adapters[:2], tmp_path / "bundle")
    add_adapters(tmp_path / "bundle", adapters[2:], references=CutRunner(base))
    assert batches_of(tmp_path / "bundle") == batches_of(tmp_path / "all")
    remove_adapters(tmp_path / "bundle", ["a"])
    build(base, adapters[1:], tmp_path / "rest")
    assert batches_of(tmp_path / "bundle") == batches_of(tmp_path / "rest")
    assert replayed(tmp_path / "bundle").passed


def test_many_adapters_are_dealt_to_several_batches(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    adapters = [random_adapter(f"a{at}", pfeiffer(), base, labels="ab") for at in range(40)]
    build(base, adapters, tmp_path / "bundle", variants=[])
    batches = batches_of(tmp_path / "bundle").batches
    assert [len(batch.rows) for batch in batches] == [18] * 6 + [15]
    assert [batch.name for batch in batches] == [f"batch {at}" for at in range(1, 8)]
    assert {row.adapter for row in rows_of(tmp_path / "bundle")} == {None, *(adapter.name for adapter in adapters)}


def test_torch_is_the_reference(text_folder: Path) -> None:
    assert batches_of(text_folder / "bundle").reference == f"torch {torch.__version__.partition('+')[0]} float32"

"""Sparse embeddings and a vector per token: captured, trained, imported and served, compared with the library."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bodies import checked
from heard import Heard
from once import once
from served import made_app
from small_embedders import DOCUMENTS, QUERIES, library, save_colbert, save_splade
from small_models import traced_once
from starlette.testclient import TestClient
from tiers import extended

import adapter_export as ae
from adapter_export.errors import InputError, UsageError
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.tasks.answers import SparseVector, TokenVectors
from adapter_export.graph.tasks.types.multi_vector import maxsim
from adapter_export.runtime.answerer import Reading
from adapter_export.text import SidedText, TextSide

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, in the library
CLOSE = 1e-5
NOUNS = ("film", "play", "a film", "the play")


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    with traced_once():
        yield


@pytest.fixture(scope="session")
@extended
def embedders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`NAME`, `NAME.pt` and `NAME-bundle` of both models, with a LoRA of PEFT and the adapter `NAME-trained`."""
    return once(tmp_path_factory, "embedders", _make)


def _make(root: Path) -> None:
    save_splade(root / "splade")
    save_colbert(root / "colbert")
    rows = [
        {"text": f"{word} {noun}", "pair": f"this {noun} was {word}, and very {word}."}
        for noun in NOUNS
        for word in ("good", "fine", "bad", "dull")
    ]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    markers = {"query_prefix": "[Q] ", "document_prefix": "[D] "}
    for name, task, options in (("splade", "sparse_embedding", {}), ("colbert", "multi_vector", markers)):
        base = ae.capture(root / name, root / f"{name}.pt")
        _save_lora(root, name)
        ae.import_peft(root / f"{name}-peft", base, root / "adapters" / f"{name}-lora", name="lora", task=task)
        ae.train(
            base,
            root / "pairs.jsonl",
            pair="pair",
            task=task,
            kind="pfeiffer",
            bottleneck=4,
            head="base",
            epochs=2,
            batch_size=8,
            output=root / f"{name}-trained",
            **options,
        )
        ae.build(base, [root / "adapters" / f"{name}-lora", root / f"{name}-trained"], root / f"{name}-bundle")


def _save_lora(root: Path, name: str) -> None:
    """Save a LoRA with random weights with PEFT, and the embeddings of the library with it."""
    from peft import LoraConfig, get_peft_model

    model = _library_model(root, name)
    tuned = get_peft_model(model[0].model, LoraConfig(r=2, target_modules=["query", "value"]))
    torch.manual_seed(3)
    for key, parameter in tuned.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(str(root / f"{name}-peft"))
    np.savez(root / f"{name}-lora.npz", *_embedded(model, "document", DOCUMENTS))


def _library_model(root: Path, name: str) -> Any:
    model_class = library().SparseEncoder if name == "splade" else library().MultiVectorEncoder
    return model_class(str(root / name), device="cpu", local_files_only=True)


def _embedded(model: Any, side: TextSide, texts: list[str]) -> list[np.ndarray]:
    if type(model).__name__ == "SparseEncoder":
        return [*model.encode(texts, convert_to_sparse_tensor=False).numpy()]
    encode = model.encode_query if side == "query" else model.encode_document
    return [np.asarray(vectors) for vectors in encode(texts)]


def _answered(bundle: ae.Bundle, side: TextSide, texts: list[str], adapter: str) -> list[np.ndarray]:
    reader = bundle.texts()
    task = reader.session.task(adapter)
    asked = [SidedText(text, side) if task is not None and task.has_sides else text for text in texts]
    found = []
    for text_answer in reader.answer(asked, adapter):
        answer = text_answer.answer
        if isinstance(answer, SparseVector):
            dense = np.zeros(answer.width, np.float32)
            dense[answer.ids] = answer.weights
            found.append(dense)
        else:
            assert isinstance(answer, TokenVectors)
            found.append(answer.vectors)
    return found


def _alike(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [each.shape for each in found] == [each.shape for each in expected]
    assert max(np.abs(first - other).max() for first, other in zip(found, expected, strict=True)) < CLOSE


@pytest.mark.parametrize("name", ["splade", "colbert"])
def test_bundles_give_the_embeddings_of_the_library(name: str, embedders: Path) -> None:
    """In one call, so that rows of different lengths are padded; the marker, the skip list and the LoRA included."""
    bundle, model = ae.open_bundle(embedders / f"{name}-bundle"), _library_model(embedders, name)
    for side, texts in (("query", QUERIES), ("document", DOCUMENTS)):
        _alike(_answered(bundle, side, texts, "base-head"), _embedded(model, side, texts))
    with np.load(embedders / f"{name}-lora.npz") as saved:
        expected = [saved[key] for key in saved]
    found = _answered(bundle, "document", DOCUMENTS, "lora")
    _alike(found, expected)
    before = _embedded(model, "document", DOCUMENTS)
    assert max(np.abs(first - other).max() for first, other in zip(found, before, strict=True)) > 1000 * CLOSE


def test_maxsim_is_that_of_the_library(embedders: Path) -> None:
    model = _library_model(embedders, "colbert")
    queries, documents = _embedded(model, "query", QUERIES), _embedded(model, "document", DOCUMENTS)
    expected = model.similarity([torch.from_numpy(q) for q in queries], [torch.from_numpy(d) for d in documents])
    np.testing.assert_allclose(maxsim(queries, documents), expected.numpy(), atol=CLOSE)
    # the formula of Khattab and Zaharia 2020, equation 3, pair by pair
    naive = [[(query @ document.T).max(1).sum() for document in documents] for query in queries]
    np.testing.assert_allclose(maxsim(queries, documents), naive, atol=CLOSE)


@pytest.mark.parametrize("name", ["splade", "colbert"])
def test_bundles_pass_and_hold_narrow_golden_data(name: str, embedders: Path) -> None:
    path = embedders / f"{name}-bundle"
    ae.check(path, against=embedders / f"{name}.pt", quick=True).raise_for_failure()
    scores = ae.evaluate(path, embedders / "pairs.jsonl", adapter=f"{name}-trained", pair="pair").scores
    assert 0 < scores["ndcg_at_10"].value <= 1
    session = ae.open_bundle(path).session()
    arrays = {
        "input_ids": np.array([[2, 5, 70, 3], [2, 71, 3, 0]]),
        "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "token_type_ids": np.zeros((2, 4), np.int64),
    }
    alone = {key: value[1:, :3] for key, value in arrays.items()}
    if name == "splade":
        vectors = session.embed_sparse(arrays, "lora")
        np.testing.assert_allclose(vectors[1], session.embed_sparse(alone, "lora")[0], atol=CLOSE)
    else:
        tokens = session.embed_tokens(arrays, "lora")
        assert [len(each) for each in tokens] == [4, 3]
        np.testing.assert_allclose(tokens[1], session.embed_tokens(alone, "lora")[0], atol=CLOSE)


def test_sparse_adapters_have_no_copy_of_the_vocabulary(embedders: Path) -> None:
    """The head reads the base's logits, so that neither adapters nor golden data grow with the vocabulary."""
    tensors = read_tensors(embedders / "splade-trained" / "weights.safetensors")
    assert not [name for name in tensors if name.startswith("head.")]


def test_windows_join_the_vectors_of_tokens(embedders: Path) -> None:
    text = "good film " * 40
    bundle = ae.open_bundle(embedders / "colbert-bundle")
    answers = [
        bundle.texts().answer([SidedText(text, "document")], "base-head", reading=Reading(long=long))[0]
        for long in ("cut", "windows")
    ]
    cut, whole = (len(each.answer.vectors) for each in answers if isinstance(each.answer, TokenVectors))
    assert (cut, whole) == (64, 83)


REFUSED = {
    "expansion": ({"query_expansion": {"strategy": "fixed", "attend": False, "length": 32}}, "expands queries"),
    "truncated": ({"truncate_dim": 4}, "`truncate_dim`"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_capture_leaves_out_a_head_that_a_task_cannot_state(reason: str, embedders: Path, tmp_path: Path) -> None:
    settings, expected = REFUSED[reason]
    folder = Path(shutil.copytree(embedders / "colbert", tmp_path / "folder"))
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **settings}), encoding="utf-8")
    base = ae.capture(folder, tmp_path / "model.pt", reporter=Heard())
    assert base.base_head is None
    assert expected in base.notes[0]


def test_a_base_without_logits_has_no_sparse_embedding(embedders: Path) -> None:
    options: Any = {"pair": "pair", "kind": "pfeiffer", "bottleneck": 4, "epochs": 1}
    with pytest.raises(UsageError, match="needs logits of the vocabulary"):
        ae.train(embedders / "colbert.pt", embedders / "pairs.jsonl", task="sparse_embedding", **options)
    with pytest.raises(UsageError, match="read logits of the vocabulary"):
        ae.train(embedders / "splade.pt", embedders / "pairs.jsonl", task="multi_vector", **options)
    with pytest.raises(InputError, match="query or a document"):
        ae.open_bundle(embedders / "colbert-bundle").texts().answer(["good film"], "base-head")


def test_routes_return_sparse_and_token_vectors(embedders: Path) -> None:
    for name in ("splade", "colbert"):
        bundle = ae.open_bundle(embedders / f"{name}-bundle")
        with made_app(embedders / f"{name}-bundle", quiet=True) as service:
            _check_routes(service, bundle, name)


def _check_routes(service: TestClient, bundle: ae.Bundle, name: str) -> None:
    path, other = ("/embed_sparse", "/embed_all") if name == "splade" else ("/embed_all", "/embed_sparse")
    call = {"model": "lora", "inputs": DOCUMENTS, "prompt_name": "document"}
    expected = _answered(bundle, "document", DOCUMENTS, "lora")
    found = service.post(path, json=call)
    assert found.status_code == 200, found.text
    for row, vector in zip(found.json(), expected, strict=True):
        if name == "splade":
            assert [each["index"] for each in row] == np.flatnonzero(vector).tolist()
            np.testing.assert_allclose([each["value"] for each in row], vector[vector > 0], atol=CLOSE)
        else:
            np.testing.assert_allclose(row, vector, atol=CLOSE)
    side = {"side": "document"} if name == "colbert" else {}
    answer = service.post("/answer", json={"adapter": "lora", "text": DOCUMENTS[0], **side})
    assert set(checked(answer.json(), "rows")["rows"][0]) > {"adapter", "task"}
    assert service.post(other, json=call).status_code == 400
    assert service.post("/embed", json=call).status_code == 400
    pairs = {"model": "lora", "text_1": QUERIES[0], "text_2": DOCUMENTS}
    scores = [each["score"] for each in service.post("/score", json=pairs).json()["data"]]
    queries = _answered(bundle, "query", QUERIES[:1], "lora")
    products = np.stack(queries) @ np.stack(expected).T if name == "splade" else maxsim(queries, expected)
    np.testing.assert_allclose(scores, products[0], rtol=1e-4)


def test_the_example_prints_the_scores_of_the_library(embedders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = Path(__file__).parents[2] / "examples" / "embedders.py"
    paths = [str(embedders / name) for name in ("splade", "colbert")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", [str(program), *paths])
        runpy.run_path(str(program), run_name="__main__")
    printed = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    expected = []
    for name in ("splade", "colbert"):
        model = _library_model(embedders, name)
        query, documents = _embedded(model, "query", ["good film"]), _embedded(model, "document", DOCUMENTS[:2])
        scores = np.stack(query) @ np.stack(documents).T if name == "splade" else maxsim(query, documents)
        expected += scores[0].tolist()
    np.testing.assert_allclose(printed, expected, atol=1e-3)

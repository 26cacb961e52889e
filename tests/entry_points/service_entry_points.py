"""The entry points that are services: `adapter-export serve`, and the service in C++."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import numpy as np
from asked_bundles import Bundle
from asking import (
    Document,
    EntryPoint,
    RefusedError,
    answer_of_result,
    context_of,
    length,
    shape,
    stacked,
    together,
    weighing,
)
from oracle import Row

Services = Mapping[str, httpx2.Client]
"""A client for the service of each bundle, by the bundle's name."""


def slug(bundle: Bundle) -> str:
    """The name of a bundle in an address."""
    return "".join(letter if letter.isalnum() else "-" for letter in bundle.name)


def _post(client: httpx2.Client, path: str, call: Mapping[str, Any]) -> Any:
    answer = client.post(path, json=call)
    if answer.status_code != 200:
        raise RefusedError(f"{answer.status_code} {answer.text}")
    return answer.json()


def _models(bundle: Bundle, rows: Sequence[Row]) -> list[str]:
    """The model of each row, where bundles with adapters of one name are served."""
    return [slug(bundle) if row.adapter is None else f"{slug(bundle)}/{row.adapter}" for row in rows]


def _choice(rows: Sequence[Row]) -> dict[str, Any]:
    """Strengths and weights of rows."""
    weights = {} if rows[0].weights is None else {"weights": [row.weights for row in rows]}
    strengths = {} if all(row.strength == 1 for row in rows) else {"strength": [row.strength for row in rows]}
    return weights | strengths


def _weighed(row: Row) -> bool:
    return row.weights is not None


def text_of(row: Row) -> Any:
    """A row as a service takes it."""
    if isinstance(row.asked, str):
        return row.asked
    if isinstance(row.asked, tuple):
        return dict(zip(("text", "pair"), row.asked, strict=True))
    return {"text": row.asked[0][0], "choices": [choice for _, choice in row.asked]}


def serve_texts(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /answer` with `texts`."""

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        call = {"texts": [text_of(row) for row in rows], "adapters": _models(bundle, rows), **_choice(rows)}
        return _post(client, "/answer", call)["rows"]  # type: ignore[no-any-return]

    return together(rows, _weighed, ask)


def _inputs(bundle: Bundle, rows: Sequence[Row]) -> dict[str, Any]:
    """The inputs of rows as lists of their own lengths, with contexts where there are any."""
    arrays = [bundle.arrays(row) for row in rows]
    contexts = [context_of(bundle, row) for row in rows]
    call: dict[str, Any] = {
        "inputs": {name: [one[name][0].tolist() for one in arrays] for name in bundle.oracle.inputs}
    }
    if any(contexts):
        call["context"] = contexts
    return call


def _is_question(bundle: Bundle, row: Row) -> bool:
    return context_of(bundle, row) is not None


def serve_inputs(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /answer` with `inputs`."""

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        call = {**_inputs(bundle, rows), "adapters": _models(bundle, rows), **_choice(rows)}
        return _post(client, "/answer", call)["rows"]  # type: ignore[no-any-return]

    return together(rows, lambda row: (_weighed(row), _is_question(bundle, row)), ask)


def _infer(
    client: httpx2.Client, model: str, row: Row, inputs: Sequence[Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The outputs of a call in the Open Inference Protocol, by their names."""
    parameters: dict[str, Any] = {} if row.strength == 1 else {"strength": row.strength}
    if row.weights is not None:
        parameters["weights"] = row.weights
    call = {"inputs": list(inputs), "parameters": parameters}
    return {one["name"]: one for one in _post(client, f"/v2/models/{model}/infer", call)["outputs"]}


def _answers(outputs: Mapping[str, Mapping[str, Any]]) -> list[Document]:
    return [json.loads(one) for one in outputs["answer"]["data"]]


def _one_model(row: Row) -> tuple[Any, ...]:
    return row.adapter, row.strength, weighing(row)


def infer_texts(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /v2/models/NAME/infer` with text; all rows of a call have one adapter."""

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        columns = {"text": [row.asked for row in rows]}
        if shape(rows[0]) == "pair":
            columns = {name: [row.asked[at] for row in rows] for at, name in enumerate(("text", "pair"))}
        inputs = [
            {"name": name, "datatype": "BYTES", "shape": [len(rows)], "data": data} for name, data in columns.items()
        ]
        return _answers(_infer(client, _models(bundle, rows)[0], rows[0], inputs))

    return together(rows, lambda row: (shape(row), *_one_model(row)), ask)


def infer_tensors(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /v2/models/NAME/infer` with padded tensors; they have no context, so that a span is given as logits."""

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        inputs = [
            {"name": name, "datatype": "INT64", "shape": list(array.shape), "data": array.ravel().tolist()}
            for name, array in stacked(bundle, rows).items()
        ]
        outputs = _infer(client, _models(bundle, rows)[0], rows[0], inputs)
        if not _is_question(bundle, rows[0]):
            return _answers(outputs)
        (logits,) = outputs.values()
        results = np.array(logits["data"], np.float32).reshape(logits["shape"])
        return [answer_of_result(bundle, row, result) for row, result in zip(rows, results, strict=True)]

    return together(rows, lambda row: (*_one_model(row), length(bundle, row)), ask)


def answered_text(bundle: Bundle, row: Row) -> bool:
    """Rows that a tensor of texts can have, and an adapter answers."""
    return shape(row) != "choices" and bundle.oracle.recipe(row) is not None


def answered(bundle: Bundle, row: Row) -> bool:
    """Rows that an adapter answers."""
    return bundle.oracle.recipe(row) is not None


def cpp_service(bundle: Bundle, rows: Sequence[Row], services: Services) -> Sequence[Document]:
    """`POST /answer` of the service in C++, which takes ids."""

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        call = {**_inputs(bundle, rows), "adapters": [row.adapter for row in rows], **_choice(rows)}
        return _post(services[bundle.name], "/answer", call)["rows"]  # type: ignore[no-any-return]

    return together(rows, lambda row: (_weighed(row), _is_question(bundle, row)), ask)


def _plain(bundle: Bundle, row: Row, form: str, task: str) -> bool:
    """True if APIs of others can express a row: they have no strengths and no weights, and do not report a cut."""
    recipe = bundle.oracle.recipe(row)
    if recipe is None or recipe.task["type"] != task or (shape(row), row.strength, row.weights) != (form, 1, None):
        return False
    return bundle.oracle.refuses(row) or "cut" not in bundle.oracle.of_text(row).document


def _by_openai(bundle: Bundle, row: Row) -> bool:
    return _plain(bundle, row, "text", "embedding")


def _by_cohere(bundle: Bundle, row: Row) -> bool:
    return _plain(bundle, row, "pair", "ranking")


def _by_vllm(bundle: Bundle, row: Row) -> bool:
    return _plain(bundle, row, "text", "single_label")


def openai_embeddings(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /v1/embeddings`."""

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        call = {"model": _models(bundle, rows)[0], "input": [row.asked for row in rows]}
        found = _post(client, "/v1/embeddings", call)["data"]
        return [{**_named(bundle, row), "vector": one["embedding"]} for row, one in zip(rows, found, strict=True)]

    return together(rows, _one_model, ask)


def tei_embed(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /embed`, with vectors as the task makes them."""

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        recipe = bundle.oracle.recipe(rows[0])
        assert recipe is not None
        call = {"model": _models(bundle, rows)[0], "inputs": [row.asked for row in rows]}
        vectors = _post(client, "/embed", {**call, "normalize": bool(recipe.task.get("normalised"))})
        return [{**_named(bundle, row), "vector": one} for row, one in zip(rows, vectors, strict=True)]

    return together(rows, _one_model, ask)


def tei_predict(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /predict`, with a list of lists."""

    def answer_of(row: Row, scores: Sequence[Mapping[str, Any]]) -> Document:
        recipe = bundle.oracle.recipe(row)
        assert recipe is not None
        shares = {one["label"]: one["score"] for one in scores}
        best = {"label": scores[0]["label"], "probability": scores[0]["score"]}
        return {**_named(bundle, row), **best, "probabilities": {name: shares[name] for name in recipe.task["labels"]}}

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        call = {"model": _models(bundle, rows)[0], "inputs": [[row.asked] for row in rows]}
        return [answer_of(*one) for one in zip(rows, _post(client, "/predict", call), strict=True)]

    return together(rows, _one_model, ask)


def vllm_score(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /score`, pair by pair."""

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        first, second = ([row.asked[side] for row in rows] for side in (0, 1))
        call = {"model": _models(bundle, rows)[0], "text_1": first, "text_2": second}
        scores = [one["score"] for one in _post(client, "/score", call)["data"]]
        return [{**_named(bundle, row), "score": one} for row, one in zip(rows, scores, strict=True)]

    return together(rows, _one_model, ask)


def vllm_pooling(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /pooling` of vectors."""

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        call = {"model": _models(bundle, rows)[0], "input": [row.asked for row in rows]}
        found = _post(client, "/pooling", call)["data"]
        return [{**_named(bundle, row), "vector": one["data"]} for row, one in zip(rows, found, strict=True)]

    return together(rows, _one_model, ask)


def cohere_rerank(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /v1/rerank`; all rows of a call have one query."""

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        documents = [row.asked[1] for row in rows]
        call = {"model": _models(bundle, rows)[0], "query": rows[0].asked[0], "documents": documents}
        found = {one["index"]: one["relevance_score"] for one in _post(client, "/v1/rerank", call)["results"]}
        return [{**_named(bundle, row), "score": found[at]} for at, row in enumerate(rows)]

    return together(rows, lambda row: (row.asked[0], *_one_model(row)), ask)


def vllm_classify(bundle: Bundle, rows: Sequence[Row], client: httpx2.Client) -> Sequence[Document]:
    """`POST /classify`."""

    def answer_of(row: Row, found: Mapping[str, Any]) -> Document:
        recipe = bundle.oracle.recipe(row)
        assert recipe is not None
        shares = dict(zip(recipe.task["labels"], found["probs"], strict=True))
        best = {"label": found["label"], "probability": shares[found["label"]]}
        return {**_named(bundle, row), **best, "probabilities": shares}

    def ask(rows: Sequence[Row]) -> Sequence[Document]:
        call = {"model": _models(bundle, rows)[0], "input": [row.asked for row in rows]}
        return [answer_of(*one) for one in zip(rows, _post(client, "/classify", call)["data"], strict=True)]

    return together(rows, _one_model, ask)


def _named(bundle: Bundle, row: Row) -> Document:
    recipe = bundle.oracle.recipe(row)
    assert recipe is not None
    return {"adapter": recipe.name, "task": recipe.task["type"]}


SERVICES = (
    EntryPoint("serve /answer", serve_texts, needs="serve"),
    EntryPoint("serve /answer, inputs", serve_inputs, "arrays", needs="serve"),
    EntryPoint("serve /v2 infer", infer_texts, "text", answered_text, "serve"),
    EntryPoint("serve /v2 infer, padded tensors", infer_tensors, "arrays", answered, "serve"),
    EntryPoint("serve /v1/embeddings", openai_embeddings, "text", _by_openai, "serve", ("embedding",)),
    EntryPoint("serve /v1/rerank", cohere_rerank, "text", _by_cohere, "serve", ("ranking",)),
    EntryPoint("serve /classify", vllm_classify, "text", _by_vllm, "serve", ("single_label",)),
    EntryPoint("serve /embed", tei_embed, "text", _by_openai, "serve", ("embedding",)),
    EntryPoint("serve /predict", tei_predict, "text", _by_vllm, "serve", ("single_label",)),
    EntryPoint("serve /score", vllm_score, "text", _by_cohere, "serve", ("ranking",)),
    EntryPoint("serve /pooling", vllm_pooling, "text", _by_openai, "serve", ("embedding",)),
    EntryPoint("C++ service", cpp_service, "arrays", needs="cpp_services"),
)

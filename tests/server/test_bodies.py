"""HTTP bodies: every answer of every task matches the published schema, and server and schema refuse the same calls."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from bodies import Body, checked, refusal
from clients import alike
from served import made_app
from starlette.testclient import TestClient
from text_bundle import TASKS

from adapter_export.graph.tasks import PROBLEM_TYPES
from adapter_export.runtime import Bundle

TEXT, PASSAGE = "Who wrote the book about the moon?", "It was written by six people in Berlin."
ROW = [101, 2040, 2626, 2009, 102, 2009, 2001, 2416, 2111, 102]
ARRAYS = {"input_ids": [ROW], "attention_mask": [[1] * len(ROW)], "token_type_ids": [[0] * 5 + [1] * 5]}
CONTEXT = [[0] * 5 + [1] * 4 + [0]]
PADDED = {name: [[0, 0, *row[0]]] for name, row in ARRAYS.items()}


@pytest.fixture(scope="module")
def service(text_folder: Path) -> Iterator[TestClient]:
    with made_app(text_folder / "bundle", quiet=True) as client:
        yield client


@pytest.fixture(scope="module")
def answers(service: TestClient) -> dict[str, dict[str, Any]]:
    """Answers of every task to a text and to arrays, to a question with choices, and of the base."""
    found = {}
    for name, task in TASKS.items():
        pair = {"pair": PASSAGE} if task.input == "pair" else {}
        found[f"{name} of a text"] = _row(service, "/answer", adapter=name, text=TEXT, **pair)
        arrays = {"inputs": PADDED if name == "words" else ARRAYS, "context": CONTEXT if name == "place" else None}
        found[f"{name} of arrays"] = _row(service, "/answer", adapter=name, **arrays)
    found["choices"] = _row(service, "/answer", adapter="choice", text=TEXT, choices=[PASSAGE, "No.", ""])
    found["cut"] = _row(service, "/answer", adapter="topic", text="moon " * 100)
    found["base"] = _row(service, "/answer", adapter="base", text=TEXT)
    found["run"] = _row(service, "/run", adapter="words", text=TEXT)
    return found


def _row(service: TestClient, path: str, **call: Any) -> dict[str, Any]:
    answer = service.post(path, json=checked(call, "call"))
    assert answer.status_code == 200, answer.text
    (row,) = checked(answer.json(), "rows")["rows"]
    return dict(row)


OF_TOKENS = {"multi_vector", "sparse_embedding"}
"""Tasks of other bases, whose answers `tests/embeddings` compares with the schema."""


def test_every_answer_fits_the_schema(answers: Mapping[str, dict[str, Any]], text_folder: Path) -> None:
    types = {one["task"] for one in answers.values()}
    assert types == {*PROBLEM_TYPES, None} - OF_TOKENS
    assert answers["cut"]["cut"] > 0
    assert set(answers["choices"]) == {"adapter", "task", "choice", "probabilities"}
    assert set(answers["place of arrays"]) == {"adapter", "task", "first_token", "last_token", "probability"}
    assert 5 <= answers["place of arrays"]["first_token"] <= answers["place of arrays"]["last_token"] < 9
    assert answers["words of arrays"]["tokens"][:2] == [None, None]
    assert None not in answers["words of arrays"]["tokens"][2:]
    assert (
        PASSAGE[slice(*(answers["place of a text"][key] for key in ("start", "end")))]
        == answers["place of a text"]["answer"]
    )
    assert set(answers["run"]) == set(answers["base"]) == {"adapter", "task", "outputs"}
    reader = Bundle.open(text_folder / "bundle").texts()
    for name in ("topic", "tags", "words", "vector"):
        expected = reader.answer([TEXT], name)[0].document()
        alike(answers[f"{name} of a text"], {"adapter": name, "task": TASKS[name].type, **expected})


def test_changed_answers_are_refused(answers: Mapping[str, dict[str, Any]]) -> None:
    """An answer with an extra key, a missing key, or the keys of another task."""
    for name, answer in answers.items():
        assert refusal({**answer, "surplus": 1}, "answer"), name
        for key in answer.keys() - {"cut"}:
            assert refusal({other: value for other, value in answer.items() if other != key}, "answer"), (name, key)
        for key in answer:
            assert refusal({**answer, key: {"a": [object]}}, "answer"), (name, key)
        for task in {*PROBLEM_TYPES, None, "other"} - {answer["task"]}:
            of_score = {answer["task"], task} == {"multiple_choice", "ranking"} and "score" in answer
            assert of_score or refusal({**answer, "task": task}, "answer"), (name, task)
    span = answers["place of arrays"]
    moved = {key: value for key, value in span.items() if "token" not in key}
    assert refusal({**span, "start": 3, "end": 5}, "answer")
    assert refusal({**moved, "start": 3, "end": 5}, "answer")
    assert refusal({**span, "first_token": -1}, "answer")
    assert refusal({**span, "probability": 1.5}, "answer")
    token = copy.deepcopy(answers["words of a text"])
    del token["tokens"][0]["start"]
    assert refusal(token, "answer")


def test_a_call_without_a_name_is_refused(service: TestClient) -> None:
    """Null counts as no name. `/run` returns the outputs of the base."""
    for call in ({"text": TEXT}, {"text": TEXT, "adapter": None}, {"inputs": ARRAYS, "model": None}):
        refused = service.post("/answer", json=call)
        assert refused.status_code == 400
        assert "no adapter is named" in refused.json()["error"]
        assert all(f"`{name}`" in refused.json()["error"] for name in TASKS)
        assert service.post("/run", json=call).status_code == 200
    (base,) = service.post("/answer", json={"text": TEXT, "adapter": "base"}).json()["rows"]
    assert (base["adapter"], base["task"]) == (None, None)


def test_adapters_and_errors_fit_the_schema(service: TestClient, text_folder: Path) -> None:
    listed = checked(service.get("/adapters").json(), "adapters")
    assert {name: one["task"]["type"] for name, one in listed.items()} == {n: task.type for n, task in TASKS.items()}
    data = (text_folder / "bundle" / "adapters" / "topic.onnx_adapter").read_bytes()
    assert checked(service.put("/adapters/plain", content=data).json(), "adapters")["plain"] == {"task": None}
    row = _row(service, "/answer", adapter="plain", text=TEXT)
    assert (row["adapter"], row["task"], set(row["outputs"]) >= {"logits"}) == ("plain", None, True)
    checked(service.delete("/adapters/plain").json(), "adapters")
    for answer in (service.post("/answer", json={}), service.get("/nothing"), service.delete("/adapters/nobody")):
        assert answer.status_code >= 400
        checked(answer.json(), "error")
    bodies: tuple[Body, ...] = ("adapters", "error", "rows")
    for body, other in zip(bodies, ({"a": {}}, {"error": ""}, {"rows": [{}]}), strict=True):
        assert refusal(other, body)


CALLS: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"text": TEXT, "adapter": "base"}, True),
    ({"text": "", "model": "base"}, True),
    ({"texts": [TEXT], "adapter": None, "adapters": [None], "id": "7"}, True),
    ({"texts": [TEXT, TEXT], "adapters": ["topic", None]}, True),
    ({"texts": [TEXT], "adapter": "topic", "strength": 0.5}, True),
    ({"texts": [TEXT], "adapter": "topic", "strength": [2]}, True),
    ({"texts": [{"text": TEXT, "pair": PASSAGE}], "adapter": "order"}, True),
    ({"texts": [{"text": TEXT, "choices": [PASSAGE]}], "adapter": "choice"}, True),
    ({"inputs": ARRAYS, "adapter": "place", "context": CONTEXT}, True),
    ({"inputs": ARRAYS, "adapter": "topic", "context": [None]}, True),
    ({}, False),
    ([], False),
    ({"text": TEXT, "texts": [TEXT]}, False),
    ({"text": 7}, False),
    ({"text": TEXT, "txet": TEXT}, False),
    ({"text": TEXT, "adapter": ["topic"]}, False),
    ({"texts": TEXT}, False),
    ({"texts": [["two", "words"]]}, False),
    ({"texts": [{"text": TEXT}]}, False),
    ({"texts": [{"text": TEXT, "pair": PASSAGE, "choices": [PASSAGE]}]}, False),
    ({"texts": [{"text": TEXT, "choices": []}]}, False),
    ({"texts": [TEXT] * 257}, False),
    ({"text": TEXT, "strength": "1"}, False),
    ({"text": TEXT, "strength": True}, False),
    ({"text": TEXT, "weights": 1}, False),
    ({"text": TEXT, "weights": {"a": None}}, False),
    *(
        ({"inputs": {**ARRAYS, "input_ids": [[one] * len(ROW)]}, "adapter": "base"}, one == 7)
        for one in (7, 7.5, "7", True, None, 2**63)
    ),
    ({"inputs": ARRAYS, "context": [[2] * 10]}, False),
    ({"inputs": ARRAYS, "context": CONTEXT[0]}, False),
    ({"text": TEXT, "id": "a" * 201}, False),
)


@pytest.mark.parametrize(("call", "fits"), CALLS)
def test_service_and_schema_agree(service: TestClient, call: dict[str, Any], fits: bool) -> None:
    answer = service.post("/answer", json=call)
    assert (answer.status_code == 200) is (refusal(call, "call") is None) is fits, answer.text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"inputs": ARRAYS, "adapter": "place"}, "a mask of the tokens that may be the answer"),
        ({"inputs": ARRAYS, "adapter": "place", "context": [[1] * 3]}, "one value per token"),
        ({"inputs": ARRAYS, "adapter": "place", "context": [[0] * 10]}, "no token may be the answer"),
        ({"inputs": ARRAYS, "adapter": "place", "context": [CONTEXT[0]] * 2}, "one list per row"),
        ({"text": TEXT, "pair": PASSAGE, "adapter": "place", "context": CONTEXT}, "needs `inputs`"),
    ],
)
def test_a_span_of_arrays_needs_its_context(service: TestClient, call: dict[str, Any], words: str) -> None:
    answer = service.post("/answer", json=call)
    assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text


def test_span_tensors_return_logits(service: TestClient) -> None:
    """The protocol cannot carry a context for tensors; texts have one."""
    inputs = [
        {"name": name, "shape": [1, len(ROW)], "datatype": "INT64", "data": rows[0]} for name, rows in ARRAYS.items()
    ]
    found = service.post("/v2/models/place/infer", json={"inputs": inputs}).json()
    assert [(one["name"], one["shape"]) for one in found["outputs"]] == [("token_logits", [1, len(ROW), 2])]
    asked = {"inputs": inputs, "outputs": [{"name": "answer"}]}
    refused = service.post("/v2/models/place/infer", json=asked)
    assert (refused.status_code, "do not mark the tokens" in refused.json()["error"]) == (400, True)
    texts = [
        {"name": n, "shape": [1], "datatype": "BYTES", "data": [t]} for n, t in (("text", TEXT), ("pair", PASSAGE))
    ]
    given = service.post("/v2/models/place/infer", json={"inputs": texts}).json()
    assert "answer" in {one["name"] for one in given["outputs"]}


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("PUT", "/adapters/new?labels=a,b,c&tsak=multi_label", "`tsak`; expected `bundle`, `labels`, `task`"),
        ("PUT", "/adapters/new?labels=a,b,c&labels=d,e,f", "duplicate query key `labels`"),
        ("DELETE", "/adapters/topic?task=token", "`task`; expected no key"),
        ("GET", "/adapters?x=", "`x`; expected no key"),
        ("POST", "/answer?model=topic", "`model`; expected no key"),
        ("POST", "/run?strength=2", "`strength`; expected no key"),
        ("POST", "/v2/models/topic/infer?strength=2", "`strength`; expected no key"),
        ("GET", "/metrics?a=1", "`a`; expected no key"),
        ("PUT", "/admin/routes/best?alias=topic", "`alias`; expected no key"),
        ("GET", "/?modle=topic", "`modle`; expected `model`, `text`"),
    ],
)
def test_unknown_query_keys_are_refused(service: TestClient, method: str, path: str, words: str) -> None:
    answer = service.request(method, path, json={"text": TEXT})
    assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text
    assert answer.headers["x-request-id"]
    assert "topic" in service.get("/adapters").json()


def test_an_unknown_path_stays_unknown_with_a_query(service: TestClient) -> None:
    assert service.get("/nothing?a=1").status_code == 404
    assert service.post("/adapters?a=1").status_code == 405
    assert service.get("/?model=topic&text=moon").status_code == 200


def test_an_adapter_is_loaded_with_its_task(service: TestClient, text_folder: Path) -> None:
    """The answers equal those of the adapter with this task in the bundle."""
    data = (text_folder / "bundle" / "adapters" / "tags.onnx_adapter").read_bytes()

    def put(query: str) -> Any:
        return service.put(f"/adapters/new?{query}", content=data)

    assert put("task=multi_label&labels=x,y,z").json()["new"]["task"]["type"] == "multi_label"
    found, expected = (_row(service, "/answer", adapter=name, text=TEXT) for name in ("new", "tags"))
    assert found["task"] == "multi_label"
    alike(found["probabilities"], expected["probabilities"])
    assert sum(found["probabilities"].values()) != pytest.approx(1)
    service.delete("/adapters/new").raise_for_status()
    wrong = {"task=multi_lable": "unknown problem type", "task=token&labels=x,y,z": "has no head for `token`"}
    for query, words in {**wrong, "task=multi_label&labels=x,y": "labels and classes differ"}.items():
        answer = put(query)
        assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text
    assert "new" not in service.get("/adapters").json()

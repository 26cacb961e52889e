"""The C++ service on a free loopback port: requests at once, each with its own adapter, on one session."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from clients import alike, write_adapter_file
from jsonschema_rs import Draft202012Validator, Registry
from safetensors.numpy import load_file

from adapter_export.graph.tasks import PROBLEM_TYPES, ProblemType
from adapter_export.runtime import Bundle, Session
from schemas import SCHEMAS

NAMES = ("topic", "tone", "mood")
INPUTS = {"input_ids": [[5, 6]], "attention_mask": [[1, 1]]}
BODIES = ("http", "answer", "bundle-manifest")
"""Their schemas, and those that these refer to."""
CLOSE = 1e-5
"""Probabilities and hidden states in float32, from numbers that are some ulp apart."""


@contextmanager
def _started(build: Path, bundle: Path) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    command = [build / "bundle_server", bundle, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)", process.stdout.readline().strip())
            assert found is not None
            with httpx2.Client(base_url=found[1], timeout=60, trust_env=False) as client:
                yield process, client
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def service(cpp_build: Path, small_bundle: Path) -> Iterator[httpx2.Client]:
    with _started(cpp_build, small_bundle) as (_, client):
        yield client


@pytest.fixture(scope="module")
def task_service(cpp_build: Path, task_bundle: Path) -> Iterator[httpx2.Client]:
    with _started(cpp_build, task_bundle) as (_, client):
        yield client


@pytest.fixture(scope="module")
def session(small_bundle: Path) -> Session:
    return Bundle.open(small_bundle).session(threads=1)


def _arrays(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    ids = rng.integers(4, 20, (rows, int(rng.integers(1, 9))))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _call(inputs: dict[str, np.ndarray], **chosen: Any) -> dict[str, Any]:
    return {"inputs": {name: array.tolist() for name, array in inputs.items()}, **chosen}


def _holds(row: dict[str, Any], inputs: dict[str, np.ndarray], name: str | None, session: Session) -> None:
    """Check that a row equals the single result of its adapter, or of the base."""
    assert row["adapter"] == name
    if name is None:
        np.testing.assert_allclose(row["outputs"]["hidden"], session.run(inputs)["hidden"][0], rtol=0, atol=CLOSE)
        return
    assert row["probabilities"] == pytest.approx(dict(session.classify(inputs, name)[0].probabilities), abs=CLOSE)


def test_overwritten_bundle_files_do_not_change_answers(cpp_build: Path, small_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    calls = [{"inputs": INPUTS, "adapter": "tone"}, {"inputs": INPUTS, "adapters": ["topic"]}]
    with _started(cpp_build, bundle) as (_, client):
        before = [client.post("/answer", json=call).json() for call in calls]
        for path in bundle.rglob("*"):
            if path.is_file():
                os.truncate(path, 0)
        assert [client.post("/answer", json=call).json() for call in calls] == before
        assert before[0]["rows"][0]["label"]


def test_concurrent_requests_get_answers_of_their_adapters(
    service: httpx2.Client, session: Session, small_bundle: Path
) -> None:
    """Single and mixed batches, while an adapter is added and removed."""
    data = (small_bundle / "adapters/tone.onnx_adapter").read_bytes()

    def ask(seed: int) -> int:
        rng = np.random.default_rng(seed)
        for _ in range(10):
            inputs = _arrays(rng, 3)
            chosen = [(None, *NAMES)[int(number)] for number in rng.integers(0, 4, 3)]
            mixed = service.post("/answer", json=_call(inputs, adapters=chosen))
            first_row = {name: array[:1] for name, array in inputs.items()}
            alone = service.post("/answer", json=_call(first_row, adapter=chosen[0] or "base"))
            assert (mixed.status_code, alone.status_code) == (200, 200)
            _holds(alone.json()["rows"][0], first_row, chosen[0], session)
            for at, row in enumerate(mixed.json()["rows"]):
                _holds(row, {name: array[at : at + 1] for name, array in inputs.items()}, chosen[at], session)
        return seed

    with ThreadPoolExecutor(9) as pool:
        coming = pool.submit(_come_and_go, service, data, 10)
        assert list(pool.map(ask, range(8))) == list(range(8))
        coming.result()


def _come_and_go(service: httpx2.Client, data: bytes, times: int) -> None:
    for _ in range(times):
        assert service.put("/adapters/passing", content=data).status_code == 200
        answer = service.post("/answer", json={"adapter": "passing", "inputs": INPUTS})
        assert answer.json()["rows"][0]["adapter"] == "passing"
        assert service.delete("/adapters/passing").status_code == 200


def test_an_adapter_is_loaded_and_forgotten(service: httpx2.Client, small_bundle: Path, session: Session) -> None:
    data = (small_bundle / "adapters/tone.onnx_adapter").read_bytes()
    loaded = service.put("/adapters/new", content=data, params={"labels": "left,right"})
    assert loaded.json()["new"] == {"task": {"type": "single_label", "labels": ["left", "right"]}}
    inputs = _arrays(np.random.default_rng(0), 1)
    (row,) = service.post("/answer", json=_call(inputs, adapter="new")).json()["rows"]
    expected = dict(zip(("left", "right"), session.classify(inputs, "tone")[0].probabilities.values(), strict=True))
    assert row["probabilities"] == pytest.approx(expected, abs=CLOSE)
    again = service.put("/adapters/new", content=data)
    assert (again.status_code, "loaded already" in again.json()["error"]) == (400, True)
    twice = {name: np.repeat(array, 2, axis=0) for name, array in inputs.items()}
    mixed = service.post("/answer", json=_call(twice, adapters=["tone", "new"])).json()["rows"]
    _holds(mixed[0], inputs, "tone", session)
    assert mixed[1]["probabilities"] == pytest.approx(expected, abs=CLOSE)
    assert "new" not in service.delete("/adapters/new").json()
    gone = service.post("/answer", json=_call(inputs, adapter="new"))
    assert (gone.status_code, "`new`: is not loaded" in gone.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param({"inputs": INPUTS, "adapter": "nobody"}, "`nobody`: is not loaded", id="unknown adapter"),
        pytest.param({"inputs": INPUTS, "adapters": ["tone", "mood"]}, "not one adapter for each row", id="too many"),
        pytest.param({"inputs": INPUTS, "adaptor": "tone"}, "`adaptor`", id="misspelt"),
        pytest.param({"inputs": INPUTS, "adapter": "tone", "adapters": ["tone"]}, "one choice", id="two choices"),
        pytest.param({"inputs": {**INPUTS, "attention_mask": [[1]]}}, "wrong shape", id="wrong shape"),
        pytest.param({"inputs": {"input_ids": [[5]]}}, "`attention_mask`", id="no mask"),
        pytest.param({"inputs": {**INPUTS, "attention_mask": [[0, 0]]}}, "leaves no token", id="empty mask"),
        pytest.param({"inputs": {**INPUTS, "input_ids": [[5, 20]]}}, "out of range", id="no word"),
        pytest.param({"inputs": {**INPUTS, "input_ids": [[5, "6"]]}}, "invalid numbers of its type", id="a string"),
        pytest.param({"adapter": "tone"}, "inputs", id="no inputs"),
        pytest.param([], "expected form", id="a list"),
        pytest.param({"inputs": INPUTS, "adapter": "tone", "strenght": 0.5}, "`strenght`", id="misspelt strength"),
        pytest.param({"inputs": INPUTS, "adapter": "tone", "strength": 1001}, "is no strength", id="too strong"),
        pytest.param({"inputs": INPUTS, "adapter": "tone", "strength": True}, "expected form", id="no number"),
        pytest.param({"inputs": INPUTS, "adapter": "tone", "strength": [1, 1]}, "for each row", id="two strengths"),
        pytest.param({"inputs": INPUTS, "adapter": ["tone"]}, "expected form", id="a list for all rows"),
        pytest.param({"inputs": INPUTS, "adapters": "tone"}, "expected form", id="no list for each row"),
        pytest.param({"inputs": INPUTS, "model": "tone"}, "`model`", id="a key of the other server"),
        pytest.param({"inputs": INPUTS}, "no adapter is named; found adapters that answer: `", id="no name"),
        pytest.param({"inputs": INPUTS, "adapter": None}, "or `base` for the base", id="null in place of a name"),
        pytest.param({"inputs": INPUTS, "adapter": "tone", "weights": {"tone": 1}}, "no weights", id="no fusion"),
        pytest.param({"inputs": INPUTS, "adapter": "fusion", "weights": {"tone": 1}}, "finite weight", id="half"),
        pytest.param({"inputs": INPUTS, "adapter": "fusion", "weights": {"tone": True}}, "expected form", id="true"),
        pytest.param({"inputs": INPUTS, "adapter": "fusion", "weights": {}}, "names no member", id="no weight"),
        pytest.param({"inputs": {"input_ids": [], "attention_mask": []}}, "no rows", id="no rows"),
        pytest.param({"inputs": {**INPUTS, "attention_mask": [[1, 1]] * 2}}, "numbers of rows", id="rows"),
    ],
)
def test_invalid_requests_are_refused(service: httpx2.Client, body: object, words: str) -> None:
    answer = service.post("/answer", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_strength_scales_adapters_per_row(service: httpx2.Client, session: Session) -> None:
    """For all rows, or for each, in a mixed batch, too; at 1 it is as it is."""
    inputs = _arrays(np.random.default_rng(2), 3)
    for strength, each in ((-2, [-2] * 3), ([0.5, 1, 0], [0.5, 1, 0])):
        rows = service.post("/answer", json=_call(inputs, adapter="tone", strength=strength)).json()["rows"]
        for row, expected in zip(rows, session.classify(inputs, "tone", strength=each), strict=True):
            alike(row, {"adapter": "tone", "task": "single_label", **expected.document()})
    names: list[str | None] = ["topic", "tone", None]
    mixed = service.post("/answer", json=_call(inputs, adapters=names, strength=0.5)).json()["rows"]
    for at, (row, name) in enumerate(zip(mixed, names, strict=True)):
        arrays = {key: array[at : at + 1] for key, array in inputs.items()}
        if name is None:
            _holds(row, arrays, None, session)
        else:
            alike(
                row,
                {"adapter": name, "task": "single_label", **session.classify(arrays, name, strength=0.5)[0].document()},
            )
    plain = service.post("/answer", json=_call(inputs, adapters=names)).json()["rows"]
    assert plain[0]["probability"] != pytest.approx(mixed[0]["probability"], abs=1e-3)


def test_a_context_says_which_tokens_may_be_the_answer(task_service: httpx2.Client, task_bundle: Path) -> None:
    """In a mixed batch, too; an adapter of another task has no use for it."""
    session = Bundle.open(task_bundle).session(threads=1)
    inputs = _arrays(np.random.default_rng(1), 3)
    inputs = {name: np.repeat(array, 5, axis=1) for name, array in inputs.items()}
    tokens = inputs["input_ids"].shape[1]
    context = np.arange(tokens) >= np.array([[0], [tokens - 1], [2]])
    answers = session.answer(inputs, "span", context=list(context))
    body = _call(inputs, adapter="span", context=context.astype(int).tolist())
    rows = task_service.post("/answer", json=body).json()["rows"]
    for row, expected in zip(rows, answers, strict=True):
        alike(row, {"adapter": "span", "task": "span", **expected.document()})
    assert (rows[1]["first_token"], rows[1]["last_token"]) == (tokens - 1, tokens - 1)
    body = _call(inputs, adapters=["span", "token", "span"], context=context.astype(int).tolist())
    mixed = task_service.post("/answer", json=body).json()["rows"]
    alike(mixed[2], rows[2])
    assert len(mixed[1]["tokens"]) == tokens
    for wrong, words in (
        ([[1]] * 3, "does not say of each token"),
        ([[1] * tokens], "not one context for each row"),
        ([[2] * tokens] * 3, "no 0 or 1"),
        ([[0] * tokens] * 3, "no token may be the answer"),
        ([[1] * tokens, None, [1] * tokens], "row 1: a span needs its context"),
        (None, "row 0: a span needs its context"),
    ):
        refused = task_service.post("/answer", json=_call(inputs, adapter="span", context=wrong))
        assert (refused.status_code, words in refused.json()["error"]) == (400, True), refused.text


def test_rows_of_several_lengths_equal_single_runs(service: httpx2.Client, session: Session) -> None:
    """Each row equals its single run, also with its own fusion weights."""
    rng = np.random.default_rng(5)
    rows = [_arrays(rng, 1) for _ in range(12)]
    assert len({arrays["input_ids"].shape for arrays in rows}) > 4
    names = [(None, *NAMES)[at % 4] for at in range(12)]
    inputs = {name: [arrays[name][0].tolist() for arrays in rows] for name in INPUTS}
    found = service.post("/answer", json={"inputs": inputs, "adapters": names}).json()["rows"]
    for row, arrays, name in zip(found, rows, names, strict=True):
        _holds(row, arrays, name, session)
    weights = [{"tone": 0.25, "mood": 1.5}, None, {"tone": 0.9, "mood": -0.4}] * 4
    weighed = service.post("/answer", json={"inputs": inputs, "adapter": "fusion", "weights": weights}).json()["rows"]
    for at, (row, arrays) in enumerate(zip(weighed, rows, strict=True)):
        expected = session.classify(arrays, "fixed" if at % 3 == 0 else "fusion")[0]
        alike(row, {"adapter": "fusion", "task": "single_label", **expected.document()})
    assert weighed[0]["probability"] != pytest.approx(
        session.classify(rows[0], "fusion")[0].document()["probability"], abs=1e-3
    )


def test_service_returns_raw_outputs_per_row(task_service: httpx2.Client, task_bundle: Path) -> None:
    """Outputs of the base, and of each row's head with its own width; a span needs no context for them."""
    session = Bundle.open(task_bundle).session(threads=1)
    inputs = _arrays(np.random.default_rng(3), 4)
    names = ["span", None, "multi_label", "embedding"]
    rows = task_service.post("/run", json=_call(inputs, adapters=names)).json()["rows"]
    for at, (row, name) in enumerate(zip(rows, names, strict=True)):
        arrays = {key: array[at : at + 1] for key, array in inputs.items()}
        wanted = {"hidden", *([] if name is None else [session.output(name)])}
        outputs = session.run(arrays, name)
        expected = {output: outputs[output][0].tolist() for output in wanted}
        alike(row, {"adapter": name, "task": None, "outputs": expected})
    assert len(rows[2]["outputs"]["logits"]) == 4


def test_adapters_route_lists_tasks_as_python_does(task_service: httpx2.Client, task_bundle: Path) -> None:
    """As Python gives them: records without the keys that have their default."""
    found = task_service.get("/adapters").json()
    session = Bundle.open(task_bundle).session(threads=1)
    tasks = {name: session.task(name) for name in found}
    assert found == {name: {"task": None if task is None else task.document()} for name, task in tasks.items()}
    assert found["unknown"] == {"task": None}
    assert found["ranking"] == {"task": {"type": "ranking", "activation": "sigmoid", "input": "pair"}}


def test_bodies_are_those_of_the_schema(task_service: httpx2.Client) -> None:
    """Answers of every type, outputs, adapters and errors."""
    named = {name: json.loads((SCHEMAS / f"{name}.schema.json").read_text("utf-8")) for name in BODIES}
    registry = Registry([(f"{name}.schema.json", schema) for name, schema in named.items()])
    ids = [[5, 6, 7]] * len(PROBLEM_TYPES)
    call = {"inputs": {"input_ids": ids, "attention_mask": [[1] * 3] * len(ids)}, "adapters": [*PROBLEM_TYPES]}
    call["context"] = [[0, 1, 1] if name == "span" else None for name in PROBLEM_TYPES]
    bodies = {
        "call": call,
        "rows": task_service.post("/answer", json=call).json(),
        "adapters": task_service.get("/adapters").json(),
        "error": task_service.post("/answer", json={}).json(),
    }
    assert [row["task"] for row in bodies["rows"]["rows"]] == [*PROBLEM_TYPES]
    raw = task_service.post("/run", json=call).json()
    for name, body in [*bodies.items(), ("rows", raw)]:
        reference = {"$ref": f"http.schema.json#/$defs/{name}"}
        Draft202012Validator(reference, registry=registry).validate(body)


def test_unknown_query_keys_are_refused(service: httpx2.Client) -> None:
    """On every route: a misspelt `task` would give another answer."""
    calls = [
        service.get("/adapters?labels=a"),
        service.put("/adapters/other?taks=multi_label&labels=a,b", content=b""),
        service.delete("/adapters/tone?force=1"),
        service.post("/answer?strength=2", json={"inputs": INPUTS, "adapter": "tone"}),
        service.post("/run?adapter=tone", json={"inputs": INPUTS}),
    ]
    for answer in calls:
        assert (answer.status_code, "query key that is not known" in answer.json()["error"]) == (400, True)
    twice = service.put("/adapters/other?labels=a,b&labels=c,d", content=b"")
    assert (twice.status_code, "occurs twice" in twice.json()["error"]) == (400, True)
    assert service.post("/answer", json={"inputs": INPUTS, "adapter": "tone"}).status_code == 200


CLAIMS = {
    "multi_label": {"task": "multi_label", "labels": "a,b,c"},
    "labels alone": {"labels": "a,b,c"},
    "regression": {"task": "regression"},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_loaded_adapters_answer_with_the_given_task(task_service: httpx2.Client, task_bundle: Path, claim: str) -> None:
    """Its file says nothing of it, and so its logits mean what the user says."""
    said = CLAIMS[claim]
    data = (task_bundle / "adapters/single_label.onnx_adapter").read_bytes()
    session = Bundle.open(task_bundle).session(threads=1)
    labels = said["labels"].split(",") if "labels" in said else None
    problem = next((kind for kind in PROBLEM_TYPES if kind == said.get("task")), None)
    session.load_bytes("said", data, labels=labels, task=problem)
    loaded = task_service.put("/adapters/said", content=data, params=said)
    try:
        task = session.task("said")
        assert task is not None
        assert loaded.json()["said"] == {"task": task.document()}
        (row,) = task_service.post("/answer", json={"inputs": INPUTS, "adapter": "said"}).json()["rows"]
    finally:
        task_service.delete("/adapters/said")
    (expected,) = session.answer({name: np.array(rows) for name, rows in INPUTS.items()}, "said")
    alike(row, {"adapter": "said", "task": said.get("task", "single_label"), **expected.document()})


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"task": "guess"}, "unknown problem type"),
        ({"task": "token", "labels": "a,b,c"}, "has no head for `token`"),
        ({"task": "embedding"}, "has no head for `embedding`"),
        ({"task": "ranking"}, "is no head for `ranking`"),
        ({"task": "single_label"}, "labels and classes differ"),
        ({"task": "regression", "labels": "a,b,c"}, "labels and classes differ"),
        ({"labels": "a,b"}, "labels and classes differ"),
        ({"labels": "a,b,b"}, "not one name for each class"),
        ({"labels": "a,,b"}, "not one name for each class"),
    ],
)
def test_a_task_that_the_head_cannot_do(
    task_service: httpx2.Client, task_bundle: Path, claim: dict[str, str], words: str
) -> None:
    data = (task_bundle / "adapters/single_label.onnx_adapter").read_bytes()
    answer = task_service.put("/adapters/wrong", content=data, params=claim)
    assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text


@pytest.mark.parametrize("problem", PROBLEM_TYPES)
def test_overflowing_outputs_are_refused(
    task_service: httpx2.Client, task_bundle: Path, tmp_path: Path, problem: ProblemType
) -> None:
    """Tensors are finite, and what the head computes from them is not."""
    tensors = load_file(task_bundle / "adapters" / f"{problem}.safetensors")
    record = next(adapter for adapter in Bundle.open(task_bundle).manifest.adapters if adapter.name == problem)
    assert record.task is not None
    largest = np.finfo(np.float32).max
    if problem in {"embedding", "sparse_embedding"}:  # the head has no tensors: an earlier value overflows
        large = {name: np.full_like(tensor, largest) for name, tensor in tensors.items() if ".ffn." in name}
    else:
        own = [name for name, tensor in tensors.items() if ".head." in name and tensor.any()]
        large = {name: np.full_like(tensors[name], largest) for name in own}
    assert large
    file = write_adapter_file(task_bundle, tmp_path / "large.onnx_adapter", {**tensors, **large})
    said = {"task": problem, "labels": ",".join(record.task.labels)}
    loaded = task_service.put("/adapters/large", content=file.read_bytes(), params=said)
    assert loaded.status_code == 200, loaded.text
    try:
        call = {"inputs": INPUTS, "adapter": "large", "context": [[1, 1]]}
        answer = task_service.post("/answer", json=call)
        raw = task_service.post("/run", json={"inputs": INPUTS, "adapter": "large"})
    finally:
        task_service.delete("/adapters/large")
    for response in (answer, raw):
        assert (response.status_code, "NaN or infinite" in response.json()["error"]) == (400, True), response.text


@pytest.mark.parametrize(
    "body",
    ["{", '{"inputs": {}, "inputs": {}}', "\xff", '{"inputs": NaN}', '{"inputs": 1e400}', '{"inputs": "\\ud800"}'],
)
def test_invalid_json_is_refused(service: httpx2.Client, body: str) -> None:
    answer = service.post("/answer", content=body.encode("latin-1"))
    assert answer.status_code == 400
    assert "no JSON" in answer.json()["error"]


def test_invalid_adapter_files_and_unknown_paths_are_refused(service: httpx2.Client) -> None:
    answer = service.put("/adapters/bad", content=b"no adapter at all")
    assert (answer.status_code, "no ONNX Runtime adapter file" in answer.json()["error"]) == (400, True)
    assert service.delete("/adapters/bad").status_code == 400
    nowhere = service.get("/elsewhere")
    assert (nowhere.status_code, "/elsewhere" in nowhere.json()["error"]) == (404, True)


def test_oversized_requests_and_too_many_adapters_are_refused(service: httpx2.Client, small_bundle: Path) -> None:
    large = b" " * (2**22 + 1)
    assert service.post("/answer", content=large).status_code == 413
    assert service.post("/answer", content=(large[at::2] for at in range(2))).status_code == 413
    data = (small_bundle / "adapters/tone.onnx_adapter").read_bytes()
    with ThreadPoolExecutor(4) as pool:
        put = pool.map(lambda number: service.put(f"/adapters/more{number}", content=data).status_code, range(66))
        assert sorted(put) == [*[200] * 64, 409, 409]
    for number in range(66):
        service.delete(f"/adapters/more{number}")


def test_clients_that_send_slowly_stop_nobody(service: httpx2.Client) -> None:
    """Sixteen of them, a letter at a time: eight were enough to stop all others. Their connections end."""
    address = (service.base_url.host, service.base_url.port or 0)
    slow = [socket.create_connection(address) for _ in range(16)]
    start = time.monotonic()
    for client in slow:
        client.sendall(b"POST /run HTTP/1.1\r\nhost: a\r\nx: ")
        client.setblocking(False)
    left = set(slow)
    while left and time.monotonic() < start + 30:
        assert httpx2.get(f"{service.base_url}/adapters", timeout=15, trust_env=False).status_code == 200
        for client in list(left):
            try:
                client.sendall(b"x")
                if client.recv(1) == b"":
                    left.remove(client)
            except BlockingIOError:  # nothing to read
                continue
            except ConnectionError:
                left.remove(client)
        time.sleep(0.5)
    for client in slow:
        client.close()
    assert not left
    assert time.monotonic() > start + 9  # for as long, they may


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_service_answers_received_requests_before_it_stops(
    cpp_build: Path, small_bundle: Path, how: signal.Signals
) -> None:
    """Requests received before are answered."""
    rows = 512
    inputs = {"input_ids": [[5] * 60] * rows, "attention_mask": [[1] * 60] * rows}
    body = json.dumps({"inputs": inputs, "adapter": "base"})
    with _started(cpp_build, small_bundle) as (process, client):
        address = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=60)
        with closing(address) as connection:
            connection.request("POST", "/answer", body)
            client.get("/adapters")  # came later, and was answered: the other request is being computed
            process.send_signal(how)
            assert len(json.loads(connection.getresponse().read())["rows"]) == rows
        client.close()
        assert process.wait(timeout=30) == 0


def test_a_damaged_bundle_does_not_start(cpp_build: Path, damaged_bundle: Path) -> None:
    path = damaged_bundle / "adapters/tone.onnx_adapter"
    path.write_bytes(path.read_bytes()[:-1])
    command = [str(cpp_build / "bundle_server"), str(damaged_bundle), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "recorded size" in done.stderr

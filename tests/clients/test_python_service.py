"""`adapter-export serve` on a free loopback port, by the API that the service in C++ has, too."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from tiers import extended

from adapter_export.bundle.texts import answer_faults
from adapter_export.format.golden_batches import read_golden_batches
from adapter_export.runtime import Bundle, Session
from adapter_export.text import MOST_CHARACTERS, Tokenizer

TEXTS = ("Good.", "How far away is the moon?", "It was a long film, and nobody in it knew why.", "No")
NAMES = ("wide", "narrow", "first")


@pytest.fixture(scope="module")
@extended
def service(conformance_bundle: Path) -> Iterator[httpx2.Client]:
    limits = ["--max-adapters", "3", "--read-timeout", "3", "--drain", "0", "--quiet"]
    command = [sys.executable, "-m", "adapter_export", "serve", str(conformance_bundle), "--port", "0", *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:")
            with httpx2.Client(base_url=line.split()[-1], timeout=60, trust_env=False) as client:
                yield client
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def session(conformance_bundle: Path) -> Session:
    return Bundle.open(conformance_bundle).session(threads=1)


def _expected(session: Session, bundle: Path, text: str, adapter: str) -> dict[str, float]:
    """One text and one adapter on their own."""
    manifest = Bundle.open(bundle, verify=False).manifest
    assert manifest.text is not None
    tokenizer = Tokenizer.from_folder(bundle, manifest.max_tokens)
    inputs = tokenizer.batch([text], [record.name for record in manifest.inputs])
    return dict(session.classify(inputs, adapter)[0].probabilities)


def _holds(found: dict, expected: dict[str, float]) -> None:
    assert found["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert found["label"] == max(expected, key=lambda label: expected[label])


def test_concurrent_requests_get_answers_of_their_adapters(
    service: httpx2.Client, session: Session, conformance_bundle: Path
) -> None:
    expected = {(t, n): _expected(session, conformance_bundle, t, n) for t in TEXTS for n in NAMES}

    def ask(seed: int) -> int:
        rng = np.random.default_rng(seed)
        for _ in range(6):
            text, name = TEXTS[rng.integers(len(TEXTS))], NAMES[rng.integers(len(NAMES))]
            answer = service.post("/answer", json={"adapter": name, "texts": [text]})
            assert answer.status_code == 200
            _holds(answer.json()["rows"][0], expected[text, name])
        return seed

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == list(range(16))


def test_service_answers_a_mixed_batch(service: httpx2.Client, session: Session, conformance_bundle: Path) -> None:
    names = ["first", "wide", "narrow", "wide"]
    answer = service.post("/answer", json={"adapters": names, "texts": list(TEXTS)}).json()["rows"]
    for found, text, name in zip(answer, TEXTS, names, strict=True):
        _holds(found, _expected(session, conformance_bundle, text, name))


def test_service_answers_arrays_and_returns_outputs_of_the_base(service: httpx2.Client, session: Session) -> None:
    arrays = {"input_ids": [[101, 2040, 102]], "attention_mask": [[1] * 3], "token_type_ids": [[0] * 3]}
    given = {name: np.array(rows, np.int64) for name, rows in arrays.items()}
    (found,) = service.post("/answer", json={"adapter": "wide", "inputs": arrays}).json()["rows"]
    _holds(found, dict(session.classify(given, "wide")[0].probabilities))
    (found,) = service.post("/answer", json={"adapter": "base", "texts": ["a text"]}).json()["rows"]
    assert set(found) == {"adapter", "task", "outputs"}
    assert set(found["outputs"]) == {"last_hidden_state", "pooler_output"}


def test_service_truncates_long_texts_and_reports_the_count(service: httpx2.Client) -> None:
    found = service.post("/answer", json={"adapter": "wide", "texts": ["moon " * 600, "moon"]}).json()["rows"]
    assert found[0]["cut"] == 600 + 2 - 512
    assert "cut" not in found[1]


def test_padded_arrays_reproduce_golden_batches(service: httpx2.Client, conformance_bundle: Path) -> None:
    """Padding after the tokens changes no answer; outputs of the base exclude padded positions."""
    for batch in read_golden_batches(conformance_bundle / "golden" / "batches.json").batches:
        longest = max(len(row.inputs["input_ids"]) for row in batch.rows)
        padded = {
            name: [row.inputs[name] + [0] * (longest - len(row.inputs[name])) for row in batch.rows]
            for name in batch.rows[0].inputs
        }
        body = {"adapters": [row.adapter for row in batch.rows], "inputs": padded}
        found = service.post("/answer", json=body).json()["rows"]
        assert [one["adapter"] for one in found] == body["adapters"]
        for one, row in zip(found, batch.rows, strict=True):
            said = {key: value for key, value in one.items() if key not in ("adapter", "task")}
            if row.adapter is None:
                tokens = len(row.inputs["input_ids"])
                said["outputs"]["last_hidden_state"] = said["outputs"]["last_hidden_state"][:tokens]
            assert not list(answer_faults(said, row.answer, row.absolute, decided=row.decided))


def test_service_returns_outputs_for_arrays(service: httpx2.Client, session: Session) -> None:
    ids = [[101, 2040, 102], [101, 2054, 102]]
    arrays = {"input_ids": ids, "attention_mask": [[1] * 3] * 2, "token_type_ids": [[0] * 3] * 2}
    answer = service.post("/run", json={"adapters": ["wide", None], "inputs": arrays}).json()
    (wide, base) = (row["outputs"] for row in answer["rows"])
    given = {name: np.array(rows, np.int64) for name, rows in arrays.items()}
    expected = session.run(given, "wide")["logits"][0]
    np.testing.assert_allclose(wide["logits"], expected, rtol=0, atol=1e-5)
    assert "logits" not in base
    np.testing.assert_allclose(base["pooler_output"], session.run(given)["pooler_output"][1], rtol=0, atol=1e-5)


def test_adapters_come_and_go(service: httpx2.Client, conformance_bundle: Path) -> None:
    data = (conformance_bundle / "adapters/narrow.onnx_adapter").read_bytes()
    assert "new" in service.put("/adapters/new", content=data, params={"labels": "left,right"}).json()
    call = {"adapters": ["new", "narrow", "wide"], "texts": ["Good.", "Good.", "Good."]}
    new, narrow, _ = service.post("/answer", json=call).json()["rows"]
    assert list(new["probabilities"]) == ["left", "right"]
    values = [list(each["probabilities"].values()) for each in (new, narrow)]
    np.testing.assert_allclose(values[0], values[1], rtol=0, atol=1e-5)
    assert "already loaded" in service.put("/adapters/new", content=data).json()["error"]
    assert "new" not in service.delete("/adapters/new").json()
    assert "new" not in service.get("/adapters").json()
    loads = re.findall(r'_loads_total\{bundle="[^"]*",cache="bank"\} (\S+)', service.get("/metrics").text)
    assert [float(count) >= 1 for count in loads] == [True]


@pytest.mark.parametrize(
    ("path", "call", "words"),
    [
        ("/answer", {"adapter": "nobody", "texts": ["a"]}, "`nobody`: is not loaded"),
        ("/answer", {"adapter": "wide", "texts": [{"text": "a", "pair": "b"}]}, "of another kind than the task takes"),
        ("/answer", {"adapter": "wide", "texts": ["a"], "inputs": {"input_ids": [[1]]}}, "more than one kind of rows"),
        ("/answer", {"adapters": ["wide"], "texts": ["a", "b"]}, "one name per row"),
        ("/run", {"adapter": "wide"}, "the call has no rows"),
        ("/run", {"adapter": "wide", "texts": []}, "there is no text"),
        ("/run", {"adapter": "wide", "inputs": {"input_ids": [[1]]}}, "no `attention_mask`"),
        (
            "/run",
            {"inputs": {name: [[10**6]] for name in ("input_ids", "attention_mask", "token_type_ids")}},
            "out of range",
        ),
        ("/run", {"inputs": {"input_ids": [[1], [2]], "attention_mask": [[1]]}}, "different numbers of rows"),
    ],
)
def test_invalid_requests_are_refused(service: httpx2.Client, path: str, call: dict, words: str) -> None:
    answer = service.post(path, json=call)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_files_that_are_no_adapters_are_refused(service: httpx2.Client) -> None:
    answer = service.put("/adapters/bad", content=b"no adapter at all")
    assert answer.status_code == 400
    assert "not an ONNX Runtime adapter file" in answer.json()["error"]
    assert service.post("/run", json={"unknown": 1}).status_code == 400


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400", '"\\ud800"', "[[[[[[1]]]]]]", "1" * 5000])
def test_values_outside_json_are_refused(service: httpx2.Client, number: str) -> None:
    """NaN was a status of 500: the error itself could not be written as JSON."""
    for body in (f'{{"inputs": {{"input_ids": [[{number}]]}}}}', f'{{"texts": [{number}]}}'):
        answer = service.post("/run", content=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]
    assert "repeats the key" in service.post("/run", content='{"adapter": "wide", "adapter": "narrow"}').json()["error"]


def test_oversized_requests_and_too_many_adapters_are_refused(service: httpx2.Client, conformance_bundle: Path) -> None:
    assert service.post("/answer", content=b"[" * (2**22 + 1)).status_code == 413
    chunks = (b"[" * 2**20 for _ in range(5))  # without its length in the head
    assert service.post("/answer", content=chunks).status_code == 413
    long = "a" * (MOST_CHARACTERS + 1)
    assert "1,000,000" in service.post("/answer", json={"adapter": "wide", "texts": [long]}).json()["error"]
    assert "256" in service.post("/answer", json={"adapter": "wide", "texts": ["a"] * 257}).json()["error"]
    data = (conformance_bundle / "adapters/narrow.onnx_adapter").read_bytes()
    with ThreadPoolExecutor(5) as pool:
        statuses = list(pool.map(lambda n: service.put(f"/adapters/more{n}", content=data).status_code, range(5)))
    assert sorted(statuses) == [200, 200, 200, 409, 409]
    for number, status in enumerate(statuses):
        if status == 200:
            service.delete(f"/adapters/more{number}")


def test_clients_that_send_slowly_are_sent_away(service: httpx2.Client) -> None:
    """Half of a head, half of a second head, half of a body."""
    halves = (b"POST /answer HTTP/1.1\r\nhost: a\r\n", b"GET /adapters HTTP/1.1\r\nhost: a\r\n\r\nGET /ad")
    body = b"POST /answer HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{"
    address = (service.base_url.host, service.base_url.port or 0)
    connections = [socket.create_connection(address, timeout=60) for _ in range(3)]
    for connection, half in zip(connections, (*halves, body), strict=True):
        connection.sendall(half)
    found = [b"".join(iter(lambda one=one: one.recv(2**16), b"")) for one in connections]  # until they are closed
    for connection in connections:
        connection.close()
    assert found[0] == b""
    assert found[1].startswith(b"HTTP/1.1 200")
    assert found[1].count(b"HTTP/1.1") == 1
    assert found[2].startswith(b"HTTP/1.1 408")


def test_a_long_text_stops_no_other_request(service: httpx2.Client) -> None:
    """While it is cut into tokens, others are answered."""
    body = json.dumps({"adapter": "wide", "texts": ["far moon " * 11_000] * 3})

    def ask() -> float:
        began = time.perf_counter()
        assert service.post("/answer", content=body).status_code == 200
        return time.perf_counter() - began

    with ThreadPoolExecutor(1) as pool:
        asking, waits = pool.submit(ask), [0.0]
        while not asking.done():
            began = time.perf_counter()
            assert service.get("/adapters").status_code == 200
            waits.append(time.perf_counter() - began)
    assert max(waits) < 0.5 * asking.result()


@pytest.mark.extended
def test_a_damaged_bundle_does_not_start(copied_bundle: Path) -> None:
    path = copied_bundle / "adapters/narrow.onnx_adapter"
    path.write_bytes(path.read_bytes()[:-1])
    command = [sys.executable, "-m", "adapter_export", "serve", str(copied_bundle), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "recorded size" in done.stderr

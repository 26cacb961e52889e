"""The Open Inference Protocol v2, with raw requests and with the clients of Triton and KServe."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton

from adapter_export.runtime import Bundle
from adapter_export.runtime.text_reader import TextReader
from adapter_export.text import MOST_CHARACTERS
from adapter_export.version import __version__

TEXTS = ["who wrote it ?", "a good film and the book was not dull .", "moon"]


@pytest.fixture(scope="module")
def reader(film: Path) -> TextReader:
    return Bundle.open(film).texts()


@pytest.fixture
def client(server: httpx2.Client) -> Iterator[triton.InferenceServerClient]:
    made = triton.InferenceServerClient(f"{server.base_url.host}:{server.base_url.port}")
    yield made
    made.close()


def _texts(name: str, texts: list[str], *, binary: bool) -> triton.InferInput:
    given = triton.InferInput(name, [len(texts)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in texts], object), binary_data=binary)
    return given


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("model", ["topic", "tone", "film/mood"])
def test_texts_are_answered_over_the_protocol(
    client: triton.InferenceServerClient, reader: TextReader, model: str, binary: bool
) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("answer", "label", "logits")]
    found = client.infer(model, [_texts("text", TEXTS, binary=binary)], outputs=wanted, request_id="7")
    expected = reader.answer(TEXTS, model.rpartition("/")[2])
    answers = [json.loads(text) for text in found.as_numpy("answer")]
    for answer, one, label in zip(answers, expected, found.as_numpy("label"), strict=True):
        said = one.document()
        assert answer["label"] == said["label"] == (label.decode() if binary else label)
        assert answer["probabilities"] == pytest.approx(said["probabilities"], abs=1e-5)
    logits = found.as_numpy("logits").astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert logits.dtype == np.float64
    assert logits.shape == (3, len(answers[0]["probabilities"]))
    np.testing.assert_allclose(shares, [list(one["probabilities"].values()) for one in answers], atol=1e-5)
    assert found.get_response()["id"] == "7"


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize(("model", "output"), [("topic", "logits"), ("film", "hidden")])
def test_tensors_are_answered_over_the_protocol(
    client: triton.InferenceServerClient, reader: TextReader, model: str, output: str, binary: bool
) -> None:
    """Default outputs: all of a base, the head of an adapter."""
    arrays = {
        "input_ids": np.array([[2, 5, 6, 3], [2, 7, 3, 0]]),
        "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    given = []
    for name, array in arrays.items():
        given.append(triton.InferInput(name, list(array.shape), "INT64"))
        given[-1].set_data_from_numpy(array, binary_data=binary)
    wanted = None if binary else [triton.InferRequestedOutput(output, binary_data=False)]
    found = client.infer(model, given, outputs=wanted).as_numpy(output)
    expected = reader.session.run(arrays, None if model == "film" else model)[output]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_strength_is_a_request_parameter(client: triton.InferenceServerClient, reader: TextReader) -> None:
    found = client.infer("topic", [_texts("text", TEXTS, binary=True)], parameters={"strength": -2}, priority=1)
    expected = [one.document()["probability"] for one in reader.answer(TEXTS, "topic", strength=-2)]
    assert found.as_numpy("probability") == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx([one.document()["probability"] for one in reader.answer(TEXTS, "topic")], abs=1e-3)


def test_server_and_model_metadata_are_reported(client: triton.InferenceServerClient, film: Path) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["version"] == __version__
    digest = {file.path: file.sha256 for file in Bundle.open(film).manifest.files}["adapters/topic.onnx_adapter"]
    known = client.get_model_metadata("topic")
    assert known["versions"] == [digest[:12]]
    assert {one["name"]: one["datatype"] for one in known["inputs"]} == {
        "text": "BYTES",
        "input_ids": "INT64",
        "attention_mask": "INT64",
    }
    assert known["outputs"][0] == {"name": "answer", "datatype": "BYTES", "shape": [-1]}
    assert client.is_model_ready("topic")
    assert client.is_model_ready("topic", digest[:12])
    assert client.is_model_ready(f"topic@sha256:{digest}")
    assert not client.is_model_ready("topic", "0123456789ab")
    assert not client.is_model_ready("nobody")
    assert {"film", "topic", "tone", "mood"} <= {one["name"] for one in client.get_model_repository_index()}


def _input(**changed: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], **changed}


def _ids(one: object, name: str = "input_ids") -> dict[str, Any]:
    return {"name": name, "shape": [1, 1], "datatype": "INT64", "data": [one]}


@pytest.mark.parametrize(
    ("model", "request_", "status", "words"),
    [
        ("nobody", {"inputs": [_input()]}, 404, "no model `nobody`"),
        (f"topic@sha256:{'0' * 64}", {"inputs": [_input()]}, 404, "has the digest"),
        ("topic", {"inputs": [_input(shape=[2])]}, 400, "does not match its shape"),
        ("topic", {"inputs": [_input(shape=[-1])]}, 400, "does not match its shape"),
        ("topic", {"inputs": [_input(datatype="TEXT")]}, 400, "unknown type"),
        ("topic", {"inputs": [_input(data=[1])]}, 400, "does not match its shape"),
        ("topic", {"inputs": [_input(data=None)]}, 400, "either `data` or binary data"),
        ("topic", {"inputs": [_input(), _input()]}, 400, "is duplicated"),
        ("topic", {"inputs": [_input(data=["a" * (MOST_CHARACTERS + 1)])]}, 400, "too long"),
        ("topic", {"inputs": [_input(shape=[257], data=["a"] * 257)]}, 400, "too few or too many rows"),
        ("topic", {"inputs": [_input(shape=[0], data=[])]}, 400, "too few or too many rows"),
        ("topic", {"inputs": [_input(), _input(name="input_ids")]}, 400, "both texts and other inputs"),
        ("topic", {"inputs": [_ids(2.5)]}, 400, "does not match its shape"),
        ("topic", {"inputs": [_ids(2**70)]}, 400, "out of the range of its type"),
        ("topic", {"inputs": [_ids([2])]}, 400, "no `attention_mask`"),
        ("topic", {"inputs": [_ids(99), _ids(1, name="attention_mask")]}, 400, "out of range"),
        ("topic", {"inputs": [_input()], "outputs": [{"name": "other"}]}, 400, "unknown output"),
        ("topic", {"inputs": [_input(parameters={"binary_data_size": 3}, data=None)]}, 400, "less data than declared"),
        ("topic", {"inputs": []}, 400, "expected form"),
        ("topic", {"inputs": [_input()], "parameters": {"strenght": 2}}, 400, "parameters.strenght: the request"),
        ("topic", {"inputs": [_input()], "parameters": {"sequence_id": 2}}, 400, "parameters.sequence_id"),
        ("topic", {"inputs": [_input()], "parameters": {"strength": 1e4}}, 400, "is no strength"),
        ("film", {"inputs": [_input(shape=[2], data=["a", "a good book"])]}, 400, "differ in length"),
    ],
)
def test_invalid_requests_are_refused(
    server: httpx2.Client, model: str, request_: dict[str, Any], status: int, words: str
) -> None:
    answer = server.post(f"/v2/models/{model}/infer", json=request_)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "100000", "3"])
def test_a_wrong_header_length_is_refused(server: httpx2.Client, length: str) -> None:
    body = json.dumps({"inputs": [_input()]})
    answer = server.post("/v2/models/topic/infer", content=body, headers={"inference-header-content-length": length})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("raw", [b"\x05\x00\x00\x00abc", b"\x02\x00\x00\x00\xff\xfe", b"\x01"])
def test_invalid_binary_texts_are_refused(server: httpx2.Client, raw: bytes) -> None:
    head = json.dumps({"inputs": [{**_input(parameters={"binary_data_size": len(raw)}), "data": None}]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    assert server.post("/v2/models/topic/infer", content=head + raw, headers=headers).status_code == 400


KSERVE = """
import asyncio, json, sys
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def call(address, texts):
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    assert await client.is_server_ready(address)
    assert await client.is_model_ready(address, "tone")
    text = InferInput("text", [len(texts)], "BYTES")
    text.data = texts
    found = await client.infer(address, InferRequest("tone", [text]), model_name="tone")
    print(json.dumps({output.name: output.data for output in found.outputs}))

asyncio.run(call(sys.argv[1], json.loads(sys.argv[2])))
"""


def test_client_of_kserve_gets_the_same_answers(
    server: httpx2.Client, reader: TextReader, platform_python: str
) -> None:
    words = [platform_python, "-c", KSERVE, str(server.base_url), json.dumps(TEXTS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = [one.document() for one in reader.answer(TEXTS, "tone")]
    assert found["label"] == [one["label"] for one in expected]
    assert found["probability"] == pytest.approx([one["probability"] for one in expected], abs=1e-5)

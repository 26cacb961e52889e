"""KServe's Python server with a bundle and KServe's client, and the `InferenceService`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from bodies import checked
from clients import alike
from servers import answers_at, free_port, running

import adapter_export as ae

TEXTS = ["who wrote it?", "a bad film."]

CLIENT = """
import asyncio
import json
import sys

import httpx
import yaml
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve import V1beta1InferenceService, V1beta1PredictorSpec
from kubernetes.client import ApiClient, V1Container, V1Volume

address, grpc, texts, description = *sys.argv[1:3], json.loads(sys.argv[3]), open(sys.argv[4]).read()

# every field is one that the classes of KServe and Kubernetes know
service = yaml.safe_load(description)
assert set(service) <= set(V1beta1InferenceService.attribute_map.values())
predictor = service["spec"]["predictor"]
assert set(predictor) <= set(V1beta1PredictorSpec.attribute_map.values())
for known, name in ((V1Container, "containers"), (V1Volume, "volumes")):
    assert ApiClient().sanitize_for_serialization([known.from_dict(one) for one in predictor[name]]) == predictor[name]


async def call():
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    assert await client.is_server_ready(address)
    found = await client.infer(address, request(texts), model_name="tone")
    print(json.dumps([json.loads(one) for one in found.outputs[0].data]))
    given = {"input_ids": [2, 5, 3, 0, 0, 0, 2, 7, 9, 3, 2, 6, 8, 11, 3], "attention_mask": [1] * 3 + [0] * 3 + [1] * 9}
    arrays = [InferInput(name, [3, 5], "INT64", array) for name, array in given.items()]
    print(json.dumps((await client.infer(address, InferRequest("tone", arrays), model_name="tone")).outputs[0].data))
    v1 = InferenceRESTClient(RESTConfig(protocol="v1", timeout=60))
    print(json.dumps((await v1.infer(address, {"instances": texts}, model_name="topic"))["predictions"]))
    by_grpc = await InferenceGRPCClient(grpc).infer(request(texts, strength="0.5"))
    print(json.dumps([json.loads(one) for one in by_grpc.outputs[0].data]))
    half = await client.infer(address, request(texts, strength=0.5), model_name="tone")
    print(json.dumps([json.loads(one) for one in half.outputs[0].data]))
    arrays = InferRequest("tone", arrays, parameters={"strength": 0.5})
    print(json.dumps((await client.infer(address, arrays, model_name="tone")).outputs[0].data))
    each = {"instances": texts, "strength": [0.5, -2]}
    print(json.dumps((await v1.infer(address, each, model_name="topic"))["predictions"]))
    weights = {"topic": 2.0, "tone": -0.5}
    weighed = request(texts, "fused", weights=json.dumps(weights))
    found = await client.infer(address, weighed, model_name="fused")
    print(json.dumps([json.loads(one) for one in found.outputs[0].data]))
    weighed = {"instances": texts, "weights": [weights, None]}
    print(json.dumps((await v1.infer(address, weighed, model_name="fused"))["predictions"]))
    no_id = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": texts}]}
    async with httpx.AsyncClient() as plain:
        found = (await plain.post(f"{address}/v2/models/tone/infer", json=no_id)).json()
    print(json.dumps([json.loads(one) for one in found["outputs"][0]["data"]]))
    wrongs = [request(["a\\0b"]), request(texts, strenght=0.5), request(texts, strength=True)]
    for wrong in (*wrongs, request(texts, weights="1")):
        try:
            await client.infer(address, wrong, model_name="tone")
        except httpx.HTTPStatusError as error:
            print(json.dumps(str(error) + error.response.text))
    lists = ({"instances": [["w1", "w2"]]}, {"instances": [["w1"]]}, {"instances": []})
    pairs = ({"instances": [{"text": "a", "pair": "b"}]}, {"instances": [{"text": "a", "choices": ["b", "c"]}]})
    weights = ({"weights": 3}, {"weights": [1, 2]})
    for wrong in ({"strenght": 0.5}, {"strength": 1001}, {"strength": [1]}, *lists, *pairs, *weights):
        try:
            await v1.infer(address, {"instances": texts, **wrong}, model_name="topic")
        except httpx.HTTPStatusError as error:
            print(json.dumps(str(error) + error.response.text))


def request(texts, model="tone", **parameters):
    text = InferInput("text", [len(texts)], "BYTES")
    text.data = texts
    return InferRequest(model, [text], parameters=parameters)


asyncio.run(call())
"""


def test_kserves_client_gets_the_answers_of_adapters_by_their_names(
    counted: Path, slim: dict[str, str], platform_python: str, tmp_path: Path
) -> None:
    """Each row equals its single answer, on a base that counts padding."""
    bundle = counted
    shipped = ae.ship(bundle, tmp_path / "kserve", layout="kserve", name="small")
    stored = shipped.folder / "storage" / "small"
    assert ae.open_bundle(stored).manifest == ae.open_bundle(bundle).manifest
    port, other = free_port(), free_port()
    server = [platform_python, shipped.folder / "kserve_server.py", "--model_dir", stored, "--http_port", port]
    address = f"http://127.0.0.1:{port}"
    with running([*server, "--grpc_port", other], tmp_path, slim, lambda: answers_at(f"{address}/v2/health/ready")):
        given = [address, f"127.0.0.1:{other}", json.dumps(TEXTS), shipped.folder / "inferenceservice.yaml"]
        words = [platform_python, "-c", CLIENT, *given]
        done = subprocess.run(words, env=slim, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    of_v2, logits, of_v1, by_grpc, half, half_logits, each, weighed, weighed_each, no_id, *refusals = map(
        json.loads, done.stdout.splitlines()
    )
    session = ae.open_bundle(bundle).session()
    reader = ae.open_bundle(bundle).texts(session)

    def said(adapter: str, **choice: Any) -> list[dict[str, Any]]:
        common = {"adapter": adapter, "task": "single_label"}
        return [checked({**common, **one.document()}, "answer") for one in reader.answer(TEXTS, adapter, **choice)]

    def alone(**choice: Any) -> list[float]:
        rows = [np.array([row]) for row in ([2, 5, 3], [2, 7, 9, 3], [2, 6, 8, 11, 3])]
        given = ({"input_ids": row, "attention_mask": np.ones_like(row)} for row in rows)
        return [float(one) for row in given for one in session.run(row, "tone", **choice)["logits"][0]]

    alike(of_v2, said("tone"))
    alike(no_id, of_v2)  # KServe's response needs an id
    alike(of_v1, said("topic"))
    alike(logits, alone())
    alike(by_grpc, half)
    alike(half, said("tone", strength=0.5))
    alike(half_logits, alone(strength=0.5))
    alike(each, said("topic", strength=[0.5, -2]))
    weights = {"topic": 2.0, "tone": -0.5}
    alike(weighed, said("fused", weights=weights))
    alike(weighed_each, [weighed[0], said("fused")[1]])
    reasons = (
        "NUL",
        "parameters.strenght",
        "is no strength",
        "no weights of a fusion",
        "strenght: the request",
        "is no strength",
        "expected 2",
        "instance 0: is not a text",
        "instance 0: is not a text",
        "at least one row",
        "of another kind",
        "of another kind",
        "no weights of a fusion",
        "no weights of a fusion",
    )
    for refusal, words in zip(refusals, reasons, strict=True):
        assert "400 Bad Request" in refusal
        assert words in refusal

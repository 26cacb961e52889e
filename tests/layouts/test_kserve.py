"""KServe's Python server with a bundle, called by KServe's own client, and its `InferenceService`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
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
    given = {"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1]}
    arrays = [InferInput(name, [1, 3], "INT64", array) for name, array in given.items()]
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
    for wrong in (request(["a\\0b"]), request(texts, strenght=0.5), request(texts, strength=True)):
        try:
            await client.infer(address, wrong, model_name="tone")
        except httpx.HTTPStatusError as error:
            print(json.dumps(str(error) + error.response.text))
    for wrong in ({"strenght": 0.5}, {"strength": 1001}, {"strength": [1]}):
        try:
            await v1.infer(address, {"instances": texts, **wrong}, model_name="topic")
        except httpx.HTTPStatusError as error:
            print(json.dumps(str(error) + error.response.text))


def request(texts, **parameters):
    text = InferInput("text", [len(texts)], "BYTES")
    text.data = texts
    return InferRequest("tone", [text], parameters=parameters)


asyncio.run(call())
"""


def test_kserves_client_gets_the_answers_of_adapters_by_their_names(
    bundle: Path, slim: dict[str, str], platform_python: str, tmp_path: Path
) -> None:
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
    of_v2, logits, of_v1, by_grpc, half, half_logits, each, *refusals = map(json.loads, done.stdout.splitlines())
    reader = ae.open_bundle(bundle).texts()
    alike(of_v2, [one.document() for one in reader.answer(TEXTS, "tone")])
    alike(of_v1, [one.document() for one in reader.answer(TEXTS, "topic")])
    inputs = {"input_ids": np.array([[2, 5, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
    alike(logits, ae.open_bundle(bundle).session().run(inputs, "tone")["logits"][0].tolist())
    alike(by_grpc, half)
    alike(half, [one.document() for one in reader.answer(TEXTS, "tone", strength=0.5)])
    alike(half_logits, ae.open_bundle(bundle).session().run(inputs, "tone", strength=0.5)["logits"][0].tolist())
    alike(each, [one.document() for one in reader.answer(TEXTS, "topic", strength=[0.5, -2])])
    reasons = (
        "NUL",
        "parameters.strenght",
        "is no strength",
        "strenght: the request",
        "is no strength",
        "one for each",
    )
    for refusal, words in zip(refusals, reasons, strict=True):
        assert "400 Bad Request" in refusal
        assert words in refusal

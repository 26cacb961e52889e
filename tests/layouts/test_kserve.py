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
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve import V1beta1InferenceService, V1beta1PredictorSpec
from kubernetes.client import ApiClient, V1Container, V1Volume

address, texts, description = sys.argv[1], json.loads(sys.argv[2]), open(sys.argv[3]).read()

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
    try:
        await client.infer(address, request(["a\\0b"]), model_name="tone")
    except httpx.HTTPStatusError as error:
        print(json.dumps(str(error)))


def request(texts):
    text = InferInput("text", [len(texts)], "BYTES")
    text.data = texts
    return InferRequest("tone", [text])


asyncio.run(call())
"""


def test_kserves_client_gets_the_answers_of_adapters_by_their_names(
    bundle: Path, slim: dict[str, str], platform_python: str, tmp_path: Path
) -> None:
    shipped = ae.ship(bundle, tmp_path / "kserve", layout="kserve", name="small")
    stored = shipped.folder / "storage" / "small"
    assert ae.open_bundle(stored).manifest == ae.open_bundle(bundle).manifest
    port = free_port()
    server = [platform_python, shipped.folder / "kserve_server.py", "--model_dir", stored, "--http_port", port]
    address = f"http://127.0.0.1:{port}"
    with running([*server, "--enable_grpc", "false"], tmp_path, slim, lambda: answers_at(f"{address}/v2/health/ready")):
        words = [platform_python, "-c", CLIENT, address, json.dumps(TEXTS), shipped.folder / "inferenceservice.yaml"]
        done = subprocess.run(words, env=slim, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    of_v2, logits, of_v1, refusal = map(json.loads, done.stdout.splitlines())
    reader = ae.open_bundle(bundle).texts()
    alike(of_v2, [one.document() for one in reader.answer(TEXTS, "tone")])
    alike(of_v1, [one.document() for one in reader.answer(TEXTS, "topic")])
    inputs = {"input_ids": np.array([[2, 5, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
    alike(logits, ae.open_bundle(bundle).session().run(inputs, "tone")["logits"][0].tolist())
    assert "400 Bad Request" in refusal

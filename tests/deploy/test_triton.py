"""Triton's model repository, checked by Triton's schema and a server with its rules."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from bodies import checked
from clients import alike
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from servers import free_port, running

import adapter_export as ae

TEXTS = ["who wrote it?", "a bad film."]
WEIGHTS = {"topic": 2.0, "tone": -0.5}
ROWS = ([2, 5, 3], [2, 7, 9, 12, 3], [2, 6, 3])

ARRAYS = """
import json
import sys

import numpy as np
import tritonclient.grpc
from adapter_export_runtime import Bundle
from adapter_export_runtime.runtime.answerer import Answerer, Row

folder, url, path = sys.argv[1:]
sys.path.insert(0, folder)
from triton_client import TritonSession

ids = np.array([[2, 5, 3, 1, 1], [2, 7, 9, 12, 3], [1, 1, 2, 6, 3]])
mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
for model, by in (("small", "slots"), ("small-bank", "bank")):
    session = TritonSession(tritonclient.grpc.InferenceServerClient(url), model, Bundle.open(path), by)
    asked = [{"input_ids": ids[at : at + 1], "attention_mask": mask[at : at + 1]} for at in range(3)]
    answers = Answerer(session).answer([Row(one, "tone") for one in asked])
    bases = Answerer(session).answer([Row(one) for one in asked])
    for at, (answer, base) in enumerate(zip(answers, bases, strict=True)):
        keys = {key: value for key, value in answer.document().items() if key not in ("adapter", "task")}
        print(json.dumps([keys, base.outputs[0]["hidden"][mask[at] == 1].tolist()]))
    texts = Bundle.open(path).texts(session)
    print(json.dumps([one.document() for one in texts.answer(["who wrote it?", "a bad film."], "tone")]))
"""


def test_a_client_sends_an_adapter_and_gets_its_answers(
    counted: Path, slim: dict[str, str], platform_python: str, tmp_path: Path
) -> None:
    """Each row equals its single answer, on a base that counts padding."""
    bundle = counted
    shipped = ae.ship(bundle, tmp_path / "triton", layout="triton", name="small")
    assert {"model_repository/small/1/model.onnx", "model_repository/small-bank/config.pbtxt"} <= set(shipped.files)
    assert not (shipped.folder / "model_repository/small/1/bank.bin").exists()
    _no_part_of_an_adapter_runs(bundle, shipped.folder)
    port = free_port()
    rules = [platform_python, Path(__file__).with_name("triton_rules.py"), shipped.folder / "model_repository", port]
    with running(rules, tmp_path, slim, (tmp_path / "ready").exists):

        def call(adapter: str, *options: str) -> subprocess.CompletedProcess[str]:
            client = [platform_python, str(shipped.folder / "client" / "triton_client.py"), str(bundle)]
            given = ["--url", f"127.0.0.1:{port}", "--adapter", adapter, *options]
            texts = [word for text in TEXTS for word in ("--text", text)]
            words = [*client, *given, *texts]
            return subprocess.run(words, env=slim, capture_output=True, text=True, check=False)

        reader = ae.open_bundle(bundle).texts()

        def said(adapter: str, **choice: Any) -> list[dict[str, Any]]:
            common = {"adapter": adapter, "task": "single_label"}
            return [checked({**common, **one.document()}, "answer") for one in reader.answer(TEXTS, adapter, **choice)]

        expected = said("tone")
        for model in (["--model", "small"], ["--model", "small-bank", "--by", "bank"]):
            done = call("tone", *model)
            assert done.returncode == 0, done.stderr
            alike([json.loads(line) for line in done.stdout.splitlines()], expected)
        half = call("tone", "--model", "small", "--strength", "0.5")
        in_bank = call("tone", "--model", "small-bank", "--by", "bank", "--strength", "0.5")
        refused = call("tone", "--model", "small", "--by", "bank")
        weighed = call("fused", "--model", "small", "--weights", json.dumps(WEIGHTS))
        short = call("fused", "--model", "small", "--weights", '{"topic": 1}')
        words = [platform_python, "-c", ARRAYS, str(shipped.folder / "client"), f"127.0.0.1:{port}", str(bundle)]
        arrays = subprocess.run(words, env=slim, capture_output=True, text=True, check=False)
    halved = said("tone", strength=0.5)
    alike([json.loads(line) for line in half.stdout.splitlines()], halved)
    assert halved != expected
    alike([json.loads(line) for line in weighed.stdout.splitlines()], said("fused", weights=WEIGHTS))
    assert "a finite weight for each of its members" in short.stderr
    assert "no strength and no weights" in in_bank.stderr
    assert arrays.returncode == 0, arrays.stderr
    session = ae.open_bundle(bundle).session()
    *slots, of_slots, first, second, third, of_bank = arrays.stdout.splitlines()
    for line in (of_slots, of_bank):
        alike(json.loads(line), [one.document() for one in reader.answer(TEXTS, "tone")])
    for line, row in zip([*slots, first, second, third], ROWS * 2, strict=True):
        ids = np.array([row])
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        alone = session.answer(given, "tone")[0]
        alike(json.loads(line), [alone.document(), session.run(given)["hidden"][0].tolist()])
    assert "unexpected inference input 'adapter_ids'" in refused.stderr


def _no_part_of_an_adapter_runs(bundle: Path, folder: Path) -> None:
    """The adapter is one optional input; a wrong one is an error."""
    graph = onnxruntime.InferenceSession(folder / "model_repository/small/1/model.onnx")
    session = ae.open_bundle(bundle).session()
    (given,) = graph.get_overridable_initializers()
    names = [output.name for output in graph.get_outputs()]
    inputs = {"input_ids": np.array([[2, 5, 6, 3]]), "attention_mask": np.ones((1, 4), np.int64)}
    for adapter in ("tone", "topic", "mood"):
        numbers = np.fromfile(folder / "adapters" / f"{adapter}.bin", "<f4")
        found = dict(zip(names, graph.run(None, {**inputs, given.name: numbers}), strict=True))
        for output, expected in session.run(inputs, adapter).items():
            np.testing.assert_allclose(found[output], expected, rtol=1e-4, atol=1e-5)
        half = np.concatenate([numbers[: len(numbers) // 2], numbers[:1]])
        for wrong in (numbers[:-1], np.append(numbers, np.float32(0)), half, numbers[:1], np.roll(numbers, 1)):
            with pytest.raises((Fail, InvalidArgument, RuntimeException)):
                graph.run(None, {**inputs, given.name: wrong})
    found = dict(zip(names, graph.run(None, inputs), strict=True))
    for output, expected in session.run(inputs, None).items():
        np.testing.assert_allclose(found[output], expected, rtol=1e-4, atol=1e-5)

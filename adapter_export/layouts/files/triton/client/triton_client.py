"""Answer texts with the adapters of a bundle, whose graph runs on Triton.

    python triton_client.py BUNDLE --model NAME --adapter trec --text 'How far is the moon?' [--strength 0.5]

Texts become tokens here, and results become answers here, by the runtime of adapter-export. With `--by slots` the
tensors of the adapter go with each call, as one input; with `--by bank`, for a model whose graph holds the adapters,
the number of its row does. An adapter at a strength is one with other tensors, so it goes by slots alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from adapter_export_runtime import Bundle, Request
from adapter_export_runtime.errors import RequestError
from adapter_export_runtime.runtime.adapter_file import parse_adapter
from adapter_export_runtime.runtime.strength import STRENGTH_KEY, Scaled, check_strength, scaled, scaled_parameters
from tritonclient.utils import np_to_triton_dtype

ABSENT = -1e30
"""Logits of classes that the adapter of a row does not have are below this in a bank."""


class TritonSession:
    """What `Bundle.texts` takes for a session: calls go to a model on Triton.

    Args:
        client: connected to a server.
        model: its name there.
        bundle: the bundle that the model was made of.
        by: `slots` feeds the tensors of an adapter, `bank` the number of its row.
    """

    def __init__(self, client: triton.InferenceServerClient, model: str, bundle: Bundle, by: str = "slots") -> None:
        self._client, self._model, self._bundle, self._by = client, model, bundle, by
        self._records = {record.name: record for record in bundle.manifest.adapters}
        self._tensors = lru_cache(64)(self._read)

    def task(self, adapter: str) -> Any:
        """Return what an adapter answers."""
        return self._record(adapter).task

    def output(self, adapter: str) -> str | None:
        """Return the output that holds an adapter's result."""
        return self._record(adapter).output

    def answering(self, adapter: str | None) -> Any:
        """Return the task by which an adapter answers."""
        if adapter is None or self.task(adapter) is None:
            raise RequestError("has no task, so it has no answers", where=f"adapter `{adapter}`")
        return self.task(adapter)

    def run_many(self, requests: Sequence[Request], **_: object) -> list[dict[str, np.ndarray]]:
        """Run each request in a call of its own."""
        return [self._run(request) for request in requests]

    def _run(self, request: Request) -> dict[str, np.ndarray]:
        output = self._record(str(request.adapter)).output
        fed = {**request.inputs, **self._fed(request)}
        outputs = [triton.InferRequestedOutput(output)]
        found = self._client.infer(self._model, [_input(*each) for each in fed.items()], outputs=outputs)
        result = found.as_numpy(output)
        return {output: np.where(result < ABSENT, -np.inf, result) if self._by == "bank" else result}

    def _fed(self, request: Request) -> Mapping[str, np.ndarray]:
        strength = check_strength(request.strength)
        if self._by == "slots":
            return self._tensors(str(request.adapter), strength)
        if strength != 1:
            raise RequestError("adapters have no strength in a bank", found=strength, fix="call the model by slots")
        bank = self._bundle.manifest.bank
        rows = len(next(iter(request.inputs.values())))
        return {bank.ids: np.full(rows, bank.rows.index(request.adapter), np.int64)}

    @cached_property
    def _scaled(self) -> Scaled:
        config = self._client.get_model_config(self._model).config
        text = config.parameters[STRENGTH_KEY].string_value or None
        return scaled_parameters(text, self._bundle.manifest.slots, f"the parameters of the model `{self._model}`")

    def _read(self, adapter: str, strength: float) -> Mapping[str, np.ndarray]:
        """Return the one input that holds an adapter: how many numbers each slot has, lengths, numbers."""
        path = self._record(adapter).onnx_adapter
        data = (self._bundle.folder / path).read_bytes()
        (expected,) = (file.sha256 for file in self._bundle.manifest.files if file.path == path)
        if hashlib.sha256(data).hexdigest() != expected:
            raise RequestError("was changed since the bundle was opened", where=path)
        tensors, slots = parse_adapter(data, path), self._bundle.manifest.slots
        if strength != 1:
            tensors = scaled(tensors, slots, self._scaled, strength, adapter)
        free = {
            slot.name: [place for place, axis in enumerate(slot.graph_axes) if isinstance(axis, str)] for slot in slots
        }
        ordered = [tensors[slot.name] for slot in slots]
        lengths = [tensors[slot.name].shape[place] for slot in slots for place in free[slot.name][1:]]
        header = np.array([*(tensor.size for tensor in ordered), *lengths], np.float32)
        return {"adapter": np.concatenate([header, *(tensor.ravel() for tensor in ordered)])}

    def _record(self, adapter: str) -> Any:
        if adapter not in self._records:
            raise RequestError("is no adapter of the bundle", found=f"`{adapter}`", expected=", ".join(self._records))
        return self._records[adapter]


def _input(name: str, array: np.ndarray) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(np.ascontiguousarray(array))
    return made


def main() -> None:
    """Answer the texts of the command line, one JSON document a line."""
    parser = argparse.ArgumentParser(description="Answer texts by a bundle on Triton.")
    parser.add_argument("bundle")
    parser.add_argument("--url", default="localhost:8001", help="Triton's gRPC endpoint")
    parser.add_argument("--model", required=True)
    parser.add_argument("--by", choices=("slots", "bank"), default="slots")
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--strength", type=float, help="how much of the adapter's updates is added")
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    session = TritonSession(triton.InferenceServerClient(given.url), given.model, bundle, given.by)
    for answer in bundle.texts(session).answer(given.text, given.adapter, strength=given.strength):
        sys.stdout.write(json.dumps(answer.document(), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""Serve a bundle with KServe's Python server: each adapter is a model, and all of them share one session.

    python kserve_server.py --model_dir /mnt/models

A request of the Open Inference Protocol v2 has an input `text`, BYTES [rows], and for pairs an input `pair`, BYTES
[rows]; its output `answer`, BYTES [rows], has a JSON document for each row. A request with the inputs of the base gets
the output of the adapter's head, in which each row has the result of a single request. The parameters `strength`, a
number, and `weights`, a JSON object as text, are those of the adapter.

A request of the protocol v1 has `instances`: each is a text, `{"text": …, "pair": …}` or `{"text": …, "choices": […]}`.
`strength` and `weights` are keys next to it, one value for all instances or a list with one for each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import kserve
import numpy as np
from adapter_export_runtime import Bundle, Session, check_session
from adapter_export_runtime.errors import AdapterExportError, RequestError, within
from adapter_export_runtime.runtime.answerer import AnsweredRow, Answerer, Reader, Row, asked_of
from adapter_export_runtime.runtime.check_inputs import weights_of_each
from adapter_export_runtime.runtime.strength import strength_of_each
from adapter_export_runtime.safe_io.documents import parse_json
from adapter_export_runtime.text import Pair
from kserve.errors import InvalidInput
from kserve.protocol.infer_type import to_http_parameters
from kserve.utils.numpy_codec import from_np_dtype
from kserve.utils.utils import generate_uuid

_PARAMETERS = {"strength", "weights", "side", "binary_data_output", "priority", "timeout"}
"""Parameters of a request in v2; an unknown one could be a misspelled strength."""


class AdapterModel(kserve.Model):
    """An adapter of a bundle, by its name.

    Args:
        adapter: its name.
        session: runs all adapters.
        texts: reads the texts of all adapters; `None` in a bundle without a tokenizer.
    """

    def __init__(self, adapter: str, session: Session, texts: Reader | None) -> None:
        super().__init__(adapter)
        self._answerer = Answerer(session, texts)
        self.ready = True

    async def predict(
        self,
        payload: Mapping[str, Any] | kserve.InferRequest,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002 - KServe gives them
    ) -> dict[str, Any] | kserve.InferResponse:
        """Answer a request; InvalidInput, status 400, if it cannot be answered."""
        call = self._of_v2 if isinstance(payload, kserve.InferRequest) else self._of_v1
        try:
            return await asyncio.to_thread(call, payload)
        except AdapterExportError as error:
            raise InvalidInput(str(error)) from error

    def _of_v1(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        _check_known(payload, {"instances", "strength", "weights"})
        instances = payload.get("instances")
        if not isinstance(instances, list):
            raise InvalidInput("`instances` is not a list of texts")
        contents = []
        for at, instance in enumerate(instances):
            with within(f"instance {at}"):
                contents.append(asked_of(instance))
        answered = self._answer(contents, payload.get("strength"), payload.get("weights"))
        return {"predictions": [row.document() for row in answered]}

    def _of_v2(self, request: kserve.InferRequest) -> kserve.InferResponse:
        parameters = to_http_parameters(request.parameters or {})
        _check_known(parameters, _PARAMETERS, "parameters.")
        try:
            arrays = {tensor.name: tensor.as_numpy() for tensor in request.inputs}
            is_text = "text" in arrays
            columns = [_strings(arrays.pop(name)) for name in ("text", "pair") if is_text and name in arrays]
            rows = list(zip(*columns, strict=True)) if is_text else _apart(arrays)
        except ValueError as error:  # wrong number of values for the shape, another encoding, columns of two lengths
            raise InvalidInput(str(error)) from error
        if is_text and arrays:
            raise InvalidInput(f"a request has texts or tensors; found both, {', '.join(sorted(arrays))}")
        contents = [Pair(*row) if len(row) == 2 else row[0] for row in rows] if is_text else rows
        if "side" in parameters:
            contents = [asked_of({"text": text, "side": parameters["side"]}) for text in contents]
        answered = self._answer(contents, _strength(parameters, request), _weights(parameters))
        if is_text:
            documents = [json.dumps(row.document(), ensure_ascii=False) for row in answered]
            outputs = [kserve.InferOutput("answer", [len(documents)], "BYTES", documents)]
        else:
            head = answered[0].head.output
            names = [*answered[0].outputs[0]] if head is None else [head]
            outputs = [_output(name, np.stack([row.outputs[0][name] for row in answered])) for name in names]
        return kserve.InferResponse(request.id or generate_uuid(), self.name, outputs)  # KServe's response needs an id

    def _answer(self, contents: Sequence[Any], strength: Any, weights: Any) -> list[AnsweredRow]:
        if not contents:
            raise InvalidInput("a request has at least one row")
        choices = zip(
            contents, strength_of_each(strength, len(contents)), weights_of_each(weights, len(contents)), strict=True
        )
        rows = [Row(content, self.name, *choice, where=f"row {at}") for at, (content, *choice) in enumerate(choices)]
        return list(self._answerer.answer(rows))


def _strength(parameters: Mapping[str, Any], request: kserve.InferRequest) -> Any:
    strength = parameters.get("strength")
    if request.from_grpc and isinstance(strength, str):  # whose parameters are no fractions
        with suppress(ValueError):
            return float(strength)
    return strength


def _weights(parameters: Mapping[str, Any]) -> Any:
    weights = parameters.get("weights")
    if weights is None:
        return None
    parsed = parse_json(weights.encode(), "weights") if isinstance(weights, str) else None
    if not isinstance(parsed, Mapping):
        expected = 'a JSON object as text, such as `"{\\"member\\": 0.5}"`'
        raise RequestError("no weights of a fusion", where="parameters.weights", expected=expected)
    return parsed


def _check_known(parameters: Mapping[str, Any], known: set[str], where: str = "") -> None:
    for name in sorted(set(parameters) - known):
        what = "the request is not of the expected form"
        raise RequestError(what, where=f"{where}{name}", expected=", ".join(sorted(known)))


def _apart(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the inputs of each row, [1, …]."""
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1:
        raise InvalidInput(f"the inputs have different numbers of rows; found {sorted(counts)}")
    return [{name: array[at : at + 1] for name, array in arrays.items()} for at in range(counts.pop())]


def _strings(array: np.ndarray) -> list[Any]:
    return [element.decode() if isinstance(element, bytes) else element for element in array.reshape(-1)]


def _output(name: str, array: np.ndarray) -> kserve.InferOutput:
    output = kserve.InferOutput(name, list(array.shape), from_np_dtype(array.dtype))
    output.set_data_from_numpy(array, binary_data=False)
    return output


def main() -> None:
    """Serve until the process is terminated."""
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    parser.add_argument("--model_dir", default="/mnt/models", help="the bundle")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.model_dir)
    session = bundle.session(threads=1)
    check_session(bundle, session)
    texts = None if bundle.manifest.text is None else bundle.texts(session)
    kserve.ModelServer().start([AdapterModel(name, session, texts) for name in session.adapters])


if __name__ == "__main__":
    main()

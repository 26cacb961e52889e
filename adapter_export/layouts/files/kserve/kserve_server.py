"""Serve a bundle with KServe's Python server: each adapter is a model, and all of them share one session.

    python kserve_server.py --model_dir /mnt/models

A call in the Open Inference Protocol v2 has an input `text`, BYTES [rows], and perhaps `pair`, the second texts; the
output `answer`, BYTES [rows], has a JSON document for each. A call in the protocol v1 has `instances`: texts, or pairs
of them. A call with other inputs, those of the base, gets the result of the adapter as it is. `strength`, among the
parameters of a call in v2 and beside the instances in v1, is how much of the adapter's updates is added.
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
from adapter_export_runtime import Bundle, Session
from adapter_export_runtime.errors import AdapterExportError, RequestError
from adapter_export_runtime.text import Pair
from kserve.errors import InvalidInput
from kserve.protocol.infer_type import to_http_parameters
from kserve.utils.numpy_codec import from_np_dtype

_PARAMETERS = {"strength", "binary_data_output", "priority", "timeout"}
"""Of a call in v2; one that nobody knows could be a misspelt strength."""


class AdapterModel(kserve.Model):
    """An adapter of a bundle, by its name.

    Args:
        adapter: its name.
        session: runs all adapters.
        texts: reads and answers the texts of all adapters; none in a bundle without a tokenizer.
    """

    def __init__(self, adapter: str, session: Session, texts: Any) -> None:
        super().__init__(adapter)
        self._session, self._texts = session, texts
        self.ready = True

    async def predict(
        self,
        payload: Mapping[str, Any] | kserve.InferRequest,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002 - KServe gives them
    ) -> dict[str, Any] | kserve.InferResponse:
        """Answer a call; InvalidInput, status 400, if it cannot be answered."""
        call = self._of_v2 if isinstance(payload, kserve.InferRequest) else self._of_v1
        try:
            return await asyncio.to_thread(call, payload)
        except AdapterExportError as error:
            raise InvalidInput(str(error)) from error

    def _of_v1(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        _check_known(payload, {"instances", "strength"})
        given = payload.get("instances")
        if not isinstance(given, list):
            raise InvalidInput("`instances` has no list of texts")
        texts = [Pair(*one) if isinstance(one, list) and len(one) == 2 else one for one in given]
        return {"predictions": self._documents(texts, payload.get("strength"))}

    def _of_v2(self, request: kserve.InferRequest) -> kserve.InferResponse:
        strength = _strength(request)
        try:
            given = {one.name: one.as_numpy() for one in request.inputs}
            columns = [_strings(given[name]) for name in ("text", "pair") if name in given]
            rows = list(zip(*columns, strict=True))
        except ValueError as error:  # not as many values as the shape says, another encoding, columns of two lengths
            raise InvalidInput(str(error)) from error
        if "text" in given:
            texts = [Pair(*row) if len(row) == 2 else row[0] for row in rows]
            documents = [json.dumps(one, ensure_ascii=False) for one in self._documents(texts, strength)]
            outputs = [kserve.InferOutput("answer", [len(documents)], "BYTES", documents)]
        else:
            found = self._session.run(given, self.name, strength=strength)
            outputs = [_output(name, found[name]) for name in (self._session.output(self.name),) if name]
        return kserve.InferResponse(request.id, self.name, outputs)

    def _documents(self, texts: Sequence[Any], strength: Any) -> list[dict[str, Any]]:
        if self._texts is None:
            raise InvalidInput("the bundle has no tokenizer; give the inputs of its base")
        return [answer.document() for answer in self._texts.answer(texts, self.name, strength=strength)]


def _strength(request: kserve.InferRequest) -> Any:
    parameters = to_http_parameters(request.parameters or {})
    _check_known(parameters, _PARAMETERS, "parameters.")
    strength = parameters.get("strength")
    if request.from_grpc and isinstance(strength, str):  # whose parameters are no fractions
        with suppress(ValueError):
            return float(strength)
    return strength


def _check_known(given: Mapping[str, Any], known: set[str], where: str = "") -> None:
    for name in sorted(set(given) - known):
        what = "the request is not of the expected form"
        raise RequestError(what, where=f"{where}{name}", expected=", ".join(sorted(known)))


def _strings(array: np.ndarray) -> list[Any]:
    return [one.decode() if isinstance(one, bytes) else one for one in array.reshape(-1)]


def _output(name: str, array: np.ndarray) -> kserve.InferOutput:
    made = kserve.InferOutput(name, list(array.shape), from_np_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=False)
    return made


def main() -> None:
    """Serve until the process is told to end."""
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    parser.add_argument("--model_dir", default="/mnt/models", help="the bundle")
    given = parser.parse_args()
    bundle = Bundle.open(given.model_dir)
    session = bundle.session(threads=1)
    texts = None if bundle.manifest.text is None else bundle.texts(session)
    kserve.ModelServer().start([AdapterModel(name, session, texts) for name in session.adapters])


if __name__ == "__main__":
    main()

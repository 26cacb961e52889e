"""The Open Inference Protocol v2, for clients of KServe, Triton and MLServer.

The extensions `binary_tensor_data` and `model_repository` are Triton's:
https://github.com/kserve/open-inference-protocol, https://github.com/triton-inference-server/server/tree/main/docs/protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from starlette.datastructures import State
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapter_export.errors import RequestError
from adapter_export.plugins.serve.calls import Number, Strict, Weights, parse, split_rows
from adapter_export.plugins.serve.limits import MOST_ROWS, RefusedError
from adapter_export.plugins.serve.models import Target
from adapter_export.plugins.serve.route_context import Context
from adapter_export.plugins.serve.service import TargetRow
from adapter_export.runtime.answerer import AnsweredRow, Reading, Row
from adapter_export.runtime.text_reader import TextReader
from adapter_export.safe_io.documents import parse_json
from adapter_export.tables import number_of
from adapter_export.text import MOST_CHARACTERS, Pair, TextSide
from adapter_export.version import __version__
from adapter_export.words import quoted

_DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_LENGTH = "inference-header-content-length"
_LEAST_VERSION = 12
"""Hexadecimal digits of a digest that identify a version."""

TEXT, PAIR, ANSWER, LABEL, PROBABILITY = "text", "pair", "answer", "label", "probability"


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    shape: list[int] = Field(max_length=8)
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Output(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: dict[str, Any] = {}


def _weights_of(weights: object) -> object:
    """Parse weights sent as text: clients such as KServe's cannot send objects as parameters."""
    return parse_json(weights.encode(), "weights") if isinstance(weights, str) else weights


class _Parameters(Strict):
    """Parameters of a request. Unknown ones are refused: a misspelled strength would be ignored otherwise."""

    strength: Number = 1.0
    weights: Annotated[Weights | None, BeforeValidator(_weights_of)] = None
    side: TextSide | None = None
    binary_data_output: StrictBool = False
    priority: Any = None  # Triton's scheduling parameters change no result
    timeout: Any = None


class _Infer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(default=None, max_length=200)
    model_name: str | None = None  # KServe's client repeats the name in the path
    model_version: str | None = None
    parameters: _Parameters = _Parameters()
    inputs: list[_Tensor] = Field(min_length=1, max_length=64)
    outputs: list[_Output] | None = None


class _Load(Strict):
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferenceProtocol:
    """Routes of the protocol."""

    def __init__(self, context: Context) -> None:
        self._context, self._service, self._control = context, context.service, context.control

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app, those with a version first, since a name may contain slashes."""
        admitted = [Depends(self._context.admission.check)]
        app.get("/v2")(self.server)
        app.get("/v2/health/live")(self.live)
        app.get("/v2/health/ready")(self.ready)
        for model in ("/v2/models/{name:path}/versions/{version}", "/v2/models/{name:path}"):
            app.get(f"{model}/ready")(self.model_ready)
            app.post(f"{model}/infer")(self.infer)
        for model in ("/v2/models/{name:path}/versions/{version}", "/v2/models/{name:path}"):
            app.get(model)(self.metadata)
        app.post("/v2/repository/index")(self.index)
        app.post("/v2/repository/models/{name:path}/load", dependencies=admitted)(self.load)
        app.post("/v2/repository/models/{name:path}/unload", dependencies=admitted)(self.unload)

    async def server(self) -> Response:
        """Return the name and the extensions of the server."""
        extensions = ["binary_tensor_data", "model_repository"]
        return JSONResponse({"name": "adapter-export", "version": __version__, "extensions": extensions})

    async def live(self) -> Response:
        """Return liveness."""
        return JSONResponse({"live": True})

    async def ready(self) -> Response:
        """Return readiness; status 503 while the server drains."""
        ready = self._control.ready
        return JSONResponse({"ready": ready}, status_code=200 if ready else 503)

    async def model_ready(self, name: str, request: HttpRequest, version: str | None = None) -> Response:
        """Return the readiness of a model; status 404 if it does not exist."""
        await self._target(name, version, request.state.key)
        return JSONResponse({"name": name, "ready": True})

    async def infer(self, name: str, request: HttpRequest, version: str | None = None) -> Response:
        """Compute rows with a model."""
        body, tensors = _read(await self._context.body(request), request.headers.get(_HEADER_LENGTH))
        key = body.id or request.state.key
        target = await self._target(name, version, key, request.state)
        rows = _rows(target, tensors, body.parameters)
        computed = await self._context.in_time(self._service.compute(rows, request.state, Reading(outputs=True)))
        outputs = dict(_outputs(computed, None if body.outputs is None else [o.name for o in body.outputs]))
        return _written(name, target, body, outputs)

    async def metadata(self, name: str, request: HttpRequest, version: str | None = None) -> Response:
        """Return the inputs and outputs of a model."""
        target = await self._target(name, version, request.state.key)
        return JSONResponse({"name": name, **_metadata(target)})

    async def index(self) -> Response:
        """List models and routes."""
        models = self._service.models.names()
        known = [
            {"name": name, "version": version_of(target), "state": "READY", "reason": ""}
            for name, target in models.items()
        ]
        routes = [
            {"name": name, "version": "", "state": "READY", "reason": f"route to {', '.join(route.shares)}"}
            for name, route in self._service.routes.table.items()
            if name not in models
        ]
        return JSONResponse([*known, *routes])

    async def load(self, name: str, request: HttpRequest) -> Response:
        """Reload a bundle, or load an adapter by name or reference."""
        data = await self._context.body(request)
        source = (parse(_Load, data).parameters if data else {}).get("source")
        if source is not None and not isinstance(source, str):
            raise RequestError("`source` is not a reference", expected="a string such as `hf://owner/name`")
        if any(served.name == name for served in self._service.models.served):
            return JSONResponse(await self._context.in_time(self._control.do("reload", name=name)))
        return JSONResponse(await self._context.in_time(self._control.do("fetch", name=name, source=source)))

    async def unload(self, name: str) -> Response:
        """Unload an adapter."""
        await self._context.in_time(self._control.do("unload", name=name))
        return JSONResponse({})

    async def _target(self, name: str, version: str | None, key: str, state: State | None = None) -> Target:
        target = await self._service.target(name, key, state)
        if version is not None and (len(version) < _LEAST_VERSION or not target.digest.startswith(version)):
            raise RefusedError(404, f"model `{name}` has the version `{version_of(target)}`, not `{version}`")
        return target


def version_of(target: Target) -> str:
    """Return the version of a model: the first digits of the digest of its file."""
    return target.digest[:_LEAST_VERSION]


def _metadata(target: Target) -> dict[str, Any]:
    manifest, session = target.served.bundle.manifest, target.served.session
    task = None if target.adapter is None else session.task(target.adapter)
    texts = []
    if isinstance(target.served.reader, TextReader):
        texts = [TEXT, PAIR] if task is not None and task.input == "pair" else [TEXT]
    batch = manifest.inputs[0].axes[:1]
    inputs = [{"name": name, "datatype": "BYTES", "shape": [-1], "parameters": {"optional": True}} for name in texts]
    for record in manifest.inputs:
        shape = [-1 if isinstance(axis, str) else axis for axis in record.axes]
        inputs.append(
            {
                "name": record.name,
                "datatype": _NAMES[record.dtype],
                "shape": shape,
                "parameters": {"optional": bool(texts)},
            }
        )
    outputs: list[dict[str, Any]] = []
    if task is not None:
        outputs.append({"name": ANSWER, "datatype": "BYTES", "shape": [-1]})
        if task.kind.one_label:
            outputs.append({"name": LABEL, "datatype": "BYTES", "shape": [-1]})
            outputs.append({"name": PROBABILITY, "datatype": "FP64", "shape": [-1]})
    head_output = None if target.adapter is None else session.output(target.adapter)
    wanted = {record.name for record in manifest.base_outputs} | {head_output}
    for output in manifest.outputs:
        if output.name in wanted and output.axes[:1] == batch:
            shape = [-1 if isinstance(axis, str) else axis for axis in output.axes]
            outputs.append({"name": output.name, "datatype": _NAMES[output.dtype], "shape": shape})
    facts = {"versions": [version_of(target)], "platform": "onnxruntime_onnx", "inputs": inputs, "outputs": outputs}
    return facts | ({} if task is None else {"parameters": {"task": task.document()}})


def _read(data: bytes, header: str | None) -> tuple[_Infer, dict[str, np.ndarray]]:
    """Parse a request and its tensors; BYTES become arrays of `str`."""
    end = len(data)
    if header is not None:
        if not header.isdecimal() or int(header) > len(data):
            raise RequestError(f"`{_HEADER_LENGTH}` is not the length of the JSON header", found=header)
        end = int(header)
    body, place = parse(_Infer, data[:end]), end
    tensors: dict[str, np.ndarray] = {}
    for tensor in body.inputs:
        size = tensor.parameters.get("binary_data_size")
        if (size is None) == (tensor.data is None):
            raise RequestError("needs either `data` or binary data", where=f"input `{tensor.name}`")
        raw = None
        if size is not None:
            if not isinstance(size, int) or not 0 <= size <= len(data) - place:
                raise RequestError("has less data than declared", where=f"input `{tensor.name}`", found=size)
            raw, place = data[place : place + size], place + size
        if tensor.name in tensors:
            raise RequestError("is duplicated", where=f"input `{tensor.name}`")
        tensors[tensor.name] = _array(tensor, raw)
    if place != len(data):
        raise RequestError(
            "the request has more binary data than its inputs declare", found=f"{len(data) - place} bytes"
        )
    return body, tensors


def _array(tensor: _Tensor, raw: bytes | None) -> np.ndarray:
    where = f"input `{tensor.name}`"
    count = math.prod(tensor.shape) if all(size >= 0 for size in tensor.shape) else -1
    if tensor.datatype == "BYTES":
        texts = list(_strings(raw, where)) if raw is not None else list(_flat(tensor.data))
        if len(texts) != count or not all(isinstance(text, str) for text in texts):
            raise RequestError(
                "has data that does not match its shape and type",
                where=where,
                found=number_of(len(texts), "value"),
            )
        if any(len(text) > MOST_CHARACTERS for text in texts):
            raise RequestError("is too long", where=where, expected=f"at most {MOST_CHARACTERS:,} characters")
        return np.array(texts, dtype=object)
    if tensor.datatype not in _DTYPES:
        raise RequestError("has an unknown type", where=where, found=tensor.datatype, expected=", ".join(_DTYPES))
    dtype = np.dtype(_DTYPES[tensor.datatype])
    if raw is not None:
        if count < 0 or len(raw) != count * dtype.itemsize:
            raise RequestError(
                "has data that does not match its shape and type", where=where, found=f"{len(raw)} bytes"
            )
        return np.frombuffer(raw, dtype.newbyteorder("<")).reshape(tensor.shape).astype(dtype)
    flat = list(_flat(tensor.data))
    kinds = (bool,) if dtype.kind == "b" else (int,) if dtype.kind in "iu" else (int, float)
    if len(flat) != count or not all(isinstance(x, kinds) and (dtype.kind == "b") == isinstance(x, bool) for x in flat):
        raise RequestError(
            "has data that does not match its shape and type", where=where, found=number_of(len(flat), "value")
        )
    try:
        return np.array(flat, dtype).reshape(tensor.shape)
    except OverflowError:
        raise RequestError("has a number out of the range of its type", where=where, expected=tensor.datatype) from None


def _flat(data: Any) -> Iterator[Any]:
    """Yield the values of nested lists. The JSON parser limits their depth."""
    if isinstance(data, list):
        for element in data:
            yield from _flat(element)
    else:
        yield data


def _strings(raw: bytes, where: str) -> Iterator[str]:
    """Yield the texts of binary data: for each, its length in four bytes, then UTF-8."""
    place = 0
    while place < len(raw):
        size = int.from_bytes(raw[place : place + 4], "little")
        place += 4
        if place + size > len(raw):
            raise RequestError("has less data than declared", where=where, found=f"{size} bytes")
        try:
            yield raw[place : place + size].decode()
        except UnicodeDecodeError as error:
            raise RequestError("is not UTF-8", where=where, found=error.reason) from error
        place += size


def _rows(target: Target, tensors: Mapping[str, np.ndarray], parameters: _Parameters) -> list[TargetRow]:
    """Return the rows of a request: texts, or inputs of the base."""
    if TEXT not in tensors:
        texts: Sequence[Any] = split_rows(tensors)
    else:
        others = set(tensors) - {TEXT, PAIR}
        if others:
            raise RequestError("the request has both texts and other inputs", found=", ".join(sorted(others)))
        firsts, seconds = tensors[TEXT], tensors.get(PAIR)
        if firsts.dtype != object or (seconds is not None and (seconds.dtype != object or len(seconds) != len(firsts))):
            raise RequestError("`text` and `pair` must be BYTES of the same length")
        texts = list(firsts) if seconds is None else list(map(Pair, firsts, seconds))
    if not 0 < len(texts) <= MOST_ROWS:
        raise RequestError("has too few or too many rows", found=len(texts), expected=f"1 to {MOST_ROWS}")
    if parameters.side is not None and TEXT not in tensors:
        raise RequestError("`side` needs texts", where="`side`", found="inputs of the base")
    rows = [Row(text, target.adapter, parameters.strength, parameters.weights) for text in texts]
    return [TargetRow(target, row.on_side(parameters.side)) for row in rows]


def _outputs(computed: Sequence[AnsweredRow], wanted: Sequence[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the requested outputs, [rows, …].

    Default: the answers and the output of the adapter's head; for tensors of a `span` only the latter, since the
    protocol cannot mark the tokens that may be part of the answer; without a task, all outputs.
    """
    head, tensors = computed[0].head, list(computed[0].outputs[0])
    available = [] if head.task is None else [ANSWER]
    if head.task is not None and head.task.kind.one_label:
        available += [LABEL, PROBABILITY]
    lacks_context = head.task is not None and head.task.kind.needs_context and computed[0].row.is_arrays
    if wanted is None:
        head_outputs = [] if head.output is None or tensors_differ(computed, head.output) else [head.output]
        wanted = tensors if head.task is None else head_outputs if lacks_context else [*available, *head_outputs]
    if lacks_context and ANSWER in wanted:
        raise RequestError(
            "tensors do not mark the tokens that may be part of the answer",
            where=f"output `{ANSWER}`",
            fix=f"send `{TEXT}` and `{PAIR}`, ask for `{head.output}`, or call `/answer` with `context`",
        )
    answers = [row.document() for row in computed] if set(available).intersection(wanted) else []
    for name in wanted:
        if name not in (*available, *tensors):
            raise RequestError("unknown output", found=f"`{name}`", expected=quoted((*available, *tensors)))
        if name == ANSWER:
            yield name, np.array([json.dumps(answer, ensure_ascii=False) for answer in answers], object)
        elif name in available:
            yield name, np.array([answer[name] for answer in answers], object if name == LABEL else np.float64)
        elif tensors_differ(computed, name):
            raise RequestError(
                "the rows of an output differ in length",
                where=f"output `{name}`",
                fix=f"send one row, or ask for `{ANSWER}`" if available else "send one row at a time",
            )
        else:
            yield name, np.stack([row.outputs[0][name] for row in computed])


def tensors_differ(computed: Sequence[AnsweredRow], name: str) -> bool:
    """Return whether the rows of an output have different shapes."""
    return len({row.outputs[0][name].shape for row in computed}) > 1


def _written(name: str, target: Target, body: _Infer, outputs: Mapping[str, np.ndarray]) -> Response:
    """Return the response, with tensors as JSON or, if requested, as binary data after it."""
    by_default = body.parameters.binary_data_output
    wanted = {tensor.name: tensor.parameters.get("binary_data", by_default) is True for tensor in body.outputs or ()}
    described, blobs = [], list[bytes]()
    for output, array in outputs.items():
        is_text = array.dtype == object
        record: dict[str, Any] = {
            "name": output,
            "datatype": "BYTES" if is_text else _NAMES[array.dtype.name],
            "shape": list(array.shape),
        }
        if wanted.get(output, by_default):
            blob = b"".join(map(_prefixed, array)) if is_text else np.ascontiguousarray(array).tobytes()
            record["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            if not is_text and not np.isfinite(array).all():
                raise RequestError("an output is NaN or infinite, which JSON cannot represent", where=f"`{output}`")
            record["data"] = array.ravel().tolist()
        described.append(record)
    document = {
        "model_name": name,
        "model_version": version_of(target),
        **({} if body.id is None else {"id": body.id}),
        "parameters": {"model": target.name},
        "outputs": described,
    }
    if not blobs:
        return JSONResponse(document)
    head = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    headers = {_HEADER_LENGTH: str(len(head))}
    return Response(head + b"".join(blobs), media_type="application/octet-stream", headers=headers)


def _prefixed(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "little") + data

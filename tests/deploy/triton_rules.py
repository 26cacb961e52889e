"""A server with the rules of Triton's ONNX Runtime backend, which runs a model repository in ONNX Runtime.

    python triton_rules.py REPOSITORY PORT

It rejects the same as `ModelInstanceState::ValidateInputs`, `ValidateOutputs` and `CompareDimsSupported` of the backend
(`src/onnxruntime.cc` and `src/onnxruntime_utils.cc`, June 2026), and for requests the same as Triton's core: names,
types, dimensions, and that only optional inputs are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

ELEMENTS = {"tensor(float)": "FP32", "tensor(int64)": "INT64", "tensor(bool)": "BOOL"}


class Model:
    """A model of the repository, with its configuration checked against its graph."""

    def __init__(self, folder: Path) -> None:
        text = (folder / "config.pbtxt").read_text("utf-8")
        self.config = text_format.Parse(text, model_config_pb2.ModelConfig())  # unknown fields and wrong types fail
        assert self.config.name == folder.name
        assert self.config.backend == "onnxruntime"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        path = folder / "1" / self.config.default_model_filename
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        required = [one for one in self.config.input if not one.optional]
        assert len(required) == len(self.session.get_inputs()), "configuration expects other inputs"
        overridable = self.session.get_overridable_initializers()
        inputs = {one.name: one for one in [*self.session.get_inputs(), *overridable]}
        for one in self.config.input:
            assert not (one.optional and self.config.max_batch_size), "an optional input of a model with batching"
            _compare(one, inputs[one.name])
        outputs = {one.name: one for one in self.session.get_outputs()}
        for one in self.config.output:
            _compare(one, outputs[one.name])

    def infer(self, request: Any) -> Any:
        known = {one.name: one for one in self.config.input}
        fed: dict[str, np.ndarray] = {}
        for given, data in zip(request.inputs, request.raw_input_contents, strict=True):
            assert given.name in known, f"unexpected inference input '{given.name}'"
            config = known[given.name]
            assert f"TYPE_{given.datatype}" == model_config_pb2.DataType.Name(config.data_type)
            assert _fits(list(config.dims), list(given.shape)), f"unexpected shape for input '{given.name}'"
            fed[given.name] = np.frombuffer(data, triton_to_np_dtype(given.datatype)).reshape(given.shape)
        missing = {name for name, config in known.items() if not config.optional} - set(fed)
        assert not missing, f"expected inputs {missing}"
        wanted = [one.name for one in request.outputs] or [one.name for one in self.config.output]
        response = service_pb2.ModelInferResponse(model_name=self.config.name, model_version="1", id=request.id)
        for name, array in zip(wanted, self.session.run(wanted, fed), strict=True):
            types = {"float32": "FP32", "int64": "INT64"}
            response.outputs.add(name=name, datatype=types[array.dtype.name], shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response


def _compare(config: Any, found: Any) -> None:
    assert model_config_pb2.DataType.Name(config.data_type) == f"TYPE_{ELEMENTS[found.type]}", config.name
    shape = [length if isinstance(length, int) else -1 for length in found.shape]
    assert _fits(shape, list(config.dims)), f"'{config.name}': the model expects {shape}, not {list(config.dims)}"


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(length in (-1, dim) for length, dim in zip(shape, dims, strict=True))


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The calls that the client needs."""

    def __init__(self, models: dict[str, Model]) -> None:
        self._models = models

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's
        if request.model_name not in self._models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model '{request.model_name}'")
        try:
            return self._models[request.model_name].infer(request)
        except AssertionError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's
        return service_pb2.ModelConfigResponse(config=self._models[request.name].config)


if __name__ == "__main__":
    found = {folder.name: Model(folder) for folder in sorted(Path(sys.argv[1]).iterdir())}
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(found), server)
    assert server.add_insecure_port(f"127.0.0.1:{sys.argv[2]}") == int(sys.argv[2])
    server.start()
    (Path.cwd() / "ready").touch()
    server.wait_for_termination()

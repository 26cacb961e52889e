"""Answer calls as the classes that KServe and Ray Serve run answer them, one JSON document a line.

python platform_calls.py PROGRAM: `kserve_server.py` or `ray_app.py`
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from adapter_export_runtime import Bundle
from adapter_export_runtime.errors import AdapterExportError

Call = Mapping[str, Any]


@cache
def kserve_model(folder: str, adapter: str) -> Any:
    session, texts = kserve_bundle(folder)
    return module.AdapterModel(adapter, session, texts)


@cache
def kserve_bundle(folder: str) -> Any:
    bundle = Bundle.open(folder)
    session = bundle.session(threads=1)
    return session, bundle.texts(session)


def by_kserve(call: Call) -> Any:
    """`instances` are those of the protocol v1, `inputs` those of v2."""
    import kserve

    payload = call["payload"]
    if "inputs" in payload:
        inputs = [kserve.InferInput(*one) for one in payload["inputs"]]
        payload = kserve.InferRequest(call["adapter"], inputs, parameters=payload["parameters"])
    try:
        found = asyncio.run(kserve_model(call["bundle"], call["adapter"]).predict(payload))
    except kserve.errors.InvalidInput as error:
        return {"error": str(error)}
    if isinstance(found, dict):
        return {"rows": found["predictions"]}
    (output,) = found.outputs
    if output.name == "answer":
        return {"rows": [json.loads(one) for one in output.data]}
    return {"shape": output.shape, "data": output.data}


@cache
def ray_replica(folder: str) -> Any:
    return module.Adapters.func_or_class(folder)


def by_ray(call: Call) -> Any:
    payload = call["payload"]
    try:
        rows = ray_replica(call["bundle"])._answers(
            call["adapter"], payload["texts"], payload.get("strength"), payload.get("weights")
        )
    except AdapterExportError as error:
        return {"error": str(error)}
    return {"rows": rows}


if __name__ == "__main__":
    program = Path(sys.argv[1])
    sys.path.insert(0, str(program.parent))
    module = importlib.import_module(program.stem)
    answering: Callable[[Call], Any] = by_kserve if program.stem == "kserve_server" else by_ray
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answering(json.loads(line))) + "\n")
        sys.stdout.flush()

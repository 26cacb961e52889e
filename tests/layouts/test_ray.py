"""A bundle on Ray Serve, started here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from clients import alike
from servers import free_port

import adapter_export as ae

TEXTS = ["who wrote it?", "a bad film."]

CALLS = """
import json
import sys

import httpx
import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

port, texts = int(sys.argv[1]), json.loads(sys.argv[2])
config = ServeDeploySchema.model_validate(yaml.safe_load(open("serve_config.yaml")))
(application,) = config.applications
module, name = application.import_path.split(":")
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
made = getattr(__import__(module), name)(application.args)
serve.run(made, name=application.name, route_prefix=application.route_prefix)
with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
    for adapter in ("tone", "topic", "nobody"):
        answer = client.post("/", json={"texts": texts}, headers={"serve_multiplexed_model_id": adapter})
        print(json.dumps([answer.status_code, answer.json()]))
serve.shutdown()
ray.shutdown()
"""


def test_each_call_is_answered_by_the_adapter_that_it_names(bundle: Path, slim: dict[str, str], tmp_path: Path) -> None:
    shipped = ae.ship(bundle, tmp_path / "ray", layout="ray", name="small")
    environment = {**slim, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": f"{slim['PYTHONPATH']}:{shipped.folder}"}
    words = [sys.executable, "-c", CALLS, str(free_port()), json.dumps(TEXTS)]
    done = subprocess.run(words, cwd=shipped.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *answered, refused = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    reader = ae.open_bundle(bundle).texts()
    for (status, document), adapter in zip(answered, ("tone", "topic"), strict=True):
        assert status == 200
        alike(document["answers"], [one.document() for one in reader.answer(TEXTS, adapter)])
    assert refused[0] == 400
    assert "`nobody`" in refused[1]["error"]

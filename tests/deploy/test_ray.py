"""Ray Serve, Ray Data and a sweep on Ray, in one test because Ray starts slowly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from bodies import checked
from clients import alike
from servers import free_port
from small_bundle import OTHERS

import adapter_export as ae

TEXTS = ["who wrote it?", "a bad film."]

CALLS = """
import json
import sys
from contextlib import suppress

import httpx2
import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

import adapter_export as ae
from adapter_export.errors import UsageError
from adapter_export.safe_io.parsers import parsing

port, texts = int(sys.argv[1]), json.loads(sys.argv[2])
config = ServeDeploySchema.model_validate(yaml.safe_load(open("serve_config.yaml")))
(application,) = config.applications
module, name = application.import_path.split(":")
settings = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
with suppress(UsageError), parsing(UsageError):  # `ray.init` raises plain `Exception`
    ray.init(**settings)
if not ray.is_initialized():  # a node gives its agents 15 seconds; on a busy machine they take longer the first time
    ray.shutdown()
    ray.init(**settings)
serve.start(http_options={"host": "127.0.0.1", "port": port})
made = getattr(__import__(module), name)(application.args)
serve.run(made, name=application.name, route_prefix=application.route_prefix)
with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
    wrong = [("tone", {"strenght": 0.5}), ("tone", {"strength": [1]}), ("nobody", {})]
    wrong += [("tone", {"texts": one}) for one in ([["w1", "w2"]], [["w1"]], [], [{"text": "a", "pair": "b"}])]
    wrong += [("tone", {"weights": one}) for one in ({"a": 1}, 3, [1, 2])]
    for adapter, others in (("tone", {}), ("topic", {}), ("topic", {"strength": [0.5, -2]}), *wrong):
        headers = {"serve_multiplexed_model_id": adapter}
        answer = client.post("/", json={"texts": texts} | others, headers=headers)
        print(json.dumps([answer.status_code, answer.json()]))
serve.shutdown()
bundle, table, out, model, sweep = sys.argv[3:]
done = ae.run_many(bundle, table, out, adapter_column="who", shard_rows=100, ray="auto", workers=1)
print(json.dumps([done.shards, done.reused]))
given = {"kinds": ("ia3",), "seeds": (0,), "epochs": 1, "batch_size": 4, "bottlenecks": (2,)}
found = ae.sweep(model, "train.tsv", sweep, ray="auto", **given)
print(json.dumps([found.adapter, ae.load_adapter(f"{sweep}/runs/{found.adapter}").training["threads"]]))
ray.shutdown()
"""


def _table(path: Path) -> Path:
    random, words = np.random.default_rng(0), OTHERS.split()
    texts = [" ".join(random.choice(words, random.integers(1, 12))) for _ in range(500)]
    table = pyarrow.table({"text": texts, "who": ["topic", "tone", "mood", "tone", "tone"] * 100})
    pyarrow.parquet.write_table(table, path, row_group_size=170)
    return path


def test_ray_answers_calls_and_tables_and_trains(
    bundle: Path, slim: dict[str, str], text_folder: Path, tmp_path: Path
) -> None:
    table, out = _table(tmp_path / "rows.parquet"), tmp_path / "out"
    expected = ae.run_many(bundle, table, tmp_path / "expected", adapter_column="who", shard_rows=100).folder
    shutil.copytree(expected, out)
    for number in (1, 4):  # as if it had been killed
        (out / f"shard-{number:05d}.jsonl").unlink()
    shipped = ae.ship(bundle, tmp_path / "ray", layout="ray", name="small")
    environment = {
        **slim,
        "PYTHONPATH": f"{slim['PYTHONPATH']}:{shipped.folder}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # or the other tests of a run leave its workers hardly any time
        "RAY_raylet_start_wait_time_s": "30",
        "RAY_agent_register_timeout_ms": "100000",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # of seconds in which a busy machine may start nothing
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    }
    rows = [f"play {number} is {('fine', 'dull')[number % 2]}\t{('good', 'bad')[number % 2]}" for number in range(20)]
    (shipped.folder / "train.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    places = [bundle, table, out, text_folder / "model.pt", tmp_path / "sweep"]
    words = [sys.executable, "-c", CALLS, str(free_port()), json.dumps(TEXTS), *places]
    done = subprocess.run(words, cwd=shipped.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    answered, refused, (shards, swept) = lines[:3], lines[3:-2], lines[-2:]
    reader = ae.open_bundle(bundle).texts()
    said = [("tone", reader.answer(TEXTS, "tone")), ("topic", reader.answer(TEXTS, "topic"))]
    said.append(("topic", reader.answer(TEXTS, "topic", strength=[0.5, -2])))
    for (status, document), (adapter, answers) in zip(answered, said, strict=True):
        assert status == 200
        common = {"adapter": adapter, "task": "single_label"}
        alike(checked(document, "rows")["rows"], [{**common, **one.document()} for one in answers])
    lists = ("text 0: is not a text", "text 0: is not a text", "at least one", "of another kind")
    wrong = ("strenght", "expected 2", "`nobody`", *lists, "has no weights", *["no weights of a fusion"] * 2)
    for words, (status, document) in zip(wrong, refused, strict=True):
        assert (status, words in document["error"]) == (400, True), document
    assert shards == [5, 3]
    assert swept == ["ia3-0.001-seed0", 1]
    for path in sorted(expected.iterdir()):
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name

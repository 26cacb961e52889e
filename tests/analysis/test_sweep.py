"""Adapters of many settings, trained alike: what each brings and costs, which is best, and what a kill leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import pytest
from heard import Heard
from safetensors import safe_open
from small_encoder import save_encoder

import adapter_export as ae
from adapter_export.bundle.latency import Latency
from adapter_export.errors import DataError, FileError, TrainingError, UsageError
from adapter_export.graph.tasks.metrics import Metric
from adapter_export.plugins.lab.search import Search
from adapter_export.plugins.lab.sweep_results import Range, Run, Setting, Space, Sweep, Trial
from adapter_export.safe_io.run_workers import Processes, RayWorkers

QUICK = {"epochs": 1, "batch_size": 4, "bottlenecks": (2,), "kinds": ("pfeiffer", "ia3")}


def table(folder: Path, words: tuple[str, str] = ("fine", "dull")) -> Path:
    rows = [f"play {number} is {words[number % 2]}\t{('good', 'bad')[number % 2]}" for number in range(20)]
    path = folder / "train.tsv"
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return path


def trial(parameters: int, *scores: float | None, latency: float | None = None) -> Trial:
    runs = [Run(seed, f"{parameters}-{seed}", score) for seed, score in enumerate(scores)]
    made = Trial.of(Setting("pfeiffer", parameters, None, 0.001), runs, parameters)
    return made if latency is None else Trial(**{**vars(made), "latency": Latency(latency, latency, latency)})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture(scope="module")
def base(model: Path) -> ae.Base:
    return ae.open_base(model)


def test_sweep_computes_means_spreads_and_the_best_trial() -> None:
    tried = [trial(10, 0.5, 0.7), trial(20, 0.9, None), trial(30, 0.6, 0.8), trial(40, 0.8, 0.6)]
    found = Sweep.of("rows.tsv", Metric("accuracy"), (0, 1), tried)
    assert [one.mean for one in found.trials] == pytest.approx([0.6, None, 0.7, 0.7])
    assert found.trials[0].spread == pytest.approx(0.1 * 2**0.5), "of a sample"
    assert (found.best.parameters, found.adapter) == (30, "30-1"), "of two alike the smaller one, by its best seed"
    assert [one.front for one in found.trials] == [("parameters",), (), ("parameters",), ()]
    less = Sweep.of("rows.tsv", Metric("loss", more_is_better=False), (0, 1), tried)
    assert (less.best.parameters, less.adapter) == (10, "10-0")


def test_each_cost_has_a_front() -> None:
    tried = [trial(10, 0.5, latency=1.3), trial(20, 0.4, latency=1.1), trial(30, 0.6, latency=1.3)]
    found = Sweep.of("rows.tsv", Metric("accuracy"), (0,), tried)
    assert [one.front for one in found.trials] == [("parameters",), ("latency",), ("parameters", "latency")]
    assert "1.10 (1.10 to 1.10)" in str(found)
    assert "±" not in str(found), "one seed has no spread"


def test_a_grid_has_every_setting_once() -> None:
    space = Space({"houlsby": True, "ia3": False}, (4, 16), (), (0.001, 0.01))
    names = [setting.name for setting in space.grid()]
    assert names == [
        *(f"houlsby-{width}-{rate}" for width in (4, 16) for rate in (0.001, 0.01)),
        *(f"ia3-{rate}" for rate in (0.001, 0.01)),
    ]
    placed = Setting("lora", 8, "query+value", 0.001)
    assert placed.name == "lora-8-query_value-0.001"


def test_a_search_that_was_killed_goes_on(tmp_path: Path) -> None:
    space = Space({"houlsby": True, "ia3": False}, Range(4, 256), (), Range(1e-4, 1e-2))
    first = Search(tmp_path / "search.sqlite3", space)
    (one, done), (two, open_) = islice(first.settings(6), 2)
    first.tell(one, 0.5)
    del first  # and the second one is never reported
    again = Search(tmp_path / "search.sqlite3", space)
    found = dict(again.settings(6))
    assert (found[one], found[two]) == (done, open_)
    assert len(set(found.values())) == 6, "nothing is drawn again"
    for setting in found.values():
        assert 1e-4 <= setting.learning_rate <= 1e-2
        assert setting.bottleneck is None if setting.kind == "ia3" else 4 <= (setting.bottleneck or 0) <= 256
    for number in found:
        again.tell(number, None if number == two else 0.1)  # the first one is known already
    third = dict(Search(tmp_path / "search.sqlite3", space).settings(6))
    assert len(third) == 6, "in the place of one that failed another one is drawn"
    assert two not in third
    assert {number: found[number] for number in found if number != two}.items() <= third.items()


def test_a_dying_process_fails_only_its_own_call() -> None:
    with Processes(2) as workers:
        lasting, dying = workers.submit(time.sleep, 2), workers.submit(os._exit, 3)
        assert dying.exception() is not None
        assert workers.submit(os.getpid).result() != os.getpid()
        assert lasting.exception() is None


_PARENT = """
import os, time
from adapter_export.safe_io.run_workers import Processes
if __name__ == "__main__":
    workers = Processes(1)
    print(workers.submit(os.getpid).result(), flush=True)
    workers.submit(time.sleep, 600)
    time.sleep(600)
"""


@pytest.mark.extended
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT, encoding="utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.kill()
    for _ in range(100):
        state = Path(f"/proc/{worker}/stat")
        if not state.exists() or state.read_text(encoding="utf-8").split()[2] == "Z":
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlives its parent")


def test_a_sweep_leaves_adapters_an_image_and_a_bundle(model: Path, base: ae.Base, tmp_path: Path) -> None:
    data, output = table(tmp_path), tmp_path / "sweep"
    heard = Heard()
    given = {**QUICK, "seeds": (0, 1), "validation": 0.5, "test_data": data}
    found = ae.sweep(
        model,
        data,
        output,
        plot=tmp_path / "sweep.svg",
        bundle=tmp_path / "bundle",
        reporter=heard,
        **given,
    )
    names = [f"{name}-0.001-seed{seed}" for name in ("pfeiffer-2", "ia3") for seed in (0, 1)]
    assert [label.partition(":")[0] for label in heard.steps[:8:2]] == names
    assert heard.counts[1:8:2] == [(done, 4) for done in range(1, 5)]
    assert sorted(one.name for one in (output / "runs").iterdir()) == sorted(names)
    for one in found.trials:
        for run in one.runs:
            adapter = ae.load_adapter(output / "runs" / run.adapter)
            assert (adapter.kind, adapter.training["settings"]["seed"]) == (one.setting.kind, run.seed)
            assert run.score == adapter.training["validation"]["accuracy"]
            assert run.test == adapter.training["test"]["accuracy"]
            assert one.parameters == sum(t.size for n, t in adapter.weights.items() if not n.startswith("head."))
    assert found.best in found.trials
    assert ae.open_bundle(tmp_path / "bundle").session().adapters == (found.adapter,)
    assert (tmp_path / "sweep.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")

    kept = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    again = ae.sweep(base, data, output, text="text", reporter=Heard(), **given)
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == kept

    words = r"the folder contains another sweep; found `epochs` 1, `seeds` \[0, 1\]; expected 2"
    with pytest.raises(TrainingError, match=words):
        ae.sweep(base, data, output, **{**given, "epochs": 2, "seeds": (0,)})
    table(tmp_path, ("good", "bad"))
    words = "the folder contains another sweep; found `data`, `test_data`; expected a different value"
    with pytest.raises(TrainingError, match=words):
        ae.sweep(base, data, output, **given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ()}, "`kinds` must not be empty or contain duplicates"),
        ({"seeds": (1, 1)}, "`seeds` must not be empty or contain duplicates"),
        ({"bottlenecks": (0,)}, "`bottlenecks` must be positive numbers"),
        ({"learning_rates": "1..0.5"}, "`learning_rates` must be positive numbers"),
        ({"bottlenecks": "4..16"}, "a range has infinitely many settings; found 4..16"),
        ({"placements": ("query",)}, "names no sublayer"),
        ({"seed": 3}, "a sweep sets this itself or does not use it.* found `seed`"),
        ({"epoch": 3}, "`train` has no such argument; found `epoch`"),
        ({"rs_lora": True}, "kind `houlsby` has no such option"),
    ],
)
def test_sweep_refuses_invalid_options_before_training(
    options: dict[str, object], said: str, base: ae.Base, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        ae.sweep(base, table(tmp_path), tmp_path / "sweep", **options)
    assert not (tmp_path / "sweep").exists()


def test_a_folder_that_is_no_sweep_is_left_alone(base: ae.Base, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="contains something other than a sweep"):
        ae.sweep(base, table(tmp_path), tmp_path, **QUICK)
    assert [one.name for one in tmp_path.iterdir()] == ["train.tsv"]


def test_data_of_one_class_stop_the_sweep(base: ae.Base, tmp_path: Path) -> None:
    data = tmp_path / "train.tsv"
    data.write_text("text\tlabel\na\tgood\nb\tgood\nc\tgood\n", encoding="utf-8")
    with pytest.raises(DataError, match="class"):
        ae.sweep(base, data, tmp_path / "sweep", **QUICK)
    data.write_text("text\tlabel\n\tgood\nb\tbad\nc\tgood\n", encoding="utf-8")
    with pytest.raises(DataError, match="found line 2"):  # in the same folder, where nothing is trained yet
        ae.sweep(base, data, tmp_path / "sweep", **QUICK)


def test_killed_trainings_are_named_and_resumed(model: Path, tmp_path: Path) -> None:
    data, runs = table(tmp_path), tmp_path / "sweep" / "runs"
    given = {**QUICK, "epochs": 12, "patience": 12, "kinds": ("pfeiffer",), "seeds": (0, 1), "cache_mb": 0}
    checkpoint = runs / "pfeiffer-2-0.001-seed1.partial" / "checkpoint.safetensors"

    def kill() -> None:
        while not checkpoint.exists():
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(TrainingError, match="every setting failed") as failed:
        ae.sweep(model, data, tmp_path / "sweep", workers=1, reporter=Heard(), **given)
    assert "`pfeiffer-2-0.001-seed1`: the training process died" in str(failed.value)
    assert (runs / "pfeiffer-2-0.001-seed0").is_dir(), "what was finished stays"
    with safe_open(checkpoint, framework="np") as file:
        begun = json.loads(file.metadata()["state"])["history"]
    found = ae.sweep(model, data, tmp_path / "sweep", reporter=Heard(), **given)
    record = ae.load_adapter(runs / "pfeiffer-2-0.001-seed1").training
    assert [one["seconds"] for one in record["history"][: len(begun)]] == [one["seconds"] for one in begun]
    assert len(begun) < len(record["history"])
    assert found.trials[0].mean is not None


def test_a_damaged_checkpoint_is_named_and_forgotten_on_request(base: ae.Base, tmp_path: Path) -> None:
    runs, data = tmp_path / "sweep" / "runs", table(tmp_path)
    given = {**QUICK, "kinds": ("ia3",), "seeds": (0, 1), "reporter": Heard()}
    first = ae.sweep(base, data, tmp_path / "sweep", **given)
    for seed in (0, 1):
        shutil.rmtree(runs / f"ia3-0.001-seed{seed}")
    (runs / "ia3-0.001-seed0.partial").mkdir()
    (runs / "ia3-0.001-seed0.partial" / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(TrainingError) as damaged:
        ae.sweep(base, data, tmp_path / "sweep", **given)
    assert "the checkpoint is damaged" in str(damaged.value)
    kept = (runs / "ia3-0.001-seed1" / "weights.safetensors").stat().st_mtime_ns  # the others go on
    assert "pass `--restart` to start over" in damaged.value.sentence("shell")
    assert ae.sweep(base, data, tmp_path / "sweep", restart=True, **given) == first
    assert (runs / "ia3-0.001-seed1" / "weights.safetensors").stat().st_mtime_ns == kept, "what is finished stays"


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(UsageError, match="no Ray cluster answers"):
        RayWorkers("127.0.0.1:1", None, 1, 0)

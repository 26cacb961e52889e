"""One bundle of the real base that every client has to reproduce, a small one to damage, and the clients.

What takes long to make is made once for all workers of a run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from clients import Client
from heads import with_head
from once import once
from small_bundle import LENGTHS, WIDTH, build_small, small_tokenizer
from tiers import extended
from tiny_onnx import random_adapter, save_tiny, tiny_model

from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import GRAPH_VARIANTS
from adapter_export.format.manifest_json import CARD_FILE, REPORT_FILE, SIGNATURE_FILE
from adapter_export.graph.adapter import HEAD, Adapter, Head
from adapter_export.graph.compose import adapter_fusion, weighted_fusion
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds import Kind, classification_head, houlsby, parallel, pfeiffer
from adapter_export.graph.tasks import Task
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

SHAPES = ({"batch": 1, "sequence": 1}, {"batch": 4, "sequence": 7}, {"batch": 3, "sequence": 19})
TASKS = (
    Task("single_label", ("x", "y", "z")),
    Task("multi_label", ("z", "a", "m", "b"), thresholds=(0.3, 0.4, 0.6, 0.7)),
    Task("multiple_choice"),
    Task("token", ("O", "NAME", "PLACE")),
    Task("span", input="pair"),
    Task("regression"),
    Task("embedding"),
    Task("multi_vector"),
    Task("sparse_embedding"),
    Task("ranking", activation="sigmoid", input="pair"),
)
"""Labels are in no order that a sorted object would have."""
FIXED = {"tone": 0.25, "mood": 1.5}


@pytest.fixture(scope="session")
def conformance_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with three adapters of different topology, width, number of classes and precision, in every variant."""

    def make(folder: Path) -> None:
        _build_minilm(*map(request.getfixturevalue, ("minilm_archive", "minilm_graph")), folder)

    return once(tmp_path_factory, "conformance", make) / "bundle"


def _build_minilm(archive: Path, graph: Path, folder: Path) -> None:
    from adapter_export.torch_backend.base.torch_base import load_base
    from adapter_export.torch_backend.torch_runner import TorchRunner

    torch_base, base = load_base(archive), open_onnx(graph)
    adapters = [
        _adapter("wide", houlsby(), base, 32, ("a", "b", "c", "d")),
        _adapter("narrow", pfeiffer(), base, 8, ("yes", "no")),
        _adapter("first", parallel(), base, 16, ("x", "y", "z"), pooling="first"),
    ]
    build_bundle(
        base,
        adapters,
        folder / "bundle",
        references=TorchRunner(torch_base),
        cases=input_cases(base.inputs, seed=0, shapes=list(SHAPES)),
        tokenizer=torch_base.tokenizer,
        max_tokens=torch_base.max_tokens,
        variants=list(GRAPH_VARIANTS),
        bake=["wide"],
        precisions={"narrow": "float16", "first": "int8"},
    )


def _adapter(
    name: str, kind: Kind, base: OnnxBase, bottleneck: int, labels: Sequence[str], pooling: str = "mean"
) -> Adapter:
    """Random weights of standard deviation 0.2, the head's among them."""
    placements = kind.with_widths(b=bottleneck).placements(base.sites)
    head = Head(
        classification_head(pooling),
        {"d": base.sites.width, "classes": len(labels)},
        Task("single_label", tuple(labels)),
    )
    shapes = {
        f"{site}.{parameter}": shape
        for site, placement in placements.items()
        for parameter, shape in kind.graphs[placement.graph].parameter_shapes(placement.widths).items()
    }
    shapes |= {f"{HEAD}.{name}": shape for name, shape in head.graph.parameter_shapes(head.widths).items()}
    rng = np.random.default_rng([*name.encode()])
    weights = {key: (0.2 * rng.standard_normal(shape)).astype(np.float32) for key, shape in shapes.items()}
    return Adapter(name, kind.name, base.fingerprint, kind.graphs, placements, weights, head)


@pytest.fixture
def copied_bundle(conformance_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to damage; its large files are links to the same bytes."""

    def link(source: str, target: str) -> None:
        path = Path(target)
        path.hardlink_to(source) if path.suffix == ".bin" else shutil.copyfile(source, target)

    return shutil.copytree(conformance_bundle, tmp_path / "bundle", copy_function=link)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of width 16 with a tokenizer of 20 words, in every variant, with a case of one token.

    It has what the manifest does not list and clients pass over: a signature, the report of a check, a model card.
    """

    def make(folder: Path) -> None:
        variants, names = [*GRAPH_VARIANTS], ("input_ids", "attention_mask")
        built = build_small(folder, variants, names, small_tokenizer(), _fusion, ["topic"]).folder
        for name in (SIGNATURE_FILE, REPORT_FILE, CARD_FILE):
            (built / name).write_text("{}")

    return once(tmp_path_factory, "clients_small", make) / "bundle"


@pytest.fixture(scope="session")
def checked_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That bundle with checksums of slots."""

    def make(folder: Path) -> None:
        variants, names = [*GRAPH_VARIANTS], ("input_ids", "attention_mask")
        build_small(folder, variants, names, small_tokenizer(), _fusion, ["topic"], checksums=True)

    return once(tmp_path_factory, "clients_checked", make) / "bundle"


@pytest.fixture(scope="session")
def length_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Lengths, Path]:
    """The small base with a tokenizer: with a single length, and with multiples except one."""

    def make(folder: Path) -> None:
        for number, lengths in enumerate(LENGTHS):
            (folder / str(number)).mkdir()
            names = ("input_ids", "attention_mask")
            build_small(folder / str(number), ["slots", "inputs"], names, small_tokenizer(), lengths=lengths)

    folder = once(tmp_path_factory, "lengths", make)
    return {lengths: folder / str(number) / "bundle" for number, lengths in enumerate(LENGTHS)}


@pytest.fixture(scope="session")
def task_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small base with an adapter of every task type, by its name; `unknown` has no task."""

    def make(folder: Path) -> None:
        build_small(folder, None, ("input_ids", "attention_mask"), compose=_of_every_type)

    return once(tmp_path_factory, "clients_tasks", make) / "bundle"


def _of_every_type(topic: Adapter, tone: Adapter, mood: Adapter) -> list[Adapter]:
    del topic, mood
    found = {task.type: make_head(task, width=WIDTH, numbers=3) for task in TASKS}
    found["embedding"] = make_head("embedding", width=WIDTH, options=HeadOptions(l2_normalise=True))
    unknown = replace(make_head(width=WIDTH, labels=("x", "y")), task=None)
    return [with_head(tone, name, head) for name, head in {**found, "unknown": unknown}.items()]


def _fusion(topic: Adapter, tone: Adapter, mood: Adapter) -> list[Adapter]:
    """One whose weights a call may give, one that has such weights, and one with matrices as wide as the base."""
    return [
        weighted_fusion(tone, mood, name="fusion", weights={"tone": 0.9, "mood": -0.4}, head="tone"),
        weighted_fusion(tone, mood, name="fixed", weights=FIXED, head="tone"),
        adapter_fusion(topic, mood, name="attended", head="mood"),
    ]


@pytest.fixture
def damaged_bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle."""
    return shutil.copytree(small_bundle, tmp_path / "bundle")


@pytest.fixture
@extended
def client(request: pytest.FixtureRequest) -> Client:
    """The client whose fixture the test names."""
    found: Client = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def three_rows(tmp_path: Path) -> Path:
    """Inputs for the small bundle, the second row shorter than the others."""
    ids = [[2, 5, 6, 7, 3], [2, 7, 3, 0, 0], [2, 4, 12, 19, 3]]
    mask = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    path = tmp_path / "three_rows.json"
    path.write_text(json.dumps({"input_ids": ids, "attention_mask": mask}))
    return path


@pytest.fixture(scope="module")
def dependent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in which the largest id of a batch changes the results of all its rows."""
    mask = """
    numbers = Cast <to = 1> (input_ids)
    largest = ReduceMax <axes = [0, 1]> (numbers)
    penalty = Div(numbers, largest)
    axis = Constant <value = int64[1] {1}> ()
    bias = Unsqueeze(penalty, axis)
    """

    def make(folder: Path) -> None:
        base = open_onnx(save_tiny(folder, tiny_model(inputs="int64[batch, tokens] input_ids", mask=mask)))
        build_bundle(
            base,
            [random_adapter(name, pfeiffer(), base, labels="ab") for name in ("a", "b")],
            folder / "bundle",
            references=CutRunner(base),
            cases=input_cases(base.inputs, seed=1),
        )

    return once(tmp_path_factory, "dependent", make) / "bundle"

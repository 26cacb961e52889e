"""Every option of every kind and head, exported and opened by the other library, which computes what the adapter does.

The options are those that the package declares. An export is refused, or the library loads it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from adapterhub_bases import FIXTURES, adapterhub_base
from exported import random_for_sites
from kind_products import Choice, combined_changes, covering, head_values, single_changes
from peft import PeftModel
from peft_bases import peft_base, peft_base_in_torch
from peft_folders import FIXTURES as PEFT_FIXTURES
from safetensors.numpy import load_file
from toolchain import skip_or_fail

from adapter_export.bases.base_view import ArchitectureHead, BaseView
from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds import KINDS, houlsby, lora
from adapter_export.graph.ops import OPS
from adapter_export.graph.tasks import TASK_TYPES
from adapter_export.numerics.base_layers import layer_finder
from adapter_export.plugins.formats.exporters import FORMATS
from adapter_export.plugins.formats.exporters.export_format import ExportRequest, Written
from adapter_export.torch_backend.architecture_head import architecture_head
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.torch_runner import TorchRunner

LIBRARY = Path(sys.prefix) / "adapterhub"
SCRIPT = Path(__file__).parents[1] / "support" / "adapterhub_library.py"

ROUNDING = 2e-5
"""Two versions of transformers in float32, relative to the largest number, where that is above 1."""

CLASSES = {"bert": "BertModel", "gpt2": "GPT2Model", "llama": "LlamaModel"}


@dataclass(frozen=True)
class Base:
    """A base in torch, the folder of its transformers model, and random inputs."""

    name: str
    source: TorchBase
    folder: Path
    runner: TorchRunner
    inputs: Mapping[str, np.ndarray]
    heads: dict[tuple[str, ...], ArchitectureHead | None] = field(default_factory=dict)

    def request(self, adapter: Adapter) -> ExportRequest:
        tensors = {key: value.detach().numpy() for key, value in self.source.program.state_dict.items()}
        view = BaseView(
            self.source.fingerprint,
            self.runner.sites,
            self.source.model_type,
            tensors.get,
            layer_finder(self.source),
            self.head_of,
        )
        return ExportRequest(adapter, view, model_class=CLASSES[self.name])

    def head_of(self, classes: Sequence[str], *others: Any) -> ArchitectureHead | None:
        """The head of the architecture, read once for each class."""
        if tuple(classes) not in self.heads:
            self.heads[tuple(classes)] = architecture_head(self.source, classes, *others)
        return self.heads[tuple(classes)]

    def computed(self, adapter: Adapter) -> dict[str, np.ndarray]:
        """The final hidden state, and the result of the head."""
        found = self.runner.run(self.inputs, adapter)
        (head,) = [name for name in found if name in ("logits", "token_logits")] or [None]
        return {"hidden": found["last_hidden_state"], **({} if head is None else {"logits": found[head]})}


def random_of(choice: Choice, base: Base) -> Adapter | None:
    """A random adapter; `None` for options that exclude each other, or that these sites cannot have."""
    try:
        adapter = random_for_sites(choice.make(), base.runner.sites)
    except (UsageError, AdapterError):
        return None
    return replace(adapter, base=base.source.fingerprint) if adapter.placements else None


def refused_values(base: Base, to: str, folder: Path) -> set[tuple[str, str, str]]:
    """Kind, option and value of each option that cannot be exported; empty for kinds that cannot."""
    refused = set()
    for kind in KINDS:
        default, *others = single_changes(kind)
        if _is_refused(default, base, to, folder / kind):
            continue
        for number, choice in enumerate(others):
            ((name, value),) = choice.options.items()
            is_refused = _is_refused(choice, base, to, folder / f"{kind}-{number}")
            refused |= {(kind, name, str(value))} if is_refused else set()
            if is_refused is not None and name == "activation":
                assert is_refused == (not OPS[value].transformers), f"{kind} with {value}"
    return refused


def _is_refused(choice: Choice, base: Base, to: str, folder: Path) -> bool | None:
    adapter = random_of(choice, base)
    return None if adapter is None else write(base, adapter, to, folder) is None


def adapters(base: Base, to: str, folder: Path) -> Iterator[tuple[str, Adapter]]:
    """Kinds with every pair of values of options, except values that cannot be exported."""
    refused = refused_values(base, to, folder)

    def is_valid(choice: Choice) -> bool:
        values = {(choice.kind, name, str(value)) for name, value in choice.options.items()}
        return not values & refused and random_of(choice, base) is not None

    for choice in combined_changes(is_valid):
        adapter = random_of(choice, base)
        assert adapter is not None
        yield str(choice), adapter


def adapters_with_heads(base: Base, body: Adapter) -> Iterator[tuple[str, Adapter]]:
    """An adapter with heads of every task type, with every pair of values of their options."""
    values = {"task": [name for name, kind in TASK_TYPES.items() if kind.has_head], **head_values()}
    for row in covering(values, lambda row: _with_head(body, row) is not None):
        adapter = _with_head(body, row)
        assert adapter is not None
        yield " ".join(f"{name}={value}" for name, value in row.items()), adapter


def _with_head(body: Adapter, row: Mapping[str, Any]) -> Adapter | None:
    options = HeadOptions(**{name: value for name, value in row.items() if name != "task"})
    width = next(placement.widths["d"] for placement in body.placements.values())
    try:
        head = make_head(row["task"], width=width, labels=("a", "b", "c"), options=options)
    except (UsageError, AdapterError):
        return None
    random, shapes = np.random.default_rng(3), head.graph.parameter_shapes(head.widths)
    weights = {f"head.{name}": random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    return replace(body, head=head, weights={**body.weights, **weights})


def write(base: Base, adapter: Adapter, to: str, folder: Path) -> Written | None:
    """Export an adapter; `None` if it is refused, which writes nothing."""
    folder.mkdir(parents=True)
    try:
        return FORMATS[to].write(base.request(adapter), folder)
    except AdapterError:
        assert not list(folder.iterdir())
        return None


def check_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    allowed = ROUNDING * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, err_msg=name)


@pytest.fixture(scope="module")
def hub_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    made = adapterhub_base(tmp_path_factory, request.param)
    return Base(request.param, made.source, FIXTURES / request.param / "model", made.torch, made.inputs)


def computed_by_adapterhub(base: Base, cases: Mapping[str, Path], scratch: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the results of the library for each exported folder, all in one process."""
    if not (LIBRARY / "adapters").is_dir():
        skip_or_fail("AdapterHub's library is not installed (`make setup` installs it)")
    inputs = FIXTURES / base.name / "inputs.safetensors"
    outputs = {name: folder / "found.safetensors" for name, folder in cases.items()}
    listed = [
        {"base": str(base.folder), "inputs": str(inputs), "adapter": str(folder), "output": str(outputs[name])}
        for name, folder in cases.items()
    ]
    (scratch / "cases.json").write_text(json.dumps(listed))
    subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, scratch / "cases.json"],
        env={**os.environ, "PYTHONPATH": str(LIBRARY)},
        check=True,
    )
    return {name: load_file(output) for name, output in outputs.items()}


def check_in_adapterhub(base: Base, made: Mapping[str, Adapter], scratch: Path) -> int:
    """Export adapters and compare what the library computes with each; returns how many it loaded."""
    folders = {name: scratch / str(number) for number, name in enumerate(made)}
    results = {name: write(base, adapter, "adapterhub", folders[name]) for name, adapter in made.items()}
    written = {name: result for name, result in results.items() if result is not None}
    failed = {}
    for name, found in computed_by_adapterhub(base, {name: folders[name] for name in written}, scratch).items():
        if "error" in found:
            failed[name] = bytes(found["error"]).decode()
            continue
        expected = base.computed(made[name])
        assert found.keys() == expected.keys(), name
        for key, value in found.items():
            check_close(value, expected[key], f"{name}: {key}")
    # the only errors are of a package that is not installed and that a note of the export names
    noted = {name for name, result in written.items() if any("`torchvision`" in note for note in result.notes)}
    missing = {name for name, error in failed.items() if "requires the package torchvision" in error}
    assert {name: failed[name] for name in failed.keys() - missing} == {}
    assert missing <= noted
    return len(written) - len(failed)


@pytest.mark.extended
@pytest.mark.parametrize(("hub_base", "least"), [("bert", 80), ("llama", 60)], indirect=["hub_base"])
def test_adapterhub_loads_every_option_or_the_export_is_refused(hub_base: Base, least: int, tmp_path: Path) -> None:
    made = dict(adapters(hub_base, "adapterhub", tmp_path))
    assert check_in_adapterhub(hub_base, made, tmp_path) >= least


@pytest.mark.extended
@pytest.mark.parametrize("hub_base", ["bert"], indirect=True)
def test_adapterhub_loads_every_head_or_the_export_is_refused(hub_base: Base, tmp_path: Path) -> None:
    body = replace(random_for_sites(houlsby(), hub_base.runner.sites), base=hub_base.source.fingerprint)
    made = dict(adapters_with_heads(hub_base, body))
    assert check_in_adapterhub(hub_base, made, tmp_path) >= 10


@pytest.fixture(scope="module")
def peft_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    source = peft_base_in_torch(peft_base(tmp_path_factory, request.param), request.param)
    folder, random = PEFT_FIXTURES / "bases" / request.param, np.random.default_rng(5)
    ids, mask = random.integers(3, 30, (3, 7)), np.ones((3, 7), np.int64)
    mask[1, 5:] = 0
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    inputs = {record.name: values[record.name] for record in source.inputs}
    return Base(request.param, source, folder, TorchRunner(source), inputs)


def check_in_peft(base: Base, made: Mapping[str, Adapter], scratch: Path) -> int:
    """Export adapters and compare what PEFT computes with each; returns how many it loaded."""
    models: dict[tuple[str, int], Any] = {}
    loaded = 0
    for number, (name, adapter) in enumerate(made.items()):
        folder = scratch / str(number)
        written = write(base, adapter, "peft", folder)
        if written is None:
            continue
        assert written.loads_as is not None
        auto, count = f"AutoModel{''.join(written.loads_as.classes[:1])}", written.loads_as.results
        if (auto, count) not in models:
            labels = {"num_labels": count} if count else {}
            models[auto, count] = getattr(transformers, auto).from_pretrained(base.folder, **labels).eval()
        model = PeftModel.from_pretrained(deepcopy(models[auto, count]), folder).eval()
        with torch.no_grad():
            found = model(**{key: torch.from_numpy(value) for key, value in base.inputs.items()})
        result = torch.stack([*found.values()], -1) if "start_logits" in found else found[0]
        check_close(result.numpy(), base.computed(adapter)["logits" if count else "hidden"], name)
        loaded += 1
    return loaded


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
@pytest.mark.parametrize("peft_model", ["bert", "gpt2"], indirect=True)
def test_peft_loads_every_option_or_the_export_is_refused(peft_model: Base, tmp_path: Path) -> None:
    made = dict(adapters(peft_model, "peft", tmp_path))
    assert check_in_peft(peft_model, made, tmp_path) >= 8


@pytest.mark.extended
@pytest.mark.parametrize("peft_model", ["bert"], indirect=True)
def test_peft_loads_every_head_or_the_export_is_refused(peft_model: Base, tmp_path: Path) -> None:
    body = replace(random_for_sites(lora(), peft_model.runner.sites), base=peft_model.source.fingerprint)
    assert check_in_peft(peft_model, dict(adapters_with_heads(peft_model, body)), tmp_path) >= 5

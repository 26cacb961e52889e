"""Archives that run code when torch loads them: each really does in torch, and none does here.

Every attack replaces entries of a harmless archive by hostile ones, which create the file `marker`. Some strike when
torch loads the file, some when the program is unlifted (`.module()`), some when it is called.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import (
    CONSTANTS,
    PROGRAM,
    SAMPLE_INPUTS,
    WEIGHTS,
    Entries,
    edit,
    pickle_that_makes,
    read_entries,
    save_plainly,
    write_entries,
)

from adapter_export.errors import UnsafeArchiveError
from adapter_export.torch_backend.base.log_capture import LIBRARY_ERRORS, captured_logs
from adapter_export.torch_backend.base.torch_base import load_base

Attack = Callable[[Entries, Path], None]


def _code(marker: Path) -> str:
    return f"open('{marker}', 'w').close()"


def sample_inputs(entries: Entries, marker: Path) -> None:
    entries[SAMPLE_INPUTS] = pickle_that_makes(marker)


def pickled_weight(entries: Entries, marker: Path) -> None:
    edit(entries, WEIGHTS, lambda document: document["config"]["linear.bias"].update(use_pickle=True))
    name = json.loads(entries[WEIGHTS])["config"]["linear.bias"]["path_name"]
    entries[f"data/weights/{name}"] = pickle_that_makes(marker)


def pickled_constant(entries: Entries, marker: Path) -> None:
    edit(entries, CONSTANTS, lambda document: document["config"]["lifted_tensor_0"].update(use_pickle=True))
    entries["data/constants/tensor_0"] = pickle_that_makes(marker)


def opaque_object(entries: Entries, marker: Path) -> None:
    meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    edit(entries, CONSTANTS, lambda document: document["config"].update(evil=meta))
    entries["data/constants/opaque_obj_0"] = pickle_that_makes(marker)


def opaque_object_that_says_it_is_not_pickled(entries: Entries, marker: Path) -> None:
    opaque_object(entries, marker)
    meta = json.loads(entries[CONSTANTS])["config"]["lifted_tensor_0"]["tensor_meta"]
    edit(entries, CONSTANTS, lambda document: document["config"]["evil"].update(use_pickle=False, tensor_meta=meta))


def legacy_weights(entries: Entries, marker: Path) -> None:
    entries["data/weights/model.pt"] = pickle_that_makes(marker)


def legacy_constants(entries: Entries, marker: Path) -> None:
    entries["data/constants/model.pt"] = pickle_that_makes(marker)


def _replace_sizes(document: Any, text: str) -> None:
    for meta in document["graph_module"]["graph"]["tensor_values"].values():
        for size in meta["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = text


def size_expression(entries: Entries, marker: Path) -> None:
    edit(entries, PROGRAM, lambda document: _replace_sizes(document, _code(marker)))


def size_expression_inside_a_symbol(entries: Entries, marker: Path) -> None:
    text = f"Symbol('s77', positive=bool({_code(marker)}), integer=True)"
    edit(entries, PROGRAM, lambda document: _replace_sizes(document, text))


def enum_in_a_container(entries: Entries, marker: Path) -> None:
    marker.with_name("evil_enum.py").write_text(f"{_code(marker)}\n")
    context = json.dumps({"__enum__": True, "fqn": "evil_enum:Missing", "name": "x"})
    _change_in_spec(entries, lambda spec: spec["children_spec"][1].update(context=context))


def default_dict_in_a_container(entries: Entries, marker: Path) -> None:
    marker.with_name("evil_factory.py").write_text(f"{_code(marker)}\n")
    context = {"default_factory_module": "evil_factory", "default_factory_name": "x", "dict_context": []}
    _change_in_spec(
        entries, lambda spec: spec["children_spec"][1].update(type="collections.defaultdict", context=context)
    )


def _change_in_spec(entries: Entries, change: Callable[[Any], object]) -> None:
    def replace(document: Any) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        protocol, spec = json.loads(signature["in_spec"])
        change(spec)
        signature["in_spec"] = json.dumps([protocol, spec])

    edit(entries, PROGRAM, replace)


def name_of_an_input(entries: Entries, marker: Path) -> None:
    """Use a default value in the source text that torch compiles."""
    name = json.dumps(f"x={_code(marker)}")
    text = entries[PROGRAM].decode()
    entries[PROGRAM] = text.replace('"name": "x"', f'"name": {name}').replace('"x": {', f"{name}: {{").encode()


def key_of_an_input(entries: Entries, marker: Path) -> None:
    """Use an expression in the source text that torch compiles."""
    leaf = {"type": None, "context": None, "children_spec": []}

    def change(spec: Any) -> None:
        arguments, keywords = spec["children_spec"]
        arguments["children_spec"] = []
        keywords.update(context=json.dumps([f"x':{_code(marker)},'y"]), children_spec=[leaf])

    _change_in_spec(entries, change)


def operator_on_files(entries: Entries, marker: Path) -> None:
    """Use `aten.from_file`, which creates the file that it maps."""

    def call(document: Any) -> None:
        graph = document["graph_module"]["graph"]
        arguments = {"filename": {"as_string": str(marker)}, "shared": {"as_bool": True}, "size": {"as_int": 4}}
        node = {
            "target": "torch.ops.aten.from_file.default",
            "inputs": [{"name": name, "arg": argument, "kind": 1} for name, argument in arguments.items()],
            "outputs": [{"as_tensor": {"name": "evil"}}],
            "metadata": {},
            "name": "evil",
        }
        graph["nodes"].insert(0, node)
        graph["tensor_values"]["evil"] = graph["tensor_values"]["p_linear_bias"]

    edit(entries, PROGRAM, call)


def guard(entries: Entries, marker: Path) -> None:
    edit(entries, PROGRAM, lambda document: document.update(guards_code=[f"{_code(marker)} is None"]))


ATTACKS: tuple[Attack, ...] = (
    sample_inputs,
    pickled_weight,
    pickled_constant,
    opaque_object,
    opaque_object_that_says_it_is_not_pickled,
    legacy_weights,
    legacy_constants,
    size_expression,
    size_expression_inside_a_symbol,
    enum_in_a_container,
    default_dict_in_a_container,
    name_of_an_input,
    key_of_an_input,
    operator_on_files,
    guard,
)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harmless") / "small.pt2"
    save_plainly(path)
    return path


@pytest.fixture(params=ATTACKS, ids=lambda attack: attack.__name__)
def hostile(
    request: pytest.FixtureRequest, harmless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """A hostile archive, and the file that it creates."""
    monkeypatch.syspath_prepend(tmp_path)
    path, marker = tmp_path / "hostile.pt2", tmp_path / "marker"
    entries = read_entries(harmless)
    request.param(entries, marker)
    write_entries(path, entries)
    return path, marker


def test_torch_runs_the_hostile_code(hostile: tuple[Path, Path]) -> None:
    path, marker = hostile
    with captured_logs(), contextlib.suppress(*LIBRARY_ERRORS):
        module = torch.export.load(path).module()
        # not through `__call__`, which checks the inputs first
        module.forward(torch.ones(3, 4))
    assert marker.exists()


def test_hostile_archives_are_refused_without_running_code(hostile: tuple[Path, Path]) -> None:
    path, marker = hostile
    with pytest.raises(UnsafeArchiveError, match="trust_pickle=True"):
        load_base(path)
    assert not marker.exists()

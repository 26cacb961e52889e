"""Adapters in AdapterHub's format: its own come back bit for bit, and the library computes what an adapter does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from adapterhub_bases import FIXTURES, Made, adapterhub_base, import_adapterhub
from exported import FINGERPRINT, exported, random_for_sites
from hand_made_sites import BERT, encoder
from safetensors.numpy import load_file
from toolchain import skip_or_fail

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose import stack
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.kinds import BottleneckOptions, LoraOptions, houlsby, lora, parallel, pfeiffer
from adapter_export.plugins.formats.exporters import FORMATS
from adapter_export.plugins.formats.exporters.export_format import ExportRequest
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.base.pickles import read_torch_file

SITES = encoder(2, 16, 32, BERT)
BASES = ("bert", "roberta", "distilbert", "gpt2", "llama", "vit", "bart")
FILES = ("adapter", "model_head")

DIFFERENT = {
    "bert/head_three_layers": "a last layer without a bias gets one of zeros",
    "bert/legacy": "names of today's library",
    "bert/legacy_invertible": "names of today's library",
    "bert/mtl_lora": "a LoRA",
    "bert/phm_factorized_rule": "the rule is one tensor",
    "bert/phm_factorized_rule_per_layer": "the rule is one tensor",
    "bert/phm_full_weight": "the factors of a full matrix, of which one is the identity",
    "bert/setup_stack_lora_bottleneck": "a union",
    "bert/setup_stack_parallel_last": "its last adapter, which is all that the library computes",
    "bert/vera": "a LoRA",
}
"""Tensors of exported imports that differ from the library's own, as in `docs/how-to/export-adapters.md`."""

REFUSED = ("dora", "dvora", "fusion_", "setup_", "lora_gated")
"""The beginnings of the names of those that have no single config; LoRA with a gate only in a fused layer."""

QUICK = ("seq_bn", "double_seq_bn_inv", "compacter", "lora_everywhere", "ia3", "head_two_layers", "union", "everything")


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name in FILES:
        if (folder / f"{name}.safetensors").exists():
            found |= read_tensors(folder / f"{name}.safetensors")
        elif (folder / f"pytorch_{name}.bin").exists():
            found |= read_torch_file(folder / f"pytorch_{name}.bin")
    return found


def imported(case: str, base: Made) -> Adapter:
    return import_adapterhub(
        FIXTURES / case, base.sites, name="task", base=FINGERPRINT, by_number=case.startswith("vit")
    ).adapter


def check_round_trip(case: str, base: Made, folder: Path) -> bool:
    """True if the tensors are equal; a refusal must be a known one."""
    try:
        adapter = imported(case, base)
    except AdapterError:
        return False
    request = ExportRequest(adapter, BaseView(FINGERPRINT, base.sites, case.partition("/")[0]))
    name = case.partition("/")[2]
    if name.startswith(REFUSED) and case not in DIFFERENT and case != "bert/lora_gated":
        with pytest.raises(AdapterError, match="cannot be exported to AdapterHub"):
            exported(request, "adapterhub", folder)
        return False
    found = exported(request, "adapterhub", folder)
    assert found.error == 0
    if case in DIFFERENT:
        return False
    original, mine = tensors_of(FIXTURES / case), tensors_of(folder)
    assert mine.keys() == original.keys()
    assert all(np.array_equal(mine[key], original[key]) for key in original)
    config = json.loads((FIXTURES / case / "adapter_config.json").read_text())["config"]
    if case != "bert/lora_before_1_1":  # which is read with alpha = r, as the library does
        assert found.config["config"] == config
    return True


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return adapterhub_base(tmp_path_factory, "bert")


@pytest.mark.parametrize("case", QUICK)
def test_tensors_of_bert_come_back_bit_for_bit(case: str, bert: Made, tmp_path: Path) -> None:
    assert check_round_trip(f"bert/{case}", bert, tmp_path / "out")


@pytest.mark.extended
@pytest.mark.parametrize("name", BASES)
def test_tensors_of_every_case_come_back_bit_for_bit(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = adapterhub_base(tmp_path_factory, name)
    cases = [path.parent.name for path in sorted((FIXTURES / name).glob("*/adapter*_config.json"))]
    cases += [path.parent.name for path in sorted((FIXTURES / name).glob("*/adapter_setup.json"))]
    same = [check_round_trip(f"{name}/{case}", base, tmp_path / case) for case in dict.fromkeys(cases)]
    assert sum(same) >= (90 if name == "bert" else 5)


def test_a_config_is_found_without_a_record(bert: Made, tmp_path: Path) -> None:
    for case in (*QUICK, "ln_before", "reduction_map", "leave_out", "norms_before_after_residual_post_add"):
        adapter = replace(imported(f"bert/{case}", bert), training={})
        request = ExportRequest(adapter, BaseView(FINGERPRINT, bert.sites, "bert"), prefix="bert")
        assert exported(request, "adapterhub", tmp_path / case).error == 0
        original, mine = tensors_of(FIXTURES / "bert" / case), tensors_of(tmp_path / case)
        assert {key: tensor.tolist() for key, tensor in mine.items()} == {
            key: tensor.tolist() for key, tensor in original.items()
        }


def request_for(adapter: Adapter, sites: SiteMap = SITES) -> ExportRequest:
    return ExportRequest(adapter, BaseView(FINGERPRINT, sites, "bert"), model_class="BertModel")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: random_for_sites(lora(LoraOptions(modules=("attention.output",))), SITES), "act on query, key"),
        (lambda: random_for_sites(lora(LoraOptions(rank={"query": 2, "value": 4})), SITES), "one rank"),
        (lambda: random_for_sites(lora(LoraOptions(lora_bias=True)), SITES), "act on query, key"),
        (lambda: random_for_sites(houlsby(BottleneckOptions(no_bias=True)), SITES), "no config of its bottlenecks"),
        (
            lambda: stack(
                random_for_sites(houlsby(), SITES, "a"), random_for_sites(houlsby(), SITES, "b"), name="both"
            ),
            "no config of its bottlenecks",
        ),
    ],
    ids=["layer", "ranks", "bias", "no bias", "stack"],
)
def test_adapters_that_adapterhub_cannot_compute_are_refused(make, words: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=words):
        exported(request_for(make()), "adapterhub", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_head_that_reads_the_mean_is_refused(tmp_path: Path) -> None:
    adapter = random_for_sites(pfeiffer(), SITES)
    head = make_head("single_label", width=16, labels=("no", "yes"), options=HeadOptions("mean"))
    weights = {
        f"head.{name}": np.ones(shape, np.float32) for name, shape in head.graph.parameter_shapes(head.widths).items()
    }
    whole = replace(adapter, head=head, weights={**adapter.weights, **weights})
    with pytest.raises(AdapterError, match="its heads read the first token"):
        exported(request_for(whole), "adapterhub", tmp_path / "out")


LIBRARY = Path(sys.prefix) / "adapterhub"
"""The folder into which `make setup` installs AdapterHub's library with its older transformers."""

COMPUTED = (
    *(f"bert/{case}" for case in ("double_seq_bn_inv", "compacter", "lora", "ia3", "union", "everything")),
    *("bert/head_two_layers", "bert/head_tagging", "bert/head_question_answering"),
    *("gpt2/lora", "llama/double_seq_bn", "bart/cross", "distilbert/head", "roberta/par_bn"),
)
CLASSES = {
    "bert": "Bert",
    "gpt2": "GPT2",
    "llama": "Llama",
    "bart": "Bart",
    "distilbert": "DistilBert",
    "roberta": "Roberta",
}


@pytest.mark.extended
def test_the_library_computes_what_the_adapter_does(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without the record of the import, so that nothing is copied from it; and kinds that are not the library's."""
    if not (LIBRARY / "adapters").is_dir():
        skip_or_fail("AdapterHub's library is not installed (`make setup` installs it)")
    base = cache(lambda name: adapterhub_base(tmp_path_factory, name))
    wanted: dict[str, dict[str, np.ndarray]] = {}
    cases = []

    def written(case: str, name: str, adapter: Adapter, expected: dict[str, np.ndarray]) -> None:
        folder = tmp_path / case.replace("/", "_")
        folder.mkdir()
        view = BaseView(FINGERPRINT, base(name).sites, name)
        FORMATS["adapterhub"].write(
            ExportRequest(adapter, view, model_class=f"{CLASSES.get(name, 'Roberta')}Model"), folder
        )
        files = {"base": FIXTURES / name / "model", "inputs": FIXTURES / name / "inputs.safetensors"}
        files |= {"adapter": folder, "output": folder / "found.safetensors"}
        cases.append({key: str(path) for key, path in files.items()})
        wanted[str(folder / "found.safetensors")] = expected

    for case in COMPUTED:
        name = case.partition("/")[0]
        adapter = replace(imported(case, base(name)), training={})
        written(case, name, adapter, load_file(FIXTURES / case / "expected.safetensors"))
    bert = base("bert")
    for kind in (houlsby(), pfeiffer(), parallel()):
        adapter = random_for_sites(kind, bert.sites)
        hidden = bert.torch.run(bert.inputs, replace(adapter, base=bert.source.fingerprint))["last_hidden_state"]
        written(kind.name, "bert", adapter, {"hidden": hidden})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).parents[1] / "support" / "adapterhub_library.py"
    subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path / "cases.json"],
        env={**os.environ, "PYTHONPATH": str(LIBRARY)},
        check=True,
    )
    for output, expected in wanted.items():
        found = load_file(output)
        for key, value in found.items():
            # two versions of transformers in float32: relative to the largest number, where that is above 1
            allowed = 2e-5 * max(1.0, float(np.abs(expected[key]).max()))
            np.testing.assert_allclose(value, expected[key], rtol=0, atol=allowed, err_msg=f"{output} {key}")

"""Decoders that generate: bundles of onnxruntime-genai's folders and of captured models write what torch writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
from building import build_bundle
from heard import Heard
from replacing import adapter_at
from tiers import extended
from tiny_llama import EXAMPLE, PROMPT, Text, example, in_genai, run_builder, save_rounded

import adapter_export as ae
from adapter_export.bases.forms import GenaiBase
from adapter_export.errors import BaseModelError
from adapter_export.format.manifest import InputRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import lora
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle, Decoding
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.discover import discover
from adapter_export.torch_backend.base.huggingface_folder import capture_folder
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.torch_runner import TorchRunner

TOKENS = 16
PLANS = {
    "none": [None] * TOKENS,
    "a": ["a"] * TOKENS,
    "b": ["b"] * TOKENS,
    "c": ["c"] * TOKENS,
    "a, then b": ["a"] * 8 + ["b"] * 8,
    "a, then none": ["a"] * 8 + [None] * 8,
}
PROMPT_TEXT = " ".join(f"w{token}" for token in PROMPT)
TOLERANCE = 1e-5
"""Tolerance for logits around 5: float32 rounding; 4-bit weights are equal on both sides."""

Arrays = dict[str, np.ndarray]
Plan = Sequence[str | None]
Step = Callable[[Arrays, str | None], Arrays]
StepOfRows = Callable[[Arrays, Plan], Arrays]


def generate(step: Step, inputs: Sequence[InputRecord], plan: Sequence[str | None]) -> Text:
    """Choose the most likely token again and again: the prompt at once, then one token at a time with the cache."""
    (text,) = generate_rows(lambda arrays, names: step(arrays, names[0]), inputs, [plan])
    return text


def generate_rows(step: StepOfRows, inputs: Sequence[InputRecord], plans: Sequence[Plan]) -> list[Text]:
    """Likewise several texts that begin alike, one in each row of the batch."""
    rows = len(plans)
    tokens, chosen = np.tile(PROMPT, (rows, 1)), []
    fresh = tokens
    cache = {
        record.name: np.zeros([rows, *(axis if isinstance(axis, int) else 0 for axis in record.axes[1:])], np.float32)
        for record in inputs
        if record.role == "cache"
    }
    for names in zip(*plans, strict=True):
        outputs = step({"input_ids": fresh, "attention_mask": np.ones_like(tokens), **cache}, names)
        cache = {record.name: outputs[record.next] for record in inputs if record.next is not None}
        chosen.append(outputs["logits"][:, -1])
        fresh = chosen[-1].argmax(-1)[:, None]
        tokens = np.concatenate([tokens, fresh], 1)
    logits = np.stack(chosen, 1)
    return [Text(row[len(PROMPT) :].tolist(), own) for row, own in zip(tokens, logits, strict=True)]


@dataclass(frozen=True)
class Llama:
    """One precision of the tiny Llama, built by onnxruntime-genai's builder, and its bundle.

    Attributes:
        genai: the builder's folder; none for the model that was captured from torch.
        bundle: its bundle with `adapters`.
        reference: torch, with the weights that the builder's graph computes with.
        adapters: by name.
        records: the inputs of the reference.
        texts: what the reference wrote, by plan.
    """

    genai: GenaiBase | None
    bundle: Path
    reference: TorchRunner
    adapters: Mapping[str, Adapter]
    records: Sequence[InputRecord]
    texts: dict[tuple[str | None, ...], Text] = field(default_factory=dict)

    def in_torch(self, plan: Sequence[str | None]) -> Text:
        key = tuple(plan)
        if key not in self.texts:
            self.texts[key] = generate(
                lambda arrays, name: self.reference.run(arrays, self.adapters.get(name or "")), self.records, plan
            )
        return self.texts[key]


@pytest.fixture(scope="session")
def tiny(genai_is_there: None) -> ModuleType:
    """The example's program that makes the model."""
    return example("make_tiny")


@pytest.fixture(scope="session")
def llama_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("generation") / "llama"
    tiny.save_llama(folder)
    return folder


@pytest.fixture(scope="session")
def archive(llama_folder: Path) -> Path:
    """The Llama captured from torch."""
    path = llama_folder.with_name("llama.pt")
    capture_folder(llama_folder, path)
    return path


@pytest.fixture(scope="session", params=["fp32", "int4"])
@extended
def llama(
    request: pytest.FixtureRequest,
    tiny: ModuleType,
    llama_folder: Path,
    archive: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Llama:
    work = tmp_path_factory.mktemp(request.param)
    if request.param == "fp32":
        tiny.run_builder(llama_folder, work / "model", request.param)
    else:
        run_builder(llama_folder, work / "model", request.param, "accuracy_level=1")
    genai = ae.open_base(work / "model")
    assert isinstance(genai, GenaiBase)
    if request.param == "int4":
        save_rounded(llama_folder, genai.model.model, work / "rounded")
        archive = work / "rounded.pt"
        capture_folder(work / "rounded", archive)
    base = load_base(archive)
    adapters = adapters_of(tiny, base)
    _build(genai, adapters, work / "bundle")
    return Llama(
        genai, work / "bundle", TorchRunner(base), {adapter.name: adapter for adapter in adapters}, base.inputs
    )


def adapters_of(tiny: ModuleType, base: TorchBase) -> list[Adapter]:
    """Return the example's adapters, and LoRA on queries and values, which the builder's graph fuses with keys."""
    sites = discover(flow_graph(base.flat))
    names = list(lora().placements(sites))
    return [
        *tiny.random_adapters(sites, base.fingerprint),
        adapter_at("c", lora().graph, names, sites, base.fingerprint),
    ]


def _build(genai: ae.Base, adapters: Sequence[Adapter], out: Path) -> None:
    build_bundle(
        genai.model,
        adapters,
        out,
        references=CutRunner(genai.model),
        cases=input_cases(genai.inputs, seed=0, max_tokens=9),
        tokenizer=genai.tokenizer,
        max_tokens=genai.max_tokens,
        companions=genai.companions("model.onnx"),
        allow_base_mismatch=True,
    )


def check_equal(found: Text, expected: Text) -> None:
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=TOLERANCE)


def test_each_choice_of_adapters_writes_its_own_text(llama):
    """Or equal texts would show nothing."""
    texts = {name: tuple(llama.in_torch(plan).tokens) for name, plan in PLANS.items()}
    assert len(set(texts.values())) == len(PLANS)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_session_with_the_cache_writes_what_torch_writes(llama, plan):
    session = Bundle.open(llama.bundle).session()
    found = generate(session.run, Bundle.open(llama.bundle).manifest.inputs, plan)
    check_equal(found, llama.in_torch(plan))


def test_rows_of_one_batch_write_texts_of_their_own(llama):
    check_rows(llama)


def check_rows(made: Llama) -> None:
    """Row by row another plan: each has its adapter in the bank, its cache, and switches when it likes."""
    bundle, plans = Bundle.open(made.bundle), list(PLANS.values())
    session = bundle.session()
    texts = generate_rows(lambda arrays, names: session.run(arrays, adapters=names), bundle.manifest.inputs, plans)
    for found, plan in zip(texts, plans, strict=True):
        check_equal(found, made.in_torch(plan))


@pytest.mark.parametrize("name", ["none", "a", "b", "c", "a, then b"])
def test_onnxruntime_genai_writes_what_torch_writes(llama, name):
    found, bundle = in_genai(llama.bundle, PLANS[name]), Bundle.open(llama.bundle)
    check_equal(found, llama.in_torch(PLANS[name]))
    if len(set(PLANS[name])) == 1:  # `generate` has one adapter for a text
        adapters, decoding = PLANS[name][:1], Decoding(TOKENS)
        assert bundle.session().generate([PROMPT], adapters=adapters, decoding=decoding, ends=()) == [found.tokens]
        (text,) = bundle.writer().write([PROMPT_TEXT], adapters=adapters, decoding=decoding)
        assert list(text.tokens) == found.tokens


def test_idle_bundle_equals_the_base_bit_for_bit(llama):
    base, bundle = (in_genai(folder, PLANS["none"]) for folder in (llama.genai.path, llama.bundle))
    np.testing.assert_array_equal(base.logits, bundle.logits)
    untouched = open_session(ir.load(llama.genai.model.path), llama.genai.path)
    exported = open_session(ir.load(llama.bundle / "model.onnx"), llama.bundle)
    for case in input_cases(llama.genai.inputs, seed=1, max_tokens=9):
        expected, found = run_session(untouched, case.arrays), run_session(exported, case.arrays)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_the_builders_graph_has_the_sites_and_caches_of_the_torch_model(llama):
    base = llama.genai.model
    in_torch = discover(flow_graph(llama.reference.model(None).base.flat))
    assert [(site.name, site.width) for site in base.sites.sublayers] == [
        (site.name, site.width) for site in in_torch.sublayers
    ]
    caches = {record.name: (record.next, record.axes) for record in base.inputs if record.role == "cache"}
    names = [f"{layer}.{name}" for layer in (0, 1) for name in ("key", "value")]
    axes = ("batch_size", 2, "past_sequence_length", 16)
    assert caches == {f"past_key_values.{name}": (f"present.{name}", axes) for name in names}
    (mask,) = (record.axes for record in base.inputs if record.role == "mask")
    assert mask == ("batch_size", "past_sequence_length + sequence_length")


def test_bundle_contains_and_lists_the_files_of_genai(llama):
    manifest = Bundle.open(llama.bundle).manifest
    kept = {"genai_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert kept <= {record.path for record in manifest.files}
    assert not list(llama.bundle.glob("*.data"))
    for name in kept:
        assert (llama.bundle / name).read_bytes() == (llama.genai.path / name).read_bytes()


@pytest.fixture(scope="session")
def captured(tiny: ModuleType, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Llama:
    """The same Llama captured from torch, and its bundle."""
    work = tmp_path_factory.mktemp("captured")
    base = load_base(archive)
    adapters = adapters_of(tiny, base)
    export_onnx(base, work / "base.onnx")
    runner = TorchRunner(base)
    exported = open_onnx(work / "base.onnx")
    cases = input_cases(exported.inputs, seed=0, max_tokens=9)
    build_bundle(exported, adapters, work / "bundle", references=runner, cases=cases)
    return Llama(None, work / "bundle", runner, {adapter.name: adapter for adapter in adapters}, base.inputs)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_captured_decoder_writes_what_torch_writes(captured, plan):
    bundle = Bundle.open(captured.bundle)
    check_equal(generate(bundle.session().run, bundle.manifest.inputs, plan), captured.in_torch(plan))


def test_rows_of_a_captured_decoder_write_texts_of_their_own(captured):
    check_rows(captured)


@pytest.mark.extended
def test_generate_continues_a_prompt_as_torch_does(captured, archive, tmp_path):
    bundle = ae.build(ae.open_base(archive), list(captured.adapters.values()), tmp_path / "bundle")
    names = [None, "a", "b", "c"]
    found = bundle.session().generate([PROMPT] * len(names), adapters=names, decoding=Decoding(TOKENS), ends=())
    assert found == [captured.in_torch([name] * TOKENS).tokens for name in names]
    assert sum(len(text.tokens) for one in bundle.manifest.adapters for text in one.golden.written) > 12


@pytest.mark.parametrize("llama", ["int4"], indirect=True)
@pytest.mark.extended
def test_the_example_writes_the_same_with_both_programs(llama):
    command = [
        sys.executable,
        EXAMPLE / "generate.py",
        llama.bundle,
        "--prompt",
        "w5 w9 w33 w71",
        "--tokens",
        str(TOKENS),
    ]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    *texts, last = (line.partition(": ") for line in printed)
    expected = {("no adapter" if name == "none" else name): plan for name, plan in PLANS.items()}
    for name, _, text in texts:
        assert text.split() == [f"w{token}" for token in llama.in_torch(expected[name]).tokens]
    assert len(texts) == 5
    assert last[0] == "the same with onnxruntime and onnxruntime-genai"


@pytest.mark.parametrize("llama", ["fp32"], indirect=True)
def test_a_graph_of_another_name_is_renamed_in_the_configuration(llama, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in llama.genai.path.iterdir():
        name = "decoder.onnx" if path.name == "model.onnx" else path.name
        (folder / name).write_bytes(path.read_bytes())
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "decoder.onnx"
    (folder / "genai_config.json").write_text(json.dumps(config))
    _build(ae.open_base(folder), [llama.adapters["a"]], tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "decoder.onnx").exists()
    np.testing.assert_array_equal(
        in_genai(tmp_path / "bundle", PLANS["a"]).logits, in_genai(llama.bundle, PLANS["a"]).logits
    )


@pytest.mark.parametrize("llama", ["fp32"], indirect=True)
@pytest.mark.parametrize("name", ["base.bin", "manifest.json", "derivation.json", "golden"])
def test_a_file_with_the_name_of_one_of_the_bundle_is_refused(llama, tmp_path, name):
    kept, heard = {**llama.genai.companions("model.onnx"), name: b"{}"}, Heard()
    with pytest.raises(BaseModelError, match=rf"{name}: has a file with a reserved name"):
        build_bundle(
            llama.genai.model,
            [llama.adapters["a"]],
            tmp_path / "bundle",
            references=CutRunner(llama.genai.model),
            cases=input_cases(llama.genai.inputs, seed=0, max_tokens=3),
            companions=kept,
            allow_base_mismatch=True,
            reporter=heard,
        )
    assert not any("golden" in step for step in heard.steps), "before anything long is computed"
    assert not (tmp_path / "bundle").exists()

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tokenizers
from building import build_bundle
from heard import Heard
from small_disk import small_disk
from tiny_onnx import build_tiny, mixed_adapters, random_adapter, save_tiny, tiny_model

from adapter_export.errors import (
    AdapterError,
    BaseMismatchError,
    BaseModelError,
    NothingComparedError,
    OutputExistsError,
    ParityError,
    UsageError,
    WriteError,
)
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.manifest_json import read_manifest, verify_files
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import pfeiffer
from adapter_export.numerics.runner import Arrays, Runner, Undefined
from adapter_export.numerics.sample_inputs import InputCase, input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.text import tokenizer_digest

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def cases(base: OnnxBase) -> list[InputCase]:
    return input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "tokens": 5}])


def _everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestContents:
    def test_the_files_are_those_of_the_specification(self, bundle: Path) -> None:
        names = ["narrow", "pfeiffer", "plain", "wide"]
        assert sorted(_everything(bundle)) == sorted(
            ["README.md", "base.bin", "bank.bin", "manifest.json", "derivation.json", "golden/base.safetensors"]
            + ["golden/batches.json"]
            + ["model.onnx", "model.inputs.onnx", "model.bank.onnx"]
            + [f"adapters/{name}.{ending}" for name in names for ending in ("onnx_adapter", "safetensors")]
            + [f"adapters/{name}/{file}" for name in names for file in ("adapter_graph.json", "weights.safetensors")]
            + [f"golden/{name}.safetensors" for name in names]
        )

    def test_the_manifest_holds_for_the_files(self, bundle: Path) -> None:
        manifest = read_manifest(bundle)
        verify_files(manifest, bundle)
        assert [record.name for record in manifest.adapters] == ["wide", "narrow", "pfeiffer", "plain"]
        assert manifest.adapters[1].task.labels == ("red", "green", "blue")
        assert manifest.adapters[3].task is None
        assert {head.output for head in manifest.heads} == {"logits"}
        assert [output.axes for output in manifest.outputs] == [("batch", "tokens", 16), ("batch", "classes")]

    def test_bundle_contains_the_adapters_unchanged(self, bundle: Path, base: OnnxBase) -> None:
        for adapter in mixed_adapters(base):
            found = read_adapter(bundle / "adapters" / adapter.name)
            assert found.placements == adapter.placements
            for name, tensor in adapter.weights.items():
                np.testing.assert_array_equal(found.weights[name], tensor)

    def test_parameters_are_counted_without_idle_slots(self, bundle: Path, base: OnnxBase) -> None:
        counts = {record.name: record.parameters for record in read_manifest(bundle).adapters}
        assert counts == {a.name: sum(t.size for t in a.weights.values()) for a in mixed_adapters(base)}

    def test_each_adapter_file_fills_every_slot_in_both_formats(self, bundle: Path) -> None:
        manifest = read_manifest(bundle)
        for record in manifest.adapters:
            tensors = read_tensors(bundle / record.safetensors)
            file = ort.AdapterFormat.read_adapter(str(bundle / record.onnx_adapter))  # onnxruntime 1.22 frees it early
            native = file.get_parameters()
            assert set(tensors) == set(native) == {slot.name for slot in manifest.slots}
            for name, tensor in tensors.items():
                np.testing.assert_array_equal(native[name].numpy(), tensor)

    def test_the_graph_file_is_small_and_names_its_weights_relatively(self, bundle: Path) -> None:
        model = onnx.load(bundle / "model.onnx", load_external_data=False)
        locations = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        assert locations == {"base.bin"}
        slots = {slot.name for slot in read_manifest(bundle).slots}
        assert not [t.name for t in model.graph.initializer if t.name in slots and t.external_data]

    def test_the_checker_of_onnx_passes(self, bundle: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(bundle, tmp_path / "copy")  # the checker rejects hard-linked weights
        onnx.checker.check_model(str(copy / "model.onnx"), full_check=True)

    def test_the_same_build_gives_the_same_bytes(self, bundle: Path, tmp_path: Path) -> None:
        assert _everything(build_tiny(tmp_path)) == _everything(bundle)

    def test_a_bundle_without_heads_has_no_logits(self, base: OnnxBase, cases: list[InputCase], tmp_path: Path) -> None:
        adapters = [random_adapter("a", pfeiffer(), base)]
        manifest = build_bundle(base, adapters, tmp_path / "b", references=CutRunner(base), cases=cases)
        assert manifest.heads == ()
        assert [output.name for output in manifest.outputs] == ["hidden"]

    def test_build_records_the_tokenizer_and_its_digest(
        self, base: OnnxBase, cases: list[InputCase], tmp_path: Path
    ) -> None:
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "ä": 1}, unk_token="?"))
        text = words.to_str(pretty=True).replace("\n", "\r\n")
        adapters = [random_adapter("a", pfeiffer(), base)]
        manifest = build_bundle(
            base,
            adapters,
            tmp_path / "b",
            references=CutRunner(base),
            cases=cases,
            tokenizer=text,
            max_tokens=9,
        )
        assert manifest.text is not None
        assert manifest.max_tokens == 9
        assert (tmp_path / "b" / manifest.text.tokenizer).read_bytes() == text.encode()
        assert manifest.text.digest == tokenizer_digest(text)

    def test_build_reports_each_step(self, base: OnnxBase, cases: list[InputCase], tmp_path: Path) -> None:
        heard = Heard()
        adapters = [random_adapter("a", pfeiffer(), base)]
        build_bundle(base, adapters, tmp_path / "b", references=CutRunner(base), cases=cases, reporter=heard)
        assert len(heard.steps) == 9
        assert "golden vectors of `a`" in heard.steps[4]


class TestGolden:
    def test_golden_vectors_contain_the_outputs_of_the_reference(self, bundle: Path, base: OnnxBase) -> None:
        runner = CutRunner(base)
        adapters: dict[str, Adapter | None] = {adapter.name: adapter for adapter in mixed_adapters(base)}
        manifest = read_manifest(bundle)
        records = {record.name: record.golden for record in manifest.adapters}
        for name, adapter in {"base": None, **adapters}.items():
            golden = manifest.golden if adapter is None else records[name]
            tensors = read_tensors(bundle / golden.path)
            for case in golden.cases:
                inputs = {i.name: tensors[f"{case}.input.{i.name}"] for i in manifest.inputs}
                for output, expected in runner.run(inputs, adapter).items():
                    np.testing.assert_array_equal(tensors[f"{case}.output.{output}"], expected)

    def test_the_allowed_deviation_is_that_of_float32(self, bundle: Path) -> None:
        for record in read_manifest(bundle).adapters:
            for allowed in record.golden.absolute.values():
                assert 1e-7 < allowed < 1e-3

    def test_manifest_names_the_reference(self, bundle: Path) -> None:
        assert read_manifest(bundle).golden.reference.startswith("onnxruntime ")


class Shifted:
    """A reference that differs from the base by an amount at one place."""

    description = "shifted"

    def __init__(self, runner: Runner, adapter: str | None, output: str, by: float) -> None:
        self._runner, self._adapter, self._output, self._by = runner, adapter, output, by
        self.sites, self.keeps_weights = runner.sites, runner.keeps_weights

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Arrays:
        outputs = self._runner.run(inputs, adapter)
        if (adapter.name if adapter else None) == self._adapter:
            outputs[self._output] = outputs[self._output] + np.float32(self._by)
        return outputs

    def find_undefined(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Undefined:
        return {}


class TestSelfCheck:
    @pytest.mark.parametrize(("adapter", "output"), [(None, "hidden"), ("a", "hidden"), ("a", "logits")])
    def test_a_graph_that_computes_something_else_is_not_written(
        self, base: OnnxBase, cases: list[InputCase], tmp_path: Path, adapter: str | None, output: str
    ) -> None:
        adapters = [random_adapter("a", pfeiffer(), base, labels="xy")]
        references = Shifted(CutRunner(base), adapter, output, 0.001)
        with pytest.raises(ParityError, match=rf"{'no adapter' if adapter is None else '`a`'}.*`{output}`.*1.00e-03"):
            build_bundle(base, adapters, tmp_path / "b", references=references, cases=cases)
        assert list(tmp_path.iterdir()) == []

    def test_nan_from_the_reference_is_refused(self, base: OnnxBase, cases: list[InputCase], tmp_path: Path) -> None:
        references = Shifted(CutRunner(base), "a", "hidden", np.nan)
        with pytest.raises(BaseModelError, match="NaN or Inf in `hidden`"):
            build_bundle(
                base, [random_adapter("a", pfeiffer(), base)], tmp_path / "b", references=references, cases=cases
            )
        assert list(tmp_path.iterdir()) == []

    def test_build_without_cases_is_refused(self, base: OnnxBase, tmp_path: Path) -> None:
        with pytest.raises(NothingComparedError):
            build_bundle(
                base, [random_adapter("a", pfeiffer(), base)], tmp_path / "b", references=CutRunner(base), cases=[]
            )


class TestRefusals:
    def _build(self, base: OnnxBase, adapters: list[Adapter], out: Path, **options: object) -> None:
        cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "tokens": 5}])
        build_bundle(base, adapters, out, references=CutRunner(base), cases=cases, **options)  # type: ignore[arg-type]

    def test_build_without_adapters_is_refused(self, base: OnnxBase, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no adapters"):
            self._build(base, [], tmp_path / "b")

    @pytest.mark.parametrize("names", [("a", "a"), ("a", "A")])
    def test_adapters_of_equal_names_are_refused(self, base: OnnxBase, tmp_path: Path, names: tuple[str, str]) -> None:
        with pytest.raises(AdapterError, match="two adapters have the same name"):
            self._build(base, [random_adapter(name, pfeiffer(), base) for name in names], tmp_path / "b")

    def test_name_of_the_base_is_reserved(self, base: OnnxBase, tmp_path: Path) -> None:
        with pytest.raises(AdapterError, match="is reserved for the base"):
            self._build(base, [random_adapter("base", pfeiffer(), base)], tmp_path / "b")

    def test_another_base_is_refused_unless_allowed(self, base: OnnxBase, tmp_path: Path) -> None:
        adapter = random_adapter("a", pfeiffer(), base, fingerprint="sha256:other")
        with pytest.raises(BaseMismatchError, match="sha256:other"):
            self._build(base, [adapter], tmp_path / "b")
        self._build(base, [adapter], tmp_path / "b", allow_base_mismatch=True)
        manifest = read_manifest(tmp_path / "b")
        assert (manifest.base, manifest.adapters[0].base) == (base.fingerprint, "sha256:other")

    def test_existing_folders_are_replaced_only_with_force(self, base: OnnxBase, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "precious").write_text("mine")
        adapter = random_adapter("a", pfeiffer(), base)
        with pytest.raises(OutputExistsError):
            self._build(base, [adapter], tmp_path / "b")
        assert (tmp_path / "b" / "precious").read_text() == "mine"
        self._build(base, [adapter], tmp_path / "b", force=True)
        assert not (tmp_path / "b" / "precious").exists()

    def test_tokenizer_without_a_maximum_length_is_refused(self, base: OnnxBase, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="tokenizer"):
            self._build(base, [random_adapter("a", pfeiffer(), base)], tmp_path / "b", tokenizer="{}")

    def test_a_base_that_breaks_a_rule_of_onnx_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        model = tiny_model()
        softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
        softmax.attribute.append(onnx.helper.make_attribute("unheard_of", 1))
        base = open_onnx(save_tiny(tmp_path / "model", model))
        cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "tokens": 5}])
        good = open_onnx(save_tiny(tmp_path / "model"))
        with pytest.raises(BaseModelError, match=r"breaks a rule of ONNX.*unheard_of"):
            build_bundle(
                base,
                [random_adapter("a", pfeiffer(), base)],
                tmp_path / "b",
                references=CutRunner(good),
                cases=cases,
            )
        assert not (tmp_path / "b").exists()


def test_full_disk_during_a_build_changes_nothing(tmp_path: Path) -> None:
    base = open_onnx(save_tiny(tmp_path))
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 8, "tokens": 64}])
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "precious").write_text("mine")
    before = _everything(tmp_path)

    def build() -> None:
        build_bundle(
            base, mixed_adapters(base), tmp_path / "bundle", references=CutRunner(base), cases=cases, force=True
        )

    for limit in (0, 10_000, 40_000):
        with small_disk(limit), pytest.raises(WriteError):
            build()
        assert _everything(tmp_path) == before, limit
    build()
    assert (tmp_path / "bundle" / "manifest.json").exists()


def test_an_adapter_with_another_name_is_another_file(base: OnnxBase, cases: list[InputCase], tmp_path: Path) -> None:
    one = random_adapter("one", pfeiffer(), base, labels="xy")
    adapters = [one, replace(one, name="two")]
    build_bundle(base, adapters, tmp_path / "b", references=CutRunner(base), cases=cases)
    files = [tmp_path / "b" / "adapters" / f"{name}.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()

"""Providers run only their variants, and answer only after the golden data where these are required."""

from __future__ import annotations

import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tampering import edit, rehash
from tiny_onnx import token_inputs

import adapter_export as ae
from adapter_export.errors import FileError, FormatError, RequestError, UsageError
from adapter_export.format.manifest_json import read_manifest
from adapter_export.plugins.serve.models import LoadedBundle
from adapter_export.plugins.serve.server_settings import SessionSettings
from adapter_export.providers import PROVIDERS, ProviderName, provider_names
from adapter_export.runtime import Bundle, Request, Session
from adapter_export.runtime.openvino_graph import open_openvino

INPUTS = token_inputs(5, 3, 1)
NAMES = (None, "wide", "narrow", "pfeiffer", "plain")
PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "providers.md").read_text("utf-8")


def of_runtime(runtime: str) -> list[ProviderName]:
    return [name for name, row in PROVIDERS.items() if row.runtime == runtime]


MISSING = [name for name in of_runtime("onnxruntime") if PROVIDERS[name].device not in ort.get_available_providers()]
"""Rows that the installed ONNX Runtime lacks."""


@pytest.fixture(scope="module")
def openvino(bundle: Bundle) -> Session:
    return bundle.session(provider="openvino", threads=1)


def golden_of(bundle: Bundle, name: str | None) -> float:
    """Return the golden budget of `hidden`."""
    records = {record.name: record.golden for record in bundle.manifest.adapters}
    golden = bundle.manifest.golden if name is None else records[name]
    return golden.absolute["hidden"]


def with_graphs(bundle: Bundle, *variants: str) -> Bundle:
    """Return the bundle with only these variants."""
    graphs = {variant: path for variant, path in bundle.manifest.graphs.items() if variant in variants}
    bank = bundle.manifest.bank if "bank" in variants else None
    return replace(bundle, manifest=replace(bundle.manifest, graphs=graphs, bank=bank))


def close(found: np.ndarray, expected: np.ndarray, bundle: Bundle, name: str | None) -> None:
    """Compare within twice the golden budget: each side may differ from the reference by one."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * golden_of(bundle, name))


class TestTable:
    def test_only_rows_that_swap_initializers_run_slots(self) -> None:
        """Only ONNX Runtime's kernels for the CPU and CUDA do; graph compilers fold initializers."""
        assert [name for name, row in PROVIDERS.items() if "slots" in row.variants] == ["cpu", "cuda"]
        assert [name for name, row in PROVIDERS.items() if row.overrides] == ["cpu", "cuda"]

    def test_providers_other_than_cpu_and_cuda_require_proof(self) -> None:
        assert {name for name, row in PROVIDERS.items() if not row.proved} == {"cpu", "cuda"}

    def test_the_page_has_this_table(self) -> None:
        lines = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
        table = {cells[0].strip("`"): cells for cells in lines if cells[0].strip("`") in PROVIDERS}
        assert list(table) == list(PROVIDERS)
        for name, row in PROVIDERS.items():
            _, runtime, install, variants, measured, _ = table[name]
            assert runtime.startswith({"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[row.runtime])
            assert install == row.install
            assert variants == ", ".join(f"`{variant}`" for variant in row.variants)
            assert measured.endswith("when it opens") == row.proved
            assert measured.startswith(row.budget)

    def test_the_python_of_the_page_runs(self, bundle: Bundle) -> None:
        (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
        names = {"bundle": bundle, "inputs": token_inputs(5, 2)}
        exec(compile(code.replace('"a"', '"wide"'), "docs/how-to/providers.md", "exec"), names)  # noqa: S102
        assert {"outputs", "mixed"} <= names.keys()

    def test_provider_names_are_validated_and_ordered(self) -> None:
        assert provider_names(["all"]) == tuple(PROVIDERS)
        assert provider_names(["openvino", "cpu"]) == ("cpu", "openvino")
        with pytest.raises(UsageError, match=r"unknown provider; found `gpu`; expected cpu, cuda"):
            provider_names(["cpu", "gpu"])

    @pytest.mark.parametrize("name", MISSING)
    def test_a_missing_provider_names_its_package(self, bundle: Bundle, name: ProviderName) -> None:
        row = PROVIDERS[name]
        with pytest.raises(UsageError, match=f"`{name}` is not available here.*{re.escape(row.install)}"):
            bundle.session(provider=name)

    def test_a_missing_openvino_names_its_extra(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(UsageError, match=r"`openvino` is not available here.*adapter-export\[openvino\]"):
            bundle.session(provider="openvino")
        with pytest.warns(RuntimeWarning, match="runs on `cpu`: `openvino` is not available here"):
            assert bundle.session(provider="openvino", fallback="cpu").provider == "cpu"


class TestOpenVino:
    @pytest.mark.parametrize("name", NAMES)
    def test_openvino_swaps_adapters_as_the_cpu_does(
        self, bundle: Bundle, session: Session, openvino: Session, name: str | None
    ) -> None:
        found, expected = openvino.run(INPUTS, name), session.run(INPUTS, name)
        assert found.keys() == expected.keys()
        for output, array in found.items():
            assert array.dtype == expected[output].dtype
            close(array, expected[output], bundle, name)
            np.testing.assert_array_equal(openvino.run_on_device(INPUTS, name)[output].numpy(), array)

    def test_rows_of_a_batch_have_adapters_of_their_own(self, bundle: Bundle, openvino: Session) -> None:
        names = ("wide", None, "plain")
        found = openvino.run(INPUTS, adapters=names)["hidden"]
        for row, name in enumerate(names):
            close(found[row], openvino.run(INPUTS, name)["hidden"][row], bundle, name)
        each = openvino.fan_out(INPUTS, ["wide", None])
        close(each["wide"]["hidden"], openvino.run(INPUTS, "wide")["hidden"], bundle, "wide")

    def test_loaded_adapters_run_through_inputs(self, bundle: Bundle, session: Session, openvino: Session) -> None:
        record = next(one for one in bundle.manifest.adapters if one.name == "wide")
        openvino.load("again", bundle.folder / record.onnx_adapter, task=record.task)
        try:
            with pytest.raises(RequestError, match=r"`openvino` takes no adapters into the bundle's bank.*`again`"):
                openvino.run(INPUTS, adapters=("again", None, "wide"))
            requests = [Request(token_inputs(3 + at), name) for at, name in enumerate(("again", None, "wide"))]
            for request, outputs in zip(requests, openvino.run_many(requests), strict=True):
                name = "wide" if request.adapter == "again" else request.adapter
                close(outputs["hidden"], session.run(request.inputs, name)["hidden"], bundle, name)
        finally:
            openvino.unload("again")

    def test_strength_scales_an_adapter(self, bundle: Bundle, session: Session, openvino: Session) -> None:
        found = openvino.run(INPUTS, "wide", strength=0.5)["hidden"]
        close(found, session.run(INPUTS, "wide", strength=0.5)["hidden"], bundle, "wide")
        close(openvino.run(INPUTS, "wide", strength=0)["hidden"], session.run(INPUTS)["hidden"], bundle, None)

    def test_threads_share_a_session(self, bundle: Bundle, openvino: Session) -> None:
        asked = [(token_inputs(3 + at % 5, 2), NAMES[at % len(NAMES)]) for at in range(40)]
        expected = [openvino.run(inputs, name)["hidden"] for inputs, name in asked]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda one: openvino.run(*one)["hidden"], asked))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_results_outlive_the_next_call(self, openvino: Session) -> None:
        first = openvino.run(INPUTS, "wide")["hidden"]
        kept = first.copy()
        openvino.run(token_inputs(5, 3, 2), "narrow")
        np.testing.assert_array_equal(first, kept)

    def test_server_opens_an_openvino_session(self, bundle: Bundle) -> None:
        settings = SessionSettings(provider="openvino")
        assert LoadedBundle("b", bundle, settings).session.provider == "openvino"

    def test_settings_of_onnx_runtime_are_refused(self, bundle: Bundle) -> None:
        with pytest.raises(UsageError, match=r"a setting of ONNX Runtime.*optimization level `none`"):
            bundle.session(provider="openvino", optimization="none")
        with pytest.raises(UsageError, match="which `openvino` lacks; found weights that are not packed"):
            bundle.session(provider="openvino", packed=False)
        with pytest.raises(UsageError, match="`threads` is out of range"):
            bundle.session(provider="openvino", threads=0)


class TestSlots:
    def test_openvino_has_no_slots(self, bundle: Bundle) -> None:
        """Its reader drops overridable initializers, so adapters would be ignored."""
        with pytest.raises(RequestError, match="`openvino` may not run the graph `slots`"):
            bundle.graphs("openvino").session("slots")
        graph = open_openvino(bundle.home / bundle.manifest.graphs["slots"], "openvino", 1)
        adapter = bundle.session()._adapters.load(bundle.session()._adapters.entry("wide"))
        with pytest.raises(RequestError, match=r"not those that the graph takes.*adapter"):
            graph.run({**INPUTS, **adapter.tensors}, ["hidden"])

    def test_a_missing_tensor_is_refused(self, bundle: Bundle) -> None:
        """OpenVINO would compute with the memory of an earlier call."""
        graph = open_openvino(bundle.home / bundle.manifest.graphs["inputs"], "openvino", 1)
        with pytest.raises(RequestError, match=r"not those that the graph takes; found no others; expected `adapter"):
            graph.run(INPUTS, ["hidden"])

    def test_a_bundle_of_slots_is_refused(self, bundle: Bundle) -> None:
        slots = with_graphs(bundle, "slots")
        expected = r"no graph that `openvino` may run; found `slots`; expected one of `inputs`, `bank`. Build it with"
        with pytest.raises(UsageError, match=expected):
            slots.session(provider="openvino")
        with pytest.warns(RuntimeWarning, match="runs on `cpu`: the bundle has no graph that `openvino` may run"):
            assert slots.session(provider="openvino", fallback="cpu").provider == "cpu"

    def test_a_bundle_with_a_bank_runs_that(self, bundle: Bundle, openvino: Session) -> None:
        session = with_graphs(bundle, "slots", "bank").session(provider="openvino")
        for name in NAMES:
            close(session.run(INPUTS, name)["hidden"], openvino.run(INPUTS, name)["hidden"], bundle, name)
        with pytest.raises(RequestError, match="the bundle has no graph for inputs"):
            session.run(INPUTS, "wide", strength=0.5)


class TestProof:
    @pytest.mark.parametrize("name", ["base", "wide"])
    def test_golden_data_are_compared_before_the_first_answer(self, copy: Path, name: str) -> None:
        """Plant a wrong result: golden outputs moved by ten times their budget."""
        manifest = read_manifest(copy)
        golden = next((one.golden for one in manifest.adapters if one.name == name), manifest.golden)
        case = golden.cases[-1]

        def move(tensors: dict[str, np.ndarray]) -> None:
            tensors[f"{case}.output.hidden"][0, 0, 0] += 10 * golden.absolute["hidden"]

        edit(copy / golden.path, move)
        rehash(copy)
        bundle = Bundle.open(copy)
        with pytest.raises(FormatError, match="provider `openvino`: does not compute what the reference computed"):
            bundle.session(provider="openvino")
        bundle.session(provider="cpu")  # not proved when it opens

    def test_provider_proof_covers_the_bank(self, copy: Path) -> None:
        bank = copy / "bank.bin"
        numbers = np.frombuffer(bank.read_bytes(), np.float32)
        bank.unlink()
        factors = np.where(np.abs(numbers) < 10, 1.5, 1.0)  # the others mask classes
        bank.write_bytes((numbers * factors).astype(np.float32).tobytes())
        rehash(copy)
        with pytest.raises(FormatError, match="provider `openvino`: does not compute what the reference computed"):
            Bundle.open(copy).session(provider="openvino")

    def test_provider_refuses_a_bundle_without_golden_data(self, copy: Path) -> None:
        bundle = Bundle.open(copy)
        shutil.rmtree(copy / "golden")
        with pytest.raises(FileError, match="golden"):
            bundle.session(provider="openvino")

    def test_verify_reports_the_provider(self, built: Path) -> None:
        report = ae.verify(built, provider="openvino")
        (found,) = [one for one in report.findings if one.check == "providers"]
        assert (found.subject, found.status) == ("openvino", "tested")
        ratio = float(re.search(r"worst ([\d.]+) of its budget", found.detail)[1])  # type: ignore[index]
        assert ratio < 0.5  # float32 on both sides; measured: below 0.1
        with pytest.raises(UsageError, match="`qnn` is not available here"):
            ae.verify(built, provider="qnn")

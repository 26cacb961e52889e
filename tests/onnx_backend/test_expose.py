from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import WIDTH, mixed_adapters, random_adapter, save_tiny, tiny_model, token_inputs

from adapter_export.errors import AdapterError, RequestError
from adapter_export.graph.kinds import houlsby, pfeiffer
from adapter_export.numerics.evaluate_adapter import evaluate_head, evaluate_site
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner, cut, cut_input
from adapter_export.onnx_backend.rewrite.insert import exposed, insert_slots, with_site_outputs
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session

INPUTS = token_inputs(5, 3)


class TestSiteOutputs:
    @pytest.mark.parametrize("index", range(4))
    def test_exposed_site_results_match_the_reference(self, base: OnnxBase, index: int) -> None:
        adapters = mixed_adapters(base)
        adapter = adapters[index]
        plan = plan_slots(adapters, base.sites)
        session = open_session(with_site_outputs(insert_slots(base, plan)), base.folder)
        shown = run_session(session, {**INPUTS, **slot_tensors(plan, adapter)})
        for site in base.sites.sublayers:
            values = {name: shown[exposed(site.name, name)] for name in ("h", "x", "u")}
            acts = site.name in adapter.placements
            expected = evaluate_site(adapter, site.name, values) if acts else values["h"]
            np.testing.assert_allclose(shown[exposed(site.name, "result_h")], expected, rtol=0, atol=1e-5)
            assert acts == (np.abs(shown[exposed(site.name, "result_h")] - values["h"]).max() > 0.01)
        if adapter.head is not None:
            expected = evaluate_head(adapter, shown["head/hidden"], INPUTS["attention_mask"])
            np.testing.assert_allclose(shown["logits"], expected, rtol=0, atol=1e-5)

    def test_showing_the_values_changes_none_of_the_outputs(self, base: OnnxBase) -> None:
        adapter = random_adapter("a", houlsby(), base)
        plan = plan_slots([adapter], base.sites)
        model = insert_slots(base, plan)
        feeds = {**INPUTS, **slot_tensors(plan, adapter)}
        plain, shown = (
            run_session(open_session(one, base.folder, optimize=False), feeds)["hidden"]
            for one in (model, with_site_outputs(model))
        )
        np.testing.assert_array_equal(plain, shown)


class TestCut:
    def test_a_base_fed_its_own_values_is_the_base(self, base: OnnxBase) -> None:
        runner = CutRunner(base)
        places = [(site, replaced) for site in base.sites.sublayers for replaced in ("u", "h", "y")]
        opened = cut(base, places)
        session = open_session(opened.model, base.folder, optimize=False)
        feeds = {**INPUTS, **{cut_input(s.name, value): np.zeros((2, 5, WIDTH), np.float32) for s, value in places}}
        for (site, replaced), _ in opened.places:
            shown = exposed(f"{site.name}.{replaced}", replaced)
            feeds[cut_input(site.name, replaced)] = run_session(session, feeds, [shown])[shown]
        found = run_session(session, feeds, ["hidden"])["hidden"]
        np.testing.assert_array_equal(found, runner.run(INPUTS, None)["hidden"])

    def test_cut_outputs_return_the_fed_values(self, tmp_path: Path) -> None:
        base = open_onnx(save_tiny(tmp_path, tiny_model(more=f", float[batch, tokens, {WIDTH}] ffn0")))
        places = [(site, "h") for site in base.sites.sublayers]
        session = open_session(cut(base, places).model, base.folder)
        feeds = {**INPUTS, **{cut_input(s.name, "h"): np.ones((2, 5, WIDTH), np.float32) for s, _ in places}}
        np.testing.assert_array_equal(run_session(session, feeds, ["ffn0"])["ffn0"], np.ones((2, 5, WIDTH)))


class TestCutRunner:
    def test_description_states_the_precision(self, base: OnnxBase) -> None:
        assert "float64 for adapters" in CutRunner(base).description

    def test_adapter_at_an_unknown_site_is_refused(self, base: OnnxBase, tmp_path: Path) -> None:
        adapter = random_adapter("a", pfeiffer(), base)
        object.__setattr__(adapter, "placements", {"layers.7.ffn": adapter.placements["layers.0.ffn"]})
        with pytest.raises(AdapterError, match=r"layers\.7\.ffn"):
            CutRunner(base).run(INPUTS, adapter)

    def test_invalid_inputs_are_refused(self, base: OnnxBase) -> None:
        with pytest.raises(RequestError):
            CutRunner(base).run({"input_ids": INPUTS["input_ids"]}, None)
        with pytest.raises(RequestError):
            CutRunner(base).run({**INPUTS, "input_ids": INPUTS["input_ids"] + 1000}, None)

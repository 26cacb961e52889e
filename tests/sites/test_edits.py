"""Where layers read their inputs, and in which order values are replaced, on graphs written by hand."""

from __future__ import annotations

import pytest
from flows import flow

from adapter_export.errors import NoSitesError
from adapter_export.sites.edits import Edit, Ref, Rewiring, input_consumers, plan_edits
from adapter_export.sites.site import Role, Site
from adapter_export.sites.view import FlowIndex

ATTENTION = """
    q = linear x
    k = linear x
    v = linear x
    scores = matmul q k
    weights = softmax scores
    context = matmul weights v
    h = linear context
    out = add x h
"""


def site(h: str, u: str = "x", role: Role = "linear", y: str | None = None, name: str = "layer") -> Site:
    return Site(name, role, 0, 8, 8, h, "x", u, y, None, None, None, "output")


class TestInputConsumers:
    def test_a_residual_sum_is_no_part_of_the_layer(self) -> None:
        found = input_consumers(FlowIndex(flow(ATTENTION)), site("h", role="attention"))
        assert found.consumers == {"node_q", "node_k", "node_v"}
        assert found.shared == frozenset()

    def test_other_projections_are_no_part_of_a_projection(self) -> None:
        found = input_consumers(FlowIndex(flow(ATTENTION)), site("q"))
        assert (found.consumers, found.consumer, found.trail) == ({"node_q"}, "node_q", ("x",))

    def test_shared_preparation_of_an_input_is_copied(self) -> None:
        graph = flow(ATTENTION.replace("linear x", "linear packed").replace("q =", "packed = quantise x \n q =", 1))
        found = input_consumers(FlowIndex(graph), site("q"))
        assert (found.consumers, found.shared) == ({"node_q"}, {"node_packed"})
        assert found.trail == ("packed", "x")
        assert input_consumers(FlowIndex(graph), site("h", role="attention")).shared == frozenset()

    def test_preparation_in_two_steps_is_copied_as_a_whole(self) -> None:
        graph = flow(
            "flat = view x \n packed = quantise flat \n q = linear packed \n k = linear packed \n s = matmul q k \n"
            "h = linear s \n out = add x h"
        )
        found = input_consumers(FlowIndex(graph), site("q"))
        assert (found.consumers, found.shared) == ({"node_q"}, {"node_flat", "node_packed"})
        assert found.trail == ("packed", "flat", "x")

    def test_a_result_of_the_base_is_read_outside(self) -> None:
        text = "flat = view x \n q = linear flat \n h = gelu q \n out = add x h"
        found = input_consumers(FlowIndex(flow(text, outputs=("out", "flat"))), site("q"))
        assert (found.consumers, found.shared) == ({"node_q"}, {"node_flat"})

    def test_values_behind_a_product_belong_to_the_layer(self) -> None:
        """A decoder keeps keys that are computed from what the layer reads."""
        found = input_consumers(FlowIndex(flow(ATTENTION, outputs=("out", "k"))), site("h", role="attention"))
        assert found.consumers == {"node_q", "node_k", "node_v"}

    def test_unread_layer_inputs_are_refused(self) -> None:
        graph = flow("p = gelu x \n h = linear p \n out = add x h")
        with pytest.raises(NoSitesError, match="no node of the layer reads its input"):
            input_consumers(FlowIndex(graph), site("p", u="h"))


class TestOrder:
    def test_replacements_are_ordered_before_their_readers(self) -> None:
        index = FlowIndex(flow(ATTENTION.replace("out = add x h", "y = add x h \n up = linear y \n out = add y up")))
        whole, query = site("h", role="attention", y="y", name="whole"), site("q", name="query")
        last, following = site("h", u="context", name="last"), site("up", u="y", role="ffn", y="out", name="following")
        places = [(whole, "y"), (following, "u"), (whole, "h"), (query, "u"), (last, "h"), (whole, "u"), (query, "h")]
        assert [(edit.site.name, edit.replaced) for edit in plan_edits(index, places)] == [
            ("whole", "u"),
            ("query", "u"),
            ("query", "h"),
            ("last", "h"),
            ("whole", "h"),
            ("whole", "y"),
            ("following", "u"),
        ]


class TestRewirings:
    """Nodes that read a value given only to one layer; other nodes are unchanged."""

    SHARED = ATTENTION.replace("linear x", "linear packed").replace("q =", "packed = quantise x \n q =", 1)

    def planned(self, text: str, *places: tuple[Site, str]) -> list[Edit]:
        return plan_edits(FlowIndex(flow(text)), places)

    def test_preparation_shared_by_layers_is_copied_for_one_layer(self) -> None:
        (edit,) = self.planned(self.SHARED, (site("q", name="query"), "u"))
        assert (edit.values["u"], edit.result) == (Ref("x"), Ref("x", "query"))
        assert edit.rewirings == (
            Rewiring(Ref("node_packed"), Ref("x"), Ref("x", "query"), ("packed",)),
            Rewiring(Ref("node_q"), Ref("packed"), Ref("packed", "query")),
        )

    def test_inner_layers_read_the_replaced_input_of_their_sublayer(self) -> None:
        whole, query = site("h", role="attention", name="whole"), site("q", name="query")
        outer, inner = self.planned(self.SHARED, (query, "u"), (whole, "u"))
        assert outer.rewirings == (Rewiring(Ref("node_packed"), Ref("x"), Ref("x", "whole")),)
        assert (inner.values["u"], inner.result) == (Ref("x", "whole"), Ref("x", "query"))
        assert inner.rewirings == (
            Rewiring(Ref("node_packed"), Ref("x", "whole"), Ref("x", "query"), ("packed",)),
            Rewiring(Ref("node_q"), Ref("packed"), Ref("packed", "query")),
        )

    def test_each_layer_has_a_copy_of_its_own(self) -> None:
        query, key = site("q", name="query"), site("k", name="key")
        first, second = self.planned(self.SHARED, (query, "u"), (key, "u"))
        assert {rewiring.new.layer for rewiring in first.rewirings} == {"query"}
        assert second.values["u"] == Ref("x")
        assert second.rewirings == (
            Rewiring(Ref("node_packed"), Ref("x"), Ref("x", "key"), ("packed",)),
            Rewiring(Ref("node_k"), Ref("packed"), Ref("packed", "key")),
        )

    def test_a_node_that_joins_two_ways_is_copied_once(self) -> None:
        text = "a = view x \n b = gelu x \n c = join a b \n q = linear c \n k = linear c \n"
        text += "h = matmul q k \n out = add x h"
        (edit,) = self.planned(text, (site("q", name="query"), "u"))
        assert edit.rewirings == (
            Rewiring(Ref("node_a"), Ref("x"), Ref("x", "query"), ("a",)),
            Rewiring(Ref("node_c"), Ref("a"), Ref("a", "query"), ("c",)),
            Rewiring(Ref("node_q"), Ref("c"), Ref("c", "query")),
            Rewiring(Ref("node_b"), Ref("x"), Ref("x", "query"), ("b",)),
            Rewiring(Ref("node_c", "query"), Ref("b"), Ref("b", "query")),
        )

    def test_the_output_of_a_layer_is_read_by_all(self) -> None:
        (edit,) = self.planned(ATTENTION, (site("q", name="query"), "h"))
        assert (edit.values, edit.result, edit.rewirings) == (
            {"h": Ref("q"), "x": Ref("x"), "u": Ref("x")},
            Ref("q"),
            (),
        )

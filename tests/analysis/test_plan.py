"""Costs of adapters in a base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hand_made_sites import site
from heard import Heard
from small_bundle import build_small

import adapter_export as ae
from adapter_export.bundle.latency import sample
from adapter_export.cli.main import main
from adapter_export.errors import UsageError
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import InputRecord
from adapter_export.graph.kinds import KINDS, kind_named
from adapter_export.plugins.lab.adapter_costs import Choice, base_work, choices, recommend
from adapter_export.sites.site import SiteMap
from adapter_export.training.loop.init_adapter import init_adapter
from adapter_export.training.loop.memory import training_memory


@pytest.fixture(scope="module")
def base(tiny_bert_archive: Path) -> ae.Base:
    return ae.open_base(tiny_bert_archive)


def test_sample_rows_have_a_length_that_the_base_takes() -> None:
    audio = InputRecord("input_values", "float32", ("batch", "samples"), "values")
    assert sample([audio], 2, 128, {"samples": Lengths(400)})["input_values"].shape == (2, 400)
    words = InputRecord("input_ids", "int64", ("batch", "sequence"), "ids", 99)
    assert sample([words], 2, 128, {"sequence": Lengths(1, 24)})["input_ids"].shape == (2, 24)


@pytest.mark.parametrize(("positions", "past"), [(1024, 64), (96, 32), (64, 0)])
def test_sample_shortens_a_past_that_exceeds_the_positions(positions: int, past: int) -> None:
    """A build once failed when it timed a decoder of 64 positions with 64 tokens behind 64 others."""
    words = InputRecord("input_ids", "int64", ("batch", "sequence"), "ids", 99)
    cache = InputRecord("past", "float32", ("batch", 2, "past_sequence", 16), "cache", next="present")
    lengths = {"sequence": Lengths(1, positions), "past_sequence + sequence": Lengths(1, positions)}
    arrays = sample([words, cache], 1, 64, lengths)
    assert (arrays["input_ids"].shape[1], arrays["past"].shape[2]) == (64, past)


def wide(width: int = 4096) -> SiteMap:
    sites = []
    for layer in range(2):
        sites += [site(f"layers.{layer}.{role}", role, layer, width, width) for role in ("attention", "ffn")]
        sites += [site(f"layers.{layer}.ffn.up", "linear", layer, 4 * width, width)]
    return SiteMap(tuple(sites), "final", width)


def test_plan_counts_projections_at_width_4096() -> None:
    found = [one for one, _ in choices([kind_named("pfeiffer")()], (16, 64, 256), wide(), 1_000_000_000)]
    assert [one.projections for one in found] == [131_072, 524_288, 2_097_152]
    assert [one.multiply_accumulates for one in found] == [2 * one.projections for one in found], "two layers"
    assert [one.parameters for one in found] == [2 * (2 * 4096 * b + b + 4096) for b in (16, 64, 256)]
    assert found[0].work_share == pytest.approx(2 * 131_072 / (2 * 4 * 4096 * 4096))
    assert found[0].parameter_share == found[0].parameters / 1e9


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_counts_are_those_of_a_fresh_adapter(kind: str, base: ae.Base) -> None:
    ((one, _),) = choices([KINDS[kind]()], (4,), base.sites.map, base.parameters)
    made = KINDS[kind]()
    made = made.with_widths(**{({"b", "r"} & set(made.components[0].widths)).pop(): 4}) if one.bottleneck else made
    adapter = init_adapter(made, base.sites.map, name="a", base=base.fingerprint)
    assert (one.parameters, one.bytes, one.multiply_accumulates, one.sites) == (
        sum(tensor.size for tensor in adapter.weights.values()),
        sum(tensor.nbytes for tensor in adapter.weights.values()),
        adapter.cost().multiply_accumulates,
        len(adapter.placements),
    )


def choice(bottleneck: int, kind: str = "pfeiffer", work: float | None = 0.01) -> Choice:
    return Choice(kind, bottleneck, 6, bottleneck, bottleneck, bottleneck, bottleneck, 0.01, work)


def test_plan_recommends_bottleneck_64_by_default() -> None:
    best, reasons = recommend([choice(16), choice(64), choice(256)], 384)
    assert best.bottleneck == 64
    assert "64 is the usual bottleneck" in " ".join(reasons)


def test_plan_explains_departures_from_bottleneck_64() -> None:
    best, reasons = recommend([choice(16), choice(64)], 128)
    assert (best.bottleneck, "more than a quarter of the width 128" in " ".join(reasons)) == (16, True)
    best, reasons = recommend([choice(16), choice(64, work=0.2)], 1024)
    assert (best.bottleneck, "64: more than 10% of the base's compute" in " ".join(reasons)) == (16, True)
    best, reasons = recommend([choice(32), choice(256)], 16)
    assert (best.bottleneck, "All of these bottlenecks are too large" in " ".join(reasons)) == (32, True)
    best, reasons = recommend([choice(128), choice(512)], 4096)
    assert (best.bottleneck, "closest to 64" in " ".join(reasons)) == (128, True)


def test_the_kind_that_costs_least_is_recommended() -> None:
    twice = replace(choice(64, "houlsby"), parameters=128)
    best, reasons = recommend([twice, choice(64)], 384)
    assert (best.kind, "`houlsby 64` has 2.0 times as many" in " ".join(reasons)) == ("pfeiffer", True)


def test_few_rows_ask_for_fewer_parameters() -> None:
    narrow, usual, wide = (replace(choice(width), parameters=width * 1000) for width in (16, 64, 256))
    best, reasons = recommend([narrow, usual, wide], 1024, rows=20)
    assert (best, "64, 256: more than 1,000 parameters per row for 20 rows" in " ".join(reasons)) == (narrow, True)
    best, reasons = recommend([usual, wide], 1024, rows=20)
    assert (best, "too large for the base and these rows; 64 is" in " ".join(reasons)) == (usual, True)
    assert recommend([narrow, usual, wide], 1024, rows=64)[0] == usual


def test_training_warns_where_the_plan_recommends_less(text_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "few.tsv"
    table.write_text("text\tlabel\n" + "".join(f"number {n} is it\t{'ab'[n % 2]}\n" for n in range(12)), "utf-8")
    base, heard = ae.open_base(text_folder / "model.pt"), Heard()
    planned = ae.plan(base, kinds=("houlsby",), bottlenecks=(2, 256), tokens=8, batch_size=2, rows=10)
    assert planned.recommended.bottleneck == 2
    wide = ae.train(base, table, name="wide", bottleneck=256, epochs=1, batch_size=4, reporter=heard)
    assert any("parameters for" in note and "`plan(…, rows=…)`" in note for note in heard.notes)
    narrow = Heard()
    ae.train(base, table, name="narrow", bottleneck=2, epochs=1, batch_size=4, reporter=narrow)
    assert not any("parameters for" in note for note in narrow.notes)
    assert "many-parameters" not in {one.rule for one in ae.lint(wide).findings}, "its validation rows were measured"


def test_memory_grows_with_the_rows(base: ae.Base) -> None:
    adapter = init_adapter(kind_named("houlsby")(), base.sites.map, name="a", base=base.fingerprint)
    one, two, five = (sample(base.inputs, rows, 16, base.lengths) for rows in (1, 2, 5))
    assert five["input_ids"].shape == (5, 16)
    said = training_memory(base.torch, adapter, base.sites.map, one, two, 5)
    seen = training_memory(base.torch, adapter, base.sites.map, five, five, 1)
    assert said == pytest.approx(seen, rel=0.02)
    weights = sum(tensor.nbytes for _, tensor in base.torch.program.named_parameters())
    assert seen > weights + 4 * adapter.cost().bytes
    lower = init_adapter(
        kind_named("pfeiffer").changed(leave_out=(0,)), base.sites.map, name="a", base=base.fingerprint
    )  # nothing below the first adapter is kept
    assert training_memory(base.torch, lower, base.sites.map, five, five, 1) < seen - weights / 100


def test_plan_of_a_small_base_lists_every_choice(base: ae.Base) -> None:
    found = ae.plan(base, kinds=("houlsby", "lora"), bottlenecks=(2, 8), tokens=8, batch_size=2)
    assert [(one.kind, one.bottleneck) for one in found.choices] == [
        ("houlsby", 2),
        ("houlsby", 8),
        ("lora", 2),
        ("lora", 8),
    ]
    assert found.width == 32
    parameters = sum(p.numel() for p in base.torch.program.parameters())
    assert (found.parameters, found.multiply_accumulates) == (parameters, 2 * (4 * 32 * 32 + 2 * 32 * 64))
    assert all(one.training_memory is not None and one.latency is None for one in found.choices)
    assert str(found).count("\n") > 5
    assert found.recommended in found.choices


def test_an_onnx_base_is_measured_and_not_trained(tmp_path: Path) -> None:
    build_small(tmp_path)
    found = ae.plan(tmp_path / "base.onnx", bottlenecks=(2,), tokens=4, measure=True)
    assert found.choices[0].training_memory is None
    latency = found.choices[0].latency
    assert latency is not None
    assert 0 < latency.low <= latency.ratio <= latency.high
    assert "training" not in found.table().columns
    assert "latency" in found.table().columns


def test_plan_command_writes_table_json_and_plot(tiny_bert_archive: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    call = ["plan", str(tiny_bert_archive), "--bottlenecks", "2,8", "--tokens", "4", "--plot", str(picture)]
    done = CliRunner().invoke(main, [*call, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [one["bottleneck"] for one in document["choices"]] == [2, 8, 2, 8]
    assert document["recommended"] in document["choices"]
    assert picture.read_text(encoding="utf-8").lstrip().startswith("<?xml")
    again = CliRunner().invoke(main, call)
    assert (again.exit_code, "exists" in again.stderr) == (3, True)
    shown = CliRunner().invoke(main, [*call, "--force"])
    assert "recommended: pfeiffer 8" in shown.stderr
    assert "MACs/token" in shown.stdout


def test_the_command_takes_the_number_of_rows_into_account(tiny_bert_archive: Path) -> None:
    """`plan` once overwrote it by the batch size, 32, and recommended the narrowest adapter for any table."""
    call = ["plan", str(tiny_bert_archive), "--kinds", "pfeiffer", "--bottlenecks", "1,8", "--tokens", "4", "--json"]
    planned = [json.loads(CliRunner().invoke(main, [*call, "--rows", rows]).stdout) for rows in ("1", "5000")]
    assert [document["recommended"]["bottleneck"] for document in planned] == [1, 8]
    assert "parameters per row for 1 row" in " ".join(planned[0]["reasons"])
    assert not any("per row" in reason for reason in planned[1]["reasons"])
    assert planned[0]["setup"] == planned[1]["setup"] == {"batch": 32, "tokens": 4}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ("nothing",)}, "unknown kind"),
        ({"rows": 0}, "too small"),
        ({"kinds": ()}, "must not be empty"),
        ({"bottlenecks": (8, 8)}, "contain duplicates"),
        ({"bottlenecks": (0,)}, "too small"),
        ({"tokens": 0}, "too small"),
    ],
)
def test_plan_refuses_invalid_options(options: dict[str, object], said: str, base: ae.Base) -> None:
    with pytest.raises(UsageError, match=said):
        ae.plan(base, **options)  # type: ignore[arg-type]


def test_a_picture_of_another_type_is_refused(base: ae.Base, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.svg"):
        ae.plan(base, plot=tmp_path / "plan.docx")


def test_base_without_linear_sites_has_no_work_share() -> None:
    sites = SiteMap((site("layers.0.ffn", "ffn", 0),), "final", 16)
    assert base_work(sites) == 0
    ((one, _),) = choices([kind_named("pfeiffer")()], (4,), sites, 100)
    assert one.work_share is None

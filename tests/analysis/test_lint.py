"""Every classic mistake, planted in an adapter that has none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.dtypes import Array
from adapter_export.errors import MistakeError, TensorError, UsageError
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.chain import Chain
from adapter_export.graph.kinds import BottleneckOptions, houlsby, kind_named
from adapter_export.plugins.lab.mistakes import RULES
from adapter_export.training.loop.init_adapter import init_adapter

UP, DOWN = "layers.1.ffn.up.weight", "layers.1.ffn.down.weight"


@pytest.fixture(scope="module")
def base(tiny_bert_archive: Path) -> ae.Base:
    return ae.open_base(tiny_bert_archive)


@pytest.fixture(scope="module")
def right(base: ae.Base) -> Adapter:
    """A Houlsby adapter of rectified units without a mistake; its weights have standard deviation 0.2."""
    made = init_adapter(
        houlsby(BottleneckOptions("relu")).with_widths(b=8), base.sites.map, name="right", base=base.fingerprint
    )
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(0, 0.2, tensor.shape).astype(np.float32) for name, tensor in made.weights.items()}
    return replace(made, weights=drawn, training={"data": {"training_rows": 500}, "settings": {"initial_change": 0.01}})


def found(adapter: Adapter, base: ae.Base | None = None, **options: object) -> dict[str, str | None]:
    """The rules that an adapter breaks, and where first."""
    return {one.rule: one.where for one in reversed(ae.lint(adapter, base=base, **options).findings)}  # type: ignore[arg-type]


def changed(adapter: Adapter, change: Mapping[str, Callable[[Array], Array]]) -> Adapter:
    weights = {name: change.get(name, lambda old: old)(tensor) for name, tensor in adapter.weights.items()}
    return replace(adapter, weights={name: tensor.astype(np.float32) for name, tensor in weights.items()})


def test_lint_finds_nothing_in_a_correct_adapter(right: Adapter, base: ae.Base) -> None:
    lint = ae.lint(right, base=base)
    assert (lint.findings, lint.skipped, lint.passed) == ((), {}, True)
    assert lint.looked_for == tuple(rule.name for rule in RULES)
    lint.raise_for_failure()


def test_lint_lists_skipped_rules(right: Adapter) -> None:
    lint = ae.lint(replace(right, training={}))
    assert set(lint.skipped) == {"many-parameters", "other-base", "disturbing-start", "dead-units", "costly-placement"}
    assert set(lint.skipped) | set(lint.looked_for) == {rule.name for rule in RULES}


@pytest.mark.parametrize(("bottleneck", "rule"), [(17, "wide-bottleneck"), (16, None)])
def test_lint_reports_a_wide_bottleneck(bottleneck: int, rule: str | None, base: ae.Base) -> None:
    kind = kind_named("houlsby")().with_widths(b=bottleneck)
    adapter = init_adapter(kind, base.sites.map, name="wide", base=base.fingerprint, scheme="normal")
    assert found(adapter).get("wide-bottleneck", "none") == ("layers.0.attention" if rule else "none")


def test_lint_reports_a_narrow_bottleneck() -> None:
    graph = kind_named("pfeiffer")().graph
    weights = {"layers.0.ffn.down.weight": np.ones((1024, 2), np.float32) / 50, "layers.0.ffn.down.bias": np.zeros(2)}
    weights |= {"layers.0.ffn.up.weight": np.ones((2, 1024)), "layers.0.ffn.up.bias": np.zeros(1024)}
    adapter = Adapter(
        "narrow",
        "pfeiffer",
        "sha256:0",
        {"pfeiffer": graph},
        {"layers.0.ffn": Placement("pfeiffer", {"d": 1024, "b": 2})},
        {name: np.asarray(tensor, np.float32) for name, tensor in weights.items()},
    )
    assert found(adapter) == {"narrow-bottleneck": "layers.0.ffn"}


def test_lint_reports_more_parameters_than_the_rows_support(right: Adapter, base: ae.Base, tmp_path: Path) -> None:
    table = tmp_path / "few.tsv"
    table.write_text("text\n" + "good\n" * 2, encoding="utf-8")
    assert found(replace(right, training={}), data=table) == {"many-parameters": None}
    assert found(right, data=table) == {}, "its record counts the rows that it learnt from"
    record = {"data": {"training_rows": 1}}
    assert found(replace(right, training=record)) == {"many-parameters": None}
    assert found(replace(right, training={**record, "validation": {"accuracy": 0.9}})) == {}


def test_lint_reports_a_missing_residual_path(right: Adapter) -> None:
    chain = Chain("h")
    chain.linear("down", "d", "b")
    chain.activation("relu", "activated")
    chain.linear("up", "b", "d")
    without = replace(right, graphs=dict.fromkeys(right.graphs, chain.graph()), kind="custom")
    assert found(without) == {"no-residual": "layers.0.attention"}


def test_lint_reports_a_site_without_effect(right: Adapter) -> None:
    zero = {UP: np.zeros_like, "layers.1.ffn.up.bias": np.zeros_like}
    assert "no-effect" in found(changed(right, zero))
    assert found(changed(right, zero))["no-effect"] == "layers.1.ffn"


def test_lint_reports_a_low_effective_rank(base: ae.Base) -> None:
    kind = houlsby(BottleneckOptions("gelu")).with_widths(b=16)
    adapter = init_adapter(kind, base.sites.map, name="flat", base=base.fingerprint, scheme="normal")
    assert found(adapter) == {}
    one = changed(adapter, {DOWN: lambda old: np.outer(old[:, 0], np.ones(16)) + 1e-4 * old})
    assert found(one)["low-rank"] == "layers.1.ffn"


def test_lint_reports_a_layer_with_an_outlying_norm(right: Adapter, base: ae.Base) -> None:
    # three more layers of the same, so that there is a median
    more = {
        site.replace("layers.1", f"layers.{n}"): place for n in (1, 2, 3, 4) for site, place in right.placements.items()
    }
    weights = {name: right.weights[_source(name)] * 1 for name in Adapter.tensor_shapes(_bare(right, more))}
    subject = replace(right, placements=more, weights=weights)
    assert found(subject) == {}
    grown = changed(subject, {"layers.3.ffn.up.weight": lambda old: 30 * old})
    assert found(grown) == {"outlying-norm": "layers.3.ffn"}


def test_lint_reports_a_different_base(right: Adapter, base: ae.Base) -> None:
    assert found(replace(right, base="sha256:" + "0" * 64), base) == {"other-base": None}


def test_lint_reports_a_disturbing_start(right: Adapter, base: ae.Base) -> None:
    recorded = {**right.training, "settings": {"initial_change": 0.4}}
    assert found(replace(right, training=recorded)) == {"disturbing-start": None}
    assert found(right, base, fresh=True) == {"disturbing-start": None}, "std 0.2 is no near-identity"
    kind = houlsby(BottleneckOptions("relu")).with_widths(b=8)
    fresh = init_adapter(kind, base.sites.map, name="fresh", base=base.fingerprint)
    assert found(fresh, base, fresh=True) == {}
    at_the_base = changed(fresh, {name: np.zeros_like for name in fresh.weights if ".up." in name})
    assert found(at_the_base, base)["no-effect"] == "layers.0.attention"
    assert found(at_the_base, base, fresh=True) == {}, "many kinds start where the base is"
    assert "not trained yet" in ae.lint(at_the_base, base=base, fresh=True).skipped["no-effect"]


def test_lint_reports_dead_units(right: Adapter, base: ae.Base) -> None:
    dead = changed(right, {"layers.1.ffn.down.bias": lambda old: np.where(np.arange(8) < 5, -1000, old)})
    assert found(dead, base) == {"dead-units": "layers.1.ffn"}
    (one,) = ae.lint(dead, base=base).findings
    assert one.measure.startswith("5 of 8 units are zero for all of ")


def test_lint_reports_a_costly_placement(right: Adapter, base: ae.Base) -> None:
    ups = [name for name in right.weights if ".attention.up." in name]
    quiet = changed(right, dict.fromkeys(ups, lambda old: old * 0.003))
    assert found(quiet, base) == {"costly-placement": "all sites of attention"}


def test_nan_is_an_error(right: Adapter, tmp_path: Path) -> None:
    ae.save(right, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "weights.safetensors")
    tensors[UP][0, 0] = np.nan
    file, record = tmp_path / "a" / "weights.safetensors", tmp_path / "a" / "adapter_graph.json"
    save_file(tensors, file)
    document = json.loads(record.read_text(encoding="utf-8"))
    del document["checksum"]
    document["weights"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    record.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(TensorError, match="NaN"):
        ae.lint(tmp_path / "a")


def test_lint_reads_texts_for_the_dead_unit_rule(right: Adapter, text_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.tsv"
    table.write_text("text\tlabel\n" + "".join(f"good film {n}\tgood\n" for n in range(90)), encoding="utf-8")
    with_words = ae.open_base(text_folder / "model.pt")
    adapter = next(path for path in sorted((text_folder / "adapters").iterdir()))
    assert "dead-units" in ae.lint(adapter, base=with_words, data=table).looked_for


def test_texts_are_read_by_the_options_of_train(text_folder: Path, tmp_path: Path) -> None:
    base = ae.open_base(text_folder / "model.pt")
    trained = ae.load_adapter(next(path for path in sorted((text_folder / "adapters").iterdir())))
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(0, 0.2, old.shape).astype(np.float32) for name, old in trained.weights.items()}
    adapter = replace(trained, weights=drawn, training={})

    def start(texts: list[str], **options: object) -> str:
        """The effect of the adapter on texts, in the words of the finding."""
        table = tmp_path / "rows.csv"
        table.write_text("words;label\n" + "".join(f"{text};x\n" for text in texts), encoding="utf-8")
        given = {"text": "words", "delimiter": ";", "label": "label", **options}
        findings = ae.lint(adapter, base=base, data=table, fresh=True, **given).findings
        (one,) = (finding for finding in findings if finding.rule == "disturbing-start")
        return one.measure

    texts, long = ["good film", "dull film"], ["good film dull bad fine good"]
    assert start(texts, prefix="how far ") == start([f"how far {text}" for text in texts]) != start(texts)
    assert start(long, max_tokens=4) != start(long, max_tokens=4, truncation="left")
    (tmp_path / "tokenizer.json").write_text(base.tokenizer or "", encoding="utf-8")
    assert start(texts, tokenizer=tmp_path / "tokenizer.json") == start(texts)
    with pytest.raises(UsageError, match=r"`max_tokens` exceeds the model's maximum length"):
        start(texts, max_tokens=10_000)


def test_options_of_data_need_data_and_held_out_rows_do_not_count(right: Adapter, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`pair`, `prefix`: these are about data; found no `data`"):
        ae.lint(right, pair="second", prefix="query: ")
    table, adapter = tmp_path / "rows.tsv", replace(right, training={})
    rows = adapter.cost().parameters // 1000 + 2
    table.write_text("text\n" + "good\n" * rows, encoding="utf-8")
    assert found(adapter, data=table) == {}
    assert found(adapter, data=table, validation=0.5) == {"many-parameters": None}


def test_fresh_option_requires_a_base(right: Adapter) -> None:
    with pytest.raises(UsageError, match="fresh"):
        ae.lint(right, fresh=True)


def test_lint_command_reports_findings_and_skipped_rules(right: Adapter, base: ae.Base, tmp_path: Path) -> None:
    ae.save(right, tmp_path / "right")
    ae.save(replace(right, base="sha256:" + "0" * 64), tmp_path / "wrong")
    call = ["lint", str(tmp_path / "right"), "--base", str(base.path)]
    done = CliRunner().invoke(main, call)
    assert (done.exit_code, "11 checks passed" in done.stdout) == (0, True), done.output
    failed = CliRunner().invoke(main, ["lint", str(tmp_path / "wrong"), "--base", str(base.path), "--json"])
    document = json.loads(failed.stdout)
    assert (failed.exit_code, [one["rule"] for one in document["findings"]]) == (1, ["other-base"])
    shown = CliRunner().invoke(main, ["lint", str(tmp_path / "wrong"), "--base", str(base.path)])
    assert "other-base" in shown.stdout
    alone = CliRunner().invoke(main, ["lint", str(tmp_path / "right")])
    assert "skipped: other-base: no base is given" in alone.stderr
    with pytest.raises(MistakeError, match="classic mistakes"):
        ae.lint(tmp_path / "wrong", base=base).raise_for_failure()


def _bare(adapter: Adapter, placements: Mapping[str, Placement]) -> Adapter:
    """An adapter with other placements, whose tensors are not there yet; only its names are asked for."""
    made = object.__new__(Adapter)
    made.__dict__.update({**adapter.__dict__, "placements": placements})
    return made


def _source(name: str) -> str:
    layer = int(name.split(".")[1])
    return name.replace(f"layers.{layer}", f"layers.{min(layer, 1)}")

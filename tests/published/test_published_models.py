"""Published models: their table, the stored outcomes of the product, and a pairwise selection of its cells."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from cells import FAILED, PASSED, REFUSED, Trial, all_cells
from configurations import GROUPS, MODELS
from pairwise import REPRESENTATIVES, kinds, pairs_of, selected_cells, selection
from refusals import BROKEN, KNOWN, is_being_fixed, is_known
from results import from_rows, read, to_rows
from shrink import DEPTHS, STAGES, VOCABULARIES, WIDTHS, small_config

LEAST = 50
OLD_NAMES = frozenset(
    ("rope_theta", "rope_scaling", "global_rope_theta", "local_rope_theta", "rope_local_base_freq")
) | {"rotary_emb_base", "rotary_pct", "partial_rotary_factor", "sliding_window_pattern", "global_attn_every_n_layers"}
"""Keys of published files that transformers converts."""

OPTIONAL = frozenset(("norm_rel_ebd", "position_buckets", "share_att_key", "decoder_start_token_id"))
"""Keys without a default, which models or generation read if they are there."""

UNREAD = frozenset(("forced_bos_token_id", "static_position_embeddings"))
"""Keys of published files that transformers has moved to generation settings, or never reads."""

CONVERTED = {"qwen2": ("sliding_window",), "t5": ("tie_word_embeddings",)}
"""Keys that transformers reads into others: no window if it is unused, and the scale of T5's tied logits."""


def test_the_table_has_at_least_fifty_models_of_distinct_names() -> None:
    assert len(MODELS) == sum(map(len, GROUPS.values())) >= LEAST


@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_loads_with_the_published_values(name: str) -> None:
    model = MODELS[name]
    config = small_config(model)
    changed = DEPTHS | WIDTHS | OLD_NAMES | VOCABULARIES | {"depths", "image_size", "max_source_positions"}
    kept = {key: value for key, value in model.config.items() if key not in changed and not key.endswith("token_id")}
    kept = {key: value for key, value in kept.items() if not (key in STAGES and isinstance(value, list))}
    kept = {key: value for key, value in kept.items() if key not in CONVERTED.get(model.type, ())}
    assert {key: getattr(config, key) for key in kept} == kept


@pytest.mark.parametrize("name", MODELS)
def test_each_key_of_a_configuration_is_known_to_transformers(name: str) -> None:
    """Transformers keeps unknown keys, so that a misspelt one would have no effect."""
    model = MODELS[name]
    default = transformers.AutoConfig.for_model(model.type)
    unknown = {key for key in model.config if not hasattr(default, key)}
    assert unknown <= OLD_NAMES | OPTIONAL | UNREAD


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if "vocab_size" in model.config])
def test_special_tokens_are_distinct_words_of_the_small_vocabulary(name: str) -> None:
    config, published = small_config(MODELS[name]), MODELS[name].config
    specials = {key: value for key, value in published.items() if key.endswith("token_id")}
    specials = {key: value for key, value in specials.items() if key not in UNREAD}
    moved = {key: getattr(config, key) for key in specials}
    assert all(value < config.vocab_size for value in moved.values())
    assert len(set(moved.values())) == len(set(specials.values()))


def test_heads_are_as_many_as_published() -> None:
    for model in MODELS.values():
        config = small_config(model)
        for key in ("num_attention_heads", "num_key_value_heads", "n_head", "num_heads", "encoder_attention_heads"):
            if key in model.config and model.type != "swin":
                assert getattr(config, key) == model.config[key]


def test_rows_of_results_contain_every_outcome() -> None:
    for outcomes in read().values():
        assert from_rows(to_rows(outcomes)) == outcomes


def test_stored_outcomes_are_of_cells_that_exist() -> None:
    stored = read()
    assert stored.keys() <= MODELS.keys()
    for name, outcomes in stored.items():
        assert outcomes.keys() <= set(all_cells(MODELS[name]))


def test_stored_cells_passed_or_are_listed_with_a_reason() -> None:
    """After a fix, remove the reason, and run `python tests/published/product.py --write` again."""
    outcomes = [outcome for stored in read().values() for outcome in stored.values()]
    assert {outcome.verdict for outcome in outcomes} <= {PASSED, REFUSED, FAILED}
    assert not {one.reason for one in outcomes if one.verdict == REFUSED and not is_known(one.reason)}
    assert not {one.reason for one in outcomes if one.verdict == FAILED and not is_being_fixed(one.reason)}


def test_each_listed_reason_is_in_the_stored_outcomes() -> None:
    reasons = [outcome.reason for stored in read().values() for outcome in stored.values()]
    assert not {known for known in (*KNOWN, *BROKEN) if not any(reason.startswith(known) for reason in reasons)}


def test_a_selection_contains_every_pair() -> None:
    rows = [(a, b, c) for a in "ab" for b in "abc" for c in "abcd"]
    chosen = selection(rows)
    assert {pair for row in chosen for pair in pairs_of(row)} == {pair for row in rows for pair in pairs_of(row)}
    assert len(chosen) < len(rows)


def test_a_model_of_each_kind_is_selected() -> None:
    assert kinds(REPRESENTATIVES) == kinds(list(MODELS))


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore")  # those of transformers and of torch's exporter
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_selected_cells_pass_or_are_refused_for_a_known_reason(name: str, tmp_path: Path) -> None:
    outcomes = Trial(MODELS[name], tmp_path).run(selected_cells()[name])
    failed = {cell: outcome for cell, outcome in outcomes.items() if outcome.verdict == FAILED}
    assert not {cell: outcome for cell, outcome in failed.items() if not is_being_fixed(outcome.reason)}
    refused = {cell: outcome for cell, outcome in outcomes.items() if outcome.verdict == REFUSED}
    assert not {cell: outcome for cell, outcome in refused.items() if not is_known(outcome.reason)}
    assert any(outcome.verdict == PASSED for outcome in outcomes.values())

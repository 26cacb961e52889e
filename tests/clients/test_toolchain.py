"""An incomplete toolchain: exactly the missing tools are reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from clients import missing_cpp_packages, tool

HIDDEN = (
    "-DCMAKE_DISABLE_FIND_PACKAGE_flatbuffers=TRUE",
    "-DCMAKE_DISABLE_FIND_PACKAGE_OpenSSL=TRUE",
    "-DHTTPLIB=HTTPLIB-NOTFOUND",
    "-DCMAKE_FIND_LIBRARY_PREFIXES=none",
)


@pytest.mark.usefixtures("cpp_build")  # all tools except the hidden ones
def test_packages_missing_for_cmake_are_named(tmp_path: Path) -> None:
    found = missing_cpp_packages(tool("cmake", "cmake"), tmp_path, *HIDDEN)
    assert found == ["libflatbuffers-dev", "libssl-dev", "libcpp-httplib-dev"]

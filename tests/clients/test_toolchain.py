"""A toolchain that is half there: what is missing is named, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest
from clients import CPP_PACKAGES, missing_cpp_packages, tool


@pytest.mark.parametrize(
    ("option", "package"),
    [
        ("-DCMAKE_DISABLE_FIND_PACKAGE_flatbuffers=TRUE", "libflatbuffers-dev"),
        ("-DCMAKE_DISABLE_FIND_PACKAGE_OpenSSL=TRUE", "libssl-dev"),
        ("-DHTTPLIB=HTTPLIB-NOTFOUND -DCMAKE_FIND_LIBRARY_PREFIXES=none", "libcpp-httplib-dev"),
    ],
)
@pytest.mark.usefixtures("cpp_build")  # with everything there, one package is hidden at a time
def test_what_cmake_does_not_find_is_named(tmp_path: Path, option: str, package: str) -> None:
    assert package in CPP_PACKAGES.values()
    assert missing_cpp_packages(tool("cmake", "cmake"), tmp_path, *option.split()) == [package]

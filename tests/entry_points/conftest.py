"""The bundles, built once for all workers of a run, and what entry points need."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import httpx2
import pytest
from asked_bundles import PLANS, Bundle, make_bundle, make_models, opened
from client_entry_points import CLibrary
from clients import EXAMPLES
from once import once
from platform_entry_points import FILES, Platform
from served import served
from service_entry_points import Services, slug
from tiers import extended


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of each base."""
    return once(tmp_path_factory, "asked_models", make_models)


@pytest.fixture(scope="session")
def asked_bundle(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A bundle by its name."""

    @cache
    def get(name: str) -> Bundle:
        folder = once(tmp_path_factory, f"asked {name}", partial(make_bundle, name, models))
        return opened(name, models, folder)

    return get


@pytest.fixture(scope="session")
@extended
def bundles(asked_bundle: Callable[[str], Bundle]) -> list[Bundle]:
    """All bundles."""
    return [asked_bundle(name) for name in PLANS]


@pytest.fixture(scope="session")
@extended
def serve(bundles: list[Bundle]) -> Iterator[httpx2.Client]:
    """`adapter-export serve` with all bundles."""
    places = [f"{slug(bundle)}={bundle.folder}" for bundle in bundles]
    with served(*places, "--qualify", "--quiet", "--threads", "1") as found:
        yield found.client


@pytest.fixture(scope="session")
@extended
def cpp_services(bundles: list[Bundle], cpp_build: Path) -> Iterator[Services]:
    """The service in C++, once for each bundle."""
    with ExitStack() as stack:
        found = {}
        for bundle in bundles:
            command = [cpp_build / "bundle_server", bundle.folder, "0"]
            quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            process = stack.enter_context(subprocess.Popen(command, **quiet))
            stack.callback(process.terminate)
            assert process.stdout is not None
            line = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)", process.stdout.readline().strip())
            assert line is not None
            client = httpx2.Client(base_url=line[1], timeout=60, trust_env=False)
            found[bundle.name] = stack.enter_context(client)
        yield found


@pytest.fixture(scope="session")
def c_library(cpp_build: Path) -> Iterator[CLibrary]:
    """The C interface, in this process."""
    library = CLibrary(cpp_build / "libadapter_export_c.so")
    yield library
    library.close()


@pytest.fixture(scope="session")
def plain_program() -> Path:
    return EXAMPLES / "plain_onnxruntime.py"


@pytest.fixture(scope="session")
@extended
def kserve(platform_python: str, slim: dict[str, str]) -> Iterator[Platform]:
    """The model of KServe's server."""
    platform = Platform(platform_python, FILES / "kserve" / "kserve_server.py", slim)
    yield platform
    platform.close()


@pytest.fixture(scope="session")
@extended
def ray_serve(slim: dict[str, str]) -> Iterator[Platform]:
    """The deployment of Ray Serve."""
    platform = Platform(sys.executable, FILES / "ray" / "ray_app.py", slim)
    yield platform
    platform.close()

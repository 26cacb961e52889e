"""`ship`: common properties of all layouts, and the container."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from small_bundle import build_small

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.errors import FileError, HashError, OutputExistsError, UsageError
from adapter_export.plugins.ship.layout import Layout


def test_ship_command_lists_the_written_files(bundle: Path, tmp_path: Path) -> None:
    words = ["ship", str(bundle), "--layout", "docker", "-o", str(tmp_path / "image"), "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["layout"], document["name"]) == ("docker", "bundle")
    assert {"Dockerfile", "docker-compose.yml", "README.md"} <= set(document["files"])
    assert all((tmp_path / "image" / name).is_file() for name in document["files"])
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 3
    assert CliRunner().invoke(main, [*words, "--force"]).exit_code == 0


@pytest.mark.starts_program
def test_the_image_is_slim_and_runs_without_rights(bundle: Path, tmp_path: Path) -> None:
    """Lint the files with hadolint and parse their command line, since Docker may be missing."""
    folder = ae.ship(bundle, tmp_path / "image", layout="docker", name="small").folder
    assert ae.open_bundle(folder / "bundle").manifest == ae.open_bundle(bundle).manifest
    file = (folder / "Dockerfile").read_text("utf-8")
    assert f"adapter-export[serve]=={ae.__version__}" in file
    lines = file.replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith((" ", "#"))]
    orders = [order for order, _ in steps]
    assert orders[0] == "FROM"
    assert orders.index("USER") < orders.index("ENTRYPOINT")
    assert "HEALTHCHECK" in orders
    copied = [words.split()[-2] for order, words in steps if order == "COPY"]
    assert all((folder / name).exists() for name in [*copied, "wheels"])
    tool, command, *arguments = json.loads(next(words for order, words in steps if order == "ENTRYPOINT"))
    assert tool == "adapter-export"
    found = main.get_command(click.Context(main), command)
    assert found is not None
    found.make_context(command, arguments)
    linter = Path(sys.prefix) / "bin" / "hadolint"
    other = ae.ship(bundle, tmp_path / "kserve", layout="kserve", name="small").folder
    done = subprocess.run(
        [linter, folder / "Dockerfile", other / "Dockerfile", other / "Dockerfile.serve"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    service = yaml.safe_load((folder / "docker-compose.yml").read_text("utf-8"))["services"]["small"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["ports"] == ["127.0.0.1:8080:8080"]


def test_the_service_of_kserve_with_openais_api_is_a_call_of_serve(bundle: Path, tmp_path: Path) -> None:
    folder = ae.ship(bundle, tmp_path / "kserve", layout="kserve", name="small").folder
    services = {
        kind: yaml.safe_load((folder / f"inferenceservice{kind}.yaml").read_text("utf-8")) for kind in ("", "-serve")
    }
    (container,) = services["-serve"]["spec"]["predictor"]["containers"]
    (other,) = services[""]["spec"]["predictor"]["containers"]
    differing = {"args", "image"}
    assert {key for key in other if container[key] != other[key]} == differing  # KServe's classes check the other one
    entry = next(line for line in (folder / "Dockerfile.serve").read_text("utf-8").splitlines() if "ENTRYPOINT" in line)
    _, command, *arguments = [*json.loads(entry.partition(" ")[2]), *container["args"]]
    found = main.get_command(click.Context(main), command)
    assert found is not None
    context = found.make_context(command, list(arguments))
    assert (context.params["bundles"], context.params["port"]) == (("small=/mnt/models",), 8080)
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}


@pytest.mark.parametrize("layout", ["triton", "kserve", "ray", "docker", "transformers.js"])
def test_ship_of_a_damaged_bundle_leaves_no_files(bundle: Path, tmp_path: Path, layout: Layout) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    with (copy / "base.bin").open("r+b") as file:
        file.write(b"\1")
    with pytest.raises(HashError, match=re.escape("base.bin")):
        ae.ship(copy, tmp_path / "out", layout=layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_existing_output_is_kept_without_force(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        ae.ship(bundle, tmp_path / "out", layout="ray")
    assert not [*(tmp_path / "out").iterdir()]


@pytest.mark.parametrize("name", ["Big", "a_b", "", "1st", "a" * 64, 'a"\n', "../a"])
def test_a_name_that_no_service_may_have_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="invalid service name"):
        ae.ship(bundle, tmp_path / "out", layout="kserve", name=name)
    with pytest.raises(FileError, match="is not a bundle"):  # which would be said of its name
        ae.ship(tmp_path / "no_bundle", tmp_path / "out", layout="kserve")


def test_a_bundle_without_a_tokenizer_is_refused_where_texts_are_read(tmp_path: Path) -> None:
    plain = build_small(tmp_path, ["inputs"]).folder
    with pytest.raises(UsageError, match="no tokenizer"):
        ae.ship(plain, tmp_path / "out", layout="ray")
    shipped = ae.ship(plain, tmp_path / "out", layout="triton")
    assert not [name for name in shipped.files if "bank" in name]

"""The clients as packages: installed as other projects install them, and used by a program of such a project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clients import EXAMPLES, Client, alike, succeed, tool
from empty_environment import install_wheel
from tiers import extended

import adapter_export
from adapter_export.runtime import Bundle

PACKAGES = Path(__file__).parents[2] / "packages"
TEXT = "who wrote it?"

PYTHON = f"""
import json
import sys

from adapter_export_runtime import Bundle, __version__, errors

texts = Bundle.open(sys.argv[1]).texts()
answer, half = texts.answer([{TEXT!r}] * 2, "topic", strength=[1, 0.5])
mixed = texts.answer([{TEXT!r}] * 2, adapters=["topic", "tone"])
try:
    texts.answer([{TEXT!r}], "nobody")
except errors.AdapterExportError as error:
    said = str(error)
found = [answer.document(), half.document(), [one.document() for one in mixed]]
print(json.dumps([*found, said, __version__, sorted(sys.modules)]))
"""

TYPESCRIPT = f"""
import {{ type Service, type TextAnswer, openBundle }} from "adapter-export-runtime";

const service: Service = await openBundle(process.argv[2]!);
const [answer]: TextAnswer[] = await service.answer([{{ text: {json.dumps(TEXT)}, adapter: "topic" }}]);
console.log(JSON.stringify(answer));
"""


@pytest.fixture
@extended
def slim_python(tmp_path: Path) -> Path:
    """A Python with the wheel of the runtime and the few packages that it requires."""
    succeed([sys.executable, PACKAGES / "runtime" / "stage.py", tmp_path / "source"], tmp_path)
    succeed([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], tmp_path / "source")
    (wheel,) = tmp_path.glob("*.whl")
    succeed([sys.executable, "-m", "twine", "check", "--strict", wheel], tmp_path)
    return install_wheel(wheel, tmp_path / "venv", ["text"])


def test_the_slim_runtime_runs_a_bundle_with_two_libraries(
    slim_python: Path, small_bundle: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [slim_python, "-I", "-c", PYTHON, small_bundle], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer, half, mixed, refusal, version, loaded = json.loads(done.stdout)
    texts = Bundle.open(small_bundle).texts()
    assert [answer, half] == [one.document() for one in texts.answer([TEXT] * 2, "topic", strength=[1, 0.5])]
    assert answer != half
    assert mixed == [one.document() for one in texts.answer([TEXT] * 2, adapters=["topic", "tone"])]
    assert "`nobody`" in refusal
    assert version == adapter_export.__version__
    assert {"numpy", "onnxruntime"} <= set(loaded)
    assert not {"adapter_export", "onnx", "torch", "safetensors", "click"} & set(loaded)


def test_the_number_of_an_adapter_file_lies_where_the_specification_says(small_bundle: Path) -> None:
    page = (PACKAGES.parent / "docs" / "reference" / "format.md").read_text("utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)
    exec(program.replace("a.onnx_adapter", "topic.onnx_adapter"), {"bundle": small_bundle, "json": json})  # noqa: S102


def test_another_cmake_project_links_the_client(cpp_build: Path, small_bundle: Path, tmp_path: Path) -> None:
    cmake = tool("cmake", "cmake")
    shutil.copytree(EXAMPLES / "cpp" / "consumer", tmp_path / "consumer")  # with nothing of this project around it
    options = [f"-DCMAKE_PREFIX_PATH={cpp_build / 'installed'}", "-DCMAKE_BUILD_TYPE=None"]
    succeed([cmake, "-S", "consumer", "-B", "build", *options], tmp_path)
    succeed([cmake, "--build", "build"], tmp_path)
    run = ["build/consumer", str(small_bundle), "topic"]
    found = json.loads(subprocess.run(run, cwd=tmp_path, check=True, capture_output=True).stdout)
    ids = {"input_ids": [[2, 5, 6, 3]], "attention_mask": [[1, 1, 1, 1]]}
    (tmp_path / "inputs.json").write_text(json.dumps(ids))
    client = Client((str(cpp_build / "bundle_client"),), frozenset())
    (expected,) = client.run(small_bundle, tmp_path / "inputs.json", "--adapter", "topic")
    assert found == expected


def test_npm_installs_the_client_and_another_project_compiles_against_its_types(
    node_client: Client, small_bundle: Path, tmp_path: Path
) -> None:
    npm, built = tool("npm", "npm"), Path(node_client.command[1]).parents[1]
    succeed([npm, "pack", "--ignore-scripts", "--pack-destination", tmp_path], built)
    (tarball,) = tmp_path.glob("*.tgz")
    # what the package depends on is there already, so nothing is asked of the network
    shutil.copytree(built / "node_modules", tmp_path / "node_modules", copy_function=os.link, symlinks=True)
    described = json.loads((built / "package.json").read_text())
    assert described["version"] == adapter_export.__version__
    needed = {name: described[name] for name in ("dependencies", "devDependencies")}
    (tmp_path / "package.json").write_text(json.dumps({"private": True, "type": "module", **needed}))
    quiet = ["--offline", "--ignore-scripts", "--no-audit", "--no-fund"]
    succeed([npm, "install", *quiet, tarball], tmp_path)
    (tmp_path / "consumer.ts").write_text(TYPESCRIPT)
    # the types of @huggingface/tokenizers 0.2 do not stand such a check themselves
    strict = ["--strict", "--skipLibCheck", "--types", "node", "--module", "nodenext", "--target", "es2022"]
    succeed([tmp_path / "node_modules" / ".bin" / "tsc", *strict, "consumer.ts"], tmp_path)
    run = [node_client.command[0], "consumer.js", str(small_bundle)]
    found = json.loads(subprocess.run(run, cwd=tmp_path, check=True, capture_output=True).stdout)
    (expected,) = Bundle.open(small_bundle).texts().answer([TEXT], "topic")
    alike(found, {"adapter": "topic", "task": "single_label", **expected.document()})

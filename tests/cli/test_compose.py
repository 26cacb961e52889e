"""`compose`: folders of adapters become the folder of one, which builds, checks and runs like any other."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from adapter_export.format.adapter_files import read_adapter
from adapter_export.graph.compose import COMPOSITION

HOW = {
    "stack": ("stack",),
    "average": ("average", "--weights", "topic=0.25,tone=0.75"),
    "fuse": ("fuse", "--weights", "0.9,-0.5", "--residual", "literal"),
}


@pytest.fixture(scope="module")
def composed(cli, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("composed")
    for name, (how, *options) in HOW.items():
        call = ("compose", how, adapters / "topic", adapters / "tone", *options, "--head", "tone", "-o", folder / name)
        (following,) = re.findall(r"^Next: adapter-export (.*)$", cli.done(*call).stderr, re.MULTILINE)
        cli.done(*shlex.split(following))
    return folder


def test_compositions_are_built_and_checked_beside_their_members(
    cli, hf_folder: Path, model: Path, graph: Path, adapters: Path, composed: Path, tmp_path: Path
) -> None:
    listed = ",".join(map(str, [adapters / "topic", adapters / "tone", *(composed / name for name in HOW)]))
    text = ("--tokenizer", hf_folder, "--max-tokens", 80)
    cli.done("build", graph, *text, "--adapters", listed, "-o", tmp_path / "bundle")
    only = [word for name in HOW for word in ("--only", name)]
    cli.done("check", tmp_path / "bundle", "--against", model, *only, "--quick")
    run_with_weights(cli, tmp_path / "bundle")


def run_with_weights(cli, bundle: Path) -> None:
    """Weights that a call gives count; half of them, or those of no fusion, are refused."""
    call = ("run", bundle, "--text", "the film is good", "--adapter")
    own, other = (cli.json(*call, "fuse", *options) for options in ((), ("--weights", "topic=0.9,tone=-0.5")))
    assert own == other
    assert cli.json(*call, "fuse", "--weights", "topic=0,tone=1") != own
    cli.refused(3, "a finite weight for each of its members", *call, "fuse", "--weights", "topic=1")
    cli.refused(3, "has no weights that a call could give", *call, "topic", "--weights", "topic=1")
    cli.refused(2, "`--weights` names the members", *call, "fuse", "--weights", "1,2")
    cli.refused(2, "`--weights` needs `--adapter`", "run", bundle, "--text", "good", "--weights", "topic=1,tone=1")
    line = json.loads(cli.done(*call, "fuse", "--many", "--weights", "topic=0.9,tone=-0.5").stdout)
    assert line["probabilities"] == pytest.approx(other["rows"][0]["probabilities"], abs=1e-6)


def test_the_record_names_the_members_and_their_weights(adapters: Path, composed: Path) -> None:
    sha256 = {
        name: hashlib.sha256((adapters / name / "weights.safetensors").read_bytes()).hexdigest()
        for name in ("topic", "tone")
    }
    record = read_adapter(composed / "average").training[COMPOSITION]
    assert record == {
        "type": "average",
        "weights": [0.25, 0.75],
        "members": [
            {"name": "topic", "kind": "houlsby", "weights_sha256": sha256["topic"]},
            {"name": "tone", "kind": "pfeiffer", "weights_sha256": sha256["tone"]},
        ],
    }
    assert read_adapter(composed / "fuse").training[COMPOSITION]["residual"] == "literal"


def test_the_head_is_that_of_the_named_member(cli, adapters: Path, composed: Path, tmp_path: Path) -> None:
    head = read_adapter(composed / "stack").head
    assert head is not None
    assert head.labels == ("bad", "good")
    made = cli.json("compose", "stack", adapters / "topic", adapters / "tone", "--name", "both", "-o", tmp_path / "c")
    assert (made["name"], made["task"], made["kind"]) == ("both", None, "stack")
    assert [member["name"] for member in made["members"]] == ["topic", "tone"]
    assert read_adapter(tmp_path / "c").head is None


def test_an_adapter_can_be_renamed(cli, adapters: Path, tmp_path: Path) -> None:
    """As two folders whose adapters are called alike need it."""
    cli.done("compose", "average", "topic", f"other={adapters / 'topic'}", "-o", tmp_path / "mean", folder=adapters)
    made = read_adapter(tmp_path / "mean")
    assert [member["name"] for member in made.training[COMPOSITION]["members"]] == ["topic", "other"]
    one = made.weights["layers.0.ffn.other.down.weight"]
    np.testing.assert_array_equal(one, made.weights["layers.0.ffn.topic.down.weight"])


def test_adapter_names_are_looked_up_in_the_current_folder(cli, adapters: Path, tmp_path: Path) -> None:
    cli.done("compose", "fuse", "topic", "tone", "-o", tmp_path / "fused", folder=adapters)
    fused = read_adapter(tmp_path / "fused")
    np.testing.assert_array_equal(fused.weights["shared.weighted_fusion.mix.weights"], [[0.5, 0.5]])


REFUSED = {
    "no such option; found `--weights`": ("stack", "topic", "tone", "--weights", "1,2"),
    "no such option; found `--residual`": ("average", "topic", "tone", "--residual", "once"),
    "add up to 1; found 3": ("average", "topic", "tone", "--weights", "1,2"),
    "not a list of numbers": ("average", "topic", "tone", "--weights", "a,b"),
    "each with a name of its own; found topic, topic": ("fuse", "topic", "topic"),
    "are shares, from 0 to 1": ("average", "topic", "tone", "--weights", "topic=-1,tone=2"),
    "gives one adapter two weights": ("average", "topic", "tone", "--weights", "topic=0.5,topic=0.5"),
    "found `topic`: 0.5, `other`: 0.5": ("average", "topic", "tone", "--weights", "topic=0.5,other=0.5"),
    "found nan, 1": ("average", "topic", "tone", "--weights", "nan,1"),
    "no member of this name has a head": ("fuse", "topic", "tone", "--head", "other"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_compose_refuses_invalid_calls(cli, adapters: Path, tmp_path: Path, words: str) -> None:
    cli.refused(2, words, "compose", *REFUSED[words], "-o", tmp_path / "c", folder=adapters)
    assert not (tmp_path / "c").exists()


def test_missing_members_are_named_with_the_searched_places(cli, adapters: Path, tmp_path: Path) -> None:
    words = "looked at `missing`, `adapters/missing`."
    cli.refused(3, words, "compose", "stack", "topic", "missing", "-o", tmp_path / "c", folder=adapters)

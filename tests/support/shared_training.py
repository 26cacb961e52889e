"""Two processes that train together, each with what it says of calls of `adapter-export`.

python shared_training.py CALLS FOLDER     CALLS: JSON, arguments by name, `{rank}` filled in

FOLDER gets for each call and process `NAME.RANK.json` with `exit_code`, `stdout` and `stderr`. The launcher is that of
`torchrun`; its processes are forks of this one, which has loaded what they need.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from click.testing import CliRunner
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from adapter_export.cli.main import main
from adapter_export.torch_backend.train import distil_loop, language, train_loop  # noqa: F401 - loaded once for both


def call(calls: dict[str, list[str]], folder: Path) -> None:
    rank = os.environ["RANK"]
    for name, arguments in calls.items():
        found = CliRunner().invoke(main, [argument.replace("{rank}", rank) for argument in arguments])
        said = {"exit_code": found.exit_code, "stdout": found.stdout, "stderr": found.stderr}
        (folder / f"{name}.{rank}.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    config = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork", max_restarts=0
    )
    elastic_launch(config, call)(json.loads(sys.argv[1]), Path(sys.argv[2]))

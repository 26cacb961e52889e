"""Run a training process that is killed, then two that train together, and record their calls.

python shared_training.py CALLS KILLED FOLDER     both JSON: arguments of `adapter-export` by name, `{rank}` filled in

Calls in KILLED end at their first checkpoint. FOLDER receives `NAME.RANK.json` with `exit_code`, `stdout` and `stderr`
for each call in CALLS and each process. The launcher is `torchrun`'s; all processes are forks of this one, which has
loaded their imports.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import archives_read_once
from click.testing import CliRunner
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from adapter_export import open_base
from adapter_export.cli.main import main
from adapter_export.training.loop import distil_loop, language, train_loop  # noqa: F401 - loaded once for both


def call(calls: dict[str, list[str]], folder: Path) -> None:
    rank = os.environ["RANK"]
    for name, arguments in calls.items():
        found = CliRunner().invoke(main, [argument.replace("{rank}", rank) for argument in arguments])
        said = {"exit_code": found.exit_code, "stdout": found.stdout, "stderr": found.stderr}
        (folder / f"{name}.{rank}.json").write_text(json.dumps(said), encoding="utf-8")


def kill_at_first_checkpoint(arguments: list[str]) -> None:
    """Fork a process that trains, as by `-o` last of its arguments, and kill it."""
    checkpoint, deadline = Path(f"{arguments[-1]}.partial") / "checkpoint.safetensors", time.monotonic() + 120
    process = os.fork()
    if not process:
        main(arguments)
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        assert os.waitpid(process, os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


if __name__ == "__main__":
    calls, killed, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    archives_read_once.install()
    open_base(next(iter(calls.values()))[1])  # imported here for all forks
    for arguments in killed.values():
        kill_at_first_checkpoint(arguments)
    config = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork", max_restarts=0
    )
    elastic_launch(config, call)(calls, folder)

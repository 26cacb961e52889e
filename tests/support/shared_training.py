"""A process of several that `torchrun` starts: calls of `adapter-export`, and what each process says.

torchrun --nproc-per-node 2 shared_training.py CALLS FOLDER     CALLS: JSON, arguments by name, `{rank}` filled in

FOLDER gets for each call and process `NAME.RANK.json` with `exit_code`, `stdout` and `stderr`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from click.testing import CliRunner

from adapter_export.cli.main import main

if __name__ == "__main__":
    rank = os.environ["RANK"]
    for name, arguments in json.loads(sys.argv[1]).items():
        found = CliRunner().invoke(main, [argument.replace("{rank}", rank) for argument in arguments])
        said = {"exit_code": found.exit_code, "stdout": found.stdout, "stderr": found.stderr}
        Path(sys.argv[2], f"{name}.{rank}.json").write_text(json.dumps(said), encoding="utf-8")

"""Run a program once for each line on stdin, a list of arguments as JSON; what it imports is loaded once.

python again.py PROGRAM: prints for each what it said and its exit code, as JSON.
"""

from __future__ import annotations

import io
import json
import runpy
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

program = sys.argv[1]
sys.path[0] = str(Path(program).parent)
for line in sys.stdin:
    sys.argv = [program, *json.loads(line)]
    code: object = 0
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
        except Exception:  # noqa: BLE001 - as the interpreter does
            traceback.print_exc()
            code = 1
    sys.stdout.write(json.dumps({"stdout": stdout.getvalue(), "stderr": stderr.getvalue(), "code": code}) + "\n")
    sys.stdout.flush()

"""Run a program once for each line on stdin, a JSON list of arguments, with its imports loaded once.

Usage: `python again.py PROGRAM`. Prints output and exit code of each run as JSON. An uncaught error of the program also
ends this process, so that the affected test fails.
"""

from __future__ import annotations

import io
import json
import runpy
import sys
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
    sys.stdout.write(json.dumps({"stdout": stdout.getvalue(), "stderr": stderr.getvalue(), "code": code}) + "\n")
    sys.stdout.flush()

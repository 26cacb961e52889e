"""Run a program once for each line on stdin, a list of arguments as JSON; what it imports is loaded once.

python again.py PROGRAM: prints for each what it said and its exit code, as JSON. An error that the program does not
catch ends this one, too, so that the test fails in which it came up.
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

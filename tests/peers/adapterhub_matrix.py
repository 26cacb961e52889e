"""AdapterHub's own test matrix: each method on each base, through a bundle, beside the library's forward."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from adapterhub_configurations import BASES, METHODS
from bundled import Peers, real, request
from outcomes import NOT_MADE, shortened
from safetensors.numpy import load_file

import adapter_export as ae

HERE = Path(__file__).parent
LIBRARY = HERE.parents[1] / ".venv" / "adapterhub"

NAMES = tuple(BASES)


def run(name: str, folder: Path) -> dict[str, str]:
    """Return the outcome of each method on a base, by its title."""
    command = [sys.executable, str(HERE / "adapterhub_makes.py"), name, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(LIBRARY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(made.stderr)
    base = ae.capture(folder / "model", folder / "base.pt", bare=True)
    inputs = request(base, load_file(folder / "inputs.safetensors"))
    plain = real(load_file(folder / "plain.safetensors")["hidden"], inputs)
    outcomes, answers = dict[str, str](), dict[str, tuple[Path, np.ndarray]]()
    for number, title in enumerate(METHODS):
        result = load_file(folder / f"{number}.safetensors")
        if "error" in result:
            outcomes[title] = NOT_MADE + shortened(result["error"].tobytes().decode(), folder)
        else:
            answers[title] = folder / f"{number}", real(result["hidden"], inputs)
    outcomes |= Peers(base, inputs, plain, ae.import_adapterhub, folder).outcomes(answers)
    return {title: outcomes[title] for title in METHODS}

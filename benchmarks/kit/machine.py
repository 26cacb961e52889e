"""The machine that figures are from, in words."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

_IDLE_LOAD = 0.5
_PACKAGES = ("adapter-export", "onnxruntime", "onnxruntime-gpu", "numpy", "torch")


def load_average() -> float:
    """Return the average number of runnable processes over the last minute."""
    return os.getloadavg()[0]


def warn_if_busy(load: float) -> None:
    """Say on stderr that figures will mean little."""
    if load > _IDLE_LOAD:
        print(
            f"warning: the load average is {load:.2f}: others use this machine, and figures will say less. Wait until "
            f"it is below {_IDLE_LOAD}.",
            file=sys.stderr,
        )


def description(load: float, provider: str) -> str:
    """One sentence about the hardware, one about the software, one about the load at the start."""
    busy = "" if load <= _IDLE_LOAD else " (**others used the machine**)"
    return f"{time.strftime('%Y-%m-%d')}: {system(provider)} Load average at the start {load:.2f}{busy}."


def system(provider: str) -> str:
    """One sentence about the hardware, and one about the software."""
    gpu = f", {_gpu()}" if provider == "cuda" else ""
    cores, memory = f"{os.cpu_count()} cores", f"{_gigabytes():.0f} GB of memory"
    hardware = f"{_processor()}{_instructions()}, {cores}, {memory}{gpu}, {platform.machine()}"
    software = ", ".join([platform.platform(terse=True), f"Python {platform.python_version()}", *_versions()])
    return f"{hardware}. {software}."


def _processor() -> str:
    return _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown processor"


def _instructions() -> str:
    """Return the CPU flags that determine the speed of 8-bit integer products, by their Linux names."""
    flags = (_field("/proc/cpuinfo", "flags") or "").split()
    found = [flag for flag in ("avx2", "avx_vnni", "avx512_vnni", "amx_int8") if flag in flags]
    return f" with {', '.join(found)}" if found else ""


def _gigabytes() -> float:
    return int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) * 1024 / 1e9


def _field(path: str, name: str) -> str | None:
    file = Path(path)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpu() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "a GPU"
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]

"""A machine is told by its system, processor and devices, and by the versions of packages.

None of it says whose machine it is: no paths, no names of hosts or users.
"""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

NAMED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF")
"""Variables of the environment that numbers and speed depend on."""
HIDDEN = ("SFUMATO_DATA", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN")
"""Variables whose values are not told."""


def system() -> str:
    """System, architecture and Python, as records have them."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


def processor() -> str:
    """The processor as the system reports it; the last digits depend on its instructions."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    kind = "/".join(told[key] for key in ("cpu family", "model", "stepping") if key in told)
    able = torch.backends.cpu.get_cpu_capability()
    return f"{name} {kind}, {able}" if kind else f"{name}, {able}"


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the packages of these names that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def requirements() -> list[str]:
    """Names of all packages that sfumato or an extra of it needs; [] where it is not installed."""
    try:
        lines = metadata.requires("sfumato") or []
    except metadata.PackageNotFoundError:
        return []
    names = (re.match(r"[\w.-]+", line) for line in lines)
    return sorted({name[0] for name in names if name})


def described() -> dict[str, str]:
    """All of it by title, for a report of a bug. What cannot be found out says why."""
    bits = 8 * struct.calcsize("P")
    found = {
        "system": f"{system()} ({platform.python_implementation()}, {bits} bit)",
        "kernel": platform.release().partition("-")[0],
    }
    try:
        found |= _torch()
    except Exception as error:  # a broken installation is what a report may be about
        found["torch"] = f"cannot be imported: {type(error).__name__}"
    known = [f"{name}={os.environ[name]}" for name in NAMED if name in os.environ]
    hidden = [f"{name} is set" for name in HIDDEN if name in os.environ]
    found["environment"] = ", ".join([*known, *hidden]) or "no variable that matters is set"
    packages = versions(["sfumato", *requirements()])
    found["packages"] = ", ".join(f"{name} {number}" for name, number in packages.items())
    return found


def _torch() -> dict[str, str]:
    """Processor, threads and devices, as torch sees them."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f"{torch.get_num_threads()} of torch on {cores} cores"
    cuda = []
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        size, able = about.total_memory >> 20, f"{about.major}.{about.minor}"
        cuda.append(f"{about.name} ({size} MiB, {able})")
    built = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return {
        "processor": processor(),
        "threads": threads,
        "devices": ", ".join(["cpu", *cuda, *mps]),
        "torch": f"{torch.__version__}{built}",
    }

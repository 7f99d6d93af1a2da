"""Facts about the machine, a part of those of ``torch.utils.collect_env``.

The only program that is run here finds the version of the GPU's driver. ``collect_env`` also lists packages
and compilers, which takes up to a minute.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from importlib import metadata, util
from pathlib import Path

import torch

from stn_triton.terminal import UsageError

UNKNOWN = "unknown"
# Prefixes of environment variables that change which code runs, or how.
_VARIABLES = ("STN_TRITON_", "TRITON_", "CUDA_", "HIP_", "PYTORCH_", "TORCH_", "OMP_NUM_", "MKL_NUM_")


def choose_device(name: str | None) -> torch.device:
    """Make the named device current and return it. None means a GPU if there is one, else the CPU.

    Raises:
        UsageError: this machine has no such device.
    """
    devices = available_devices()
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    full_name = "cuda:0" if name == "cuda" else name
    if full_name not in devices:
        listing = ", ".join(f"{device} ({label})" for device, label in devices.items())
        raise UsageError(f"--device: no device {name!r} here; available: {listing}")
    device = torch.device(full_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def available_devices() -> dict[str, str]:
    """Names for ``--device``, each with the name of its hardware."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {f"cuda:{i}": torch.cuda.get_device_name(i) for i in gpus} | {"cpu": cpu_model()}


def facts(device: torch.device) -> dict[str, str]:
    """Facts that every report of a result on a device needs, by name, in the order to print."""
    import stn_triton

    system = os_release()
    found = {
        "stn_triton": f"{stn_triton.__version__} in {Path(stn_triton.__file__).parent}",
        "system": f"{system}, {platform.platform(terse=True)}" if system else platform.platform(),
        "python": f"{platform.python_version()}, {sys.maxsize.bit_length() + 1} bits",
        "torch": f"{torch.__version__}, {_build()}",
        "triton": version("triton"),
        "numpy": version("numpy"),
        "cpu": f"{cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": _gpu(device),
    }
    if torch.cuda.is_available():
        found["driver"] = driver()
        found["cudnn"] = str(torch.backends.cudnn.version())
    found["variables"] = " ".join(
        f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(_VARIABLES)
    )
    return found


def interpreter_problem() -> str:
    """Why Triton's interpreter cannot run here, and what to install; empty if no problem is known.

    Triton before 3.7 turns arrays of one element into integers, which NumPy 2.4 no longer does.
    """
    missing = [name for name in ("triton", "numpy") if util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if () < _numbers("triton") < (3, 7) and _numbers("numpy") >= (2, 4):
        return (
            f"numpy {version('numpy')} breaks the interpreter of triton {version('triton')} (only "
            "0-dimensional arrays can be converted to Python scalars); expected an older one: "
            "python -m pip install 'numpy<2.4'"
        )
    return ""


def _numbers(package: str) -> tuple[int, ...]:
    """The first two numbers of a package's version."""
    return tuple(int(number) for number in re.findall(r"\d+", version(package))[:2])


def _build() -> str:
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
    kind = kind if torch.version.cuda or torch.version.hip else "CPU build"
    return kind + (", debug build" if torch.version.debug else "")


def _gpu(device: torch.device) -> str:
    if not torch.cuda.is_available():
        is_cpu_build = torch.version.cuda is None and torch.version.hip is None
        return f"none ({'torch is a CPU build' if is_cpu_build else 'torch finds no device'})"
    own = device if device.type == "cuda" else torch.device("cuda", 0)
    properties = torch.cuda.get_device_properties(own)
    major, minor = torch.cuda.get_device_capability(own)
    text = (
        f"{properties.name}, capability {major}.{minor}, {properties.total_memory / 2**30:.0f} GiB, "
        f"{properties.multi_processor_count} multiprocessors"
    )
    others = torch.cuda.device_count() - 1
    return text + (f", {others} more" if others else "")


def os_release() -> str:
    """The system's name, such as Debian GNU/Linux 12; empty if unknown."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def cpu_model() -> str:
    """The processor's name, from ``/proc/cpuinfo`` or else from Python."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or UNKNOWN


def driver() -> str:
    """The version of the NVIDIA driver."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return (done.stdout.split() or [UNKNOWN])[0]


def version(package: str) -> str:
    """The version of a package; ``none`` if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def columns() -> int:
    """Largest width of a line: that of the terminal, 80 without a terminal, at most 120."""
    return min(shutil.get_terminal_size().columns, 120)


def wrapped(line: str, indent: int, width: int) -> str:
    """Wrap a line at blanks and indent all lines but the first; a path stays whole."""
    return textwrap.fill(
        line, width, subsequent_indent=indent * " ", break_on_hyphens=False, break_long_words=False
    )

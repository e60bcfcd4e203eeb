"""The provenance of results: command, commit, machine and versions."""

from __future__ import annotations

import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Sequence

import keras
import tensorflow as tf

_ROOT = pathlib.Path(__file__).parent.parent
_PLACES = {"data_dir": "DATA", "output": "FOLDER"}


def provenance(program: str, arguments: Sequence[str] | None = None) -> dict[str, str]:
    """Returns what a reader needs to reproduce a result.

    Args:
        program: what was run, such as "amaml-compare" or "python -m benchmarks.speed".
        arguments: arguments of the command. None (default): those of this process.
    """
    return {
        "command": _command(program, sys.argv[1:] if arguments is None else arguments),
        "commit": _commit(),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "accelerator": ", ".join(_accelerators()) or "none",
        "versions": f"Python {platform.python_version()}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}",
    }


def _command(program: str, arguments: Sequence[str]) -> str:
    """Returns the command without the folders of this machine."""
    words = [program]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        value = _PLACES.get(name.lstrip("-"), value.replace(f"{_ROOT}{os.sep}", ""))
        words.append(name + equals + (f'"{value}"' if re.search(r"[\s|]", value) else value))
    return " ".join(words)


def _commit() -> str:
    """Returns the hash of the commit, and whether files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} with changes" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    if path.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):  # not on every system
        return float("nan")


def _accelerators() -> list[str]:
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return [each.get("device_name", "GPU") for each in details]

"""The soak, for a short while; `make soak` runs it for long."""

import shutil
import subprocess
import sys

import project
import pytest

SIZES = ("--signals=1", "--damages=20", "--disks=1", "--deterministic=1")


@pytest.mark.long
def test_runs_end_as_promised():
    if not shutil.which("cc"):
        pytest.skip("the soak needs a C compiler")
    program = project.ROOT / "tests" / "faults" / "soak.py"
    ended = subprocess.run(
        [sys.executable, str(program), "--none", *SIZES], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line for line in ended.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(SIZES), ended.stdout

"""A solver, an algorithm and a family from outside: one file and one line each, and all follows."""

import json
import os
import pathlib
import re
import subprocess
import sys

import project
import pytest

TOYS = pathlib.Path(__file__).parent / "toys"


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(TOYS), str(project.ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
        **options,
    )


@pytest.fixture(scope="module")
def help_text() -> str:
    return " ".join(python(str(TOYS / "toys.py"), "--help").stdout.split())


@pytest.mark.parametrize(
    "text",
    [
        "--position: Where f is evaluated. For toy_solver.",
        "--floor: Shortest gradient. For toy_algorithm.",
        "--max_slope: Of the lines. For toy_family.",
        "ratings_csv, toy_family. (default: 'sinusoid')",
        "dormand_prince, bdf, toy_solver.",
        "reptile, toy_algorithm. (default: 'adjoint_maml')",
    ],
)
def test_help_has_their_flags_and_names(help_text, text):
    assert text in help_text


def train(workdir: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    return python(
        str(TOYS / "toys.py"),
        "--task=toy_family",
        "--max_slope=2",
        "--hidden_units=3",
        "--num_meta_steps=2",
        "--num_eval_episodes=2",
        "--eval_batch_size=2",
        "--jit_compile=off",
        f"--workdir={workdir}",
        *flags,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ("--algorithm=toy_algorithm", "--num_steps=2", "--floor=0.5"),
            {"algorithm": "toy_algorithm", "floor": 0.5, "position": None},
        ),
        (
            ("--solver=toy_solver", "--step_size=0.1", "--final_time=0.2", "--position=0.7"),
            {"solver": "toy_solver", "position": 0.7, "floor": None},
        ),
    ],
    ids=["algorithm", "solver"],
)
def test_a_run_keeps_their_settings_and_resumes(tmp_path, flags, expected):
    done = train(tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "config.json").read_text())
    assert {**kept, **expected, "task": "toy_family", "max_slope": 2.0} == kept
    assert json.loads((tmp_path / "evaluation.json").read_text())["num_tasks"] == 2
    again = train(tmp_path, *flags, "--num_meta_steps=3", "--max_slope=1")
    assert again.returncode == 0, again.stderr
    assert "Going on with the run" in again.stdout
    other = train(tmp_path, *flags, "--meta_batch_size=7")
    assert "got --meta_batch_size=7 (there 5)" in other.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--max_slope=-1",), "Expected max_slope of 0 or more, got -1.0; pass another value."),
        (("--floor=1",), "Expected settings that algorithm adjoint_maml has, got --floor; leave"),
        (("--position=1",), "Expected settings that solver runge_kutta_chebyshev has, got --pos"),
        (("--solver=toy_solver",), "Expected a value of --step_size for solver toy_solver, got"),
    ],
)
def test_mistakes_are_told(tmp_path, flags, sentence):
    done = train(tmp_path / "run", *flags)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_they_are_in_the_tests_of_all_of_their_kind():
    done = python(
        *("-m", "pytest", "-p", "toys", "-v", "-k", "toy_", "--numprocesses=0"),
        *("tests/solvers", "tests/algorithms", "tests/tasks", "tests/learner/test_saving.py"),
        cwd=project.ROOT,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    for kind, toy in (
        ("solver", "toy_solver"),
        ("algorithm", "toy_algorithm"),
        ("families", "toy_family"),
    ):
        assert re.search(rf"test_(every_)?{kind}\.py::\S*\[{toy}\S* PASSED", done.stdout), kind
        if kind != "families":
            assert re.search(rf"test_saving\.py::test_every_\S*\[{toy}\] PASSED", done.stdout), kind

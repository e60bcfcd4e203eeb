"""Flags with odd values, flag files with mistakes, and outputs that would overwrite the run."""

import pathlib
import re
import sys

import pytest
from absl.testing import flagsaver

from amaml_tf import solvers
from amaml_tf.commands import evaluate, export, outputs, running
from amaml_tf.commands import train as train_command
from amaml_tf.errors import UsageError
from amaml_tf.experiment import Experiment
from amaml_tf.flow.gradient_flow import GradientFlow


@pytest.fixture
def call(monkeypatch, new_flags):
    """Runs a command in this process; returns its last words."""

    def called(module, *arguments):
        monkeypatch.setattr(sys, "argv", ["amaml", *map(str, arguments)])
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as ending:
            module.run()
        return str(ending.value.code)

    return called


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--seed=-1", "seed to be 0 or more, got -1"),
        ("--seed=2147483648", "seed to be 2147483647 or less, got 2147483648"),
        ("--eval_seed=99999999999999999999", "eval_seed to be 2147483647 or less"),
        ("--hidden_units=0", "hidden_units to be 1 or more, got 0"),
        ("--hidden_units=2000000", "hidden_units to be 1000000 or less, got 2000000"),
        ("--final_time=inf", "final_time to be a finite number, got inf"),
        ("--final_time=nan", "final_time to be above 0, got nan"),
        ("--max_num_steps=2147483647", "max_num_steps to be 10000000 or less, got 2147483647"),
        ("--num_steps=2147483647", "num_steps to be 10000000 or less, got 2147483647"),
        ("--max_checkpoints=1073741824", "max_checkpoints to be 16777216 or less"),
        ("--max_corrupt=-1", "max_corrupt to be 0 or more, got -1"),
        ("--seed=one", "flags that --help lists, got a mistake: flag --seed=one: "),
        ("--sead=1", "flags that --help lists, got a mistake: Unknown command line flag 'sead'"),
        ("--max_dropped=2", "max_dropped to be 1 or less, got 2.0"),
        ("--skip_episodes=1000001,9999999999999999", "skip_episodes to be 1e+15 or less"),
        ("--replay_episode=9999999999999999", "flag --replay_episode=9999999999999999: "),
        ("--stop_within=nan", "flag --stop_within=nan: a number from 1 to 86400 is expected"),
        ("--nodeterministic=1", "got a mistake: --nodeterministic=1 does not take an argument"),
        ("--optimizer=Optimizer", "optimizer to be the name of one of Keras, got 'Optimizer'"),
        ("--data_dir=gs://bucket", "a path on this machine, got 'gs://bucket'"),
    ],
)
def test_odd_values(call, tmp_path, flag, expected):
    task = ["--task=ratings_csv"] if "data_dir" in flag else []
    words = call(train_command, flag, *task, f"--workdir={tmp_path / 'run'}")
    assert words.startswith("amaml: Expected ")
    assert expected in words
    assert "\n" not in words
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [0, -1, 2**31 - 1])
def test_caps_on_steps_from_python(value):
    for made in (solvers.RungeKuttaChebyshev, solvers.DormandPrince):
        with pytest.raises(UsageError, match=f"Expected max_num_steps to be from 1 .*got {value}"):
            made(max_num_steps=value)
    with pytest.raises(UsageError, match=f"Expected max_num_steps to be None or .*got {value}"):
        solvers.GradientDescent(0.1, max_num_steps=value)


@pytest.mark.parametrize(("step_size", "time"), [(1e-9, 1.0), (0.1, 1e300), (1e-320, 5.0)])
def test_more_steps_than_can_be_counted(step_size, time):
    with pytest.raises(UsageError, match="Expected a time of at most 10000000 steps of"):
        GradientFlow(final_time=time, solver=solvers.GradientDescent(step_size))


def test_infinite_settings_from_python():
    with pytest.raises(UsageError, match="final_time to be above 0 and finite, got inf"):
        GradientFlow(final_time=float("inf"))
    with pytest.raises(UsageError, match="proximal_weight to be >= 0 and finite, got inf"):
        GradientFlow(proximal_weight=float("inf"))
    with pytest.raises(UsageError, match="above 0 and finite, got inf"):
        solvers.Heun(float("inf"))
    with pytest.raises(UsageError, match="rtol to be above 0 and finite, got inf"):
        solvers.RungeKuttaChebyshev(rtol=float("inf"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("--seed=1\n--sead=2\n", r"names of flags, got --sead in .*flags\.cfg, line 2; --help"),
        ("--seed=1\n\n--channels=x\n", r"value of --channels, got '--channels=x' in .*, line 3"),
        ("--num_ways=x\n", r"num_ways to be a whole number or a range, got 'x'.*, line 1\.\)"),
        ("--seed=1\n--hidden_units=4,x\n", r"hidden_units to be whole.*got '4,x'.*, line 2\.\)"),
        ("# of mine\n--final_time=-1\n", r"final_time to be above 0, got -1.0.*, line 2\.\)"),
        ("--solver=newton\n", r"solver to be one of .*got 'newton'.*, line 1\.\)"),
        ("--seed\n", r"value of --seed, got '--seed' in .*, line 1 \(it has none\)"),
        ("seed=1\n", r"lines --NAME=VALUE, got 'seed=1' in .*, line 1"),
        ("--nodownload=3\n", r"value of --download, got '--nodownload=3' in .*, line 1"),
        (b"--seed=1\n--data_dir=\xe9\n", r"not UTF-8 at offset 20, line 2"),
        ("--flagfile={folder}/flags.cfg\n", "do not name one another in a circle"),
        ("--flagfile={folder}/gone.cfg\n", r"got no file at .*gone\.cfg"),
    ],
)
def test_mistakes_in_flag_files(call, tmp_path, data, expected):
    path = tmp_path / "flags.cfg"
    text = data.replace("{folder}", str(tmp_path)).encode() if isinstance(data, str) else data
    path.write_bytes(text)
    words = call(train_command, f"--flagfile={path}", f"--workdir={tmp_path / 'run'}")
    assert re.match(f"amaml: Expected .*{expected}", words)
    assert "\n" not in words


def test_flag_files_that_name_many_others(call, tmp_path):
    """Each names the next one ten times, so that together they have a billion lines."""
    for number in range(9):
        (tmp_path / f"{number}.cfg").write_text(f"--flagfile={tmp_path}/{number + 1}.cfg\n" * 10)
    (tmp_path / "9.cfg").write_text("--seed=1\n" * 10)
    words = call(train_command, f"--flagfile={tmp_path}/0.cfg", f"--workdir={tmp_path / 'run'}")
    assert "Expected flag files of at most 2000 lines together, at most 100 within" in words
    for number in range(200):
        (tmp_path / f"{number}.cfg").write_text(f"--flagfile={tmp_path}/{number + 1}.cfg\n")
    words = call(train_command, f"--flagfile={tmp_path}/0.cfg", f"--workdir={tmp_path / 'run'}")
    assert f"got more in {tmp_path}/101.cfg" in words


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_flag_files_in_every_encoding(call, tmp_path, encoding):
    path = tmp_path / "flags.cfg"
    path.write_bytes("# of mine\n--seed=1\r\n--nobatch_statistics\n--task=nothing".encode(encoding))
    assert "Expected task to be one of" in call(train_command, "--flagfile", path, "--workdir=x")


def test_more_than_fits_in_memory_is_told(call, monkeypatch):
    def too_large(_):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(train_command, "main", too_large)
    monkeypatch.setattr(train_command, "run", lambda: running.run(too_large))
    assert "fits in memory, got more (Unable to allocate 9 TiB); choose" in call(train_command)


@pytest.fixture
def workdir(tmp_path):
    Experiment().write(tmp_path)
    (tmp_path / "log.csv").write_text("step\n")
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x.csv", "to end in .json, got x.csv"),
        ("x", "to end in .json, got x"),
        ("config.json", "to leave the files of the run alone, got .*config.json"),
        ("log.json", "would overwrite .*log.csv"),
        ("checkpoints/x.json", "would overwrite .*checkpoints"),
        ("tensorboard/../config.json", "would overwrite .*config.json"),
        ("folder.json", "to be a file, got .*folder.json"),
    ],
)
def test_evaluation_files_that_would_overwrite_the_run(call, workdir, name, expected):
    (workdir / "folder.json").mkdir()
    path = name if name.startswith("x") else workdir / name
    before = {each: each.read_bytes() for each in workdir.rglob("*") if each.is_file()}
    words = call(evaluate, f"--workdir={workdir}", f"--evaluation_file={path}")
    assert re.search(f"Expected --evaluation_file .*{expected}", words)
    assert {each: each.read_bytes() for each in workdir.rglob("*") if each.is_file()} == before


@pytest.mark.parametrize("name", ["file/x.json", "loop/x.json", f"{'x' * 245}.json"])
def test_evaluation_files_that_cannot_be_written_are_told_before_the_evaluation(
    call, workdir, name
):
    (workdir / "loop").symlink_to("loop")
    (workdir / "file").touch()
    words = call(evaluate, f"--workdir={workdir}", f"--evaluation_file={workdir / name}")
    assert re.search("Expected a place where .* can be written, got: .*; pass another name", words)


@pytest.mark.parametrize("name", ["loop", "x" * 300, "lr[0.1]"])
def test_folders_of_runs_that_cannot_be(call, tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    words = call(train_command, "--hidden_units=2", f"--workdir={tmp_path / name}")
    assert re.match("amaml: Expected .*, got.*(File exists|too long|a pattern)", words)
    assert "\n" not in words


@pytest.mark.parametrize("name", ["config.json", "checkpoints", "checkpoints/x", "log.csv"])
def test_export_folders_that_would_overwrite_the_run(call, workdir, name):
    words = call(export, f"--workdir={workdir}", f"--export_dir={workdir / name}")
    assert "Expected --export_dir to" in words


def test_the_home_folder_is_meant(workdir, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of")
    assert outputs.evaluation_file("~/x.json", workdir) == pathlib.Path("/home/of/x.json")
    assert outputs.export_folder("~/x", workdir) == pathlib.Path("/home/of/x")

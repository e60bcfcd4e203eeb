"""The commands as a user meets them: flags, exit status, and one sentence for a mistake."""

import json
import os
import re
import subprocess
import sys

import project
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

from amaml_tf import experiment, files
from amaml_tf.commands import evaluate, running
from amaml_tf.commands import flags as experiment_flags
from amaml_tf.commands import train as train_command
from amaml_tf.experiment.declaration import ON_RESUMING, settings_of

CONFIGS = project.ROOT / "configs"
TINY = (
    "--num_support=3",
    "--num_query=3",
    "--hidden_units=4",
    "--solver=gradient_descent",
    "--step_size=0.1",
    "--final_time=0.2",
    "--meta_batch_size=2",
    "--log_every=2",
    "--num_eval_episodes=6",
    "--eval_batch_size=4",
    "--jit_compile=off",
)


@pytest.fixture
def call(monkeypatch, new_flags):
    """Runs a command in this process; returns its exit status, or its last words."""

    def called(module, *arguments):
        monkeypatch.setattr(sys, "argv", ["amaml", *map(str, arguments)])
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as ending:
            module.run()
        return ending.value.code

    return called


@pytest.fixture
def workdir(call, tmp_path):
    """The folder of a run of three meta-steps."""
    folder = tmp_path / "tiny"
    assert call(train_command, *TINY, f"--workdir={folder}", "--num_meta_steps=3") is None
    return folder


def test_train_then_evaluate(call, capsys, workdir):
    assert "after adaptation" in capsys.readouterr().out
    at_the_end = (workdir / "evaluation.json").read_text()
    assert call(evaluate, f"--workdir={workdir}") is None
    assert (workdir / "evaluation.json").read_text() == at_the_end
    numbers = json.loads(at_the_end)
    assert (numbers["meta_step"], numbers["num_episodes"]) == (3, 6)
    assert numbers["settings"]["hidden_units"] == [4]
    assert set(numbers["after"]) == {"loss", "rmse"}


def test_a_profile_has_a_trace_of_the_meta_steps(call, tmp_path):
    folder = tmp_path / "traced"
    arguments = (f"--workdir={folder}", "--num_meta_steps=4", "--profile=2")
    assert call(train_command, *TINY, *arguments) is None
    (trace,) = folder.glob("tensorboard/plugins/profile/*/*.xplane.pb")
    assert trace.read_bytes().count(b"meta_step") >= 1
    assert "4," in (folder / "log.csv").read_text()


def test_gpus_take_memory_as_they_need_it_and_tf32_if_asked(monkeypatch, new_flags):
    grown: dict[str, bool] = {}
    seen: list[bool] = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grown.__setitem__)
    monkeypatch.setattr(tf.config.experimental, "enable_tensor_float_32_execution", seen.append)
    for arguments in ([], ["--tf32"]):
        with flagsaver.flagsaver():
            running.FLAGS(["amaml", *arguments])
            running._prepare_gpus()
    assert grown == {"GPU:0": True}
    assert seen == [False, True]


def test_a_finished_run_says_so(call, workdir, capsys):
    assert call(train_command, *TINY, f"--workdir={workdir}", "--num_meta_steps=3") is None
    assert "is finished: 3 meta-steps are done" in capsys.readouterr().out


def test_a_finished_run_goes_on_to_more_meta_steps(call, workdir):
    assert call(train_command, *TINY, f"--workdir={workdir}", "--num_meta_steps=4") is None
    assert json.loads((workdir / "evaluation.json").read_text())["meta_step"] == 4
    assert experiment.Experiment.read(workdir).num_meta_steps == 4


def test_an_evaluation_that_was_interrupted_is_made_by_the_same_command(call, workdir, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    longer = (*TINY, f"--workdir={workdir}", "--num_meta_steps=4")
    with monkeypatch.context() as patch:
        patch.setattr(train_command, "report_evaluation", interrupted)
        assert call(train_command, *longer) == 130
    assert call(train_command, *longer) is None
    assert json.loads((workdir / "evaluation.json").read_text())["meta_step"] == 4


def test_what_was_merely_asked_for_is_no_setting_of_the_run(call, workdir):
    before = (workdir / experiment.CONFIG_FILE).read_text()
    asked = (*TINY, f"--workdir={workdir}", "--num_meta_steps=2", "--checkpoint_every=7")
    assert call(train_command, *asked) is None
    assert (workdir / experiment.CONFIG_FILE).read_text() == before


def test_another_configuration_is_refused_by_the_flags_that_differ(call, workdir):
    words = call(train_command, *TINY, f"--workdir={workdir}", "--final_time=0.3", "--seed=1")
    assert words == (
        f"amaml: Expected the settings of the run in {workdir}, got --final_time=0.3 (there 0.2), "
        "--seed=1 (there 0); pass its settings, or another --workdir."
    )


def test_evaluation_takes_another_inner_run_but_no_other_model(call, workdir, tmp_path):
    output = tmp_path / "longer.json"
    assert (
        call(evaluate, f"--workdir={workdir}", "--final_time=0.4", f"--evaluation_file={output}")
        is None
    )
    assert json.loads(output.read_text())["gradient_evaluations"]["mean"] == 4
    words = call(evaluate, f"--workdir={workdir}", "--hidden_units=5")
    assert "got --hidden_units=5 (there 4); pass its settings" in words


def test_an_interruption_ends_with_its_own_status(call, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt("Stopped and saved after meta-step 3.")

    monkeypatch.setattr(train_command, "train", interrupted)
    assert call(train_command, *TINY, f"--workdir={tmp_path}") == 130
    assert "Stopped and saved after meta-step 3." in capsys.readouterr().err


def test_an_error_of_another_library_keeps_its_traceback(monkeypatch, new_flags):
    def broken():
        return int("seven")  # raised by Python, not on purpose

    monkeypatch.setattr(sys, "argv", ["amaml"])
    with pytest.raises(ValueError, match="invalid literal"):
        running.run(lambda _: _called_by_another_library(broken))


def _called_by_another_library(function):
    return function()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Expected --workdir, the folder of the run, got none; pass --workdir=FOLDER."),
        (("--task=nothing",), r"Expected task to be one of sinusoid, .*, got 'nothing'; use"),
        (("--solver=newton",), r"Expected solver to be one of .*, got 'newton'; use one"),
        (("--algorithm=magic",), r"Expected algorithm to be one of .*, got 'magic'; use one"),
        (("--model=cnn",), r"Expected images for model cnn, got inputs of shape \(1,\).*; use"),
        (("--optimizer=magic",), "Expected optimizer to be the name of .*, got 'magic'; see"),
        (("--activation=magic",), "Expected activation to be the name of .*, got 'magic'; see"),
        (("--dtype=float16",), "Expected dtype to be one of float32, float64, got 'float16'"),
        (("--eval_split=train",), "Expected eval_split to be one of test, validation, got"),
        (("--hidden_units=4,x",), "Expected hidden_units to be whole numbers.*, got '4,x'; pass"),
        (("--meta_batch_size=0",), "Expected meta_batch_size to be 1 or more, got 0; pass"),
        (("--clip_norm=-1",), "Expected clip_norm to be above 0, got -1.0; pass"),
        (("--final_time=-1",), "Expected final_time to be above 0, got -1.0"),
        (("--filters=4",), "Expected settings that model mlp has, got --filters; leave"),
        (("--num_ways=4",), "Expected settings that task sinusoid has, got --num_ways; leave"),
        (("--rtol=0.1",), "Expected settings that solver gradient_descent has, got --rtol"),
        (("--task=omniglot",), r"Expected .*data_dir.*'omniglot'.*, got none; pass"),
        (("--jit_compile=maybe",), "Expected jit_compile to be one of .*, got 'maybe'"),
        (("more", "words"), "Expected flags alone, got 'more words'; write --NAME=VALUE"),
    ],
)
def test_mistakes(call, tmp_path, arguments, sentence):
    settings = [flag for flag in TINY if not arguments or "omniglot" not in arguments[0]]
    settings += [f"--workdir={tmp_path / 'run'}"] if arguments else []
    words = call(train_command, *settings, *arguments)
    assert re.match(f"amaml: {sentence}", words)
    assert "\n" not in words
    assert not (tmp_path / "run").exists()  # a mistake leaves nothing behind


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("--solver=heun", "Expected a value of --step_size for solver heun, got none; pass it."),
        ("--task=tfds", "Expected a value of --dataset for task tfds, got none; pass it."),
    ],
)
def test_settings_that_are_missing(call, tmp_path, choice, sentence):
    assert sentence in call(train_command, f"--workdir={tmp_path}", choice)


def test_more_ways_than_classes(call, tmp_path):
    words = call(
        train_command,
        "--task=image_folder",
        f"--data_dir={image_folder(tmp_path, num_classes=10)}",
        "--image_size=8",
        "--num_ways=7",
        "--num_query=1",
        f"--workdir={tmp_path / 'run'}",
    )
    assert re.search("Expected at most . ways, .*, got 7; ask for fewer ways", words)


def image_folder(folder, num_classes):
    image = tf.io.encode_png(tf.zeros((8, 8, 3), tf.uint8))
    for label in range(num_classes):
        (folder / "images" / str(label)).mkdir(parents=True)
        for number in range(2):
            tf.io.write_file(str(folder / "images" / str(label) / f"{number}.png"), image)
    return folder / "images"


def test_a_folder_that_cannot_be_written_to(call, tmp_path):
    (tmp_path / "file").write_text("")
    words = call(train_command, *TINY, f"--workdir={tmp_path / 'file'}")
    assert "Expected workdir to be a folder that can be written to, got" in words


def test_evaluating_what_was_never_trained(call, tmp_path):
    words = call(evaluate, f"--workdir={tmp_path}")
    assert re.search("Expected workdir to be the folder of a run, got .*; train there first", words)
    experiment.Experiment().write(tmp_path)
    words = call(evaluate, f"--workdir={tmp_path}")
    assert re.search("Expected a checkpoint in .*, got none; train there first", words)


def test_a_run_without_a_checkpoint_gives_way(tmp_path):
    experiment.Experiment(seed=1).write(tmp_path)
    experiment.Experiment(seed=2).require_free_or_own(tmp_path)


def test_settings_that_cannot_be_read(tmp_path):
    (tmp_path / experiment.CONFIG_FILE).write_text('{"task": "sinusoid", "colour": 3}')
    with pytest.raises(ValueError, match=r"settings of a run of this version, .*colour.*; use"):
        experiment.Experiment.read(tmp_path)


def test_settings_are_read_as_they_were_written(tmp_path):
    settings = experiment.Experiment(hidden_units=(3, 4), final_time=0.1, adapted_layers=("a",))
    settings.write(tmp_path)
    assert experiment.Experiment.read(tmp_path) == settings


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o077)
    try:
        files.write_atomically(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_the_next_write_removes_what_a_kill_left_but_nothing_else(tmp_path):
    (tmp_path / ".file.0123abcd").write_text("half")
    (tmp_path / ".file.template-of-a-user").write_text("kept")
    (tmp_path / ".other.0123abcd").write_text("kept")
    files.write_atomically(tmp_path / "file", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".file.template-of-a-user",
        ".other.0123abcd",
        "file",
    ]


def test_sizes_are_numbers_or_ranges(tmp_path, new_flags):
    new_flags(["amaml", "--num_support=1-10", "--num_query=15", "--num_ways=5 - 20"])
    settings = experiment_flags.read(experiment.Experiment)
    assert (settings.num_support, settings.num_query, settings.num_ways) == ((1, 10), 15, (5, 20))
    assert settings.num_test_support is None
    settings.write(tmp_path)
    stored = experiment.Experiment.read(tmp_path)
    assert stored == settings
    with pytest.raises(ValueError, match=r"got --num_support=2 \(there 1-10\); pass"):
        experiment.Experiment(num_support=2, num_query=15, num_ways=(5, 20)).refuse_unless_like(
            stored, "there", ON_RESUMING
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10-1", "to be a range from the smaller number to the larger, got 10-1; pass something"),
        ("0-3", "Expected num_support to be 1 or more, got 0; pass something like --num_support=5"),
        ("-3", "Expected num_support to be 1 or more, got -3"),
        ("1-", "Expected num_support to be a whole number or a range, got '1-'"),
        ("1-2-3", "Expected num_support to be a whole number or a range, got '1-2-3'"),
        (
            "few",
            "a whole number or a range, got 'few'; pass something like .* or --num_support=1-1",
        ),
    ],
)
def test_sizes_that_are_neither(new_flags, text, message):
    new_flags(["amaml", f"--num_support={text}"])
    with pytest.raises(ValueError, match=message):
        experiment_flags.read(experiment.Experiment)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    files.write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        files.write_atomically(tmp_path / "file", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.cfg")), ids=lambda path: path.stem)
def test_flag_files_are_valid_and_flags_after_them_win(path, new_flags):
    new_flags(["amaml", f"--flagfile={path}", "--meta_batch_size=77"])
    settings = experiment_flags.read(experiment.Experiment)
    assert settings.meta_batch_size == 77
    settings.make_algorithm()
    settings.make_optimizer()
    if settings.task not in ("omniglot", "movielens_100k"):  # these need their data
        settings.make_learner(settings.make_family())


def test_every_setting_has_a_flag_with_a_meaning():
    for name in settings_of(experiment.Experiment):
        assert name in flags.FLAGS
        assert len(flags.FLAGS[name].help) > 10


@pytest.mark.long
@pytest.mark.parametrize("sizes", [[], ["--num_support=1-10", "--num_query=2"]], ids=["", "ranged"])
def test_omniglot(call, tmp_path, omniglot_dir, sizes):
    arguments = (
        f"--flagfile={CONFIGS / 'omniglot_5way_1shot_small.cfg'}",
        f"--data_dir={omniglot_dir}",
        f"--workdir={tmp_path}",
        "--num_blocks=1",
        "--filters=2",
        "--num_meta_steps=1",
        "--num_eval_episodes=2",
        "--eval_batch_size=2",
        *sizes,
    )
    assert call(train_command, *arguments) is None
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert 0 < numbers["after"]["accuracy"]["mean"] < 1


def test_a_command_as_a_process():
    command = [sys.executable, "-m", "amaml_tf.train", "--task=nothing", "--workdir=unused"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "train: Expected task to be one of" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_modules_that_are_commands_do_not_hide_functions():
    program = (
        "import importlib, amaml_tf\n"
        "before = amaml_tf.train, amaml_tf.evaluate\n"
        "for name in ('train', 'evaluate'): importlib.import_module(f'amaml_tf.{name}')\n"
        "import amaml_tf.train, amaml_tf.evaluate\n"
        "assert (amaml_tf.train, amaml_tf.evaluate) == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("algorithm", ["joint_training", "from_scratch"])
def test_an_adjoint_of_no_inner_run_is_refused(algorithm):
    settings = experiment.Experiment(algorithm=algorithm, adjoint="continuous")
    with pytest.raises(ValueError, match=f"Expected no --adjoint with --algorithm={algorithm}"):
        settings.make_algorithm()

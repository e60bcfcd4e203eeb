"""A C++ program without Python loads an export as a model server does, and joins requests."""

import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from amaml_tf.saved_model.warmup import write_warmup

PROGRAM = __file__.replace("test_model_server.py", "model_server.cc")
MAY_BE_JOINED = {
    "serving_default",
    "adapt_and_predict_batch",
    "adapt_and_predict_timed_batch",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not there")
    built = tmp_path_factory.mktemp("program") / "model_server"
    folder = tf.sysconfig.get_lib()
    flags = [flag for flag in tf.sysconfig.get_compile_flags() if not flag.startswith("-I")]
    subprocess.run(
        [
            *(compiler, "-O0", *flags, "-isystem", tf.sysconfig.get_include(), PROGRAM),
            *("-o", built, f"-L{folder}", f"-Wl,-rpath,{folder}"),
            *("-Wl,--no-as-needed", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"),
        ],
        check=True,
    )
    return built


@pytest.mark.long  # the compilation takes most of it
def test_a_process_without_python_runs_every_signature(program, served):
    (version,) = [path for path in served[1].iterdir() if path.name.isdecimal()]
    lines = replayed(program, version)
    signatures = set(tf.saved_model.load(version).signatures)
    assert {name for name, *_ in lines} == signatures
    for name, answer, joined in lines:
        assert answer == "answered", (name, answer)
        if name in MAY_BE_JOINED:
            assert joined == "alike", (name, joined)
        else:
            assert joined.startswith("refused"), (name, joined)


@pytest.mark.long
def test_the_program_finds_what_is_wrong(program, tmp_path):
    """Otherwise, it would prove nothing that it finds nothing in an export."""
    found = {name: rest for name, *rest in replayed(program, write_wrong_model(tmp_path))}
    assert found["by_rows"] == ["answered", "alike"]
    assert found["by_columns"] == ["answered", "mixed"]  # a caller gets another's rows
    assert found["together"][1].startswith("refused output scalar cannot be divided")
    assert found["infinite"][0] == "not finite"
    assert "always wrong" in found["refusing"][0]
    assert found["blind"][1] == "the two callers cannot be told apart"
    assert found["absent"][0] == "NOT_FOUND: no signature absent"


@pytest.mark.long
def test_an_export_without_requests_is_no_success(program, tmp_path):
    path = write_wrong_model(tmp_path)
    (path / "assets.extra" / "tf_serving_warmup_requests").unlink()
    assert subprocess.run([program, path], check=False).returncode == 1


def replayed(program, version):
    """Returns signature, answer and what came of joining, of each request."""
    done = subprocess.run(
        [program, version], capture_output=True, text=True, timeout=120, check=True
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


def write_wrong_model(folder):
    """Writes a SavedModel whose signatures answer in all the ways that the program tells apart."""
    ways = {
        "by_rows": lambda x: {"y": 2 * x},
        "by_columns": lambda x: {"y": x - tf.reduce_mean(x)},
        "together": lambda x: {"scalar": tf.reduce_mean(x)},
        "infinite": lambda x: {"y": x / 0.0},
        "refusing": lambda x: {"y": tf.debugging.check_numerics(x / 0.0, "always wrong")},
        "blind": lambda x: {"y": tf.zeros_like(x)},
    }
    spec = tf.TensorSpec([None, 3], name="x")
    functions = {name: tf.function(way).get_concrete_function(spec) for name, way in ways.items()}
    tf.saved_model.save(tf.Module(), str(folder), functions)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    (folder / "assets.extra").mkdir()
    write_warmup(folder, {name: {"x": x} for name in [*ways, "absent"]})
    return folder

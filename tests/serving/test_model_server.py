"""A C++ program without Python loads an export as a model server does, and joins requests."""

import shutil
import subprocess

import pytest
import tensorflow as tf

PROGRAM = __file__.replace("test_model_server.py", "model_server.cc")
MAY_BE_JOINED = {"serving_default", "adapt_and_predict_batch"}


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


def test_a_process_without_python_runs_every_signature(program, served):
    (version,) = [path for path in served[1].iterdir() if path.name.isdecimal()]
    done = subprocess.run(
        [program, version], capture_output=True, text=True, timeout=120, check=True
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    signatures = set(tf.saved_model.load(version).signatures)
    assert {name for name, *_ in lines} == signatures
    for name, answer, joined in lines:
        assert answer == "answered", (name, answer)
        if name in MAY_BE_JOINED:
            assert joined == "alike", (name, joined)
        else:
            assert joined.startswith("refused"), (name, joined)

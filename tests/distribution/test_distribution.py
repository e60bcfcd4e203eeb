"""Several devices and processes: the weights of one, whatever happens to a worker."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from project import ROOT

import amaml_tf as amaml
from amaml_tf import distribution, training
from amaml_tf.distribution.packing import Packing

HERE = pathlib.Path(__file__).parent
FLAGS = [
    *("--task=sinusoid", "--num_support=5", "--num_query=5", "--meta_batch_size=5"),
    *("--algorithm=maml", "--step_size=0.05", "--num_steps=2", "--hidden_units=8"),
    *("--vectorize=off", "--jit_compile=off", "--log_every=5", "--checkpoint_every=5"),
    *("--num_eval_episodes=4", "--eval_batch_size=4"),
    *("--validate_every=10", "--num_validation_episodes=4"),
]


def environment(**variables):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"} | variables


def start(workdir, *flags, devices=1, pause=0.0, prefix=(), **variables):
    """A process that trains; its standard error is in a file, which is not empty once it works."""
    command = [*prefix, sys.executable, str(HERE / "worker.py"), str(devices), str(pause)]
    return subprocess.Popen(
        [*command, *FLAGS, f"--workdir={workdir}", *flags],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_ports(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def start_workers(number, workdir, *flags, **options):
    hosts = [f"127.0.0.1:{port}" for port in free_ports(number)]
    return [
        start(
            workdir,
            "--distribution=multi_worker",
            *flags,
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            ),
            **options,
        )
        for index in range(number)
    ]


def finish(processes, seconds=240.0):
    """Status and standard error of each."""
    found = []
    try:
        for each in processes:
            _, errors = each.communicate(timeout=seconds)
            found.append((each.returncode, errors))
    finally:
        for each in processes:
            each.kill()
    return found


def wait_for(process, step):
    for line in process.stderr:
        if line.startswith("did ") and int(line.split()[1]) >= step:
            return
    raise AssertionError(f"ended before meta-step {step}")


def result(workdir):
    """The variables of the newest checkpoint, the log without its seconds, and the evaluation."""
    newest = training.CHECKPOINT_FOLDER
    paths = sorted(
        (workdir / newest).glob("*.index"), key=lambda path: int(path.stem.split("-")[1])
    )
    reader = tf.train.load_checkpoint(str(paths[-1].with_suffix("")))
    names = sorted(n for n in reader.get_variable_to_shape_map() if "VARIABLE_VALUE" in n)
    numbers = json.loads((workdir / "evaluation.json").read_text())
    rows = (workdir / training.VALIDATION_FILE).read_text().split()
    return [reader.get_tensor(n) for n in names], numbers["after"]["loss"]["mean"], len(rows)


def assert_like(workdir, alone):
    variables, loss, num_rows = result(workdir)
    expected, expected_loss, expected_rows = alone
    for one, other in zip(variables, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    assert num_rows == expected_rows


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one device learns in 20 meta-steps."""
    workdir = tmp_path_factory.mktemp("alone")
    assert finish([start(workdir, "--num_meta_steps=20")])[0][0] == 0
    return result(workdir)


@pytest.mark.long
def test_two_devices_with_every_kind_of_loss():
    command = [sys.executable, str(HERE / "on_two_devices.py")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.endswith("the same\n"), done.stderr[-2000:]


@pytest.mark.long
def test_the_command_on_two_devices(alone, tmp_path):
    flags = ("--num_meta_steps=20", "--distribution=mirrored")
    assert finish([start(tmp_path, *flags, devices=2)])[0][0] == 0
    assert_like(tmp_path, alone)


@pytest.mark.long
@pytest.mark.parametrize("number", [2, 3])
def test_several_processes(alone, tmp_path, number):
    ends = finish(start_workers(number, tmp_path, "--num_meta_steps=20"))
    assert [status for status, _ in ends] == [0] * number, ends[0][1][-2000:]
    assert_like(tmp_path, alone)


@pytest.mark.long
def test_a_killed_worker_then_a_signal_then_fewer_workers(alone, tmp_path):
    """Three workers, of which one is killed; then two, one of which gets SIGTERM; then one."""
    workers = start_workers(3, tmp_path, "--num_meta_steps=20", pause=0.3)
    wait_for(workers[0], 6)
    workers[1].kill()
    killed = time.monotonic()
    (one, first), _, (other, second) = finish(workers, 60)
    assert time.monotonic() - killed < 60
    assert (one, other) == (1, 1)
    for errors in (first, second):
        assert "Expected all 3 workers to be at work, but worker " in errors
        assert "start all of them again with the same command" in errors
        assert "Traceback" not in errors
    workers = start_workers(2, tmp_path, "--num_meta_steps=20", pause=0.3)
    wait_for(workers[0], 8)
    workers[1].send_signal(signal.SIGTERM)
    ends = finish(workers)
    assert [status for status, _ in ends] == [143, 143]
    for _, errors in ends:
        assert "Stopped by SIGTERM after meta-step" in errors
        assert "which is saved" in errors
    assert finish([start(tmp_path, "--num_meta_steps=20")])[0][0] == 0
    assert_like(tmp_path, alone)


@pytest.mark.long
def test_workers_with_different_settings(tmp_path):
    hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = [
        start(
            tmp_path,
            "--distribution=multi_worker",
            f"--meta_learning_rate={0.1 * (index + 1)}",
            "--num_meta_steps=20",
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index in range(2)
    ]
    (one, told), (other, errors) = finish(workers)
    assert (one, other) == (1, 1)
    assert "worker 1 ended: UsageError" in told
    assert "got another meta_learning_rate on worker 1: 0.2 here, 0.1 there" in errors


@contextlib.contextmanager
def two_hosts():
    """Two network namespaces with an address each, joined by a cable; what runs a command there."""
    here = f"amaml{os.getpid()}"
    names = [f"{here}{end}" for end in "ab"]
    ends = [f"v{os.getpid()}{end}" for end in "ab"]
    steps = [
        *(["netns", "add", name] for name in names),
        ["link", "add", ends[0], "type", "veth", "peer", "name", ends[1]],
        *(["link", "set", end, "netns", name] for end, name in zip(ends, names, strict=True)),
    ]
    for number, (end, name) in enumerate(zip(ends, names, strict=True), 1):
        steps.append(["-n", name, "addr", "add", f"10.213.47.{number}/24", "dev", end])
        steps.append(["-n", name, "link", "set", end, "up"])
        steps.append(["-n", name, "link", "set", "lo", "up"])
    try:
        for step in steps:
            done = subprocess.run(["ip", *step], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"ip {' '.join(step)}: {done.stderr.strip()}")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip (iproute2)")
def test_hosts_with_their_own_addresses(alone, tmp_path):
    hosts = ["10.213.47.1:12345", "10.213.47.2:12345"]
    with two_hosts() as prefixes:
        workers = [
            start(
                tmp_path,
                "--num_meta_steps=20",
                "--distribution=multi_worker",
                prefix=prefix,
                TF_CONFIG=json.dumps(
                    {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
                ),
            )
            for index, prefix in enumerate(prefixes)
        ]
        ends = finish(workers)
    assert [status for status, _ in ends] == [0, 0], ends[0][1][-2000:]
    assert_like(tmp_path, alone)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)
def test_a_cluster_that_is_none(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(amaml.UsageError, match="Expected the environment variable TF_CONFIG as"):
        distribution.multi_worker()


def test_a_cluster_after_the_first_computation(monkeypatch):
    tf.zeros([]).numpy()
    (port,) = free_ports(1)
    config = {"cluster": {"worker": [f"127.0.0.1:{port}"] * 2}, "task": {"type": "worker"}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config | {"task": {"type": "worker", "index": 0}}))
    with pytest.raises(amaml.UsageError, match="Call it first in the program"):
        distribution.multi_worker()


def test_unknown_distribution():
    with pytest.raises(amaml.UsageError, match="none, mirrored, multi_worker, got 'many'"):
        distribution.replicas_of("many")
    assert distribution.replicas_of("none") is None


def test_parts_of_unequal_sizes_add_up():
    """Sums are added, rows stand in their places, and every dtype comes back."""

    def part(begin, end):
        numbers = np.arange(begin, end)
        rows = {
            "int": tf.constant(numbers, tf.int32),
            "bool": tf.constant(numbers % 2 == 0),
            "float": tf.constant(np.stack([numbers, -numbers], 1) / 3.0),
        }
        return [tf.constant(float(end - begin), tf.float64)], rows

    packings = [Packing(part(*ends), *ends, 5) for ends in ((0, 2), (2, 5))]
    sums, rows = packings[0].unpacked(packings[0].vector + packings[1].vector)
    expected = part(0, 5)
    assert sums[0] == 5
    tf.nest.map_structure(np.testing.assert_array_equal, rows, expected[1])
    assert {name: v.dtype for name, v in rows.items()} == {
        n: v.dtype for n, v in expected[1].items()
    }

"""Requests of many clients, good and bad, while versions appear and exporters are killed."""

import collections
import concurrent.futures
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from serving_data import examples

psutil = pytest.importorskip("psutil", reason="psutil is not there: pip install '.[test]'")

# One exporter writes this many versions; it says so before each, so that it can be killed in it.
EXPORTER = """
import sys
import amaml_tf as amaml
amaml.functional.execution.compile_quickly()
model = amaml.load_initialization(sys.argv[1])
solver = amaml.solvers.RungeKuttaChebyshev()
flow = amaml.GradientFlow(final_time=0.5, solver=solver)
learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
learner.compile(loss="mse", jit_compile="off")
for _ in range(int(sys.argv[2])):
    print("exporting", flush=True)
    amaml.save_initialization(learner, sys.argv[1])
"""


@dataclasses.dataclass
class Counts:
    """What came of the requests."""

    outcomes: collections.Counter
    slowest_refusal: float = 0.0


def ask(client, kind, number, expected, counts):
    """Sends one request of a kind, and counts what came of it."""
    x, y = examples(12, seed=number % 5)
    query_x = examples(4, seed=100 + number % 5)[0]
    inputs = {
        "good": (x, y, query_x),
        "rows": (x, y[:5], query_x),
        "rank": (x[:, 0], y, query_x),
        "width": (x, y, query_x[:, :1]),
        "empty": (x[:0], y[:0], query_x),
        "NaN": (x, y * np.nan, query_x),
        "huge": (x, y * 1e30, query_x),
        "many": (*examples(100_000), query_x),
    }[kind]
    started = time.monotonic()
    try:
        names = ("support_x", "support_y", "query_x")
        answer = client.call("adapt_and_predict", **dict(zip(names, inputs, strict=True)))
        right = np.allclose(answer["predictions"], expected[number % 5], atol=1e-4)
        counts.outcomes[kind, "right" if right else "wrong"] += 1
    except grpc.RpcError as error:
        counts.outcomes[kind, error.code()] += 1
        counts.slowest_refusal = max(counts.slowest_refusal, time.monotonic() - started)


def send(address, make_client, numbers, expected, counts):
    """Sends requests from one client: 5% malformed, 1% hostile."""
    client = make_client(address, "initialization")
    random = np.random.default_rng(numbers[0])
    for number in numbers:
        chance = random.uniform()
        kind = "good"
        if chance < 0.01:
            kind = str(random.choice(["NaN", "huge", "many"]))
        elif chance < 0.06:
            kind = str(random.choice(["rows", "rank", "width", "empty"]))
        ask(client, kind, number, expected, counts)


def start_exporter(folder, count):
    return subprocess.Popen(
        [sys.executable, "-c", EXPORTER, str(folder), str(count)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def export_and_kill(folder, versions, kills):
    """Exports versions, and kills as many exporters while they write."""
    exporter = start_exporter(folder, versions)
    for n in range(kills):
        victim = start_exporter(folder, 1)
        victim.stdout.readline()
        time.sleep(0.3 + 0.5 * n)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert exporter.wait() == 0


@pytest.mark.long
def test_good_ones_are_right_and_bad_ones_refused(served, client_module, tmp_path):
    from official_server import Server, wait_for

    requests = int(os.environ.get("AMAML_REQUESTS", "400"))
    versions = int(os.environ.get("AMAML_VERSIONS", "2"))
    kills = int(os.environ.get("AMAML_KILLS", "1"))
    learner, source = served
    folder = tmp_path / "initialization"
    shutil.copytree(source, folder)
    expected = [
        learner.adapt(examples(12, seed=n)).predict(examples(4, seed=100 + n)[0], verbose=0)
        for n in range(5)
    ]
    counts = Counts(collections.Counter())
    with Server(folder) as server:
        exporters = threading.Thread(target=export_and_kill, args=(folder, versions, kills))
        exporters.start()
        shares = np.array_split(np.arange(requests), 8)

        def client(own):
            send(server.address, client_module.Client, own, expected, counts)

        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            list(clients.map(client, [np.arange(40)] * 8))  # every kind, before memory is measured
            before = psutil.Process().memory_info().rss
            list(clients.map(client, shares))
            grown = psutil.Process().memory_info().rss - before
        exporters.join()
        newest = max(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
        assert wait_for(lambda: server.newest.number == newest)
        print(dict(counts.outcomes), f"{counts.slowest_refusal:.1f} s, {grown / 2**20:.0f} MiB")
        assert server.versions == list(range(1, newest + 1))  # none missed
        assert versions + 1 <= newest <= versions + kills + 1
    refused = grpc.StatusCode.INVALID_ARGUMENT
    good = {outcome for kind, outcome in counts.outcomes if kind == "good"}
    bad = {outcome for kind, outcome in counts.outcomes if kind != "good"}
    assert (good, bad) == ({"right"}, {refused})
    assert {"rows", "rank", "width", "empty"} <= {kind for kind, _ in counts.outcomes}
    assert counts.slowest_refusal < 10  # the same two cores load versions, and export them
    # Every version that is loaded takes some memory; requests take none.
    assert grown < (newest + 1) * 60 * 2**20

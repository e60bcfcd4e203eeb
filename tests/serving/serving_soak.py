"""Requests of eight clients, good and bad, while versions are exported and exporters are killed.

    PYTHONPATH=. python tests/serving/serving_soak.py --requests=10000 --versions=20 --kills=10

5% of the requests are malformed, 1% hostile. The server is a process of its own, so that its memory
is measured alone. Prints a table; the exit status is 1 if an answer was wrong, a bad request was
not refused, or a version was missed.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

import grpc
import numpy as np
import psutil
from serving_data import EXPORT, examples, export, small_learner

sys.path.append(str(EXPORT))
from client_grpc import Client

HERE = pathlib.Path(__file__).parent
CLIENTS = 8
MANY = examples(100_000)
MALFORMED = ("rows", "rank", "width", "empty")
HOSTILE = ("NaN", "huge", "overflow", "many", "queries")

# Writes versions one after another, and says so before each, so that it can be killed in it.
EXPORTER = """
import sys
from serving_data import export, small_learner
import amaml_tf as amaml
amaml.functional.execution.compile_quickly()
learner = small_learner()
for _ in range(int(sys.argv[2])):
    print("exporting", flush=True)
    export(learner, sys.argv[1])
"""


def inputs_of(kind: str, seed: int) -> dict[str, np.ndarray]:
    """Returns the inputs of a request to `adapt_and_predict`."""
    x, y = examples(12, seed)
    query_x, _ = examples(4, seed + 100)
    given = {
        "good": (x, y, query_x),
        "rows": (x, y[:5], query_x),
        "rank": (x[:, 0], y, query_x),
        "width": (x, y, query_x[:, :1]),
        "empty": (x[:0], y[:0], query_x),
        "NaN": (x, y * np.nan, query_x),
        "huge": (x, y * 1e4, query_x),  # adaptation goes on until the bound
        "overflow": (x, y * 1e30, query_x),
        "many": (*MANY, query_x),
        "queries": (x, y, MANY[0]),
    }[kind]
    return dict(zip(("support_x", "support_y", "query_x"), given, strict=True))


class Outcomes:
    """What came of the requests of all clients: seconds by kind and outcome."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
        self._expected = []
        learner = small_learner()
        for seed in range(5):
            adapted = learner.adapt(examples(12, seed))
            self._expected.append(adapted.predict(examples(4, seed + 100)[0], verbose=0))

    def ask(self, client: Client, kind: str, seed: int) -> None:
        """Sends a request and counts what came of it."""
        inputs = inputs_of(kind, seed)
        started = time.monotonic()
        try:
            answer = client.call("adapt_and_predict", **inputs)
        except grpc.RpcError as error:
            outcome = error.code().name
        else:
            right = np.allclose(answer["predictions"], self._expected[seed], atol=1e-4)
            outcome = "right" if right else "wrong"
        self.seconds[kind, outcome].append(time.monotonic() - started)

    def send(self, address: str, requests: int) -> None:
        """Sends requests from eight clients at once."""
        seed = self.count

        def one(number: int) -> None:
            client = Client(address, "initialization")
            chance = random.Random(seed + number)
            for _ in range(requests // CLIENTS):
                kinds = chance.choices((("good",), MALFORMED, HOSTILE), (94, 5, 1))[0]
                self.ask(client, chance.choice(kinds), chance.randrange(5))

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(one, range(CLIENTS)))

    def send_while(
        self, exporters: Exporters, server: ServerProcess, requests: int, versions: int, kills: int
    ) -> float:
        """Sends requests, spread over the time in which versions are written, until all are loaded.

        Returns the memory of the server after the first tenth, before any version is written.
        """
        self.send(server.address, requests // 10)
        memory = server.memory[-1]
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            exporting = other.submit(exporters.run, versions, kills)
            while not exporting.done() or self.count < requests:
                share = len(numbers(exporters.folder)) / (versions + 1)
                if exporting.done() or self.count < share * requests:
                    self.send(server.address, requests // 20)
                time.sleep(0.1)
            exporting.result()
        server.wait_for(numbers(exporters.folder)[-1])
        self.send(server.address, requests // 20)
        return memory

    @property
    def count(self) -> int:
        """The number of requests."""
        return sum(map(len, self.seconds.values()))

    @property
    def all_as_they_should_be(self) -> bool:
        """Whether good requests got right answers, and all others were refused."""
        return all(
            outcome == ("right" if kind == "good" else "INVALID_ARGUMENT")
            for kind, outcome in self.seconds
        )

    @property
    def slowest_refusal(self) -> float:
        """Seconds of the slowest request that was not answered."""
        return max(max(s) for (kind, _), s in self.seconds.items() if kind != "good")

    def table(self) -> str:
        """Returns a table of kinds and outcomes."""
        lines = [
            "| request | outcome | number | median, ms | slowest, ms |",
            "|---|---|---|---|---|",
        ]
        for (kind, outcome), seconds in sorted(self.seconds.items()):
            times = f"{1000 * np.median(seconds):.0f} | {1000 * max(seconds):.0f}"
            lines.append(f"| {kind} | {outcome} | {len(seconds)} | {times} |")
        return "\n".join(lines)


class ServerProcess:
    """The server of the tests in a process of its own; use it as a context.

    Attributes:
        address: of its gRPC.
        versions: the numbers that it has loaded, in their order.
        memory: its resident memory in MiB, every half second.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        program = str(HERE / "official_server.py")
        command = [sys.executable, program, str(folder), "--port=0", "--rest_port=0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address, self.versions, self.memory = "", [], []  # type: ignore[var-annotated]
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> ServerProcess:
        if not self._ready.wait(120):
            raise TimeoutError("the server does not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def wait_for(self, number: int) -> None:
        """Waits until a version is loaded, as long as one more is loaded every two minutes."""
        count, end = 0, 0.0
        while number not in self.versions:
            if len(self.versions) > count:
                count, end = len(self.versions), time.monotonic() + 120
            if time.monotonic() > end:
                return
            time.sleep(0.1)

    def _read(self) -> None:
        for line in self._process.stdout or ():
            words = line.split()
            if words[0] == "Version":
                self.versions.append(int(words[1]))
            if words[0] == "gRPC":
                self.address = words[2].rstrip(",")
                self._ready.set()

    def _watch(self) -> None:
        process = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            self.memory.append(process.memory_info().rss / 2**20)
            time.sleep(0.5)


@dataclasses.dataclass
class Exporters:
    """Exporters to one folder: two at once that write versions, and others that are killed.

    Attributes:
        program: of an exporter; its arguments are the folder and the number of versions.
        folder: of the versions.
        seconds: that one version takes.
    """

    program: str
    folder: pathlib.Path
    seconds: float

    def start(self, count: int) -> subprocess.Popen[str]:
        """Starts one that writes `count` versions."""
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, "-c", self.program, str(self.folder), str(count)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def run(self, versions: int, kills: int) -> None:
        """Writes versions, and kills others early, in the middle and late in their work."""
        shares = [versions // 2, versions - versions // 2]
        alive = [self.start(share) for share in shares if share]
        for n in range(kills):
            victim = self.start(1)
            next(iter(victim.stdout or ()))
            time.sleep(self.seconds * (n + 0.5) / kills)
            victim.kill()
            victim.wait()
        for each in alive:
            if each.wait() != 0:
                raise RuntimeError("an exporter failed")


def numbers(folder: pathlib.Path) -> list[int]:
    """Returns the numbers of the versions in a folder."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def main() -> None:
    """Runs it, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place) / "initialization"
        learner, started = small_learner(), time.monotonic()
        export(learner, folder)
        exporters = Exporters(EXPORTER, folder, time.monotonic() - started)
        outcomes = Outcomes()
        with ServerProcess(folder) as server:
            memory = outcomes.send_while(exporters, server, **vars(options))
            written = numbers(folder)
            missed = set(written) - set(server.versions)
            export(learner, folder, keep_versions=5)
        left = sorted(path.name for path in folder.iterdir())
    print(outcomes.table())
    print(f"\nSlowest refusal: {outcomes.slowest_refusal:.2f} s.")
    peaks = ", ".join(f"{max(part):.0f}" for part in np.array_split(server.memory, 8))
    print(f"Memory of the server: {memory:.0f} MiB with one version, then at most {peaks} MiB.")
    print(f"Versions written: {len(written)}, of which the server missed {len(missed)}.")
    print(f"Left by --keep_versions=5 and its cleaning: {', '.join(left)}.")
    sys.exit(bool(not outcomes.all_as_they_should_be or missed or len(left) != 5))


if __name__ == "__main__":
    main()

"""Requests of eight clients, good and bad, while versions are exported and exporters are killed.

    PYTHONPATH=. python tests/serving/serving_soak.py --requests=10000 --versions=20 --kills=10

5% of the requests are malformed, 1% hostile. The server is a process of its own, so that its memory
is measured alone. It loads versions by the policy of export/models.config, so it passes over some
when they come faster than it loads them. What must be true of versions is therefore this:

- their numbers have no gaps, though exporters were killed;
- each that the server began to load could be loaded, and in the end it has loaded the newest;
- each that it passed over can be loaded, replays its warm-up requests, and answers rightly. This is
  tried after the requests, with the server's own code.

Prints a table. The exit status is 1 if that is not so, an answer was wrong, a bad request was not
refused, or a killed exporter's folder was left. Times depend on the machine and decide nothing. So
does the server's memory, which is printed for each version that it loaded.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping

import grpc
import numpy as np
import tensorflow as tf
from loaded_version import LoadedVersion
from serving_data import EXPORT, examples, export, small_learner
from serving_processes import TIMEOUT, Exporters, ServerProcess, numbers

sys.path.append(str(EXPORT))
from client_grpc import Client

CLIENTS = 8
SEEDS = 5  # of good requests, whose answers are known
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
        for seed in range(SEEDS):
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
            outcome = "right" if self.is_right(answer, seed) else "wrong"
        self.seconds[kind, outcome].append(time.monotonic() - started)

    def is_right(self, answer: Mapping[str, np.ndarray], seed: int) -> bool:
        """Whether a good request got its answer."""
        return np.allclose(answer["predictions"], self._expected[seed], atol=1e-4)

    def broken(self, paths: Iterable[pathlib.Path]) -> list[str]:
        """Returns which versions cannot be loaded, or do not answer good requests rightly."""
        return [path.name for path in paths if not self._is_whole(path)]

    def _is_whole(self, path: pathlib.Path) -> bool:
        try:
            version = LoadedVersion(path)
            right = [
                self.is_right(version.predict("adapt_and_predict", inputs_of("good", seed)), seed)
                for seed in range(SEEDS)
            ]
        except (OSError, ValueError, tf.errors.OpError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return False
        version.unload()
        return all(right)

    def send(self, address: str, requests: int) -> None:
        """Sends requests from eight clients at once."""
        seed = self.count

        def one(number: int) -> None:
            client = Client(address, "initialization", timeout=TIMEOUT)
            chance = random.Random(seed + number)
            for _ in range(requests // CLIENTS):
                kinds = chance.choices((("good",), MALFORMED, HOSTILE), (94, 5, 1))[0]
                self.ask(client, chance.choice(kinds), chance.randrange(SEEDS))

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
            written, loaded = numbers(folder), list(server.versions)
            passed = [folder / str(n) for n in written if n not in loaded]
            broken = outcomes.broken(passed)
            export(learner, folder, keep_versions=5)
        left = sorted(path.name for path in folder.iterdir())
    print(outcomes.table())
    print(f"\nSlowest refusal: {outcomes.slowest_refusal:.2f} s.")
    peaks = ", ".join(f"{max(part):.0f}" for part in np.array_split(server.memory, 8))
    print(f"Memory of the server: {memory:.0f} MiB with one version, then at most {peaks} MiB.")
    at = ", ".join(f"{n}: {m:.0f}" for n, m in zip(loaded, server.memory_at, strict=False))
    print(f"Memory when a version had been loaded, MiB: {at}.")
    print(
        f"Versions written: {len(written)}, the newest {written[-1]}; loaded by the server: "
        f"{len(loaded)}, passed over: {len(passed)}, of which broken: {broken or 'none'}."
    )
    print(f"Left by --keep_versions=5 and its cleaning: {', '.join(left)}.")
    kept = min(5, options.versions + 2)
    whole = written == list(range(1, options.versions + 2)) and written[-1] in loaded
    sys.exit(not (outcomes.all_as_they_should_be and whole and not broken and len(left) == kept))


if __name__ == "__main__":
    main()

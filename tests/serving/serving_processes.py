"""The processes of `serving_soak.py`: a model server, and exporters that write versions or die."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import subprocess
import sys
import threading
import time

import psutil

HERE = pathlib.Path(__file__).parent
TIMEOUT = 600  # seconds: a busy machine is no fault


class ServerProcess:
    """The server of the tests in a process of its own; use it as a context.

    Attributes:
        address: of its gRPC.
        versions: the numbers that it has loaded, in their order.
        memory: its resident memory in MiB, every half second.
        memory_at: the same, when each of the versions had been loaded.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        program = str(HERE / "official_server.py")
        command = [sys.executable, program, str(folder), "--port=0", "--rest_port=0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = ""
        self.versions: list[int] = []
        self.memory: list[float] = []
        self.memory_at: list[float] = []
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> ServerProcess:
        if not self._ready.wait(TIMEOUT):
            raise TimeoutError("the server does not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def wait_for(self, number: int) -> None:
        """Waits until a version is loaded, at most `TIMEOUT` seconds."""
        end = time.monotonic() + TIMEOUT
        while number not in self.versions and time.monotonic() < end:
            time.sleep(0.1)

    def _read(self) -> None:
        for line in self._process.stdout or ():
            words = line.split()
            if words[0] == "Version":
                self.memory_at.append(self.memory[-1] if self.memory else math.nan)
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

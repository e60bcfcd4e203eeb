"""The disturbances of `soak.py`: each yields how its attempts ended."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

import forking
import psutil
from damages import damages as damaged_checkpoints
from soaked_runs import FLAGS, Runs, last_words, state, traceback_in

from amaml_tf.commands import evaluate, export, train
from amaml_tf.training import LOG_FILE

_WAYS = ("vectorize", "jit_compile")
#: A run that is killed before each of its operations is short: one checkpoint is removed in it.
_SHORT = ("--num_meta_steps=4", "--checkpoint_every=1")
_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def kills(runs: Runs, count: int, rng: random.Random) -> Iterator[str]:
    """Kills each run one to three times at random moments; the same command then ends it."""
    for _ in range(count):
        workdir = runs.new()
        for _ in range(rng.randint(1, 3)):
            runs.stopped(workdir, rng)
        yield runs.end(workdir)
        shutil.rmtree(workdir)


def signals(runs: Runs, count: int, rng: random.Random) -> Iterator[str]:
    """Sends signals at random moments, a second one now and then, to runs that then go on."""
    workdir = runs.new()
    for _ in range(count):
        process = runs.at_a_moment(workdir, rng)
        number = rng.choice(list(_STATUS))
        second = rng.choice(list(_STATUS)) if rng.random() < 0.2 else None
        process.send(number)
        if second is not None:
            time.sleep(rng.uniform(0, 0.2))
            with contextlib.suppress(ProcessLookupError):
                process.send(second)
        sent = [number] if second is None else [number, second]
        yield _of_signal(process.end(), sent)
        if "evaluation.json" in state_names(workdir):
            compared = runs.end(workdir)
            if compared != "same":
                yield f"after signals: {compared}"
            workdir = runs.new()
    compared = runs.end(workdir)
    if compared != "same":
        yield f"after signals: {compared}"


def _of_signal(ended: forking.Ended, sent: Sequence[signal.Signals]) -> str:
    finished = "Written to" in ended.output
    expected = {_STATUS[each] for each in sent}
    if trace := traceback_in(ended):
        return f"traceback: {last_words(ended)}: {trace[:1500]}"
    if ended.status == 0 or (finished and -ended.status in sent):
        return "same: it was finished" if finished else f"ended too early: {last_words(ended)}"
    if -ended.status in sent[1:]:
        return "told, and ended by the second one while it ended"
    if ended.status not in expected:
        return f"another status: {last_words(ended)}"
    told = "run the same command again to go on" in ended.output
    return "told, with its status" if told else f"not told: {last_words(ended)}"


def state_names(workdir: pathlib.Path) -> list[str]:
    return [path.name for path in workdir.iterdir()] if workdir.is_dir() else []


def damages(runs: Runs, count: int, rng: random.Random) -> Iterator[str]:
    """Damages checkpoints, in a process that may use TensorFlow itself."""
    seed, ends = rng.random(), runs.folder / "ends"

    def run(begin: object) -> None:
        with ends.open("w") as file:
            for end in damaged_checkpoints(runs.folder / "damages", count, random.Random(seed)):
                print(end, file=file)

    ended = forking.Process(run, runs.folder / "output").end()
    yield from ends.read_text().splitlines()
    if ended.status:
        yield last_words(ended)


def disks(runs: Runs, count: int, rng: random.Random) -> Iterator[str]:
    """Fills the disk of each run at a random moment, and makes room again."""
    mounted = runs.folder / "disk"
    mounted.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mounted)]
    for _ in range(count):
        if subprocess.run(mount, capture_output=True).returncode:
            yield "skipped: this user may not mount a tmpfs"
            return
        try:
            yield _full_disk(runs, mounted, rng)
        finally:
            subprocess.run(["umount", str(mounted)], check=True)


def _full_disk(runs: Runs, mounted: pathlib.Path, rng: random.Random) -> str:
    workdir, ballast = mounted / "run", mounted / "ballast"
    warns = rng.random() < 0.5
    flags = ["--on_save_failure=warn"] if warns else []
    process = runs.at_a_moment(workdir, rng, *flags)
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(2**12)):
            pass
    if warns:
        process.wait_for_work(rng.uniform(0, runs.seconds))
        ballast.unlink()
    ended = process.end()
    ballast.unlink(missing_ok=True)
    if traceback_in(ended) or ended.status not in (0, 1):
        return f"not told: {last_words(ended)}"
    if ended.status == 1 and "Expected" not in last_words(ended):
        return f"not told: {last_words(ended)}"
    compared = runs.end(workdir)
    how = "finished" if ended.status == 0 else "stopped and told"
    return f"same, {how}" if compared == "same" else compared


def memory(runs: Runs, count: int, rng: random.Random) -> Iterator[str]:
    """Limits the memory of each run to little more than it has, and then lets it go on."""
    for _ in range(count):
        workdir, more = runs.new(), rng.randrange(2**20, 2**29)

        def limit(more: int = more) -> None:
            size = psutil.Process().memory_info().vms + more
            resource.setrlimit(resource.RLIMIT_AS, (size, size))

        ended = runs.started(workdir, first=limit).end()
        how = {0: "finished", 1: "told"}.get(ended.status, "ended by the system")
        compared = runs.end(workdir)
        yield f"same, {how}" if compared == "same" else compared
        shutil.rmtree(workdir)


def clocks(runs: Runs, count: int, rng: random.Random) -> Iterator[str]:
    """Lets the clock of each run jump; it is killed once, and goes on by another clock."""
    for _ in range(count):
        workdir = runs.new()
        for _ in range(2):
            seed = rng.randrange(1, 2**31)
            runs.stopped(workdir, rng, first=lambda seed=seed: forking.let_the_clock_jump(seed))
        yield runs.end(workdir)
        shutil.rmtree(workdir)


def deterministic(runs: Runs, count: int, rng: random.Random) -> Iterator[str]:
    """Makes the same run in other ways, on one core or all, stopped once: it has the same bits."""
    quiet = runs.new()
    runs.started(quiet, "--deterministic").end()
    expected = state(quiet)
    for _ in range(count):
        workdir = runs.new()
        for is_last in (False, True):
            flags = [f"--{name}={rng.choice(['auto', 'on', 'off'])}" for name in _WAYS]
            cores = [0] if rng.random() < 0.5 else range(psutil.cpu_count())
            first = functools.partial(os.sched_setaffinity, 0, cores)
            if is_last:
                ended = runs.started(workdir, "--deterministic", *flags, first=first).end()
            else:
                runs.stopped(
                    workdir, rng, "--deterministic", *flags, by=signal.SIGTERM, first=first
                )
        if ended.status:
            yield last_words(ended)
        else:
            yield "same bits" if state(workdir) == expected else "other bits"
        shutil.rmtree(workdir)


def operations(runs: Runs, every: int, name: str) -> Iterator[str]:
    """Kills a command before its file operations, one in a run; it is then called again."""
    module = {"train": train, "evaluate": evaluate, "export": export}[name]
    expected = _called(runs, module, runs.new(), None)
    number, is_over = 0, False
    while not is_over:
        workdir = runs.new()
        killed = _called(runs, module, workdir, number)
        is_over = killed is not None
        if not is_over:
            found = _called(runs, module, workdir, None)
            yield "same" if found == expected else f"differs before operation {number}"
        shutil.rmtree(workdir)
        number += every


def _called(
    runs: Runs, module: object, workdir: pathlib.Path, number: int | None
) -> list[tuple[str, object]] | None:
    """Calls a command; returns what is then there, None if it was killed."""
    if module is not train and not workdir.exists():
        shutil.copytree(runs.quiet, workdir)
    flags = (*FLAGS, *_SHORT) if module is train else ()
    process = forking.started(
        module,  # type: ignore[arg-type]
        *flags,
        f"--workdir={workdir}",
        output=runs.folder / "output",
        first=lambda: None if number is None else forking.kill_before(workdir, number),
    )
    ended = process.end()
    if number is not None and ended.status == -signal.SIGKILL:
        return None
    if ended.status != 0:
        return [("failed", last_words(ended))]
    found = state(workdir)
    # The bytes of an export are not the same twice; its files are.
    return [(n, None if n.startswith("export/") else found[n]) for n in sorted(found)]


def steps(folder: pathlib.Path, count: int) -> Iterator[str]:
    """Measures the resident memory of a run of the sine waves, with a cheap inner run."""
    workdir, rows = folder / "long", 100
    flags = [
        "--num_support=10",
        "--num_query=10",
        "--hidden_units=32,32",
        "--activation=tanh",
        "--algorithm=maml",
        "--step_size=0.01",
        "--num_steps=5",
        "--meta_batch_size=25",
        f"--num_meta_steps={count}",
        f"--log_every={count // rows}",
        f"--workdir={workdir}",
    ]
    process = forking.started(train, *flags, output=folder / "output")
    sizes: dict[int, int] = {}
    while process.is_alive():
        time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
            last = (workdir / LOG_FILE).read_text().splitlines()[-1]
            step = int(last.split(",")[0])
            sizes.setdefault(step, psutil.Process(process.number).memory_info().rss)
    process.end()
    for step in sorted(sizes)[:: rows // 10]:
        print(f"meta-step {step}: {sizes[step] / 2**20:.1f} MiB", flush=True)
    first, last_one = sizes[min(sizes)], sizes[max(sizes)]
    growth = last_one / first - 1
    end = f"of {max(sizes)} meta-steps {growth:+.1%} since {min(sizes)}"
    yield f"within 5%: {end}" if growth < 0.05 else f"grows: {end}"

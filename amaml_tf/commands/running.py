"""Running a command: its flags, and how a mistake is told."""

from __future__ import annotations

import errno
import io
import logging
import pathlib
import sys
from collections.abc import Callable

import tensorflow as tf
from absl import app, flags
from absl import logging as absl_logging

from amaml_tf.commands import flag_files
from amaml_tf.commands.flags import define
from amaml_tf.errors import TOLD, UsageError
from amaml_tf.experiment import Experiment
from amaml_tf.functional import execution
from amaml_tf.tasks.late_errors import unwrapped
from amaml_tf.training import stopping
from amaml_tf.training.stopping import Stopped
from amaml_tf.training.telling import tell

FLAGS = flags.FLAGS

# A full, read-only, forbidden, broken or lost disk, and names that stand for no file there.
_OF_THE_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
)


def run(main: Callable[[type[Experiment]], None], kind: type[Experiment] = Experiment) -> None:
    """Parses the flags and calls `main`; tells a user's mistake in one sentence.

    Errors that tell of a mistake or of a failure that a user can do something about (`TOLD`) end
    the command with exit status 1. All others come with their traceback. SIGINT, SIGTERM and SIGHUP
    end it with exit status 130, 143 and 129, as shells expect, within the seconds of --stop_within.

    Args:
        main: the command, a function of `kind`.
        kind: `Experiment`, or a subclass that declares further settings.
    """
    name = pathlib.Path(sys.argv[0]).stem

    def guarded(arguments: list[str]) -> None:
        if not FLAGS["verbosity"].present:
            absl_logging.set_verbosity(absl_logging.ERROR)  # TensorFlow notes much that is no news
        logging.getLogger("amaml_tf").setLevel(logging.WARNING)  # tells what was left out of data
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a path can be no text
        execution.compile_quickly()
        _prepare_gpus()
        try:
            if arguments[1:]:
                raise UsageError(
                    f"Expected flags alone, got {' '.join(arguments[1:])!r}; write --NAME=VALUE."
                )
            with stopping.caught(name, FLAGS.stop_within), unwrapped():
                main(kind)
        except KeyboardInterrupt as interruption:
            stopped = (
                interruption if isinstance(interruption, Stopped) else Stopped(str(interruption))
            )
            again = f"{stopping.by_what(stopped.number)}; run the same command again to go on."
            tell(f"{name}: {str(stopped) or again}")
            sys.exit(stopped.status)
        except TOLD as error:
            sys.exit(f"{name}: {error}")
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            reason = " ".join(str(error).split())
            sys.exit(
                f"{name}: Expected settings whose run fits in memory, got more ({reason:.200}); "
                "choose smaller sizes."
            )
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            sys.exit(
                f"{name}: Expected to be able to use {error.filename or 'a file'}, got: "
                f"{error.strerror}; make room there, give this user the right, pass another name, "
                "or wait until the disk is there again, and run the same command again."
            )

    define(kind)
    for module in ("amaml_tf.commands.flags", main.__module__):
        for flag in FLAGS.get_flags_for_module(module):
            FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # so that --help shows them
    app.run(guarded, flags_parser=flag_files.parse)


def _prepare_gpus() -> None:
    for gpu in tf.config.list_physical_devices("GPU"):
        # Otherwise TensorFlow takes all memory, and two runs cannot share a GPU.
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.experimental.enable_tensor_float_32_execution(FLAGS.tf32)

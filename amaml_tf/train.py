"""`python -m amaml_tf.train` is `amaml-train`."""

import sys

from amaml_tf.commands.train import run
from amaml_tf.training import train as public

if __name__ == "__main__":
    run()
else:
    # An import binds `amaml_tf.train` to what stands here: it stays the function of this name.
    sys.modules[__name__] = public  # type: ignore[assignment]

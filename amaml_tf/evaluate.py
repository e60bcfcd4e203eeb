"""`python -m amaml_tf.evaluate` is `amaml-evaluate`."""

import sys

from amaml_tf.commands.evaluate import run
from amaml_tf.evaluation import evaluate as public

if __name__ == "__main__":
    run()
else:
    # An import binds `amaml_tf.evaluate` to what stands here: it stays the function of this name.
    sys.modules[__name__] = public  # type: ignore[assignment]

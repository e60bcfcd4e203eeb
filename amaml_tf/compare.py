"""`python -m amaml_tf.compare` is `amaml-compare`."""

from amaml_tf.commands.compare import run

if __name__ == "__main__":
    run()

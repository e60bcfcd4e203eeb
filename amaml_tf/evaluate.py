"""`python -m amaml_tf.evaluate` is `amaml-evaluate`."""

from amaml_tf.commands.evaluate import run

if __name__ == "__main__":
    run()

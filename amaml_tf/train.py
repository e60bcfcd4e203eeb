"""`python -m amaml_tf.train` is `amaml-train`."""

from amaml_tf.commands.train import run

if __name__ == "__main__":
    run()

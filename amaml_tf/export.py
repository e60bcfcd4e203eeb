"""`python -m amaml_tf.export` is `amaml-export`."""

from amaml_tf.commands.export import run

if __name__ == "__main__":
    run()

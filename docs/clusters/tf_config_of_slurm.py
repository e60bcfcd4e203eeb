"""Starts a command as a worker of a Slurm job: sets TF_CONFIG from the variables that srun sets.

    srun python tf_config_of_slurm.py amaml-train --distribution=multi_worker ...

Slurm gives each task its GPUs (--gpus-per-task), so this leaves CUDA_VISIBLE_DEVICES alone. The
ports are PORT (default 12345), and the next ones for further tasks of one node.
"""

from __future__ import annotations

import json
import os
import sys


def tf_config(port: int) -> str:
    """Returns the cluster of this job step and the place of this process in it, as JSON."""
    import tensorflow as tf

    # It names no more tasks of a node than it has GPUs, even if it is not to set any.
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=port, gpus_per_node=1024, gpus_per_task=1, auto_set_gpu=False
    )
    cluster = resolver.cluster_spec().as_dict()
    kind, index = resolver.get_task_info()
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


if __name__ == "__main__":
    os.environ["TF_CONFIG"] = tf_config(int(os.environ.get("PORT", "12345")))
    os.execvp(sys.argv[1], sys.argv[1:])

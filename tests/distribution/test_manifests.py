"""The manifests for clusters: what they make of the variables that clusters set."""

import json
import os
import re
import subprocess
import sys

import pytest
from project import ROOT

CLUSTER = ROOT / "docs" / "clusters"
COMMAND = [sys.executable, "-c", "import os; print(os.environ['TF_CONFIG'])"]


def test_slurm_variables():
    """Four tasks on two nodes, as `srun` describes them; Slurm writes lists of hosts like this."""
    variables = {
        "SLURM_PROCID": "3",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "node[07-08]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [sys.executable, str(CLUSTER / "tf_config_of_slurm.py"), *COMMAND],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {
        "cluster": {"worker": ["node07:12345", "node07:12346", "node08:12345", "node08:12346"]},
        "task": {"type": "worker", "index": 3},
    }


def test_the_batch_script_is_a_script():
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sbatch")], check=True)


def test_kubernetes_variables():
    """The shell command of the pod, with the index that Kubernetes gives to the pod."""
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"]
    (worker,) = pod["containers"]
    (shell,) = worker["args"]
    setting = re.sub(r"&&.*", "", shell, flags=re.DOTALL)
    done = subprocess.run(
        [*worker["command"], f'{setting}; echo "$TF_CONFIG"'],
        env=os.environ | {"JOB_COMPLETION_INDEX": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["task"] == {"type": "worker", "index": 1}
    assert len(found["cluster"]["worker"]) == job["spec"]["completions"]

"""Requests of many clients, good and bad, while versions appear and exporters are killed.

`serving_soak.py` does the same with more of everything, and with real exporters.
"""

import shutil

import pytest

from amaml_tf.saved_model import versions

# Publishes copies of version 1 as an exporter does, without the work of exporting.
COPIER = """
import pathlib, shutil, sys, time
from amaml_tf.saved_model import versions
root = pathlib.Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with versions.unfinished(root) as folder:
        shutil.copytree(root / "1", folder, dirs_exist_ok=True)
        print("exporting", flush=True)
        time.sleep(1)
        versions.publish(folder, root, None)
"""


@pytest.mark.long
def test_good_ones_are_right_and_bad_ones_refused(served, client_module, tmp_path):
    pytest.importorskip("psutil", reason="psutil is not there: pip install '.[test]'")
    import serving_soak as soak

    folder = tmp_path / "initialization"
    shutil.copytree(served[1], folder)
    exporters, outcomes = soak.Exporters(COPIER, folder, seconds=1), soak.Outcomes()
    with soak.ServerProcess(folder) as server:
        for kind in (*soak.MALFORMED, *soak.HOSTILE):
            outcomes.ask(client_module.Client(server.address, "initialization"), kind, 0)
        memory = outcomes.send_while(exporters, server, requests=400, versions=2, kills=1)
    assert outcomes.all_as_they_should_be, outcomes.table()
    assert soak.numbers(folder) == [1, 2, 3]
    assert server.versions in ([1, 2, 3], [1, 3])  # as fast as it loads them
    # Version 1 is unloaded for version 3. Each takes about 50 MiB.
    assert max(server.memory) < memory + 200
    with versions.unfinished(folder):
        pass
    assert len(list(folder.iterdir())) == 3  # what the killed one left is gone

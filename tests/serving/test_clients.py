"""The clients of export/, unchanged, against a server of the official services."""

import json
import os
import subprocess
import sys

import grpc
import numpy as np
import pytest
from serving_data import EXPORT, examples, write_csv

SUPPORT, QUERY = examples(12, seed=1), examples(5, seed=2)


@pytest.fixture(scope="module")
def server(served, client_module):
    from official_server import Server

    with Server(served[1]) as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return (
        write_csv(folder / "support.csv", *SUPPORT),
        write_csv(folder / "query.csv", QUERY[0]),
    )


@pytest.fixture(scope="module")
def expected(served):
    return served[0].adapt(SUPPORT).predict(QUERY[0], verbose=0)


def run(*command):
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def test_grpc(server, client_module, files, expected, monkeypatch, capsys):
    for option in ([], ["--adapt_once"]):
        arguments = ["client_grpc.py", f"--server={server.address}", *option]
        arguments += [f"--support={files[0]}", f"--query={files[1]}"]
        monkeypatch.setattr(sys, "argv", arguments)
        client_module.main()
        out, err = capsys.readouterr()
        found = np.array([[float(cell) for cell in row.split(",")] for row in out.split()])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert "after adaptation" in err


def test_grpc_tells_what_was_wrong(server, client_module, files, tmp_path, monkeypatch):
    bad = write_csv(tmp_path / "bad.csv", SUPPORT[0], SUPPORT[1] * np.nan)
    arguments = [f"--server={server.address}", f"--support={bad}", f"--query={files[1]}"]
    monkeypatch.setattr(sys, "argv", ["client_grpc.py", *arguments])
    with pytest.raises(SystemExit) as error:
        client_module.main()
    assert "INVALID_ARGUMENT: " in str(error.value)
    assert "Expected support_y" in str(error.value)


def test_rest(server, files, expected):
    pytest.importorskip("requests", reason="requests is not there: pip install '.[serving]'")
    done = run(
        sys.executable,
        EXPORT / "client_rest.py",
        f"--server={server.rest_address}",
        f"--support={files[0]}",
        f"--query={files[1]}",
    )
    assert done.returncode == 0, done.stderr
    found = np.array([[float(cell) for cell in row.split(",")] for row in done.stdout.split()])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_curl(server, files, expected):
    done = run(EXPORT / "client_curl.sh", *files, server.rest_address)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["outputs"]
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)


def test_images(client_module, tmp_path):
    import examples as reading

    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not there")
    for label in range(2):
        (tmp_path / f"class_{label}").mkdir()
        for n in range(3):
            image = image_module.new("L", (10, 10), 100 * label + n)
            image.save(tmp_path / f"class_{label}" / f"{n}.png")
    x, y = reading.read_support(tmp_path, "uint8", [5, 5, 1], "int32", 1)
    assert x.shape == (6, 5, 5, 1)
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert x[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    queries = reading.read_queries(tmp_path / "class_1", "float32", [5, 5, 1])
    np.testing.assert_allclose(queries[:, 0, 0, 0], np.array([100, 101, 102]) / 255, rtol=1e-6)


def test_status_and_unknown_models(server, client_module):
    from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

    stub = model_service_pb2_grpc.ModelServiceStub(grpc.insecure_channel(server.address))
    status = stub.GetModelStatus(get_model_status_pb2.GetModelStatusRequest())
    assert [each.version for each in status.model_version_status] == [1]
    with pytest.raises(grpc.RpcError) as error:
        client_module.Client(server.address, "other").call("serving_default", x=QUERY[0])
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_configuration_is_what_the_server_reads():
    pytest.importorskip("tensorflow_serving")
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = text_format.Parse(
        (EXPORT / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    assert model.name == "initialization"
    assert model.model_version_policy.latest.num_versions == 2

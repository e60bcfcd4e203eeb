"""The clients of export/, unchanged, against a server of the official services."""

import importlib
import json
import os
import subprocess
import sys
import time

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


@pytest.fixture
def call(client_module, monkeypatch, capsys):
    """Runs a client in this process; returns its predictions, or what it exits with."""

    def call(module, server, support, query, *options):
        arguments = [f"--server={server}", f"--support={support}", f"--query={query}", *options]
        monkeypatch.setattr(sys, "argv", ["client.py", *arguments])
        try:
            module.main()
        except SystemExit as error:
            return str(error)
        out, err = capsys.readouterr()
        assert "after adaptation" in err
        header, *rows = out.splitlines()
        assert header == "predictions"
        return np.array([[float(cell) for cell in row.split(",")] for row in rows])

    return call


@pytest.fixture(scope="module")
def rest_module(client_module):
    pytest.importorskip("requests", reason="requests is not there: pip install '.[serving]'")
    return importlib.import_module("client_rest")


def test_grpc(server, call, client_module, files, expected):
    for options in ([], ["--adapt_once"], ["--version=1"]):
        found = call(client_module, server.address, *files, *options)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rest(server, call, rest_module, files, expected):
    found = call(rest_module, server.rest_address, *files)
    np.testing.assert_allclose(found, expected, atol=1e-5)


NUMBERS = "a,b,y\r\n7,1.5,3\r\n8,2,4\r\n\r\n", "a,b\n9,0\n"
ITEMS = "item,y\n7,3\n8,4\n", "item\n9\n"
BEARS = "item,y\n7,3\nthe bear,4\n", "item\n9\n"


@pytest.mark.parametrize(
    ("kind", "texts", "x", "y", "query"),
    [
        ({}, NUMBERS, [[7, 1.5], [8, 2]], [[3], [4]], [[9, 0]]),
        ({"LABELS": "1"}, NUMBERS, [[7, 1.5], [8, 2]], [3, 4], [[9, 0]]),
        ({"IDENTIFIERS": "1"}, ITEMS, [7, 8], [[3], [4]], [9]),
        ({"IDENTIFIERS": "words"}, BEARS, ["7", "the bear"], [[3], [4]], ["9"]),
    ],
)
def test_curl_is_told_what_the_columns_are(tmp_path, kind, texts, x, y, query):
    (tmp_path / "curl").write_text("#!/bin/sh\ncat\n")  # shows what would be sent
    (tmp_path / "curl").chmod(0o755)
    files = tmp_path / "support.csv", tmp_path / "query.csv"
    for path, text in zip(files, texts, strict=True):
        path.write_text(text, newline="")
    environment = {**os.environ, **kind, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [EXPORT / "client_curl.sh", *files]
    sent = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    expected = {"support_x": x, "support_y": y, "query_x": query}
    assert json.loads(sent) == {"signature_name": "adapt_and_predict", "inputs": expected}


def test_curl(server, files, expected, tmp_path):
    done = run(EXPORT / "client_curl.sh", *files, server.rest_address)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["outputs"]
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)
    done = run(EXPORT / "client_curl.sh", files[1], files[1], server.rest_address)
    assert done.returncode == 22
    assert "Expected support_x" in json.loads(done.stdout)["error"]


def test_arrays_by_name(server, call, client_module, expected, tmp_path):
    support, query = tmp_path / "support.npz", tmp_path / "query.npz"
    np.savez(support, support_x=SUPPORT[0], support_y=SUPPORT[1])
    np.savez(query, query_x=QUERY[0])
    found = call(client_module, server.address, support, query)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    told = call(client_module, server.address, query, query)
    assert "Expected support_x, support_y in" in told


# -- what goes wrong is told in a sentence ---------------------------------------------------------


def test_the_server_tells_what_is_wrong(server, call, client_module, rest_module, files, tmp_path):
    bad = write_csv(tmp_path / "bad.csv", SUPPORT[0], SUPPORT[1] * 1e30)
    told = call(client_module, server.address, bad, files[1])
    assert told.startswith("INVALID_ARGUMENT: ")
    assert "that the model can adapt to, got" in told
    told = call(rest_module, server.rest_address, bad, files[1])
    assert told.startswith("400: ")
    assert "that the model can adapt to, got" in told


def test_no_server(call, client_module, rest_module, files):
    for module in (client_module, rest_module):
        told = call(module, "localhost:1", *files)
        assert told.startswith("Expected a model server at localhost:1, got no connection")


def test_no_such_model(server, call, client_module, rest_module, files):
    told = call(client_module, server.address, *files, "--model=other")
    assert "Servable not found: other; look at --model" in told
    told = call(client_module, server.address, *files, "--version=7")
    assert "version 7; look at --model" in told
    assert "404: Servable" in call(rest_module, server.rest_address, *files, "--model=other")


def test_deadlines(server, call, client_module, rest_module, files, monkeypatch):
    def late(call):
        def wait(*given):
            time.sleep(1)
            return call(*given)

        return wait

    version = server.newest
    for module, address, name in (
        (client_module, server.address, "answer"),
        (rest_module, server.rest_address, "predict"),
    ):
        monkeypatch.setattr(version, name, late(getattr(version, name)))
        told = call(module, address, *files, "--timeout=0.2")
        assert told.startswith("Expected an answer within 0.2 s")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a,b\n1,2\n", "Expected 2 columns of inputs and 1 of targets in .*, got 2 columns and 1"),
        ("a,b,c,y\n1,2,3,4\n", "got 4 columns"),
        ("a,b,y\n", "got 3 columns and 0 rows"),
        ("a,b,y\n1,2,3\n1,red,3\n", "Expected float32 in column 'b' of .*, got 'red', line 3"),
        ("a,b,y\n1,nan,3\n", "Expected float32 in column 'b' of .*, got 'nan', line 2"),
        ("a,b,y\n1,2\n", "Expected 3 cells in line 2 of .*, got 2"),
        ("a,b,y\n1,1e39,3\n", "Expected float32 in column 'b' of .*, got '1e39', line 2"),
        ("a,\xe4,y\n1,2,3\n", "Expected a CSV file in UTF-8, got"),
        ('a,b,y\n1,2,"3\n4,5,6\n', "Expected a CSV file in UTF-8, got"),
    ],
)
def test_csv_files(reading, content, told, tmp_path):
    (tmp_path / "support.csv").write_text(content, encoding="latin-1")
    specs = {"support_x": ("float32", [-1, 2]), "support_y": ("float32", [-1, 1])}
    with pytest.raises(SystemExit, match=told):
        reading.read(tmp_path / "support.csv", tmp_path / "support.csv", specs)


def test_columns_in_another_order(reading, tmp_path):
    """They would be taken for each other."""
    support, query = tmp_path / "support.csv", tmp_path / "query.csv"
    support.write_text("a,b,y\n1,2,3\n", encoding="utf-8-sig")
    query.write_text("b,a\n2,1\n")
    x = ("float32", [-1, 2])
    specs = {"support_x": x, "support_y": ("float32", [-1, 1]), "query_x": x}
    with pytest.raises(SystemExit, match=r"Expected the columns a, b of .* in .*, got b, a; put"):
        reading.read(support, query, specs)
    done = run(EXPORT / "client_curl.sh", support, query, "localhost:1")
    assert done.returncode == 2
    assert "got b,a; put them in one order." in done.stderr


def test_numbers_that_a_dtype_does_not_have(reading, tmp_path):
    """They would become others."""
    specs = {"support_x": ("float32", [-1, 1]), "support_y": ("int32", [-1])}
    (tmp_path / "s.csv").write_text("a,y\n1,3000000000\n")
    with pytest.raises(SystemExit, match=r"Expected int32 in column 'y' of .*, got '3000000000'"):
        reading.read(tmp_path / "s.csv", tmp_path / "s.csv", specs)
    np.savez(tmp_path / "s.npz", support_x=np.ones((1, 1)), support_y=[0.5])
    with pytest.raises(SystemExit, match=r"Expected support_y of int32 in .*, got other numbers"):
        reading.read(tmp_path / "s.npz", tmp_path / "s.npz", specs)
    (tmp_path / "s.npz").write_text("damaged")
    with pytest.raises(SystemExit, match=r"Expected an \.npz file of arrays of numbers, got"):
        reading.read(tmp_path / "s.npz", tmp_path / "s.npz", specs)


def test_files_that_are_not_there(reading, tmp_path):
    with pytest.raises(SystemExit, match=r"got .*none\.csv"):
        reading.read(tmp_path / "none.csv", tmp_path / "none.csv", {"support_x": ("float32", [-1])})


@pytest.fixture
def reading(client_module):
    return importlib.import_module("examples")


IMAGES = {"support_x": ("uint8", [-1, 5, 5, 1]), "support_y": ("int32", [-1])}


def test_images(reading, tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not there")
    for label in range(2):
        (tmp_path / f"class_{label}").mkdir()
        for n in range(3):
            image = image_module.new("L", (10, 10), 100 * label + n)
            image.save(tmp_path / f"class_{label}" / f"{n}.png")
    queries = {"query_x": ("float32", [-1, 5, 5, 1])}
    found = reading.read(tmp_path, tmp_path / "class_1", IMAGES | queries)
    assert found["support_x"].shape == (6, 5, 5, 1)
    assert found["support_y"].tolist() == [0, 0, 0, 1, 1, 1]
    assert found["support_x"][:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    expected = np.array([100, 101, 102]) / 255
    np.testing.assert_allclose(found["query_x"][:, 0, 0, 0], expected, rtol=1e-6)
    image_module.new("L", (10, 6)).save(tmp_path / "class_0" / "wide.png")
    with pytest.raises(SystemExit, match=r"proportions 5 x 5, got 10 x 6 in .*wide\.png"):
        reading.read(tmp_path, tmp_path / "class_1", IMAGES | queries)
    with pytest.raises(SystemExit, match="Expected a folder of images for each class"):
        reading.read(tmp_path / "class_1", tmp_path / "class_1", IMAGES | queries)
    (tmp_path / "class_0" / "wide.png").write_text("damaged")
    with pytest.raises(SystemExit, match=r"Expected an image, got .*wide\.png"):
        reading.read(tmp_path, tmp_path / "class_1", IMAGES | queries)


def test_identifiers_and_names_of_classes(reading, tmp_path, capsys):
    (tmp_path / "ratings.csv").write_text("film,rating\n9007199254740993,4\n2.0,3.5\n")
    specs = {
        "support_x": ("int64", [-1]),
        "support_y": ("float32", [-1, 1]),
        "query_x": ("int64", [-1]),
    }
    found = reading.read(tmp_path / "ratings.csv", tmp_path / "ratings.csv", specs)
    assert found["support_x"].tolist() == found["query_x"].tolist() == [9007199254740993, 2]
    assert found["support_y"].tolist() == [[4], [3.5]]
    answer = {"predictions": [[1.0, 2.0]], "classes": [b"red"], "gradient_evaluations": 3}
    reading.write(answer | {"support_loss_before": 1, "support_loss_after": 0.5})
    assert capsys.readouterr().out == "predictions_0,predictions_1,classes\n1.0,2.0,red\n"


def test_status_and_unknown_models(server, client_module):
    from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

    stub = model_service_pb2_grpc.ModelServiceStub(grpc.insecure_channel(server.address))
    status = stub.GetModelStatus(get_model_status_pb2.GetModelStatusRequest())
    assert [each.version for each in status.model_version_status] == [1]
    with pytest.raises(grpc.RpcError) as error:
        client_module.Client(server.address, "other").call("serving_default", x=QUERY[0])
    assert error.value.code() == grpc.StatusCode.NOT_FOUND

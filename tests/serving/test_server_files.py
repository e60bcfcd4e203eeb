"""The files that configure a model server hold what the server reads."""

import re
import shutil
import subprocess

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf import wrappers_pb2 as _  # noqa: F401 - so that the pool knows them
from serving_data import EXPORT

README = (EXPORT / "README.md").read_text()

# The messages that tensorflow-serving-api leaves out, with the numbers of their fields:
# tensorflow_serving/servables/tensorflow/session_bundle_config.proto and
# tensorflow_serving/config/monitoring_config.proto.
MESSAGES: dict[str, dict[str, tuple]] = {
    "BatchingParameters": {
        "max_batch_size": (1, "google.protobuf.Int64Value"),
        "batch_timeout_micros": (2, "google.protobuf.Int64Value"),
        "max_enqueued_batches": (3, "google.protobuf.Int64Value"),
        "num_batch_threads": (4, "google.protobuf.Int64Value"),
        "thread_pool_name": (5, "google.protobuf.StringValue"),
        "pad_variable_length_inputs": (7, bool),
    },
    "PrometheusConfig": {"enable": (1, bool), "path": (2, str)},
    "MonitoringConfig": {"prometheus_config": (1, "tests.PrometheusConfig")},
}
FIELD = descriptor_pb2.FieldDescriptorProto
TYPES: dict[type, int] = {bool: FIELD.TYPE_BOOL, str: FIELD.TYPE_STRING}


@pytest.fixture(scope="module")
def message():
    """Makes an empty message by its name."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tests.proto",
        package="tests",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    for name, fields in MESSAGES.items():
        added = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            made = added.field.add(name=field, number=number, label=1)
            if isinstance(kind, str):
                made.type_name = f".{kind}"
            else:
                made.type = TYPES[kind]
    pool = descriptor_pool.Default()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return lambda name: message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"tests.{name}")
    )()


def parsed(name, message):
    return text_format.Parse((EXPORT / name).read_text(), message)


def model_of(text):
    pytest.importorskip(
        "tensorflow_serving", reason="tensorflow-serving-api is not there: pip install '.[serving]'"
    )
    from tensorflow_serving.config import model_server_config_pb2

    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    return model


def test_models():
    model = model_of((EXPORT / "models.config").read_text())
    assert (model.name, model.model_platform) == ("initialization", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 2


def test_the_roll_back_of_the_readme():
    (policy,) = re.findall(r"^    (model_version_policy .*)$", README, re.MULTILINE)
    text = (EXPORT / "models.config").read_text()
    model = model_of(re.sub(r"model_version_policy .*", policy, text))
    assert list(model.model_version_policy.specific.versions) == [3]


def test_monitoring(message):
    config = parsed("monitoring.config", message("MonitoringConfig"))
    assert config.prometheus_config.enable
    assert f"localhost:8501{config.prometheus_config.path}`" in README


def test_batching(message):
    from amaml_tf.saved_model.bounds import TASKS

    config = parsed("batching.config", message("BatchingParameters"))
    assert config.max_batch_size.value == TASKS
    assert not config.pad_variable_length_inputs  # its rows would count: their weight would be 1


def test_compose_starts_the_server_with_these_files():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not there")
    service = yaml.safe_load((EXPORT / "docker-compose.yaml").read_text())["services"]["serving"]
    mounted = dict(volume.split(":")[:2] for volume in service["volumes"])
    assert mounted == {"./exports/initialization": "/models/initialization", ".": "/config"}
    flags = dict(flag.removeprefix("--").split("=") for flag in service["command"])
    for name in ("model_config_file", "monitoring_config_file"):
        assert (EXPORT / flags.pop(name).removeprefix("/config/")).is_file()
    assert flags == {
        "file_system_poll_wait_seconds": "10",
        "model_config_file_poll_wait_seconds": "10",
    }
    assert service["ports"] == ["8500:8500", "8501:8501"]
    model = model_of((EXPORT / "models.config").read_text())
    assert model.base_path in mounted.values()


def test_docker_reads_the_compose_file():
    docker = shutil.which("docker") or ""
    if not docker or subprocess.run([docker, "compose", "version"], check=False).returncode:
        pytest.skip("docker compose is not there")
    path = str(EXPORT / "docker-compose.yaml")
    subprocess.run([docker, "compose", "--file", path, "config", "--quiet"], check=True)

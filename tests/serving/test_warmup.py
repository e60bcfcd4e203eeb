"""The warm-up file of an export holds the messages that TensorFlow Serving replays."""

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip(
    "tensorflow_serving", reason="tensorflow-serving-api is not there: pip install '.[serving]'"
)


@pytest.fixture(scope="module")
def loaded(served):
    from loaded_version import LoadedVersion

    return LoadedVersion(served[1] / "1")


@pytest.fixture(scope="module")
def logs(served):
    from loaded_version import warmup_logs

    return warmup_logs(served[1] / "1")


def test_there_is_a_prediction_for_each_signature(loaded, logs):
    assert {log.WhichOneof("log_type") for log in logs} == {"predict_log"}
    names = [log.predict_log.request.model_spec.signature_name for log in logs]
    assert sorted(names) == sorted(loaded.signatures)


def test_nothing_is_in_a_field_that_the_messages_lack(logs):
    from google.protobuf.unknown_fields import UnknownFieldSet

    for log in logs:
        request = log.predict_log.request
        for message in (log, log.predict_log, request, request.model_spec):
            assert len(UnknownFieldSet(message)) == 0
        assert request.inputs
        assert not request.output_filter


def test_every_request_is_answered(loaded, logs):
    for log in logs:
        answer = loaded.answer(log.predict_log.request)
        # Adaptation is at rest, so that no step size that is right for the tasks diverges.
        assert np.max(answer.get("support_loss_before", 0)) < 1e-6
        numbers = [np.asarray(v) for v in answer.values() if np.asarray(v).dtype.kind == "f"]
        assert all(np.isfinite(values).all() for values in numbers)


def test_predictions_are_those_of_the_learner(served, loaded, logs):
    requests = {log.predict_log.request.model_spec.signature_name: log for log in logs}
    request = requests["adapt_and_predict"].predict_log.request
    given = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
    adapted = served[0].adapt((given["support_x"], given["support_y"]))
    expected = adapted.predict(given["query_x"], verbose=0)
    np.testing.assert_allclose(loaded.answer(request)["predictions"], expected, atol=1e-5)

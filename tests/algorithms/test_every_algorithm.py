"""Every algorithm, from its flags to an export: nothing that one needs is missing on the way."""

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf import training
from amaml_tf.commands.reporting import report_evaluation
from amaml_tf.experiment import Experiment

SETTINGS: dict[str, Any] = {
    "num_support": 3,
    "num_query": 3,
    "hidden_units": (4,),
    "meta_batch_size": 2,
    "num_eval_episodes": 4,
    "eval_batch_size": 2,
    "jit_compile": "off",
    "vectorize": "off",  # is traced faster
}
FLOW: dict[str, Any] = {"solver": "gradient_descent", "step_size": 0.1, "final_time": 0.2}
WITHOUT_FLOW: dict[str, Any] = {"step_size": 0.1, "num_steps": 2}
IMPLICIT: dict[str, Any] = {"proximal_weight": 1.0, "num_cg_steps": 2, "cg_damping": 0.5}


def own_settings(name: str) -> dict[str, Any]:
    """Settings of an algorithm for two inner steps of 0.1, as its arguments say."""
    arguments = inspect.signature(amaml.algorithms.REGISTRY[name]).parameters
    if "flow" in arguments:
        return FLOW
    return {n: value for n, value in (WITHOUT_FLOW | IMPLICIT).items() if n in arguments}


@pytest.mark.long
@pytest.mark.parametrize("name", amaml.algorithms.REGISTRY)
def test_trains_resumes_evaluates_and_exports(name, tmp_path):
    settings = Experiment(algorithm=name, **SETTINGS, **own_settings(name))
    settings.write(tmp_path)
    family = settings.make_family()
    learner = settings.make_learner(family)
    variables = [*learner.model.trainable_variables, *learner.algorithm_variables]

    def train_to(num_meta_steps):
        training.train(learner, family, tmp_path, num_meta_steps=num_meta_steps, meta_batch_size=2)
        assert learner.optimizer.iterations == num_meta_steps
        return [variable.numpy() for variable in variables]

    reached = train_to(2)
    for variable in [*variables, *learner.optimizer.variables]:
        variable.assign(tf.zeros_like(variable))
    further = dataclasses.replace(Experiment.read(tmp_path), num_meta_steps=3)
    further.require_free_or_own(tmp_path)
    for there, here in zip(reached, train_to(3), strict=True):
        assert np.max(np.abs(here - there)) <= 2 * settings.meta_learning_rate  # a step of Adam

    path = tmp_path / "evaluation.json"
    evaluation = report_evaluation(further, family, learner, 3, path)
    assert path.exists()
    assert evaluation.gradient_evaluations.mean == 2
    assert evaluation.after["loss"].mean != evaluation.before["loss"].mean

    served = tf.saved_model.load(amaml.save_initialization(learner, tmp_path / "export"))
    (support_x, support_y), (query_x, _) = next(
        iter(family.episodes("test", batch_size=1, seed=0, num_batches=1))
    )
    task = (support_x[0], support_y[0])
    np.testing.assert_allclose(
        served.adapt_and_predict(*task, query_x[0])["predictions"],
        learner.adapt(task)(query_x[0]),
        rtol=1e-5,
        atol=1e-6,
    )


def test_settings_reach_implicit_maml():
    settings = Experiment(algorithm="implicit_maml", **WITHOUT_FLOW, **IMPLICIT)
    algorithm = settings.make_algorithm()
    assert isinstance(algorithm, amaml.algorithms.ImplicitMAML)
    assert algorithm.flow.proximal_weight == 1.0
    assert (algorithm.num_cg_steps, algorithm.cg_damping) == (2, 0.5)
    with pytest.raises(ValueError, match="settings that algorithm maml has, got --num_cg_steps"):
        Experiment(algorithm="maml", num_cg_steps=2).make_algorithm()


def test_adjoint_solver_shares_the_flags_of_the_solver():
    settings: dict[str, Any] = {"solver": "gradient_descent", "step_size": 0.1}
    settings["adjoint"] = "continuous"
    flow = Experiment(**settings, adjoint_solver="dormand_prince", rtol=1e-5).make_flow()
    assert isinstance(flow.solver, amaml.solvers.GradientDescent)
    assert isinstance(flow.adjoint_solver, amaml.solvers.DormandPrince)
    assert flow.adjoint_solver.rtol == 1e-5
    both: Any = Experiment(
        adjoint="continuous", adjoint_solver="dormand_prince", rtol=1e-5
    ).make_flow()
    assert both.solver.rtol == both.adjoint_solver.rtol == 1e-5
    assert Experiment(**settings).make_flow().adjoint_solver is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adjoint_solver": "heun"}, "--adjoint=continuous beside --adjoint_solver=heun, got the"),
        ({"adjoint": "continuous", "adjoint_solver": "bdf"}, "Expected adjoint_solver to be one"),
        (
            {"adjoint": "continuous", "adjoint_solver": "dormand_prince", "step_size": 0.1},
            "Expected num_stages with step_size, got none",
        ),
        ({"algorithm": "maml", "adjoint_solver": "heun"}, "maml has, got --adjoint_solver"),
    ],
)
def test_adjoint_solver_that_does_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**settings).make_algorithm()

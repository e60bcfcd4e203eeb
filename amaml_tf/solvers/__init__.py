"""Solvers of initial value problems: all of them `tfp.math.ode.Solver`s."""

from tensorflow_probability import math as _tfp_math

from amaml_tf.solvers.dormand_prince import DormandPrince
from amaml_tf.solvers.gradient_descent import GradientDescent
from amaml_tf.solvers.heun import Heun
from amaml_tf.solvers.one_step import OneStepSolver
from amaml_tf.solvers.runge_kutta4 import RungeKutta4
from amaml_tf.solvers.runge_kutta_chebyshev import RungeKuttaChebyshev

BDF = _tfp_math.ode.BDF

__all__ = [
    "BDF",
    "DormandPrince",
    "GradientDescent",
    "Heun",
    "OneStepSolver",
    "RungeKutta4",
    "RungeKuttaChebyshev",
]

"""Solvers of initial value problems, each a `tfp.math.ode.Solver`.

Each solver's file registers it in `REGISTRY`, and one line here imports it. `--help` lists the
solvers in the order of these lines.
"""
# ruff: noqa: I001 - see above

from amaml_tf.solvers.gradient_descent import GradientDescent as GradientDescent
from amaml_tf.solvers.heun import Heun as Heun
from amaml_tf.solvers.runge_kutta4 import RungeKutta4 as RungeKutta4
from amaml_tf.solvers.runge_kutta_chebyshev import RungeKuttaChebyshev as RungeKuttaChebyshev
from amaml_tf.solvers.dormand_prince import DormandPrince as DormandPrince
from amaml_tf.solvers.adopt import BDF as BDF

from amaml_tf.solvers.tfp_solver import REGISTRY as REGISTRY, OneStepSolver as OneStepSolver

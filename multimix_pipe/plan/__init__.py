"""The plan of a run: every random decision, drawn before anything is decoded. Imports NumPy and SciPy only."""

from multimix_pipe.plan.mixing import draw_mixing
from multimix_pipe.plan.order import LANES
from multimix_pipe.plan.step import Plan, Samples, Schedule, StepPlan

__all__ = ["LANES", "Plan", "Samples", "Schedule", "StepPlan", "draw_mixing"]

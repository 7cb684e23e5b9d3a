"""A run put together: to be trained from its config, or to predict from any path to weights."""

from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.runs.predictor import load
from fsq_jax.runs.startup import begin

__all__ = ["Predictor", "begin", "load"]

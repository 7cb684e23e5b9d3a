"""How far predicted depths are from the true ones, at the size that the data has them in."""

import numpy as np

from fsq_jax.data.transforms import resize_nearest
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.metrics.depth_error import depth_error
from fsq_jax.runtime.user_error import UserError


def evaluate(
    predictor: Predictor, limit: int = 0, min_depth: float = 0.001, max_depth: float = 10.0
) -> tuple[dict[str, float], dict]:
    """depth/rmse (m), depth/abs_rel, depth/log10, depth/delta1, depth/delta2, depth/delta3: means
    over images of each image's own value, as UViM takes them.

    Predictions are brought to the truth's size, each pixel to the nearest. With stage I, they are
    what the true indices decode to: a bound for stage II.

    Args:
      predictor: one whose "prediction" has "depth" [B,H,W] in metres.
      limit: held-out images; 0 for all.
      min_depth, max_depth: the depths, in metres, between which the truth counts as known.
    """
    errors, blank = [], 0
    for outputs, record in predictor.predictions("prediction", limit):
        truth_HW = record["depth"]
        prediction_HW = resize_nearest(outputs["depth"], *truth_HW.shape)
        error = depth_error(prediction_HW, truth_HW, min_depth, max_depth)
        if np.isnan(error["rmse"]):
            blank += 1
        else:
            errors.append(error)
    if not errors:
        raise UserError(f"None of {blank} images has a depth between {min_depth} and {max_depth}.")
    values = {f"depth/{name}": float(np.mean([e[name] for e in errors])) for name in errors[0]}
    return values, {
        "split": predictor.eval_split,
        "num_images": len(errors),
        "images_without_depth": blank,
        "known_between": [min_depth, max_depth],
        "truth_size": list(truth_HW.shape),
        "mean": "over images",
    }

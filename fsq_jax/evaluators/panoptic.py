"""Panoptic quality of predicted segments, at the size that the data has them in."""

import math

from fsq_jax.data.transforms import resize_nearest
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.metrics.panoptic_quality import PanopticQuality, merge_stuff
from fsq_jax.runtime.user_error import UserError


def evaluate(predictor: Predictor, limit: int = 0) -> tuple[dict[str, float], dict]:
    """panoptic/pq, panoptic/sq, panoptic/rq in percent, over all classes, and with _things and
    _stuff over these alone.

    Predictions are brought to the truth's size, each pixel to the nearest. All stuff of one class
    is one segment, in the truth and in the prediction. With stage I, predictions are what the true
    indices decode to: a bound for stage II.

    Args:
      predictor: one whose "prediction" has "segments" [B,H,W,2], and whose data says which
        classes are things.
      limit: held-out images; 0 for all.
    """
    source = predictor.dataset(predictor.eval_split)
    if "things" not in source.meta:
        raise UserError(f"{source.name} does not say which of its segments' classes are things.")
    names, things = source.meta["segment_names"], source.meta["things"]
    quality, count = PanopticQuality.empty(len(names)), 0
    for outputs, record in predictor.predictions("prediction", limit):
        truth = record["segments"]
        prediction = resize_nearest(outputs["segments"], *truth.shape[:2])
        quality = quality.update(
            merge_stuff(prediction, things), merge_stuff(truth, things), record.get("crowd", ())
        )
        count += 1
    stuff = [label for label in range(1, len(names)) if label not in things]
    values = {}
    for suffix, classes in (("", None), ("_things", things), ("_stuff", stuff)):
        result = quality.result(classes)
        if not math.isnan(result["pq"]):  # no class of this kind occurs
            values |= {f"panoptic/{name}{suffix}": 100 * value for name, value in result.items()}
    return values, {
        "split": predictor.eval_split,
        "num_images": count,
        "num_classes": len(names) - 1,
        "num_things": len(things),
        "rules": "panopticapi",
    }

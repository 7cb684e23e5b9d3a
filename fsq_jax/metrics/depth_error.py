"""How far a predicted depth is from the true one, one value per image; in NumPy, since images of
a data set differ in size. Means over images are the caller's: UViM averages RMSEs of images, which
is less than the RMSE of all pixels.

Legend: H, W height and width of an image.
"""

import numpy as np

from fsq_jax.runtime.user_error import UserError

_DELTA = 1.25


def depth_error(
    prediction_HW: np.ndarray,
    truth_HW: np.ndarray,
    min_depth: float = 0.001,
    max_depth: float = 10.0,
) -> dict[str, float]:
    """Returns the errors over the pixels whose true depth is known; all NaN where none is.

        rmse        root of the mean squared error, metres
        abs_rel     mean |prediction - truth| / truth
        log10       mean |log10 prediction - log10 truth|
        delta1..3   share of pixels whose max(prediction / truth, truth / prediction) is below
                    1.25, 1.25^2, 1.25^3

    prediction_HW: metres, above 0; not clipped here.
    truth_HW: metres; known where min_depth < truth < max_depth, both left out.
    Raises UserError for shapes that differ, and for predictions that aren't above 0 where it
    counts.
    """
    if prediction_HW.shape != truth_HW.shape:
        raise UserError(f"Depths of shapes {prediction_HW.shape} and {truth_HW.shape} differ.")
    known = (truth_HW > min_depth) & (truth_HW < max_depth)
    truth = truth_HW[known].astype(np.float64)
    prediction = prediction_HW[known].astype(np.float64)
    if not (prediction > 0).all():
        raise UserError(f"Predicted depths must be above 0; the least is {prediction.min()}.")
    if not len(truth):
        names = ("rmse", "abs_rel", "log10", *(f"delta{k}" for k in (1, 2, 3)))
        return dict.fromkeys(names, np.nan)
    error, ratio = prediction - truth, prediction / truth
    largest = np.maximum(ratio, 1 / ratio)
    values = {
        "rmse": np.sqrt(np.mean(error**2)),
        "abs_rel": np.mean(np.abs(error) / truth),
        "log10": np.mean(np.abs(np.log10(ratio))),
    }
    values |= {f"delta{k}": np.mean(largest < _DELTA**k) for k in (1, 2, 3)}
    return {name: float(value) for name, value in values.items()}

"""Records panoptic_quality.npz: what torchmetrics says of random segmentations.

python tests/metrics/reference/record_torchmetrics.py, with torch and torchmetrics installed.

No pixel of the truth is void: of void, torchmetrics has another notion than COCO. Classes are 1 and
2 (stuff), 3 to 5 (things); the things' instances are 1 to 3.
"""

import pathlib

import numpy as np
import torch
from torchmetrics.detection import PanopticQuality

SIDE = 24


def blocks(rng: np.random.Generator) -> np.ndarray:
    """Segments [H,W,2]: a random class and instance for each rectangle of an uneven grid."""
    rows, columns = (np.sort(rng.integers(1, SIDE, 3)) for _ in range(2))
    cell = np.add.outer(
        4 * np.searchsorted(rows, np.arange(SIDE), "right"),
        np.searchsorted(columns, np.arange(SIDE), "right"),
    )
    semantic = rng.integers(1, 6, 16)[cell]
    return np.stack([semantic, np.where(semantic > 2, rng.integers(1, 4, 16)[cell], 0)], axis=-1)


def main() -> None:
    rng = np.random.default_rng(0)
    truth = np.stack([blocks(rng) for _ in range(12)])
    prediction = truth.copy()
    for segments in prediction:  # moved a little, and up to a third replaced
        segments[:] = np.roll(segments, rng.integers(-1, 2, 2), axis=(0, 1))
        rows = rng.integers(SIDE // 3)
        segments[:rows] = blocks(rng)[:rows]
    values = {"truth": truth.astype(np.int8), "prediction": prediction.astype(np.int8)}
    metric = PanopticQuality(
        things={3, 4, 5}, stuffs={1, 2}, return_sq_and_rq=True, return_per_class=True
    )
    metric.update(torch.tensor(prediction), torch.tensor(truth))
    order = np.array([*metric.things, *metric.stuffs])
    values["per_class"] = metric.compute().numpy()[np.argsort(order)]  # [class 1..5, pq sq rq]
    values["iou"] = metric.iou_sum.numpy()[np.argsort(order)]
    values["true_positives"] = metric.true_positives.numpy()[np.argsort(order)]
    values["false_positives"] = metric.false_positives.numpy()[np.argsort(order)]
    values["false_negatives"] = metric.false_negatives.numpy()[np.argsort(order)]
    np.savez_compressed(pathlib.Path(__file__).parent / "panoptic_quality.npz", **values)


if __name__ == "__main__":
    main()

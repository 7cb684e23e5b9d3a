"""Records panoptic_quality_torchmetrics.npz: what torchmetrics says of random segmentations.

python tests/metrics/reference/record_torchmetrics.py, with torch and torchmetrics installed.

No pixel of the truth is void: of void, torchmetrics has another notion than COCO. Classes are 1 and
2 (stuff), 3 to 5 (things); the things' instances are 1 to 3.
"""

import pathlib

import numpy as np

SIDE = 24


def random_segments(rng: np.random.Generator, void: bool = False) -> np.ndarray:
    """Segments [H,W,2]: a random class and instance for each rectangle of an uneven grid."""
    rows, columns = (np.sort(rng.integers(1, SIDE, 3)) for _ in range(2))
    cell = np.add.outer(
        4 * np.searchsorted(rows, np.arange(SIDE), "right"),
        np.searchsorted(columns, np.arange(SIDE), "right"),
    )
    semantic = rng.integers(0 if void else 1, 6, 16)[cell]
    return np.stack([semantic, np.where(semantic > 2, rng.integers(1, 4, 16)[cell], 0)], axis=-1)


def perturbed(rng: np.random.Generator, segments: np.ndarray, void: bool = False) -> np.ndarray:
    """The same segments, moved a little, up to a third of the rows replaced."""
    moved = np.roll(segments, rng.integers(-1, 2, 2), axis=(0, 1))
    rows = rng.integers(SIDE // 3)
    moved[:rows] = random_segments(rng, void)[:rows]
    return moved


def main() -> None:
    import torch
    from torchmetrics.detection import PanopticQuality

    rng = np.random.default_rng(0)
    truth = np.stack([random_segments(rng) for _ in range(12)])
    prediction = np.stack([perturbed(rng, segments) for segments in truth])
    metric = PanopticQuality(
        things={3, 4, 5}, stuffs={1, 2}, return_sq_and_rq=True, return_per_class=True
    )
    metric.update(torch.tensor(prediction), torch.tensor(truth))
    order = np.argsort([*metric.things, *metric.stuffs])
    np.savez_compressed(
        pathlib.Path(__file__).parent / "panoptic_quality_torchmetrics.npz",
        truth=truth.astype(np.int8),
        prediction=prediction.astype(np.int8),
        per_class=metric.compute().numpy()[order],  # [class 1..5, pq sq rq]
        iou=metric.iou_sum.numpy()[order],
        true_positives=metric.true_positives.numpy()[order],
        false_positives=metric.false_positives.numpy()[order],
        false_negatives=metric.false_negatives.numpy()[order],
    )


if __name__ == "__main__":
    main()

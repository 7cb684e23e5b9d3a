"""Records panoptic_quality_coco.npz: what COCO's panopticapi says of random segmentations.

python tests/metrics/reference/record_panopticapi.py, with panopticapi installed (from
github.com/cocodataset/panopticapi).

As those of record_torchmetrics.py, but a fifth of the truth and of the predictions is void, and in
every other image the instance 1 of each thing is a crowd.
"""

import pathlib
import tempfile

import numpy as np
import PIL.Image
from panopticapi.evaluation import pq_compute_single_core
from record_torchmetrics import perturbed, random_segments

THINGS = (3, 4, 5)


def annotation(segments: np.ndarray, crowd: set, path: pathlib.Path) -> dict:
    """Writes a picture in COCO's format: ids are 16 class + instance + 1. Returns what is in it."""
    semantic, instance = segments[..., 0], segments[..., 1]
    ids = np.where(semantic > 0, 16 * semantic + instance + 1, 0)
    PIL.Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8)).save(path)
    infos = [
        {
            "id": int(i),
            "category_id": int(i // 16),
            "area": int((ids == i).sum()),
            "iscrowd": int(i // 16 in THINGS and i % 16 - 1 in crowd),
        }
        for i in np.unique(ids)
        if i
    ]
    return {"file_name": path.name, "image_id": 0, "segments_info": infos}


def main() -> None:
    rng = np.random.default_rng(1)
    truth = np.stack([random_segments(rng, void=True) for _ in range(16)])
    prediction = np.stack([perturbed(rng, segments, void=True) for segments in truth])
    categories = {c: {"isthing": int(c in THINGS)} for c in range(1, 6)}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        pairs = [
            (
                annotation(truth[i], {1} if i % 2 else set(), folder / f"true{i}.png"),
                annotation(prediction[i], set(), folder / f"predicted{i}.png"),
            )
            for i in range(len(truth))
        ]
        stat = pq_compute_single_core(0, pairs, folder, folder, categories)
    counts = [stat[c] for c in categories]
    values = {
        "truth": truth.astype(np.int8),
        "prediction": prediction.astype(np.int8),
        "iou": np.array([c.iou for c in counts]),
        "true_positives": np.array([c.tp for c in counts]),
        "false_positives": np.array([c.fp for c in counts]),
        "false_negatives": np.array([c.fn for c in counts]),
    }
    for name, isthing in (("all", None), ("things", True), ("stuff", False)):
        result, _ = stat.pq_average(categories, isthing)
        values[name] = np.array([result[k] for k in ("pq", "sq", "rq")])
    np.savez_compressed(pathlib.Path(__file__).parent / "panoptic_quality_coco.npz", **values)


if __name__ == "__main__":
    main()

"""Panoptic quality by the rules of COCO's panoptic API, on the host.

Kirillov et al., "Panoptic Segmentation" (arXiv 1801.00868): a predicted and a true segment of one
class match where their intersection over union is above 1/2, which no two pairs can share. Then,
for each class,

    PQ = (sum of matched IoUs) / (TP + FP / 2 + FN / 2) = SQ RQ
    SQ = mean of matched IoUs        RQ = TP / (TP + FP / 2 + FN / 2)

and PQ, SQ, RQ are means over the classes that occur at all, in the truth or in a prediction.

What is void (class 0) in the truth is in no union. A true segment that is a crowd can neither be
matched nor missed. A predicted segment that is unmatched, and lies for more than half on void and
on crowds of its class, counts for nothing.

Legend: K classes, H, W height and width of an image, P and T predicted and true segments.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from fsq_jax.runtime.user_error import UserError


@dataclasses.dataclass(frozen=True)
class PanopticQuality:
    """Counts of the images seen so far; `update` and `merge` return new ones.

    All [K], class 0 being void: iou, the sum of the IoUs of matches (float64); true_positives,
    false_positives, false_negatives (int64).
    """

    iou: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> "PanopticQuality":
        """Returns the counts of no image; `num_classes` with void."""
        return cls(np.zeros(num_classes), *(np.zeros(num_classes, np.int64) for _ in range(3)))

    def merge(self, other: "PanopticQuality") -> "PanopticQuality":
        """Returns the counts of the images of both."""
        if len(self.iou) != len(other.iou):
            raise UserError(f"{len(self.iou)} classes and {len(other.iou)} can't be merged.")
        fields = [field.name for field in dataclasses.fields(self)]
        return PanopticQuality(*(getattr(self, f) + getattr(other, f) for f in fields))

    def update(
        self, prediction: np.ndarray, truth: np.ndarray, crowd: Sequence[int] = ()
    ) -> "PanopticQuality":
        """Returns the counts with an image added.

        prediction, truth: int [H,W,2], class and instance of each pixel; a segment is what has
            the same two. Stuff that is to be one segment per class needs one instance, see
            `merge_stuff`. Instances are small numbers: tables of that length are made.
        crowd: true instances that are crowds.
        Raises UserError for shapes that differ and for classes that there aren't.
        """
        if prediction.shape != truth.shape or truth.shape[-1] != 2:
            raise UserError(
                f"Segments of shapes {prediction.shape} and {truth.shape} must both be [H,W,2]."
            )
        num_classes = len(self.iou)
        for name, segments in (("predicted", prediction), ("true", truth)):
            if segments.size and (segments.min() < 0 or segments[..., 0].max() >= num_classes):
                raise UserError(
                    f"A {name} segment has class and instance between {segments.min((0, 1))} and "
                    f"{segments.max((0, 1))}; classes are 0 to {num_classes - 1}."
                )
        return self.merge(_count(prediction, truth, crowd, num_classes))

    def result(self, classes: Iterable[int] | None = None) -> dict[str, float]:
        """Returns {"pq", "sq", "rq"}, 0 to 1, means over those of some classes (all but void)
        that occur; NaN where none does."""
        classes = list(range(1, len(self.iou)) if classes is None else classes)
        matched = self.true_positives[classes]
        total = matched + (self.false_positives + self.false_negatives)[classes] / 2
        occurs = total > 0
        if not occurs.any():
            return dict.fromkeys(("pq", "sq", "rq"), np.nan)
        iou, matched, total = self.iou[classes][occurs], matched[occurs], total[occurs]
        return {
            "pq": float(np.mean(iou / total)),
            "sq": float(np.mean(iou / np.maximum(matched, 1))),
            "rq": float(np.mean(matched / total)),
        }


def merge_stuff(segments: np.ndarray, things: Iterable[int]) -> np.ndarray:
    """Returns segments [H,W,2] whose stuff, all classes but `things`, has instance 0."""
    is_thing = np.isin(segments[..., 0], list(things))
    return np.stack([segments[..., 0], np.where(is_thing, segments[..., 1], 0)], axis=-1)


def _segments(segments: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(class [n], instance [n], number of each pixel [H*W]) of the segments that there are. Void
    comes first, as one segment, whether it occurs or not."""
    semantic, instance = segments.reshape(-1, 2).astype(np.int64).T
    base = instance.max(initial=0) + 1
    pair = np.where(semantic > 0, semantic * base + instance, 0)
    occurs = np.bincount(pair) > 0  # np.unique would sort all pixels
    occurs[0] = True
    pairs = np.flatnonzero(occurs)
    return pairs // base, pairs % base, (np.cumsum(occurs) - 1)[pair]


def _count(prediction, truth, crowd, num_classes: int) -> PanopticQuality:
    """The counts of one image."""
    class_P, _, number_P = _segments(prediction)
    class_T, instance_T, number_T = _segments(truth)
    shape = len(class_T), len(class_P)
    shared_TP = np.bincount(number_T * shape[1] + number_P, minlength=shape[0] * shape[1]).reshape(
        shape
    )
    is_crowd_T = np.isin(instance_T, np.asarray(crowd, np.int64)) & (class_T > 0)
    area_P, area_T = shared_TP.sum(axis=0), shared_TP.sum(axis=1)

    union_TP = area_T[:, None] + area_P - shared_TP - shared_TP[0]
    iou_TP = shared_TP / np.maximum(union_TP, 1)
    can_match = (class_T[:, None] == class_P) & (class_P > 0) & ~is_crowd_T[:, None]
    match_TP = can_match & (iou_TP > 0.5)
    matched_T, matched_P = match_TP.any(axis=1), match_TP.any(axis=0)

    # Void is no segment of the truth, nor of the prediction.
    missed_T = ~matched_T & ~is_crowd_T & (class_T > 0)
    on_crowd_P = np.where(is_crowd_T[:, None] & (class_T[:, None] == class_P), shared_TP, 0).sum(0)
    ignored_P = (shared_TP[0] + on_crowd_P) / np.maximum(area_P, 1) > 0.5
    wrong_P = ~matched_P & ~ignored_P & (class_P > 0)

    def per_class(classes, weights=None):
        return np.bincount(classes, weights, minlength=num_classes)

    best_T = np.where(match_TP, iou_TP, 0).sum(axis=1)
    return PanopticQuality(
        per_class(class_T, best_T),
        *(per_class(c) for c in (class_T[matched_T], class_P[wrong_P], class_T[missed_T])),
    )

"""Depth and segments of TFDS data sets with the features of NYU Depth v2 and of COCO panoptic."""

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from fsq_jax import prepare
from fsq_jax.data import pipeline, transforms
from fsq_jax.data.open import open_dataset

IDS = np.array([7, 256 + 9, 3 * 65536 + 2 * 256 + 1])


def encoded(rgb):
    return cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes()


def picture(i):
    return np.random.default_rng(i).integers(0, 256, (6 + i, 8, 3)).astype(np.uint8)


def depth(i):
    return np.random.default_rng(i).uniform(0, 9, (6, 8)).astype(np.float16)


class ToyNyu(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "depth": tfds.features.Tensor(shape=(6, 8), dtype=np.float16),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "validation": self._generate_examples()}

    def _generate_examples(self):
        for i in range(2):
            yield i, {"image": encoded(picture(0)), "depth": depth(i)}


class ToyCoco(ToyNyu):
    """Record i shows its first i of three segments, the last of them a crowd."""

    VERSION = tfds.core.Version("1.1.0")

    def _info(self):
        rgb = tfds.features.Image(shape=(None, None, 3))
        features = tfds.features.FeaturesDict(
            {
                "image": rgb,
                "image/filename": tfds.features.Text(),
                "image/id": tfds.features.Scalar(np.int64),
                "panoptic_image": rgb,
                "panoptic_image/filename": tfds.features.Text(),
                "panoptic_objects": tfds.features.Sequence(
                    {
                        "id": tfds.features.Scalar(np.int64),
                        "area": tfds.features.Scalar(np.int64),
                        "bbox": tfds.features.BBoxFeature(),
                        "label": tfds.features.ClassLabel(num_classes=133),
                        "is_crowd": tfds.features.Scalar(np.bool_),
                    }
                ),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self):
        for i in range(4):
            ids = np.zeros((6 + i, 8), int)
            objects = []
            for k in range(i):
                ids[2 * k : 2 * k + 2] = IDS[k]
                objects.append(
                    {
                        "id": IDS[k],
                        "area": 16,
                        "bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5),
                        "label": (0, 132, 79)[k],
                        "is_crowd": k == 2,
                    }
                )
            png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
            yield (
                i,
                {
                    "image": encoded(picture(i)),
                    "image/filename": f"{i}.jpg",
                    "image/id": i,
                    "panoptic_image": encoded(png),
                    "panoptic_image/filename": f"{i}.png",
                    "panoptic_objects": objects,
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    for builder in (ToyNyu, ToyCoco):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_depth_is_in_float32(data_dir):
    source = open_dataset("tfds:toy_nyu", "validation", 32, data_dir)
    records = [source[i] for i in range(2)]
    assert {r["depth"].dtype.name for r in records} == {"float32"} and source.num_classes == 1
    found = {tuple(r["depth"].ravel()) for r in records}
    assert found == {tuple(depth(i).astype(np.float32).ravel()) for i in range(2)}
    np.testing.assert_array_equal(records[0]["image"], picture(0))
    (batch,) = pipeline.eval_batches(
        source, transforms.evaluation(4, "uvim"), batch_size=2, features=("depth",)
    )
    assert batch["depth"].shape == (2, 4, 4) and batch["depth"].dtype == np.float32


def test_segments_of_each_record(data_dir):
    source = open_dataset("tfds:toy_coco", "train", 32, data_dir)
    assert source.meta["things"] == list(range(1, 81)) and len(source.meta["segment_names"]) == 134
    seen = set()
    for record in (source[i] for i in range(4)):
        i = int(record["image/id"])
        seen.add(i)
        np.testing.assert_array_equal(record["image"], picture(i))
        expected = np.zeros((6 + i, 8, 2), np.int32)
        for k in range(i):
            expected[2 * k : 2 * k + 2] = [(1, 133, 80)[k], k + 1]
        np.testing.assert_array_equal(record["segments"], expected)
        assert record["segments"].dtype == np.int32
        assert record["crowd"].tolist() == ([3] if i == 3 else [])
    assert seen == {0, 1, 2, 3}
    kept = open_dataset("tfds:toy_coco", "train", 32, data_dir, cache=True, features=("segments",))
    assert set(kept[0]) == {"image", "label", "segments", "crowd"}


def test_segments_reach_batches_and_disk(data_dir, tmp_path):
    source = open_dataset("tfds:toy_coco", "train", 32, data_dir)
    transform = transforms.augment(8, 0.05, (0.75, 1.33), kind="uvim")
    batches = pipeline.train_batches(
        source, transform, batch_size=4, seed=0, features=("segments",)
    )
    batch = next(batches)
    batches.close()
    assert batch["segments"].shape == (4, 8, 8, 2) and set(batch) == {
        "image",
        "segments",
        "label",
        "mask",
    }
    assert ((batch["segments"][..., 0] > 0) == (batch["segments"][..., 1] > 0)).all()

    out = str(tmp_path / "coco")
    prepare.prepare("tfds:toy_coco", 6, out, ["validation"], data_dir=data_dir, transform="uvim")
    arrays = open_dataset(f"arrays:{out}", "validation", 6)
    squashed = transforms.fit(6, "uvim")
    for i in range(4):
        expected = squashed(open_dataset("tfds:toy_coco", "validation", 6, data_dir)[i], None)
        for name in ("image", "segments", "crowd"):
            np.testing.assert_array_equal(arrays[i][name], expected[name])
    assert arrays.meta["things"] == source.meta["things"]

"""Made-up records with the names and features of the paper's data sets, as TFDS would hold them."""

import cv2
import numpy as np
import tensorflow_datasets as tfds

COUNT = 24  # records of a split
SHARDS = 4


def encoded(rgb) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes()


def picture(i: int, height: int, width: int) -> np.ndarray:
    """A smooth picture of colours of its own, uint8 [height,width,3]."""
    rng = np.random.default_rng(i)
    return cv2.resize(rng.integers(0, 256, (4, 6, 3)).astype(np.uint8), (width, height))


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(self.make_features())
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "validation")}


class Imagenet2012(_Builder, skip_registration=True):
    """Pictures of many shapes, classes of 1,000, and the names of the files."""

    def make_features(self):
        return {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1_000),
            "file_name": tfds.features.Text(),
        }

    def _generate_examples(self, split):
        for i in range(1, COUNT + 1):
            name = f"ILSVRC2012_{split[:3]}_{i:08d}.JPEG"
            image = encoded(picture(i, 60 + i, 100 - i))
            yield name, {"image": image, "label": 7 * i, "file_name": name}


class NyuDepthV2(_Builder, skip_registration=True):
    """Pictures of 480 x 640 pixels with depth, of which some is missing."""

    def make_features(self):
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "depth": tfds.features.Tensor(shape=(480, 640), dtype=np.float16),
        }

    def _generate_examples(self, split):
        del split
        for i in range(COUNT):
            depth = np.linspace(0.5, 9.0, 480 * 640, dtype=np.float32).reshape(480, 640)
            depth[:, :20] = 0
            image = encoded(picture(i, 480, 640))
            yield i, {"image": image, "depth": depth.astype(np.float16)}


class Coco(_Builder, skip_registration=True):
    """Pictures with four segments: two things, one of them a crowd, stuff, and void."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017_panoptic", version="1.1.0")]

    def make_features(self):
        rgb = tfds.features.Image(shape=(None, None, 3))
        return {
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

    def _generate_examples(self, split):
        del split
        box = tfds.features.BBox(0.0, 0.0, 0.5, 0.5)
        for i in range(COUNT):
            ids = np.zeros((60, 90), int)
            ids[:30, :40], ids[:30, 50:], ids[40:] = 300 + i, 70_000 + i, 9
            png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
            objects = [
                {"id": number, "area": 1, "bbox": box, "label": label, "is_crowd": label == 5}
                for number, label in ((300 + i, 3), (70_000 + i, 5), (9, 120))
            ]
            yield (
                i,
                {
                    "image": encoded(picture(i, 60, 90)),
                    "image/filename": f"{i}.jpg",
                    "image/id": i,
                    "panoptic_image": encoded(png),
                    "panoptic_image/filename": f"{i}.png",
                    "panoptic_objects": objects,
                },
            )


def prepare(folder: str) -> None:
    """Writes all three under `folder`, each split in four files of ArrayRecord."""
    config = tfds.download.DownloadConfig(num_shards=SHARDS)
    for builder in (Imagenet2012, NyuDepthV2, Coco):
        made = builder(data_dir=folder, file_format="array_record")
        made.download_and_prepare(download_config=config)

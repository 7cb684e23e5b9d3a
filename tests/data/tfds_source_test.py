"""TFDS data sets without TensorFlow: real Fashion-MNIST, and small ones that the tests write."""

import io
import pickle

import cv2
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from fsq_jax.data.decode import RecordError
from fsq_jax.data.open import open_dataset


class Toy(tfds.core.GeneratorBasedBuilder):
    """Three records: grey values, a label, a depth; the last image is cut off."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["x", "y"]),
            "depth": tfds.features.Tensor(shape=(4, 6), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            encoded = cv2.imencode(".png", np.full((4, 6, 3), 50 * i, np.uint8))[1].tobytes()
            encoded = encoded[:30] if i == 2 else encoded
            depth = np.full((4, 6), i, np.float32)
            yield i, {"image": encoded, "label": i % 2, "depth": depth}


class ToyText(Toy):
    def _info(self):
        features = tfds.features.FeaturesDict({"number": tfds.features.Scalar(np.int64)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self):
        yield 0, {"number": 1}


class ToyTurned(Toy):
    """A photograph whose camera was held on its side; its depth lies as its pixels do."""

    def _generate_examples(self):
        exif = PIL.Image.Exif()
        exif[0x112] = 6
        stream = io.BytesIO()
        PIL.Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(stream, "JPEG", exif=exif)
        yield 0, {"image": stream.getvalue(), "label": 0, "depth": np.ones((4, 6), np.float32)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    for builder in (Toy, ToyText, ToyTurned):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_fashion_mnist(shared):
    data = str(shared / "data" / "tfds")
    train = open_dataset("tfds:fashion_mnist", "train[:10%]", 32, data)
    held_out = open_dataset("tfds:fashion_mnist", "validation", 32, data)
    assert (len(train), len(held_out), held_out.split) == (6000, 10_000, "test")
    assert train.num_classes == 10 and train.class_names[9] == "Ankle boot"
    image = train[0]["image"]
    assert image.shape == (28, 28, 3) and image.dtype == np.uint8 and image.max() > 100
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    assert {train[i]["label"] for i in range(100)} == set(range(10))
    again = pickle.loads(pickle.dumps(train))[5]
    np.testing.assert_array_equal(again["image"], train[5]["image"])


def test_records_and_a_damaged_one(data_dir):
    source = open_dataset("tfds:toy", "train", 32, data_dir)
    assert len(source) == 3 and source.class_names == ("x", "y")
    good, messages = {}, []
    for i in range(3):
        try:
            record = source[i]
            good[int(record["depth"][0, 0])] = record
        except RecordError as error:
            messages.append((i, str(error)))
    assert {k: (r["label"], int(r["image"].max())) for k, r in good.items()} == {
        0: (0, 0),
        1: (1, 50),
    }
    ((index, message),) = messages
    assert message.startswith(f"Record {index} of tfds:toy train is not a whole, readable image")
    part = open_dataset("tfds:toy", f"train[{index}:]", 32, data_dir)
    with pytest.raises(RecordError, match=f"Record {index} of tfds:toy train"):
        part[0]  # named by its place in the whole split


def test_data_sets_that_are_not_there(data_dir):
    with pytest.raises(ValueError, match="Did you mean 'fashion_mnist'"):
        open_dataset("tfds:fashion_mnst", "train", 32, data_dir)
    for name in ("imagenet2012", "coco/2017_panoptic", "toy:9.9.9"):
        with pytest.raises(ValueError, match=f"tfds:{name} is not prepared under {data_dir}"):
            open_dataset(f"tfds:{name}", "train", 32, data_dir)
    with pytest.raises(ValueError, match="tfds:a b!"):
        open_dataset("tfds:a b!", "train", 32, data_dir)


def test_a_data_set_without_what_is_needed(data_dir):
    with pytest.raises(ValueError, match="no feature 'image'; it has number"):
        open_dataset("tfds:toy_text", "train", 32, data_dir)
    with pytest.raises(ValueError, match="no split 'dev'; it has test, train"):
        open_dataset("tfds:toy", "dev", 32, data_dir)


def test_an_image_does_not_turn_without_its_labels(data_dir):
    record = open_dataset("tfds:toy_turned", "train", 32, data_dir)[0]
    assert record["image"].shape[:2] == record["depth"].shape == (4, 6)

"""Images that a published number is of: ColTran's two lists come out of ImageNet's own names."""

import hashlib

import numpy as np
import pytest
from tensorflow_datasets.core import hashing

from fsq_jax.data import file_names
from fsq_jax.data.open import open_dataset
from tests.data.tfds_labels_test import encoded, picture, tfds


def test_the_reading_order_by_hand():
    """Two files open, two records of each in turn; a file that ends makes place for the next."""
    order = file_names.reading_order([3, 5, 2, 1], cycle=2, block=2)
    assert order == [0, 1, 3, 4, 2, 5, 6, 8, 9, 7, 10]
    lengths = [7, 0, 40, 33, 5] * 5
    assert sorted(file_names.reading_order(lengths)) == list(range(sum(lengths)))


def test_coltrans_images_are_those_of_big_visions_lists():
    """TFDS keeps ImageNet's 50,000 validation images by the hash of their names, in 64 files. Read
    as TFDS reads, images 0 to 5,000 and 10,000 to 15,000 have the names, in the order, of
    big_vision's eval_file_names.txt and reference_file_names.txt: the checksums are those files'.
    """
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    names.sort(key=hashing.Hasher("validation").hash_key)
    ends = [round(50_000 * shard / 64) for shard in range(65)]
    order = file_names.reading_order(np.diff(ends).tolist())
    read = [names[index] for index in order]
    assert file_names.checksum(read[:5_000]) == file_names.COLTRAN["predictions"]
    assert file_names.checksum(read[10_000:15_000]) == file_names.COLTRAN["reference"]
    assert len(set(read[:5_000]) & set(names[:5_000])) == 2_232  # "validation[:5000]" is another


class ToyImagenet(tfds.core.GeneratorBasedBuilder):
    """The features of imagenet2012, fifty images in five files."""

    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=10),
                "file_name": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples()}

    def _generate_examples(self):
        for i in range(1, 51):
            name = f"ILSVRC2012_val_{i:08d}.JPEG"
            yield name, {"image": encoded(picture(i)), "label": i % 10, "file_name": name}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("imagenet"))
    builder = ToyImagenet(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(num_shards=5)
    builder.download_and_prepare(download_config=config)
    return open_dataset("tfds:toy_imagenet", "validation", 32, folder)


def test_records_are_found_by_name_and_read_in_tfds_order(imagenet, tmp_path):
    wanted = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (40, 3, 17)]
    (tmp_path / "names.txt").write_text("\n".join(wanted) + "\n")
    names = file_names.read_list(tmp_path / "names.txt")
    assert names == tuple(wanted)
    assert file_names.checksum(names) == hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    places = file_names.find(imagenet, names)
    assert file_names.find(imagenet, names[::-1]) == places[::-1]  # in the list's order
    chosen = imagenet.chosen(places)
    assert [chosen.file_name(i) for i in range(3)] == wanted
    for record, number in zip((chosen[i] for i in range(3)), (40, 3, 17), strict=True):
        np.testing.assert_array_equal(record["image"], picture(number))
    cached = imagenet.cached().mapped(dict).chosen([7])
    assert cached.file_name(0) == imagenet.file_name(7)

    assert imagenet.meta["shard_lengths"] == (10, 10, 10, 10, 10)
    assert file_names.order_of(imagenet) == list(range(50))  # files shorter than a block of 16
    cut = imagenet.cut("validation[20:35]")
    assert file_names.order_of(cut) == list(range(15))


def test_lists_and_data_that_do_not_fit(imagenet, tmp_path):
    path = tmp_path / "names.txt"
    with pytest.raises(ValueError, match="There is no list of file names"):
        file_names.read_list(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="lists no file names"):
        file_names.read_list(path)
    path.write_text("a.png\nb.png\na.png\n")
    with pytest.raises(ValueError, match="lists 'a.png' more than once"):
        file_names.read_list(path)
    with pytest.raises(ValueError, match="no image 'b.png', and 2 of 2 names"):
        file_names.find(imagenet, ["b.png", "c.png"])
    with pytest.raises(ValueError, match="records of scenes validation have no file names"):
        file_names.find(open_dataset("scenes", "validation[:3]", 8), ["x"])

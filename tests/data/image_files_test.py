"""Images under a folder: links are followed once, or refused."""

import os

import cv2
import numpy as np
import pytest

from fsq_jax.data.image_files import list_images
from fsq_jax.data.open import open_dataset
from fsq_jax.runtime.user_error import UserError


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((6, 8, 3), value, np.uint8))


def test_classes_that_are_links_have_their_images(tmp_path):
    write(tmp_path / "elsewhere" / "cats" / "1.png", 9)
    write(tmp_path / "data" / "train" / "dog" / "2.png", 5)
    os.symlink(tmp_path / "elsewhere" / "cats", tmp_path / "data" / "train" / "cat")
    os.symlink(
        tmp_path / "elsewhere" / "cats" / "1.png", tmp_path / "data" / "train" / "dog" / "3.png"
    )
    source = open_dataset(f"folder:{tmp_path}/data", "train", 8)
    found = [(r["label"], int(r["image"][0, 0, 0])) for r in map(source.__getitem__, range(3))]
    assert source.class_names == ("cat", "dog") and found == [(0, 9), (1, 5), (1, 9)]


def test_links_that_lead_back_or_twice_to_the_same_folder(tmp_path):
    write(tmp_path / "a" / "1.png")
    os.symlink(tmp_path, tmp_path / "a" / "up")
    with pytest.raises(UserError, match="a/up is a link to a folder that holds it"):
        list_images(tmp_path)
    os.remove(tmp_path / "a" / "up")
    os.symlink(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="b and .*a are the same folder"):
        open_dataset(f"folder:{tmp_path}", "train", 8)


def test_images_that_are_no_files(tmp_path):
    write(tmp_path / "a" / "1.png")
    write(tmp_path / "a" / "dir.png" / "2.png")  # a folder of such a name is a folder
    os.symlink(tmp_path / "nothing.png", tmp_path / "a" / "notes.txt")
    os.symlink("loop", tmp_path / "a" / "loop")
    assert list_images(tmp_path) == ["a/1.png", "a/dir.png/2.png"]
    os.symlink(tmp_path / "nothing.png", tmp_path / "a" / "3.png")
    with pytest.raises(UserError, match="a/3.png is a link to nothing"):
        list_images(tmp_path)
    os.remove(tmp_path / "a" / "3.png")
    os.mkfifo(tmp_path / "a" / "4.png")
    with pytest.raises(UserError, match="a/4.png is not a file"):
        list_images(tmp_path)


def test_a_class_without_an_image(tmp_path):
    write(tmp_path / "train" / "a" / "1.png")
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(UserError, match="train/b is a class of .* without an image"):
        open_dataset(f"folder:{tmp_path}", "train", 8)

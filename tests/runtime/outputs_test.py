"""Where nothing can be written, that is said before anything is computed."""

import os
import tempfile

import pytest

from fsq_jax.runtime import outputs


def said(check, path) -> str:
    with pytest.raises(ValueError) as error:
        check(str(path))
    return str(error.value)


def test_files(tmp_path):
    outputs.check_file("")
    outputs.check_file(str(tmp_path / "new" / "and" / "newer" / "x.json"))
    assert os.listdir(tmp_path) == []
    assert said(outputs.check_file, tmp_path) == (
        f"{str(tmp_path)!r} is a folder; give the name of a file to write."
    )
    (tmp_path / "file").write_text("kept")
    outputs.check_file(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept"
    assert said(outputs.check_file, tmp_path / "file" / "x") == (
        f"{str(tmp_path / 'file')!r} is a file, not a folder to write to."
    )
    os.symlink(tmp_path / "nothing", tmp_path / "link")
    assert "is a link to a file that isn't there" in said(outputs.check_file, tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    assert "is no file that can be written" in said(outputs.check_file, tmp_path / "fifo")


def test_folders_that_cannot_be_written():
    assert said(outputs.check_folder, "/proc/none/such").startswith(
        "'/proc/none/such' can't be written to ("
    )
    said_of_file = "'/dev/null' is a file, not a folder to write to."
    assert said(outputs.check_folder, "/dev/null/x") == said_of_file


def test_pictures(tmp_path):
    for suffix in (".png", ".JPG", ".webp"):
        outputs.check_picture(str(tmp_path / f"grid{suffix}"))
    assert said(outputs.check_picture, tmp_path / "grid") == (
        f"{str(tmp_path / 'grid')!r} ends in no suffix of a picture (none); give .png, .jpg or "
        ".webp, for example."
    )
    assert "(.xcf)" in said(outputs.check_picture, tmp_path / "grid.xcf")


def test_a_folder_that_another_process_has_removed_is_made_again(tmp_path, monkeypatch):
    """Two that look at once: one makes it, the other finds it there, the first removes it."""
    path, write, looked = tmp_path / "run", tempfile.TemporaryFile, []

    def removed_twice(dir):
        looked.append(dir)
        if len(looked) < 3:
            os.rmdir(dir)
        return write(dir=dir)

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", removed_twice)
    outputs.check_folder(str(path))
    assert looked == 3 * [str(path)] and not path.exists()

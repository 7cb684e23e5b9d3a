"""The page of a run, and runs beside each other."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fsq_jax import compare
from fsq_jax.reports import run
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import save_config
from tests import tiny


@pytest.fixture
def workdir(tmp_path):
    """A run with three lines of metrics, ten previews and one result."""
    path = tmp_path / "fsq"
    (path / "samples").mkdir(parents=True)
    save_config(str(path), tiny.tokenizer())
    lines = [
        {
            "step": step,
            "split": "train",
            "loss": 1 / step,
            "images_per_second": 64.0,
            "seconds": 1.0,
        }
        for step in (1, 2, 3)
    ] + [{"step": 3, "split": "eval", "codebook/usage": 0.5, "seconds": 2.0}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in range(10):
        picture = np.full((20, 1_000, 3), step, np.uint8)
        Image.fromarray(picture).save(path / "samples" / f"reconstruction_{step:07d}.png")
    protocol = {"data": "scenes", "size": 8, "level_histograms": [[1, 2]]}
    result = {"value": 0.5, "protocol": protocol, "step": 3}
    write_json(path / "results.json", {"codebook/usage": result})
    return path


def test_a_page_holds_results_curves_previews_and_config(workdir):
    text = open(run.write(str(workdir))).read()
    assert "Step 3 of 12, batches of 8, 64 images/s." in text
    assert "<td>codebook usage ↑</td><td>50.0%</td><td>3</td>" in text
    assert "data=scenes; size=8" in text and "level_histograms" not in text
    assert text.count("<img") == 1 + 8  # curves, and previews from the first to the last
    assert "<p>Step 0</p>" in text and "<p>Step 9</p>" in text and "<p>Step 8</p>" in text
    assert "<td>quantizer.levels</td><td>[4, 3]</td>" in text
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched


def test_a_page_of_a_run_that_has_only_begun(workdir):
    for name in ("metrics.jsonl", "results.json"):
        (workdir / name).unlink()
    shutil.rmtree(workdir / "samples")
    text = run.page(str(workdir))
    for said in ("No step of 12 is reported", "Nothing was evaluated", "There are no curves"):
        assert f"{said} yet." in text


def other(workdir, name, protocol):
    """A run beside, of other levels, whose result was measured with other values."""
    path = workdir.parent / name
    shutil.copytree(workdir, path)
    save_config(str(path), tiny.tokenizer({"quantizer.levels": (5, 3)}))
    result = {"value": 0.25, "protocol": {"data": "scenes", "size": 8} | protocol, "step": 3}
    write_json(path / "results.json", {"codebook/usage": result})
    return str(path)


def test_runs_beside_each_other(workdir, tmp_path):
    out = tmp_path / "page.html"
    paths = [str(workdir), other(workdir, "small", {"seed": 7})]
    tables = compare.compare(paths, out=str(out))
    assert tables["Config keys that differ"].rows == [("quantizer.levels", "[4, 3]", "[5, 3]")]
    assert tables["Results"].header == ("", "fsq", "small")
    assert tables["Results"].rows == [("codebook usage ↑", "50.0%", "25.0%")]
    assert out.read_text().count("<img") == 1


def test_what_was_measured_differently_is_not_compared(workdir):
    with pytest.raises(UserError, match=r"can't be compared.*\(size: 8 and 16\)"):
        compare.compare([str(workdir), other(workdir, "large", {"size": 16})])
    with pytest.raises(UserError, match="two runs or more"):
        compare.compare([str(workdir)])
    with pytest.raises(UserError, match="named twice"):
        compare.compare([str(workdir), str(workdir)])


def test_names_are_as_short_as_they_can_be():
    assert list(compare.names(["a/x/run", "a/y/run/"])) == ["x/run", "y/run"]
    assert list(compare.names(["a/x/run", "a/x/other"])) == ["run", "other"]

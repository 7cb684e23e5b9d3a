"""The report shows what workdirs hold, no more, and says where there is nothing."""

import io
import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import figures, report
from fsq_jax.reports import html


def write_run(folder, results, metrics=()):
    """A workdir that looks as a run leaves it; returns its path."""
    folder.mkdir()
    results = {
        name: {"value": value, "step": 7, "protocol": {"split": "validation", "a": {"b": 1}}}
        for name, value in results.items()
    }
    (folder / "results.json").write_text(json.dumps(results))
    lines = [json.dumps(line) + "\n" for line in metrics]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return str(folder)


@pytest.fixture
def workdirs(tmp_path):
    curve = [{"step": s, "split": "train", "loss": 2.0**-s} for s in range(1, 9)]
    curve.append({"step": 8, "split": "eval", "loss": 100.0})
    return {
        "FSQ": write_run(tmp_path / "fsq", {"codebook/usage": 0.75, "own/metric": 1.5}, curve),
        "VQ": write_run(tmp_path / "vq", {"codebook/usage": 0.5, "reconstruction/psnr": 20.125}),
    }


def test_comparison_holds_all_metrics_of_any_run(workdirs):
    table = report.comparison_table(workdirs)
    assert table.header == ("", "FSQ", "VQ")
    assert [row[1:] for row in table.rows] == [
        ("75.0%", "50.0%"),
        ("not run", "20.12"),
        ("1.5", "not run"),
    ]


def test_numbers_that_were_measured_differently_are_refused(workdirs):
    path = f"{workdirs['VQ']}/results.json"
    with open(path) as file:
        results = json.load(file)
    own = {"stage_1": "abc", "sampling": {"guidance": 1.0}, "seed": 7, "codebook_size": 3}
    results["codebook/usage"]["protocol"] |= own  # the run's own
    with open(path, "w") as file:
        json.dump(results, file)
    assert report.comparison_table(workdirs).rows[0][1:] == ("75.0%", "50.0%")
    results["codebook/usage"]["protocol"]["a"]["b"] = 2
    with open(path, "w") as file:
        json.dump(results, file)
    with pytest.raises(
        ValueError,
        match=(
            r"codebook/usage of FSQ and of VQ can't be compared, they were measured differently "
            r"\(a.b: 1 and 2\)"
        ),
    ):
        report.comparison_table(workdirs)


def test_comparison_takes_wanted_metrics_and_workdirs_that_belong_together(workdirs, tmp_path):
    second = write_run(tmp_path / "maskgit", {"sampling/fid": 3.0})
    table = report.comparison_table(
        {"FSQ": (workdirs["FSQ"], second), "none": str(tmp_path / "none")},
        ["sampling/fid", "compression/bits_per_token"],
    )
    assert [row[1:] for row in table.rows] == [("3.00", "not run"), ("not run", "not run")]


def test_runs_of_one_protocol_share_a_row(workdirs):
    rows = report.protocol_table(workdirs).rows
    assert ("codebook", "FSQ, VQ", "step=7; split=validation; a.b=1") in rows
    assert ("reconstruction", "VQ", "step=7; split=validation; a.b=1") in rows


def test_times_are_summed():
    rows = report.times_table({"one": 61.5, "two": 58.9}).rows
    assert rows == [("one", "1:01"), ("two", "0:58"), ("in all", "2:00")]


def test_curves_are_those_of_the_split(workdirs):
    axes = figures.curves_figure(workdirs, ("loss", "absent")).axes
    (line,) = axes[0].lines  # VQ has no such curve
    np.testing.assert_array_equal(line.get_xdata(), range(1, 9))
    np.testing.assert_array_equal(line.get_ydata(), 2.0 ** -np.arange(1, 9))
    assert axes[0].get_yscale() == "log"
    assert axes[1].texts[0].get_text() == "not run"


def test_samples_have_a_panel_for_each_class():
    images, labels = np.zeros((5, 8, 8, 3)), np.array([2, 0, 2, 2, 2])
    axes = figures.samples_figure(images, labels, ("a", "b", "c"), tile=3).axes
    assert [axis.get_title() for axis in axes] == ["a", "c"]
    assert axes[1].images[0].get_array().shape == (22, 32, 3)


def test_reconstructions_stand_below_their_originals_from_all_over_the_split():
    images = np.random.default_rng(0).integers(256, size=(9, 8, 8, 3), dtype=np.uint8)
    data = ConfigDict(dict(size=8, min_area=1.0, aspect=(1.0, 1.0), flip=False, transform="square"))
    run = types.SimpleNamespace(
        config=ConfigDict({"data": data}),
        dataset=lambda split: [{"image": i} for i in images],
        put=dict,
        eval_split="eval",
        state=None,
        seed=0,
        batch_size=4,
        rows=4,
        predict={"reconstruct": lambda state, batch, key: {"reconstruction": batch["image"] / 2}},
    )
    axes = figures.reconstructions_figure({"FSQ": run}, num_images=3).axes
    assert [axis.get_ylabel() for axis in axes] == ["original", "FSQ"]
    shown = axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown[2:10, 12:20], images[3])
    np.testing.assert_array_equal(
        axes[1].images[0].get_array()[2:10, 2:10],
        (images[0] / 255 / 2 * 255 + 0.5).astype(np.uint8),
    )


def test_names_of_rows_of_pictures_are_whole():
    rows = {name: np.zeros((12, 8, 8, 3)) for name in ("original", "FSQ", "VQ")}
    picture = Image.open(io.BytesIO(html.png(figures.rows_figure(rows))))
    pixels = np.asarray(picture.convert("L"))
    assert (pixels[:, :3] == 255).all() and (pixels < 128).any()

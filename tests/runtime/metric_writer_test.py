"""metrics.jsonl, image grids and the reporter that runs one step behind."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fsq_jax.runtime.image_grid import image_grid
from fsq_jax.runtime.metric_writer import MetricWriter, read_metrics
from fsq_jax.runtime.progress import Progress, StepReporter, duration, gpu_memory, tracked


def write(workdir, step, *entries):
    writer = MetricWriter(str(workdir), step=step)
    for at, split, values in entries:
        writer.scalars(at, split, values)
    writer.close()


def test_lines_are_json_with_step_split_and_values(tmp_path):
    write(tmp_path, 0, (1, "train", {"loss": jnp.float32(0.5)}), (1, "eval", {"a/b": 2}))
    first, second = read_metrics(str(tmp_path))
    assert first.pop("seconds") >= 0 and first == {"step": 1, "split": "train", "loss": 0.5}
    assert second["a/b"] == 2
    assert read_metrics(str(tmp_path), "eval") == [second]
    assert read_metrics(str(tmp_path / "nowhere")) == []


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path):
    write(tmp_path, 0, *((step, "train", {"loss": step}) for step in range(1, 6)))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "spl')  # what a kill leaves of a line
    write(tmp_path, 3, (4, "train", {"loss": 40}))
    kept = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert [(line["step"], line["loss"]) for line in kept] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_a_half_written_line_is_dropped_though_its_step_is_kept(tmp_path):
    write(tmp_path, 0, (1, "train", {"loss": 1}), (2, "train", {"loss": 2}))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-1])  # whole but for its end of line
    write(tmp_path, 2, (3, "train", {"loss": 3}))
    assert [line["step"] for line in read_metrics(str(tmp_path))] == [1, 3]


def test_a_run_from_the_start_drops_everything(tmp_path):
    write(tmp_path, 0, (1, "train", {"loss": 1}))
    write(tmp_path, 0)
    assert read_metrics(str(tmp_path)) == []


def test_an_evaluation_made_again_has_one_line(tmp_path):
    write(tmp_path, 0, (3, "train", {"loss": 3}), (3, "eval", {"psnr": 20}))
    write(tmp_path, 3, (3, "eval", {"psnr": 20}))
    assert [line["split"] for line in read_metrics(str(tmp_path))] == ["train", "eval"]


def test_all_hosts_but_the_first_are_silent(tmp_path):
    writer = MetricWriter(str(tmp_path), active=False)
    writer.scalars(1, "train", {"loss": 1})
    writer.images(1, {"sample": np.zeros((1, 4, 4, 3))})
    writer.close()
    assert not list(tmp_path.iterdir())


def test_images_are_saved_as_grids(tmp_path):
    writer = MetricWriter(str(tmp_path))
    images = np.random.default_rng(0).random((3, 4, 4, 3), np.float32)
    writer.images(7, {"sample": images})
    writer.close()
    picture = np.asarray(Image.open(tmp_path / "samples" / "sample_0000007.png"))
    np.testing.assert_array_equal(picture, image_grid(images))


def test_grid_puts_images_row_by_row_on_white():
    images = np.stack([np.full((2, 3, 3), v, np.float32) for v in (0.0, 0.2, 0.4)])
    picture = image_grid(images, columns=2)
    assert picture.shape == (2 * 4 + 2, 2 * 5 + 2, 3) and picture.dtype == np.uint8
    for i, (top, left) in enumerate([(2, 2), (2, 7), (6, 2)]):
        cell = picture[top : top + 2, left : left + 3]
        assert (cell == round(255 * 0.2 * i)).all()
    assert (picture[6:8, 7:10] == 255).all() and (picture[:2] == 255).all()  # nothing; border


def test_grid_takes_what_is_out_of_range():
    images = np.array([-1.0, 2.0, np.nan], np.float32)[:, None, None, None] * np.ones((1, 1, 1, 3))
    picture = image_grid(images)
    assert [picture[2, 2 + 3 * i, 0] for i in range(3)] == [0, 255, 0]


class Recorder:
    """A writer and a progress bar that remember what they were given."""

    def __init__(self):
        self.lines, self.updates = [], 0

    def scalars(self, step, split, values):
        self.lines.append((step, split, dict(values)))

    def update(self, values=None):
        self.updates += 1


def test_reporter_is_one_step_late_and_writes_every_nth():
    seen = Recorder()
    reporter = StepReporter(seen, seen, every=2, batch_size=8)
    for step in range(1, 5):
        reporter.push(step, {"loss": jnp.float32(step)})
        assert seen.updates == step - 1
    assert [line[0] for line in seen.lines] == [2]
    reporter.flush()
    reporter.flush()  # nothing is reported twice
    assert [line[0] for line in seen.lines] == [2, 4] and seen.updates == 4
    assert "images_per_second" not in seen.lines[0][2]
    assert seen.lines[1][2]["images_per_second"] > 0


def test_skipped_records_are_counted_from_the_first_step_on():
    seen = Recorder()
    reporter = StepReporter(seen, seen, every=2, batch_size=8, skipped=5)
    for step, skipped in enumerate((1, 0, 2, 1), 1):
        reporter.push(step, {"loss": 0.0, "skipped_records": jnp.int32(skipped)})
    reporter.flush()
    assert [line[2]["skipped_records"] for line in seen.lines] == [6, 9] and reporter.skipped == 9


def test_speed_leaves_out_what_was_not_training():
    seen = Recorder()
    reporter = StepReporter(seen, seen, every=1, batch_size=8)
    reporter.push(1, {"loss": 1.0})
    reporter.pause()
    reporter.push(2, {"loss": 1.0})
    reporter.flush()
    assert "images_per_second" not in seen.lines[1][2]


class Metric(float):
    """A step's metric that is there, or is still being computed."""

    def __new__(cls, ready):
        self = super().__new__(cls, 1.0)
        self.is_ready = lambda: ready
        return self


def test_waiting_counts_where_the_devices_had_nothing_left_to_do():
    seen = Recorder()
    reporter = StepReporter(seen, seen, every=1, batch_size=8)
    for step, ready in enumerate([True, True, False, True]):
        reporter.waited(9.0, {"loss": Metric(ready)})
        reporter.push(step, {"loss": 1.0})  # which writes the line of the step before
    reporter.flush()
    assert [line[2].get("data_wait") for line in seen.lines] == [None, 0, 1, 0]


def test_the_share_of_the_peak_is_written_where_it_is_known():
    seen, speeds = Recorder(), []

    def utilization(steps_per_second):
        speeds.append(steps_per_second)
        return 0.4 if len(speeds) > 1 else None

    reporter = StepReporter(seen, seen, every=1, batch_size=8, utilization=utilization)
    for step in range(1, 4):
        reporter.push(step, {"loss": 1.0})
    reporter.flush()
    assert [line[2].get("mfu") for line in seen.lines] == [None, None, 0.4]
    assert speeds[1] * 8 == seen.lines[2][2]["images_per_second"]


def test_what_is_not_finite_stops_with_its_step_and_metrics():
    seen = Recorder()
    reporter = StepReporter(seen, seen, every=10, batch_size=8)
    reporter.push(3, {"loss": jnp.float32("nan"), "norm": jnp.float32(2)})
    with pytest.raises(FloatingPointError, match=r"Step 3: loss not finite \(loss=nan, norm=2\)"):
        reporter.flush()
    assert not seen.lines


def test_progress_off_a_terminal_is_a_line_now_and_then(capsys):
    progress = Progress(3, title="tokenizer")
    for _ in range(3):
        progress.update({"loss": "0.25"})
    progress.close()
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2  # the first and the last
    assert shown[1].startswith("tokenizer 3/3") and shown[1].endswith("0:00 left, loss 0.25")


def test_progress_says_what_is_left_since_the_last_line(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress(102, title="tokenizer")
    clock[0] = 60.0  # compiling
    progress.update()
    for _ in range(60):
        clock[0] += 0.5
        progress.update({"loss": "0.25", "images/s": "16"})
    assert capsys.readouterr().err.splitlines() == [
        "tokenizer 1/102, 0.02 steps/s, 1:41:00 left",
        "tokenizer 61/102, 2.00 steps/s, 0:20 left, loss 0.25, images/s 16",
    ]


def test_durations():
    assert duration(9.6) == "0:10" and duration(3_723) == "1:02:03"
    assert duration(90_061) == "1 d 1:01:01"


def test_what_is_tracked_is_all_there_is_and_short_work_is_silent(capsys):
    assert list(tracked([1, 2, 3], "numbers", 8)) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_tracked_work_says_its_speed_and_the_time_left(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    for _ in tracked(range(100), "numbers", 8):
        clock[0] += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0] == "numbers 30/100, 1.00 steps/s, 1:10 left, images/s 8"


def test_memory_of_the_fullest_device(monkeypatch):
    def device(stats):
        return types.SimpleNamespace(memory_stats=lambda: stats)

    full = {"peak_bytes_in_use": 3 * 2**30, "bytes_limit": 60 * 2**30}
    devices = [device(None), device({"peak_bytes_in_use": 2**30}), device(full)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert gpu_memory() == {"GPU": "3.0 of 60.0 GiB"}
    monkeypatch.setattr(jax, "local_devices", lambda: devices[:1])
    assert gpu_memory() == {}

"""The loop, inside this process: what a run leaves, and what starting it again does."""

import functools
import gzip
import json
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from fsq_jax import train
from fsq_jax.runs import inputs, startup
from fsq_jax.runtime import checkpoint, cli, sharding
from fsq_jax.runtime.metric_writer import MetricWriter, read_metrics
from fsq_jax.runtime.workdir import load_config, load_results
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, 1))
        yield


@pytest.fixture(autouse=True)
def no_more_pages(monkeypatch):
    """But for that of `finished`: to draw a page takes longer than all steps."""
    monkeypatch.setattr(train.run_page, "write", lambda workdir: None)


def make_config(**changes):
    changes = {
        "steps": 6,
        "checkpoint_every": 2,
        "preview_every": 4,
        "loss.adversarial": 0.0,
        "evals.codebook.every": 3,
    } | changes
    return tiny.tokenizer(changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train.train(make_config(), str(workdir), profile="4:5")


def checkpoints(workdir):
    return sorted(int(name) for name in os.listdir(workdir / "checkpoints"))


def test_a_run_leaves_its_config_metrics_results_pictures_and_checkpoints(finished):
    workdir, results = finished
    assert load_config(str(workdir)).to_dict() == make_config().to_dict()
    lines = tiny.lines(workdir)
    assert [(line["step"], line["split"][0]) for line in lines] == [
        (1, "t"),
        (2, "t"),
        (3, "t"),
        (3, "e"),
        (4, "t"),
        (5, "t"),
        (6, "t"),
        (6, "e"),
    ]
    assert {"loss", "reconstruction", "tokenizer_gradient_norm"} <= set(lines[0])
    assert lines[0]["learning_rate"] == np.float32(make_config().optim.learning_rate)
    timed = [line for line in read_metrics(str(workdir), "train") if "images_per_second" in line]
    assert timed and all(0 <= line["data_wait"] <= 1 for line in timed)
    assert {"codebook/usage", "codebook/perplexity"} <= set(lines[-1])
    assert results == load_results(str(workdir))
    assert all(result["step"] == 6 and result["protocol"] for result in results.values())
    names = sorted(path.name for path in (workdir / "samples").iterdir())
    assert names == ["reconstruction_0000004.png", "reconstruction_0000006.png"]
    with Image.open(workdir / "samples" / names[0]) as picture:
        assert picture.size == (8 * 10 + 2, 2 * 10 + 2)
    assert checkpoints(workdir) == [4, 6]
    assert list((workdir / "tensorboard").iterdir())


def test_the_traced_steps_are_there_for_tensorboard_and_perfetto(finished):
    (folder,) = (finished[0] / "profile" / "plugins" / "profile").iterdir()
    assert list(folder.glob("*.xplane.pb"))
    (path,) = folder.glob("*.trace.json.gz")
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    steps = {e["args"]["step_num"] for e in events if e.get("name") == "train"}
    assert steps == {"4", "5"}


@pytest.mark.parametrize("window", ["4", "4-5", "0:2", "5:4", "6:7", "-1:3", "a:b"])
def test_steps_that_cannot_be_traced_are_refused_at_once(window, tmp_path):
    with pytest.raises(ValueError, match=f"profile='{window}'"):
        train.train(make_config(), str(tmp_path / "run"), profile=window)
    assert not (tmp_path / "run").exists()


def test_learning_rates_are_those_of_the_schedule():
    config = make_config(**{"optim.warmup_steps": 2, "optim.schedule": "cosine"})
    update = startup.with_more_metrics(lambda state, batch, key: (state, {}), config)
    rates = [update(SimpleNamespace(step=step), {}, None)[1]["learning_rate"] for step in range(6)]
    top = config.optim.learning_rate
    np.testing.assert_allclose(rates[:3], [0, top / 2, top], rtol=1e-6)
    assert sorted(rates[2:], reverse=True) == rates[2:] and rates[-1] < top / 5


def test_training_lowers_the_loss(finished):
    losses = [line["loss"] for line in tiny.lines(finished[0], "train")]
    assert losses[-1] < losses[0]


def test_a_finished_run_only_gives_its_results(finished, monkeypatch):
    workdir, results = finished
    before = (workdir / "metrics.jsonl").read_text()
    monkeypatch.setattr(train.evaluators, "evaluate", lambda *_: pytest.fail("evaluated again"))
    assert train.train(make_config(), str(workdir)) == results
    assert (workdir / "metrics.jsonl").read_text() == before
    assert checkpoints(workdir) == [4, 6]


def test_a_lost_evaluation_is_made_again(finished):
    workdir, results = finished
    before = tiny.lines(workdir)
    os.remove(workdir / "results.json")
    again = train.train(make_config(), str(workdir))
    # The last step's; what was measured at earlier ones is lost with the file.
    assert again == {
        name: {key: value for key, value in result.items() if key != "variants"}
        for name, result in results.items()
    }
    assert load_results(str(workdir)) == again
    assert tiny.lines(workdir) == before


def test_a_flipped_byte_costs_the_steps_since_the_checkpoint_before(finished, tmp_path, capsys):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    largest = max((workdir / "checkpoints" / "6" / "state").rglob("d/*"), key=os.path.getsize)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert train.train(make_config(), str(workdir)).keys() == finished[1].keys()
    said = capsys.readouterr().err
    assert "checkpoints/6 is damaged (state/" in said and "that of step 4 is used" in said
    assert f"Going on from step 4 of {workdir}" in said
    assert tiny.lines(workdir) == tiny.lines(finished[0])
    assert sorted(os.listdir(workdir / "checkpoints")) == ["4", "6", "6.damaged"]


def test_another_config_is_refused_with_the_keys(finished):
    workdir, _ = finished
    config = make_config(**{"optim.learning_rate": 0.5, "batch_size": 16})
    with pytest.raises(ValueError) as error:
        train.train(config, str(workdir))
    assert "another config" in str(error.value) and str(workdir) in str(error.value)
    assert "optim.learning_rate: 0.0001 there, 0.5 here" in str(error.value)
    assert "batch_size: 8 there, 16 here" in str(error.value)
    assert "model" not in str(error.value)


def test_what_is_not_finite_is_never_saved(finished, tmp_path, monkeypatch):
    class Poisoned:
        """Batches of which the fourth holds a NaN."""

        def __init__(self, batches):
            self._batches = batches

        def __next__(self):
            batch = next(self._batches)
            if self._batches.get_state()["position"] == 4:
                batch["image"][0, 0, 0, 0] = np.nan
            return batch

        def __getattr__(self, name):
            return getattr(self._batches, name)

    whole = inputs.train_batches
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "train_batches", lambda config: Poisoned(whole(config)))
        with pytest.raises(FloatingPointError, match="Step 4: .*loss.* not finite .*loss=nan"):
            train.train(make_config(), str(tmp_path))
    assert checkpoints(tmp_path) == [2]
    assert [line["step"] for line in tiny.lines(tmp_path, "train")] == [1, 2, 3]
    assert np.isfinite(jax.tree.leaves(checkpoint.load_weights(str(tmp_path))[1])[0]).all()

    # From there it goes on, to the same end as the run that never met the NaN.
    train.train(make_config(), str(tmp_path))
    assert tiny.lines(tmp_path) == tiny.lines(finished[0])


def test_a_learning_rate_that_is_much_too_high_stops_the_run(tmp_path):
    config = make_config(**{"optim.learning_rate": 1e30, "log_every": 100})
    with pytest.raises(FloatingPointError, match="Step 2: .*a lower learning rate"):
        train.train(config, str(tmp_path))
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_leaves(finished, tmp_path, monkeypatch, number):
    scalars = MetricWriter.scalars

    def scalars_then_signal(self, step, *arguments):
        scalars(self, step, *arguments)
        if step == 1:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "scalars", scalars_then_signal)
        assert train.train(make_config(), str(tmp_path)) == {}
    assert signal.getsignal(number) is before
    # Step 2 was at work when step 1 was reported.
    assert checkpoints(tmp_path) == [2]
    assert tiny.lines(tmp_path) == tiny.lines(finished[0])[:2]


def test_damaged_records_are_skipped_and_counted_the_same_after_a_stop(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for number in range(12):
            picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            picture.save(tmp_path / "data" / split / f"{number:02d}.png")
        (tmp_path / "data" / split / "03.png").write_bytes(b"no picture")
    config = make_config(
        **{
            "data.source": f"folder:{tmp_path / 'data'}",
            "data.train_split": "train",
            "data.eval_split": "val",
            "data.skip_damaged": True,
        }
    )
    results = train.train(config, str(tmp_path / "straight"))
    counts = [line["skipped_records"] for line in tiny.lines(tmp_path / "straight", "train")]
    assert counts == sorted(counts) and counts[-1] == 4  # as many epochs
    tokens = 11 * 4 * 4  # of twelve images, one of which is damaged
    assert results["codebook/usage"]["protocol"]["num_tokens"] == tokens

    with monkeypatch.context() as patch:
        patch.setattr(train.StopSignal, "requested", lambda self, step: step == 4)
        train.train(config, str(tmp_path / "stopped"))
    assert train.train(config, str(tmp_path / "stopped")) == results
    assert tiny.lines(tmp_path / "stopped") == tiny.lines(tmp_path / "straight")
    config.data.skip_damaged = False
    with pytest.raises(ValueError, match="03.png is not a whole, readable image"):
        train.train(config, str(tmp_path / "stops"))


def test_arguments_are_not_swallowed():
    main = cli._called(train.main, takes_arguments=False)
    with pytest.raises(ValueError, match="'--workdri'"):
        main(["train", "--workdri"])


def test_an_average_that_keeps_much_of_random_weights_is_remarked_on():
    remark = startup.on_average(0.999, 3_000)
    assert "5% of the averaged weights" in remark and "--config.ema_decay=0.99 averages" in remark
    assert not any(startup.on_average(*run) for run in ((0.999, 5_000), (0.0, 300), (0.999, 20)))

"""What `describe` says of the paper's configs: the published counts, epochs, FLOPs, days."""

import functools
import json
import time

import jax
import jax.numpy as jnp
import pytest

from configs import maskgit_tokenizer, maskgit_transformer, uvim_base, uvim_lm
from fsq_jax import describe
from fsq_jax.runs import costs
from fsq_jax.runtime import sharding
from tests import programs, tiny

CONFIGS = {"tokenizer": maskgit_tokenizer, "transformer": maskgit_transformer}


@functools.cache
def facts(stage: str, quantizer: str) -> dict:
    config = CONFIGS[stage].get_config(f"scale=paper,quantizer={quantizer}")
    with pytest.MonkeyPatch.context() as patch:
        if (stage, quantizer) != ("tokenizer", "fsq"):  # FLOPs take seconds, and are read of this
            patch.setattr(describe.costs, "training_flops", lambda *_: 0.0)
        return describe.describe(config, gpus=8, images_per_second=500.0)


@pytest.mark.parametrize(
    "stage, quantizer, parameters",
    [
        ("tokenizer", "vq", {"tokenizer": 54_515_587, "discriminator": 23_998_017}),
        ("tokenizer", "fsq", {"tokenizer": 52_962_951, "discriminator": 23_998_017}),
        ("transformer", "fsq", {"transformer": 172_438_737}),
    ],
)
def test_parameters_are_the_published_ones(stage, quantizer, parameters):
    described = facts(stage, quantizer)
    assert described["parameters"] == parameters
    assert sum(described["modules"].values()) == sum(parameters.values())


@pytest.mark.parametrize(
    "module, task, records",
    [
        (uvim_base, "depth", 47_584),
        (uvim_base, "colorization", 1_277_071),
        (uvim_base, "panoptic", 114_191),
        (uvim_lm, "depth", 47_584),
    ],
)
def test_uvim_has_the_papers_data(module, task, records):
    """Its parameters are counted where the networks are tested, of the same configs."""
    assert describe.count_records(module.get_config(f"scale=paper,task={task}")) == records


def test_modules_of_the_tokenizer():
    modules = facts("tokenizer", "vq")["modules"]
    assert modules["tokenizer/encoder"] == 23_775_104
    assert modules["tokenizer/decoder"] == 30_478_339
    assert modules["tokenizer/quantizer"] == 1024 * 256


def test_bytes_are_those_of_adam_in_float32():
    described = facts("transformer", "fsq")
    weights = 4 * 172_438_737
    assert described["weight_bytes"] == described["ema_bytes"] == weights
    assert 0 <= described["optimizer_bytes"] - 2 * weights < 100  # two moments and a counter
    assert described["frozen_bytes"] == 4 * 52_962_951


@pytest.mark.parametrize(
    "stage, steps, batch_size, epochs",
    [
        ("tokenizer", 1_000_000, 512, 399.6),
        ("transformer", 2_500_000, 256, 499.5),
    ],
)
def test_schedule_and_days(stage, steps, batch_size, epochs):
    described = facts(stage, "fsq")
    assert (described["steps"], described["batch_size"]) == (steps, batch_size)
    assert described["examples"] == steps * batch_size
    assert described["epochs"] == pytest.approx(epochs, abs=0.05)
    assert described["tokens"] == 256
    assert described["days"] == pytest.approx(steps * batch_size / (8 * 500) / 86_400)


def flops_of_an_image(config, batch) -> float:
    """TFLOP of an update on the batch, without the frozen network's."""
    return costs.training_flops(config, batch) / len(batch["label"]) / 1e12


def test_flops_of_the_autoencoder_alone():
    config = maskgit_tokenizer.get_config("scale=paper,quantizer=vq")
    config.loss.update(adversarial=0.0, perceptual=0.0)
    batch = {"image": jnp.zeros((2, 256, 256, 3)), "label": jnp.zeros(2, jnp.int32)}
    assert flops_of_an_image(config, jax.eval_shape(lambda: batch)) == pytest.approx(0.945, rel=0.1)


def test_flops_of_the_transformer_alone():
    # 6 x parameters x tokens, and the attention's products, which have no parameters:
    # 6 x 24 layers x 2 x 257 x 257 x 768.
    config = maskgit_transformer.get_config("scale=paper,quantizer=vq")
    assert config.model.depth == 24
    batch = {"tokens": jnp.zeros((256, 256), jnp.int32), "label": jnp.zeros(256, jnp.int32)}
    of_depth = []
    for config.model.depth in (1, 2):  # layers cost alike, and to trace all of them takes seconds
        of_depth.append(flops_of_an_image(config, jax.eval_shape(lambda: batch)))
    measured = of_depth[0] + 23 * (of_depth[1] - of_depth[0])
    products = 6 * (172_457_193 - 257 * 768) * 257 + 6 * 24 * 2 * 257**2 * 768
    assert measured == pytest.approx(0.28, rel=0.1)
    assert measured == pytest.approx(products / 1e12, rel=0.1)


@functools.cache
def plain():
    """(config, batch, FLOPs of a step) of a tiny transformer; the config is not to be changed."""
    config = tiny.transformer("", {"num_classes": 3})
    _, _, batch = costs.shapes_of(config)
    return config, batch, costs.training_flops(config, batch)


def test_flops_count_what_is_recomputed_once():
    config, batch, flops = plain()
    config = config.copy_and_resolve_references()
    config.model.remat = "full"
    config.accumulate = 2
    assert costs.training_flops(config, batch) == flops


def test_the_share_of_the_peak_is_counted_once_on_devices_that_are_known(monkeypatch):
    config, batch, flops = plain()
    mesh = sharding.make_mesh(2)
    assert costs.Utilization(config, batch, mesh)(1.0) is None  # of a CPU
    monkeypatch.setitem(costs.PEAK_FLOPS, mesh.devices.flat[0].device_kind, 1e12)
    share = costs.Utilization(config, batch, mesh)
    while share(5.0) is None:
        time.sleep(0.01)
    assert share(5.0) == flops * 5 / 2e12


def test_both_stages_of_uvim_are_described():
    described = describe.describe(tiny.label_coder(task="panoptic"))
    assert list(described["parameters"]) == ["base"] and described["tokens"] == 4
    described = describe.describe(tiny.code_model(""))
    assert list(described["parameters"]) == ["language model"] and described["tokens"] == 4
    assert described["frozen_bytes"] > 0 and described["flops_per_step"] > 0


def test_size_of_data_that_is_here_and_of_data_that_is_not(monkeypatch):
    monkeypatch.setattr(describe.costs, "training_flops", lambda *_: 0.0)
    config = tiny.tokenizer()
    assert describe.describe(config)["epochs"] == 12 * 8 / 80
    config.data.source = "folder:/no/such/folder"
    described = describe.describe(config)
    assert described["epochs"] is None and described["days"] is None
    assert "an unknown number of epochs" in describe.text(described)


def test_lines_for_people():
    text = describe.text(facts("tokenizer", "fsq"))
    assert "tokenizer: 52,962,951 parameters" in text
    assert "1,000,000 steps of 512 = 512,000,000 examples, 399.6 epochs\n" in text
    assert "codes: 1,000 of fsq; 256 tokens an image, 319 bytes\n" in text
    assert "time: 1.48 days" in text
    assert "a step: 628.87 TFLOP, 1228.3 GFLOP an image" in text
    table = describe.arrays(tiny.tokenizer())
    assert "decoder" in table and "Total" in table


def test_json_of_the_program():
    done = programs.run(
        "fsq_jax.describe",
        "--json",
        "--gpus=2",
        "--images_per_second=10",
        "--config=configs/maskgit_transformer.py:scale=smoke,quantizer=vq,codebook_size=64",
        "--config.steps=100",
        "--config.model.depth=1",  # traced sooner
    )
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert {"parameters", "steps", "batch_size", "examples", "epochs", "tokens"} <= set(described)
    assert described["steps"] == 100 and described["tokens"] == 64
    assert described["days"] == pytest.approx(100 * 8 / 20 / 86_400)

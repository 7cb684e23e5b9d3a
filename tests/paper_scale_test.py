"""The configs of scale=paper, with nothing but their sizes shrunk, on data with the features of
the real sets: what they read, what they refuse, and what their results are called."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import maskgit_tokenizer, maskgit_transformer, uvim_base, uvim_lm
from fsq_jax import evaluate, evaluators, export, runs
from fsq_jax.data import file_names
from fsq_jax.data.adm_crop import adm_crop
from fsq_jax.data.open import open_dataset
from fsq_jax.evaluators.run_scorer import RunScorer
from fsq_jax.pretrained import weights
from fsq_jax.runs import inputs, published
from fsq_jax.runtime.workdir import every_result, load_results
from fsq_jax.scoring import protocols
from tests import real_data_sets, tiny

SMALL = dict(steps=2, batch_size=8, eval_batch_size=8, log_every=1)
UVIM = dict(patch=4, width=16, encoder_depth=1, decoder_depth=1, num_heads=2, mlp_dim=32)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    real_data_sets.prepare(folder)
    return folder


def shrink(config):
    """The config with fewer steps, and data of which all but the first 4,096 would be nothing."""
    config.update(SMALL)
    config.optim.warmup_steps = 1
    config.data.update(workers=0, train_split="train")
    for values in config.evals.values():
        if "features" in values:
            values.features = "random"
    return config


def base_config(data_dir, task, more=""):
    config = shrink(
        uvim_base.get_config(f"scale=paper,task={task},size=16,data_dir={data_dir}{more}")
    )
    config.model.update(UVIM, code_side=2)
    return config


def lm_config(data_dir, task, base, more):
    config = shrink(
        uvim_lm.get_config(f"scale=paper,task={task},size=16,data_dir={data_dir},base={base}{more}")
    )
    config.model.update(UVIM)
    return config


@pytest.mark.parametrize("task", uvim_base.TASKS)
def test_every_task_reads_its_data_as_it_stands_in_the_paper(data_dir, task):
    config = base_config(data_dir, task)
    stage = tiny.stage_of_shapes(config)
    batches = inputs.train_batches(config)
    batch = next(batches)
    batches.close()
    (held_out, *_) = inputs.eval_batches(config, inputs.eval_dataset(config, "eval"))
    for found in (batch, held_out):
        state = jax.eval_shape(stage.init, jax.random.key(0), found)
        _, metrics = jax.eval_shape(stage.update, state, found, jax.random.key(0))
        assert metrics["task"].shape == () and found["image"].shape == (8, 16, 16, 3)
    if task == "depth":  # the part of the picture that is evaluated, before it is squashed
        assert inputs.eval_dataset(config, "eval")[0]["depth"].shape == (426, 560)
    if task == "panoptic":
        assert batch["segments"][..., 0].max() <= 133
        assert inputs.eval_dataset(config, "eval").meta["things"] == list(range(1, 81))


@pytest.fixture(scope="module")
def colour(data_dir, tmp_path_factory):
    """The workdir of a base of colours, before its first step."""
    return tiny.untrained(base_config(data_dir, "colorization"), tmp_path_factory.mktemp("colour"))


def test_a_language_model_asks_for_its_encoder(colour, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def config(more):
        config = lm_config(data_dir, "colorization", colour, more)
        config.evals = {}  # which want more images than there are
        return config

    with pytest.raises(ValueError) as error:
        runs.begin(config(""), str(tmp_path / "lm"))
    message = str(error.value)
    assert "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz" in message
    assert "encoder=PATH" in message and "encoder=none" in message and message.count(". ") == 0
    assert not (tmp_path / "lm").exists()
    run = runs.begin(config(",encoder=none"), str(tmp_path / "scratch"))
    assert run.first == 0 and run.config.optim.rate_multipliers == ()
    run.batches.close()
    run.checkpoints.close()


def test_the_images_of_fid_5k_are_those_of_a_list_or_of_tfds_order(
    colour, data_dir, tmp_path, monkeypatch
):
    source = open_dataset("tfds:imagenet2012", "validation", 16, data_dir)
    order = file_names.order_of(source)
    shards = source.meta["shard_lengths"]
    assert len(shards) == 4 and sum(shards) == 24
    names = [source.file_name(i) for i in order]
    files = {"names": names[:6], "reference_names": names[10:18]}
    for name, listed in files.items():
        (tmp_path / name).write_text("\n".join(listed) + "\n")

    predictor = runs.load(colour)
    seen = {"coloured": [], "real": []}
    colourful = predictor.batches

    def batches(split, limit, transform=None):
        if not isinstance(split, str):
            kind = "coloured" if not seen["coloured"] else "real"
            seen[kind] = [split.file_name(i) for i in range(len(split))]
        return colourful(split, limit, transform)

    predictor = dataclasses.replace(predictor, batches=batches)
    arguments = dict(
        every=0,
        features="random",
        num_images=6,
        reference_split="validation[10:18]",
        reference_limit=8,
    )
    first = evaluators.evaluate({"colorization": arguments}, predictor)
    protocol = first["colorization/fd_random"]["protocol"]
    assert seen == {"coloured": names[:6], "real": names[10:18]}
    assert protocol["images"]["names_sha256"] == file_names.checksum(names[:6])
    assert protocol["images"]["order"] == "TFDS's, of 4 files"
    seen["coloured"] = []
    listed = {name: str(tmp_path / name) for name in files}
    again = evaluators.evaluate({"colorization": arguments | listed}, predictor)
    assert seen == {"coloured": names[:6], "real": names[10:18]}
    theirs = again["colorization/fd_random"]
    assert theirs["value"] == pytest.approx(first["colorization/fd_random"]["value"], rel=1e-5)
    for kind in ("images", "reference_images"):
        assert theirs["protocol"][kind]["names_sha256"] == protocol[kind]["names_sha256"]
        assert theirs["protocol"][kind]["order"] == "as listed"
    with pytest.raises(ValueError, match="lists 6 images, and 5 are asked for"):
        evaluators.evaluate({"colorization": arguments | listed | {"num_images": 5}}, predictor)


def test_maskgit_is_evaluated_as_adm_crops_and_its_own_reference_says_so(data_dir, tmp_path):
    config = shrink(
        maskgit_tokenizer.get_config(
            f"scale=paper,size=128,data_dir={data_dir},quantizer=vq,codebook_size=16"
        )
    )
    config.model.update(filters=8, channel_multipliers=(1, 1), num_res_blocks=0, num_groups=2)
    config.loss.update(adversarial=0.0, perceptual=0.0)
    config.evals.reconstruction.every = config.evals.codebook.every = 0
    config.data.size = 16
    stage_1 = str(tmp_path / "tokenizer")
    assert config.data.transform == "adm"
    record = open_dataset("tfds:imagenet2012", "validation", 16, data_dir)[0]
    (batch, *_) = inputs.eval_batches(config, inputs.eval_dataset(config, "eval"))
    np.testing.assert_allclose(batch["image"][0] * 255, adm_crop(record["image"], 16), atol=1e-3)
    tiny.untrained(config, stage_1)
    run = runs.load(stage_1)
    assert run.protocol["transform"] == "adm"

    # Metrics are called FID where they are against the file that published numbers are against.
    network = RunScorer(run, "random")
    network.metric = "fid"  # as over Inception's features, which take minutes to compile
    network._scorer.metric = lambda name: name
    seen = network.no_images()
    for batch in map(run.put, run.batches("eval", 0)):
        seen = network.add(seen, batch, batch["image"])
    published = config.evals.reconstruction.published_reference
    assert published == "VIRTUAL_imagenet128_labeled.npz"
    own = seen.flush().with_source("tfds:imagenet2012", split="train")
    adms = dataclasses.replace(own, origin=protocols.Reference(published, sha256="x"))
    assert set(network.measure(seen, own, published)[0]) == {"fid_own_reference"}
    assert set(network.measure(seen, adms, published)[0]) == {"fid"}
    assert set(network.measure(seen, own, "")[0]) == {"fid"}  # other data has no such file

    transformer = shrink(
        maskgit_transformer.get_config(
            f"scale=paper,size=128,data_dir={data_dir},tokenizer={stage_1}"
        )
    )
    transformer.model.update(width=16, depth=1, num_heads=2, mlp_dim=32)
    transformer.data.size = 16
    transformer.evals = {
        "generation": dict(
            every=0,
            features="random",
            num_samples=8,
            reference_split="eval",
            reference_limit=0,
            published_reference=published,
        )
    }
    workdir = str(tmp_path / "transformer")
    tiny.untrained(transformer, workdir)
    assert runs.load(workdir).facts.sampling["guidance"] == 0.0  # 128 pixels: none is stated
    for overrides in ({}, {"sampling.guidance": 0.5}):
        evaluate.evaluate(workdir, overrides=overrides)
    results = load_results(workdir)
    assert "overrides" not in results["sampling/fd_random"]
    swept = every_result(results, "sampling/fd_random")
    assert sorted(r["protocol"]["sampling"]["guidance"] for r in swept) == [0.0, 0.5]


def test_a_published_file_has_the_evaluators_of_the_run(colour, data_dir, tmp_path):
    """UViM's colour pair gets its FID-5k, with the same options."""
    path, *_ = export.export(colour, "npz", str(tmp_path / "published"))
    loaded = weights.load(path)
    stripped = dataclasses.replace(loaded, config=None)
    config = published.config_of(stripped, overrides={"quantizer.levels": (7, 5, 5, 5, 5)})
    paper = uvim_base.get_config("scale=paper,task=colorization")
    assert config.evals == paper.evals and config.data.transform == paper.data.transform
    assert config.evals.colorization.reference_split == "validation[10000:15000]"
    assert {"names", "reference_names", "weights"} <= set(config.evals.colorization)

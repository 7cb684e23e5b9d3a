"""Configs: every argument builds, the paper's scale holds the paper's numbers, smoke trains."""

import re
import sys

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from configs import (
    arguments,
    maskgit_tokenizer,
    maskgit_transformer,
    quantizers,
    uvim_base,
    uvim_lm,
)
from experiments.benchmarks import train_step
from fsq_jax import describe
from fsq_jax.data import scenes
from fsq_jax.runs.config import resolve_config
from fsq_jax.runtime import cli
from fsq_jax.stages import maskgit_transformer as maskgit_transformer_stage
from fsq_jax.stages import stage_1
from tests import tiny

CONFIGS = {
    "tokenizer": maskgit_tokenizer,
    "transformer": maskgit_transformer,
    "uvim_base": uvim_base,
    "uvim_lm": uvim_lm,
}
SCALES = ("bench", "smoke", "paper")


@pytest.mark.parametrize("module", CONFIGS.values(), ids=CONFIGS)
def test_every_documented_argument_is_an_argument(module):
    documented = module.__doc__ + maskgit_tokenizer.__doc__ * (module is maskgit_transformer)
    documented += uvim_base.__doc__ * (module is uvim_lm)
    assert not [name for name in module.ARGUMENTS if name not in documented]


@pytest.mark.parametrize("module", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("quantizer", quantizers.TAKES)
def test_every_argument_arrives(module, scale, quantizer):
    given = {"levels": (4, 3), "stages": 3, "groups": 4, "codebook_size": 64}
    given = {name: value for name, value in given.items() if name in quantizers.TAKES[quantizer]}
    sizes = arguments.text(given)
    text = f"scale={scale},quantizer={quantizer},{sizes}"
    config = module.get_config(f"{text},size=128,data=tfds:other,data_dir=/data=1,dtype=bfloat16")
    stage_1 = config.get("stage_1", config)
    assert stage_1.quantizer.name == quantizer
    for name, value in given.items():
        assert (
            stage_1.quantizer[{"stages": "num_stages", "groups": "num_groups"}.get(name, name)]
            == value
        )
    assert config.data.size == 128
    assert (config.data.source, config.data.data_dir) == ("tfds:other", "/data=1")
    assert config.model.dtype == stage_1.model.dtype == "bfloat16"


@pytest.mark.parametrize("module", CONFIGS.values(), ids=CONFIGS)
def test_an_argument_that_nothing_would_read_is_refused(module):
    readers = "lfq, bsq, vq, vq_ema, simvq"
    with pytest.raises(ValueError, match=f"codebook_size=77 is for {readers}; quantizer=fsq takes"):
        module.get_config("codebook_size=77")
    readers = "fsq, residual_fsq, grouped_fsq; quantizer=vq takes codebook_size"
    with pytest.raises(ValueError, match=rf"levels=\(8, 6\) is for {readers}"):
        module.get_config("quantizer=vq,levels=8-6")
    with pytest.raises(ValueError, match="stages=3 is for residual_fsq; quantizer=grouped_fsq"):
        module.get_config("quantizer=grouped_fsq,stages=3")


def test_transformer_takes_tokenizer_and_cache():
    config = maskgit_transformer.get_config("tokenizer=runs/a,token_cache=runs/b")
    assert (config.stage_1.workdir, config.token_cache) == ("runs/a", "runs/b")


@pytest.mark.parametrize("module", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("scale", SCALES)
def test_scales_differ_in_values_alone(module, scale):
    keys = lambda tree: {  # noqa: E731
        name: keys(value) if isinstance(value, dict) else type(value)
        for name, value in tree.items()
    }
    ours = keys(module.get_config(f"scale={scale}").to_dict())
    assert ours == keys(module.get_config("scale=smoke").to_dict())


def flat(config, prefix: str = "") -> dict:
    return {
        prefix + name: value
        for key, inner in config.to_dict().items()
        for name, value in (
            {f"{key}.{k}": v for k, v in inner.items()} if isinstance(inner, dict) else {key: inner}
        ).items()
    }


PAPER_TOKENIZER = {
    "model.filters": 128,
    "model.channel_multipliers": (1, 1, 2, 2, 4),
    "model.num_res_blocks": 2,
    "model.shortcut": "output",
    "model.dtype": "float32",
    "model.num_groups": 32,
    "discriminator.channel_multiplier": 1,
    "discriminator.blur": True,
    "discriminator.max_width": 512,
    "discriminator.dtype": "float32",
    "loss.reconstruction": 1.0,
    "loss.adversarial": 0.1,
    "loss.perceptual": 0.1,
    "loss.r1": 10.0,
    "loss.r1_every": 1,
    "loss.lecam": 0.0,
    "loss.adversarial_start": 0,
    "loss.discriminator_start": 0,
    "perceptual.name": "resnet50",
    "optim.learning_rate": 1e-4,
    "optim.b1": 0.0,
    "optim.b2": 0.99,
    "optim.warmup_steps": 0,
    "optim.schedule": "constant",
    "optim.weight_decay": 0.0,
    "optim.clip_norm": 0.0,
    "discriminator_optim.learning_rate": 1e-4,
    "ema_decay": 0.999,
    "seed": 42,
    "accumulate": 1,
    "data.source": "tfds:imagenet2012",
    "data.eval_split": "validation",
    "data.train_split": "train",
    "data.eval_limit": 0,
    "data.flip": True,
}
PAPER_TRANSFORMER = {
    "model.width": 768,
    "model.depth": 24,
    "model.num_heads": 16,
    "model.mlp_dim": 3072,
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "model.dtype": "float32",
    "num_classes": 1000,
    "label_dropping": 0.1,
    "masking.schedule": "cosine",
    "masking.label_smoothing": 0.1,
    "masking.min_ratio": 0.45,
    "sampling.num_steps": 12,
    "sampling.schedule": "cosine",
    "sampling.choice_temperature": 4.5,
    "optim.learning_rate": 1e-4,
    "optim.b1": 0.9,
    "optim.b2": 0.96,
    "optim.weight_decay": 0.045,
    "optim.warmup_steps": 5_000,
    "optim.schedule": "constant",
    "optim.clip_norm": 0.0,
    "ema_decay": 0.999,
    "seed": 42,
    "accumulate": 1,
    "data.source": "tfds:imagenet2012",
}


def check(config, expected: dict) -> None:
    ours = flat(config)
    assert {name: ours[name] for name in expected} == expected


@pytest.mark.parametrize("size, steps, batch_size", [(256, 10**6, 512), (128, 500_000, 256)])
def test_paper_tokenizer(size, steps, batch_size):
    config = maskgit_tokenizer.get_config(f"scale=paper,size={size}")
    check(
        config,
        PAPER_TOKENIZER
        | {
            "steps": steps,
            "batch_size": batch_size,
            "data.size": size,
            "quantizer.name": "fsq",
            "quantizer.levels": (8, 5, 5, 5),
        },
    )
    # All validation images against the whole training set, in ADM's suite (section 4.2).
    assert config.evals.reconstruction.features == "inception"
    assert config.evals.reconstruction.protocol == "adm"
    assert config.evals.reconstruction.reference_split == "train"
    assert config.evals.reconstruction.reference_limit == 0
    vq = maskgit_tokenizer.get_config(f"scale=paper,size={size},quantizer=vq")
    assert vq.quantizer.to_dict() == dict(
        name="vq",
        codebook_size=1024,
        channels=256,
        codebook_channels=0,
        gradient="straight_through",
        normalize=False,
        commitment_weight=0.25,
        entropy_weight=0.1,
        entropy_group=vq.quantizer.entropy_group,  # not the paper's: docs/fidelity.md
    )
    assert config.data.transform == "adm"
    assert config.evals.reconstruction.published_reference == f"VIRTUAL_imagenet{size}_labeled.npz"
    given = maskgit_tokenizer.get_config(f"scale=paper,size={size},reference=a/b.npz")
    assert given.evals.reconstruction.reference == "a/b.npz"


@pytest.mark.parametrize("size, steps", [(256, 2_500_000), (128, 1_000_000)])
@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_paper_transformer(size, steps, quantizer):
    config = maskgit_transformer.get_config(f"scale=paper,size={size},quantizer={quantizer}")
    check(
        config,
        PAPER_TRANSFORMER
        | {
            "steps": steps,
            "batch_size": 256,
            "data.size": size,
            "sampling.guidance": -1,
        },
    )
    assert config.evals.generation.to_dict() == dict(
        every=100_000,
        features="inception",
        protocol="adm",
        weights="",
        reference="",
        num_samples=50_000,
        reference_split="train",
        reference_limit=0,
        published_reference=f"VIRTUAL_imagenet{size}_labeled.npz",
    )
    given = maskgit_transformer.get_config(f"scale=paper,size={size},reference=a/b.npz")
    assert given.evals.generation.reference == "a/b.npz"


@pytest.mark.parametrize(
    "size, guidance, quantizer, stands_for",
    [
        (256, -1, "fsq", 0.2),
        (256, -1, "vq", 0.1),
        (128, -1, "fsq", 0.0),
        (128, -1, "vq", 0.0),
        (256, 0.0, "fsq", 0.0),
        (128, 1.5, "vq", 1.5),
    ],
)
def test_guidance_is_that_of_the_tokenizer_that_is_loaded(size, guidance, quantizer, stands_for):
    """Whatever the argument `quantizer` says: figure 4's, and none where the paper states none."""
    said = "vq" if quantizer == "fsq" else "fsq"
    config = maskgit_transformer.get_config(f"scale=paper,size={size},quantizer={said}")
    config.sampling.guidance = float(guidance)
    loaded = maskgit_tokenizer.get_config(f"scale=paper,size={size},quantizer={quantizer}")
    tokenizer = stage_1.make(loaded, None)
    made = maskgit_transformer_stage.make(config, tokenizer)
    assert made.facts.sampling["guidance"] == stands_for
    assert made.recorded["sampling.guidance"] == stands_for
    assert config.sampling.guidance == guidance


def test_paper_is_256_pixels_by_default_and_no_third_size():
    assert maskgit_tokenizer.get_config("scale=paper").data.size == 256
    with pytest.raises(ValueError, match="256 or 128 pixels, not of size=64"):
        maskgit_transformer.get_config("scale=paper,size=64")


TASKS = ("depth", "colorization", "panoptic")


@pytest.mark.parametrize("module", [uvim_base, uvim_lm])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "context, seen",
    [
        ("both", (True, True)),
        ("encoder", (True, False)),
        ("decoder", (False, True)),
        ("none", (False, False)),
    ],
)
def test_tasks_and_contexts_arrive(module, task, context, seen):
    config = module.get_config(f"task={task},context={context},quantizer=vq_ema,splitting=false")
    stage_1 = config.stage_1 if module is uvim_lm else config
    assert config.task.name == task and task in config.evals
    assert (stage_1.model.encoder_context, stage_1.model.decoder_context) == seen
    assert stage_1.quantizer.split_threshold == 0.0
    config = module.get_config("quantizer=vq_ema")
    stage_1 = config.stage_1 if module is uvim_lm else config
    assert stage_1.quantizer.split_threshold == 0.1


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_splitting_is_for_the_codebook_that_can(quantizer):
    with pytest.raises(ValueError, match=f"splitting=false is for vq_ema.*quantizer={quantizer}"):
        uvim_lm.get_config(f"quantizer={quantizer},splitting=false")


def test_language_model_takes_base_cache_and_weights():
    config = uvim_lm.get_config("base=runs/a,token_cache=runs/b")
    assert (config.stage_1.workdir, config.token_cache) == ("runs/a", "runs/b")


PAPER_BASE = {
    "model.patch": 16,
    "model.width": 768,
    "model.encoder_depth": 6,
    "model.decoder_depth": 12,
    "model.num_heads": 12,
    "model.mlp_dim": 3072,
    "model.code_side": 16,
    "model.encoder_context": True,
    "model.decoder_context": True,
    "model.code_dropout": "random",
    "model.dtype": "float32",
    "optim.name": "adafactor",
    "optim.b1": 0.9,
    "optim.b2": 0.95,
    "optim.clip_norm": 1.0,
    "optim.warmup_steps": 4_000,
    "optim.schedule": "cosine",
    "ema_decay": 0.0,
    "seed": 0,
    "batch_size": 1024,
    "accumulate": 1,
    "data.size": 512,
    "data.transform": "uvim",
    "data.min_area": 0.05,
    "data.aspect": (0.75, 1.33),
    "data.flip": True,
    "data.eval_split": "validation",
    "data.eval_limit": 0,
}
PAPER_LM = {
    "model.patch": 16,
    "model.width": 1024,
    "model.encoder_depth": 24,
    "model.decoder_depth": 24,
    "model.num_heads": 16,
    "model.mlp_dim": 4096,
    "model.dtype": "float32",
    "sampling.temperature": 0.0,
    "optim.name": "adafactor",
    "optim.learning_rate": 1e-3,
    "optim.weight_decay": 1e-6,
    "optim.clip_norm": 0.0,
    "optim.warmup_steps": 4_000,
    "optim.schedule": "cosine",
    "ema_decay": 0.0,
    "seed": 0,
    "batch_size": 512,
    "data.size": 512,
}


@pytest.mark.parametrize(
    "task, source, split, steps, lm_steps, rate, decay",
    [
        ("depth", "tfds:nyu_depth_v2", "train", 9_294, 4_647, 1e-3, 1e-5),
        ("colorization", "tfds:imagenet2012", "train[4096:]", 124_714, 124_714, 4e-4, 4e-5),
        ("panoptic", "tfds:coco/2017_panoptic", "train[4096:]", 111_515, 44_606, 4e-4, 4e-5),
    ],
)
def test_paper_uvim(task, source, split, steps, lm_steps, rate, decay):
    data = {"data.source": source, "data.train_split": split}
    config = uvim_base.get_config(f"scale=paper,task={task}")
    check(
        config,
        PAPER_BASE
        | data
        | {
            "steps": steps,
            "optim.learning_rate": rate,
            "optim.weight_decay": decay,
            "data.eval_crop": (54, 480, 41, 601) if task == "depth" else (),
        },
    )
    assert config.quantizer.to_dict() == dict(name="fsq", levels=(7, 5, 5, 5, 5), noise=0.0)
    vq = uvim_base.get_config(f"scale=paper,task={task},quantizer=vq_ema")
    assert vq.quantizer.to_dict() == dict(
        name="vq_ema",
        codebook_size=4096,
        channels=768,
        codebook_channels=0,
        gradient="straight_through",
        momentum=0.995,
        commitment_weight=0.0,
        standardize=True,
        normalize=False,
        unit_words=True,
        split_threshold=0.1,
        reseed_threshold=0.0,
    )
    lm = uvim_lm.get_config(f"scale=paper,task={task}")
    check(lm, PAPER_LM | data | {"steps": lm_steps})
    assert lm.task == config.task and lm.stage_1.model == config.model
    assert (
        lm.init_from
        == uvim_lm.ENCODER
        == ("L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz")
    )
    scratch = uvim_lm.get_config(f"scale=paper,task={task},encoder=none")
    assert (scratch.init_from, scratch.optim.rate_multipliers) == ("", ())
    given = uvim_lm.get_config(f"scale=paper,task={task},encoder=a/b.npz")
    assert given.init_from == "a/b.npz" and given.optim == lm.optim
    ((names, factor),) = lm.optim.rate_multipliers
    assert factor == 0.1 and re.fullmatch(names, "encoder/encoderblock_0/LayerNorm_0/scale")
    assert not re.fullmatch(names, "decoder/LogitsDense/kernel")


def test_paper_panoptic_has_cocos_classes():
    config = uvim_base.get_config("scale=paper,task=panoptic")
    assert (config.task.num_semantics, config.task.num_instances) == (134, 100)
    few = uvim_base.get_config("scale=bench,task=panoptic")
    assert few.task.num_semantics == len(scenes.SEGMENT_NAMES)


@pytest.mark.parametrize("module", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    "text, message",
    [
        ("quantiser=vq", "Config argument 'quantiser' is unknown; did you mean 'quantizer'?"),
        ("scale=papr", "scale='papr' is unknown; did you mean 'paper'?"),
        ("dtype=half", "dtype='half' is unknown; there are bfloat16, float32."),
        ("dtype=float16", "dtype='float16' is unknown; did you mean 'bfloat16'?"),
        ("size=big", "size='big' can't be read as a whole number."),
        ("size=-32", "size='-32' can't be read as a whole number."),
        ("levels=8-x", "levels='8-x' can't be read as numbers such as 8-5-5-5."),
        (
            "levels=8,5,5,5",
            "Config argument '5' is not of the form NAME=VALUE, as in scale=bench,levels=8-5-5-5.",
        ),
        (
            "bench",
            "Config argument 'bench' is not of the form NAME=VALUE, as in "
            "scale=bench,levels=8-5-5-5.",
        ),
    ],
)
def test_unknown_arguments_name_the_nearest(module, text, message):
    with pytest.raises(ValueError) as error:
        module.get_config(text)
    assert str(error.value) == message


@pytest.mark.parametrize("module", CONFIGS.values(), ids=CONFIGS)
def test_unknown_quantizers_name_those_that_there_are(module):
    with pytest.raises(ValueError, match="quantizer='kmeans' is unknown; there are bsq, fsq, "):
        module.get_config("quantizer=kmeans")


def test_arguments_are_written_as_they_are_read():
    values = dict(a=1.5, b=(8, 5), c="x", d=0, e=(0,), f="")
    assert arguments.text(values) == "a=1.5,b=8-5,c=x"


def test_arguments_take_the_type_of_their_default():
    parsed = arguments.parse("a=2.5,b=true,c=3-4", a=1.0, b=False, c=(1,), d="x")
    assert parsed == dict(a=2.5, b=True, c=(3, 4), d="x")
    with pytest.raises(ValueError, match="'maybe' can't be read as true or false"):
        arguments.parse("b=maybe", b=False)


def test_overrides_are_taken_and_misspelt_ones_fail(monkeypatch):
    def parse(change):
        file = cli.config_path("configs/maskgit_tokenizer.py")
        argv = ["program", f"--config={file}:scale=smoke", change]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for overrides
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(argv)
        return values.config

    assert parse("--config.optim.learning_rate=0.5").optim.learning_rate == 0.5
    with pytest.raises((AttributeError, KeyError), match="learning_rat"):
        parse("--config.optim.learning_rat=0.5")
    with pytest.raises(flags.IllegalFlagValueError, match="many"):
        parse("--config.steps=many")


@pytest.mark.parametrize("path", ["configs/uvim_lm.py:scale=smoke,base=a:b", "uvim_lm:scale=smoke"])
def test_the_packages_configs_are_found_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, _, rest = cli.config_path(path).partition(":")
    assert rest == path.partition(":")[2]
    assert file == uvim_lm.__file__
    (tmp_path / "uvim_lm").touch()
    assert cli.config_path("uvim_lm:scale=smoke") == "uvim_lm:scale=smoke"  # a file here goes first
    with pytest.raises(ValueError, match="no config 'configs/uvim_ml.py'; did you mean 'uvim_lm'"):
        cli.config_path("configs/uvim_ml.py:scale=smoke")


def three_steps(config) -> list[dict]:
    """Metrics of the first three updates on random images, as one device makes them."""
    stage = tiny.stage_of_shapes(config)
    batch = train_step.random_batch(config, stage, tokens=False, size=4)
    state = tiny.first_state(stage, batch)
    if stage.frozen is not None:  # of a stage I that was never trained
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), stage.frozen)
        state = state.replace(frozen=zeros)
    first, update, metrics = state.params, jax.jit(stage.update), []
    for _ in range(3):
        state, values = update(state, batch, jax.random.key(1))
        metrics.append(jax.device_get(values))
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), first, state.params)
    assert all(jax.tree.leaves(moved["tokenizer"]["decoder"] if "tokenizer" in moved else moved))
    assert int(state.step) == 3
    assert all(np.isfinite(value) for values in metrics for value in values.values())
    return metrics


# In float32, with and without the discriminator, FSQ and VQ train in tests/stages.
@pytest.mark.parametrize(
    "quantizer, dtype", [("simvq", "float32"), ("lfq", "float32"), ("fsq", "bfloat16")]
)
def test_smoke_tokenizer_trains(quantizer, dtype):
    changes = {"model.dtype": dtype, "discriminator.dtype": dtype, "optim.learning_rate": 1e-3}
    if quantizer != "fsq":  # the discriminator is FSQ's, and takes seconds to compile
        changes["loss.adversarial"] = 0.0
    metrics = three_steps(tiny.tokenizer(changes, quantizer))
    assert metrics[2]["reconstruction"] < metrics[0]["reconstruction"]


# In float32, and with every task and quantizer, these train in tests/stages.
def test_smoke_transformer_trains_in_bfloat16():
    changes = {"model.dtype": "bfloat16", "num_classes": 0, "optim.learning_rate": 1e-2}
    metrics = three_steps(describe.with_classes(tiny.transformer("", changes)))
    assert metrics[2]["loss"] < metrics[0]["loss"]


def test_smoke_label_autoencoder_trains_in_bfloat16():
    changes = {"model.dtype": "bfloat16", "optim.learning_rate": 1e-2}
    metrics = three_steps(tiny.label_coder(changes))
    assert metrics[2]["task"] < metrics[0]["task"]


def test_smoke_language_model_trains_in_bfloat16():
    changes = {"model.dtype": "bfloat16", "optim.learning_rate": 1e-2}
    metrics = three_steps(tiny.code_model("", changes))
    assert metrics[2]["loss"] < metrics[0]["loss"]


def test_resolve_counts_classes_and_refuses_what_can_only_fail_later(monkeypatch):
    config = maskgit_transformer.get_config("scale=smoke")
    assert resolve_config(config).num_classes == 30 and config.num_classes == 0
    for change, message in (
        ({"batch_size": 12}, "batch_size=12 is not a multiple of 8 devices"),
        ({"log_every": 0}, "log_every=0 must be at least 1."),
        ({"model.dtype": "bf16"}, "model.dtype='bf16' must be one of"),
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(change)
        with pytest.raises(ValueError, match=message):
            resolve_config(changed)
    paper = maskgit_transformer.get_config("scale=paper")
    monkeypatch.delenv("FSQ_JAX_INCEPTION", raising=False)
    with pytest.raises(
        ValueError,
        match=(
            "evals.generation: FID needs Inception's weights.*"
            "--config.evals.generation.features=efficientnet needs no file"
        ),
    ):
        resolve_config(paper)
    config.evals.fid = dict(every=5)
    with pytest.raises(ValueError, match=r"Evaluators \['fid'\] are unknown; there are"):
        resolve_config(config)

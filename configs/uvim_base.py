"""UViM stage I: depth, colour or panoptic segments to 256 codes and back, with FSQ or VQ.

python -m fsq_jax.train --config=configs/uvim_base.py:scale=bench,task=depth --workdir=runs/base

Arguments, after the colon, separated by commas:
  scale=bench|smoke|paper   bench: scenes, one GPU, minutes. smoke: scenes, a CPU, seconds.
                            paper: NYU Depth v2, ImageNet, COCO panoptic, the settings of UViM's
                            code; where each number comes from: docs/fidelity.md.
  task=depth|colorization|panoptic
  quantizer=fsq|vq_ema|...  FSQ, UViM's VQ, or another of configs/quantizers.py:
                            residual_fsq, grouped_fsq, lfq, bsq, vq, simvq
  levels=7-5-5-5-5          of the FSQs, of each stage or group; default by scale
  stages=2, groups=2        of residual_fsq, of grouped_fsq
  codebook_size=4096        of the others; default by scale
  splitting=true|false      whether vq_ema revives idle words by splitting busy ones
  context=both|encoder|decoder|none   which halves see the image
  size=512                  image size in pixels; default by scale
  data=tfds:nyu_depth_v2    or scenes, arrays:PATH; default by scale and task
  data_dir=PATH             where TFDS keeps its data sets
  dtype=float32|bfloat16    what activations are computed in; default by scale

Reached with scale=bench and 6,000 steps (scenes, experiments/results/table2_uvim), from the true
indices, FSQ and VQ: depth RMSE 0.148 and 0.152 m, PQ 96.7 and 96.8, colour PSNR 35.70 and 35.81
dB. scale=paper: not run.
"""

from typing import Any

import ml_collections

from configs import arguments, quantizers

TASKS = ("depth", "colorization", "panoptic")
ARGUMENTS = dict(
    scale=("bench", "smoke", "paper"),
    task=TASKS,
    **quantizers.ARGUMENTS,
    splitting=("", "true", "false"),
    context=("both", "encoder", "decoder", "none"),
    size=0,
    data="",
    data_dir="",
    dtype=("", "float32", "bfloat16"),
)
DEFAULTS = {
    "paper": dict(size=512, dtype="float32", levels=(7, 5, 5, 5, 5), codebook_size=4096),
    "bench": dict(
        size=128, data="scenes", dtype="bfloat16", levels=(7, 5, 5, 5, 5), codebook_size=4096
    ),
    "smoke": dict(size=32, data="scenes", dtype="float32", levels=(8, 6, 5), codebook_size=240),
}
# Section C.4 of UViM's recipe: training set, its size, epochs, learning rate, weight decay.
PAPER: dict[str, dict[str, Any]] = {
    "depth": dict(
        data="tfds:nyu_depth_v2",
        train_split="train",
        eval_split="validation",
        num_records=47_584,
        epochs=200,
        learning_rate=1e-3,
        weight_decay=1e-5,
    ),
    "colorization": dict(
        data="tfds:imagenet2012",
        train_split="train[4096:]",
        eval_split="validation",
        num_records=1_277_071,
        epochs=100,
        learning_rate=4e-4,
        weight_decay=4e-5,
    ),
    "panoptic": dict(
        data="tfds:coco/2017_panoptic",
        train_split="train[4096:]",
        eval_split="validation",
        num_records=114_191,
        epochs=1000,
        learning_rate=4e-4,
        weight_decay=4e-5,
    ),
}


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    args = arguments.parse(argument, **ARGUMENTS)
    scale = args["scale"]
    defaults = dict(data=PAPER[args["task"]]["data"]) | DEFAULTS[scale]
    quantizers.complete(args, defaults.pop("levels"), defaults.pop("codebook_size"))
    for name, value in defaults.items():
        args[name] = args[name] or value
    config = ml_collections.ConfigDict(dict(stage="uvim_base", seed=0))
    config.task = task(args["task"], scale, args["data"])
    config.quantizer = quantizers.constructor(args, width=WIDTHS[scale])
    config.model = dict(
        patch=16,
        width=768,
        encoder_depth=6,
        decoder_depth=12,
        num_heads=12,
        mlp_dim=3072,
        code_side=16,  # codes along a side, whatever the number of patches
        encoder_context=args["context"] in ("both", "encoder"),
        decoder_context=args["context"] in ("both", "decoder"),
        code_dropout="random",
        remat=False,
        dtype=args["dtype"],
    )
    config.optim = optimizer()
    config.ema_decay = 0.0  # UViM averages no weights: evaluation takes the weights themselves
    config.init_from = ""  # weights to start from: a published file, an export, a run's workdir
    config.data = data(args)
    config.update(SCALES[scale](args["task"]))
    config.accumulate = 1  # microbatches of an update
    # Weights & Biases beside TensorBoard: a project switches it on; the name is the workdir's.
    config.wandb = dict(project="", name="")
    config.fsdp = False  # shard large weights over the devices, rather than copy them to each
    config.idle_devices = scale == "bench"  # whether a batch may leave some devices idle
    config.guard = dict(max_loss=0.0, patience=10)  # stops after so many steps above a loss
    config.best, config.best_mode = BEST[args["task"]]
    return config


WIDTHS = {"paper": 768, "bench": 256, "smoke": 32}
BEST = {
    "depth": ("depth/rmse", "min"),
    "colorization": ("colorization/psnr", "max"),
    "panoptic": ("panoptic/pq", "max"),
}


def task(name: str, scale: str, data: str) -> dict:
    """The constructor's arguments of the task; the scenes have few classes and few objects."""
    if name == "depth":
        # Bins of 8 cm are fine enough for the scenes, and halve the memory of the logits.
        num_bins = 128 if scale == "bench" else 256
        return dict(name=name, num_bins=num_bins, min_depth=0.001, max_depth=10.0)
    if name == "colorization":
        return dict(name=name)
    # Void, two kinds of stuff and five of things; 0: as many classes as the data has.
    few = dict(num_semantics=8 if data.startswith("scenes") else 0, num_instances=8)
    coco = data == PAPER[name]["data"]
    paper = dict(num_semantics=134 if coco else 0, num_instances=100)
    return dict(name=name, min_fraction=0.0) | (paper if scale == "paper" else few)


def optimizer() -> dict:
    """big_vision's Adafactor with UViM's schedule; weight decay is not times the learning rate."""
    return dict(
        name="adafactor",
        learning_rate=1e-3,
        b1=0.9,
        b2=0.95,
        weight_decay=1e-5,
        clip_norm=1.0,
        warmup_steps=4_000,
        schedule="cosine",
    )


def data(args) -> dict:
    """What is read and how it is augmented: UViM's inception crop and mirror image."""
    return dict(
        source=args["data"],
        data_dir=args["data_dir"],
        size=args["size"],
        train_split="train",
        eval_split="validation",
        transform="uvim",
        min_area=0.05,
        aspect=(0.75, 1.33),
        flip=True,
        eval_crop=(),  # (top, bottom, left, right) that is evaluated of an image; () for all
        workers=0,
        cache=False,
        skip_damaged=False,  # names and counts damaged records, rather than stop at the first
        eval_limit=0,
    )


def paper(task: str) -> dict:
    """UViM's own numbers (section 4.4 retrains it as it is); steps = epochs x records / batch."""
    of_task = PAPER[task]
    return dict(
        steps=round(of_task["epochs"] * of_task["num_records"] / 1024),
        batch_size=1024,
        eval_batch_size=32,  # segments take 0.35 GB of logits and masks per image
        optim=dict(learning_rate=of_task["learning_rate"], weight_decay=of_task["weight_decay"]),
        log_every=50,
        preview_every=5_000,
        checkpoint_every=1_000,
        keep=3,
        data=dict(
            train_split=of_task["train_split"],
            eval_split=of_task["eval_split"],
            eval_crop=(54, 480, 41, 601) if task == "depth" else (),
            workers=16,
        ),
        evals={"codebook": dict(every=10_000)}
        | evals(
            # ColTran's protocol, in the order of the records: 5,000 against 5,000 others.
            task,
            every=10_000,
            features="inception",
            num_images=5_000,
            reference_split="validation[10000:15000]",
        ),
    )


def bench(task: str) -> dict:
    return dict(
        steps=1_500,
        batch_size=64,
        eval_batch_size=64,
        model=dict(
            patch=8,
            width=256,
            encoder_depth=4,
            decoder_depth=6,
            num_heads=8,
            mlp_dim=1024,
            code_side=8,
        ),
        optim=dict(warmup_steps=150),
        # A scene is seen from one place, and its objects stand on the floor: no crop.
        data=dict(workers=2, min_area=1.0, aspect=(1.0, 1.0)),
        log_every=50,
        preview_every=1_500,
        checkpoint_every=1_500,
        keep=1,
        evals={"codebook": dict(every=1_500)} | evals(task, every=1_500, features="efficientnet"),
    )


def smoke(task: str) -> dict:
    return dict(
        steps=20,
        batch_size=8,
        eval_batch_size=8,
        model=dict(
            patch=4,
            width=32,
            encoder_depth=1,
            decoder_depth=1,
            num_heads=2,
            mlp_dim=64,
            code_side=4,
        ),
        optim=dict(warmup_steps=5),
        data=dict(
            train_split="train[:64]", eval_split="validation[:20]", min_area=1.0, aspect=(1.0, 1.0)
        ),
        log_every=5,
        preview_every=10,
        checkpoint_every=10,
        keep=2,
        evals={"codebook": dict(every=20)} | evals(task, every=20, features="random"),
    )


SCALES = {"paper": paper, "bench": bench, "smoke": smoke}


def evals(
    task: str, every: int, features: str, num_images: int = 0, reference_split: str = "train"
) -> dict:
    """The task's evaluator; colours are also held against real images, over these features."""
    if task != "colorization":
        return {task: dict(every=every)}
    return {
        task: dict(
            every=every,
            features=features,
            weights="",
            num_images=num_images,
            names="",  # file of the names of the images that are coloured, one per line
            reference_split=reference_split,
            reference_limit=5_000,
            reference_names="",  # the same of the real images, in place of the split
        )
    }

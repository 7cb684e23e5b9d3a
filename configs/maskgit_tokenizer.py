"""MaskGIT stage I: a VQ-GAN tokenizer with FSQ (or VQ) codes.

python -m fsq_jax.train --config=configs/maskgit_tokenizer.py:scale=bench --workdir=runs/tokenizer

Arguments, after the colon, separated by commas:
  scale=bench|smoke|paper   bench: Fashion-MNIST, one GPU, minutes. smoke: scenes, a CPU, seconds.
                            paper: ImageNet, the settings of sections 4.2, 4.3 and A.4; where each
                            number comes from, and what the paper leaves open: docs/fidelity.md.
  size=256                  image size in pixels; paper: 256 or 128; default by scale
  quantizer=fsq|vq|...      FSQ, MaskGIT's VQ, or another of configs/quantizers.py:
                            residual_fsq, grouped_fsq, lfq, bsq, vq_ema, simvq
  levels=8-5-5-5            of the FSQs, of each stage or group; default by scale
  stages=2, groups=2        of residual_fsq, of grouped_fsq
  codebook_size=1024        of the others, by default 1024; a power of two for lfq and bsq
  data=tfds:imagenet2012    or scenes, folder:PATH, wds:PATTERN, parquet:PATTERN, hf:NAME,
                            arrays:PATH, see fsq_jax/data/open.py; default by scale
  data_dir=PATH             where TFDS keeps its data sets
  dtype=float32|bfloat16    what activations are computed in; default by scale
  reference=PATH            .npz of the real images' statistics, for FID; the paper's are ADM's
                            VIRTUAL_imagenet256_labeled.npz and VIRTUAL_imagenet128_labeled.npz.
                            Without it scale=paper measures fid_own_reference

Reached with scale=bench and the shorter settings of experiments/maskgit_runs.py (Fashion-MNIST,
3,000 steps of 128, three seeds, experiments/results/fig3_tradeoff): FSQ [8,5,5,5] 25.86 ± 0.08 dB
with 986 of 1,000 codes in use, VQ 23.87 ± 0.05 dB with 671 of 1,024. Neither scale=bench as it is
nor scale=paper was run.
"""

import ml_collections

from configs import arguments, quantizers
from fsq_jax.runtime.user_error import UserError

ARGUMENTS = dict(
    scale=("bench", "smoke", "paper"),
    size=0,
    **quantizers.ARGUMENTS,
    data="",
    data_dir="",
    dtype=("", "float32", "bfloat16"),
    reference="",
)
DEFAULTS = {
    "paper": dict(size=256, data="tfds:imagenet2012", dtype="float32", levels=(8, 5, 5, 5)),
    "bench": dict(size=32, data="tfds:fashion_mnist", dtype="bfloat16", levels=(8, 5, 5, 5)),
    "smoke": dict(size=32, data="scenes", dtype="float32", levels=(8, 6, 5)),
}


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    args = arguments.parse(argument, **ARGUMENTS)
    scale = args["scale"]
    defaults = dict(DEFAULTS[scale])
    quantizers.complete(args, defaults.pop("levels"), codebook_size=1024)
    for name, value in defaults.items():
        args[name] = args[name] or value
    config = ml_collections.ConfigDict(dict(stage="maskgit_tokenizer", seed=42))
    config.quantizer = quantizers.constructor(args, width=256)
    config.model = dict(
        filters=128,
        channel_multipliers=(1, 1, 2, 2, 4),
        num_res_blocks=2,
        num_groups=32,
        shortcut="output",  # as in MaskGIT's code and checkpoints; "input" is a true residual
        remat=False,
        dense_layers=0,
        dtype=args["dtype"],
    )
    config.discriminator = dict(channel_multiplier=1, max_width=512, blur=True, dtype=args["dtype"])
    config.loss = dict(
        reconstruction=1.0,
        adversarial=0.1,
        perceptual=0.1,
        r1=10.0,
        lecam=0.0,
        lecam_decay=0.99,
        r1_every=1,  # 16 is StyleGAN2's lazy schedule: as strong on average, and cheaper
        adversarial_start=0,
        discriminator_start=0,  # steps before which a side is switched off
    )
    # The paper's is name="resnet50" with path=FILE, an ImageNet ResNet-50 in torchvision's names.
    config.perceptual = dict(name="efficientnet", path="")
    config.optim = dict(
        learning_rate=1e-4,
        b1=0.0,
        b2=0.99,
        warmup_steps=0,
        schedule="constant",
        weight_decay=0.0,
        clip_norm=0.0,
    )
    config.discriminator_optim = dict(learning_rate=1e-4)  # over the values of `optim`
    config.ema_decay = 0.999
    config.init_from = ""  # weights to start from: a published file, an export, a run's workdir
    config.data = data(args)
    config.update(SCALES[scale](args["size"]))
    config.evals.reconstruction.reference = args["reference"]
    config.accumulate = 1  # microbatches of an update
    # Weights & Biases beside TensorBoard: a project switches it on; the name is the workdir's.
    config.wandb = dict(project="", name="")
    config.fsdp = False  # shard large weights over the devices, rather than copy them to each
    config.idle_devices = scale == "bench"  # whether a batch may leave some devices idle
    # Stops a run that has gone wrong for `patience` steps in a row: above a loss, or where the
    # discriminator's logits of real images are that far above those of reconstructions; 0: off.
    config.guard = dict(max_loss=0.0, max_logit_gap=0.0, patience=10)
    config.best, config.best_mode = "reconstruction/psnr", "max"
    return config


def data(args) -> dict:
    """What is read and how it is augmented."""
    paper = args["scale"] == "paper"
    return dict(
        source=args["data"],
        data_dir=args["data_dir"],
        size=args["size"],
        train_split="train",
        eval_split="validation",
        # Random resized crop and mirror image. MaskGIT's own augmentation was never published;
        # those who compared call it weak, hence the large area. At scale=paper images are evaluated
        # as ADM crops them, since FID is measured against ADM's reference.
        transform="adm" if paper else "square",
        min_area=0.8,
        aspect=(3 / 4, 4 / 3),
        flip=True,
        eval_crop=(),  # (top, bottom, left, right) that is evaluated of an image; () for all
        workers=0,
        cache=False,
        skip_damaged=False,  # names and counts damaged records, rather than stop at the first
        eval_limit=0,
    )


def paper(size: int) -> dict:
    """Sections 4.2 (128 px) and 4.3 (256 px): the latter is batch 512 for 1M steps."""
    if size not in (128, 256):
        raise UserError(f"scale=paper is of 256 or 128 pixels, not of {size=}.")
    steps, batch_size = (500_000, 256) if size == 128 else (1_000_000, 512)
    return dict(
        steps=steps,
        batch_size=batch_size,
        eval_batch_size=128,
        log_every=100,
        preview_every=5_000,
        checkpoint_every=5_000,
        keep=3,
        data=dict(workers=16),
        perceptual=dict(name="resnet50", path="resnet50.pth"),
        evals=evals(
            every=50_000,
            features="inception",
            limit=0,
            published_reference=f"VIRTUAL_imagenet{size}_labeled.npz",
        ),
    )


def bench(size: int) -> dict:
    del size
    return dict(
        steps=5_000,
        batch_size=256,
        eval_batch_size=500,
        model=dict(
            filters=96,
            channel_multipliers=(1, 1, 2),
            num_res_blocks=1,
            num_groups=24,
            shortcut="input",
        ),
        discriminator=dict(max_width=96),
        # No perceptual loss, so that EfficientNet can judge what was not trained to please it.
        loss=dict(
            reconstruction=5.0,
            perceptual=0.0,
            r1_every=4,
            adversarial_start=1_000,
        ),
        # Pictures of clothes are not cropped: where a sleeve ends is part of what it is.
        data=dict(eval_split="test", workers=6, cache=True, min_area=1.0, aspect=(1.0, 1.0)),
        optim=dict(learning_rate=4e-4, warmup_steps=200),
        discriminator_optim=dict(learning_rate=4e-4),
        log_every=50,
        preview_every=2_500,
        checkpoint_every=2_500,
        keep=2,
        evals=evals(every=5_000, features="efficientnet", limit=0),
    )


def smoke(size: int) -> dict:
    del size
    return dict(
        steps=20,
        batch_size=8,
        eval_batch_size=8,
        model=dict(
            filters=8,
            channel_multipliers=(1, 2, 2),
            num_res_blocks=1,
            num_groups=2,
            shortcut="input",
        ),
        discriminator=dict(max_width=16),
        loss=dict(perceptual=0.0),
        data=dict(train_split="train[:64]", eval_split="validation[:20]"),
        log_every=5,
        preview_every=10,
        checkpoint_every=10,
        keep=2,
        evals=evals(every=20, features="random", limit=0),
    )


SCALES = {"paper": paper, "bench": bench, "smoke": smoke}


def evals(every: int, features: str, limit: int, published_reference: str = "") -> dict:
    """What is evaluated, how often, over which features; limit: of the real images, 0 for all."""
    return dict(
        codebook=dict(every=every),
        reconstruction=dict(every=every, **distance(features, limit, published_reference)),
    )


def distance(features: str, limit: int, published_reference: str = "") -> dict:
    """How images are held against real ones; see `fsq_jax.scoring.protocols` for the names."""
    return dict(
        features=features,  # inception: FID; efficientnet, random: other distances
        protocol="adm",
        weights="",  # Inception's file; "": $FSQ_JAX_INCEPTION
        reference="",  # an .npz of ADM's or of fsq_jax.reference, in place of the split
        # What published numbers are against: those of another are called fid_own_reference.
        published_reference=published_reference,
        reference_split="train",
        reference_limit=limit,
    )

"""MaskGIT stage II: a masked transformer on the tokens of a trained stage I.

python -m fsq_jax.train --workdir=runs/maskgit \
    --config=configs/maskgit_transformer.py:scale=bench,tokenizer=runs/tokenizer

Arguments, after the colon, separated by commas:
  scale=bench|smoke|paper   as in maskgit_tokenizer.py
  tokenizer=PATH            workdir of the stage I run whose tokens are modelled
  token_cache=PATH          trains on tokens that `python -m fsq_jax.encode` wrote, rather than on
                            images that are encoded on the fly
  size, data, data_dir, dtype, reference       as in maskgit_tokenizer.py
  quantizer, levels, stages, groups, codebook_size   what `fsq_jax.describe` assumes where no
                                                     tokenizer=PATH is given; a run reads them
                                                     from it

Reached with scale=bench and the shorter settings of experiments/maskgit_runs.py (Fashion-MNIST,
4,000 steps of 128, experiments/results/fig3_tradeoff): on FSQ's tokens 5.217 ± 0.015 bits per token
and a Fréchet distance of samples (EfficientNet) of 50.0 ± 0.1, on VQ's 4.537 ± 0.030 and 55.9 ± 0.7
(2^10 codes, three seeds). Neither scale=bench as it is nor scale=paper was run.
"""

import ml_collections

from configs import arguments, maskgit_tokenizer

ARGUMENTS = maskgit_tokenizer.ARGUMENTS | dict(tokenizer="", token_cache="")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    args = arguments.parse(argument, **ARGUMENTS)
    workdir, token_cache = args.pop("tokenizer"), args.pop("token_cache")
    stage_1 = maskgit_tokenizer.get_config(arguments.text(args))
    scale, size = args["scale"], stage_1.data.size
    config = ml_collections.ConfigDict(dict(stage="maskgit_transformer", seed=42))
    config.stage_1 = dict(
        workdir=workdir,
        fingerprint="",  # of its weights; written by the run, and checked at every later start
        model=stage_1.model.to_dict(),
        quantizer=stage_1.quantizer.to_dict(),
    )
    config.token_cache = token_cache
    config.model = dict(
        width=768,
        depth=24,
        num_heads=16,
        mlp_dim=3072,
        dropout=0.1,
        attention_dropout=0.1,
        attention="auto",
        remat="none",
        dtype=stage_1.model.dtype,
    )
    config.num_classes = 0  # 0: as many as the data has
    config.label_dropping = 0.1  # of the labels become the mask token, for guidance (section 4.3)
    config.masking = dict(
        schedule="cosine",
        label_smoothing=0.1,
        min_ratio=0.45,  # appendix A.4.2: more than this share of the tokens is always masked
    )
    config.sampling = dict(
        num_steps=12,
        schedule="cosine",
        choice_temperature=4.5,
        guidance=0.0,  # -1: what figure 4 found best for the tokenizer that is loaded
    )
    config.optim = dict(
        learning_rate=1e-4,
        b1=0.9,
        b2=0.96,
        weight_decay=0.045,
        warmup_steps=5_000,
        schedule="constant",
        clip_norm=0.0,
    )
    config.ema_decay = 0.999
    config.init_from = ""  # weights to start from: a published file, an export, a run's workdir
    config.data = stage_1.data.to_dict()
    config.update(SCALES[scale](size))
    if scale == "paper":
        if config.data.source == "tfds:imagenet2012":
            config.num_classes = 1000  # known without the data at hand
        config.sampling["guidance"] = -1.0
    config.evals.generation.reference = args["reference"]
    config.accumulate = 1
    # Weights & Biases beside TensorBoard: a project switches it on; the name is the workdir's.
    config.wandb = dict(project="", name="")
    config.fsdp = False
    config.idle_devices = scale == "bench"  # whether a batch may leave some devices idle
    config.guard = dict(max_loss=0.0, patience=10)  # stops after so many steps above a loss
    config.best, config.best_mode = "validation/loss", "min"
    return config


def paper(size: int) -> dict:
    """Sections 4.2 (128 px, 200 epochs) and 4.3 (256 px, 2.5M steps)."""
    return dict(
        steps=1_000_000 if size == 128 else 2_500_000,
        batch_size=256,
        eval_batch_size=128,
        log_every=100,
        preview_every=10_000,
        checkpoint_every=5_000,
        keep=3,
        evals=evals(
            every=100_000,
            features="inception",
            num_samples=50_000,
            limit=0,
            published_reference=f"VIRTUAL_imagenet{size}_labeled.npz",
        ),
    )


def bench(size: int) -> dict:
    del size
    return dict(
        steps=7_000,
        batch_size=256,
        eval_batch_size=500,
        model=dict(width=384, depth=8, num_heads=8, mlp_dim=1536, attention_dropout=0.0),
        sampling=dict(choice_temperature=2.0),  # for 64 tokens; 4.5 is the paper's, for 256
        optim=dict(learning_rate=5e-4, warmup_steps=500, schedule="cosine"),
        log_every=50,
        preview_every=3_000,
        checkpoint_every=3_000,
        keep=2,
        evals=evals(every=7_000, features="efficientnet", num_samples=10_000, limit=0),
    )


def smoke(size: int) -> dict:
    del size
    return dict(
        steps=20,
        batch_size=8,
        eval_batch_size=8,
        model=dict(width=32, depth=2, num_heads=2, mlp_dim=64),
        optim=dict(warmup_steps=5),
        sampling=dict(num_steps=4),
        log_every=5,
        preview_every=10,
        checkpoint_every=10,
        keep=2,
        evals=evals(every=20, features="random", num_samples=20, limit=0),
    )


SCALES = {"paper": paper, "bench": bench, "smoke": smoke}


def evals(
    every: int, features: str, num_samples: int, limit: int, published_reference: str = ""
) -> dict:
    """What is evaluated, how often; samples are balanced over the classes."""
    return dict(
        compression=dict(every=every),
        generation=dict(
            every=every,
            num_samples=num_samples,
            **maskgit_tokenizer.distance(features, limit, published_reference),
        ),
    )

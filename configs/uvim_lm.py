"""UViM stage II: a language model that writes the tokens of a trained stage I, given the image.

python -m fsq_jax.train --workdir=runs/lm \
    --config=configs/uvim_lm.py:scale=bench,task=depth,base=runs/base

Arguments, after the colon, separated by commas:
  scale=bench|smoke|paper   as in uvim_base.py
  task=depth|colorization|panoptic
  base=PATH                 workdir of the stage I run whose tokens are modelled
  encoder=PATH|none         weights that the image encoder starts from. UViM's, which scale=paper
                            needs, are AugReg's ViT-L/16 of ImageNet-21k:
                            L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz of
                            gs://vit_models/augreg; none, the other scales' default, trains it
                            from scratch and at the decoder's rate
  token_cache=PATH          trains on tokens that `python -m fsq_jax.encode` wrote, rather than on
                            labels that are encoded on the fly
  size, data, data_dir, dtype                          as in uvim_base.py
  quantizer, levels, stages, groups, codebook_size, splitting, context
                            what `fsq_jax.describe` assumes where no base=PATH is given; a run
                            reads them from it

Reached with scale=bench on stage I of 6,000 steps (scenes, experiments/results/table2_uvim, three
seeds), FSQ and VQ: depth RMSE 0.253 ± 0.003 and 0.337 ± 0.004 m, PQ 82.4 ± 1.0 and 79.6 ± 1.9,
colours' Fréchet distance (EfficientNet) 65.5 ± 1.5 and 66.7 ± 0.9. scale=paper: not run.
"""

import ml_collections

from configs import arguments, uvim_base

ARGUMENTS = uvim_base.ARGUMENTS | dict(base="", token_cache="", encoder="")
ENCODER = "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz"  # UViM's, in AugReg
# Section C.5 of UViM's recipe: epochs over the training set.
EPOCHS = {"depth": 50, "colorization": 50, "panoptic": 200}


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    args = arguments.parse(argument, **ARGUMENTS)
    workdir, token_cache, encoder = (args.pop(n) for n in ("base", "token_cache", "encoder"))
    stage_1 = uvim_base.get_config(arguments.text(args))
    scale, task = args["scale"], args["task"]
    config = ml_collections.ConfigDict(dict(stage="uvim_lm", seed=0))
    config.task = stage_1.task.to_dict()
    config.stage_1 = dict(
        workdir=workdir,
        fingerprint="",  # of its weights; written by the run, and checked at every later start
        model=stage_1.model.to_dict(),
        quantizer=stage_1.quantizer.to_dict(),
    )
    config.token_cache = token_cache
    config.model = dict(
        patch=16,
        width=1024,
        encoder_depth=24,
        decoder_depth=24,
        num_heads=16,
        mlp_dim=4096,
        remat=False,
        dtype=stage_1.model.dtype,
    )
    config.sampling = dict(temperature=0.0)  # 0: the likeliest token, as UViM's evaluators do
    encoder = encoder or (ENCODER if scale == "paper" else "none")
    config.optim = uvim_base.optimizer() | dict(
        learning_rate=1e-3,
        weight_decay=1e-6,
        clip_norm=0.0,
        # What starts from trained weights learns ten times more slowly.
        rate_multipliers=()
        if encoder == "none"
        else (("encoder/.*|EmbedPatches/.*|pos_embedding_encoder", 0.1),),
    )
    config.ema_decay = 0.0
    # Weights to start from: a published file, an export, a run's workdir, or an encoder's alone.
    config.init_from = "" if encoder == "none" else encoder
    config.data = stage_1.data.to_dict()
    config.update(SCALES[scale](task))
    # The task's own evaluator, as stage I is evaluated, and the training loss on held-out images.
    every = stage_1.evals[task].every
    config.evals = {task: stage_1.evals[task].to_dict(), "validation": dict(every=every)}
    config.accumulate = 1
    # Weights & Biases beside TensorBoard: a project switches it on; the name is the workdir's.
    config.wandb = dict(project="", name="")
    config.fsdp = False
    config.idle_devices = scale == "bench"  # whether a batch may leave some devices idle
    config.guard = dict(max_loss=0.0, patience=10)  # stops after so many steps above a loss
    config.best, config.best_mode = stage_1.best, stage_1.best_mode
    return config


def paper(task: str) -> dict:
    """UViM's own numbers; steps = epochs x records / batch."""
    of_task = uvim_base.PAPER[task]
    return dict(
        steps=round(EPOCHS[task] * of_task["num_records"] / 512),
        batch_size=512,
        eval_batch_size=32,
        log_every=50,
        preview_every=5_000,
        checkpoint_every=1_000,
        keep=3,
    )


def bench(task: str) -> dict:
    del task
    return dict(
        steps=1_500,
        batch_size=64,
        eval_batch_size=64,
        model=dict(patch=8, width=256, encoder_depth=4, decoder_depth=6, num_heads=8, mlp_dim=1024),
        optim=dict(warmup_steps=150, clip_norm=1.0),
        log_every=50,
        preview_every=1_500,
        checkpoint_every=1_500,
        keep=1,
    )


def smoke(task: str) -> dict:
    del task
    return dict(
        steps=20,
        batch_size=8,
        eval_batch_size=8,
        model=dict(patch=4, width=32, encoder_depth=1, decoder_depth=1, num_heads=2, mlp_dim=64),
        optim=dict(warmup_steps=5),
        log_every=5,
        preview_every=10,
        checkpoint_every=10,
        keep=2,
    )


SCALES = {"paper": paper, "bench": bench, "smoke": smoke}

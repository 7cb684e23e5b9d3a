"""The smallest runs that still have every part of a real one, and ways to start them."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil

import jax
import ml_collections
import numpy as np

from configs import maskgit_tokenizer, maskgit_transformer, uvim_base, uvim_lm
from configs.quantizers import TAKES
from fsq_jax import stages
from fsq_jax.runs.frozen import make_stage
from fsq_jax.runtime import checkpoint
from fsq_jax.runtime.batch_random_init import batch_random_init
from fsq_jax.runtime.metric_writer import WALL_CLOCK, read_metrics
from fsq_jax.runtime.workdir import save_config
from fsq_jax.stages.blank import blank_batch

ROOT = pathlib.Path(__file__).parent.parent
ONE_DEVICE = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "").replace("count=8", "count=1")}
_COMMON = dict(
    steps=12,
    batch_size=8,
    eval_batch_size=8,
    log_every=1,
    preview_every=12,
    checkpoint_every=3,
    keep=2,
)


def tokenizer(changes=None, quantizer="fsq") -> ml_collections.ConfigDict:
    """A stage I of 8 x 8 pixels and 4 x 4 tokens; `changes`: {dotted key: value}."""
    config = maskgit_tokenizer.get_config(f"scale=smoke,size=8,{_codebook(quantizer)}")
    config.update(_COMMON)
    if "channels" in config.quantizer:
        config.quantizer.channels = 8
    config.model.update(filters=8, channel_multipliers=(1, 1), num_res_blocks=0)
    config.discriminator.max_width = 8
    config.data.update(train_split="train[:80]", eval_split="validation[:12]")
    config.evals = dict(codebook=dict(every=12))
    config.best = "codebook/perplexity"
    config.update_from_flattened_dict(changes or {})
    return config


def _codebook(quantizer: str) -> str:
    """The arguments that give it 12, 16 or 144 codes."""
    size = "levels=4-3" if "levels" in TAKES[quantizer] else "codebook_size=16"
    return f"quantizer={quantizer},{size}"


def transformer(workdir, changes=None) -> ml_collections.ConfigDict:
    """A stage II on the tokenizer of `workdir`."""
    config = maskgit_transformer.get_config("scale=smoke,size=8")
    config.update(_COMMON)
    config.stage_1.workdir = str(workdir)
    config.model.update(width=16, depth=1, num_heads=2, mlp_dim=32)
    config.num_classes = 30  # as many as the scenes have
    config.optim.warmup_steps = 0
    config.data.update(train_split="train[:80]", eval_split="validation[:12]")
    config.evals = dict(compression=dict(every=12))
    config.update_from_flattened_dict(changes or {})
    return config


def label_coder(changes=None, task="depth", quantizer="fsq") -> ml_collections.ConfigDict:
    """UViM's stage I of 8 x 8 pixels and 2 x 2 codes, with the optimiser that compiles sooner."""
    config = uvim_base.get_config(f"scale=smoke,size=8,task={task},{_codebook(quantizer)}")
    config.update(_COMMON)
    if "channels" in config.quantizer:
        config.quantizer.channels = 16
    if task == "depth":
        config.task.num_bins = 16
    config.model.update(patch=2, width=16, num_heads=2, mlp_dim=32, code_side=2)
    config.optim.update(name="adam", warmup_steps=0)
    config.data.update(train_split="train[:80]", eval_split="validation[:12]")
    config.evals = dict(codebook=dict(every=12))
    config.best = "codebook/perplexity"
    config.update_from_flattened_dict(changes or {})
    return config


def code_model(workdir, changes=None, task="depth") -> ml_collections.ConfigDict:
    """UViM's stage II on the stage I of `workdir`."""
    config = uvim_lm.get_config(f"scale=smoke,size=8,task={task}")
    stage_1 = label_coder(task=task)
    config.update(_COMMON)
    config.task = stage_1.task
    config.stage_1.update(
        workdir=str(workdir), model=stage_1.model.to_dict(), quantizer=stage_1.quantizer.to_dict()
    )
    config.model.update(patch=2, width=16, num_heads=2, mlp_dim=32)
    config.optim.warmup_steps = 0
    config.data = stage_1.data
    config.evals = dict(validation=dict(every=12))
    config.update_from_flattened_dict(changes or {})
    return config


def stage_of_shapes(config):
    """The stage of a config, with shapes for the weights that it reads."""
    return stages.make(config, **stages.frozen_shapes(config))


def first_state(stage, batch):
    """What `stage.init` gives, compiled as a run compiles it."""
    return jax.jit(batch_random_init(stage.init))(jax.random.key(0), batch)


def types(tree):
    """Shapes and dtypes, weak ones told apart: a step whose state has others is compiled again."""
    return jax.tree.map(jax.typeof, tree)


def untrained_tokenizer(workdir, quantizer="fsq") -> str:
    """A run of a tokenizer that has seen nothing."""
    return untrained(tokenizer({"loss.adversarial": 0.0}, quantizer), workdir)


def untrained(config, workdir) -> str:
    """A run that was saved before its first update: enough to be some stage II's stage I.

    Of each config it is made once in a session, and copied.
    """
    name = hashlib.sha256(repr(config.to_dict()).encode()).hexdigest()
    folder = pathlib.Path(os.environ["FSQ_JAX_TESTS"], name)
    with only_one(folder):
        if not (folder / "config.json").exists():
            stage = make_stage(config)
            shapes = jax.eval_shape(lambda: blank_batch(config, 1))
            state = first_state(stage, {n: np.zeros(x.shape, x.dtype) for n, x in shapes.items()})
            checkpoints = checkpoint.Checkpoints(folder)
            checkpoints.save(state, {"position": 0}, {})
            checkpoints.close()
            save_config(folder, config)
    shutil.copytree(folder, workdir, dirs_exist_ok=True)
    return str(workdir)


@contextlib.contextmanager
def only_one(folder):
    """Makes a folder; one process at a time fills it."""
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def lines(workdir, split=None) -> list[dict]:
    """A run's metrics.jsonl without what a clock says."""
    return [
        {k: v for k, v in line.items() if k not in WALL_CLOCK}
        for line in read_metrics(str(workdir), split)
    ]


def random_variables(model, *inputs):
    """Returns variables as `init` would, drawn by NumPy: compiling `init` takes seconds."""
    rng = np.random.default_rng(0)

    def draw(path, a):
        if path[-1].key == "scale":
            return np.ones(a.shape, np.float32)
        deviation = 0 if a.ndim == 1 else np.prod(a.shape[:-1]) ** -0.5
        return (deviation * rng.standard_normal(a.shape)).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(draw, shapes)

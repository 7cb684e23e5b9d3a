"""How a training run begins, or goes on: data, stage, state, compiled functions, checkpoints."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections

from configs import uvim_lm
from fsq_jax import evaluators
from fsq_jax.data.pipeline import TrainBatches
from fsq_jax.pretrained import initialize
from fsq_jax.runs import frozen, inputs
from fsq_jax.runs.config import resolve_config
from fsq_jax.runs.predictor import compiled
from fsq_jax.runtime import checkpoint, liveness, sharding, workdir_lock
from fsq_jax.runtime.batch_random_init import batch_random_init
from fsq_jax.runtime.compiler import compiler_options, no_garbage_collection
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import differing_keys, load_config, save_config
from fsq_jax.stages import optim
from fsq_jax.stages.stage import Stage, TrainState


@dataclasses.dataclass
class Training:
    """A training run before its next step; `state` and `batch` move on with it.

    Attributes:
      config: resolved.
      workdir: the run's folder.
      stage: what is trained.
      mesh: all devices.
      key: of all that training draws; a step folds its number in.
      first: updates made before this start.
      skipped: damaged records that were skipped until then.
      state: a `TrainState` on the mesh.
      update, predict: the stage's functions, compiled.
      batches: this host's batches, the one after `batch` next.
      batch: the next one, on the mesh.
      checkpoints: of this run.
      watch: on the other processes.
      resources: to be closed at the end, after `checkpoints`.
    """

    config: ml_collections.ConfigDict
    workdir: str
    stage: Stage
    mesh: jax.sharding.Mesh
    key: jax.Array
    first: int
    skipped: int
    state: TrainState
    update: Callable
    predict: Mapping[str, Callable]
    batches: TrainBatches
    batch: dict[str, jax.Array]
    checkpoints: checkpoint.Checkpoints
    watch: liveness.Watch
    resources: contextlib.ExitStack

    def next_batch(self) -> float:
        """Puts the next batch on the mesh; returns the seconds that it took to come."""
        begin = time.monotonic()
        self.batch = sharding.put_batch(next(self.batches), self.mesh)
        return time.monotonic() - begin


def begin(config: ml_collections.ConfigDict, workdir: str) -> Training:
    """A run of this config, from its latest checkpoint where the workdir has one.

    Raises:
      UserError: the config can't be run, `workdir` holds a run of another config, or another
        training is at work in it.
    """
    config = resolve_config(config)
    check_encoder(config, workdir)
    with contextlib.ExitStack() as resources:
        if lock := workdir_lock.take(workdir):
            resources.callback(lock.close)
        training = _begin(config, workdir, resources)
        training.resources = resources.pop_all()
    return training


def _begin(config, workdir: str, resources: contextlib.ExitStack) -> Training:
    """`begin`, of a resolved config in a workdir that is this run's alone."""
    mesh = sharding.training_mesh(config.batch_size, config.accumulate, config.idle_devices)
    busy = sharding.most_devices(config.batch_size, config.accumulate)
    if busy < jax.device_count():
        log(
            f"batch_size={config.batch_size} trains on {busy} of {jax.device_count()} devices: it "
            "is no multiple of more."
        )
    stage, key = frozen.make_stage(config), jax.random.key(config.seed)
    evaluators.check_stage(
        config.evals, stage, mesh, config.data, config.get("task", {}).get("name", "")
    )
    batches = inputs.train_batches(config)
    resources.callback(batches.close)
    batch = sharding.put_batch(next(batches), mesh)
    # Shapes first, shardings from them, then the arrays: each is made where it will live.
    shapes = abstract_state(config, stage, batch)
    shardings = sharding.state_shardings(shapes, mesh, fsdp=config.fsdp)
    start = initial_weights(config, workdir, shapes)
    claim_workdir(workdir, config, stage)
    watch = liveness.Watch(workdir, lambda: how_to_go_on(workdir))
    resources.callback(watch.close)
    checkpoints = checkpoint.Checkpoints(workdir, config.keep, config.best, config.best_mode)
    first = skipped = 0
    if checkpoints.latest_step:
        state, data_state = checkpoints.restore(shapes, shardings)
        first = checkpoints.latest_step  # that of an older one, where the latest is damaged
        skipped = data_state.get("skipped", 0)
        batches.set_state(data_state)
        log(f"Going on from step {first} of {workdir}.")
    else:
        state = jax.jit(batch_random_init(stage.init), out_shardings=shardings)(key, batch)
        state = start.apply_to(state, shardings, workdir)
        if not config.init_from and (remark := on_average(config.ema_decay, config.steps)):
            log(remark)
    frozen_shardings = sharding.state_shardings(stage.frozen, mesh, fsdp=config.fsdp)
    state = state.replace(frozen=sharding.put(stage.frozen, frozen_shardings))
    update = compiled_update(config, stage, mesh, shardings.replace(frozen=frozen_shardings))
    training = Training(
        config,
        workdir,
        stage,
        mesh,
        key,
        first,
        skipped,
        state,
        update,
        compiled(stage),
        batches,
        batch,
        checkpoints,
        watch,
        resources,
    )
    if 0 < first < config.steps:
        training.next_batch()
    return training


def on_average(ema_decay: float, steps: int) -> str:
    """What is to be said of an average that begins with random weights and keeps too much of them;
    "" where it doesn't, and of trials of less than 100 steps."""
    left = ema_decay**steps
    if steps < 100 or left < 0.01:
        return ""
    return (
        f"{ema_decay=} over {steps=}: at the end {left:.0%} of the averaged weights, which are "
        "evaluated, is still the random initial ones; "
        f"--config.ema_decay={1 - 30 / steps:.3g} averages over a thirtieth of the steps."
    )


def compiled_update(config, stage: Stage, mesh: jax.sharding.Mesh, shardings: TrainState):
    """The step of a training, compiled when it is first called; its state takes the old one's
    place, laid out as `shardings`."""
    return jax.jit(
        with_more_metrics(stage.update, config),
        donate_argnums=0,
        compiler_options=compiler_options(stage.gpu_options),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )


def with_more_metrics(update: Callable, config) -> Callable:
    """A stage's update with the learning rate that the step was made with; with
    `data.skip_damaged`, whose batches have "skipped", also the count of a batch's rows, over all
    hosts, that stand for damaged records."""
    of_schedule = {k: config.optim[k] for k in ("learning_rate", "warmup_steps", "schedule")}
    schedule = optim.make_schedule(total_steps=config.steps, **of_schedule)

    def update_and_more(state, batch, key):
        more = {"learning_rate": jnp.asarray(schedule(state.step), jnp.float32)}
        if "skipped" in batch:
            more["skipped_records"] = batch["skipped"].sum()
        rows = {name: value for name, value in batch.items() if name != "skipped"}
        with no_garbage_collection():
            state, metrics = update(state, rows, key)
        return state, {**metrics, **more}

    return update_and_more


def how_to_go_on(workdir: str) -> str:
    """What to do where a run has ended before its time."""
    steps = checkpoint.saved_steps(workdir)
    last = f"The last checkpoint is of step {steps[-1]}" if steps else "There is no checkpoint yet"
    return f"{last}; the same command in every process goes on from there."


def abstract_state(config, stage: Stage, batch) -> TrainState:
    """The state's shapes, of which nothing is allocated."""
    with no_garbage_collection():
        return jax.eval_shape(stage.init, jax.random.key(config.seed), batch)


def check_encoder(config, workdir: str) -> None:
    """Raises a UserError, before anything is read, where UViM's image encoder isn't there."""
    path = config.init_from
    if path != uvim_lm.ENCODER or os.path.exists(path) or checkpoint.saved_steps(workdir):
        return
    raise UserError(
        f"UViM's image encoder starts from AugReg's ViT-L/16, and there is no {path!r} here: get "
        "it from gs://vit_models/augreg and give its path as the config's argument encoder=PATH, "
        "or train from scratch on purpose with encoder=none."
    )


def initial_weights(config, workdir: str, shapes: TrainState) -> initialize.InitialWeights:
    """What a run takes from `config.init_from`; nothing where it has a checkpoint of its own.

    Raises:
      UserError: the weights can't be read, or nothing of them fits.
    """
    path = config.init_from
    if not path or checkpoint.saved_steps(workdir):
        return initialize.InitialWeights()
    return initialize.load(shapes, path)


def claim_workdir(workdir: str, config, stage: Stage) -> None:
    """Makes the workdir this run's own, with what its stage recorded in the config.

    Raises:
      UserError: with the differing keys, where it belongs to a run of another config.
    """
    config.update_from_flattened_dict(dict(stage.recorded))
    if os.path.exists(os.path.join(workdir, "config.json")):
        there = load_config(workdir).to_dict()
        differing = differing_keys(config.to_dict(), there)
        differing = {k: pair for k, pair in differing.items() if not k.startswith("wandb.")}
        if "stage" in differing:  # nearly every key differs then
            differing = {"stage": differing["stage"]}
        if differing:
            listed = [f"{k}: {there} there, {ours} here" for k, (ours, there) in differing.items()]
            if len(listed) > 8:
                listed[8:] = [f"and {len(listed) - 8} more"]
            raise UserError(f"{workdir!r} holds a run of another config ({'; '.join(listed)}).")
    elif jax.process_index() == 0:
        save_config(workdir, config)

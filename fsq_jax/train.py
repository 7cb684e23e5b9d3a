"""Trains any stage from its config; started again in the same workdir, it goes on exactly there.

python -m fsq_jax.train --config=configs/maskgit_tokenizer.py:scale=bench --workdir=runs/tokenizer
"""

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from fsq_jax import evaluators, stages
from fsq_jax.runs import inputs, predictor, startup
from fsq_jax.runs.config import resolve_config
from fsq_jax.runtime import batch_random_init, checkpoint, cli, sharding
from fsq_jax.runtime.metric_writer import MetricWriter
from fsq_jax.runtime.preemption import StopSignal
from fsq_jax.runtime.progress import Progress, StepReporter, log
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import is_evaluated, load_results, metric_values, save_results


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, dict]:
    """Trains to `config.steps`; returns the results of the evaluations, as in results.json.

    Raises:
      UserError: where the config can't be run, or `workdir` holds a run of another config.
      FloatingPointError: where a metric is not finite; the checkpoints before it are kept.
    """
    config = resolve_config(config)
    stage = stages.make(config)
    mesh = sharding.make_mesh()
    key = jax.random.key(config.seed)
    batches = inputs.train_batches(config)
    batch = sharding.put_batch(next(batches), mesh)

    # Shapes first, shardings from them, then the arrays: each is made where it will live.
    shapes = startup.abstract_state(config, stage, batch)
    start = startup.initial_weights(config, workdir, shapes)
    startup.claim_workdir(workdir, config, stage)
    shardings = sharding.state_shardings(shapes, mesh, fsdp=config.fsdp)
    checkpoints = checkpoint.Checkpoints(workdir, config.keep, config.best, config.best_mode)
    first = checkpoints.latest_step or 0
    if first:
        state, data_state = checkpoints.restore(shapes, shardings)
        batches.set_state(data_state)
        if first < config.steps:
            batch = sharding.put_batch(next(batches), mesh)
        log(f"Going on from step {first} of {workdir}.")
    else:
        state = jax.jit(batch_random_init.together(stage.init), out_shardings=shardings)(key, batch)
        state = start.put_over(state, shardings, workdir)
    frozen = sharding.state_shardings(stage.frozen, mesh, fsdp=config.fsdp)
    state = state.replace(frozen=sharding.put(stage.frozen, frozen))
    update = jax.jit(
        stage.update, donate_argnums=0, compiler_options=startup.compiler_options(),
        out_shardings=(shardings.replace(frozen=frozen), sharding.replicated(mesh)),
    )
    predict = {name: jax.jit(fn) for name, fn in stage.predict.items()}

    main_host = jax.process_index() == 0
    writer = MetricWriter(workdir, step=first, active=main_host)
    progress = Progress(config.steps, initial=first, title=config.stage, active=main_host)
    reporter = StepReporter(writer, progress, config.log_every, config.batch_size)
    preview_batch = sharding.put_batch(inputs.preview_batch(config), mesh)
    stop = StopSignal()

    def save(step, results):
        reporter.pause()  # which raises, rather than save, where a number is not finite
        checkpoints.save(state, {"position": step}, metric_values(results))

    def evaluate(step, only_due) -> dict:
        reporter.pause()
        run = predictor.evaluation(config, stage, predict, state, mesh, workdir)
        results = evaluators.evaluate(config.evals, run, step if only_due else None)
        writer.scalars(step, "eval", metric_values(results))
        if main_host:
            save_results(workdir, results)
        return results

    try:
        for step in range(first + 1, config.steps + 1):
            state, metrics = update(state, batch, key)
            if step < config.steps:  # the next batch, while the device is at work
                batch = sharding.put_batch(next(batches), mesh)
            reporter.push(step, metrics)

            last, results = step == config.steps, {}
            if last:
                save(step, {})  # an evaluation that fails must not cost the training
            if last or evaluators.due(config.evals, step):
                results = evaluate(step, only_due=not last)
            if last or step % config.preview_every == 0:
                images = predict["preview"](state, preview_batch, key)
                writer.images(step, sharding.to_host(images))
            stopping = stop.requested(step)
            if stopping or (step % config.checkpoint_every == 0 and not last):
                save(step, results)
            if stopping:
                log(f"Stopped at step {step}; the same command goes on from there.")
                break
        if first == config.steps and not is_evaluated(workdir, first):
            evaluate(first, only_due=False)  # training was done, but not this
        reporter.flush()
    finally:
        checkpoints.close()  # waits until what was begun is written
        progress.close()
        writer.close()
        batches.close()
        stop.close()
    return load_results(workdir)


def main(argv) -> None:
    if len(argv) > 1:
        raise UserError(f"Arguments {argv[1:]} are not understood; flags begin with --.")
    sharding.initialize_distributed()
    for name, result in train(flags.FLAGS.config, flags.FLAGS.workdir).items():
        print(f"{name}: {result['value']:.6g}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder that the run writes and resumes from.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)

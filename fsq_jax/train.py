"""Trains any stage from its config; started again in the same workdir, it goes on exactly there.

python -m fsq_jax.train --config=configs/maskgit_tokenizer.py:scale=bench --workdir=runs/tokenizer

--profile=100:104 writes what the devices do in steps 100 to 104 to WORKDIR/profile, which
TensorBoard (with its profile plugin) and Perfetto read.
"""

import jax
import ml_collections
from absl import flags

from fsq_jax import evaluators, runs
from fsq_jax.reports import run as run_page
from fsq_jax.runs import costs, inputs, predictor
from fsq_jax.runtime import cli, sharding
from fsq_jax.runtime.guard import Guard
from fsq_jax.runtime.metric_writer import MetricWriter
from fsq_jax.runtime.preemption import StopSignal
from fsq_jax.runtime.profiler import Profiler
from fsq_jax.runtime.progress import Progress, StepReporter, log
from fsq_jax.runtime.workdir import is_evaluated, load_results, metric_values, save_results


def train(config: ml_collections.ConfigDict, workdir: str, profile: str = "") -> dict[str, dict]:
    """Trains to `config.steps`; returns the results of the evaluations, as in results.json.

    Args:
      config: of any stage.
      workdir: the run's folder.
      profile: steps that are traced, see `profiler.Profiler`; "" for none.

    Raises:
      UserError: the config can't be run, `workdir` holds a run of another config, another
        training is at work in it, or `profile` names no steps of the run.
      NonFiniteError, GuardError: a metric is not finite, or beyond `config.guard`; the checkpoints
        before it are kept.
    """
    guard, profiler = Guard(**config.guard), Profiler(profile, config.steps, workdir)
    run = runs.begin(config, workdir)
    config, mesh = run.config, run.mesh
    main_host = jax.process_index() == 0
    writer = MetricWriter(workdir, step=run.first, active=main_host, config=config.to_dict())
    progress = Progress(config.steps, initial=run.first, title=config.stage, active=main_host)
    utilization = costs.Utilization(config, run.batch, mesh)
    every, batch_size = config.log_every, config.batch_size
    reporter = StepReporter(
        writer, progress, every, batch_size, guard, utilization, skipped=run.skipped
    )
    preview_batch = sharding.put_batch(inputs.preview_batch(config, mesh), mesh)
    stop = StopSignal()

    def save(step, results):
        reporter.pause()  # which raises, rather than save, where a number is not finite
        position = {"position": step, "skipped": reporter.skipped}
        run.checkpoints.save(run.state, position, metric_values(results))

    def evaluate(step, only_due) -> dict:
        reporter.pause()
        trained = predictor.of_state(config, run.stage, run.predict, run.state, mesh, workdir)
        results = evaluators.evaluate(config.evals, trained, step if only_due else None)
        writer.scalars(step, "eval", metric_values(results))
        if main_host:
            save_results(workdir, results)
            run_page.write(workdir)
        return results

    try:
        for step in range(run.first + 1, config.steps + 1):
            with profiler.step(step):
                run.state, metrics = run.update(run.state, run.batch, run.key)
                if step < config.steps:  # the next batch, while the device is at work
                    reporter.waited(run.next_batch(), metrics)
            profiler.after(step, metrics)
            reporter.push(step, metrics)

            last, results = step == config.steps, {}
            if last:
                save(step, {})  # an evaluation that fails must not cost the training
            if last or step % config.preview_every == 0:
                images = run.predict["preview"](run.state, preview_batch, run.key)
                writer.images(step, sharding.to_host(images))
            if last or evaluators.due(config.evals, step):
                results = evaluate(step, only_due=not last)
            stopping = stop.requested(step)
            if stopping or (step % config.checkpoint_every == 0 and not last):
                save(step, results)
            if stopping:
                log(f"Stopped at step {step}; the same command goes on from there.")
                break
        if run.first == config.steps and not is_evaluated(workdir, run.first):
            evaluate(run.first, only_due=False)  # training was done, but not this
        reporter.flush()
    except Exception as error:  # re-raised, unless another process was lost
        run.watch.wait_for_verdict(error)
        raise
    finally:
        profiler.close()
        run.checkpoints.close()  # waits until what was begun is written
        progress.close()
        writer.close()
        run.resources.close()
        stop.close()
    return load_results(workdir)


def main(argv) -> None:
    del argv
    sharding.initialize_distributed()
    options = flags.FLAGS
    for name, result in train(options.config, options.workdir, options.profile).items():
        print(f"{name}: {result['value']:.6g}")


if __name__ == "__main__":
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder that the run writes and resumes from.")
    flags.DEFINE_string("profile", "", "START:STOP, the first and the last step to be traced.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)

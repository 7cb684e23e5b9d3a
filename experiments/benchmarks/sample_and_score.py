"""Times sampling of many images and their FID, precision and recall, over all devices.

python -m experiments.benchmarks.sample_and_score --images=50000 --out=sampled.jsonl \
    configs/maskgit_transformer.py:scale=paper,dtype=bfloat16

The samplers, features and distances are those of the evaluation, one after the other rather than
each batch's features while the next is drawn: images a second of either, and the seconds of the
distances, the first time (which compiles, of more than 10,000) and the second. Weights are random,
Inception's too, and the reference is noise, 10,000 images at most: none of this changes what is
computed. Of several processes each draws its rows of a batch, as on several hosts.
"""

import json
import time

import jax
import jax.numpy as jnp
from absl import flags

from experiments.benchmarks import apart, train_step
from experiments.benchmarks.random_arrays import random_like
from fsq_jax import stages
from fsq_jax.evaluators import generation
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.evaluators.run_scorer import RunScorer
from fsq_jax.features.inception import to_uint8
from fsq_jax.runs import startup
from fsq_jax.runs.predictor import compiled, of_state
from fsq_jax.runtime import cli, sharding
from fsq_jax.stages.blank import blank_batch

REFERENCE = 10_000  # images that precision and recall take


def random_predictor(variant: str) -> Predictor:
    """What evaluates a masked transformer of random weights, over all devices."""
    config, _ = train_step.load_config(variant)
    stage, mesh = stages.make(config, **stages.frozen_shapes(config)), sharding.make_mesh()
    shapes = startup.abstract_state(config, stage, blank_batch(config))
    weights = {"ema_params": shapes.ema_params, "frozen": stage.frozen}
    weights = sharding.put(random_like(weights), sharding.replicated(mesh))
    state = shapes.replace(params=None, opt_state=None, model_state={}, step=0, **weights)
    return of_state(config, stage, compiled(stage), state, mesh, "")


def measure(variant: str, images: int, features: str) -> dict:
    """Images a second of sampling and of features, seconds of distances, their values, GiB."""
    predictor = random_predictor(variant)
    scorer = RunScorer(predictor, features, every_metric=True)
    to_bytes = jax.jit(to_uint8)
    size = predictor.config.data.size

    def noise(seed: int, labels) -> dict[str, jax.Array]:
        """A batch of it, whose rows count where those of a batch of labels do."""
        shape = (predictor.rows, size, size, 3)
        drawn = jax.jit(
            lambda key: jax.random.bits(key, shape, jnp.uint8),
            out_shardings=sharding.split_batch(predictor.mesh),
        )
        return {"image": drawn(jax.random.key(seed)), "mask": predictor.put(labels)["mask"]}

    def labels(count: int):
        return generation.balanced_labels(count, 1, predictor.batch_size, predictor.own_rows)

    def features_of(batches):
        seen = scorer.no_images()
        for batch, image in batches:
            seen = scorer.add(seen, batch, image)
        return seen.flush()

    reference = (noise(i, b) for i, b in enumerate(labels(min(images, REFERENCE))))
    reference = features_of((batch, batch["image"]) for batch in reference)
    ((_, first),) = generation.samples(predictor, min(predictor.batch_size, images))
    jax.block_until_ready(to_bytes(first["image"]))
    scorer.measure(reference, reference)
    apart.wait_for_turn()

    seconds = [time.perf_counter()]
    sampled = [
        (batch, to_bytes(out["image"])) for batch, out in generation.samples(predictor, images)
    ]
    jax.block_until_ready(sampled)
    seconds.append(time.perf_counter())
    seen = features_of(sampled)
    seconds.append(time.perf_counter())
    for _ in range(2):
        values, _ = scorer.measure(seen, reference)
        seconds.append(time.perf_counter())
    taken = dict(
        zip(
            ("sampling", "features", "distances_first", "distances"),
            (end - begin for begin, end in zip(seconds[:-1], seconds[1:], strict=True)),
            strict=True,
        )
    )
    memory = [device.memory_stats() or {} for device in jax.local_devices()]
    return {
        "images": images,
        "images_per_second": images / taken["sampling"],
        "features_per_second": images / taken["features"],
        "seconds": taken,
        "values": values,
        "peak_gib": max(m.get("peak_bytes_in_use", 0) for m in memory) / 2**30,
        # of a batch's samples, how many each device made: all of them, where they were copied
        "rows_of_a_device": first["image"].addressable_shards[0].data.shape[0],
        "batch": predictor.rows,
    }


def main(argv) -> None:
    options = flags.FLAGS
    variants = apart.variants(argv[1:], options.one)
    if options.one:
        sharding.initialize_distributed()
        result = measure(variants[0], options.images, options.features)
        device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        print(json.dumps(result | device))
        return
    for variant in variants:
        arguments = ["--one", f"--images={options.images}", f"--features={options.features}"]
        result = {"variant": variant}
        result |= apart.run("sample_and_score", [*arguments, variant], options.timeout)
        apart.record(result, options.out)


if __name__ == "__main__":
    flags.DEFINE_integer("images", 50_000, "How many are sampled.", lower_bound=8)
    flags.DEFINE_string("features", "inception-random", "The network, as in evals.generation.")
    cli.run(main, takes_arguments=True)

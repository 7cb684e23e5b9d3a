"""FID and its relatives of any images, of this project or not, under a named protocol.

python -m fsq_jax.score --samples=samples.npz --reference=VIRTUAL_imagenet256_labeled.npz
python -m fsq_jax.score --samples=FOLDER --reference=FOLDER --protocol=torch-fidelity \
    --json=score.json --beside=older.json

Images are an .npz (`arr_0`, as ADM's evaluator and `fsq_jax.sample --npz` have it) or a folder; the
reference is a file of `fsq_jax.reference` or of ADM's, or images as well. Prints a table, and the
JSON has each number with its whole protocol. --beside puts older scores in the same table, and
refuses those that were measured differently.
"""

import os

import jax
from absl import flags

from fsq_jax.reports import html
from fsq_jax.runtime import bounded, cli, manifest, outputs, sharding
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.progress import log, tracked
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import image_sets, protocols, reference_file
from fsq_jax.scoring.accumulator import Statistics
from fsq_jax.scoring.scorer import NETWORKS, Scorer


def score(
    samples: str,
    reference: str,
    protocol: protocols.Protocol,
    weights: str = "",
    batch_size: int = 64,
) -> dict[str, dict]:
    """{metric: {"value", "protocol"}} of images held against others, over all devices.

    Args:
      samples: .npz or folder of images.
      reference: the same, or an .npz of statistics.
      protocol: what is measured, and how.
      weights: file of Inception's; "" for $FSQ_JAX_INCEPTION.
      batch_size: images at once, over all devices.

    Raises:
      UserError: for images or statistics that can't be read, or don't fit each other.
    """
    images = image_sets.open_images(samples)
    size = images.height, images.width
    of_statistics = is_statistics(reference)
    scorer = Scorer(sharding.make_mesh(), protocol, weights)
    if of_statistics:
        real = scorer.load_reference(reference, batch_size, size)
    else:
        real = gather(scorer, reference, size, batch_size, reference=True)
    seen = gather(scorer, samples, size, batch_size)
    if protocol.num_samples not in (0, seen.count):
        log(
            f"Protocol {protocol.name} asks for {protocol.num_samples} samples, these are "
            f"{seen.count}: the numbers don't compare with published ones."
        )
    # Which samples these are doesn't belong to how they are measured.
    record = dict(scorer.record(seen, real)) | {
        "size": list(size),
        "samples": {
            "name": os.path.basename(os.path.normpath(samples)),
            "channels": images.channels,
        },
    }
    values = scorer.measure(seen, real)
    return {name: {"value": value, "protocol": record} for name, value in values.items()}


def is_statistics(path: str) -> bool:
    """Whether a file holds a mean and a covariance; UserError for one that isn't there."""
    if os.path.isdir(path):
        return False
    if not os.path.exists(path):
        raise UserError(f"There is no reference {path!r}.")
    return "mu" in reference_file.names(path)


def gather(
    scorer: Scorer, path: str, size: tuple[int, int], batch_size: int, reference: bool = False
) -> Statistics:
    """The statistics of images at `path`, which are to be of that size, with a progress bar."""
    images = image_sets.open_images(path)
    if images.num_images < 2:
        raise UserError(f"{path} holds one image; a distance of distributions needs more.")
    if (images.height, images.width) != size:
        raise UserError(
            f"{path} holds images of {images.height} x {images.width} pixels, the samples are of "
            f"{size[0]} x {size[1]}."
        )
    blocks = tracked(
        images.blocks(batch_size),
        "reference" if reference else "samples",
        batch_size,
        total=-(-images.num_images // batch_size),
    )
    seen = scorer.add_blocks(scorer.empty(reference), blocks, batch_size)
    name = os.path.basename(os.path.normpath(path))
    digest = "" if os.path.isdir(path) or not reference else manifest.sha256(path)
    return seen.with_source(name, sha256=digest)


def table(results: dict[str, dict[str, dict]]) -> html.Table:
    """One row per metric, one column for each of {what was measured: its scores}.

    Raises:
      UserError: with the keys that differ, where two columns were measured differently.
    """
    metrics = dict.fromkeys(metric for column in results.values() for metric in column)
    rows = []
    for metric in metrics:
        has = {name: column[metric] for name, column in results.items() if metric in column}
        protocols.check_comparable(metric, {n: result["protocol"] for n, result in has.items()})
        rows.append(
            [metric] + [f"{has[name]['value']:.6g}" if name in has else "" for name in results]
        )
    return html.Table(("", *results), rows)


def read_scores(path: str) -> dict[str, dict]:
    """What --json wrote."""
    try:
        return bounded.read_json(path, {...: {"value": float, "protocol": dict}})
    except UserError as error:
        raise UserError(
            f"{path} is not a file of scores, as --json writes it ({str(error).rstrip('.')})."
        ) from None


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    sharding.initialize_distributed()
    outputs.check_file(options.json)
    older = {path: read_scores(path) for path in options.beside}
    protocol = protocols.named(options.protocol).over(options.features)
    results = score(
        options.samples, options.reference, protocol, options.weights, options.batch_size
    )
    if jax.process_index() == 0:
        print(table({options.samples: results}).text(), flush=True)
        if options.json:
            write_json(options.json, results)
        if older:
            print(f"\n{table({options.samples: results} | older).text()}")


if __name__ == "__main__":
    flags.DEFINE_string("samples", None, "An .npz (arr_0) or a folder of images.", required=True)
    flags.DEFINE_string(
        "reference", None, "An .npz of statistics, as ADM's, or images.", required=True
    )
    flags.DEFINE_string("protocol", "adm", f"One of {', '.join(protocols.NAMED)}.")
    flags.DEFINE_enum("features", "inception", NETWORKS, "The network.")
    flags.DEFINE_string("weights", "", "File of Inception's weights; $FSQ_JAX_INCEPTION if not.")
    flags.DEFINE_integer("batch_size", 64, "Images at once, over all devices.", 1)
    flags.DEFINE_string("json", "", "File to write the scores to, each with its protocol.")
    flags.DEFINE_list("beside", [], "Files of older scores, for columns beside these.")
    cli.run(main)

"""What a tokenizer's codes stand for: codes at random, one code alone, two images stitched.

python -m experiments.representation --workdir=runs/tokenizer --out=runs/representation

Appendix A.3 of the paper. Writes OUT/soup.png (grids drawn from the codes' marginal histogram),
OUT/constant.png (grids of each of the three most common codes), OUT/stitched.png (the top of one
image over the bottom of another: in pixels, and decoded from stitched codes), and OUT/entries.json
with what can be measured of them. --workdir is a run, an export or a published tokenizer's file.

N images  H W height, width  h w grid of codes  K codes
"""

import dataclasses
import os
from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from fsq_jax import runs
from fsq_jax.evaluators import codebook, reconstruction
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.evaluators.run_scorer import RunScorer
from fsq_jax.runtime import cli, sharding
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.image_grid import image_grid, save_picture
from fsq_jax.runtime.user_error import UserError
from fsq_jax.stages import maskgit_tokenizer

SHOWN = 16  # grids that are drawn


def decoder(run: Predictor) -> Callable:
    """indices [N,h,w] -> images [N,H,W,3] in [0, 1], on the host."""
    model = maskgit_tokenizer.make_model(run.config)
    variables = {"params": run.state.ema_params, **run.state.model_state}
    decode = jax.jit(lambda variables, indices: maskgit_tokenizer.decode(model, variables, indices))

    def images(indices_Nhw):
        flat = np.asarray(indices_Nhw, np.int32).reshape(len(indices_Nhw), -1)
        return sharding.to_host(decode(variables, flat))

    return images


def soups(counts_K: np.ndarray, number: int, side: int, seed: int) -> np.ndarray:
    """Grids [N,h,w] whose codes are drawn one by one from how often each occurs."""
    rng = np.random.default_rng(seed)
    return rng.choice(len(counts_K), (number, side, side), p=counts_K / counts_K.sum())


def stitch(top_N: np.ndarray, bottom_N: np.ndarray) -> np.ndarray:
    """The upper half of each of the first over the lower half of the second, [N,H,W,...]."""
    half = top_N.shape[1] // 2
    return np.concatenate([top_N[:, :half], bottom_N[:, half:]], axis=1)


def seam(images_NHWC: np.ndarray) -> float:
    """The mean step in brightness across the middle row, over that across all other rows.

    1 where the seam looks like any other row; of two images cut and glued it is larger.
    """
    steps_NH = np.abs(np.diff(images_NHWC.astype(np.float64), axis=1)).mean((2, 3))
    middle = images_NHWC.shape[1] // 2 - 1
    others = np.delete(steps_NH, middle, axis=1)
    return float(steps_NH[:, middle].mean() / others.mean())


def study(run: Predictor, number: int) -> tuple[dict[str, np.ndarray], dict, dict]:
    """({picture: uint8 array}, measurements, protocol) of a tokenizer.

    Args:
      run: of the tokenizer.
      number: soups that are held against real images. A batch of held-out images is stitched.
    """
    images_of, settings = decoder(run), run.config.evals.reconstruction
    counts_K = codebook.count_codes(run)
    batch, out = next(iter(run.outputs("reconstruct")))
    real, indices, rebuilt = (
        sharding.to_host(array) for array in (batch["image"], out["indices"], out["reconstruction"])
    )
    side, pairs = indices.shape[1], len(indices) // 2
    drawn = soups(counts_K, number, side, run.seed)
    common = np.argsort(-counts_K)[:3]
    constant = images_of(np.broadcast_to(common[:, None, None], (3, side, side)))
    glued = stitch(rebuilt[:pairs], rebuilt[pairs : 2 * pairs])
    decoded = images_of(stitch(indices[:pairs], indices[pairs : 2 * pairs]))

    values, record = reconstruction.evaluate(
        run,
        settings.features,
        settings.reference_split,
        settings.reference_limit,
        reference=settings.reference,
        protocol=settings.protocol,
        weights=settings.weights,
    )
    network = RunScorer(run, settings.features, settings.protocol, settings.weights)
    seen = network.no_images()
    for start in range(0, number, run.batch_size):
        index = np.arange(start, start + run.batch_size)
        rows = run.put(
            {"image": images_of(drawn[index % number]).astype(np.float32), "mask": index < number}
        )
        seen = network.add(seen, rows, rows["image"])
    real_moments = network.reference(
        settings.reference_split, settings.reference_limit, settings.reference
    )
    soup, _ = network.measure(seen, real_moments, seed=run.seed, class_balance="none")
    metric = network.metric
    measured = {
        f"reconstruction/{metric}": values[f"reconstruction/{metric}"],
        f"soup/{metric}": soup[metric],
        "seam/real": seam(real),
        "seam/glued_pixels": seam(glued),
        "seam/stitched_codes": seam(decoded),
    }
    shown = min(SHOWN // 2, pairs)
    pictures = {
        "soup": image_grid(images_of(drawn[:SHOWN]), 8),
        "constant": image_grid(constant, 3),
        "stitched": image_grid(np.concatenate([glued[:shown], decoded[:shown]]), shown),
    }
    return pictures, measured, {"representation": dict(run.protocol) | record | {"soups": number}}


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    run = runs.load(options.workdir)
    if run.config.stage != "maskgit_tokenizer":
        raise UserError(f"{options.workdir!r} is of stage {run.config.stage!r}, not a tokenizer.")
    beside = os.path.join(options.references or options.out, "statistics")
    run = dataclasses.replace(run, workdir=beside)  # references/ is made beside it
    pictures, measured, protocol = study(run, options.num)
    for name, picture in pictures.items():
        save_picture(os.path.join(options.out, f"{name}.png"), picture)
    facts = {"steps": run.step, "device": run.protocol["device"], "protocol": protocol}
    write_json(os.path.join(options.out, "entries.json"), [measured | facts])


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Tokenizer: a run, an export, a file.", required=True)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_string("references", "", "Folder whose references/ are shared; OUT by default.")
    flags.DEFINE_integer("num", 1_000, "Soups that are held against real images.", lower_bound=2)
    cli.run(main)

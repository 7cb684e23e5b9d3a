"""The quick start of UViM: depth of the scenes through codes of FSQ and of VQ.

Two label autoencoders of the same size on scenes of 32 x 32 pixels (16 codes of 240), one with FSQ
and one with VQ, and on the codes of each a language model that reads them off the image.
"""

import os
import time

import ml_collections
from matplotlib.figure import Figure

from configs import uvim_base, uvim_lm
from experiments import figures
from experiments.quickstart.runner import (
    QUANTIZERS,
    described,
    load_times,
    scaled,
    timed,
    train_for,
    train_once,
    write_report,
)
from fsq_jax import runs, sample
from fsq_jax.evaluators import codebook
from fsq_jax.reports import html
from fsq_jax.runtime.progress import log

LEVELS = (8, 6, 5)
CODES = {"fsq": "quantizer=fsq,levels=8-6-5", "vq": "quantizer=vq_ema,codebook_size=240"}
TITLES = {
    "fsq": "FSQ label autoencoder",
    "vq": "VQ label autoencoder",
    "fsq_lm": "language model on FSQ codes",
    "vq_lm": "language model on VQ codes",
    "report": "predictions and report",
}
INTRODUCTION = (
    "Two autoencoders of depth maps that differ in their quantizer alone were trained on "
    "{data}: a depth map becomes 16 codes of 240, and is read back "
    "from them with the image at hand. On the codes of each a language model then learned to write "
    "the tokens of an image's depth, which the autoencoder turns into depth. What the first stage "
    "reaches with the true tokens is the most that the second can reach. A demonstration on a CPU: "
    "minutes of training, small networks, one seed. It shows that all parts work; the numbers are "
    "neither a verdict on the two nor comparable with the paper's."
)


def base_config(
    quantizer: str, scale: float = 1.0, data: str = "data=scenes", task: str = "depth"
) -> ml_collections.ConfigDict:
    """The config of a label autoencoder with "fsq" or "vq"; other arguments as `run`'s."""
    config = uvim_base.get_config(f"scale=smoke,task={task},{CODES[quantizer]},{data}")
    if task == "depth":
        config.task.num_bins = 64
    config.model.update(
        width=96, encoder_depth=2, decoder_depth=3, num_heads=4, mlp_dim=384, code_side=4
    )
    if quantizer == "vq":
        config.quantizer.channels = 96
    config.optim.update(learning_rate=1e-3, warmup_steps=scaled(100, scale, 0))
    train_for(config, 800, batch_size=32, scale=scale)
    return config


def lm_config(
    quantizer: str, base: str, scale: float = 1.0, data: str = "data=scenes", task: str = "depth"
) -> ml_collections.ConfigDict:
    """The config of the language model on the codes of the autoencoder in `base`."""
    stage_1 = base_config(quantizer, scale, data, task)
    config = uvim_lm.get_config(f"scale=smoke,task={task},base={base},{CODES[quantizer]},{data}")
    config.task = stage_1.task
    config.stage_1.update(model=stage_1.model.to_dict(), quantizer=stage_1.quantizer.to_dict())
    config.model.update(width=96, encoder_depth=3, decoder_depth=2, num_heads=4, mlp_dim=384)
    config.optim.update(
        learning_rate=1e-3, warmup_steps=scaled(100, scale, 0), clip_norm=1.0, rate_multipliers=()
    )
    train_for(config, 800, batch_size=32, scale=scale)
    return config


def run(workdir: str, scale: float = 1.0, data: str = "data=scenes") -> str:
    """Does all that is not yet done in `workdir`; returns the path of the report.

    Args:
      workdir: gets a folder for each part but the last (see TITLES), times.json and report/.
      scale: multiplies training steps and records; 1 for the real thing, 0.01 for a test.
      data: the configs' arguments that name the data; it must hold depth.

    Raises:
      UserError: where `workdir` holds a quickstart of another scale or of other data.
    """
    paths = {name: os.path.join(workdir, name) for name in TITLES}

    def do(part, config):
        timed(workdir, part, TITLES[part], lambda: train_once(config, paths[part]))

    for quantizer in QUANTIZERS:
        config = base_config(quantizer, scale, data)
        do(quantizer, config)
    for quantizer in QUANTIZERS:
        do(f"{quantizer}_lm", lm_config(quantizer, paths[quantizer], scale, data))
    begin = time.monotonic()
    log(f"{TITLES['report']} …")
    pictures = draw(paths)
    sections = {
        "What this is": [INTRODUCTION.format(data=described(config))],
        "Depth of held-out images": [pictures["depth"]],
        "Use of the codes": [pictures["codes"]],
        "Training": [pictures["base_curves"], pictures["lm_curves"]],
    }
    seconds = load_times(workdir) | {"report": time.monotonic() - begin}
    # Stage II's metrics have stage I's names, so each stage is a column.
    columns = {
        f"{q.upper()}, {title}": paths[name]
        for q in QUANTIZERS
        for title, name in (("true code", q), ("from the image", f"{q}_lm"))
    }
    return write_report(
        workdir,
        sections,
        pictures,
        columns,
        {TITLES[name]: value for name, value in seconds.items()},
    )


def draw(paths: dict[str, str]) -> dict[str, Figure]:
    """The report's pictures: predictions of both stages, codes and curves."""
    rows, counts = {}, {}
    for quantizer in QUANTIZERS:
        name = quantizer.upper()
        for title, part in (("true code", quantizer), ("image", f"{quantizer}_lm")):
            run = runs.load(paths[part])
            panels = sample.predicted_labels(run, num=12)
            rows.setdefault("input", panels["input"])
            rows.setdefault("truth", panels["truth"])
            rows[f"{name}, {title}"] = panels["prediction"]
            if part == quantizer:
                counts[name] = codebook.count_codes(run)
    curves = {
        suffix: figures.curves_figure({q.upper(): paths[q + suffix] for q in QUANTIZERS}, metrics)
        for suffix, metrics in (("", ("loss",)), ("_lm", ("loss", "accuracy")))
    }
    return {
        "depth": figures.rows_figure(rows),
        "codes": html.codes_figure(counts, LEVELS),
        "base_curves": curves[""],
        "lm_curves": curves["_lm"],
    }

"""FSQ beside VQ, and images sampled from a masked transformer, in minutes on two CPU cores.

python -m experiments.quickstart --workdir=runs/quickstart
python -m experiments.quickstart --workdir=runs/mine --data=folder:PATH --transformers=fsq,vq

Trains two tokenizers of the same size on the embedded scenes (32 x 32 pixels, 8 x 8 tokens), one
with FSQ and one with VQ, of 240 codes each; then a masked transformer on the tokens of FSQ.
Evaluates all three, samples images of each class, and writes WORKDIR/report/index.html. Started
again in the same workdir it goes on where it was stopped, and writes the report anew. Other data
take the place of the scenes with --data; --transformers=fsq,vq trains one on each tokenizer.
"""

import json
import os
import time
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from configs import maskgit_tokenizer, maskgit_transformer
from experiments import report
from fsq_jax import encode, errors, pages, runs, sample, stages, train
from fsq_jax.evaluators import codebook
from fsq_jax.logging import say

LEVELS = (8, 6, 5)
CODEBOOK_SIZE = 240  # of FSQ and VQ alike
SAMPLES_OF_A_CLASS = 6
TIMES = "times.json"
TITLES = {
    "fsq": "FSQ tokenizer", "vq": "VQ tokenizer",
    "fsq_tokens": "images to FSQ tokens", "fsq_maskgit": "masked transformer on FSQ tokens",
    "vq_tokens": "images to VQ tokens", "vq_maskgit": "masked transformer on VQ tokens",
    "report": "samples and report",
}
INTRODUCTION = (
    "Two tokenizers that differ in their quantizer alone were trained on images of 32 x 32 pixels "
    "(the embedded scenes: five kinds of objects in six colours). FSQ rounds three channels to 8, "
    "6 and 5 levels, so its 240 codes are not learned; VQ learns a codebook of 240 vectors. A "
    "masked transformer then learned the tokens, and drew the samples below. A demonstration "
    "on a CPU: minutes of training, small networks, no adversarial and no perceptual loss, one "
    "seed, and settings that were chosen with FSQ and not tuned for VQ. It shows that all parts "
    "work; the numbers are neither a verdict on the two nor comparable with the paper's."
)


def tokenizer_config(
    quantizer: str, scale: float = 1.0, data: str = "data=scenes"
) -> ml_collections.ConfigDict:
    """The config of a tokenizer with "fsq" or "vq".

    Args:
      quantizer: one of the two.
      scale: multiplies steps and records.
      data: the config's arguments that name the data, "data=tfds:NAME,data_dir=PATH".
    """
    levels = "-".join(map(str, LEVELS))
    codes = f"levels={levels}" if quantizer == "fsq" else f"codebook_size={CODEBOOK_SIZE}"
    config = maskgit_tokenizer.get_config(f"scale=smoke,quantizer={quantizer},{codes},{data}")
    # Five channels a group: with one, what is lost is how bright and colourful the image is.
    config.model.update(
        filters=20, channel_multipliers=(1, 1, 2), num_res_blocks=1, num_groups=8
    )
    config.loss.update(reconstruction=10.0, adversarial=0.0, perceptual=0.0)
    if quantizer == "vq":
        config.quantizer.update(channels=16)
    config.optim.update(
        learning_rate=4e-3, b1=0.9, b2=0.99, warmup_steps=_scaled(100, scale, 0), schedule="cosine"
    )
    config.ema_decay = 0.99
    _train_for(config, 1_500, batch_size=16, scale=scale)
    return config


def transformer_config(
    tokenizer: str, token_cache: str, scale: float = 1.0, data: str = "data=scenes"
) -> ml_collections.ConfigDict:
    """The config of the masked transformer on a tokenizer's cached tokens."""
    config = maskgit_transformer.get_config(
        f"scale=smoke,tokenizer={tokenizer},token_cache={token_cache},{data}"
    )
    config.model.update(
        width=128, depth=4, num_heads=4, mlp_dim=512, dropout=0.0, attention_dropout=0.0
    )
    config.optim.update(
        learning_rate=2e-3, b1=0.9, b2=0.96, warmup_steps=_scaled(100, scale, 0), schedule="cosine"
    )
    config.masking.update(label_smoothing=0.0)
    config.sampling.update(num_steps=12, choice_temperature=2.0, guidance=1.0)
    config.ema_decay = 0.99
    _train_for(config, 1_000, batch_size=32, scale=scale)
    config.evals.generation.num_samples = _scaled(480, scale, 30)
    return config


def _train_for(config, steps: int, batch_size: int, scale: float) -> None:
    """Sets steps and data of a config that is trained in one go and evaluated at its end."""
    steps, records = _scaled(steps, scale, 2), _scaled(4_000, scale, 64)
    config.steps, config.batch_size, config.eval_batch_size = steps, batch_size, 64
    config.log_every = max(1, steps // 100)
    config.preview_every = config.checkpoint_every = max(1, -(-steps // 4))
    config.keep = 1
    config.data.update(
        train_split=f"train[:{records}]", eval_split=f"validation[:{_scaled(500, scale, 32)}]",
        cache=True, min_area=1.0, max_aspect=1.0,
    )
    for name in config.evals:
        config.evals[name].every = steps
        if "reference_limit" in config.evals[name]:
            config.evals[name].reference_limit = min(records, 1_000)


def _scaled(number: int, scale: float, least: int) -> int:
    return max(least, round(number * scale))


def run(
    workdir: str,
    scale: float = 1.0,
    data: str = "data=scenes",
    transformers: Sequence[str] = ("fsq",),
) -> str:
    """Does all that is not yet done in `workdir`; returns the path of the report.

    Args:
      workdir: gets a folder for each part but the last (see TITLES), times.json and report/.
      scale: multiplies training steps and records; 1 for the real thing, 0.01 for a test.
      data: as for `tokenizer_config`.
      transformers: the tokenizers, "fsq" or "vq", that get a masked transformer.

    Raises:
      ValueError: where `workdir` holds a quickstart of another scale or of other data.
    """
    unknown = set(transformers) - {"fsq", "vq"}
    if unknown:
        raise ValueError(f"There are no tokenizers {sorted(unknown)}, only fsq and vq.")
    paths = {name: os.path.join(workdir, name) for name in TITLES}
    for quantizer in ("fsq", "vq"):
        config = tokenizer_config(quantizer, scale, data)
        timed(workdir, quantizer, lambda c=config, q=quantizer: train_once(c, paths[q]))
    for q in transformers:
        tokens = paths[f"{q}_tokens"]
        timed(workdir, f"{q}_tokens", lambda q=q, t=tokens: encode_once(paths[q], t))
        config = transformer_config(paths[q], tokens, scale, data)
        part = f"{q}_maskgit"
        timed(workdir, part, lambda c=config, p=part: train_once(c, paths[p]))
    begin = time.monotonic()
    say(f"{TITLES['report']} …")
    pictures = draw(paths, transformers)
    return write_report(workdir, transformers, pictures, load_times(workdir) | {
        "report": time.monotonic() - begin
    })


def timed(workdir: str, part: str, work: Callable[[], bool]) -> None:
    """Does a part; where there was anything to do, adds its seconds to those in times.json."""
    say(f"{TITLES[part]} …")
    begin = time.monotonic()
    if work():
        times = load_times(workdir)
        times[part] = times.get(part, 0.0) + time.monotonic() - begin
        with open(os.path.join(workdir, TIMES), "w") as file:
            json.dump(times, file, indent=2)


def load_times(workdir: str) -> dict[str, float]:
    """Seconds of the parts that were done so far."""
    path = os.path.join(workdir, TIMES)
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)


def train_once(config: ml_collections.ConfigDict, workdir: str) -> bool:
    """Trains and evaluates unless that is done; returns whether there was anything to do.

    Raises:
      ValueError: where `workdir` holds a run of another config.
    """
    config = runs.resolve(config)
    runs.claim_workdir(workdir, config, stages.make(config))
    if runs.evaluated(workdir, config.steps):
        return False
    train.train(config, workdir)
    return True


def encode_once(tokenizer: str, out: str) -> bool:
    """Writes the token cache unless it is there; returns whether there was anything to do."""
    if os.path.exists(os.path.join(out, "train")):
        return False
    encode.encode(tokenizer, out, views=4)  # four chances for a mirror image
    return True


def draw(paths: dict[str, str], transformers: Sequence[str]) -> dict[str, Figure]:
    """The report's pictures: reconstructions, samples, codes and curves."""
    tokenizers = {name.upper(): runs.load(paths[name])[2] for name in ("fsq", "vq")}
    counts = {name: codebook.count_codes(run) for name, run in tokenizers.items()}
    pictures = {
        "reconstructions": report.reconstructions_figure(tokenizers),
        "codes": pages.codes_figure(counts, LEVELS),
        "tokenizer_curves": report.curves_figure(
            {name.upper(): paths[name] for name in ("fsq", "vq")}, ("reconstruction", "loss")
        ),
        "transformer_curves": report.curves_figure(
            {f"on {q.upper()} tokens": paths[f"{q}_maskgit"] for q in transformers},
            ("loss", "accuracy"),
        ),
    }
    for quantizer in transformers:
        config, _, run = runs.load(paths[f"{quantizer}_maskgit"])
        class_names = runs.make_source(config.data, "train").class_names
        labels_N = np.repeat(np.arange(len(class_names), dtype=np.int32), SAMPLES_OF_A_CLASS)
        pictures[f"{quantizer}_samples"] = report.samples_figure(
            sample.sample(run, labels_N), labels_N, class_names
        )
    return pictures


def write_report(
    workdir: str,
    transformers: Sequence[str],
    pictures: dict[str, Figure],
    seconds: dict[str, float],
) -> str:
    """Writes WORKDIR/report/: index.html, table.md and the pictures; returns the page's path."""
    folder = os.path.join(workdir, "report")
    os.makedirs(folder, exist_ok=True)
    for name, picture in pictures.items():
        with open(os.path.join(folder, f"{name}.png"), "wb") as file:
            file.write(pages.png(picture))
    workdirs = {
        q.upper(): [os.path.join(workdir, name) for name in (q, f"{q}_maskgit")]
        for q in ("fsq", "vq")
    }
    table = report.comparison_table(workdirs)
    with open(os.path.join(folder, "table.md"), "w") as file:
        file.write(table.text() + "\n")
    times = report.times_table({TITLES[name]: value for name, value in seconds.items()})
    page = pages.page("fsq_jax: quickstart", {
        "What this is": [INTRODUCTION],
        "FSQ beside VQ": [table],
        "Reconstructions of held-out images": [pictures["reconstructions"]],
        **{
            f"Samples from {q.upper()} tokens, by class": [pictures[f"{q}_samples"]]
            for q in transformers
        },
        "Use of the codes": [pictures["codes"]],
        "Training": [pictures["tokenizer_curves"], pictures["transformer_curves"]],
        "Time": [times],
        "How it was measured": [report.protocol_table(workdirs), report.environment_table()],
    })
    path = os.path.join(folder, "index.html")
    with open(path, "w") as file:
        file.write(page)
    print(f"{table.text()}\n\n{times.text()}\n\n{path}")
    return path


def main(argv) -> None:
    if len(argv) > 1:
        raise ValueError(f"Arguments {argv[1:]} are not understood; flags begin with --.")
    options = flags.FLAGS
    data = f"data={options.data}" + (f",data_dir={options.data_dir}" if options.data_dir else "")
    run(options.workdir, options.steps_scale, data, options.transformers)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/quickstart", "Folder that is written and resumed from.")
    flags.DEFINE_string("data", "scenes", "Or tfds:NAME, folder:PATH.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_list("transformers", ["fsq"], "The tokenizers that get a masked transformer.")
    flags.DEFINE_float(
        "steps_scale", 1.0, "Multiplies training steps and records; 0.01 shows that all runs."
    )
    errors.run(main)

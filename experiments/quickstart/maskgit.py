"""The quick start of MaskGIT: FSQ beside VQ, and images of a masked transformer.

Two tokenizers of the same size on images of 32 x 32 pixels (8 x 8 tokens), one with FSQ and one
with VQ, of 240 codes each; then a masked transformer on the tokens of FSQ.
"""

import os
import time
from collections.abc import Sequence

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from configs import maskgit_tokenizer, maskgit_transformer
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
from fsq_jax import encode, runs, sample
from fsq_jax.evaluators import codebook
from fsq_jax.reports import html
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError

LEVELS = (8, 6, 5)
CODEBOOK_SIZE = 240  # of FSQ and VQ alike
SAMPLES_OF_A_CLASS = 6
MOST_CLASSES = 30  # that samples are shown of
TITLES = {
    "fsq": "FSQ tokenizer",
    "vq": "VQ tokenizer",
    "fsq_tokens": "images to FSQ tokens",
    "fsq_maskgit": "masked transformer on FSQ tokens",
    "vq_tokens": "images to VQ tokens",
    "vq_maskgit": "masked transformer on VQ tokens",
    "report": "samples and report",
}
INTRODUCTION = (
    "Two tokenizers that differ in their quantizer alone were trained on {data}. FSQ "
    "rounds three channels to 8, 6 and 5 levels, so its 240 codes are not learned; VQ learns a "
    "codebook of 240 vectors. A "
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
    sizes = f"levels={levels}" if quantizer == "fsq" else f"codebook_size={CODEBOOK_SIZE}"
    config = maskgit_tokenizer.get_config(f"scale=smoke,quantizer={quantizer},{sizes},{data}")
    # Five channels a group: with one, what is lost is how bright and colourful the image is.
    config.model.update(filters=20, channel_multipliers=(1, 1, 2), num_res_blocks=1, num_groups=8)
    config.loss.update(reconstruction=10.0, adversarial=0.0, perceptual=0.0)
    if quantizer == "vq":
        config.quantizer.update(channels=16)
    config.optim.update(
        learning_rate=4e-3, b1=0.9, b2=0.99, warmup_steps=scaled(100, scale, 0), schedule="cosine"
    )
    config.ema_decay = 0.99
    train_for(config, 1_500, batch_size=16, scale=scale)
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
        learning_rate=2e-3, b1=0.9, b2=0.96, warmup_steps=scaled(100, scale, 0), schedule="cosine"
    )
    config.masking.update(label_smoothing=0.0)
    config.sampling.update(num_steps=12, choice_temperature=2.0, guidance=1.0)
    config.ema_decay = 0.99
    train_for(config, 1_000, batch_size=32, scale=scale)
    config.evals.generation.num_samples = scaled(480, scale, 30)
    return config


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
      UserError: where `workdir` holds a quickstart of another scale or of other data.
    """
    unknown = set(transformers) - set(QUANTIZERS)
    if unknown:
        raise UserError(f"There are no tokenizers {sorted(unknown)}, only fsq and vq.")
    paths = {name: os.path.join(workdir, name) for name in TITLES}

    def do(part, work):
        timed(workdir, part, TITLES[part], work)

    for quantizer in QUANTIZERS:
        config = tokenizer_config(quantizer, scale, data)
        do(quantizer, lambda c=config, q=quantizer: train_once(c, paths[q]))
    for q in transformers:
        tokens = paths[f"{q}_tokens"]
        do(f"{q}_tokens", lambda q=q, t=tokens: encode_once(paths[q], t))
        config = transformer_config(paths[q], tokens, scale, data)
        do(f"{q}_maskgit", lambda c=config, q=q: train_once(c, paths[f"{q}_maskgit"]))
    begin = time.monotonic()
    log(f"{TITLES['report']} …")
    pictures = draw(paths, transformers)
    sections = {
        "What this is": [INTRODUCTION.format(data=described(config))],
        "Reconstructions of held-out images": [pictures["reconstructions"]],
        **{
            f"Samples from {q.upper()} tokens, by class": [pictures[f"{q}_samples"]]
            for q in transformers
        },
        "Use of the codes": [pictures["codes"]],
        "Training": [pictures["tokenizer_curves"], pictures["transformer_curves"]],
    }
    seconds = load_times(workdir) | {"report": time.monotonic() - begin}
    return write_report(
        workdir,
        sections,
        pictures,
        {q.upper(): [paths[q], paths[f"{q}_maskgit"]] for q in QUANTIZERS},
        {TITLES[name]: value for name, value in seconds.items()},
    )


def encode_once(tokenizer: str, out: str) -> bool:
    """Writes the token cache unless it is there; returns whether there was anything to do."""
    if os.path.exists(os.path.join(out, "train")):
        return False
    encode.encode(tokenizer, out, views=4)  # four chances for a mirror image
    return True


def draw(paths: dict[str, str], transformers: Sequence[str]) -> dict[str, Figure]:
    """The report's pictures: reconstructions, samples, codes and curves."""
    tokenizers = {name.upper(): runs.load(paths[name]) for name in QUANTIZERS}
    counts = {name: codebook.count_codes(run) for name, run in tokenizers.items()}
    pictures = {
        "reconstructions": figures.reconstructions_figure(tokenizers),
        "codes": html.codes_figure(counts, LEVELS),
        "tokenizer_curves": figures.curves_figure(
            {name.upper(): paths[name] for name in QUANTIZERS}, ("reconstruction", "loss")
        ),
        "transformer_curves": figures.curves_figure(
            {f"on {q.upper()} tokens": paths[f"{q}_maskgit"] for q in transformers},
            ("loss", "accuracy"),
        ),
    }
    for quantizer in transformers:
        run = runs.load(paths[f"{quantizer}_maskgit"])
        class_names = run.dataset("train").class_names
        shown = np.unique(np.linspace(0, len(class_names) - 1, MOST_CLASSES).astype(np.int32))
        labels_N = np.repeat(shown, SAMPLES_OF_A_CLASS)
        pictures[f"{quantizer}_samples"] = figures.samples_figure(
            sample.sample(run, labels_N), labels_N, class_names
        )
    return pictures

"""What quantizer=NAME takes in a config's argument string, and what the quantizer is made with.

A new quantizer gets a line in `TAKES` and one in `constructor`. What each is: docs/quantizers.md.
"""

import math

from fsq_jax.runtime.user_error import UserError

# The arguments that each name reads; others are refused.
TAKES = {
    "fsq": ("levels",),
    "residual_fsq": ("levels", "stages"),
    "grouped_fsq": ("levels", "groups"),
    "lfq": ("codebook_size",),
    "bsq": ("codebook_size",),
    "vq": ("codebook_size",),
    "vq_ema": ("codebook_size", "splitting"),
    "simvq": ("codebook_size",),
}
ARGUMENTS: dict = dict(quantizer=tuple(TAKES), levels=(0,), stages=0, groups=0, codebook_size=0)
# Levels of each of two stages or groups that make about so many codes.
HALVES = {240: (5, 3), 1024: (8, 4), 4096: (8, 8)}


def complete(args: dict, levels: tuple[int, ...], codebook_size: int) -> None:
    """Sets those arguments of the chosen quantizer that were not given.

    Args:
      args: as `arguments.parse` gives them.
      levels, codebook_size: the scale's, of FSQ and of a VQ; the latter one of `HALVES`. Other
        quantizers get as many codes as they can come near it.

    Raises:
      UserError: an argument was given that the quantizer would ignore.
    """
    name = args["quantizer"]
    takes = [argument for argument in TAKES[name] if argument in args]
    for argument in args.keys() & {argument for names in TAKES.values() for argument in names}:
        if args[argument] not in ("", 0, (0,)) and argument not in takes:
            readers = [other for other in TAKES if argument in TAKES[other]]
            raise UserError(
                f"{argument}={args[argument]} is for {', '.join(readers)}; quantizer={name} takes "
                f"{' and '.join(takes)}."
            )
    bits = round(math.log2(codebook_size))
    defaults = dict(
        levels=levels if name == "fsq" else HALVES[codebook_size],
        stages=2,
        groups=2,
        codebook_size=2**bits if name in ("lfq", "bsq") else codebook_size,
    )
    for argument in takes:
        if argument in defaults and args[argument] in (0, (0,)):
            args[argument] = defaults[argument]


def constructor(args: dict, width: int) -> dict:
    """What `fsq_jax.quantizers.make` takes, of completed arguments; a VQ's words have this width.

    Loss weights are those of the quantizers' authors, see their classes.
    """
    name, size = args["quantizer"], args["codebook_size"]
    codebook = dict(
        codebook_size=size,
        channels=width,
        codebook_channels=0,  # of a codeword, between two linear layers; 0 for none and `channels`
        gradient="straight_through",  # or "rotation"
    )
    values = {
        "fsq": dict(levels=args["levels"], noise=0.0),
        "residual_fsq": dict(
            levels=args["levels"],
            num_stages=args["stages"],
            scaling="levels",
            momentum=0.999,  # of layer_norm's statistics: as ema_decay, or averaged weights misfit
        ),
        "grouped_fsq": dict(levels=args["levels"], num_groups=args["groups"], noise=0.0),
        "lfq": dict(
            codebook_size=size,
            entropy_weight=0.1,
            diversity_weight=1.0,
            entropy_temperature=0.01,
            entropy_bits=0,  # bits that share a mean choice; 0 for all
            commitment_weight=0.25,
        ),
        "bsq": dict(
            codebook_size=size,
            entropy_weight=0.1,
            diversity_weight=1.0,
            entropy_temperature=1.0,
            entropy_bits=1,
            commitment_weight=0.0,
        ),
        "vq": dict(
            **codebook,
            commitment_weight=0.25,
            entropy_weight=0.1,
            entropy_group=0,  # examples over which the mean choice is taken; 0 for the whole batch
            normalize=False,  # cosine distance
        ),
        "vq_ema": dict(
            **codebook,
            momentum=0.995,
            commitment_weight=0.0,
            standardize=True,
            normalize=False,  # tokens of unit length, in place of `standardize`
            unit_words=True,
            split_threshold=0.0 if args.get("splitting") == "false" else 0.1,
            reseed_threshold=0.0,  # tokens a step; words with fewer become tokens
        ),
        "simvq": dict(**codebook, commitment_weight=0.25, bias=True),
    }
    return dict(name=name) | values[name]

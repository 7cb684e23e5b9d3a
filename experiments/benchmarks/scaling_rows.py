"""The rows that `scaling` measures on a machine of so many GPUs, the most telling ones first."""

import math
from dataclasses import dataclass
from typing import Any

# What XLA is given in some rows; by default it combines up to 30 MiB and hides no latency.
_THRESHOLDS = ("all_reduce", "all_gather", "reduce_scatter")


def _combine(size: int) -> str:
    return " ".join(f"--xla_gpu_{name}_combine_threshold_bytes={size}" for name in _THRESHOLDS)


SCALES = {"paper": "scale=paper,dtype=bfloat16", "smoke": "scale=smoke"}
FLAGS = {
    "latency_hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
    "combine_none": _combine(0),
    "combine_small": _combine(2**20),  # biases together, large arrays as they are, without copies
    "combine_all": _combine(2**33),
    "latency_hiding_combine_all": "--xla_gpu_enable_latency_hiding_scheduler=true "
    + _combine(2**33),
}


@dataclass(frozen=True)
class Kind:
    """A stage's training on one GPU.

    Attributes:
      config: file, and arguments of it besides scale and dtype.
      changes: over the config, or --tokens.
      batch, accumulate: images of a step, and the parts that they are taken in.
      steps: of a timed block.
      parallel: that a large training of it would take.
      held_gib, gib: of a GPU, while it waits for its turn and at most.
      least: seconds that initial weights and compiling take at least, on one GPU, where kernels
        are chosen, and on several, where they are known.
      seconds: that they may take.
    """

    config: str
    changes: str
    batch: int
    accumulate: int
    steps: int
    parallel: str
    held_gib: float
    gib: float
    least: tuple[float, float]
    seconds: float = 200.0

    def variant(self, scale: str, parallel: str, batch: int, accumulate: int) -> str:
        """What `train_step` takes."""
        path, _, arguments = self.config.partition(",")
        arguments = ",".join(filter(None, (SCALES[scale], arguments)))
        sizes = f"batch_size={batch} accumulate={accumulate} fsdp={parallel == 'fsdp'}"
        return f"{path}:{arguments} {sizes} {self.changes}".strip()


# UViM's stage II under FSDP had not compiled after 121 s on two H200.
KINDS = {
    "uvim_lm": Kind(
        "configs/uvim_lm.py,task=depth", "", 128, 4, 2, "fsdp", 10, 52, (90, 120), math.inf
    ),
    "tokenizer": Kind("configs/maskgit_tokenizer.py", "", 64, 2, 4, "data", 3, 24, (80, 25)),
    "transformer": Kind(
        "configs/maskgit_transformer.py", "--tokens", 256, 1, 4, "data", 5, 46, (40, 20)
    ),
    "uvim_base": Kind(
        "configs/uvim_base.py,task=depth,quantizer=vq_ema", "", 32, 1, 4, "data", 5, 40, (40, 20)
    ),
}
SMOKE_BATCH = 8


@dataclass(frozen=True)
class Row:
    """A measurement.

    Attributes:
      name: of which there is one.
      module, arguments: the program of `experiments.benchmarks` that measures it.
      gpus, processes: that it runs on and in.
      stage, parallel, scaling: what it is of; "" where that says nothing.
      flags: of FLAGS, the name of what XLA is given; "" for its defaults.
      after: a row that comes before it, whose kernels it takes from XLA's cache; "" for none.
      chooses: whether it tries kernels out, for which it wants its GPUs alone.
      waits: for its turn, when it has compiled; otherwise all of it runs while others compile.
      least: seconds without which it isn't begun, its turn not included.
      seconds: that compiling may take, or all of it where it does not wait; beside other rows, for
        alone it has what is left.
      held_gib, gib: of a GPU, while it waits and at most.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    gpus: int
    processes: int = 1
    stage: str = ""
    parallel: str = ""
    scaling: str = ""
    flags: str = ""
    after: str = ""
    chooses: bool = False
    waits: bool = True
    least: float = 20.0
    seconds: float = 150.0
    held_gib: float = 4.0
    gib: float = 8.0

    def facts(self) -> dict[str, Any]:
        """What its line of the results says of it."""
        names = ("stage", "parallel", "scaling", "gpus", "processes", "flags")
        return {"row": self.name} | {name: getattr(self, name) for name in names}


def step(
    stage: str,
    gpus: int,
    parallel: str = "",
    scaling: str = "weak",
    processes: int = 1,
    flag: str = "",
    scale: str = "paper",
) -> Row:
    """A row of training steps of a stage; `flag` is a name of FLAGS."""
    kind = KINDS[stage]
    batch, accumulate = SMOKE_BATCH if scale == "smoke" else kind.batch, kind.accumulate
    parallel = parallel or kind.parallel
    same_kernels = True
    if scaling == "weak":
        batch *= gpus
    else:
        same_kernels = accumulate % gpus == 0
        accumulate = max(1, accumulate // gpus)
    name = f"{stage}/1" if gpus == 1 else f"{stage}/{parallel}/{scaling}/{gpus}"
    name += "/processes" * (processes > 1) + f"/{flag}" * bool(flag)
    blocks = ("--steps=1", "--blocks=1") if scale == "smoke" else (f"--steps={kind.steps}",)
    return Row(
        name,
        "train_step",
        (
            "--one",
            "--losses=3",
            "--collectives",
            *blocks,
            kind.variant(scale, "data" if gpus == 1 else parallel, batch, accumulate),
        ),
        gpus,
        processes,
        stage,
        "" if gpus == 1 else parallel,
        "" if gpus == 1 else scaling,
        flag,
        "" if gpus == 1 else f"{stage}/1",
        gpus == 1 or not same_kernels,
        least=0.0 if scale == "smoke" else kind.least[gpus > 1],
        seconds=kind.seconds,
        held_gib=kind.held_gib,
        gib=kind.gib,
    )


def sampling(gpus: int, images: int, processes: int = 1, scale: str = "paper") -> Row:
    """Sampling of so many images, and their FID, precision and recall."""
    size = (64 if scale == "paper" else 4) * gpus
    variant = f"configs/maskgit_transformer.py:{SCALES[scale]} eval_batch_size={size}"
    smoke = ("--features=random",) if scale == "smoke" else ()
    name = f"sample_50k/{gpus}" + "/processes" * (processes > 1)
    return Row(
        name,
        "sample_and_score",
        ("--one", f"--images={images}", *smoke, variant),
        gpus,
        processes,
        stage="sample_50k",
        after="transformer/1",
        held_gib=10,
        gib=16,
    )


def rows(num_gpus: int, scale: str = "paper", images: int = 50_000) -> list[Row]:
    """All rows of a machine, in the order in which they matter."""
    most = num_gpus
    sizes = [n for n in (8, 4, 2) if n <= num_gpus]  # the largest first

    def steps(stages, *args, numbers=(most,), **settings) -> list[Row]:
        return [step(s, n, *args, scale=scale, **settings) for n in numbers for s in stages]

    if not sizes:
        return [*steps(KINDS, numbers=(1,)), sampling(1, images, scale=scale)]
    found = steps(("uvim_lm", "tokenizer"), numbers=(1, *sizes))
    found += steps(("transformer",), numbers=(1,))
    found += steps(("transformer",), "fsdp", numbers=sizes)
    found += steps(("transformer",), numbers=sizes)
    found += steps(("tokenizer",), processes=most)
    found += [preempted(most, scale), sampling(most, images, scale=scale)]
    found.append(Row(f"links/{most}", "train_step", ("--one", "ceilings"), most, stage="links"))
    for flag in FLAGS:
        found += steps(("uvim_lm", "tokenizer"), flag=flag)
    for flag in FLAGS:
        found += steps(("transformer",), "fsdp", flag=flag)
    found += steps(("transformer",), flag="combine_small")
    found += steps(("uvim_base",), numbers=(1, *sizes))
    found += steps(("transformer", "tokenizer"), "data", "strong", numbers=sizes)
    found += steps(("uvim_lm", "uvim_base"), scaling="strong", numbers=sizes)
    found += steps(("uvim_lm", "transformer"), processes=most)
    found.append(sampling(most, images, processes=most, scale=scale))
    found.append(sampling(1, images, scale=scale))
    found += steps(("tokenizer", "uvim_base"), "fsdp", numbers=sizes)
    found += steps(("uvim_lm",), "data", numbers=sizes)
    return found


def preempted(gpus: int, scale: str) -> Row:
    """A training from JPEG files that is preempted on half of the GPUs and goes on on all."""
    size = ("--smoke",) if scale == "smoke" else ()
    arguments = ("--one", f"--devices={max(1, gpus // 2)},{gpus}", *size)
    return Row(
        f"preempted/{gpus}",
        "preempted",
        arguments,
        gpus,
        stage="preempted",
        after="transformer/1",
        waits=False,
        least=60.0,
        seconds=170.0,
        held_gib=0,  # it has ended before the others are timed
        gib=8,
    )

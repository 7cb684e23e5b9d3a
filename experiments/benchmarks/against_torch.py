"""Times this project and a torch program for the same work, one after the other, on one GPU.

python -m experiments.benchmarks.against_torch --seconds=540 \
    --out=experiments/results/speed/h100/against_torch.json

The file holds {row: {"ours", "torch" (images/s), "ratio", "device", "settings"}}. Rows are measured
in turn until --seconds are over, those that the file lacks first, so that it can be filled in
several goes; a row is written once both sides are there. `--rows` picks some, `--dry_run` prints
what would be run. The status is 1 where a row that was asked for is not in the file at the end.
"""

import json
import os
import time

from absl import flags

from experiments.benchmarks import apart
from fsq_jax.runtime import cli, outputs
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.user_error import UserError, did_you_mean

_ROWS = flags.DEFINE_list("rows", [], "Rows to measure; all by default.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, and measure nothing.")
_LEAST = 30  # seconds; with fewer left no program is started
_TRANSFORMER = "configs/maskgit_transformer.py:scale=paper,dtype=bfloat16"
_UVIM = "configs/uvim_lm.py:scale=paper,dtype=bfloat16"
_STEP = "scale=paper, bfloat16, batch 256, 16 heads; moving average included; torch: autocast, "
_SAMPLE = "256 px, 12 steps, batch 64, the tokenizer's decoder included, bfloat16; torch: "
_DECODE = "UViM stage II at scale=paper, 512 px, 256 tokens, greedy, encoder included, bfloat16, "

# row: (our benchmark, its arguments, torch_peers' arguments, settings)
ROWS = {
    "transformer_step": (
        "train_step", [f"{_TRANSFORMER} --tokens"], ["step", "0.1"],
        _STEP + "torch.compile, SDPA, fused AdamW; dropout 0.1, attention weights included",
    ),
    "transformer_step_no_dropout": (
        "train_step", [f"{_TRANSFORMER} model.dropout=0.0 model.attention_dropout=0.0 --tokens"],
        ["step", "0.0"], _STEP + "torch.compile, SDPA, fused AdamW; no dropout",
    ),
    "sample_guided": (
        "decode", ["--batches=64", f"{_TRANSFORMER} sampling.guidance=0.2"], ["sample", "0.2"],
        _SAMPLE + "torch.compile, SDPA, channels_last; guidance 0.2",
    ),
    "sample": (
        "decode", ["--batches=64", f"{_TRANSFORMER} sampling.guidance=0.0"], ["sample", "0.0"],
        _SAMPLE + "torch.compile, SDPA, channels_last; no guidance",
    ),
} | {
    f"decode_{size}": (
        "decode", [f"--batches={size}", _UVIM], ["decode", str(size)],
        _DECODE + f"batch {size}; torch: torch.compile with CUDA graphs, static cache",
    )
    for size in (1, 8, 64)
}  # fmt: skip


def row(ours: dict, torch: dict, settings: str) -> dict:
    """A row of the file."""
    speeds = [side["images_per_second"] for side in (ours, torch)]
    return {
        "ours": round(speeds[0], 3),
        "torch": round(speeds[1], 3),
        "ratio": round(speeds[0] / speeds[1], 3),
        "device": ours["device"],
        "settings": settings,
    }


def commands(name: str) -> list[tuple[str, list[str]]]:
    """(module, arguments) of both sides of a row, ours first."""
    module, arguments, peer, _ = ROWS[name]
    return [(module, ["--one", *arguments]), ("torch_peers", peer)]


def measure(name: str, end: float) -> dict:
    """A row; {"error": ...} where a side fails or time is up, and then the other isn't begun."""
    sides = []
    for program, arguments in commands(name):
        left = end - time.monotonic()
        if left < _LEAST:
            return {"error": "no time left"}
        sides.append(apart.run(program, arguments, left))
        if "error" in sides[-1]:
            return {"error": f"{program}: {sides[-1]['error']}"}
    return row(*sides, ROWS[name][3])


def read(path: str) -> dict:
    """The rows that a file has; none where it isn't there."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)


def main(argv) -> None:
    del argv
    options, end = flags.FLAGS, time.monotonic() + flags.FLAGS.seconds
    names = _ROWS.value or list(ROWS)
    for name in names:
        if name not in ROWS:
            raise UserError(f"There is no row {name!r}{did_you_mean(name, ROWS)}")
    outputs.check_file(options.out)
    table = read(options.out)
    names = sorted(names, key=lambda name: name in table)
    if _DRY_RUN.value:
        for name in names:
            for program, arguments in commands(name):
                print(name, program, *arguments, sep=" | ")
        return
    os.makedirs(os.path.dirname(options.out) or ".", exist_ok=True)
    for name in names:
        result = measure(name, end)
        if "error" not in result:
            table[name] = result
            write_json(options.out, table)
        print(name, result, flush=True)
    if missing := [name for name in names if name not in table]:
        raise UserError(f"Not in {options.out}: {', '.join(missing)}.")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "File of the results.", required=True)
    flags.DEFINE_integer("seconds", 540, "Time for all of them.", lower_bound=1)
    cli.run(main)

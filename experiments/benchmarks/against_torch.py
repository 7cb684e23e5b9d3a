"""Times this project and a torch program for the same work, one after the other, on one GPU.

python -m experiments.benchmarks.against_torch --seconds=540 \
    --out=experiments/results/speed/h100/against_torch.json

The file holds {row: {"ours", "torch" (images/s), "ratio", "device", "settings"}}. Rows are measured
in turn until --seconds are over; a row is written once both sides are there. `--rows` picks some.
"""

import json
import time
from pathlib import Path

from absl import app, flags

from experiments.benchmarks import apart
from fsq_jax.runtime.files import write_json

_ROWS = flags.DEFINE_list("rows", [], "Rows to measure; all by default.")
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


def main(argv) -> None:
    del argv
    options, end = flags.FLAGS, time.monotonic() + flags.FLAGS.seconds
    path = Path(options.out)
    table = json.loads(path.read_text()) if path.exists() else {}
    for name in _ROWS.value or ROWS:
        module, arguments, peer, settings = ROWS[name]
        sides = []
        for program, given in ((module, ["--one", *arguments]), ("torch_peers", peer)):
            left = end - time.monotonic()
            sides.append(
                apart.run(program, given, left) if left > 30 else {"error": "no time left"}
            )
        errors = [side["error"] for side in sides if "error" in side]
        if not errors:
            table[name] = row(*sides, settings)
            write_json(path, table)
        print(name, errors or table[name], flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "File of the results.", required=True)
    flags.DEFINE_integer("seconds", 540, "Time for all of them.", lower_bound=1)
    app.run(main)

"""Predicts how training scales beyond the GPUs that were measured: a model of the collectives.

python -m experiments.benchmarks.scaling_model --measured=experiments/results/speed/h200_x4 \
    --compiled=experiments/results/speed/h100/compiled.jsonl \
    --out=experiments/results/speed/scaling_predicted

From `scaling`'s lines of a stage on one GPU and on several, the batch growing: a step on n devices
takes what it took on one, and what the collectives of its program, timed by bandwidths, add. Of
their time on the measured machine, the share is exposed that the measured step was longer by; what
it was longer by beyond all of it is taken for work of the device. Of a stage that was measured on
several numbers of GPUs, the largest is predicted from, and is itself predicted from the others. Of
one that was measured on one GPU alone, all of the collectives' time is exposed that `compile_h100`
counted.
OUT.json has the predictions with all assumptions and what they were held against, OUT.md the table.
Nothing in the table was run.

Among the GPUs of a host data goes over NVLink, between hosts over each GPU's own InfiniBand port,
one after the other; TPUs are a torus, whose links all carry at once. Links reach the share of their
stated bandwidth that is usual, or the one that collectives alone reached on the measured machine:
a prediction is made for either. TPUs are taken to reach the same share of their peak as the GPU.
The batch of a device is that of the measurement, whether or not a smaller memory holds it.
"""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence

from absl import app, flags

from experiments.benchmarks.scaling import read
from experiments.benchmarks.scaling_rows import KINDS
from fsq_jax.runs.costs import PEAK_FLOPS
from fsq_jax.runtime.files import write_json, written_whole
from fsq_jax.runtime.user_error import UserError

Collectives = Mapping[str, Mapping[str, float]]
SIZES = (16, 64, 256, 1024)
REACHED = (
    0.8  # of a link's stated bandwidth: 370 of 450 GB/s, github.com/NVIDIA/nccl-tests/issues/212
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices, and what they are linked by.

    Attributes:
      name: of it, with the link between hosts.
      kind: JAX's name of the devices.
      host: devices that the fast links join.
      fast, slow: bytes/s that a device receives over them, and over those between hosts.
      hop: seconds that a collective's step over either takes besides.
      gib: memory of a device.
      most: devices of the largest machine.
      source: of these numbers.
    """

    name: str
    kind: str
    host: int
    fast: float
    slow: float
    hop: tuple[float, float]
    gib: float
    most: int
    source: str


# Hops are assumed: 5 and 10 microseconds of NCCL, 1 of a TPU's neighbour.
TPUS = (
    Machine(
        "TPU v4", "TPU v4", 4096, 300e9, 300e9, (1e-6, 1e-6), 32, 4096,
        "six links of 50 GB/s: Jouppi et al. 2023, arxiv.org/abs/2304.01433",
    ),
    Machine(
        "TPU v5p", "TPU v5p", 8960, 600e9, 600e9, (1e-6, 1e-6), 95, 8960,
        "1200 GB/s both ways a chip: docs.cloud.google.com/tpu/docs/v5p",
    ),
    Machine(
        "TPU v5e", "TPU v5 lite", 256, 200e9, 200e9, (1e-6, 1e-6), 16, 256,
        "400 GB/s both ways a chip: docs.cloud.google.com/tpu/docs/v5e",
    ),
)  # fmt: skip
GIB = {"NVIDIA H100 80GB HBM3": 79, "NVIDIA H200": 140}


def gpus(kind: str) -> tuple[Machine, Machine]:
    """Machines of eight of these GPUs, JAX's name of them, with InfiniBand and without."""
    name, nvlink = kind.split()[1], "NVLink 900 GB/s both ways: nvidia.com/en-us/data-center/h200"
    return (
        Machine(
            f"{name}, InfiniBand 400 Gb/s a GPU", kind, 8, 450e9, 50e9, (5e-6, 10e-6), GIB[kind],
            1024, f"{nvlink}; ConnectX-7 of 400 Gb/s: docs.nvidia.com/dgx/dgxh100-user-guide",
        ),
        Machine(
            f"{name}, Ethernet 100 Gb/s a GPU", kind, 8, 450e9, 12.5e9, (5e-6, 20e-6), GIB[kind],
            1024, "a quarter of the above, for a network that is no InfiniBand",
        ),
    )  # fmt: skip


def collective_seconds(
    collectives: Collectives, devices: int, machine: Machine, reached: float
) -> float:
    """Seconds that a step's collectives take one after the other, nothing else at work.

    Args:
      collectives: {kind: {"count", "bytes"}} of `collectives.of_program`.
      devices: that take part; whole hosts of them where there are more than one's.
      machine: that they are of.
      reached: share of the stated bandwidths.
    """
    host = min(devices, machine.host)
    hosts = devices / host
    fast, slow = machine.fast * reached, machine.slow * reached
    hops = math.log2(host) * machine.hop[0] + math.log2(hosts) * machine.hop[1]
    # A host's devices have all that it sends to others among them, each its part.
    gather = (1 - 1 / host) / fast + (1 - 1 / hosts) / host / slow
    exchange = (host - 1) / devices / fast + (1 - 1 / hosts) / slow
    costs = {
        "all-reduce": (2, gather),
        "all-gather": (1, gather),
        "reduce-scatter": (1, gather),
        "all-to-all": (1, exchange),
        "collective-permute": (1, 1 / (fast if hosts == 1 else slow)),
    }
    total = 0.0
    for kind, sent in collectives.items():
        passes, seconds = costs[kind]
        total += passes * (sent["count"] * hops + sent["bytes"] * seconds)
    return total if devices > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a stage's measured steps say.

    Attributes:
      alone: seconds of a step on one device.
      exposed: share of its collectives' time that a step is longer by, 0 to 1.
      other: seconds that it is longer by beyond that.
    """

    alone: float
    exposed: float
    other: float

    def step(self, collectives: float, slower: float = 1.0) -> float:
        """Seconds of a step whose collectives take so long; `slower`: times that a device takes
        of what the measured one does."""
        return (self.alone + self.other) * slower + self.exposed * collectives


def fit(alone: float, together: float, collectives: float) -> Fit:
    """Of a step's seconds on one device and on several, where its collectives take so long."""
    longer = max(0.0, together - alone)
    exposed = min(1.0, longer / collectives) if collectives else 0.0
    return Fit(alone, exposed, longer - exposed * collectives)


def reached(lines: Sequence[Mapping], machine: Machine) -> list[float]:
    """Shares of the stated bandwidth to predict with, the lowest first: the usual one, and that of
    all-reduces where `scaling` timed them alone."""
    timed = [x["bus_gb_per_second"]["all-reduce"] for x in lines if "bus_gb_per_second" in x]
    return sorted({REACHED, *(rate * 1e9 / machine.fast for rate in timed)})


def compiled_lines(lines: Sequence[Mapping]) -> list[dict]:
    """Of `compile_h100`'s lines those of several GPUs with the batches of `scaling`'s rows, like
    its lines but for times."""
    found = []
    for line in (x for x in lines if "collectives" in x and x["gpus"] > 1):
        words = line["variant"].split()
        for stage, kind in KINDS.items():
            path, batch = kind.config.partition(",")[0], kind.batch * line["gpus"]
            if words[0].startswith(f"{path}:") and f"batch_size={batch}" in words:
                parallel = "fsdp" if "fsdp=True" in words else "data"
                found.append(dict(line, stage=stage, parallel=parallel, batch_size=batch))
    return found


def measured(lines: Sequence[Mapping]) -> tuple[dict[str, Mapping], list[Mapping]]:
    """({stage: its line on one GPU}, the lines of those stages on several, the batch growing)."""
    lines = [line for line in lines if "step_ms" in line]
    alone = {line["stage"]: line for line in lines if line["gpus"] == 1}
    return alone, [
        x
        for x in lines
        if (x["scaling"], x["processes"], x["flags"]) == ("weak", 1, "") and x["stage"] in alone
    ]


def predict(lines: Sequence[Mapping], compiled: Sequence[Mapping] = ()) -> list[dict]:
    """All predictions from `scaling`'s lines of one kind of GPU, and from `compiled_lines` where
    these have no line on several."""
    alone, together = measured(lines)
    largest = {}
    for line in sorted(together, key=lambda x: x["gpus"]):
        largest[line["stage"], line["parallel"]] = line
    for line in (x for x in compiled if x["stage"] in alone):
        largest.setdefault((line["stage"], line["parallel"]), line)
    found = []
    for line in largest.values():
        measured_on, *_ = machines = (*gpus(alone[line["stage"]]["device"]), *TPUS)
        for share in reached(lines, measured_on):
            found += _of_line(line, alone[line["stage"]]["step_ms"] / 1e3, machines, share)
    return found


def held_against(lines: Sequence[Mapping]) -> list[dict]:
    """What a line predicts of another with more GPUs, beside what was measured there."""
    alone, together = measured(lines)
    found = []
    for line, other in itertools.permutations(together, 2):
        same = all(line[key] == other[key] for key in ("stage", "parallel"))
        if not same or line["gpus"] >= other["gpus"]:
            continue
        machine, *_ = gpus(line["device"])
        for share in reached(lines, machine):
            fitted = _fit(line, alone[line["stage"]]["step_ms"] / 1e3, machine, share)
            taken = collective_seconds(other["collectives"], other["gpus"], machine, share)
            found.append(
                {key: line[key] for key in ("stage", "parallel")}
                | {"from": line["gpus"], "devices": other["gpus"], "reached": share}
                | {"predicted_ms": 1e3 * fitted.step(taken), "measured_ms": other["step_ms"]}
            )
    return found


def _fit(line: Mapping, alone: float, machine: Machine, share: float) -> Fit:
    """Of a line of several of a machine's GPUs; `alone`: seconds on one."""
    if "step_ms" not in line:
        return Fit(alone, 1.0, 0.0)
    taken = collective_seconds(line["collectives"], line["gpus"], machine, share)
    return fit(alone, line["step_ms"] / 1e3, taken)


def _of_line(line: Mapping, alone: float, machines: Sequence[Machine], share: float) -> list[dict]:
    """Predictions for a line of several of the first machine's GPUs; `alone`: seconds on one."""
    own_batch = line["batch_size"] // line["gpus"]
    fitted = _fit(line, alone, machines[0], share)
    found = []
    for machine in machines:
        slower = PEAK_FLOPS[machines[0].kind] / PEAK_FLOPS[machine.kind]
        for devices in (n for n in SIZES if n <= machine.most):
            seconds = collective_seconds(line["collectives"], devices, machine, share)
            step = fitted.step(seconds, slower)
            found.append(
                {
                    "stage": line["stage"],
                    "parallel": line["parallel"],
                    "from": f"{line['gpus']} GPUs" if "step_ms" in line else "its program",
                    "machine": machine.name,
                    "devices": devices,
                    "reached": share,
                    "batch_size": own_batch * devices,
                    "step_ms": 1e3 * step,
                    "collectives_ms": 1e3 * seconds,
                    "images_per_second": own_batch * devices / step,
                    "efficiency": alone * slower / step,
                    "exposed": fitted.exposed,
                    "other_ms": 1e3 * fitted.other,
                    "fits": line["peak_gib"] <= machine.gib,
                }
            )
    return found


def table(predictions: Sequence[Mapping]) -> str:
    """Markdown: efficiency, and images/s of the largest machine of SIZES, the lowest and highest
    over the shares of the links' bandwidth."""
    head = ("predicted", "weights", "from", "machine", *(f"{n}" for n in SIZES))
    head += ("images/s, most", "fits")
    rows = [head, tuple("---" for _ in head)]

    def name(prediction):
        return tuple(prediction[key] for key in ("stage", "parallel", "from", "machine"))

    for names in dict.fromkeys(map(name, predictions)):
        own = [p for p in predictions if name(p) == names]
        by_size = {n: [p for p in own if p["devices"] == n] for n in SIZES}
        cells = [
            _span((100 * p["efficiency"] for p in at), ".1f") + "%" if at else "–"
            for at in by_size.values()
        ]
        most = own[-1]["devices"]
        speeds = (float(f"{p['images_per_second']:.3g}") for p in by_size[most])
        speed = f"{_span(speeds, ',.0f')} on {most}"
        weights = {"data": "on each", "fsdp": "cut"}[names[1]]
        fits = "yes" if own[-1]["fits"] else "no"
        rows.append((names[0], weights, *names[2:], *cells, speed, fits))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _span(values: Iterable[float], form: str) -> str:
    return "–".join(dict.fromkeys(format(value, form) for value in sorted(values)))


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    lines = read(os.path.join(options.measured, "scaling.jsonl"))
    compiled = compiled_lines(read(options.compiled)) if options.compiled else []
    predictions = predict(lines, compiled)
    if not predictions:
        raise UserError(
            f"{options.measured} has no stage on one GPU and, its batch grown, on more; nor has "
            f"--compiled={options.compiled} one's program on more."
        )
    kinds = sorted({line["device"] for line in lines if "step_ms" in line})
    machines = [machine for kind in kinds for machine in gpus(kind)] + [*TPUS]
    assumptions = {
        "measured": options.measured,
        "compiled": options.compiled,
        "reached": reached(lines, machines[0]),
        "machines": [dataclasses.asdict(machine) for machine in machines],
        "peak_flops": {machine.kind: PEAK_FLOPS[machine.kind] for machine in machines},
    }
    write_json(
        f"{options.out}.json",
        {
            "assumptions": assumptions,
            "held_against": held_against(lines),
            "predicted": predictions,
        },
    )
    with written_whole(f"{options.out}.md") as file:
        file.write(table(predictions))
    print(json.dumps(assumptions))


if __name__ == "__main__":
    flags.DEFINE_string("measured", None, "Folder with scaling.jsonl.", required=True)
    flags.DEFINE_string("compiled", "", "File of compile_h100's lines, for what wasn't measured.")
    flags.DEFINE_string("out", None, "Name of the files, without .json and .md.", required=True)
    app.run(main)

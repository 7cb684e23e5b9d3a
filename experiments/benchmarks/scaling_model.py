"""Predicts how training scales beyond the GPUs that were measured: a model of the collectives.

python -m experiments.benchmarks.scaling_model --measured=experiments/results/speed/h100_x2 \
    --out=experiments/results/speed/scaling_predicted

From `scaling`'s lines of a stage on one GPU and on several, the batch growing: a step on n devices
takes what it took on one, and what the measured collectives of its program, timed by bandwidths,
add. Of their time on the measured machine, the share is exposed that the measured step was longer
by; what it was longer by beyond all of it stays as it is. OUT.json has the predictions with all
assumptions, OUT.md the table. Nothing in them was run.

Among the GPUs of a host data goes over NVLink, between hosts over each GPU's own InfiniBand port,
one after the other; TPUs are a torus, whose links all carry at once. Links reach the share of their
stated bandwidth that collectives alone reached on the measured machine, where that was measured.
TPUs are taken to reach the same share of their peak as the GPU. The batch of a device is that of
the measurement, whether or not a smaller memory holds it.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence

from absl import app, flags

from experiments.benchmarks.scaling import read
from fsq_jax.runs.costs import PEAK_FLOPS
from fsq_jax.runtime.files import write_json, written_whole
from fsq_jax.runtime.user_error import UserError

Collectives = Mapping[str, Mapping[str, float]]
SIZES = (16, 64, 256, 1024)
REACHED = 0.8  # of a link's stated bandwidth, where no collective was timed alone


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
MACHINES = (
    Machine(
        "H100, InfiniBand 400 Gb/s a GPU", "NVIDIA H100 80GB HBM3", 8, 450e9, 50e9, (5e-6, 10e-6),
        80, 1024, "NVLink 900 GB/s both ways: nvidia.com/en-us/data-center/h100; a ConnectX-7 of "
        "400 Gb/s each: docs.nvidia.com/dgx/dgxh100-user-guide",
    ),
    Machine(
        "H100, Ethernet 100 Gb/s a GPU", "NVIDIA H100 80GB HBM3", 8, 450e9, 12.5e9, (5e-6, 20e-6),
        80, 1024, "a quarter of the above, for a network that is no InfiniBand",
    ),
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
        return self.alone * slower + self.exposed * collectives + self.other


def fit(alone: float, together: float, collectives: float) -> Fit:
    """Of a step's seconds on one device and on several, where its collectives take so long."""
    longer = max(0.0, together - alone)
    exposed = min(1.0, longer / collectives) if collectives else 0.0
    return Fit(alone, exposed, longer - exposed * collectives)


def reached(lines: Sequence[Mapping], machine: Machine) -> float:
    """The share of the stated bandwidth that all-reduces had, where `scaling` timed them alone."""
    for line in lines:
        if "bus_gb_per_second" in line:
            return line["bus_gb_per_second"]["all-reduce"] * 1e9 / machine.fast
    return REACHED


def predict(lines: Sequence[Mapping], measured_on: Machine = MACHINES[0]) -> list[dict]:
    """All predictions from `scaling`'s lines of GPUs like those of `measured_on`."""
    lines = [line for line in lines if "error" not in line]
    alone = {line["stage"]: line for line in lines if line["gpus"] == 1 and "step_ms" in line}
    share, found = reached(lines, measured_on), []
    together = [x for x in lines if x["scaling"] == "weak" and x["processes"] == 1]
    for line in (x for x in together if not x["flags"] and x["stage"] in alone):
        own = alone[line["stage"]]["step_ms"] / 1e3
        sent = line["collectives"]
        taken = collective_seconds(sent, line["gpus"], measured_on, share)
        fitted = fit(own, line["step_ms"] / 1e3, taken)
        for machine in MACHINES:
            slower = PEAK_FLOPS[measured_on.kind] / PEAK_FLOPS[machine.kind]
            for devices in (n for n in SIZES if n <= machine.most):
                seconds = collective_seconds(sent, devices, machine, share)
                step = fitted.step(seconds, slower)
                found.append(
                    {
                        "stage": line["stage"],
                        "parallel": line["parallel"],
                        "machine": machine.name,
                        "devices": devices,
                        "batch_size": line["batch_size"] // line["gpus"] * devices,
                        "step_ms": 1e3 * step,
                        "collectives_ms": 1e3 * seconds,
                        "images_per_second": line["batch_size"] / line["gpus"] * devices / step,
                        "efficiency": own * slower / step,
                        "exposed": fitted.exposed,
                        "fits": line["peak_gib"] <= machine.gib,
                    }
                )
    return found


def table(predictions: Sequence[Mapping]) -> str:
    """Markdown: efficiency, and images/s of the largest machine of SIZES."""
    head = ("predicted", "weights", "machine", *(f"{n}" for n in SIZES), "images/s, most", "fits")
    rows = [head, tuple("---" for _ in head)]
    for name in dict.fromkeys((p["stage"], p["parallel"], p["machine"]) for p in predictions):
        own = [p for p in predictions if (p["stage"], p["parallel"], p["machine"]) == name]
        by_size = {p["devices"]: f"{p['efficiency']:.1%}" for p in own}
        last = own[-1]
        most = f"{last['images_per_second']:,.0f} on {last['devices']}"
        weights = {"data": "on each", "fsdp": "cut"}[name[1]]
        cells = (by_size.get(n, "–") for n in SIZES)
        rows.append((name[0], weights, name[2], *cells, most, "yes" if last["fits"] else "no"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    lines = read(os.path.join(options.measured, "scaling.jsonl"))
    predictions = predict(lines)
    if not predictions:
        raise UserError(
            f"{options.measured} has no stage on one GPU and, its batch grown, on more."
        )
    assumptions = {
        "measured": options.measured,
        "devices": sorted({line["device"] for line in lines if "device" in line}),
        "reached": reached(lines, MACHINES[0]),
        "machines": [dataclasses.asdict(machine) for machine in MACHINES],
        "peak_flops": {machine.kind: PEAK_FLOPS[machine.kind] for machine in MACHINES},
    }
    write_json(f"{options.out}.json", {"assumptions": assumptions, "predicted": predictions})
    with written_whole(f"{options.out}.md") as file:
        file.write(table(predictions))
    print(json.dumps(assumptions))


if __name__ == "__main__":
    flags.DEFINE_string("measured", None, "Folder with scaling.jsonl.", required=True)
    flags.DEFINE_string("out", None, "Name of the files, without .json and .md.", required=True)
    app.run(main)

"""What both quick starts do alike: small runs, parts that are done once and timed, a report."""

import os
import time
from collections.abc import Callable, Mapping, Sequence

import ml_collections
from matplotlib.figure import Figure

from experiments import report
from fsq_jax import train
from fsq_jax.launcher import plan
from fsq_jax.reports import html
from fsq_jax.runs import inputs, startup
from fsq_jax.runs.config import resolve_config
from fsq_jax.runs.frozen import make_stage
from fsq_jax.runtime import bounded
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.progress import log

TIMES = "times.json"
_MOST_CACHED = 20_000  # records in memory
QUANTIZERS = ("fsq", "vq")


def train_for(config, steps: int, batch_size: int, scale: float) -> None:
    """Sets steps and data of a config that is trained in one go and evaluated at its end."""
    steps, records = scaled(steps, scale, 2), scaled(4_000, scale, 64)
    config.steps, config.batch_size, config.eval_batch_size = steps, batch_size, 64
    config.log_every = max(1, steps // 100)
    config.preview_every = config.checkpoint_every = max(1, -(-steps // 4))
    config.keep = 1
    config.data.update(cache=True, min_area=1.0, aspect=(1.0, 1.0))
    num_train = choose_split(config.data, "train_split", "train", records)
    num_held_out = choose_split(config.data, "eval_split", "validation", scaled(500, scale, 32))
    config.data.cache = num_train + num_held_out <= _MOST_CACHED
    for name in config.evals:
        config.evals[name].every = steps
        if "reference_limit" in config.evals[name]:
            # The first ones of a folder are of its first classes: there all are needed.
            few = num_train > 1_000 and "[" in config.data.train_split
            config.evals[name].reference_limit = 1_000 if few else 0
    if num_held_out < 2 and config.evals.get("reconstruction", {}).get("features"):
        log(f"{config.data.source} has one held-out image: no Fréchet distance is measured.")
        config.evals.reconstruction.features = ""
    if num_train < 4 and "generation" in config.evals:
        log(f"{config.data.source} has {num_train} images to train on: samples aren't measured.")
        del config.evals["generation"]


def choose_split(data, key: str, name: str, most: int) -> int:
    """Sets a split to its first `most` records; returns how many that are.

    All of them are taken where there are fewer, and where the first ones are not like the rest:
    but for the scenes and TFDS, whose records come in no order of classes.
    """
    data[key] = f"{name}[:{most}]"
    if data.source.split(":")[0] == "scenes":
        return most
    found = len(inputs.open_split(data, name))
    if found <= most or not data.source.startswith("tfds:"):
        data[key] = name
        return found
    return most


def described(config) -> str:
    """The data of a run in words: how many images of what size, of which classes."""
    data = config.data
    dataset = inputs.open_split(data, data.train_split)
    names = dataset.class_names
    classes = f"{len(names)} classes: {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"
    return (
        f"{len(dataset):,} images of {data.size} x {data.size} pixels from {data.source!r} "
        f"({classes if len(names) > 1 else 'no classes'})"
    )


def scaled(number: int, scale: float, least: int) -> int:
    """The number times the scale, and no less than `least`."""
    return max(least, round(number * scale))


def timed(workdir: str, part: str, title: str, work: Callable[[], bool]) -> None:
    """Does a part; where there was anything to do, adds its seconds to those in times.json."""
    log(f"{title} …")
    begin = time.monotonic()
    if work():
        times = load_times(workdir)
        times[part] = times.get(part, 0.0) + time.monotonic() - begin
        write_json(os.path.join(workdir, TIMES), times)


def load_times(workdir: str) -> dict[str, float]:
    """Seconds of the parts that were done so far."""
    path = os.path.join(workdir, TIMES)
    return bounded.read_json(path, {...: float}) if os.path.exists(path) else {}


def train_once(config: ml_collections.ConfigDict, workdir: str) -> bool:
    """Trains and evaluates unless that is done; returns whether there was anything to do.

    Raises:
      UserError: where `workdir` holds a run of another config.
    """
    config = resolve_config(config)
    startup.claim_workdir(workdir, config, make_stage(config))
    if plan.finished(workdir):
        return False
    train.train(config, workdir)
    return True


def write_report(
    workdir: str,
    sections: Mapping[str, Sequence],
    pictures: Mapping[str, Figure],
    workdirs: report.Workdirs,
    times: Mapping[str, float],
) -> str:
    """Writes WORKDIR/report/: index.html, table.md and the pictures; returns the page's path.

    Args:
      workdir: of the quick start.
      sections: heading -> parts, as `html.page` takes them; "FSQ beside VQ" and how all was
        measured are added.
      pictures: name of the file -> figure.
      workdirs: column of the table -> runs.
      times: title of a part -> seconds.
    """
    folder = os.path.join(workdir, "report")
    os.makedirs(folder, exist_ok=True)
    for name, picture in pictures.items():
        with open(os.path.join(folder, f"{name}.png"), "wb") as file:
            file.write(html.png(picture))
    table, minutes = report.comparison_table(workdirs), report.times_table(times)
    with open(os.path.join(folder, "table.md"), "w") as file:
        file.write(table.text() + "\n")
    first, *rest = sections.items()
    page = html.page(
        "fsq_jax: quickstart",
        dict(
            [
                first,
                ("FSQ beside VQ", [table]),
                *rest,
                ("Time", [minutes]),
                (
                    "How it was measured",
                    [report.protocol_table(workdirs), report.environment_table()],
                ),
            ]
        ),
    )
    path = os.path.join(folder, "index.html")
    with open(path, "w") as file:
        file.write(page)
    print(f"{table.text()}\n\n{minutes.text()}\n\n{path}")
    return path

"""All figures and tables of the paper: what it says, and what was run of them here.

python -m experiments.reproduce
python -m experiments.reproduce --run=fig3 --scale=bench --data_dir=DIR --per_gpu=4

Without --run it prints one row per figure and table, and writes OUT/README.md and OUT/index.html
from the files of results alone. With --run it is the launcher of that experiment.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import claims, entries, launcher
from experiments.claims import CONFIRMED, NOT_RUN, OPEN, REFUTED
from experiments.options import Options
from fsq_jax.reports import html
from fsq_jax.runtime import cli
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.user_error import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Item:
    """A figure or table of the paper, or a measurement beside it.

    Attributes:
      title: what the paper calls it.
      module: the experiment.
      paper: what it shows, at the paper's scale.
    """

    title: str
    module: str
    paper: str


ITEMS = {
    "fig3": Item(
        "Figure 3: codebook size",
        "fig3_tradeoff",
        "ImageNet 128 px: FSQ improves up to 2^16 in reconstruction, VQ up to 2^11; FSQ samples "
        "better past 2^10",
    ),
    "fig4": Item(
        "Figure 4: MaskGIT at 256 px",
        "fig4_maskgit256",
        "ImageNet 256 px: FID 4.53 with FSQ, 4.51 with VQ; usage 100 % and 81 %",
    ),
    "fig8": Item(
        "Figures 8 and 9: what codes stand for",
        "fig8_representation",
        "codes drawn at random give a soup of patches, and both decoders blend seams",
    ),
    "fig10": Item(
        "Figure 10: levels at a fixed size",
        "fig10_levels",
        "ImageNet 128 px: samples are best with at least 5 levels in every channel",
    ),
    "table2": Item(
        "Table 2: UViM",
        "table2_uvim",
        "RMSE 0.473 and 0.468, PQ 43.2 and 43.4, FID-5k 17.55 and 16.90 with FSQ and VQ",
    ),
    "entropy": Item(
        "VQ's entropy loss by groups (not in the paper)",
        "entropy_groups",
        "MaskGIT's code takes it over one device's examples",
    ),
    "quantizers": Item(
        "Thirteen quantizers under Figure 3's protocol (not in the paper)",
        "quantizers",
        "each has a paper of its own, with other networks and data",
    ),
}
_NAMED = 4  # runs without results that are named one by one
VERDICTS = (CONFIRMED, REFUTED, OPEN, NOT_RUN)


def folder(item: Item, scale: str, out: str) -> str:
    """Where an item's results of a scale are."""
    return launcher.results_folder(item.module, Options(scale), out)


def absent(item: Item, scale: str, out: str) -> str:
    """A sentence that names the first runs without results, why they have none, and how many more
    there are; "" for none."""
    lacking = entries.missing(folder(item, scale, out))
    named = "; ".join(f"`{one['run']}` ({one['why']})" for one in lacking[:_NAMED])
    more = len(lacking) - _NAMED
    if more > 0:
        named += f"; and {more} more, see `{item.module}/missing.json`"
    return f"Missing: {named}." if lacking else ""


def results_of(item: Item, out: str) -> dict[str, list]:
    """{scale: entries} of what was run of an item."""
    found = {scale: entries.read(folder(item, scale, out)) for scale in ("bench", "paper")}
    return {scale: values for scale, values in found.items() if values}


def verdicts(item: Item, found: Sequence[entries.Entry]) -> str:
    """ "3 confirmed, 1 refuted" of an item's claims."""
    judged = [claim.judge(found).verdict for claim in _claims(item)]
    return ", ".join(f"{judged.count(v)} {v}" for v in VERDICTS if v in judged)


def _claims(item: Item) -> Sequence[claims.Claim]:
    return launcher.experiment(item.module).CLAIMS


def setting(found: Sequence[entries.Entry]) -> str:
    """Data, stages with their steps and seeds, and devices of some entries, in one sentence."""

    def listed(name, group):
        values = sorted({str(e[name]) for e in group if e.get(name) not in (None, "")})
        return ", ".join(values) or "unknown"

    parts = []
    for stage in dict.fromkeys(e["stage"] for e in found):
        group = entries.select(found, stage=stage)
        runs = len({e["run"] for e in group})
        parts.append(
            f"{stage}: {runs} runs, steps {listed('steps', group)}, seeds {listed('seed', group)}"
        )
    return f"{listed('data', found)}; {'; '.join(parts)}; on {listed('device', found)}"


def overview(out: str) -> html.Table:
    """One row per item: its command, what the paper says, what was run here."""
    rows = []
    for name, item in ITEMS.items():
        found = results_of(item, out)
        here = "; ".join(f"{scale}: {verdicts(item, values)}" for scale, values in found.items())
        command = f"python -m experiments.reproduce --run={name} --scale=bench"
        rows.append((item.title, command, item.paper, here or NOT_RUN))
    return html.Table(("of the paper", "command", "what the paper says", "what we have"), rows)


def pictures(item: Item, out: str) -> list[pathlib.Path]:
    """The pictures of an item's results at scale=bench."""
    return sorted(pathlib.Path(out, item.module).glob("*.png"))


def tables(item: Item, out: str) -> list[pathlib.Path]:
    """The files with an item's tables at scale=bench, but for its claims."""
    return sorted(p for p in pathlib.Path(out, item.module).glob("table*.md"))


def readme(out: str) -> str:
    """The text of OUT/README.md."""
    parts = [
        "# Results",
        "Written by `python -m experiments.reproduce` from the files beside it. Every "
        'number is measured here at the scale that stands beside it, or says "not run".',
        overview(out).text(),
    ]
    for name, item in ITEMS.items():
        parts.append(f"## {item.title}")
        found = results_of(item, out)
        if not found:
            parts.append(
                f"Not run. `python -m experiments.{item.module} --scale=paper --commands` "
                "prints the paper's runs and their cost."
            )
            continue
        for scale, values in found.items():
            parts.append(f"`--run={name} --scale={scale}`: {setting(values)}.")
            if lacking := absent(item, scale, out):
                parts.append(lacking)
            parts.append(claims.table(_claims(item), values).text())
        parts += [path.read_text().strip() for path in tables(item, out)]
        parts += [f"![{path.stem}]({item.module}/{path.name})" for path in pictures(item, out)]
    return "\n\n".join(parts) + "\n"


def page(out: str) -> str:
    """The same as one HTML page, pictures embedded."""
    sections = {"All figures and tables": [overview(out)]}
    for item in ITEMS.values():
        parts = []
        for scale, values in results_of(item, out).items():
            parts.append(" ".join([f"{scale}: {setting(values)}.", absent(item, scale, out)]))
            parts.append(claims.table(_claims(item), values))
        parts += [path.read_bytes() for path in pictures(item, out)]
        sections[item.title] = parts or ["Not run."]
    return html.page("fsq_jax: the paper's figures and tables", sections)


def write(out: str) -> None:
    """Writes OUT/README.md and OUT/index.html."""
    for name, text in (("README.md", readme(out)), ("index.html", page(out))):
        with written_whole(os.path.join(out, name)) as file:
            file.write(text)


def main(argv) -> None:
    values = flags.FLAGS
    if values.run:
        if values.run not in ITEMS:
            raise UserError(
                f"There is nothing called {values.run!r}{did_you_mean(values.run, ITEMS)}"
            )
        launcher.run_all([ITEMS[values.run].module], values, argv[1:])
    if not values.commands:
        print(overview(values.out).text())
        write(values.out)


if __name__ == "__main__":
    launcher.define_flags(tuple(ITEMS))
    flags.DEFINE_string("run", "", f"What to run: {', '.join(ITEMS)}.")
    cli.run(main, takes_arguments=True)

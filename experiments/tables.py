"""Tables of entries, mean and deviation over seeds, and how findings are written."""

import os
from collections.abc import Collection, Mapping, Sequence

from matplotlib.figure import Figure

from experiments import claims, entries
from experiments.entries import Entry
from fsq_jax.reports import comparison, html
from fsq_jax.runtime.files import written_whole


def title(metric: str) -> str:
    """A metric in words."""
    return comparison.title_and_form(metric)[0]


def by_group(groups: Mapping[str, Sequence[Entry]], metrics: Sequence[str]) -> html.Table:
    """One row per group of repeated runs, one column per metric that any of them has."""
    shown = [m for m in metrics if any(m in e for group in groups.values() for e in group)]
    rows = []
    for name, group in groups.items():
        cells = [comparison.cell(metric, entries.values(group, metric)) for metric in shown]
        rows.append((name, *cells, " / ".join(seeds(group)) or "–"))
    return html.Table(("", *map(title, shown), "seeds"), rows)


def paired(
    head: str, groups: Mapping[str, Sequence[Sequence[Entry]]], metrics: Sequence[str]
) -> html.Table:
    """One row per pair of groups: the first minus the second, of runs with the same seed.

    A seed decides the order of the data and the first weights of all that two tokenizers have in
    common, so that a part of what it does to a metric is the same in both.
    """
    rows = []
    for name, (ours, theirs) in groups.items():
        spreads = (entries.spread(entries.differences(ours, theirs, m)) for m in metrics)
        rows.append((name, *map(claims.text, spreads)))
    return html.Table((head, *map(title, metrics)), rows)


def deviations(
    head: str, rows: Mapping[str, Collection[Sequence[Entry]]], metrics: Sequence[str]
) -> html.Table:
    """How much metrics deviate within groups of runs: one row per kind of group."""
    made = []
    for name, groups in rows.items():
        pooled = (entries.pooled([entries.values(group, m) for group in groups]) for m in metrics)
        made.append((name, *(claims.NOT_RUN if p is None else f"{p:.3g}" for p in pooled)))
    return html.Table((head, *map(title, metrics)), made)


def seeds(group: Sequence[Entry]) -> list[str]:
    """How many runs of each stage a group has: ["tokenizer: 3", "transformer: 1"]."""
    counts = {}
    for entry in group:
        stage = entry.get("stage", "run")
        counts[stage] = counts.get(stage, 0) + 1
    return [f"{stage}: {count}" for stage, count in counts.items()]


def write(out: str, tables: Mapping[str, html.Table], figures: Mapping[str, Figure]) -> None:
    """Writes each table as OUT/NAME.md and each figure as OUT/NAME.png."""
    for name, table in tables.items():
        with written_whole(os.path.join(out, f"{name}.md")) as file:
            file.write(table.text() + "\n")
    for name, drawn in figures.items():
        with written_whole(os.path.join(out, f"{name}.png"), "wb") as file:
            file.write(html.png(drawn))

"""Compares runs: what they reached, how it was measured, which config keys differ.

python -m fsq_jax.compare runs/fsq runs/vq
python -m fsq_jax.compare runs/fsq runs/vq --out=comparison.html

Numbers that were measured differently do not share a table: the keys of the protocol that
differ are named instead. --metrics=codebook/usage,reconstruction/psnr shows these alone.
"""

import os
from collections.abc import Sequence

from absl import flags

from fsq_jax.reports import comparison, html, run
from fsq_jax.runtime import cli, outputs
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.user_error import UserError, did_you_mean
from fsq_jax.runtime.workdir import load_results


def compare(
    paths: Sequence[str], metrics: Sequence[str] = (), out: str = ""
) -> dict[str, html.Table]:
    """{heading: table} of runs beside each other.

    Args:
      paths: their workdirs.
      metrics: which rows; all that any of the runs has by default.
      out: HTML page that gets the tables, and the curves of all runs in common axes.

    Raises:
      UserError: one of them is not a run, a metric of two was measured differently or is
        in neither's results, or `out` can't be written.
    """
    if len(paths) < 2:
        raise UserError("Name two runs or more: python -m fsq_jax.compare RUN RUN")
    workdirs = names(paths)
    outputs.check_file(out)
    known = {metric for path in workdirs.values() for metric in load_results(path)}
    if unknown := [metric for metric in metrics if metric not in known]:
        raise UserError(f"No run has {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    tables = {
        "Config keys that differ": comparison.config_table(workdirs),
        "Results": comparison.comparison_table(workdirs, list(metrics) or None),
        "How they were measured": comparison.protocol_table(workdirs),
    }
    if out:
        sections: dict[str, Sequence] = {name: [table] for name, table in tables.items()}
        sections["Curves"] = run.curves(workdirs)
        with written_whole(out) as file:
            file.write(html.page(" and ".join(workdirs), sections))
    return tables


def names(paths: Sequence[str]) -> dict[str, str]:
    """{shortest endings of the paths that tell them apart: path}."""
    parts = [os.path.normpath(os.path.abspath(path)).split(os.sep) for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        short = [os.sep.join(part[-length:]) for part in parts]
        if len(set(short)) == len(short):
            return dict(zip(short, paths, strict=True))
    raise UserError(f"{paths[0]!r} is named twice.")


def main(argv) -> None:
    options = flags.FLAGS
    for heading, table in compare(argv[1:], options.metrics, options.out).items():
        print(f"{heading}\n\n{table.text()}\n" if table.rows else f"{heading}: none\n")
    if options.out:
        print(options.out)


if __name__ == "__main__":
    flags.DEFINE_list("metrics", [], "Which metrics, by their names in results.json.")
    flags.DEFINE_string("out", "", "HTML page to write.")
    cli.run(main, takes_arguments=True)

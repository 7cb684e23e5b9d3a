"""What of a machine's runs goes on to the next one, in pieces of a limited size.

Results, curves, configs and pictures of all runs; then, as far as there is room, the weights that
runs still have to read, and last the checkpoints of runs that were cut off.
"""

import io
import os
import pathlib
import shutil
import tarfile
from collections.abc import Iterator, Sequence

from fsq_jax.launcher import plan
from fsq_jax.launcher.plan import Run
from fsq_jax.runtime import checkpoint
from fsq_jax.runtime.progress import log

PIECE = 15 * 2**20  # bytes of a piece
_NAME = "runs.tar.gz"
_SMALL = ("config.json", "results.json", "metrics.jsonl", "launches.jsonl", "entries.json")


def pack(workdir: str, runs: Sequence[Run], out: str, limit: int) -> list[str]:
    """Writes OUT/runs.tar.gz.00, .01 and so on; returns the paths.

    Args:
      workdir: of the runs.
      runs: all of the experiments.
      out: folder to write to.
      limit: bytes in all; what does not fit is left out, and said.
    """
    os.makedirs(out, exist_ok=True)
    buffer, left_out = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=5) as archive:
        for group in _groups(workdir, runs):
            size = sum(os.path.getsize(path) for path in group)
            # Weights hardly shrink; small files come first, and shrink to a tenth.
            if buffer.tell() + size > limit and not _is_small(group):
                left_out.append(os.path.relpath(group[0], workdir))
                continue
            for path in group:
                archive.add(path, os.path.relpath(path, workdir))
    data, paths = buffer.getvalue(), []
    for number, start in enumerate(range(0, len(data), PIECE)):
        paths.append(os.path.join(out, f"{_NAME}.{number:02d}"))
        pathlib.Path(paths[-1]).write_bytes(data[start : start + PIECE])
    log(f"Packed {len(data) / 2**20:.1f} MiB in {len(paths)} pieces to {out}.")
    if left_out:
        log(f"No room for {', '.join(left_out)}: these are made again where they are needed.")
    return paths


def unpack(folder: str, workdir: str) -> list[str]:
    """Puts what `pack` left into a workdir; returns the names of the files that were written.

    A file that is there already stays, unless it is older.
    """
    pieces = sorted(pathlib.Path(folder).glob(f"{_NAME}.*"))
    data = io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))
    written = []
    if not pieces:
        log(f"There is nothing to unpack in {folder}.")
        return written
    with tarfile.open(fileobj=data, mode="r:gz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not before 3.11.4
        for member in archive:
            there = pathlib.Path(workdir, member.name)
            if not there.exists() or there.stat().st_mtime < member.mtime:
                archive.extract(member, workdir)
                written.append(member.name)
    return written


def _is_small(group: Sequence[str]) -> bool:
    return all(os.path.basename(path) in _SMALL or path.endswith(".png") for path in group)


def _groups(workdir: str, runs: Sequence[Run]) -> Iterator[list[str]]:
    """Files that are of use together, the most useful first."""
    left, wanted = plan.wanted_weights(workdir, runs)
    for run in runs:
        path = plan.folder(workdir, run)
        files = [os.path.join(path, name) for name in _SMALL]
        if run.carried:  # otherwise a file that says "done" would stand there without the rest
            files += [
                os.path.join(path, file)
                for file, _ in run.commands
                if file not in (run.weights, plan.RESULTS)
            ]
        pictures = sorted(pathlib.Path(path, "samples").glob("*.png"))[-1:]
        yield [
            file for file in dict.fromkeys([*files, *map(str, pictures)]) if os.path.isfile(file)
        ]
    readers = {name: sum(name in run.needs for run in left) for name in wanted}
    for run in sorted(runs, key=lambda run: -readers.get(run.name, 0)):
        if run.name in wanted and run.carried and plan.has_weights(workdir, run):
            yield [os.path.join(plan.folder(workdir, run), run.weights)]
    for run in left:
        path = plan.folder(workdir, run)
        if steps := checkpoint.saved_steps(path):
            last = pathlib.Path(path, "checkpoints", str(steps[-1]))
            yield [str(file) for file in sorted(last.rglob("*")) if file.is_file()]


def copy_records(workdir: str, run: Run, out: str) -> None:
    """Copies config, curves and results of a run into a folder of results.

    What it drew in training stays behind: dozens of runs would be megabytes of the repository.
    """
    (files, *_) = _groups(workdir, [run])
    own = os.path.join(plan.folder(workdir, run), "samples")
    for file in (f for f in files if _is_small([f]) and os.path.dirname(f) != own):
        target = os.path.join(out, run.name)
        os.makedirs(target, exist_ok=True)
        shutil.copy(file, target)

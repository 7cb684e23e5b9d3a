"""The table of what `scaling` measured: speed-up over one GPU, memory, and whether losses agree."""

from collections.abc import Mapping, Sequence

HEAD = (
    "stage",
    "GPUs",
    "weights",
    "batch",
    "processes",
    "XLA",
    "images/s",
    "times one GPU",
    "efficiency",
    "GiB a GPU",
    "losses differ by",
)


def one_gpu(lines: Sequence[Mapping], line: Mapping) -> Mapping | None:
    """The line of a stage on one GPU of the same kind."""
    for other in lines:
        if "error" in other or other["gpus"] != 1:
            continue
        if (other["stage"], other.get("device")) == (line["stage"], line.get("device")):
            return other
    return None


def same_work(lines: Sequence[Mapping], line: Mapping) -> Mapping | None:
    """The line whose losses a line's are to be: of the same batches, on the fewest GPUs."""
    others = [
        other
        for other in lines
        if "losses" in other
        and (other["stage"], other["batch_size"]) == (line["stage"], line["batch_size"])
    ]
    first = min(others, key=lambda other: other["gpus"]) if others else line
    return None if first is line else first


def loss_difference(line: Mapping, other: Mapping) -> float:
    """The largest relative difference of the first steps' losses."""
    pairs = zip(line["losses"], other["losses"], strict=True)
    return max(abs(mine / theirs - 1) for mine, theirs in pairs)


def cells(lines: Sequence[Mapping], line: Mapping) -> tuple[str, ...]:
    """A row of the table."""
    facts = (
        line["stage"],
        str(line["gpus"]),
        {"data": "on each", "fsdp": "cut"}.get(line["parallel"], ""),
        {"weak": "grows", "strong": "held"}.get(line["scaling"], ""),
        str(line["processes"]),
        line["flags"].replace("_", " "),
    )
    if "error" in line:
        return (*facts, f"error: {line['error']}", "", "", "", "")
    base, other = one_gpu(lines, line), None
    speed = line["images_per_second"]
    ratio = speed / base["images_per_second"] if base else None
    if "losses" in line:
        other = same_work(lines, line)
    return (
        *facts,
        f"{speed:.4g}",
        f"{ratio:.2f}" if ratio else "",
        f"{ratio / line['gpus']:.1%}" if ratio else "",
        f"{line['peak_gib']:.1f}",
        f"{loss_difference(line, other):.1e} ({other['gpus']} GPUs)" if other else "",
    )


def table(lines: Sequence[Mapping], not_begun: Sequence[str] = ()) -> str:
    """Markdown of all lines of speeds, an error only where no later line took its place, and the
    rows that weren't begun, but for those with a line from another time."""
    last = {line["row"]: line for line in lines}
    speeds = [x for x in last.values() if "images_per_second" in x or "error" in x]
    rows = [HEAD, tuple("-" * 3 for _ in HEAD), *(cells(speeds, line) for line in speeds)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    devices = sorted({x["device"] for x in speeds if "device" in x})
    missing = [f"`{name}`" for name in not_begun if name not in last]
    ending = f"\nNot begun: {', '.join(missing)}.\n" if missing else ""
    return f"{', '.join(devices) or 'No device'}\n\n{text}\n{ending}"

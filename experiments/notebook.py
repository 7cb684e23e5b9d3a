"""Runs a notebook's cells in one namespace, and keeps what they print and draw in it.

python -m experiments.notebook notebooks/fsq.ipynb

For notebooks without magics and widgets. Pictures are kept with 256 colours each, so that the file
stays small; a Jupyter that runs the same cells keeps them as they are.
"""

import base64
import contextlib
import io
import json
import sys
from typing import Any
from unittest import mock

from absl import app
from matplotlib import pyplot as plt
from PIL import Image

from fsq_jax.runtime.files import written_whole


def execute(notebook: dict) -> dict:
    """The notebook with the outputs of its code cells; an error in one is raised."""
    plt.switch_backend("agg")
    namespace, count, cells = {"__name__": "__main__"}, 0, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = run("".join(cell["source"]), f"cell {count}", namespace)
            cell = cell | {"execution_count": count, "outputs": outputs}
        cells.append(cell)
    return notebook | {"cells": cells}


def run(source: str, name: str, namespace: dict) -> list[dict[str, Any]]:
    """Runs a cell; returns its outputs: what it prints, then what it shows."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), mock.patch.object(plt, "show"):
        exec(compile(source, name, "exec"), namespace)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        lines = text.splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
    for number in plt.get_fignums():
        data = {"image/png": small_png(plt.figure(number))}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    plt.close("all")
    return outputs


def small_png(figure) -> str:
    """A figure in base64, with 256 colours."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight")
    Image.open(drawn).convert("RGB").quantize(256, kmeans=2).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main(argv) -> None:
    (path,) = argv[1:]
    with open(path) as file:
        notebook = execute(json.load(file))
    with written_whole(path) as file:
        file.write(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    print(f"{path}: {len(json.dumps(notebook)) / 1e3:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)

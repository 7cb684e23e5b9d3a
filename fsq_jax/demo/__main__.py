"""A page in the browser on which trained weights are tried, with Gradio.

python -m fsq_jax.demo
python -m fsq_jax.demo --workdir=runs/maskgit,runs/lm --port=7860

Without --workdir it shows the small weights that the package brings. A tokenizer rebuilds a picture
and decodes painted codes, a masked transformer draws classes and completes pictures, step by step,
and UViM says depth, segments or colours of a picture. Nothing is fetched from outside.
"""

import importlib.util

from absl import flags

from fsq_jax import runs
from fsq_jax.pretrained import shipped
from fsq_jax.runtime import cli
from fsq_jax.runtime.user_error import UserError

# Of what the package brings, the tabs from left to right.
TABS = ("tokenizer", "maskgit", "depth", "panoptic", "colorization")
ROWS = 8  # examples of a batch: as many samples as are drawn at once


def brought() -> list[str]:
    """The paths of the weights that come with the package and have a page."""
    names = [f"scenes-{tab}" for tab in TABS]
    return [shipped.PREFIX + name for name in names if name in shipped.names()]


def main(argv) -> None:
    del argv
    if not importlib.util.find_spec("gradio"):
        raise UserError("The demo needs gradio; pip install 'fsq_jax[train,demo]'.")
    options = flags.FLAGS
    overrides = {"eval_batch_size": ROWS}
    predictors = {
        path: runs.load(path, options.stage_1, overrides=overrides)
        for path in options.workdir or brought()
    }
    from fsq_jax.demo import pages  # which imports Gradio

    pages.launch(predictors, options.host, options.port, options.browser)


if __name__ == "__main__":
    flags.DEFINE_list(
        "workdir", [], "Runs, exports or files, one tab each; by default those of the package."
    )
    flags.DEFINE_string("stage_1", "", "Stage I that a stage II reads; a run names its own.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
    flags.DEFINE_integer("port", 7860, "Port to listen on.")
    flags.DEFINE_bool("browser", False, "Whether to open the page in a browser.")
    cli.run(main)

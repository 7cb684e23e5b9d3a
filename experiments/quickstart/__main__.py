"""FSQ beside VQ, and what a stage II makes of their codes, in minutes on two CPU cores.

python -m experiments.quickstart --workdir=runs/quickstart
python -m experiments.quickstart --workdir=runs/mine --data=folder:PATH --transformers=fsq,vq
python -m experiments.quickstart --workdir=runs/depth --family=uvim

Trains two tokenizers of the same size on the embedded scenes (32 x 32 pixels, 8 x 8 tokens), one
with FSQ and one with VQ, of 240 codes each; then a masked transformer on the tokens of FSQ.
Evaluates all three, samples images of each class, and writes WORKDIR/report/index.html. Started
again in the same workdir it goes on where it was stopped, and writes a new report. Other data
take the place of the scenes with --data; --transformers=fsq,vq trains one on each tokenizer.

With --family=uvim the task is depth: two label autoencoders, and a language model on the codes of
each, which reads depth off the image.
"""

from absl import flags

from experiments.quickstart import maskgit, uvim
from fsq_jax.runtime import cli


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    data = f"data={options.data}" + (f",data_dir={options.data_dir}" if options.data_dir else "")
    if options.family == "uvim":
        uvim.run(options.workdir, options.steps_scale, data)
    else:
        maskgit.run(options.workdir, options.steps_scale, data, options.transformers)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/quickstart", "Folder that is written and resumed from.")
    flags.DEFINE_enum("family", "maskgit", ["maskgit", "uvim"], "Images, or depth of images.")
    flags.DEFINE_string("data", "scenes", "Or tfds:NAME, folder:PATH.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_list("transformers", ["fsq"], "The tokenizers that get a masked transformer.")
    flags.DEFINE_float(
        "steps_scale", 1.0, "Multiplies training steps and records; 0.01 shows that all runs."
    )
    cli.run(main)

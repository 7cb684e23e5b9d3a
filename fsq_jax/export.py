"""Writes a trained run's averaged weights in a format that others read, and a model card beside.

python -m fsq_jax.export --workdir=runs/tokenizer --format=safetensors --out=exports/tokenizer
python -m fsq_jax.export --workdir=runs/maskgit --format=jax-export --out=exports/maskgit
python -m fsq_jax.export --workdir=runs/tokenizer --out=exports/tokenizer --push=OWNER/NAME

With --push the files go to the Hugging Face hub, too, where hf:OWNER/NAME names them. OUT/ gets
README.md, which says what each file's SHA-256 is, and, by --format:
  safetensors   model.safetensors: all arrays, with config, results and this card in the metadata
  msgpack       model.msgpack: the layout of MaskGIT's own checkpoints
  npz           model.npz: the layout of UViM's
  jax-export    one function per file, weights inside, that compiles for CPU, CUDA and TPU. Of a
                tokenizer encode.jax (images float32 [B,H,W,3] in [0,1] -> int32 [B,h,w]) and
                decode.jax (back, clipped to [0,1]); of a transformer logits.jax (tokens int32
                [B,L], the class first -> float32 [B,L,indices]). Any batch size. They need JAX and
                flatbuffers: jax.export.deserialize(open("encode.jax", "rb").read()).call(images)
"""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from fsq_jax import quantizers
from fsq_jax.formats import hub, weights_file
from fsq_jax.models.maskgit_transformer import MaskedTransformer
from fsq_jax.pretrained import weights
from fsq_jax.quantizers.vq import VectorQuantizer
from fsq_jax.reports import model_card
from fsq_jax.runtime import cli, manifest, outputs, sharding
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import load_results, of_step
from fsq_jax.stages import maskgit_tokenizer

FORMATS = ("safetensors", "msgpack", "npz", "jax-export")
DTYPES = ("float32", "bfloat16")
PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    workdir: str, format: str, out: str, step: int | None = None, dtype: str = "float32"
) -> list[str]:
    """Writes a run's weights (moving averages); returns the files, the model card last.

    Args:
      workdir: the run's folder.
      format: one of `FORMATS`.
      out: folder to write to.
      step: which checkpoint; the latest by default.
      dtype: one of `DTYPES`; bfloat16 halves a safetensors file, which is read back as float32.

    Raises:
      UserError: there is no such run or checkpoint, or the format cannot hold its stage.
    """
    if format not in FORMATS:
        raise UserError(f"{format=} is unknown; there are {', '.join(FORMATS)}.")
    if format == "jax-export" and not importlib.util.find_spec("flatbuffers"):
        raise UserError("jax-export is written with flatbuffers: pip install flatbuffers.")
    if dtype != "float32" and format != "safetensors":
        raise UserError(f"{dtype=} is for safetensors; {format} is written in float32.")
    outputs.check_folder(out)
    loaded = weights.load(workdir, step)
    if loaded.config is None:
        raise UserError(f"{workdir!r} is not a run; --workdir is the folder of one.")
    check_format(format, loaded)
    return write(loaded, results_of(workdir, loaded.step), format, out, dtype)


def write(
    loaded: weights.Weights,
    results: Mapping[str, Mapping],
    format: str,
    out: str,
    dtype: str = "float32",
    notes: Mapping[str, str] | None = None,
) -> list[str]:
    """Writes weights and their card, as `export` does.

    Args:
      loaded: of a run.
      results: what was measured of them, as in results.json.
      format, out, dtype: see `export`.
      notes: further rows of the card's first table.
    """
    if dtype == "bfloat16":
        loaded = weights.rounded(loaded)
    card = model_card.text(loaded, results, format, dtype, notes)
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, "model." + format)
    if format == "safetensors":
        write_safetensors(path, loaded, results, card, dtype)
        written = [path]
    elif format == "msgpack":
        weights_file.write_msgpack(path, loaded.params)
        written = [path]
    elif format == "npz":
        weights_file.write_npz(path, loaded.variables)
        written = [path]
    else:
        written = write_functions(out, loaded)
    checksums = {os.path.basename(path): manifest.sha256(path) for path in written}
    written.append(os.path.join(out, hub.CARD))
    with written_whole(written[-1]) as file:
        file.write(hub.front_matter(model_card.facts_for_hub(loaded, results, checksums)) + card)
    return written


def write_safetensors(
    path: str, loaded: weights.Weights, results: Mapping, card: str, dtype: str
) -> None:
    """Writes all arrays by path, real ones as `dtype`, and what is known of them as metadata."""
    arrays = weights_file.flatten(loaded.variables)
    real = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    weights_file.write_safetensors(
        path,
        arrays | {name: array.astype(jnp.dtype(dtype)) for name, array in real.items()},
        {
            "format": "fsq_jax",
            "config": json.dumps(loaded.config.to_dict()),
            "step": str(loaded.step),
            "fingerprint": loaded.fingerprint,
            "results": json.dumps(results),
            "model_card": card,
        },
    )


def results_of(workdir: str, step: int) -> dict[str, dict]:
    """What results.json holds of a step, measured with the run's own settings."""
    return of_step(load_results(workdir), step)


def check_format(format: str, loaded: weights.Weights) -> None:
    """Raises a UserError where the format cannot hold the stage."""
    stage = loaded.config.stage
    if format == "jax-export" and stage not in FUNCTIONS:
        raise UserError(
            f"jax-export knows the functions of {sorted(FUNCTIONS)}, not of {stage!r}; "
            "safetensors and npz hold any stage."
        )
    if format == "msgpack" and stage not in ("maskgit_tokenizer", "maskgit_transformer"):
        raise UserError(
            f"msgpack is the format of MaskGIT's two stages, not of {stage!r}; "
            "safetensors and npz hold any."
        )
    if format == "msgpack" and loaded.model_state:
        raise UserError(
            "MaskGIT's msgpack holds parameters alone, and this run has "
            f"{sorted(loaded.model_state)} beside them (quantizer=vq_ema); safetensors holds all."
        )
    if format == "msgpack" and stage == "maskgit_tokenizer":
        quantizer = quantizers.of_config(loaded.config)
        is_plain_vq = isinstance(quantizer, VectorQuantizer) and not (
            quantizer.normalize or quantizer.codebook_channels
        )
        if not is_plain_vq and not quantizers.levels(quantizer):
            raise UserError(
                "MaskGIT's msgpack is of FSQ, or of a VQ without projections and unit vectors, and "
                f"tells no other from them (quantizer={loaded.config.quantizer.name}); safetensors "
                "holds all."
            )


def write_functions(out: str, loaded: weights.Weights) -> list[str]:
    """Writes the stage's functions as OUT/NAME.jax; returns the paths."""
    sharding.check_precision()
    written = []
    for name, (function, argument) in FUNCTIONS[loaded.config.stage](loaded).items():
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(argument)
        written.append(os.path.join(out, f"{name}.jax"))
        with written_whole(written[-1], "wb") as file:
            file.write(exported.serialize())
    return written


def _batch(*shape: int, dtype) -> jax.ShapeDtypeStruct:
    """An argument whose first dimension may be of any size."""
    (rows,) = jax.export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((rows, *shape), dtype)


def _tokenizer_functions(loaded: weights.Weights) -> dict[str, tuple[Callable, object]]:
    model, size = maskgit_tokenizer.make_model(loaded.config), loaded.config.data.size
    side = size // model.downsampling

    def encode(images_BHWC):
        quantized: Any = model.apply(loaded.variables, images_BHWC, method="encode")
        return quantized.indices

    def decode(indices_Bhw):
        images: Any = model.apply(loaded.variables, indices_Bhw, method="decode_indices")
        return jnp.clip(images, 0, 1)

    return {
        "encode": (encode, _batch(size, size, 3, dtype=jnp.float32)),
        "decode": (decode, _batch(side, side, dtype=jnp.int32)),
    }


def _transformer_functions(loaded: weights.Weights) -> dict[str, tuple[Callable, object]]:
    config, embed = loaded.config, loaded.params["Embed_0"]
    rows = np.shape(embed["word_embeddings"]["embedding"])[0]
    length = np.shape(embed["position_embeddings"]["embedding"])[0]
    model = MaskedTransformer(
        vocab_size=rows,
        num_positions=length,
        num_logits=rows - config.num_classes - 1,
        **config.model.to_dict() | {"attention": "xla"},  # runs on every platform
    )

    def logits(tokens_BL):
        return model.apply({"params": loaded.params}, tokens_BL)

    return {"logits": (logits, _batch(length, dtype=jnp.int32))}


FUNCTIONS = {
    "maskgit_tokenizer": _tokenizer_functions,
    "maskgit_transformer": _transformer_functions,
}


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    if options.push:
        hub.require()  # before anything is written
    files = export(options.workdir, options.format, options.out, options.step, options.dtype)
    for path in files:
        print(f"{path}: {os.path.getsize(path):,} bytes", flush=True)
    if options.push:
        print(hub.push(options.out, [os.path.basename(path) for path in files], options.push))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_enum("format", "safetensors", FORMATS, "What to write.")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "Of safetensors; bfloat16 is half the size.")
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)
    flags.DEFINE_integer("step", None, "Which checkpoint; the latest by default.")
    flags.DEFINE_string("push", "", "OWNER/NAME of a repository on the Hugging Face hub.")
    cli.run(main)

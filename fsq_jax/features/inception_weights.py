"""The Inception network of 2015-12-05 with its weights, from the files that people have.

    python -m fsq_jax.features.inception_weights \\
        weights-inception-2015-12-05-6726825d.pth inception.npz

writes the same arrays as .npz or .safetensors, with their checksum. The checksum is of the arrays,
not of the file that holds them: weights that are equal have one, whichever file they come from.
"""

import functools
import hashlib
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fsq_jax.features import batch_norm
from fsq_jax.features import inception as model
from fsq_jax.features.network import Network
from fsq_jax.features.resizing import METHODS
from fsq_jax.formats import torch_file, weights_file
from fsq_jax.runtime.user_error import UserError

VARIABLE = "FSQ_JAX_INCEPTION"
FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
EPSILON = 1e-3
RANDOM = "inception-random"
# Of `random_state_dict`, so that its weights are known for what they are in any file.
RANDOM_SHA256 = "29dd7c3a97c9f6a467ee181c73a3e284cea1f3de38622c3f49d5235da526d509"


def find_weights(path: str | Path | None = None) -> Path:
    """Returns the path of the weights: the one given, or that in $FSQ_JAX_INCEPTION.

    Raises UserError where neither names a file.
    """
    chosen = path or os.environ.get(VARIABLE)
    if chosen and Path(chosen).is_file():
        return Path(chosen)
    lead = (
        f"There is no file of Inception's weights at {chosen}."
        if chosen
        else (f"FID needs Inception's weights: give their path, or set {VARIABLE} to it.")
    )
    raise UserError(
        f"{lead} They are {FILES[0]} of torch-fidelity's release v0.2.0 on GitHub, or {FILES[1]} "
        'of pytorch-fid\'s release "fid_weights"; either will do, as will a file converted from '
        "one by python -m fsq_jax.features.inception_weights. Without them choose the features "
        '"efficientnet" or "random", whose distances are not FID.'
    )


def load(
    path: str | Path | None = None,
    *,
    resize: str = "tf1",
    scaling: str = "128",
    dtype: str = "float32",
) -> Network:
    """The network of the weights in a file, see `find_weights`.

    `apply(variables, images)` gives `features.inception.Features` of images [B,H,W,3], uint8 or
    float, from 0 to 255, of any size. The name is "inception", or "inception-random" for the
    weights of `load_random`; `details` say how images are prepared and in what precision.

    Args:
      path: .pth, .npz or .safetensors.
      resize: "tf1" (ADM, torch-fidelity), "bilinear" (pytorch-fid), "bicubic-pil" (clean-fid) or
        "none", see `models.resizing`.
      scaling: "128" (the graph, clean-fid) or "127.5" (pytorch-fid).
      dtype: "float32", "tf32" or "bfloat16".

    Raises:
      UserError: no file, one that is damaged, or of another network; a name that does not exist.
    """
    _check(resize, scaling, dtype)
    path = find_weights(path)
    state = read(path)
    try:
        return _ready(state, resize, scaling, dtype)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def load_random(*, resize: str = "tf1", scaling: str = "128", dtype: str = "float32") -> Network:
    """What `load` gives, with random weights, for tests and benchmarks: no FID."""
    _check(resize, scaling, dtype)  # before they are drawn, which takes a second
    return _ready(random_state_dict(), resize, scaling, dtype)


def _check(resize, scaling, dtype) -> None:
    choices = ((resize, METHODS), (scaling, model.SCALINGS), (dtype, model.DTYPES))
    for value, known in choices:
        if value not in known:
            raise UserError(f"Inception's {value!r} is not one of {known}.")


def _ready(state, resize, scaling, dtype) -> Network:
    digest = checksum(state)
    module, params = convert(dict(state))
    module = module.clone(dtype=dtype)
    variables = {"params": weights_file.on_device(params)}

    def apply(variables, images_BHWC):
        return module.apply(variables, model.prepare(images_BHWC, resize, scaling))

    return Network(
        apply,
        variables,
        RANDOM if digest == RANDOM_SHA256 else "inception",
        digest,
        resize,
        model.POOL_FEATURES,
        {"scaling": scaling, "dtype": dtype},
    )


def convert(state: dict[str, np.ndarray]) -> tuple[model.Inception, dict]:
    """Returns (module, params) of a state dict with torch-fidelity's names, which it empties.

    Raises UserError where names or shapes are not the network's.
    """
    shapes = _shapes()
    if missing := sorted(_names() - set(state)):
        raise UserError(f"Inception lacks {len(missing)} of its tensors, such as {missing[0]}.")
    params = {}
    for layer, shape in shapes.items():
        if layer == "fc":
            found = batch_norm.dense(state, layer)
        else:
            found = batch_norm.folded(state, f"{layer}.conv", f"{layer}.bn", EPSILON)
        if found["kernel"].shape != shape:
            raise UserError(f"{layer} has a kernel of {found['kernel'].shape}, not {shape}.")
        where = functools.reduce(lambda t, name: t.setdefault(name, {}), layer.split("."), params)
        where.update(found)
    if state:
        raise UserError(f"Inception has no {sorted(state)[0]}.")
    return model.Inception(), params


def _names() -> set[str]:
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    names = {f"{layer}.{part}" for layer in _shapes() for part in parts if layer != "fc"}
    return names | {"fc.weight", "fc.bias"}


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """{layer as torch names it: shape of its kernel (HWIO)}."""
    images = jax.ShapeDtypeStruct((1, model.SIZE, model.SIZE, 3), jnp.float32)
    tree = jax.eval_shape(model.Inception().init, jax.random.key(0), images)["params"]
    leaves = jax.tree.leaves_with_path(tree)
    return {
        ".".join(part.key for part in path[:-1]): leaf.shape
        for path, leaf in leaves
        if path[-1].key == "kernel"
    }


def checksum(state: dict[str, np.ndarray]) -> str:
    """Returns the SHA-256 of the arrays as float32, sorted by name, with names and shapes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name], "<f4")
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Returns {torch's name: float32 array} of a .pth, .npz or .safetensors file.

    Raises UserError for a file that cannot be read, for one whose arrays are not those that its
    checksum was taken of, and for weights that are not finite.
    """
    if Path(path).suffix == ".safetensors":
        state, metadata = weights_file.read_safetensors(path)
        stored = metadata.get("sha256")
    else:
        state = torch_file.read_state_dict(path)
        stored = state.pop("sha256", None)
    state = {
        name: np.asarray(array, np.float32)
        for name, array in state.items()
        if not name.endswith(".num_batches_tracked")
    }
    if bad := [name for name, array in state.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path}: {bad[0]} has NaN or infinity.")
    if stored is not None and str(stored) != checksum(state):
        raise UserError(f"{path} is damaged: its arrays do not have the checksum {stored}.")
    return state


def write(path: str | Path, state: dict[str, np.ndarray]) -> str:
    """Writes weights as .npz or .safetensors, as the path ends, and returns their checksum.

    Raises UserError for another ending.
    """
    digest = checksum(state)
    if Path(path).suffix == ".safetensors":
        weights_file.write_safetensors(path, state, {"sha256": digest})
    elif Path(path).suffix == ".npz":
        np.savez(path, sha256=digest, **state)  # pyright: ignore[reportArgumentType]
    else:
        raise UserError(f"{path} must end in .npz or .safetensors.")
    return digest


def random_state_dict() -> dict[str, np.ndarray]:
    """Returns the weights of an untrained network by torch's names, always the same ones."""
    rng = np.random.Generator(np.random.PCG64(0))
    state = {}

    def draw(name, shape, deviation, mean=0.0):
        state[name] = (mean + deviation * rng.standard_normal(shape)).astype(np.float32)

    for layer, shape in _shapes().items():
        if layer == "fc":
            draw("fc.weight", shape[::-1], 0.1)
            draw("fc.bias", shape[1:], 0.1)
            continue
        height, width, wide_in, wide = shape
        gain = (2 / (height * width * wide_in)) ** 0.5
        draw(f"{layer}.conv.weight", (wide, wide_in, height, width), gain)
        draw(f"{layer}.bn.weight", (wide,), 0.1, 1)
        draw(f"{layer}.bn.bias", (wide,), 0.1)
        draw(f"{layer}.bn.running_mean", (wide,), 0.1)
        state[f"{layer}.bn.running_var"] = rng.uniform(0.8, 1.2, wide).astype(np.float32)
    return state


def main(argv: list[str]) -> None:
    """Converts a file of weights: SRC DST."""
    if len(argv) != 2:
        raise UserError("Give the file of weights and the .npz or .safetensors to write: SRC DST.")
    source, target = argv
    state = read(find_weights(source))
    convert(dict(state))
    print(f"{target}: SHA-256 of the weights {write(target, state)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as mistake:
        sys.exit(f"Error: {mistake}")

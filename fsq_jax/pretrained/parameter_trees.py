"""Which network a tree of arrays is of, by the names in it, and whether every shape is its own."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import traverse_util

from fsq_jax.formats import weights_file
from fsq_jax.runtime.user_error import UserError

PyTree = Any

# Layout -> (what it is called, the names at the top by which it is known).
LAYOUTS = {
    "maskgit_tokenizer": ("a MaskGIT tokenizer", {"encoder/Conv_0", "decoder/Conv_0"}),
    "maskgit_transformer": ("a MaskGIT transformer", {"Embed_0", "MlmLayer_0"}),
    "uvim_base": ("a UViM stage I", {"encoder_head", "decoder_stem"}),
    "uvim_lm": ("a UViM stage II", {"EmbedPatches", "decoder/EmbedTargets"}),
    "vit": ("a ViT", {"embedding", "Transformer/encoder_norm"}),
}


def identify(params: Mapping) -> str | None:
    """The layout of a tree of parameters, a key of `LAYOUTS`; None for another network's."""
    names = set(params) | {
        f"{key}/{part}"
        for key, tree in params.items()
        if isinstance(tree, Mapping)
        for part in tree
    }
    return next((layout for layout, (_, marks) in LAYOUTS.items() if marks <= names), None)


def expect(path: str, params: Mapping, layout: str) -> Mapping:
    """The same parameters.

    Raises:
      UserError: they are of another layout; says of which.
    """
    if identify(params) != layout:
        raise UserError(f"{path} holds {name(params)}; expected {LAYOUTS[layout][0]}.")
    return params


def name(params: Mapping) -> str:
    """What a tree of parameters is called in a sentence."""
    layout = identify(params)
    return LAYOUTS[layout][0] if layout else f"another network ({_some(params)})"


def named_arrays(function: Callable) -> Callable:
    """Makes a missing name, or an array of another rank, a sentence about the file (`path`)."""

    @functools.wraps(function)
    def wrapped(path, params, *arguments, **keywords):
        try:
            return function(path, params, *arguments, **keywords)
        except KeyError as error:
            raise UserError(f"{path} lacks {error}, which this network has.") from None
        except (IndexError, TypeError) as error:
            raise UserError(f"{path} holds arrays of other ranks ({error}).") from None

    return wrapped


def check_shapes(path: str, model, params: PyTree, *inputs) -> None:
    """Raises a UserError where the names or shapes are not those of `model.init(*inputs)`."""
    check_tree(path, params, jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])


def check_tree(path: str, params: PyTree, expected: PyTree) -> None:
    """Raises a UserError where names or shapes are not those of the tree that is `expected`."""
    shapes: Any = traverse_util.flatten_dict(expected, sep="/")
    ours = {key: array.shape for key, array in shapes.items()}
    theirs = {key: array.shape for key, array in weights_file.flatten(params).items()}
    lacking, extra = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if lacking:
        raise UserError(f"{path} lacks {len(lacking)} arrays, such as {lacking[0]!r}.")
    if extra:
        raise UserError(
            f"{path} has {len(extra)} arrays that this network lacks, such as {extra[0]!r}."
        )
    for key, shape in ours.items():
        if theirs[key] != shape:
            raise UserError(f"{path}: {key} has shape {theirs[key]}, expected {shape}.")


def _some(names) -> str:
    listed = sorted(map(str, names))
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")

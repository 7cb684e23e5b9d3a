"""A run that starts from other weights: what fits is taken, all else is listed.

Arrays fit by path and shape, nothing else: with FSQ in the place of a VQ the codebook is left
over, and the two convolutions beside the quantizer are new.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from fsq_jax.pretrained import parameter_trees, vit, weights
from fsq_jax.runtime import sharding
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError

PyTree = Any


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """What a run takes from other weights, and what it doesn't.

    Attributes:
      path: where the weights come from; "" for a run from scratch, in which nothing is taken.
      fingerprint: tells these weights from any others.
      taken: {path: array} that fit.
      new: {path: (shape, the shape that was found there or None)} of arrays that stay as drawn.
      left_over: {path: shape} of arrays that have no place in the model.
    """

    path: str = ""
    fingerprint: str = ""
    taken: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    new: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    left_over: Mapping[str, tuple] = dataclasses.field(default_factory=dict)

    def apply_to(self, state: PyTree, shardings: PyTree, workdir: str) -> PyTree:
        """The `TrainState` with what is taken in the place of what was drawn.

        It goes into the parameters, their moving average and the model state, each array where
        `shardings` want it. What was done is said, and kept as WORKDIR/init_from.json.
        """
        if not self.path:
            return state
        if jax.process_index() == 0:
            log(self.text())
            write_json(os.path.join(workdir, "init_from.json"), self.record())
        name = _trained_network(state.params, state.ema_params)
        params = self._placed(
            "params", *(s.params[name] if name else s.params for s in (state, shardings))
        )
        return state.replace(
            params={**state.params, name: params} if name else params,
            ema_params=self._placed("params", state.ema_params, shardings.ema_params),
            model_state={
                collection: self._placed(collection, tree, shardings.model_state[collection])
                for collection, tree in state.model_state.items()
            },
        )

    def record(self) -> dict:
        """The same as plain values."""
        return {
            "path": self.path,
            "fingerprint": self.fingerprint,
            "taken": sorted(self.taken),
            "new": dict(self.new),
            "left_over": dict(self.left_over),
        }

    def text(self) -> str:
        """The same as lines for people."""
        numbers = sum(array.size for array in self.taken.values())
        lines = [
            f"From {self.path} ({self.fingerprint}): {len(self.taken)} arrays taken, {numbers:,} "
            f"numbers; {len(self.new)} are new, {len(self.left_over)} left over."
        ]
        for path, (shape, found) in self.new.items():
            lines.append(f"  new: {path} {shape}" + (f", there {found}" if found else ""))
        lines += [f"  left over: {path} {shape}" for path, shape in self.left_over.items()]
        return "\n".join(lines)

    def _placed(self, collection: str, tree: PyTree, where: PyTree) -> PyTree:
        def leaf(path, old, sharding_):
            array = self.taken.get(_path(collection, path))
            return old if array is None else sharding.put(array.astype(old.dtype), sharding_)

        return jax.tree_util.tree_map_with_path(leaf, tree, where)


def load(shapes: PyTree, path: str) -> InitialWeights:
    """What a run takes with the weights at a path: see `weights.load`, and `fit`."""
    loaded = weights.load(path)
    variables = loaded.variables
    if (
        parameter_trees.identify(loaded.params) == "vit"
    ):  # a part of UViM's stage II, by other names
        encoder = vit.image_encoder(path, loaded.params, shapes.ema_params)
        variables = {"params": encoder}
    return fit(shapes, variables, path, loaded.fingerprint)


def fit(
    shapes: PyTree, loaded: Mapping[str, PyTree], path: str, fingerprint: str
) -> InitialWeights:
    """What a run takes with weights that were loaded.

    Args:
      shapes: the run's `TrainState`, of which nothing but shapes is read.
      loaded: {"params": tree, collection: tree}.
      path, fingerprint: where the weights come from, and what tells them from others.

    Raises:
      UserError: nothing at all fits.
    """
    ours = _flat({"params": shapes.ema_params, **shapes.model_state})
    theirs = {name: np.asarray(array) for name, array in _flat(loaded).items()}
    fits = {name for name in ours.keys() & theirs.keys() if ours[name].shape == theirs[name].shape}
    if not fits:
        raise UserError(
            f"Nothing of init_from={path!r} fits this model: it holds {_example(theirs)}; the "
            f"model has {_example(ours)}."
        )
    found = {name: array.shape for name, array in theirs.items()}
    return InitialWeights(
        path,
        fingerprint,
        taken={name: theirs[name] for name in sorted(fits)},
        new={name: (ours[name].shape, found.get(name)) for name in sorted(ours.keys() - fits)},
        left_over={name: found[name] for name in sorted(theirs.keys() - ours.keys())},
    )


def _trained_network(params: PyTree, ema_params: PyTree) -> str:
    """The key of `params` under which the averaged network stands; "" where it is all of them."""
    structure = jax.tree.structure(ema_params)
    if jax.tree.structure(params) == structure:
        return ""
    return next(name for name, tree in params.items() if jax.tree.structure(tree) == structure)


def _flat(tree: PyTree) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


def _path(collection: str, path) -> str:
    return f"{collection}/{jax.tree_util.keystr(path, simple=True, separator='/')}"


def _example(arrays: Mapping) -> str:
    name = min(arrays)
    return f"{len(arrays)} arrays such as {name} {arrays[name].shape}"

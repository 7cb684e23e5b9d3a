"""A run's checkpoints on disk. The only file that knows Orbax.

    WORKDIR/checkpoints/STEP/      state and position in the data, written whole or not at all
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from fsq_jax.runtime.user_error import UserError

PyTree = Any

# `frozen` stays out: these weights are saved already, in the run that they come from.
_SAVED = ("step", "params", "opt_state", "ema_params", "model_state", "train_only")


class Checkpoints:
    """The checkpoints of a run: saved in the background, the last ones and the best one kept.

    Args:
      workdir: the run's folder.
      keep: how many of the latest checkpoints stay.
      best: name of the evaluation metric whose best checkpoint stays as well; "" for none.
      best_mode: "max" or "min".
    """

    def __init__(self, workdir: str, keep: int = 3, best: str = "", best_mode: str = "max"):
        if best_mode not in ("max", "min"):
            raise UserError(f"{best_mode=} must be 'max' or 'min'.")
        if keep < 1:
            raise UserError(f"{keep=} checkpoints would leave nothing to resume from.")
        policies = [preservation_policy.LatestN(keep)]
        if best:
            sign = 1 if best_mode == "max" else -1
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda m: sign * m.get(best, -sign * np.inf),
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self, state: PyTree, data_state: Mapping[str, Any], metrics: Mapping[str, float] | None
    ) -> None:
        """Starts writing a checkpoint; returns as soon as the arrays are copied.

        Args:
          state: a `TrainState`. A step that was saved before is left as it is.
          data_state: the position in the training data, plain JSON.
          metrics: the latest evaluation, by which the best checkpoint is chosen.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave({name: getattr(state, name) for name in _SAVED}),
                data=ocp.args.JsonSave(dict(data_state)),
            ),
            metrics={k: float(v) for k, v in metrics.items()} if metrics else None,
            force=True,
        )

    def restore(self, shapes: PyTree, shardings: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The latest (state, data_state), each array read straight into its place.

        Args:
          shapes: a `TrainState` of `ShapeDtypeStruct`s.
          shardings: the same of shardings.

        Raises:
          UserError: where the checkpoint can't be read, or isn't one of this model.
        """
        target = {
            name: jax.tree.map(_abstract, getattr(shapes, name), getattr(shardings, name))
            for name in _SAVED
        }
        try:
            restored = self._manager.restore(
                self.latest_step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            raise UserError(
                f"Checkpoint {self._directory}/{self.latest_step} is damaged or belongs to another "
                f"model ({_first_line(error)}). Move it away to resume from the one before it: "
                f"{sorted(self._manager.all_steps())[:-1] or 'there is none'}."
            ) from error
        return shapes.replace(**restored["state"]), restored["data"]

    def wait(self) -> None:
        """Returns once everything that `save` has begun is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def saved_steps(workdir: str) -> list[int]:
    """The steps that a run has checkpoints of, in order."""
    directory = os.path.join(workdir, "checkpoints")
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(int(name) for name in names if name.isdigit())


def load_weights(workdir: str, step: int | None = None) -> tuple[int, dict[str, PyTree]]:
    """(step, {"ema_params", "model_state"}) of a run as NumPy arrays, for evaluation and reuse.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the latest by default.

    Raises:
      UserError: where there is no such checkpoint, or it can't be read.
    """
    steps = saved_steps(workdir)
    if not steps or step is not None and step not in steps:
        raise UserError(
            f"{workdir!r} has no checkpoint{'' if step is None else f' of step {step}'}; "
            f"there are {steps or 'none'}."
        )
    step = steps[-1] if step is None else step
    path = os.path.join(os.path.abspath(workdir), "checkpoints", str(step), "state")
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
            wanted = {name: tree[name] for name in ("ema_params", "model_state")}
            item = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(wanted)
            )
            restored = checkpointer.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=item,
                    restore_args=jax.tree.map(
                        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item
                    ),
                    partial_restore=True,
                ),
            )
    except Exception as error:
        raise UserError(
            f"Checkpoint {path} is damaged or incomplete ({_first_line(error)})."
        ) from error
    return step, restored


def fingerprint(tree: PyTree) -> str:
    """16 hexadecimal digits that tell one set of weights from another (SHA-256 of all arrays)."""
    digest = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _abstract(leaf, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"



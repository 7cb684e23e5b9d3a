"""A run's checkpoints on disk. The only file that knows Orbax.

WORKDIR/checkpoints/STEP/                  state and position in the data, whole or not at all
WORKDIR/checkpoints/STEP/manifest.json     checksums of these files, and the metrics
WORKDIR/checkpoints/STEP.damaged/          one that could not be read, set aside
"""

import contextlib
import errno
import glob
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from fsq_jax.runtime import checkpoint_checks as checks
from fsq_jax.runtime import manifest
from fsq_jax.runtime.best_checkpoint import Best
from fsq_jax.runtime.bounded import names_path
from fsq_jax.runtime.checkpoint_checks import Damaged, OtherModel
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError

PyTree = Any

# `frozen` stays out: these weights are saved already, in the run that they come from.
_SAVED = ("step", "params", "opt_state", "ema_params", "model_state", "train_only")

# What Orbax and TensorStore raise for files that are damaged.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, RecursionError)


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
        self._directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        if best:
            policies.append(Best(best, 1 if best_mode == "max" else -1, self._directory))
        self._saving = 0, {}
        checks.set_descriptions_aside(self._directory)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
                # Called by process 0 when all is written and nothing has its final name yet.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
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
        with _writing(self._directory):
            self._manager.wait_until_finished()  # whose manifest is written by then
            metrics = {name: float(value) for name, value in (metrics or {}).items()}
            self._saving = step, metrics
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave({name: getattr(state, name) for name in _SAVED}),
                    data=ocp.args.JsonSave(dict(data_state)),
                ),
                metrics=metrics or None,
                force=True,
            )

    def restore(self, shapes: PyTree, shardings: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The latest whole (state, data_state), each array read straight into its place.

        Every file is checked against its checksum first. A checkpoint that is damaged is set aside
        under another name, with a line in the log, and the one before it is taken;
        `latest_step` is then the step of the one that was.

        Args:
          shapes: a `TrainState` of `ShapeDtypeStruct`s.
          shardings: the same of shardings.

        Raises:
          UserError: where no checkpoint can be read, or the latest isn't one of this model.
        """
        target = {
            name: jax.tree.map(_abstract, getattr(shapes, name), getattr(shardings, name))
            for name in _SAVED
        }
        reasons = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = os.path.join(self._directory, str(step))
            try:
                restored, data_state = _restore(folder, target)
            except OtherModel as error:
                raise UserError(f"Checkpoint {folder} belongs to another model: {error}.") from None
            except Damaged as error:
                reasons[folder] = str(error)
                continue
            for damaged, reason in reasons.items():
                self._set_aside(damaged, reason, step)
            return shapes.replace(**restored), data_state
        first = next(iter(reasons))
        raise UserError(
            f"Checkpoint {first} is damaged ({reasons[first]}), and so is each before it: "
            f"{sorted(map(os.path.basename, list(reasons)[1:])) or 'there is none'}."
        )

    def _set_aside(self, folder: str, reason: str, step: int) -> None:
        """Renames a damaged checkpoint, so that a new one can take its step, and says so."""
        aside = checks.rename_aside(folder)
        log(
            f"Checkpoint {folder} is damaged ({reason}): it is kept as {os.path.basename(aside)}, "
            f"and that of step {step} is used."
        )
        self._manager.reload()

    def _write_manifest(self) -> None:
        step, metrics = self._saving
        places = glob.glob(f"{glob.escape(self._directory)}/{step}.orbax-checkpoint-tmp*")
        final = os.path.join(self._directory, str(step))
        for folder in places or [final]:
            manifest.write(folder, metrics=metrics)

    def wait(self) -> None:
        """Returns once everything that `save` has begun is on disk."""
        with _writing(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with _writing(self._directory):
            self._manager.close()


@contextlib.contextmanager
def _writing(directory: str) -> Iterator[None]:
    """What the filesystem refuses, and Orbax may have wrapped, as an OSError with the path."""
    try:
        with names_path(directory):
            yield
    except TimeoutError as error:  # of Orbax, which goes by a wall clock that may have jumped
        raise UserError(f"Writing to {directory} took too long ({error}); start again.") from error
    except OSError:
        raise
    except Exception as error:  # re-raised, as an OSError where Orbax wrapped one
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), directory) from error
        raise


def saved_steps(workdir: str) -> list[int]:
    """The steps that a run has checkpoints of, in order."""
    directory = os.path.join(workdir, "checkpoints")
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def load_weights(workdir: str, step: int | None = None) -> tuple[int, dict[str, PyTree]]:
    """(step, {"ema_params", "model_state"}) of a run as NumPy arrays, for evaluation and reuse.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the latest by default.

    Raises:
      UserError: where there is no such checkpoint, or it is damaged.
    """
    steps = saved_steps(workdir)
    if not steps or step is not None and step not in steps:
        raise UserError(
            f"{workdir!r} has no checkpoint{'' if step is None else f' of step {step}'}; "
            f"there are {steps or 'none'}."
        )
    step = steps[-1] if step is None else step
    folder = os.path.join(os.path.abspath(workdir), "checkpoints", str(step))
    try:
        return step, _weights(folder)
    except (Damaged, OtherModel) as error:
        others = [other for other in steps if other != step]
        raise UserError(
            f"Checkpoint {folder}/state is damaged or incomplete ({error}); other steps of this "
            f"run: {others or 'none'}."
        ) from None


def _restore(folder: str, target: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """(state, data_state) of a checkpoint, after a check of it by all processes together.

    Raises:
      Damaged: a file is missing or changed.
      OtherModel: it is whole, and not of these arrays.
    """
    problem = None
    try:
        vouched = checks.check_files(folder, jax.process_index(), jax.process_count())
        ours = ocp.tree.to_flat_dict(target)
        # Without checksums, names that differ may be damage: then an older one may fit.
        checks.check_same(_metadata(folder)[1], ours, OtherModel if vouched else Damaged)
    except (Damaged, OtherModel) as error:
        problem = error
    if jax.process_count() > 1:
        fine = multihost_utils.process_allgather(np.array(problem is None))
        if problem is None and not fine.all():
            problem = Damaged(f"process {int(np.argmin(fine))} found a file that is changed")
    if problem is not None:
        raise problem
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            state = checkpointer.restore(os.path.join(folder, "state"), target)
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            data_state = checkpointer.restore(os.path.join(folder, "data"))
    except _DAMAGE as error:
        raise Damaged(_first_line(error)) from error
    known = isinstance(data_state, dict) and {"skipped": 0} | data_state
    if not known or {type(known.get(name)) for name in ("position", "skipped")} != {int}:
        raise Damaged(f"its position in the data is {str(data_state)[:80]}")
    return state, data_state


def _weights(folder: str) -> dict[str, PyTree]:
    """{"ema_params", "model_state"} of a checkpoint; raises `Damaged`."""
    vouched = checks.check_files(folder)
    tree, arrays = _metadata(folder)
    checks.check_size(folder, arrays, vouched)
    names = ("ema_params", "model_state")
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            path = os.path.join(folder, "state")
            item = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
                {name: tree[name] for name in names},
            )
            numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            args = ocp.args.PyTreeRestore(item=item, restore_args=numpy, partial_restore=True)
            return checkpointer.restore(path, args=args)
    except _DAMAGE as error:
        raise Damaged(_first_line(error)) from error


def _metadata(folder: str) -> tuple[PyTree, dict[tuple[str, ...], Any]]:
    """(tree, {path: leaf}) of what a checkpoint says of its arrays, none of which is read yet."""
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(os.path.join(folder, "state")).item_metadata.tree
            flat = ocp.tree.to_flat_dict(tree)
    except _DAMAGE as error:
        raise Damaged(_first_line(error)) from error
    arrays = {key: leaf for key, leaf in flat.items() if hasattr(leaf, "shape")}
    checks.check_pieces(arrays)
    return tree, arrays


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

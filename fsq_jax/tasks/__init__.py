"""What UViM's labels are: how records become labels and outputs predictions, by the task's name."""

import difflib

from fsq_jax.runtime.user_error import UserError
from fsq_jax.tasks.colorization import Colorization
from fsq_jax.tasks.depth import Depth
from fsq_jax.tasks.panoptic import Panoptic

TASKS = {"depth": Depth, "colorization": Colorization, "panoptic": Panoptic}
Task = Depth | Colorization | Panoptic


def make(name: str, **values) -> Task:
    """The task of a name, with `values` for its fields; a UserError for a name that there isn't.

    Every task has the same members:

        features: what batches must carry besides "image".
        kinds: {label kind: channels of its logits}.
        real: whether labels are real values rather than class ids.
        to_inputs(batch) -> (labels {kind: [B,H,W] or [B,H,W,C]}, context [B,H,W,3] in [-1, 1]).
        loss(logits {kind: [B,H,W,C]}, labels) -> [B].
        to_prediction(logits) -> {name: [B,H,W,...]}, in the units of the data.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"task={name!r} is unknown; there are {sorted(TASKS)}.{hint}")
    return TASKS[name](**values)

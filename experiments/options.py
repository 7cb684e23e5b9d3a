"""What all experiments are asked with."""

from dataclasses import dataclass

from fsq_jax.runtime.user_error import UserError, did_you_mean
from fsq_jax.stages import STAGES


@dataclass(frozen=True)
class Options:
    """What all experiments are asked with.

    Attributes:
      scale: "paper", "bench" or "smoke".
      workdir: gets a folder for each run.
      seeds: how many seeds of a run that is repeated; None: as many as the experiment has.
      data_dir: where TFDS keeps its data sets.
      encoder: of scale=paper: what UViM's stage II starts from, a path or "none".
      adm_references: of scale=paper: folder of ADM's VIRTUAL_imagenet*_labeled.npz; "" for none.
      changes: further arguments of every training run ("--config.steps=10"), or of those of one
        stage ("uvim_lm:--config.steps=10").
    """

    scale: str = "bench"
    workdir: str = "runs/bench"
    seeds: int | None = None
    data_dir: str = ""
    encoder: str = ""
    adm_references: str = ""
    changes: tuple[str, ...] = ()

    def __post_init__(self):
        for change in self.changes:
            stage = _stage(change)
            if stage and stage not in STAGES:
                raise UserError(f"{change!r} is of no stage{did_you_mean(stage, STAGES)}")

    def changes_of(self, stage: str) -> tuple[str, ...]:
        """The changes that are meant for a stage: those of all of them, and its own."""
        own = [c for c in self.changes if _stage(c) in ("", stage)]
        return tuple(c.removeprefix(f"{stage}:") for c in own)

    def repeats(self, own: int = 3) -> int:
        """How many seeds: those that are asked for, or the experiment's own number."""
        return own if self.seeds is None else self.seeds


def _stage(change: str) -> str:
    """The stage that a change is meant for; "" of all stages."""
    return "" if change.startswith("-") else change.partition(":")[0]

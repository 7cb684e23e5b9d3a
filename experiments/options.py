"""What all experiments are asked with."""

from dataclasses import dataclass


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
      changes: further arguments of every training run ("--config.steps=10").
    """

    scale: str = "bench"
    workdir: str = "runs/bench"
    seeds: int | None = None
    data_dir: str = ""
    encoder: str = ""
    adm_references: str = ""
    changes: tuple[str, ...] = ()

    def repeats(self, own: int = 3) -> int:
        """How many seeds: those that are asked for, or the experiment's own number."""
        return own if self.seeds is None else self.seeds

"""Which images an evaluation is of: those that a list names, or that TFDS reads first."""

from fsq_jax.data import file_names, splits
from fsq_jax.data.dataset import Dataset
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError


def choose(predictor: Predictor, split: str, limit: int, path: str) -> tuple[Dataset, dict]:
    """(the images of a split that a list names, or that TFDS reads there; how they were chosen).

    Args:
      predictor: whose data it is.
      split: of the data, such as "eval" or "validation[10000:15000]", counted in TFDS's order.
      limit: how many; 0 for all.
      path: file of their names, in place of a part of the split; "" for none.

    Raises:
      UserError: the list isn't there, is of another length than `limit`, or names what isn't there.
    """
    whole = predictor.dataset(splits.parse_split(split)[0])
    shards = whole.meta.get("shard_lengths", ())
    if path:
        names = file_names.read_list(path)
        if limit and len(names) != limit:
            raise UserError(f"{path!r} lists {len(names)} images, and {limit} are asked for.")
        log(f"Looking for {len(names)} images in {whole.name} {whole.split} …")
        chosen, order = whole.chosen(file_names.find(whole, names)), "as listed"
    elif shards:
        first, last = splits.span(split, len(whole), f"{whole.name} {whole.split}")
        indices = file_names.order_of(whole)[first:last]
        chosen, order = whole.chosen(indices[: limit or None]), f"TFDS's, of {len(shards)} files"
    else:
        records = predictor.dataset(split)
        chosen, order = records.chosen(range(len(records))[: limit or None]), "the records' own"
    return chosen, {"order": order, "names_sha256": _names_checksum(chosen)}


def _names_checksum(chosen: Dataset) -> str:
    """SHA-256 of the names of all images, as of a list of them; "" where they have none."""
    try:
        return file_names.checksum([chosen.file_name(index) for index in range(len(chosen))])
    except UserError:
        return ""

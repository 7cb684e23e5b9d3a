"""Random access to the records of a data set, whatever it is kept in.

A spec names the data set, and may shorten its splits:

    scenes                                  the embedded scenes
    tfds:fashion_mnist                      a TFDS data set prepared as ArrayRecord files
    folder:PATH                             images, a sub-folder for each class
    wds:PATH/shard-{000000..001023}.tar     WebDataset shards; or a folder of them
    parquet:PATH/train-*.parquet            Hugging Face's image parquet; or a folder of it
    hf:NAME, hf:NAME:CONFIG                 the same through the `datasets` library
    arrays:PATH                             decoded records, written by fsq_jax.prepare
    tokens:PATH                             a cache of tokens
    scenes:train[:4000]+validation[:500]    the same with other splits

Splits are cut as in TFDS: train[:1000], train[4096:], train[-100:], train[:10%]. A cut beyond the
end is an error, except in scenes, which have no end. A data set that has no split "validation" is
asked for "val" and then "test".

A record is a dict: image uint8 [H,W,3] RGB, label int, and what else the data set holds, such as

    depth     float32 [H,W] in metres, 0 where it is not known
    segments  int32 [H,W,2], class (0: void) and instance; `Source.meta` has the classes'
              "segment_names", and "things", those that come in instances
    crowd     int32 [n], instances that are crowds

A data set without classes has one, called "image": every label is 0. Tokens have no image but
tokens_VL.

Legend: V views (crops, flips) of an image, L tokens of a view.
"""

from collections.abc import Sequence

from fsq_jax.data import (
    array_source,
    folder_source,
    hf_source,
    parquet_source,
    scenes,
    splits,
    tfds_source,
    token_cache,
    wds_source,
)
from fsq_jax.data.dataset import Dataset


def open_dataset(
    spec: str,
    split: str,
    size: int,
    data_dir: str = "",
    *,
    cache: bool = False,
    features: Sequence[str] = (),
) -> Dataset:
    """The records of a split ("train", "validation[:500]") of the data set that `spec` names.

    `size` is the side of the scenes in pixels; other images keep theirs. `data_dir` is where TFDS
    keeps its data sets ("" for its default). `cache` keeps every record in the memory of the
    process once it has been read: its image, label, tokens and those of `features`.

    Raises UserError, one sentence, for a spec, a split or a folder that is not there.
    """
    kind, place, cuts = splits.parse_spec(spec)
    wanted, *_ = splits.parse_split(split)
    source = _open(kind, place, wanted, size, data_dir)
    for cut in cuts:
        if splits.resolve(splits.parse_split(cut)[0], source.splits, source.name) == source.split:
            source = source.cut(cut, endless=kind == "scenes")
    source = source.cut(split, endless=kind == "scenes")
    return source.cached(features) if cache else source


def _open(kind: str, place: str, split: str, size: int, data_dir: str) -> Dataset:
    if kind == "tfds":
        return tfds_source.open_source(place, split, data_dir)
    by_path = {
        "folder": folder_source,
        "wds": wds_source,
        "parquet": parquet_source,
        "hf": hf_source,
        "arrays": array_source,
        "tokens": token_cache,
    }
    if kind in by_path:
        return by_path[kind].open_source(place, split)
    names = tuple(scenes.SIZES)
    split = splits.resolve(split, names, "scenes")
    records = scenes.Scenes(split, size)
    things = list(range(1 + scenes.NUM_STUFF, len(scenes.SEGMENT_NAMES)))
    meta = {"segment_names": list(scenes.SEGMENT_NAMES), "things": things}
    length = scenes.SIZES[split]
    return Dataset("scenes", split, scenes.CLASS_NAMES, records, 0, length, names, meta)

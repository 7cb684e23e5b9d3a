"""Times the same images from a folder, WebDataset shards, parquet and `datasets`; writes JSON.

python -m experiments.benchmarks.data_sources --out=experiments/results/speed/data_sources.json

One worker: a single thread reads a record, decodes it and makes a training crop of 256 x 256, in
the shuffled order of training and in the order of the records. The images are JPEGs as large as
ImageNet's (500 x 375, some 110 kB), made from the scenes with noise over them, and lie in the
system's cache: what is compared is what a source costs, not a disk. Rates are images per second
of the thread's own CPU time, which other programs on the machine don't slow; the wall clock's are
beside them. Rounds are interleaved over the sources, and the median is kept.
"""

import io
import json
import os
import pathlib
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable

import cv2
import numpy as np
from absl import app, flags

from fsq_jax.data import decode, scenes, transforms
from fsq_jax.data.open import open_dataset
from fsq_jax.runtime.files import write_json

_CLASSES = 10
_REPEATED = 5
_SHARDS = 2  # and row groups of 100, as `datasets` writes them


def made_up_jpeg(index: int) -> bytes:
    """A scene at 500 x 375 with noise over it: about as many bytes as an image of ImageNet."""
    image = scenes.render(scenes.draw_scene("train", index), 96)["image"]
    image = cv2.resize(image, (500, 375), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    image += np.random.default_rng(index).normal(0, 18, image.shape)
    image = np.clip(image, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def write_folder(root: pathlib.Path, files: list[bytes]) -> str:
    for i, file in enumerate(files):
        folder = root / "train" / f"c{i % _CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:06d}.jpg").write_bytes(file)
    return f"folder:{root}"


def write_wds(root: pathlib.Path, files: list[bytes]) -> str:
    root.mkdir()
    for shard in range(_SHARDS):
        with tarfile.open(root / f"train-{shard:04d}.tar", "w") as archive:
            for i in range(shard, len(files), _SHARDS):
                for ending, content in (("cls", b"%d" % (i % _CLASSES)), ("jpg", files[i])):
                    info = tarfile.TarInfo(f"{i:06d}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return f"wds:{root}"


def write_parquet(root: pathlib.Path, files: list[bytes], compression: str) -> str:
    """A file of row groups of 100; a compressed one holds the images several times over, so that
    the few row groups that are kept in memory are few of all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    files = files * (1 if compression == "none" else _REPEATED)
    images = [{"bytes": file, "path": f"{i}.jpg"} for i, file in enumerate(files)]
    table = pa.table({"image": images, "label": [i % _CLASSES for i in range(len(files))]})
    path = root / "train-00000-of-00001.parquet"
    pq.write_table(table, path, row_group_size=100, compression=compression, use_dictionary=False)
    return f"parquet:{root}"


def write_hf(root: pathlib.Path, files: list[bytes]) -> str:
    import datasets

    label = datasets.ClassLabel(names=[f"c{i}" for i in range(_CLASSES)])
    columns = {
        "image": [{"bytes": file, "path": None} for file in files],
        "label": [i % _CLASSES for i in range(len(files))],
    }
    features = datasets.Features(image=datasets.Image(), label=label)
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(root))
    return f"hf:{root}"


def rate(read: Callable[[int], object], order: np.ndarray) -> dict[str, float]:
    """Images for each second, of the thread's CPU time and of the wall clock."""
    wall, cpu = time.perf_counter(), time.thread_time()
    for index in order:
        read(int(index))
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    return {"cpu": len(order) / cpu, "wall": len(order) / wall}


def measure(num_images: int, rounds: int, folder: pathlib.Path) -> dict:
    """All that the file holds: for each source its rates, and the times until it is open."""
    cv2.setNumThreads(1)
    files = [made_up_jpeg(i) for i in range(num_images)]
    specs = {
        "folder": write_folder(folder / "folder", files),
        "wds": write_wds(folder / "wds", files),
        "parquet, not compressed": write_parquet(folder / "plain", files, "none"),
        "parquet, snappy": write_parquet(folder / "snappy", files, "snappy"),
        "hf": write_hf(folder / "hf", files),
    }
    found, reads, seconds = {}, {}, {}
    augment = transforms.augment(256, 0.8, (3 / 4, 4 / 3), True)
    for name, spec in specs.items():
        opening = []
        for _ in range(2):  # the first time an index is built
            start = time.perf_counter()
            source = open_dataset(spec, "train", 256)
            opening.append(round(time.perf_counter() - start, 3))
        seconds[name] = {"first": opening[0], "again": opening[1]}
        reads[name] = lambda i, source=source: augment(source[i], np.random.default_rng(i))
    reads["decoding and cropping alone"] = lambda i: augment(
        {"image": decode.decode_image(files[i], "x"), "label": 0}, np.random.default_rng(i)
    )
    lengths = {name: num_images * (_REPEATED if "snappy" in name else 1) for name in reads}
    for order in ("shuffled", "in order"):
        rates = {name: [] for name in reads}
        for _ in range(rounds):
            for name, read in reads.items():
                indices = np.arange(lengths[name])
                if order == "shuffled":
                    indices = np.random.default_rng(0).permutation(indices)
                rates[name].append(rate(read, indices[:num_images]))
        found[order] = {
            name: {kind: round(statistics.median(r[kind] for r in each), 1) for kind in each[0]}
            for name, each in rates.items()
        }
    return {
        "images_per_second_of_one_worker": found, "seconds_to_open": seconds,
        "num_images": num_images, "bytes_of_an_image": int(np.mean([len(f) for f in files])),
        "rounds": rounds, "crop": 256, "row_group": 100,
        "device": f"CPU, {os.cpu_count()} cores ({platform.machine()})",
        "load_average": round(os.getloadavg()[0], 1), "python": platform.python_version(),
        "opencv": cv2.__version__,
    }  # fmt: skip


def main(argv) -> None:
    del argv
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FSQ_JAX_CACHE"] = os.path.join(folder, "cache")
        result = measure(flags.FLAGS.num_images, flags.FLAGS.rounds, pathlib.Path(folder))
    print(json.dumps(result, indent=2))
    if flags.FLAGS.out:
        write_json(flags.FLAGS.out, result)


if __name__ == "__main__":
    flags.DEFINE_string("out", "", "File to write.")
    flags.DEFINE_integer("num_images", 1_000, "How many images.")
    flags.DEFINE_integer("rounds", 3, "Passes over them, of each source and order.")
    app.run(main)

"""Records what torch-fidelity and pytorch-fid answer on our random weights. Run once, here:

    pip install torch torch-fidelity pytorch-fid
    PYTHONPATH=../../.. python record_inception.py

Recorded with torch 2.13.0 (CPU), torch-fidelity 0.4.0, pytorch-fid 0.3.0.
"""

import tempfile
from pathlib import Path

import numpy as np
from inputs import byte_images, metric_sets

from experiments.benchmarks import torch_side

HERE = Path(__file__).parent


def record_features():
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder, "random.pth"))
        theirs = torch_side.torch_fidelity(weights)
        for name, images in byte_images().items():
            features = theirs(images)
            answers |= {f"{key}_{name}": value for key, value in features.items()}
        answers["pytorch_fid"] = torch_side.pytorch_fid(weights)(byte_images()["wide"])
    np.savez_compressed(HERE / "inception.npz", **answers)


def record_metrics():
    values = torch_side.torch_fidelity_metrics(*metric_sets())
    np.savez_compressed(HERE / "inception_metrics.npz", **values)


if __name__ == "__main__":
    record_features()
    record_metrics()

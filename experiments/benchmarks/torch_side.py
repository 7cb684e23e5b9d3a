"""torch-fidelity and pytorch-fid on given weights, for comparisons. Imports them where used.

Legend: B images  H W C height, width, channels.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from fsq_jax.pretrained import inception


def import_torch():
    """The module torch, with torchvision able to load beside it.

    torchvision's compiled part is absent or of another build on some machines, and its import then
    stops at two operators; nothing here calls them, so that names without a body will do.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_torch.library = library  # what it defines is gone when it is
    return torch


def write_random(path: str | Path) -> None:
    """Writes our random weights as torch.save does, with the names that both packages use."""
    torch = import_torch()
    state = inception.random_state_dict()
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)


def torch_fidelity_network(path: str):
    """torch-fidelity's Inception with random weights, kept at `path`."""
    import_torch()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if not Path(path).exists():
        write_random(path)
    with mock.patch("torch.nn.Module.load_state_dict", _load_without_counts):
        return FeatureExtractorInceptionV3(
            "random", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
        )


def torch_fidelity(path: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Images [B,H,W,C] uint8 to {"pool", "logits"}."""
    torch = import_torch()
    network = torch_fidelity_network(path)

    def extract(images):
        with torch.no_grad():
            pool, logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        return {"pool": pool.numpy(), "logits": logits.numpy()}

    return extract


def pytorch_fid(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Images [B,H,W,C] uint8 to pytorch-fid's 2,048 features, its own resize included."""
    torch = import_torch()
    from pytorch_fid import inception as theirs

    state = torch.load(path)
    with (
        mock.patch.object(theirs, "load_state_dict_from_url", lambda *a, **k: state),
        mock.patch("torch.nn.Module.load_state_dict", _load_without_counts),
    ):
        network = theirs.InceptionV3().eval()

    def extract(images):
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        with torch.no_grad():
            return network(inputs)[0][..., 0, 0].numpy()

    return extract


def _load_without_counts(module, state, *args, **kwargs):
    """The weights without num_batches_tracked, which published files lack, checked all the same."""
    del args, kwargs
    torch = import_torch()
    own = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    if sorted(own) != sorted(state):
        raise ValueError("These weights are of another network.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def torch_fidelity_metrics(first: dict, second: dict) -> dict[str, float]:
    """FID, KID, precision and recall of two sets and the first one's Inception Score."""
    torch = import_torch()
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    pools = [torch.from_numpy(side["pool"]) for side in (first, second)]
    statistics = [metric_fid.fid_features_to_statistics(p) for p in pools]
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    score = metric_isc.isc_features_to_metric(torch.from_numpy(first["logits"]))
    kid = metric_kid.kid_features_to_metric(*pools, verbose=False)
    shares = metric_prc.prc_features_to_metric(*pools, verbose=False)
    return {
        "fid": fid["frechet_inception_distance"],
        "inception_score": score["inception_score_mean"],
        "inception_score_deviation": score["inception_score_std"],
        "kid": kid["kernel_inception_distance_mean"],
        "kid_deviation": kid["kernel_inception_distance_std"],
        "precision": shares["precision"], "recall": shares["recall"],
    }


def versions() -> dict[str, str]:
    """What is installed."""
    names = ("torch", "torch-fidelity", "pytorch-fid", "Pillow")
    return {name: importlib.metadata.version(name) for name in names}

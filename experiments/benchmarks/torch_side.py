"""torch-fidelity and pytorch-fid on our random weights, for comparisons. Imported where used.

Every function raises ImportError where what it needs is not installed.

Legend: B images  H W C height, width, channels.
"""

import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from fsq_jax.features import inception_weights
from fsq_jax.runtime.user_error import UserError


def import_torch(tf32: bool = False):
    """The module torch, with float32 products of full precision unless `tf32`."""
    import torch

    for switches in (torch.backends.cudnn, torch.backends.cuda.matmul):
        switches.allow_tf32 = tf32
    return torch


def _fidelity(name: str):
    """A module of torch-fidelity, imported without the rest of the package.

    The package imports torchvision, for networks that nothing here uses; its compiled part is
    absent or of another build on some machines.
    """
    if "torch_fidelity" not in sys.modules:
        spec = importlib.util.find_spec("torch_fidelity")
        if spec is None:
            raise ImportError("torch-fidelity is not installed")
        package = types.ModuleType("torch_fidelity")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["torch_fidelity"] = package
        sys.modules["torch_fidelity.utils"] = mock.MagicMock()  # readers of folders, and downloads
    return importlib.import_module(f"torch_fidelity.{name}")


def write_random(path: str | Path) -> None:
    """Writes our random weights as torch.save does, with the names that both packages use."""
    torch = import_torch()
    state = inception_weights.random_state_dict()
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)


def torch_fidelity_network(path: str, device: str = "cpu"):
    """torch-fidelity's Inception with the weights at `path`, which random ones are written to."""
    module = _fidelity("feature_extractor_inceptionv3")
    if not Path(path).exists():
        write_random(path)
    with mock.patch("torch.nn.Module.load_state_dict", _load_without_counts):
        network = module.FeatureExtractorInceptionV3(
            "random", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
        )
    return network.to(device)


def torch_fidelity(path: str, device: str = "cpu") -> Callable[[np.ndarray], dict]:
    """Images [B,H,W,C] uint8 to {"pool", "logits"}."""
    torch = import_torch()
    network = torch_fidelity_network(path, device)

    def extract(images):
        with torch.no_grad():
            inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
            pool, logits = network(inputs)
        return {"pool": pool.cpu().numpy(), "logits": logits.cpu().numpy()}

    return extract


def pytorch_fid(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Images [B,H,W,C] uint8 to pytorch-fid's 2,048 features, its own resize included."""
    torch = import_torch()
    library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "nms"):  # see `_fidelity`; never called
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
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
    """Loads weights that lack num_batches_tracked, as published ones do, and nothing else."""
    del args, kwargs
    own = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    if sorted(own) != sorted(state):
        raise UserError("These weights are of another network.")
    with import_torch().no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def torch_fidelity_metrics(first: dict, second: dict) -> dict[str, float]:
    """FID, KID, precision and recall of two sets and the first one's Inception Score."""
    torch = import_torch()
    pools = [torch.from_numpy(side["pool"]) for side in (first, second)]
    module = _fidelity("metric_fid")
    statistics = [module.fid_features_to_statistics(p) for p in pools]
    fid = module.fid_statistics_to_metric(*statistics, verbose=False)
    score = _fidelity("metric_isc").isc_features_to_metric(torch.from_numpy(first["logits"]))
    kid = _fidelity("metric_kid").kid_features_to_metric(
        *pools, verbose=False, kid_subset_size=min(1000, *map(len, pools))
    )
    shares = _fidelity("metric_prc").prc_features_to_metric(*pools, verbose=False)
    return {
        "fid": fid["frechet_inception_distance"],
        "inception_score": score["inception_score_mean"],
        "inception_score_deviation": score["inception_score_std"],
        "kid": kid["kernel_inception_distance_mean"],
        "kid_deviation": kid["kernel_inception_distance_std"],
        "precision": shares["precision"],
        "recall": shares["recall"],
    }


def versions() -> dict[str, str]:
    """What is installed of the packages that are compared with."""
    installed = {}
    for name in ("torch", "torch-fidelity", "pytorch-fid", "Pillow"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed

"""Quantizers of vector-quantize-pytorch 1.32, the torch side of quantizer_layers.py."""

import functools

import torch
from vector_quantize_pytorch import FSQ, LFQ, ResidualFSQ, SimVQ, VectorQuantize

_MEANS = dict(rotation_trick=False, decay=0.8, commitment_weight=1.0)
THEIRS = {
    "fsq": FSQ,
    "residual_fsq": functools.partial(ResidualFSQ, num_quantizers=2),
    "grouped_fsq": functools.partial(FSQ, num_codebooks=2),
    "lfq": functools.partial(LFQ, commitment_loss_weight=0.25),
    "bsq": functools.partial(LFQ, spherical=True),
    "vq": functools.partial(
        VectorQuantize, learnable_codebook=True, ema_update=False, rotation_trick=False
    ),
    "vq_ema": functools.partial(VectorQuantize, **_MEANS),
    "vq_cosine": functools.partial(VectorQuantize, use_cosine_sim=True, **_MEANS),
    "vq_projected": functools.partial(VectorQuantize, codebook_dim=8, **_MEANS),
    "vq_rotation": functools.partial(VectorQuantize, **(_MEANS | dict(rotation_trick=True))),
    "vq_reseed": functools.partial(VectorQuantize, threshold_ema_dead_code=2, **_MEANS),
    "simvq": functools.partial(SimVQ, rotation_trick=False),
}


class Layer:
    """A quantizer in training, on torch's device, with random tokens and a gradient of its codes.

    Args:
      name: in `THEIRS`.
      arguments: of the quantizer.
      shape: of the tokens.
      compiled: by torch.compile.
    """

    def __init__(self, name: str, arguments: dict, shape: tuple[int, ...], compiled: bool):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        self._module = THEIRS[name](**arguments).to(self.device).train()
        self._forward = torch.compile(self._module) if compiled else self._module
        self._tokens = torch.randn(shape, device=self.device, requires_grad=True)
        self._weight = torch.randn(shape, device=self.device)
        self._on_gpu = self.device == "cuda"
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def __call__(self) -> None:
        """Codes, indices, losses, and the gradients of tokens and parameters."""
        self._tokens.grad = None
        self._module.zero_grad(set_to_none=True)
        codes, _, *losses = self._forward(self._tokens)
        total = (codes * self._weight).sum() + sum(loss.sum() for loss in losses)
        total.backward()

    def wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()

    def peak_mib(self) -> float:
        """The most memory since this was made; 0 where it isn't counted."""
        return torch.cuda.max_memory_allocated() / 2**20 if self._on_gpu else 0.0

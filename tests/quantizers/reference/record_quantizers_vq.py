"""Writes quantizers_vq.npz: what vector-quantize-pytorch's codebooks answer on the same weights.

Run in an environment of its own:

    pip install torch==2.13.0 numpy vector-quantize-pytorch==1.32.0
    python record_quantizers_vq.py

Inputs z [STEPS, B, T, D], the decoder's gradient (`weight`, of the same shape) and words [K, D] are
shared by all cases. For each case, named CASE/..., and each step, in training:
    codes [STEPS, B, T, D], indices [STEPS, B, T], loss [STEPS]
    to_z, and to_NAME for each parameter: gradients of sum(codes * weight) + loss
and for running codebooks, after the last step:
    words, counts (in tokens a step).
Where a word is replaced, the n-th that is dead gets the n-th token of the batch rather than a
random one, so that the outcome can be known.

Where it differs from this package: its codebook that is a parameter has one loss mean (q - z)^2,
whose gradients reach both sides alike, in place of two with weights; its cosines need running
means; its distances are roots.
"""

import pathlib

import numpy as np
import torch
from vector_quantize_pytorch import SimVQ, VectorQuantize

B, T, D, K, STEPS, NARROW = 4, 10, 6, 16, 3, 3


def tensors(module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def run(module, z, weight, steps=STEPS) -> dict[str, np.ndarray]:
    """What a module in training gives, step by step."""
    module.train()
    found = []
    for x, w in zip(z[:steps], weight[:steps], strict=True):
        x = torch.from_numpy(x).requires_grad_()
        codes, indices, loss = module(x)
        module.zero_grad()
        ((codes * torch.from_numpy(w)).sum() + loss.sum()).backward()
        values = dict(codes=codes, indices=indices, loss=loss.sum(), to_z=x.grad)
        values |= {f"to_{name}": p.grad for name, p in tensors(module).items()}
        found.append({name: v.detach().numpy().copy() for name, v in values.items()})
    return {name: np.stack([step[name] for step in found]) for name in found[0]}


def running(words, z, weight, **options) -> dict[str, np.ndarray]:
    """A codebook of running means that starts as `words`."""
    module = VectorQuantize(D, K, decay=0.8, **options)
    book = module._codebook
    book.replace_sample_fn = lambda samples, count: samples[:, :count]
    start = torch.from_numpy(words)[None]
    book.embed.data.copy_(start)
    book.embed_avg.data.copy_(start)
    kept = {f"start/{name}": p.detach().numpy().copy() for name, p in tensors(module).items()}
    found = run(module, z, weight)
    return kept | found | {"words": book.embed[0].numpy(), "counts": book.cluster_size[0].numpy()}


def main():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    z, weight = (rng.normal(size=(STEPS, B, T, D)).astype(np.float32) for _ in range(2))
    z += 0.5 * np.arange(D, dtype=np.float32)  # so that some words are idle
    words = rng.normal(size=(K, D)).astype(np.float32)
    unit = words / np.linalg.norm(words, axis=1, keepdims=True)
    narrow = words[:, :NARROW].copy()
    cases = {}
    for name, rotates in (("straight_through", False), ("rotation", True)):
        gradient = dict(rotation_trick=rotates)
        cases[f"means/{name}"] = running(words, z, weight, **gradient)
        cases[f"cosine/{name}"] = running(unit, z, weight, use_cosine_sim=True, **gradient)
        learned = VectorQuantize(D, K, learnable_codebook=True, ema_update=False, **gradient)
        learned._codebook.embed.data.copy_(torch.from_numpy(words)[None])
        cases[f"learned/{name}"] = run(learned, z, weight, steps=1)
        simvq = SimVQ(D, K, rotation_trick=rotates)
        simvq.frozen_codebook.copy_(torch.from_numpy(words))
        kernel = simvq.code_transform.weight.detach().numpy().T.copy()
        cases[f"simvq/{name}"] = {"kernel": kernel} | run(simvq, z, weight, steps=1)
    dead = dict(threshold_ema_dead_code=2, rotation_trick=False)
    cases["reseeded_means"] = running(words, z, weight, **dead)
    cases["reseeded_cosine"] = running(unit, z, weight, use_cosine_sim=True, **dead)
    cases["projected"] = running(narrow, z, weight, codebook_dim=NARROW, rotation_trick=False)
    arrays = {f"{case}/{name}": v for case, vs in cases.items() for name, v in vs.items()}
    arrays = {n: v.astype(np.int8) if v.dtype == np.int64 else v for n, v in arrays.items()}
    path = pathlib.Path(__file__).with_name("quantizers_vq.npz")
    np.savez_compressed(path, z=z, weight=weight, words=words, **arrays)
    print(path.name, path.stat().st_size, "bytes, torch", torch.__version__)


if __name__ == "__main__":
    main()

"""UViM's two models on depth in float64 (Kolesnikov et al. 2022; FSQ's section 4.4).

B batch, H W pixels, P patches, X pixels of a patch, N codes, D width, K words, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.stages.reference_layers import (
    attention,
    dense,
    embed_patches,
    layer_norm,
    log_softmax,
    mlp,
    pre_norm_encoder,
)


def bins_of(depth, num_bins, low, high):
    return np.clip(np.floor((depth - low) / (high - low) * num_bins), 0, num_bins - 1).astype(int)


def in_patches(x_BHW, side):
    """[B, P, X]"""
    batch, height, width = x_BHW.shape
    cut = x_BHW.reshape(batch, height // side, side, width // side, side)
    return cut.swapaxes(2, 3).reshape(batch, -1, side * side)


def resized(x_BLD, new_side):
    """Tokens of a square grid on another one: linear, antialiased where it shrinks."""
    batch, tokens, width = x_BLD.shape
    side = round(tokens**0.5)
    scale = new_side / side
    place = (np.arange(new_side)[:, None] + 0.5) / scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(side) - place) * min(scale, 1.0))
    weights /= weights.sum(axis=1, keepdims=True)
    x = jnp.einsum("nh,mw,bhwd->bnmd", weights, weights, x_BLD.reshape(batch, side, side, width))
    return x.reshape(batch, -1, width)


def quantized(z_BNd, dictionary_KD):
    """(words with a straight-through gradient, indices, mean squared distance, z standardised)."""
    mean = z_BNd.mean(-1, keepdims=True)
    z = (z_BNd - mean) / jnp.sqrt(((z_BNd - mean) ** 2).mean(-1, keepdims=True) + 1e-5)
    words_KD = dictionary_KD / jnp.sqrt((dictionary_KD**2).sum(-1, keepdims=True))
    distance = ((jax.lax.stop_gradient(z)[..., None, :] - words_KD) ** 2).sum(-1)
    indices = distance.argmin(-1)
    q = words_KD[indices]
    return z + jax.lax.stop_gradient(q - z), indices, ((q - z) ** 2).mean(), z


def make_base_loss(patch, code_side, num_bins, commitment):
    """(params, dictionary, image, depth, keep_BN) -> (loss, its parts and the codes)."""

    def loss(p, dictionary, image, bins_BPX, keep_BN):
        context = image * 2 - 1
        one_hot = jax.nn.one_hot(bins_BPX, num_bins)
        own = p["embedding_depth"]
        x = jnp.einsum("bpxc,cxd->bpd", one_hot, own["kernel"]) + own["bias"]
        x = x + embed_patches(context, p["ctx_enc_embedding"]) + p["pos_embedding_encoder"]
        x = resized(pre_norm_encoder(x, p["encoder"]), code_side)
        codes, indices, distance, z = quantized(dense(x, p["encoder_head"]), dictionary)
        codes = jnp.where(keep_BN[..., None], codes, 0.0)
        x = resized(dense(codes, p["decoder_stem"]), round(bins_BPX.shape[1] ** 0.5))
        x = x + embed_patches(context, p["ctx_dec_embedding"]) + p["pos_embedding_decoder"]
        x = pre_norm_encoder(x, p["decoder"])
        own = p["head_depth"]
        logits = jnp.einsum("bpd,dcx->bpxc", x, own["kernel"]) + own["bias"].T
        loss_BPX = -(one_hot * log_softmax(logits)).sum(-1)
        task = jnp.where(bins_BPX == 0, 0.0, loss_BPX).mean()
        total = task + commitment * distance
        return total, {
            "loss": total,
            "task": task,
            "quantizer/commitment_loss": distance,
            "indices": indices,
            "z": z,
        }

    return loss


def moved_codebook(counts_K, dictionary_KD, indices, z, momentum):
    """(counts, sums) after a step."""
    chosen = np.eye(len(counts_K))[np.ravel(indices)]
    tokens = np.reshape(z, (-1, dictionary_KD.shape[1]))
    return momentum * counts_K + chosen.sum(0), momentum * dictionary_KD + chosen.T @ tokens


def lm_loss(p, image, codes_BN):
    """(loss, {"loss" and "accuracy" [B]}) of each code, given those before it and the image."""
    x = embed_patches(image * 2 - 1, p["EmbedPatches"]) + p["pos_embedding_encoder"]
    memory = pre_norm_encoder(x, p["encoder"])
    tokens_BN = codes_BN + 1
    before_BN = jnp.concatenate([jnp.zeros_like(tokens_BN[:, :1]), tokens_BN[:, :-1]], axis=1)
    own = p["decoder"]
    x = own["EmbedTargets"]["embedding"][before_BN] + p["pos_embedding_decoder"]
    for i in range(sum(name.startswith("EncDecBlock") for name in own)):
        block = own[f"EncDecBlock{i}"]
        normed = layer_norm(x, block["LayerNorm1"], 1e-6)
        x = x + attention(normed, normed, block["SelfAttn"], causal=True)
        x = x + attention(layer_norm(x, block["LayerNorm2"], 1e-6), memory, block["CrossAttn"])
        x = x + mlp(layer_norm(x, block["LayerNorm3"], 1e-6), block["MLP"])
    logits = dense(layer_norm(x, own["LayerNorm"], 1e-6), own["LogitsDense"])
    one_hot = jax.nn.one_hot(tokens_BN, logits.shape[-1])
    loss_B = -(one_hot * log_softmax(logits)).sum(-1).mean(1)
    return loss_B.mean(), {"loss": loss_B, "accuracy": (logits.argmax(-1) == tokens_BN).mean(1)}

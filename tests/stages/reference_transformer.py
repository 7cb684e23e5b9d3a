"""MaskGIT's masked transformer and its loss in float64 (Chang et al. 2022; FSQ's section 4.3).

B batch, L tokens of an image, S = L + 1 positions, V rows of the vocabulary, K codes.
"""

import jax
import jax.numpy as jnp

from tests.stages.reference_layers import attention, dense, gelu, layer_norm, log_softmax

EPSILON = 1e-12


def logits(p, tokens_BS, codebook_size, dropped, rates):
    """[B,S,K]; `dropped` are masks of what dropout keeps, in the order of the network: embedding,
    then attention weights, their output and the MLP's of each layer; None for no dropout."""
    kept = iter(dropped or ())

    def drop(x, rate):
        return jnp.where(next(kept), x / (1 - rate), 0.0) if dropped else x

    hidden, weights = rates
    words_VD = p["Embed_0"]["word_embeddings"]["embedding"]
    x = words_VD[tokens_BS] + p["Embed_0"]["position_embeddings"]["embedding"]
    x = drop(layer_norm(x, p["Embed_0"]["embeddings_ln"], EPSILON), hidden)
    for i in range(sum(name.startswith("TransformerLayer") for name in p)):
        layer = p[f"TransformerLayer_{i}"]
        own = layer["Attention_0"]
        times = drop(1.0, weights) if dropped else 1.0
        read = attention(x, x, own["self_attention"], weights_times=times)
        x = layer_norm(x + drop(read, hidden), own["attention_output_ln"], EPSILON)
        own = layer["Mlp_0"]
        out = dense(gelu(dense(x, own["intermediate_output"])), own["layer_output"])
        x = layer_norm(x + drop(out, hidden), own["layer_output_ln"], EPSILON)
    own = p["MlmLayer_0"]
    x = layer_norm(gelu(dense(x, own["mlm_dense"])), own["mlm_ln"], EPSILON)
    return (x @ words_VD.T + own["mlm_bias"]["bias"])[..., :codebook_size]


def make_loss(codebook_size, mask_id, smoothing, rates):
    """(params, tokens_BL, class_B, mask_BL, dropped) -> (loss, {"loss" and "accuracy" [B]})."""

    def loss(params, tokens_BL, class_B, mask_BL, dropped):
        seen_BL = jnp.where(mask_BL, mask_id, tokens_BL)
        tokens_BS = jnp.concatenate([class_B[:, None], seen_BL], axis=1)
        logits_BLK = logits(params, tokens_BS, codebook_size, dropped, rates)[:, 1:]
        log_p_BLK = log_softmax(logits_BLK)
        target_BLK = (1 - smoothing) * jax.nn.one_hot(tokens_BL, codebook_size)
        target_BLK += smoothing / codebook_size
        loss_BL = -(target_BLK * log_p_BLK).sum(-1) * mask_BL
        right_BL = (logits_BLK.argmax(-1) == tokens_BL) * mask_BL
        values = {
            "loss": loss_BL.sum(1) / mask_BL.sum(1),
            "accuracy": right_BL.sum(1) / mask_BL.sum(1),
        }
        return values["loss"].mean(), values

    return loss

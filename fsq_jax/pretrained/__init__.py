"""Published weights: other people's files as networks that are ready to use."""

from fsq_jax.pretrained.maskgit import load_maskgit_tokenizer, load_maskgit_transformer
from fsq_jax.pretrained.uvim import load_uvim_base, load_uvim_lm

__all__ = ["load_maskgit_tokenizer", "load_maskgit_transformer", "load_uvim_base", "load_uvim_lm"]

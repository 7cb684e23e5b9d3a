"""Steps under FSDP compile for two H100 that aren't here, with the kernels of those that are."""

import importlib.util

import jax
import pytest

from experiments.benchmarks import train_step
from fsq_jax import stages
from fsq_jax.runs import costs
from fsq_jax.runtime import absent_gpus
from fsq_jax.runtime.user_error import UserError
from tests import tiny

WITHOUT = "needs JAX's CUDA plugin: pip install 'jax[cuda13]'"
CUDNN, TRITON = "__cudnn$fmha", "__gpu$xla.gpu.triton"


HALF = "scale=smoke,dtype=bfloat16"
CUDNN_ALONE = "model.attention=cudnn model.attention_dropout=0.0"
# A step's config with its changes, and the kernel that its attention has: the tokenizer has none.
CASES = {
    "maskgit_tokenizer": (f"configs/maskgit_tokenizer.py:{HALF}", ""),
    "maskgit_transformer": (f"configs/maskgit_transformer.py:{HALF} --tokens", TRITON),
    "transformer_cudnn": (f"configs/maskgit_transformer.py:{HALF} {CUDNN_ALONE}", CUDNN),
    "uvim_base": (f"configs/uvim_base.py:{HALF},task=depth", CUDNN),
    "uvim_lm": (f"configs/uvim_lm.py:{HALF},task=depth", CUDNN),
}


@pytest.mark.skipif(not absent_gpus.can_compile(), reason=WITHOUT)
@pytest.mark.parametrize(("variant", "kernel"), CASES.values(), ids=CASES)
def test_a_step_compiles_under_fsdp_with_the_kernels_of_the_gpu(variant, kernel, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    config, tokens = train_step.load_config(f"{variant} fsdp=True")
    stage = stages.make(config, **stages.frozen_shapes(config))
    batch = jax.eval_shape(lambda: train_step.random_batch(config, stage, tokens))
    compiled = costs.compile_step(config, batch, absent_gpus.h100(2))
    assert kernel in compiled.as_text()


def test_without_the_plugin_one_sentence_says_what_to_install(monkeypatch):
    def find_spec(name):
        if "." in name:  # of a package that is not there
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(UserError, match="needs JAX's CUDA plugin"):
        absent_gpus.h100()

import gc
import types

import pytest

from fsq_jax.runs.frozen import make_stage
from fsq_jax.runtime import compiler
from tests import tiny

APART = "xla_gpu_dot_merger_threshold_mb"


def test_a_gpus_options_of_a_stage_are_its_own():
    """UViM's stage I keeps products of one array apart; a CPU's XLA would refuse to know of it."""
    coder, tokenizer = make_stage(tiny.label_coder()), make_stage(tiny.tokenizer())
    assert compiler.compiler_options(coder.gpu_options) == {}
    with compiler.made_for(types.SimpleNamespace(platform="gpu")):
        plain = compiler.compiler_options()
        assert compiler.compiler_options(coder.gpu_options) == plain | {APART: 0}
        assert compiler.compiler_options(tokenizer.gpu_options) == plain


def test_garbage_is_collected_again_after_a_trace():
    with pytest.raises(KeyError), compiler.no_garbage_collection():
        with compiler.no_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()  # the inner one leaves it to the outer one
        raise KeyError
    assert gc.isenabled()

"""The Fashion-MNIST experiment asks for runs that the configs can give."""

import pytest

from experiments import fashion_mnist
from fsq_jax.configs import maskgit_tokenizer, maskgit_transformer

MODULES = {"maskgit_tokenizer": maskgit_tokenizer, "maskgit_transformer": maskgit_transformer}


@pytest.mark.parametrize("quantizer", fashion_mnist.QUANTIZERS)
def test_commands_name_configs_that_build(quantizer):
    commands = fashion_mnist.commands("runs/x", "data", quantizer)
    assert list(commands) == [f"runs/x/tokenizer_{quantizer}", f"runs/x/mg_{quantizer}"]
    for workdir, (_, program, config, flag) in commands.items():
        assert (program, flag) == ("fsq_jax.train", f"--workdir={workdir}")
        path, _, argument = config.removeprefix("--config=configs/").partition(":")
        built = MODULES[path.removesuffix(".py")].get_config(argument)
        assert (built.data.source, built.data.data_dir) == ("tfds:fashion_mnist", "data")
    assert built.tokenizer.workdir == f"runs/x/tokenizer_{quantizer}"
    assert built.tokenizer.quantizer.name == quantizer

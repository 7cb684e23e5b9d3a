"""The training stages, by the name that `config.stage` gives."""

from fsq_jax.runtime.user_error import UserError
from fsq_jax.stages import maskgit_tokenizer, maskgit_transformer, uvim_base, uvim_lm
from fsq_jax.stages.stage import Stage

STAGES = {
    "tokenizer": maskgit_tokenizer.make,
    "maskgit": maskgit_transformer.make,
    "uvim_base": uvim_base.make,
    "uvim_lm": uvim_lm.make,
}


def make(config, abstract: bool = False) -> Stage:
    """The stage that the config asks for; a UserError for a name that there isn't.

    With `abstract`, frozen weights are shapes and no file is read: enough to count what a run
    would take, not to run it.
    """
    if config.stage not in STAGES:
        raise UserError(f"stage={config.stage!r} is unknown; there are {sorted(STAGES)}.")
    return STAGES[config.stage](config, abstract)

"""The networks that a stage only reads, loaded from where its config says that they are."""

from fsq_jax import stages
from fsq_jax.data.open import open_dataset
from fsq_jax.features.network import load_perceptual
from fsq_jax.pretrained import parameter_trees, weights
from fsq_jax.runs import published, recorded
from fsq_jax.runtime.user_error import UserError
from fsq_jax.stages import stage_1 as stage_1_of
from fsq_jax.stages.stage import Stage, StageFacts
from fsq_jax.stages.stage_1 import Stage1

# Stage II -> (the stage I that it reads, the config's argument that names it).
STAGE_1 = {
    "maskgit_transformer": ("maskgit_tokenizer", "configs/maskgit_transformer.py:tokenizer"),
    "uvim_lm": ("uvim_base", "configs/uvim_lm.py:base"),
}


def make_stage(config) -> Stage:
    """The stage of a config, with what it reads loaded.

    Raises:
      UserError: what it reads isn't there or doesn't fit, or a token cache was made by another one.
    """
    stage = stages.make(config, **load(config))
    if config.get("token_cache"):
        _check_cache(config, stage.facts)
    return stage


def load(config) -> dict:
    """What `stages.make` takes besides the config: a stage I, a perceptual network, or nothing.

    Raises:
      UserError: it isn't named, or isn't there.
    """
    if config.stage == "maskgit_tokenizer" and config.loss.perceptual:
        return {"perceptual": load_perceptual(**config.perceptual)}
    if config.stage not in STAGE_1:
        return {}
    kind, argument = STAGE_1[config.stage]
    if not config.stage_1.workdir:
        raise UserError(f"{config.stage} needs a trained stage I: --config={argument}=WORKDIR.")
    return {"stage_1": load_stage_1(config.stage_1.workdir, (kind,))}


def load_stage_1(
    path: str, kinds: tuple[str, ...] = tuple(stage_1_of.KINDS), step: int | None = None
) -> Stage1:
    """The stage I that a run trained, or that a file holds, on the host.

    Args:
      path: a run's workdir, a safetensors export, or a checkpoint of MaskGIT or UViM.
      kinds: the stages that it may be of.
      step: which of a run's checkpoints; the latest by default.

    Raises:
      UserError: there is no stage I of these kinds.
    """
    loaded = weights.load(path, step, kinds)
    config = loaded.config
    if config is not None:
        recorded.check(config, path)
    else:
        config = published.config_of(loaded)
        weights.check_stage(path, config.stage, kinds)
    made = stage_1_of.make(config, loaded.variables, loaded.fingerprint, path, loaded.step)
    expected = stage_1_of.variable_shapes(config)["params"]
    parameter_trees.check_tree(path, loaded.params, expected)
    return made


def reads_stage_1(loaded: weights.Weights) -> str:
    """The kind of stage I that a stage II's weights need; "" for weights that need none."""
    layout = loaded.config.stage if loaded.config else parameter_trees.identify(loaded.params)
    return STAGE_1.get(layout or "", ("", ""))[0]


def _check_cache(config, facts: StageFacts) -> None:
    """Raises a UserError where a token cache isn't what this run would make of its images."""
    cache = open_dataset(f"tokens:{config.token_cache}", "train", config.data.size)
    if cache.meta["fingerprint"] != facts.stage_1:
        raise UserError(
            f"The tokens in {config.token_cache!r} were made by stage I "
            f"{cache.meta['fingerprint']}, but {config.stage_1.workdir!r} holds {facts.stage_1}."
        )
    tokens = (config.data.size // facts.downsampling) ** 2
    pairs = {"tokens per image": (cache[0]["tokens_VL"].shape[-1], tokens)}
    if "num_classes" in config:
        pairs["classes"] = (cache.num_classes, config.num_classes)
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise UserError(
                f"The cache {config.token_cache!r} has {theirs} {name}, this run {ours}."
            )

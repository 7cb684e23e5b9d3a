"""What scale=paper needs besides data reaches the runs that need it, and no others."""

import pytest

from experiments import fig4_maskgit256, table2_uvim
from experiments.options import Options


def arguments(runs) -> dict[str, str]:
    """{run: the argument of its config}."""
    return {
        run.name: next(a for a in run.commands[0][1] if a.startswith("--config=configs/"))
        for run in runs
        if "fsq_jax.train" in run.commands[0][1]
    }


def test_the_encoder_is_for_stage_2_alone():
    given = arguments(table2_uvim.runs(Options("paper", seeds=3, encoder="a/L_16.npz")))
    assert len(given) == 9 + 27
    for name, argument in given.items():
        assert (",encoder=a/L_16.npz" in argument) == ("_lm_" in name), name
    plain = arguments(table2_uvim.runs(Options("paper")))
    assert not any("encoder" in argument for argument in plain.values())


def test_changes_are_of_all_stages_or_of_one():
    changes = ("--config.log_every=7", "uvim_lm:--config.fsdp=True")
    runs = table2_uvim.runs(Options("paper", seeds=1, changes=changes))
    for run in runs:
        _, (_, program, config, *given) = run.commands[0]
        of_lm = config.startswith("--config=configs/uvim_lm.py")
        assert program == "fsq_jax.train" and "--config.log_every=7" in given
        assert ("--config.fsdp=True" in given) == of_lm
        assert not any(argument.startswith("uvim_lm:") for argument in given)
    with pytest.raises(ValueError, match="'lm:--config.steps=2' is of no stage"):
        Options("paper", changes=("lm:--config.steps=2",))


def test_adms_references_are_of_the_images_size():
    given = arguments(fig4_maskgit256.runs(Options("paper", adm_references="refs")))
    assert len(given) == 4
    assert all(a.count("refs/VIRTUAL_imagenet256_labeled.npz") == 1 for a in given.values())
    assert not any(
        "reference=" in a for a in arguments(fig4_maskgit256.runs(Options("paper"))).values()
    )

"""What scale=paper needs besides data reaches the runs that need it, and no others."""

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


def test_adms_references_are_of_the_images_size():
    given = arguments(fig4_maskgit256.runs(Options("paper", adm_references="refs")))
    assert len(given) == 4
    assert all(a.count("refs/VIRTUAL_imagenet256_labeled.npz") == 1 for a in given.values())
    assert not any(
        "reference=" in a for a in arguments(fig4_maskgit256.runs(Options("paper"))).values()
    )

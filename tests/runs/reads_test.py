"""Every file of weights is read once for one load, whatever lies at the path."""

import collections

import pytest

from fsq_jax import export, runs
from fsq_jax.formats import weights_file
from fsq_jax.runtime import checkpoint


@pytest.fixture
def reads(monkeypatch):
    """{path: how often it was read}, of files of weights and of workdirs."""
    counts = collections.Counter()

    def counted(function):
        def read(path, *args, **kwargs):
            counts[str(path)] += 1
            return function(path, *args, **kwargs)

        return read

    for module, name in ((weights_file, "read"), (checkpoint, "load_weights")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return counts


def test_a_workdir_and_its_stage_1(trained, reads):
    runs.load(trained.tokenizer)
    assert reads == {trained.tokenizer: 1}
    reads.clear()
    runs.load(trained.transformer)
    assert reads == {trained.transformer: 1, trained.tokenizer: 1}


@pytest.mark.parametrize("format", ["safetensors", "msgpack"])
def test_a_pair_of_files(trained, reads, tmp_path, format):
    formats = {"transformer": format, "tokenizer": "safetensors"}  # which says FSQ's levels
    pair = [
        export.export(getattr(trained, name), form, str(tmp_path / name))[0]
        for name, form in formats.items()
    ]
    reads.clear()
    runs.load(*pair)
    assert reads == dict.fromkeys(pair, 1)


def test_uvims_published_pair(shared, reads):
    lm, base = (
        str(shared / "oracles" / name / "checkpoint.npz") for name in ("uvim_lm", "uvim_depth")
    )
    with pytest.raises(ValueError, match="of another task or of other images"):
        runs.load(lm, base)  # the two don't belong together, which is known once both are read
    assert reads == {lm: 1, base: 1}
    reads.clear()
    runs.load(base, overrides={"data.source": "scenes"})
    assert reads == {base: 1}

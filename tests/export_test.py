"""What leaves: each format gives the same bits back, and says what it holds."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from fsq_jax import export, runs
from fsq_jax.formats import weights_file
from fsq_jax.pretrained import weights
from fsq_jax.pretrained.maskgit import load_maskgit_tokenizer, load_maskgit_transformer
from fsq_jax.runtime import sharding
from fsq_jax.runtime.workdir import load_config, parse_config
from tests import tiny


def assert_same_arrays(ours, theirs):
    ours, theirs = weights_file.flatten(ours), weights_file.flatten(theirs)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name])


@pytest.fixture(scope="module")
def loaded(trained):
    return {name: weights.load(getattr(trained, name)) for name in ("tokenizer", "transformer")}


@pytest.mark.parametrize("format", ["safetensors", "msgpack", "npz"])
@pytest.mark.parametrize("name", ["tokenizer", "transformer"])
def test_round_trips_give_the_same_bits(trained, loaded, tmp_path, name, format):
    path, card = export.export(getattr(trained, name), format, str(tmp_path))
    back = weights.load(path)
    assert_same_arrays(back.variables, loaded[name].variables)
    assert back.fingerprint == loaded[name].fingerprint
    assert back.fingerprint in open(card).read()


def test_bfloat16_is_half_the_file_and_read_as_float32(trained, loaded, tmp_path):
    whole, _ = export.export(trained.transformer, "safetensors", str(tmp_path / "whole"))
    path, card = export.export(
        trained.transformer, "safetensors", str(tmp_path / "half"), dtype="bfloat16"
    )
    arrays = [weights_file.read_safetensors(p)[0] for p in (path, whole)]
    assert {a.dtype.name for a in arrays[0].values()} == {"bfloat16"}
    half, full = (sum(a.nbytes for a in named.values()) for named in arrays)
    assert 2 * half == full
    back = weights.load(path)
    assert_same_arrays(back.variables, weights.rounded(loaded["transformer"]).variables)
    for name, array in weights_file.flatten(back.variables).items():
        assert array.dtype == np.float32
        original = weights_file.flatten(loaded["transformer"].variables)[name]
        np.testing.assert_allclose(array, original, rtol=2**-8)
    assert back.fingerprint in open(card).read()
    assert back.fingerprint != loaded["transformer"].fingerprint
    with pytest.raises(ValueError, match="dtype='bfloat16' is for safetensors; npz is written in"):
        export.export(trained.transformer, "npz", str(tmp_path), dtype="bfloat16")


def test_the_codebook_of_a_moving_average_travels_with_the_parameters(tmp_path):
    workdir = tiny.untrained_tokenizer(tmp_path / "run", "vq_ema")
    ours = weights.load(workdir)
    assert set(ours.model_state) == {"codebook_state"}
    for format in ("safetensors", "npz"):
        path, _ = export.export(workdir, format, str(tmp_path / format))
        assert_same_arrays(weights.load(path).variables, ours.variables)
    assert "state/counts" in np.load(path).files
    with pytest.raises(ValueError, match=r"this run has \['codebook_state'\] beside them"):
        export.export(workdir, "msgpack", str(tmp_path / "msgpack"))
    assert not (tmp_path / "msgpack").exists()


def test_safetensors_say_what_they_are(trained, tmp_path):
    results = {
        "codebook/usage": {"value": 0.5, "protocol": {"split": "validation"}, "step": 3},
        "other": {"value": 7.25, "protocol": {}, "step": 2},
    }
    workdir = tmp_path / "run"
    os.symlink(trained.tokenizer, workdir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "load_results", lambda _: results)
        path, card = export.export(str(workdir), "safetensors", str(tmp_path / "out"))
    metadata = weights_file.read_safetensors(path)[1]
    assert json.loads(metadata["results"]) == {"codebook/usage": results["codebook/usage"]}
    config = parse_config(metadata["config"], path)
    assert config == load_config(trained.tokenizer)
    assert metadata["step"] == "3"
    text = open(card).read()
    assert text.endswith("---\n\n" + metadata["model_card"])
    for said in (
        "levels=(5, 3)",
        "scenes, train[:32], 16 pixels",
        "| codebook/usage | 0.5 |",
        '"split": "validation"',
        "3 of 3",
    ):
        assert said in text
    assert "7.25" not in text  # measured at another step


def test_exported_msgpack_is_maskgits_layout(trained, loaded, tmp_path):
    path, card = export.export(trained.tokenizer, "msgpack", str(tmp_path / "1"))
    settings = dict(levels=(5, 3), num_groups=2)
    assert "load_maskgit_tokenizer(FILE, num_groups=2, levels=(5, 3))" in open(card).read()
    ours = load_maskgit_tokenizer(path, **settings)
    run = runs.load(trained.tokenizer)
    batch, expected = next(iter(run.outputs("reconstruct")))
    indices = ours.encode(np.asarray(batch["image"]))
    np.testing.assert_array_equal(indices, expected["indices"])
    images = np.clip(ours.decode(indices), 0, 1)
    np.testing.assert_allclose(images, sharding.to_host(expected["reconstruction"]), atol=1e-5)
    with pytest.raises(ValueError, match="no codebook, .* give its 2 levels, .*given: none"):
        load_maskgit_tokenizer(path)

    path, _ = export.export(trained.transformer, "msgpack", str(tmp_path / "2"))
    transformer = load_maskgit_transformer(path, codebook_size=15)
    assert transformer.num_classes == 30
    with pytest.raises(ValueError, match="vocabulary of 46 rows"):
        load_maskgit_transformer(path)


ALONE = """
import sys
import jax
import numpy as np
assert not any(name.startswith("fsq_jax") for name in sys.modules)
sys.modules["fsq_jax"] = None  # importing it fails, also where it is installed
folder, inputs = sys.argv[1:]
inputs, outputs = np.load(inputs), {}
for name in inputs.files:
    function = jax.export.deserialize(open(f"{folder}/{name}.jax", "rb").read())
    assert set(function.platforms) >= {"cpu", "cuda"}
    for rows in (1, len(inputs[name])):
        outputs[f"{name}_{rows}"] = function.call(inputs[name][:rows])
np.savez(folder + "/outputs.npz", **outputs)
"""


def test_exported_functions_run_without_this_package(trained, loaded, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.random((3, 16, 16, 3), np.float32)
    indices = rng.integers(0, 15, (3, 4, 4), np.int32)
    tokens = rng.integers(0, 46, (3, 17), np.int32)
    for workdir in (trained.tokenizer, trained.transformer):
        written = export.export(workdir, "jax-export", str(tmp_path / "out"))
    assert written == [str(tmp_path / "out" / name) for name in ("logits.jax", "README.md")]
    np.savez(tmp_path / "in.npz", encode=images, decode=indices, logits=tokens)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(tmp_path / "out"), str(tmp_path / "in.npz")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "out" / "outputs.npz")
    arguments = dict(encode=images, decode=indices, logits=tokens)
    for weights_ in loaded.values():
        for name, (function, _) in export.FUNCTIONS[weights_.config.stage](weights_).items():
            for rows in (1, 3):
                expected = np.asarray(jax.jit(function)(arguments[name][:rows]))
                assert outputs[f"{name}_{rows}"].dtype == expected.dtype
                np.testing.assert_array_equal(outputs[f"{name}_{rows}"], expected)


def test_stages_that_a_format_cannot_hold(loaded, trained, tmp_path):
    with pytest.raises(ValueError, match="format='gguf' is unknown; there are safetensors, msgp"):
        export.export(trained.tokenizer, "gguf", str(tmp_path))
    npz, _ = export.export(trained.tokenizer, "npz", str(tmp_path))
    with pytest.raises(ValueError, match="is not a run; --workdir is the folder of one."):
        export.export(npz, "msgpack", str(tmp_path))
    config = loaded["tokenizer"].config.copy_and_resolve_references()
    config.stage = "uvim_lm"
    other = dataclasses.replace(loaded["tokenizer"], config=config)
    known = r"\['maskgit_tokenizer', 'maskgit_transformer'\]"
    with pytest.raises(ValueError, match=f"functions of {known}, not of 'uvim"):
        export.check_format("jax-export", other)
    with pytest.raises(ValueError, match="MaskGIT's two stages, not of 'uvim_lm'"):
        export.check_format("msgpack", other)

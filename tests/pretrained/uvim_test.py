"""UViM's checkpoints: the reference's answers, sizes read from shapes, files of other networks."""

import functools

import jax
import ml_dtypes
import numpy as np
import pytest

from fsq_jax import quantizers
from fsq_jax.formats import weights_file
from fsq_jax.models.uvim_base import LabelAutoencoder
from fsq_jax.models.uvim_lm import CodeLanguageModel
from fsq_jax.pretrained import uvim
from tests.tiny import random_variables

IMAGE = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def oracle(shared):
    return shared / "oracles"


def test_base_answers_as_the_reference(oracle):
    expected = np.load(oracle / "uvim_depth" / "expected.npz")
    base = uvim.load_uvim_base(oracle / "uvim_depth" / "checkpoint.npz")
    indices = base.encode({"depth": expected["ids_depth"]}, expected["context"])
    np.testing.assert_array_equal(indices, expected["code"])
    logits = base.decode(indices, expected["context"])
    np.testing.assert_allclose(logits["depth"], expected["logits_depth"], atol=1e-4)


def test_language_model_answers_as_the_reference(oracle):
    expected = np.load(oracle / "uvim_lm" / "expected.npz")
    lm = uvim.load_uvim_lm(oracle / "uvim_lm" / "checkpoint.npz")
    logits = lm.logits(expected["image"], expected["targets"] - 1)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)
    # The reference could choose token 0, but does not on these images.
    np.testing.assert_array_equal(lm.decode(expected["image"]), expected["greedy"] - 1)
    with pytest.raises(ValueError, match="temperature=1.0 needs a key"):
        lm.decode(expected["image"], temperature=1.0)
    indices = lm.decode(expected["image"], jax.random.key(0), temperature=1.0)
    assert indices.min() >= 0 and indices.max() < 32


def test_other_names_and_types_of_the_same_arrays(tmp_path, oracle):
    arrays = dict(np.load(oracle / "uvim_depth" / "checkpoint.npz"))
    path = tmp_path / "old.npz"
    old = {
        name.replace("params/", "opt/target/")
        .replace("/encoder/", "/Encoder/")
        .replace("/decoder/", "/Decoder/"): array.astype(ml_dtypes.bfloat16)
        for name, array in arrays.items()
    }
    np.savez(path, **old)
    base = uvim.load_uvim_base(path)
    flat = weights_file.flatten(base.variables["params"])
    assert all(x.dtype == np.float32 for x in flat.values())
    rounded = arrays["params/encoder/encoder_norm/scale"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(flat["encoder/encoder_norm/scale"], rounded.astype(np.float32))


def written(path, model, labels):
    weights_file.write_npz(path, random_variables(model, labels, IMAGE))
    return path


@pytest.mark.parametrize("encoder, decoder", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("real", [True, False])
def test_every_size_is_read_from_the_shapes(tmp_path, encoder, decoder, real):
    kinds = {"color": 3} if real else {"semantics": 5, "instances": 3}
    model = LabelAutoencoder(
        quantizers.make("vq_ema", codebook_size=8, channels=6),
        kinds,
        real,
        patch=4,
        width=16,
        encoder_depth=1,
        decoder_depth=2,
        num_heads=4,
        mlp_dim=24,
        code_side=2,
        encoder_context=encoder,
        decoder_context=decoder,
    )
    shape = (2, 16, 3, 16) if real else (2, 16, 16)
    labels = {kind: np.zeros(shape, np.float32 if real else np.int32) for kind in kinds}
    path = written(tmp_path / "a.npz", model, labels)
    assert uvim.load_uvim_base(path).model == model
    assert uvim.load_uvim_base(path, code_side=3).model == model.clone(code_side=3)


def test_fsq_needs_its_levels(tmp_path):
    model = LabelAutoencoder(
        quantizers.make("fsq", levels=(4, 3)),
        {"depth": 5},
        patch=4,
        width=16,
        encoder_depth=1,
        decoder_depth=1,
        num_heads=2,
        mlp_dim=24,
        code_side=2,
    )
    path = written(tmp_path / "a.npz", model, {"depth": np.zeros((2, 16, 16), np.int32)})
    assert uvim.load_uvim_base(path, levels=(4, 3)).model == model
    with pytest.raises(ValueError, match=r"no state/dictionary.*its 2 levels.*got: none"):
        uvim.load_uvim_base(path)


def test_language_models_sizes(tmp_path):
    model = CodeLanguageModel(
        vocab_size=9,
        num_tokens=4,
        patch=4,
        width=16,
        encoder_depth=1,
        decoder_depth=2,
        num_heads=4,
        mlp_dim=24,
    )
    variables = random_variables(model, IMAGE, np.zeros((2, 4), np.int32))
    np.savez(tmp_path / "a.npz", **weights_file.flatten(variables["params"]))
    assert uvim.load_uvim_lm(tmp_path / "a.npz").model == model


def test_files_of_other_networks_get_one_sentence_each(tmp_path, oracle):
    base, lm = (oracle / name / "checkpoint.npz" for name in ("uvim_depth", "uvim_lm"))
    one, flat = tmp_path / "one.npz", dict(np.load(base))
    np.savez(one, image=IMAGE)

    def changed(remove=(), **add):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        np.savez(path, **({k: v for k, v in flat.items() if k not in remove} | add))
        return path

    norm = "params/encoder/encoder_norm/scale"
    kernel = "params/encoder/encoderblock_0/MlpBlock_0/Dense_0/kernel"
    head, matrix = "params/head_depth/kernel", {"params/bottleneck_downsample": IMAGE}
    counts = {"state/counts": IMAGE[0, 0, :, 0]}
    with_levels = functools.partial(uvim.load_uvim_base, levels=(4,))
    for load, path, message in [
        (uvim.load_uvim_lm, base, "holds a UViM stage I; expected a UViM stage II"),
        (uvim.load_uvim_base, lm, "holds a UViM stage II; expected a UViM stage I"),
        (uvim.load_uvim_base, one, r"holds another network \(image\); expected a UViM stage I"),
        (uvim.load_uvim_base, changed([norm]), "lacks 1 arrays, such as .*encoder_norm/scale'"),
        (uvim.load_uvim_base, changed([kernel]), "lacks 'kernel', which this network has"),
        (uvim.load_uvim_base, changed(**{norm: IMAGE}), r"has shape \(2, 16, 16, 3\), expected"),
        (uvim.load_uvim_base, changed(**{kernel: IMAGE[0, 0, 0]}), "holds arrays of other ranks"),
        (uvim.load_uvim_base, changed(extra=IMAGE), "has 1 arrays .* such as 'extra'"),
        (uvim.load_uvim_base, changed([head]), "lacks 'kernel'"),
        (uvim.load_uvim_base, changed(**{head: IMAGE[0]}), "patch has 3 parts, .* no square"),
        (uvim.load_uvim_base, changed(**matrix), "learned matrix"),
        (uvim.load_uvim_base, changed(**counts), r"\(32, 32\) and counts of \(16,\)"),
        (with_levels, base, r"dictionary, but levels=\(4,\)"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            load(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)

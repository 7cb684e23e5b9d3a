"""MaskGIT's checkpoints: what the reference code answers, full sizes, and files of other kinds."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from PIL import Image

from fsq_jax.formats import weights_file
from fsq_jax.models.maskgit_tokenizer import Tokenizer
from fsq_jax.models.maskgit_transformer import MaskedTransformer
from fsq_jax.pretrained import maskgit, parameter_trees
from fsq_jax.pretrained.maskgit import load_maskgit_tokenizer, load_maskgit_transformer
from fsq_jax.quantizers.fsq import FSQ
from fsq_jax.quantizers.vq import VectorQuantizer
from tests.tiny import random_variables


def oracle(shared, name):
    folder = shared / "oracles" / name
    return str(folder / "checkpoint.msgpack"), dict(np.load(folder / "expected.npz"))


def test_tokenizer_agrees_with_the_reference_code(shared):
    path, expected = oracle(shared, "maskgit_tokenizer")
    tok = load_maskgit_tokenizer(path)
    assert tok.model == Tokenizer(
        VectorQuantizer(codebook_size=64, channels=16),
        filters=32,
        channel_multipliers=(1, 2, 2),
        num_res_blocks=1,
        dtype="float32",
    )
    latents = jax.jit(functools.partial(tok.model.apply, method="latents"))(
        tok.variables, expected["image"]
    )
    np.testing.assert_allclose(latents, expected["encoder_output"], atol=1e-4)
    indices = tok.encode(expected["image"])
    assert indices.dtype == jnp.int32
    np.testing.assert_array_equal(indices, expected["indices"])
    np.testing.assert_allclose(tok.decode(indices), expected["reconstruction"], atol=1e-4)


def test_transformer_agrees_with_the_reference_code(shared):
    path, expected = oracle(shared, "maskgit_transformer")
    mg = load_maskgit_transformer(path, codebook_size=int(expected["codebook_size"]))
    assert mg.num_classes == expected["num_classes"]
    assert (expected["tokens"] == -1).any()
    np.testing.assert_allclose(mg.logits(expected["tokens"]), expected["logits"], atol=1e-4)
    last_row = np.where(expected["tokens"] < 0, mg.model.vocab_size - 1, expected["tokens"])
    np.testing.assert_allclose(mg.logits(last_row), expected["logits"], atol=1e-4)


def test_codes_and_classes_must_be_told_apart(shared):
    path, _ = oracle(shared, "maskgit_transformer")
    with pytest.raises(ValueError, match="vocabulary of 22 rows, .* give codebook_size"):
        load_maskgit_transformer(path)
    with pytest.raises(ValueError, match="codebook_size=21 leaves no class of 22 rows"):
        load_maskgit_transformer(path, codebook_size=21)


def shapes(model, *inputs):
    """Parameters as arrays that have a shape but take no memory."""
    return _shapes(model, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs))


@functools.cache
def _shapes(model, *inputs):
    tree = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), tree)


IMAGE = jnp.zeros((1, 16, 16, 3))
BLOCK = {
    "GroupNorm_0/scale": "i",
    "GroupNorm_0/bias": "i",
    "GroupNorm_1/scale": "o",
    "GroupNorm_1/bias": "o",
    "Conv_0/kernel": "33io",
    "Conv_1/kernel": "33oo",
}


def published_tokenizer() -> dict[str, tuple]:
    """{path: shape} of tokenizer_imagenet256_checkpoint, from the published network's plan."""
    arrays = {"quantizer/codebook": (1024, 256)}
    levels = {
        "encoder": [128] * 4 + [256] * 4 + [512] * 4,
        "decoder": [512] * 4 + [256] * 4 + [128] * 4,
    }
    for network, widths in levels.items():
        before = widths[0]
        for i, width in enumerate(widths):
            sizes = {"i": before, "o": width, "3": 3}
            block = f"{network}/ResBlock_{i}/"
            arrays |= {block + n: tuple(sizes[c] for c in s) for n, s in BLOCK.items()}
            if before != width:
                arrays[block + "Conv_2/kernel"] = (1, 1, width, width)
            before = width
        arrays |= {f"{network}/GroupNorm_0/{n}": (before,) for n in ("scale", "bias")}
    convs = {"encoder/Conv_0": (3, 3, 3, 128), "encoder/Conv_1": (1, 1, 512, 256)}
    decoder = [(256, 512), (512, 512), (256, 256), (256, 256), (128, 128), (128, 3)]
    convs |= {f"decoder/Conv_{i}": (3, 3, *channels) for i, channels in enumerate(decoder)}
    for name, shape in convs.items():
        arrays[f"{name}/kernel"] = shape
        arrays[f"{name}/bias"] = shape[-1:]
    del arrays["encoder/Conv_0/bias"]
    return arrays


def zeros(arrays: dict[str, tuple]):
    flat = {name: np.broadcast_to(np.float32(0), shape) for name, shape in arrays.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def test_full_size_tokenizer_is_read_from_its_shapes():
    params = zeros(published_tokenizer())
    leaves = jax.tree.leaves(params)
    assert len(leaves) == 168 and sum(leaf.size for leaf in leaves) == 54_515_587
    config = maskgit.tokenizer_config("file", params)  # which checks every name and shape
    assert config.model.to_dict() == dict(
        filters=128,
        channel_multipliers=(1, 1, 2, 2, 4),
        num_res_blocks=2,
        num_groups=32,
        shortcut="output",
        remat=False,
        dtype="float32",
    )
    assert config.quantizer.to_dict() == dict(name="vq", codebook_size=1024, channels=256)


@pytest.mark.parametrize("positions,count", [(257, 172_457_193), (1025, 173_047_017)])
def test_full_size_transformer_is_read_from_its_shapes(positions, count):
    model = MaskedTransformer(vocab_size=2025, num_positions=257)
    flat = dict(weights_file.flatten(shapes(model, jnp.zeros((1, 257), jnp.int32))))
    flat["Embed_0/position_embeddings/embedding"] = np.broadcast_to(np.float32(0), (positions, 768))
    params = traverse_util.unflatten_dict(flat, sep="/")
    assert len(flat) == 393 and sum(array.size for array in flat.values()) == count
    published = {
        "Embed_0/word_embeddings/embedding": (2025, 768),
        "Embed_0/position_embeddings/embedding": (positions, 768),
        "Embed_0/embeddings_ln/scale": (768,),
        "TransformerLayer_0/Attention_0/self_attention/query/kernel": (768, 16, 48),
        "TransformerLayer_0/Attention_0/self_attention/value/bias": (16, 48),
        "TransformerLayer_23/Attention_0/self_attention/out/kernel": (16, 48, 768),
        "TransformerLayer_23/Attention_0/attention_output_ln/bias": (768,),
        "TransformerLayer_23/Mlp_0/intermediate_output/kernel": (768, 3072),
        "TransformerLayer_23/Mlp_0/layer_output/kernel": (3072, 768),
        "TransformerLayer_23/Mlp_0/layer_output_ln/scale": (768,),
        "MlmLayer_0/mlm_dense/kernel": (768, 768),
        "MlmLayer_0/mlm_ln/scale": (768,),
        "MlmLayer_0/mlm_bias/bias": (2025,),
    }
    for name, shape in published.items():
        assert flat[name].shape == shape
    config = maskgit.transformer_config("file", params)
    assert config.model.to_dict() == dict(
        width=768, depth=24, num_heads=16, mlp_dim=3072, dtype="float32"
    )
    assert (config.codebook_size, config.num_classes) == (1024, 1000)
    assert config.num_positions == positions


@pytest.mark.parametrize("multipliers", [(1,), (1, 1), (1, 2), (2, 1, 3)])
@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("shortcut", ["output", "input"])
def test_sizes_of_any_tokenizer_are_inferred(multipliers, blocks, shortcut):
    sizes = dict(channel_multipliers=multipliers, num_res_blocks=blocks, shortcut=shortcut)
    told = dict(filters=8, num_groups=4, dtype="float32")  # as they are in the config
    params = shapes(Tokenizer(FSQ((8, 5, 5)), **told, **sizes), IMAGE)
    config = maskgit.tokenizer_config("file", params, (8, 5, 5), 4)
    assert config.model.num_groups == 4
    model = Tokenizer(FSQ((8, 5, 5)), **config.model)
    assert jax.tree.map(np.shape, shapes(model, IMAGE)) == jax.tree.map(np.shape, params)
    if blocks and any(width != multipliers[0] for width in multipliers):
        assert config.model.shortcut == shortcut
        assert config.model.channel_multipliers == multipliers


def test_levels_are_fsqs_and_must_be_told():
    params = shapes(Tokenizer(FSQ((8, 5, 5)), filters=8, channel_multipliers=(1,)), IMAGE)
    for levels in ((), (8, 5)):
        with pytest.raises(ValueError, match="no codebook, .* give its 3 levels"):
            maskgit.tokenizer_config("file", params, levels)
    with pytest.raises(ValueError, match=r"has a codebook, but levels=\(8, 5\) are for FSQ"):
        maskgit.tokenizer_config("file", zeros(published_tokenizer()), (8, 5))


@pytest.fixture
def tokenizer_file(tmp_path):
    model = Tokenizer(
        VectorQuantizer(16, 8), filters=8, channel_multipliers=(1, 2), num_res_blocks=1
    )
    path = tmp_path / "tokenizer"
    weights_file.write_msgpack(str(path), random_variables(model, IMAGE)["params"])
    return path


def sentence(path) -> str:
    with pytest.raises(ValueError) as error:
        load_maskgit_tokenizer(str(path))
    text = str(error.value)
    assert "\n" not in text and text.startswith(str(path))
    return text.removeprefix(f"{path} ").removeprefix(f"{path}: ")


def test_files_of_other_kinds_get_a_sentence(tmp_path):
    path, formats = tmp_path / "file", "expected a flax msgpack, an .npz or a safetensors file of"
    assert sentence(path).startswith(f"is not a file; {formats}")
    assert sentence(tmp_path).startswith(f"is a folder that holds no config.json; {formats}")
    path.write_bytes(b"")
    assert sentence(path).startswith(f"is empty; {formats}")
    path.write_text("Not weights")
    assert sentence(path).startswith("is a file that begins with b'Not weights'; expected")
    Image.new("RGB", (4, 4)).save(path, "png")
    assert sentence(path).startswith(f"is a PNG image; {formats}")
    np.savez(tmp_path / "x.npz", a=np.array([{}]))
    (tmp_path / "x.npz").rename(path)
    assert sentence(path).startswith("a is object of shape (1,): Python objects, which are never")
    path.write_bytes(b"PK\x03\x04 and no more")
    assert sentence(path).startswith("is truncated or damaged (File is not a zip file); expected")
    path.write_bytes(serialization.msgpack_serialize({"model": {}, "step": 1}))
    assert sentence(path) == (
        "is a msgpack file with 'model', 'step' at the top; expected 'params'."
    )
    path.write_bytes(serialization.msgpack_serialize({"params": {"a": {"b": "text"}}}))
    assert sentence(path) == "'params/a/b' is str; expected an array of numbers."


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("It ran.",))

    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(Trap()))
    assert sentence(path).startswith("is a Python pickle, which is never loaded; expected a flax")


def test_damaged_and_other_trees_get_a_sentence(tokenizer_file, shared, tmp_path):
    whole = tokenizer_file.read_bytes()
    tokenizer_file.write_bytes(whole[: len(whole) // 2])
    assert sentence(tokenizer_file).startswith("is a damaged or truncated msgpack file (")

    def changed(change):
        tree = traverse_util.flatten_dict(serialization.msgpack_restore(whole), sep="/")
        change(tree)
        tree = traverse_util.unflatten_dict(tree, sep="/")
        tokenizer_file.write_bytes(serialization.msgpack_serialize(tree))
        return sentence(tokenizer_file)

    assert changed(lambda t: t.pop("params/encoder/Conv_1/bias")) == (
        "lacks 1 arrays, such as 'encoder/Conv_1/bias'."
    )
    assert changed(lambda t: t.pop("params/decoder/Conv_1/kernel")) == (
        "lacks 'kernel', which this network has."
    )
    assert changed(lambda t: t.update({"params/extra": np.zeros(3)})) == (
        "has 1 arrays that this network lacks, such as 'extra'."
    )
    assert changed(lambda t: t.update({"params/encoder/GroupNorm_0/scale": np.zeros(3)})) == (
        "encoder/GroupNorm_0/scale has shape (3,), expected (16,)."
    )
    others = {
        "maskgit_transformer/checkpoint.msgpack": "a MaskGIT transformer",
        "uvim_depth/checkpoint.npz": "a UViM stage I",
        "uvim_lm/checkpoint.npz": "a UViM stage II",
        "uvim_lm/expected.npz": "another network (greedy, image, logits, targets)",
    }
    for name, found in others.items():
        said = sentence(shared / "oracles" / name)
        assert said == f"holds {found}; expected a MaskGIT tokenizer."


def test_layouts_are_known_by_their_names(shared):
    assert parameter_trees.identify({"a": {"b": np.zeros(1)}}) is None
    files = {
        "maskgit_tokenizer": "msgpack",
        "maskgit_transformer": "msgpack",
        "uvim_lm": "npz",
        "uvim_depth": "npz",
    }
    for name, suffix in files.items():
        path = shared / "oracles" / name / f"checkpoint.{suffix}"
        found = parameter_trees.identify(weights_file.read(str(path))[0]["params"])
        assert found == name.replace("depth", "base")

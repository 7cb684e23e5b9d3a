"""Codebooks against what vector-quantize-pytorch 1.32 recorded; see reference/.

Legend: S steps  K words.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.quantizers import running_codebook, simvq, vq

FILE = np.load(pathlib.Path(__file__).parent / "reference" / "quantizers_vq.npz")
Z, WEIGHT, WORDS = (FILE[name] for name in ("z", "weight", "words"))
K, D = WORDS.shape
MOMENTUM = 0.8
THRESHOLD = 2.0
GRADIENTS = ("straight_through", "rotation")


def case(name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): FILE[key] for key in FILE if key.startswith(f"{name}/")}


def near(ours, theirs, what):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5, err_msg=what)


@functools.partial(jax.jit, static_argnums=0)
def step(module, variables, z, weight):
    """(gradients of the parameters and of z, result, what it leaves for the codebook)."""

    def loss(params, z):
        result, left = module.apply(
            {**variables, "params": params}, z, train=True, mutable=[vq.BATCH]
        )
        return (result.codes * weight).sum() + result.loss, (result, left.get(vq.BATCH))

    params = variables.get("params", {})
    gradients, found = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, z)
    return *gradients, *found


@functools.partial(jax.jit, static_argnums=0)
def after_step(module, state, batch):
    return module.after_step(state, batch, None)


def state_of(words):
    """Each word as the mean of one token a step."""
    count = 1 / (1 - MOMENTUM)
    return {"counts": jnp.full(len(words), count), "dictionary": count * words}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def follow(module, params, words, want, tokens=None):
    """Holds all steps of a running codebook against a case; returns the gradients of parameters.

    tokens: of a step, [N, D]; the n-th takes the place of the n-th dead word.
    """
    state, found = state_of(words), []
    for i, (z, weight) in enumerate(zip(Z, WEIGHT, strict=True)):
        variables = {"params": params, vq.STATE: state}
        if tokens:  # who are dead is known after the step, and so are their seeds
            plain = module.clone(reseed_threshold=0.0)
            to_params, to_z, got, batch = step(plain, variables, z, weight)
            after = after_step(plain, state, batch)
            dead = np.asarray(after["counts"]) < THRESHOLD / (1 - MOMENTUM)
            assert 0 < dead.sum() < K
            seeds = np.asarray(tokens(z))[np.cumsum(dead) - 1]
            batch |= {"seeds": seeds, "seeded": jnp.ones(K)}
        else:
            to_params, to_z, got, batch = step(module, variables, z, weight)
        np.testing.assert_array_equal(got.indices, want["indices"][i])
        near(got.codes, want["codes"][i], "codes")
        near(got.loss, want["loss"][i], "loss")
        near(to_z, want["to_z"][i], "gradient of z")
        state = after_step(module, state, batch)
        found.append(to_params)
    variables = {"params": params, vq.STATE: state}
    near(module.apply(variables, method="codewords"), want["words"], "words")
    near(state["counts"] * (1 - MOMENTUM), want["counts"], "counts")
    return jax.tree.map(lambda *steps: np.stack(steps), *found)


def running(distance: str, **options) -> vq.EMAVectorQuantizer:
    """What its defaults, or its use_cosine_sim, are here."""
    means = dict(means=dict(unit_words=False), cosine=dict(normalize=True))[distance]
    common = dict(momentum=MOMENTUM, commitment_weight=1.0, standardize=False, split_threshold=0.0)
    return vq.EMAVectorQuantizer(K, D, **common, **means, **options)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("distance", ["means", "cosine"])
def test_running_means_and_cosines(distance, gradient):
    words = WORDS if distance == "means" else unit(WORDS)
    module = running(distance, gradient=gradient)
    follow(module, {}, words, case(f"{distance}/{gradient}"))


@pytest.mark.parametrize("distance", ["means", "cosine"])
def test_dead_words_are_replaced(distance):
    words = WORDS if distance == "means" else unit(WORDS)
    tokens = lambda z: z.reshape(-1, D) if distance == "means" else unit(z.reshape(-1, D))  # noqa: E731
    module = running(distance, reseed_threshold=THRESHOLD)
    follow(module, {}, words, case(f"reseeded_{distance}"), tokens)


def test_projected_words():
    want = case("projected")
    params = {
        layer: {
            "kernel": want[f"start/{layer}.weight"].T,
            "bias": want[f"start/{layer}.bias"],
        }
        for layer in ("project_in", "project_out")
    }
    width = want["words"].shape[1]
    gradients = follow(running("means", codebook_channels=width), params, WORDS[:, :width], want)
    for layer, values in gradients.items():
        near(values["kernel"].swapaxes(1, 2), want[f"to_{layer}.weight"], layer)
        near(values["bias"], want[f"to_{layer}.bias"], layer)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_codebook_that_is_a_parameter(gradient):
    """It has mean (q - z)^2 once, with the gradients of a codebook and a commitment loss of 1."""
    want = case(f"learned/{gradient}")
    module = vq.VectorQuantizer(K, D, commitment_weight=1.0, entropy_weight=0.0, gradient=gradient)
    to_params, to_z, got, _ = step(module, {"params": {"codebook": WORDS}}, Z[0], WEIGHT[0])
    np.testing.assert_array_equal(got.indices, want["indices"][0])
    near(got.codes, want["codes"][0], "codes")
    near(got.loss, 2 * want["loss"][0], "loss")
    near(to_z, want["to_z"][0], "gradient of z")
    near(to_params["codebook"], want["to__codebook.embed"][0, 0], "gradient of the codebook")


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_simvq(gradient):
    want = case(f"simvq/{gradient}")
    module = simvq.SimVQ(K, D, gradient=gradient, bias=False)
    variables = {"params": {"linear": {"kernel": want["kernel"]}}, vq.STATE: {"frozen": WORDS}}
    to_params, to_z, got, _ = step(module, variables, Z[0], WEIGHT[0])
    np.testing.assert_array_equal(got.indices, want["indices"][0])
    near(got.codes, want["codes"][0], "codes")
    near(got.loss, want["loss"][0], "loss")
    near(to_z, want["to_z"][0], "gradient of z")
    near(to_params["linear"]["kernel"], want["to_code_transform.weight"][0].T, "gradient of W")


def test_means_are_smoothed_alike():
    counts = np.array([0.0, 1.0, 30.0], np.float32)
    words = running_codebook.means(counts, np.ones((3, 1), np.float32), MOMENTUM)
    sizes = counts * (1 - MOMENTUM)
    smoothed = (sizes + 1e-5) / (sizes.sum() + 3e-5) * sizes.sum()
    np.testing.assert_allclose(words[:, 0], (1 - MOMENTUM) / smoothed, rtol=1e-5)

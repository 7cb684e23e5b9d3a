"""Tasks on labels and logits small enough to write down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax import tasks
from fsq_jax.tasks import unlabelled

RNG = np.random.default_rng(0)
IMAGES = RNG.random((2, 4, 6, 3), np.float32)


def cross_entropy(logits, ids):
    """By a one-hot that is all zeros for ids without a channel."""
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    one_hot = ids[..., None] == np.arange(logits.shape[-1])
    return -(one_hot * log_p).sum(-1)


def confident(ids, channels):
    return 100.0 * jax.nn.one_hot(ids, channels)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_members_and_a_perfect_prediction(name):
    """Logits that are sure of the labels give the labels back."""
    task = tasks.make(name)
    segments = np.zeros((2, 4, 6, 2), np.int32)
    segments[:, :, 3:] = [7, 1]
    segments[:, 2:, :2] = [9, 2]
    batch = {
        "image": IMAGES,
        "depth": RNG.uniform(0.1, 9.9, (2, 4, 6)).astype(np.float32),
        "segments": segments,
    }
    to_inputs, loss, to_prediction = map(jax.jit, (task.to_inputs, task.loss, task.to_prediction))
    labels, context = to_inputs({k: batch[k] for k in ("image", *task.features)})
    assert set(labels) == set(task.kinds) and context.shape == IMAGES.shape
    if task.real:
        logits = labels
    else:
        logits = {kind: confident(labels[kind], c) for kind, c in task.kinds.items()}
    losses = loss(logits, labels)
    assert losses.shape == (2,)
    np.testing.assert_allclose(losses, 0, atol=1e-6)
    ((output, prediction),) = to_prediction(logits).items()
    tolerance = {"depth": 9.999 / 512 + 1e-5, "image": 1e-6, "segments": 0}[output]
    np.testing.assert_allclose(prediction, batch[output], atol=tolerance)
    assert prediction.dtype == batch[output].dtype


@pytest.mark.parametrize("name", tasks.TASKS)
def test_context_is_the_image_between_minus_one_and_one(name):
    """Black, middle grey and white, which are grey to all tasks."""
    image = np.broadcast_to(np.array([0.0, 127.0, 255.0], np.float32)[:, None] / 255, (1, 2, 3, 3))
    batch = {"image": image, "depth": np.ones((1, 2, 3)), "segments": np.ones((1, 2, 3, 2), int)}
    labels, context = tasks.make(name).to_inputs(batch)
    np.testing.assert_allclose(context, image * 2 - 1, atol=1e-6)
    assert (context.min(), context.max()) == (-1, 1)
    if name == "colorization":
        np.testing.assert_allclose(labels["color"], image * 2 - 1, atol=1e-6)
    else:
        alone = unlabelled.context(tasks.make(name), {"image": image})  # without labels
        np.testing.assert_array_equal(alone, context)


def test_unknown_and_impossible_tasks():
    with pytest.raises(ValueError, match="task='panoptics' is unknown.* Did you mean 'panoptic'"):
        tasks.make("panoptics")
    with pytest.raises(ValueError, match="self.min_depth=2, self.max_depth=1"):
        tasks.make("depth", min_depth=2, max_depth=1)
    with pytest.raises(ValueError, match="self.min_fraction=1"):
        tasks.make("panoptic", min_fraction=1)


def test_depth_bins():
    task = tasks.make("depth")
    width = 9.999 / 256
    depth = np.array([0, 0.001, 0.001 + 1.01 * width, 5.0, 9.9999, 10, 11], np.float32)
    bins = np.asarray(task.to_bins(depth))
    np.testing.assert_array_equal(bins, [0, 0, 1, 127, 255, 255, 255])
    assert bins.dtype == np.int32
    middle = np.asarray(task.to_metres(np.arange(256)))
    np.testing.assert_allclose(middle[[0, 255]], [0.001 + width / 2, 10 - width / 2], rtol=1e-5)
    np.testing.assert_array_equal(task.to_bins(middle), np.arange(256))


def test_depth_loss_leaves_out_bin_0_and_divides_by_all_pixels():
    task = tasks.make("depth", num_bins=5)
    logits = RNG.standard_normal((2, 4, 6, 5)).astype(np.float32)
    labels = RNG.integers(0, 5, (2, 4, 6))
    expected = np.where(labels == 0, 0, cross_entropy(logits, labels)).sum((1, 2)) / 24
    losses = jax.jit(task.loss)({"depth": logits}, {"depth": labels})
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_colour_is_given_grey():
    task = tasks.make("colorization")
    image = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]]], np.float32)
    labels, context = task.to_inputs({"image": image[None]})
    np.testing.assert_array_equal(labels["color"][0], image * 2 - 1)
    grey = (np.asarray(context)[0, 0] + 1) / 2 * 255
    # TensorFlow's rgb_to_grayscale of the same colours in uint8.
    np.testing.assert_allclose(grey, np.repeat([[76], [149], [29], [255], [0]], 3, 1), atol=1e-3)
    wild = task.to_prediction({"color": jnp.array([[[[-3.0, 0.5, 3.0]]]])})["image"]
    np.testing.assert_allclose(wild, [[[[0, 0.75, 1]]]])
    shifted = task.loss({"color": labels["color"] + 0.5}, labels)
    np.testing.assert_allclose(shifted, [0.25], rtol=1e-6)


def test_panoptic_loss_trains_on_void_but_not_on_what_has_no_channel():
    task = tasks.make("panoptic", num_semantics=5, num_instances=3)
    logits = {k: RNG.standard_normal((2, 4, 6, c), np.float32) for k, c in task.kinds.items()}
    labels = {k: RNG.integers(0, c, (2, 4, 6)) for k, c in (("semantics", 5), ("instances", 6))}
    expected = sum(cross_entropy(logits[k], labels[k]).mean((1, 2)) for k in labels)
    np.testing.assert_allclose(jax.jit(task.loss)(logits, labels), expected, rtol=1e-5)
    grads = jax.jit(jax.grad(lambda x: task.loss(x, labels).sum()))(logits)
    untrained = np.asarray(labels["instances"] >= 3)
    assert (np.asarray(grads["instances"])[untrained] == 0).all()
    assert (np.asarray(grads["semantics"])[labels["semantics"] == 0] != 0).all()


def panoptic_by_loops(logits, min_fraction):
    """One segment after the other."""
    semantics, instances = logits["semantics"], logits["instances"]
    out = np.zeros((*semantics.shape[:3], 2), np.int32)
    for b in range(len(semantics)):
        of_pixel = instances[b].argmax(-1)
        for instance in range(instances.shape[-1]):
            mask = of_pixel == instance
            if mask.sum() <= min_fraction * mask.size:
                continue
            label = semantics[b][mask].sum(0).argmax()
            if label:
                out[b][mask] = [label, instance]
    return out


@pytest.mark.parametrize("min_fraction", [0.0, 0.15])
def test_panoptic_segments_take_the_class_of_the_largest_sum(min_fraction):
    task = tasks.make("panoptic", num_semantics=6, num_instances=8, min_fraction=min_fraction)
    rng = np.random.default_rng(0)  # its own: how much is void must not hang on the tests before
    logits = {k: rng.standard_normal((3, 5, 7, c), np.float32) for k, c in task.kinds.items()}
    segments = np.asarray(jax.jit(task.to_prediction)(logits)["segments"])
    np.testing.assert_array_equal(segments, panoptic_by_loops(logits, min_fraction))
    assert ((segments[..., 0] == 0).mean() > 0.3) == (min_fraction > 0)

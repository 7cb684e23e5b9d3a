"""What a trained run says to arrays: reconstructions, samples and completions, labels of images.

N examples, B rows of a batch, H W pixels, h w tokens along the sides, L = h w, T decoding steps.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from fsq_jax import stages, tasks
from fsq_jax.data import transforms
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.runs.config import override_config
from fsq_jax.runs.predictor import compiled
from fsq_jax.runtime import sharding
from fsq_jax.runtime.progress import tracked
from fsq_jax.runtime.user_error import UserError
from fsq_jax.tasks import drawing
from fsq_jax.tasks.unlabelled import context


def sample(
    predictor: Predictor, labels_N: np.ndarray, seed: int = 0, known: dict | None = None
) -> np.ndarray:
    """Images [N,H,W,3] in [0, 1] of the labels, one draw each.

    Args:
      predictor: a masked transformer's run.
      labels_N: classes.
      seed: another seed, other images.
      known: {"tokens" [L], "known" [L] bool}: tokens that are given and stay (in-painting).
    """
    key, images = jax.random.key(seed), []
    starts = range(0, len(labels_N), predictor.batch_size)
    for i, start in enumerate(tracked(starts, "sampling", predictor.batch_size)):
        batch = _labelled(labels_N[start : start + predictor.batch_size], known)
        images.append(_batch(predictor, "sample", jax.random.fold_in(key, i), **batch)["image"])
    return np.concatenate(images)


def class_names(predictor: Predictor) -> Sequence[str]:
    """The names of the classes; their numbers where the data isn't here, or has others."""
    try:
        names = predictor.dataset(predictor.eval_split).class_names
    except (UserError, OSError):
        names = ()
    num_classes = predictor.facts.num_classes
    return names if len(names) == num_classes else [str(label) for label in range(num_classes)]


def as_evaluated(config, image: np.ndarray) -> np.ndarray:
    """An image as the run's evaluation sees images: float32 [H,W,3] in [0, 1]."""
    seen = transforms.evaluation(config.data.size, config.data.transform)
    return seen({"image": image}, None)["image"]


def with_overrides(predictor: Predictor, overrides: Mapping) -> Predictor:
    """The same weights where they are, with other settings, such as {"sampling.num_steps": 8}.

    Raises:
      UserError: the config has no such key, or its value is of another type.
    """
    config = predictor.config.copy_and_resolve_references()
    override_config(config, overrides)
    stage = stages.make(config, **stages.frozen_shapes(config))
    return dataclasses.replace(predictor, config=config, stage=stage, predict=compiled(stage))


def reconstruct(predictor: Predictor, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(reconstruction [H,W,3] in [0, 1], indices [h,w]) of an image, see `as_evaluated`, by a
    tokenizer."""
    out = _batch(predictor, "reconstruct", image=image[None])
    return out["reconstruction"][0], out["indices"][0]


def decode(predictor: Predictor, tokens_NL: np.ndarray) -> np.ndarray:
    """Images [N,H,W,3] in [0, 1] of tokens, by a tokenizer or by that of a masked transformer."""
    return _batch(predictor, "decode", tokens=tokens_NL)["image"]


def decoding_steps(
    predictor: Predictor,
    labels_N: np.ndarray,
    seed: int = 0,
    known: Mapping[str, np.ndarray] | None = None,
    **settings: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, again [N,T,L]): what each step of decoding draws, and what of it is drawn again.

    Args:
      predictor, labels_N, seed, known: as of `sample`; no more labels than a batch has rows.
      settings: "guidance" and "choice_temperature", over the config's.
    """
    values = {name: np.full(len(labels_N), x, np.float32) for name, x in settings.items()}
    values |= _labelled(labels_N, known)
    out = _batch(predictor, "steps", jax.random.key(seed), **values)
    return out["tokens"], out["again"]


def known_tokens(
    predictor: Predictor, image: np.ndarray, mask_HW: np.ndarray
) -> dict[str, np.ndarray]:
    """{"tokens" [L], "known" [L]} of an image; a token is unknown as soon as one pixel is masked.

    Args:
      predictor: a masked transformer's run.
      image: as evaluation sees it, see `as_evaluated`.
      mask_HW: True where the image is to be redrawn, of the same size.
    """
    size, side = predictor.config.data.size, predictor.facts.grid
    patch = size // side
    redrawn = mask_HW.reshape(side, patch, side, patch).any(axis=(1, 3)).reshape(-1)
    out = _batch(predictor, "tokens", image=image[None])
    return {"tokens": out["tokens"][0], "known": ~redrawn}


def held_out_labels(predictor: Predictor, num: int) -> dict[str, np.ndarray]:
    """{"input", "prediction", "truth"}, pictures [N,H,W,3] in [0, 1], of the first held-out images.

    Args:
      predictor: of either stage of UViM.
      num: how many.
    """
    return _pictures(predictor.config, predictor.outputs("prediction", limit=num))


def labels_of_image(predictor: Predictor, image: np.ndarray) -> dict[str, np.ndarray]:
    """{"input", "prediction"}, pictures [1,H,W,3] in [0, 1], of an image, which has no truth.

    Args:
      predictor: of UViM's stage II.
      image: as evaluation sees it, see `as_evaluated`.

    Raises:
      UserError: of stage I, which starts from its label.
    """
    if predictor.config.stage != "uvim_lm":
        raise UserError("Stage I encodes labels, which an image file has not; give a stage II.")
    rows = np.array(predictor.own_rows)
    batch = predictor.put(
        {"image": np.broadcast_to(image, (len(rows), *image.shape)), "mask": rows == 0}
    )
    key = jax.random.key(predictor.seed)
    out = predictor.predict["prediction"](predictor.state, batch, key)
    return _pictures(predictor.config, [(batch, out)])


def _pictures(config, outputs: Iterable[tuple]) -> dict[str, np.ndarray]:
    """{panel: pictures [N,H,W,3]} of (batch, prediction) pairs, without what is masked out."""
    task, panels = tasks.make(**config.task), {}
    for batch, prediction in outputs:
        ((name, predicted),) = prediction.items()
        drawn = {
            "input": context(task, batch) / 2 + 0.5,
            "prediction": drawing.draw(name, predicted),
        }
        if name in batch:
            drawn["truth"] = drawing.draw(name, batch[name])
        drawn, mask = sharding.to_host((drawn, batch["mask"]))
        for panel, pictures in drawn.items():
            panels.setdefault(panel, []).append(pictures[mask])
    return {panel: np.concatenate(pictures) for panel, pictures in panels.items()}


def _labelled(labels_N: np.ndarray, known: Mapping | None) -> dict[str, np.ndarray]:
    """Examples of these labels, each with the same known tokens."""
    same = {
        name: np.broadcast_to(x, (len(labels_N), *x.shape)) for name, x in (known or {}).items()
    }
    return {"label": labels_N.astype(np.int32)} | same


def _batch(
    predictor: Predictor, name: str, key: jax.Array | None = None, **values: np.ndarray
) -> dict[str, np.ndarray]:
    """What `predict[name]` says of at most a batch of examples, on the host; `key` is of draws."""
    num, rows = len(next(iter(values.values()))), predictor.rows
    if num > rows:
        raise UserError(f"{num} examples are more than a batch of {rows}.")
    filled = np.minimum(np.array(predictor.own_rows), num - 1)  # with the last one
    batch = predictor.put({key: value[filled] for key, value in values.items()})
    key = jax.random.key(0) if key is None else key
    out = predictor.predict[name](predictor.state, batch, key)
    return {key: value[:num] for key, value in sharding.to_host(out).items()}

"""UViM stage I: labels to a few codes and back, with the image as context (recipe of section 4.4).

B batch, H W pixels, P patches, X pixels of a patch, C channels of a label kind, N tokens.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fsq_jax import quantizers, tasks
from fsq_jax.models.uvim_base import LabelAutoencoder
from fsq_jax.models.vit import patchify, unpatchify
from fsq_jax.runtime.user_error import UserError
from fsq_jax.stages import optim
from fsq_jax.stages.stage import Stage, StageFacts, TrainState, first_state, next_state
from fsq_jax.tasks import drawing
from fsq_jax.tasks.unlabelled import context


@dataclasses.dataclass(frozen=True)
class LabelCoder:
    """A task and the autoencoder of its labels: all that stage II needs of stage I, but weights.

    `variables` are the autoencoder's everywhere; labels and logits are the task's, [B,H,W,...].
    """

    task: Any
    model: LabelAutoencoder

    def patches(self, labels) -> dict[str, jax.Array]:
        """Labels as the model takes them: ids [B,P,X], or real values [B,P,C,X]."""
        cut = {kind: patchify(label, self.model.patch) for kind, label in labels.items()}
        return {k: x.swapaxes(2, 3) for k, x in cut.items()} if self.task.real else cut

    def encode(self, variables, batch) -> jax.Array:
        """Indices int32 [B, N] of a batch's labels, without code dropout."""
        labels, context_BHWC = self.task.to_inputs(batch)
        quantized: Any = self.model.apply(
            variables, self.patches(labels), context_BHWC, method="encode"
        )
        return quantized.indices

    def predict(self, variables, context_BHWC, indices_BN) -> dict[str, jax.Array]:
        """The task's prediction, {name: [B,H,W,...]}, that indices and context stand for."""
        logits: Any = self.model.apply(variables, indices_BN, context_BHWC, method="decode_indices")
        height, width = context_BHWC.shape[1:3]
        return self.task.to_prediction(
            {
                kind: unpatchify(x_BPCX.swapaxes(2, 3), self.model.patch, height, width)
                for kind, x_BPCX in logits.items()
            }
        )

    def preview(self, batch, prediction) -> jax.Array:
        """Pictures [B, H, 3 W, 3]: what the model sees, what it says, what is true."""
        ((name, predicted),) = prediction.items()
        panels = (
            context(self.task, batch) / 2 + 0.5,
            drawing.draw(name, predicted),
            drawing.draw(name, batch[name]),
        )
        return jnp.concatenate(panels, axis=2)


def make_coder(config) -> LabelCoder:
    """The task and the autoencoder that `config.task`, `.quantizer` and `.model` describe."""
    task = tasks.make(**config.task)
    model = LabelAutoencoder(
        quantizer=quantizers.of_config(config),
        kinds=task.kinds,
        real=task.real,
        **config.model,
    )
    return LabelCoder(task, model)


def make_model(config) -> LabelAutoencoder:
    """The autoencoder of `make_coder`."""
    return make_coder(config).model


def make_encode(config):
    """(variables, batch) -> indices int32 [B, N] of the batch's labels."""
    return make_coder(config).encode


def facts_of(config, model: LabelAutoencoder) -> StageFacts:
    """What is recorded of an autoencoder's codebook."""
    return StageFacts(
        codebook_size=model.quantizer.codebook_size,
        levels=quantizers.levels(model.quantizer),
        downsampling=config.data.size // model.code_side,
    )


def make_variables(config, key, batch) -> dict:
    """Initial variables of the autoencoder, {"params": tree, collection: tree}."""
    coder = make_coder(config)
    labels, context = coder.task.to_inputs({n: x[:1] for n, x in batch.items()})
    key_params, _ = jax.random.split(key)
    return dict(coder.model.init({"params": key_params}, coder.patches(labels), context))


def check_size(size: int, patch: int, code_side: int = 1) -> None:
    """Raises a UserError where images of `size` pixels can't be cut as a model wants them."""
    if size % patch or size % code_side:
        raise UserError(f"data.size={size} is not a multiple of {patch=} and of {code_side=}.")


def make(config) -> Stage:
    """The stage: `init`, `update`, and `predict` = {"prediction", "indices", "preview"}.

    Args:
      config: as of configs/uvim_base.py.

    Raises:
      UserError: images don't divide into patches and codes.
    """
    coder = make_coder(config)
    check_size(config.data.size, coder.model.patch, coder.model.code_side)
    optimizer = optim.make_optimizer(total_steps=config.steps, **config.optim)
    return Stage(
        init=_make_init(config, optimizer),
        update=_make_update(config, coder, optimizer),
        predict=_make_predict(coder),
        facts=facts_of(config, coder.model),
        # Products that read one array stay apart: joined, those of queries, keys and values would
        # have no biases added as they are written, and their gradients would first be written side
        # by side.
        gpu_options={"xla_gpu_dot_merger_threshold_mb": 0},
    )


def _make_init(config, optimizer):
    def init(key, batch) -> TrainState:
        variables = make_variables(config, key, batch)
        params = variables.pop("params")
        return first_state(params, optimizer, variables)

    return init


def _make_update(config, coder: LabelCoder, optimizer):
    def update(state: TrainState, batch, key):
        size = batch["image"].shape[0]

        def gradients(params, batch, key):
            part = quantizers.part_of_step(batch["row"], size, key_codebook)
            labels, context = coder.task.to_inputs(batch)
            labels = coder.patches(labels)

            def loss(params):
                (logits, quantized), sums = coder.model.apply(
                    {"params": params, **state.model_state, **part},
                    labels,
                    context,
                    train=True,
                    rngs={"code_dropout": key, "codebook": jax.random.fold_in(key, 1)},
                    mutable=[quantizers.BATCH],
                )
                # A mean over pixels is the same in any order: patch by patch, [B,P,X,C], will do.
                pixels = lambda x: x.swapaxes(2, 3)  # noqa: E731
                targets = jax.tree.map(pixels, labels) if coder.task.real else labels
                task_loss = coder.task.loss(jax.tree.map(pixels, logits), targets).mean()
                metrics = {f"quantizer/{name}": x for name, x in quantized.metrics.items()}
                total = task_loss + quantized.loss
                return total, (sums, metrics | {"task": task_loss, "loss": total})

            grads, (sums, metrics) = jax.grad(loss, has_aux=True)(params)
            return grads, sums, metrics

        key_codebook, key_dropout = jax.random.split(jax.random.fold_in(key, state.step))
        grads, sums, metrics = optim.accumulate(gradients, config.accumulate)(
            state.params, batch | {"row": jnp.arange(size)}, key_dropout
        )
        state = next_state(state, grads, optimizer, config.ema_decay)
        model_state = quantizers.after_step(
            coder.model.quantizer, state.model_state, sums, key_codebook, rest=state
        )
        state = state.replace(model_state=model_state)
        return state, metrics | {"gradient_norm": optax.tree.norm(grads)}

    return update


def _make_predict(coder: LabelCoder) -> dict:
    def variables(state):
        return {"params": state.ema_params, **state.model_state}

    def indices(state, batch, key):
        """{"indices" [B, N]} of the true labels."""
        del key  # nothing is drawn
        return {"indices": coder.encode(variables(state), batch)}

    def prediction(state, batch, key):
        """The task's prediction from the true indices: the best that a stage II can reach."""
        indices_BN = indices(state, batch, key)["indices"]
        return coder.predict(variables(state), context(coder.task, batch), indices_BN)

    def preview(state, batch, key):
        return {"prediction": coder.preview(batch, prediction(state, batch, key))}

    return {"prediction": prediction, "indices": indices, "preview": preview}

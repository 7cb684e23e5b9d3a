"""What stops a run whose numbers have gone wrong, before its last good checkpoint is gone."""

from collections.abc import Mapping

from fsq_jax.runtime.user_error import UserError


class GuardError(UserError):
    """A metric beyond what `config.guard` allows; the message names it, its limit and the step."""


class Guard:
    """Checks the metrics of each step, in order.

    Args:
      max_loss: of the training loss; 0 for no limit.
      max_logit_gap: how far the discriminator's mean logit of real images may be above that of
        reconstructions, which it then tells apart without effort, and teaches the tokenizer
        nothing; 0 for no limit.
      patience: how many steps in a row are beyond a limit before the run is stopped.
    """

    def __init__(self, max_loss: float = 0.0, max_logit_gap: float = 0.0, patience: int = 1):
        if min(max_loss, max_logit_gap) < 0 or patience < 1:
            raise UserError(
                f"guard: {max_loss=} and {max_logit_gap=} must be at least 0, "
                f"{patience=} at least 1."
            )
        self._limits = {
            "max_loss": (max_loss, "A lower learning rate, more warm-up or a clip_norm may help."),
            "max_logit_gap": (
                max_logit_gap,
                "A discriminator that learns before it is listened to (discriminator_start below "
                "adversarial_start), loss.lecam, more loss.r1 or less loss.adversarial may "
                "help.",
            ),
        }
        self._patience, self._beyond = patience, dict.fromkeys(self._limits, 0)

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a step's metrics.

        Raises:
          GuardError: one has been beyond its limit for `patience` steps in a row.
        """
        found = {"max_loss": values.get("loss")}
        if "real_logit" in values:
            found["max_logit_gap"] = values["real_logit"] - values["fake_logit"]
        for name, value in found.items():
            limit, advice = self._limits[name]
            if not limit or value is None or value <= limit:
                self._beyond[name] = 0
                continue
            self._beyond[name] += 1
            if self._beyond[name] >= self._patience:
                what = "loss" if name == "max_loss" else "real_logit - fake_logit"
                raise GuardError(
                    f"Step {step}: {what} = {value:.4g} is above guard.{name}={limit:g} for "
                    f"{self._patience} step{'s' * (self._patience > 1)} in a row. Checkpoints of "
                    f"earlier steps are kept, for --config.init_from=WORKDIR. {advice}"
                )

"""What the pages do, without the pages: uint8 pictures in, uint8 pictures out.

N images, H W pixels, h w tokens along the sides, L = h w, T decoding steps, K codes.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from fsq_jax.demo import pictures
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.runs import answers
from fsq_jax.runtime.user_error import UserError


class Model:
    """Trained weights, and pictures to try them on.

    predictor: what `runs.load` gives.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    def held_out(self, number: int) -> np.ndarray | None:
        """A picture that was not trained on, enlarged; None where the data isn't here."""
        try:
            dataset = self.predictor.dataset(self.predictor.eval_split)
        except (UserError, OSError):
            return None
        return pictures.enlarged(dataset[number % len(dataset)]["image"])

    def seen(self, picture: np.ndarray | None) -> np.ndarray:
        """A picture as the model gets it, [H,W,3] in [0, 1]; a UserError where there is none."""
        if picture is None:
            raise UserError("There is no picture: upload one.")
        return answers.as_evaluated(self.predictor.config, np.ascontiguousarray(picture[..., :3]))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A picture as a tokenizer has it.

    Attributes:
      reconstruction, codes: pictures, of what is decoded and of the indices.
      indices: int32 [h,w].
      text: what it took.
    """

    reconstruction: np.ndarray
    codes: np.ndarray
    indices: np.ndarray
    text: str


class Tokenizer(Model):
    """Reconstructions, and codes that are painted."""

    def __init__(self, predictor: Predictor):
        super().__init__(predictor)
        self.size = predictor.facts.codebook_size
        self.levels = tuple(predictor.facts.levels) or (self.size,)
        self.colours_K3 = pictures.colours(predictor.facts.levels, self.size)

    def encode(self, picture: np.ndarray | None) -> Encoded:
        """A picture's codes, and what is decoded of them."""
        image = self.seen(picture)
        decoded, indices = answers.reconstruct(self.predictor, image)
        psnr = -10 * math.log10(max(float(np.square(decoded - image).mean()), 1e-10))
        bits = indices.size * math.log2(self.size)
        text = (
            f"{indices.size} tokens of {self.size} codes, {len(np.unique(indices))} of them "
            f"different: {bits / 8:.0f} bytes for {image.shape[0]} x {image.shape[1]} pixels, "
            f"which are {image.size} bytes. PSNR {psnr:.1f} dB."
        )
        codes = pictures.code_map(indices, self.colours_K3)
        return Encoded(pictures.enlarged(decoded), codes, indices, text)

    def code(self, digits: Sequence[int]) -> np.ndarray:
        """What a code looks like: its colour, beside an image of nothing else."""
        index = pictures.index_of(digits, self.levels)
        side = self.predictor.config.data.size // self.predictor.facts.downsampling
        decoded = self._decoded(np.full((side, side), index, np.int32))
        return np.concatenate(
            [np.broadcast_to(self.colours_K3[index], decoded.shape), decoded], axis=1
        )

    def paint(
        self, indices_hw: np.ndarray | None, mask_HW: np.ndarray, digits: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(indices, their map, the picture decoded of them) with a code where the brush was."""
        if indices_hw is None:
            raise UserError("There are no codes yet: encode a picture first.")
        chosen = pictures.painted_tokens(mask_HW, len(indices_hw))
        index = pictures.index_of(digits, self.levels)
        indices = np.where(chosen, index, indices_hw).astype(np.int32)
        decoded = pictures.enlarged(self._decoded(indices))
        return indices, pictures.code_map(indices, self.colours_K3), decoded

    def _decoded(self, indices_hw: np.ndarray) -> np.ndarray:
        return answers.decode(self.predictor, indices_hw.reshape(1, -1))[0]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a masked transformer draws."""

    num_steps: int
    choice_temperature: float
    guidance: float
    seed: int


class MaskGIT(Model):
    """Samples of classes and completions of pictures, step by step."""

    def __init__(self, predictor: Predictor):
        super().__init__(predictor)
        self.class_names = list(answers.class_names(predictor))
        self.num_tokens = predictor.facts.grid**2
        self.most = predictor.rows  # images at once
        sampling = predictor.facts.sampling
        self.defaults = Sampler(
            sampling["num_steps"], sampling["choice_temperature"], sampling["guidance"], seed=0
        )
        self._of_steps = {}

    def draw(
        self, names: Sequence[str], num: int, sampler: Sampler
    ) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        """(images, all steps so far, a line of text) after each step: `num` images of each class,
        as many as are drawn at once."""
        if not names:
            raise UserError("Choose a class.")
        labels_N = np.repeat([self.class_names.index(name) for name in names], num)[: self.most]
        return self._steps(labels_N, sampler, None, columns=num)

    def complete(
        self,
        picture: np.ndarray | None,
        mask_HW: np.ndarray,
        name: str,
        num: int,
        sampler: Sampler,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        """The same of a picture, drawn again where the brush was."""
        image = self.seen(picture)
        if not mask_HW.any():
            raise UserError("Nothing is painted over: brush over what is to be drawn again.")
        white = np.repeat(mask_HW[..., None], 3, -1).astype(np.uint8) * 255
        known = answers.known_tokens(self.predictor, image, self.seen(white).mean(-1) > 0.5)
        labels_N = np.full(num, self.class_names.index(name))
        return self._steps(labels_N, sampler, known, columns=num)

    def _steps(self, labels_N, sampler: Sampler, known, columns: int):
        predictor, steps = self.predictor, int(sampler.num_steps)
        if steps not in self._of_steps:  # another number of steps is another program
            self._of_steps[steps] = answers.with_overrides(predictor, {"sampling.num_steps": steps})
        tokens_NTL, again_NTL = answers.decoding_steps(
            self._of_steps[steps],
            labels_N,
            int(sampler.seed),
            known,
            guidance=sampler.guidance,
            choice_temperature=sampler.choice_temperature,
        )
        frames = []
        for step in range(steps):
            images = answers.decode(predictor, tokens_NTL[:, step])
            frames.append(pictures.unfinished(images, again_NTL[:, step]))
            left = again_NTL[:, step].sum(1).max()
            text = f"Step {step + 1} of {steps}: {left} of {self.num_tokens} tokens are open."
            yield pictures.grid(frames[-1], columns), pictures.film(frames, steps), text


class UViM(Model):
    """Labels of pictures."""

    def predict(self, picture: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(what the model sees, what it says), as pictures."""
        panels = answers.labels_of_image(self.predictor, self.seen(picture))
        seen, said = (pictures.enlarged(panels[name][0]) for name in ("input", "prediction"))
        return seen, said

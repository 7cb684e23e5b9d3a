"""AdamW and big_vision's Adafactor in NumPy and float64, on flat dicts {path: array}."""

import numpy as np


def cosine(step, total_steps):
    return (1 + np.cos(np.pi * step / total_steps)) / 2


def clipped(grads, clip_norm):
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
    return {name: scale * g for name, g in grads.items()}


def is_kernel(path: str) -> bool:
    return path.split("/")[-1] == "kernel"


class AdamW:
    """Loshchilov and Hutter (2019), weight decay on kernels alone and times the learning rate."""

    def __init__(self, b1, b2, weight_decay, clip_norm):
        self.b1, self.b2, self.weight_decay, self.clip_norm = b1, b2, weight_decay, clip_norm
        self.m, self.v, self.step = {}, {}, 0

    def update(self, params, grads, rate):
        self.step += 1
        grads, after = clipped(grads, self.clip_norm), {}
        for name, g in grads.items():
            self.m[name] = self.b1 * self.m.get(name, 0.0) + (1 - self.b1) * g
            self.v[name] = self.b2 * self.v.get(name, 0.0) + (1 - self.b2) * g**2
            m = self.m[name] / (1 - self.b1**self.step)
            v = self.v[name] / (1 - self.b2**self.step)
            decay = self.weight_decay * is_kernel(name)
            after[name] = params[name] - rate * (m / (np.sqrt(v) + 1e-8) + decay * params[name])
        return after


class Adafactor:
    """big_vision's: factored from 32 x 32 on, decay 1 - t^-0.8 up to a cap, no clipping of updates,
    weight decay that the learning rate does not multiply. The average is exact, not bfloat16."""

    def __init__(self, b1, cap, weight_decay, clip_norm, multiplier):
        self.b1, self.cap, self.weight_decay = b1, cap, weight_decay
        self.clip_norm, self.multiplier = clip_norm, multiplier
        self.m, self.v, self.step = {}, {}, 0

    def update(self, params, grads, learning_rate, schedule):
        self.step += 1
        decay = min(self.cap, 1 - self.step**-0.8)
        grads, after = clipped(grads, self.clip_norm), {}
        for name, g in grads.items():
            v = self.v.setdefault(name, [0.0] * 3)
            square = g**2 + 1e-30
            *_, columns, rows = (0, 0, *np.argsort(g.shape, kind="stable"))
            means = square, square.mean(axis=rows, keepdims=True), 0.0
            if g.ndim > 1:
                means = *means[:2], square.mean(axis=columns, keepdims=True)
            self.v[name] = v = [
                decay * old + (1 - decay) * new for old, new in zip(v, means, strict=True)
            ]
            factored = g.ndim > 1 and sorted(g.shape)[-2] >= 32
            if factored:
                scale = v[1] * v[2] / v[1].mean(axis=columns, keepdims=True)
            else:
                scale = v[0]
            self.m[name] = self.b1 * self.m.get(name, 0.0) + (1 - self.b1) * g / np.sqrt(scale)
            rate = learning_rate * self.multiplier(name)
            kept = self.weight_decay * is_kernel(name) * params[name]
            after[name] = params[name] - schedule * (rate * self.m[name] + kept)
        return after

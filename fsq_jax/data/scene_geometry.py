"""Rays against the five kinds of objects of a scene: where they meet, and the normal there.

Every kind lives in a space of its own, about as large as the unit sphere, with y up. A ray is
`o + t d`; directions need not be of unit length, so t means the same before and after a scaling.

Legend: n rays or points; arrays of vectors are [3, n] (rows x, y, z), float32.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

_BOX = 0.74  # half an edge
_CYLINDER = (0.68, 0.88)  # radius, half the height
_CONE = (0.95, 0.9)  # radius of the base, half the height
_TORUS = (0.7, 0.29)  # radius of the ring, radius of the tube
_MARCH_STEPS = 28
_MARCH_HIT = 0.01


@dataclasses.dataclass(frozen=True)
class Kind:
    """A shape: `bottom` is how far it reaches below its centre, `bound` a sphere around it."""

    bottom: float
    bound: float
    intersect: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (o, d) -> t, inf for a miss
    normal: Callable[[np.ndarray], np.ndarray]  # points on the surface -> normals


@dataclasses.dataclass(frozen=True)
class Solid:
    """A kind that stands in the world: centre (metres), size, turn about the vertical (radians)."""

    kind: str
    centre: tuple[float, float, float]
    size: float
    turn: float

    def to_local(self, vectors: np.ndarray, is_point: bool) -> np.ndarray:
        """Vectors or points of the world [3, n] in the solid's own space."""
        x, y, z = vectors
        if is_point:
            x, y, z = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        cosine, sine = float(np.cos(self.turn)) / self.size, float(np.sin(self.turn)) / self.size
        return np.stack([cosine * x - sine * z, y / self.size, sine * x + cosine * z])

    def intersect(self, o: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Distances t [n] at which rays of the world enter the solid; inf where they miss."""
        o, d = self.to_local(o, is_point=True), self.to_local(d, is_point=False)
        middle, reach = _sphere_span(o, d, KINDS[self.kind].bound)
        near = np.flatnonzero((reach > 0) & (middle + reach > 0))
        t = np.full(reach.shape, np.inf, np.float32)
        if near.size:
            o, d = (v if v.shape[1] == 1 else v[:, near] for v in (o, d))
            with np.errstate(divide="ignore", invalid="ignore"):
                t[near] = KINDS[self.kind].intersect(o, d)
        return t

    def normal(self, points: np.ndarray) -> np.ndarray:
        """Unit normals [3, n] in the world at points of the world on the surface."""
        x, y, z = KINDS[self.kind].normal(self.to_local(points, is_point=True))
        cosine, sine = float(np.cos(self.turn)), float(np.sin(self.turn))
        return np.stack([cosine * x + sine * z, y, cosine * z - sine * x])


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _sphere_span(o: np.ndarray, d: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half length (in t) of each ray's way through a sphere; half length 0 = miss."""
    squared = _dot(d, d)
    middle = -_dot(o, d) / squared
    inside = middle * middle - (_dot(o, o) - radius * radius) / squared
    return middle, np.sqrt(np.maximum(inside, 0))


def _first(enter: np.ndarray, leave: np.ndarray) -> np.ndarray:
    """The start of an interval of a ray in a convex body; inf where empty or behind the origin."""
    return np.where((enter < leave) & (enter > 0), enter, np.float32(np.inf))


def _slab(o: np.ndarray, d: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    a, b = (-half - o) / d, (half - o) / d
    return np.minimum(a, b), np.maximum(a, b)


def _intersect_sphere(o, d):
    middle, reach = _sphere_span(o, d, 1.0)
    return _first(middle - reach, middle + reach)


def _intersect_box(o, d):
    enter, leave = _slab(o, d, _BOX)
    return _first(enter.max(axis=0), leave.min(axis=0))


def _normal_box(p):
    axis = np.abs(p).argmax(axis=0)
    return np.where(np.arange(3)[:, None] == axis, np.sign(p), np.float32(0))


def _intersect_cylinder(o, d):
    radius, half = _CYLINDER
    a = d[0] * d[0] + d[2] * d[2]
    middle = -(o[0] * d[0] + o[2] * d[2]) / a
    inside = middle * middle - (o[0] * o[0] + o[2] * o[2] - radius * radius) / a
    reach = np.sqrt(np.maximum(inside, 0))
    enter, leave = _slab(o[1], d[1], half)
    return _first(np.maximum(enter, middle - reach), np.minimum(leave, middle + reach))


def _normal_cylinder(p):
    radius, half = _CYLINDER
    cap = half - np.abs(p[1]) < radius - np.hypot(p[0], p[2])
    zero = np.zeros_like(p[0])
    return np.where(cap, [zero, np.sign(p[1]), zero], [p[0] / radius, zero, p[2] / radius])


def _intersect_cone(o, d):
    radius, half = _CONE
    slope = (radius / (2 * half)) ** 2
    y = half - o[1]  # depth below the tip
    a = d[0] * d[0] + d[2] * d[2] - slope * d[1] * d[1]
    b = o[0] * d[0] + o[2] * d[2] + slope * y * d[1]
    c = o[0] * o[0] + o[2] * o[2] - slope * y * y
    inside = b * b - a * c
    reach = np.sqrt(np.maximum(inside, 0))
    best = np.full(reach.shape, np.inf, np.float32)
    for t in ((-b - reach) / a, (-b + reach) / a):
        on_cone = (inside > 0) & (t > 0) & (np.abs(o[1] + t * d[1]) < half)
        best = np.where(on_cone & (t < best), t, best)
    t = (-half - o[1]) / d[1]
    on_base = (t > 0) & (np.hypot(o[0] + t * d[0], o[2] + t * d[2]) < radius)
    return np.where(on_base & (t < best), t, best)


def _normal_cone(p):
    radius, half = _CONE
    around = np.maximum(np.hypot(p[0], p[2]), np.float32(1e-6))
    side = np.stack([p[0] / around, np.full_like(p[0], radius / (2 * half)), p[2] / around])
    side /= float(np.hypot(1.0, radius / (2 * half)))
    down = np.array([[0], [-1], [0]], np.float32)
    on_base = p[1] + half < (half - p[1]) * (radius / (2 * half)) - around + np.float32(1e-3)
    return np.where(on_base & (p[1] < -half + 0.02), down, side)


def _torus_distance(p):
    ring = np.hypot(p[0], p[1]) - _TORUS[0]
    return np.hypot(ring, p[2]) - _TORUS[1]


def _intersect_torus(o, d):
    """Sphere tracing: a step as long as the distance to the surface never passes through it."""
    middle, reach = _sphere_span(o, d, sum(_TORUS))
    end, t = middle + reach, np.maximum(middle - reach, 0)
    length = np.sqrt(_dot(d, d))
    for _ in range(_MARCH_STEPS):
        t = t + _torus_distance(o + t * d) / length
    return np.where((_torus_distance(o + t * d) < _MARCH_HIT) & (t < end), t, np.float32(np.inf))


def _normal_torus(p):
    around = np.maximum(np.hypot(p[0], p[1]), np.float32(1e-6))
    scale = 1 - _TORUS[0] / around
    normal = np.stack([p[0] * scale, p[1] * scale, p[2]])
    return normal / np.maximum(np.sqrt(_dot(normal, normal)), np.float32(1e-6))


KINDS = {
    "sphere": Kind(1.0, 1.0, _intersect_sphere, lambda p: p),
    "box": Kind(_BOX, _BOX * 3**0.5, _intersect_box, _normal_box),
    "cylinder": Kind(
        _CYLINDER[1], float(np.hypot(*_CYLINDER)), _intersect_cylinder, _normal_cylinder
    ),
    "cone": Kind(_CONE[1], float(np.hypot(*_CONE)), _intersect_cone, _normal_cone),
    "torus": Kind(sum(_TORUS), sum(_TORUS), _intersect_torus, _normal_torus),
}

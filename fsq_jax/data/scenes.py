"""Procedural 3-D scenes: record i is drawn and rendered from i alone, so nothing is stored.

One large object, the label (five kinds in six colours), and up to two small ones stand on a floor
in front of a wall. A record carries what every task of the paper needs: the picture, its depth in
metres, its segments (stuff and things), its label. What a scene holds does not depend on the
resolution.

Legend: S side of the picture, n rays; arrays of vectors are [3, n] (rows x, y, z), float32.
World: metres, x right, y up, z away from the camera; the floor is y = 0.
"""

import colorsys
import dataclasses

import numpy as np

from fsq_jax.data import scene_geometry
from fsq_jax.runtime.user_error import UserError

SIZES = {"train": 50_000, "validation": 1_000}
KIND_NAMES = tuple(scene_geometry.KINDS)
COLOURS = {
    "red": (0.86, 0.13, 0.12),
    "yellow": (0.95, 0.80, 0.10),
    "green": (0.13, 0.62, 0.20),
    "cyan": (0.15, 0.75, 0.80),
    "blue": (0.13, 0.25, 0.85),
    "magenta": (0.82, 0.20, 0.72),
}
CLASS_NAMES = tuple(f"{colour} {kind}" for kind in KIND_NAMES for colour in COLOURS)
SEGMENT_NAMES = ("void", "wall", "floor", *KIND_NAMES)
NUM_STUFF = 2  # wall and floor; the kinds of objects are things
MIN_DEPTH, MAX_DEPTH = 0.5, 10.0

_SEEDS = {"train": 20_309, "validation": 15_505}
_WALL, _FLOOR = 0, 1  # surfaces of a scene; its objects follow
_FOCAL = 2.55  # of the picture's half width
_AMBIENT, _DIFFUSE, _SPECULAR = 0.5, 0.62, 0.35
_SUPERSAMPLE = 2  # colour rays along each side of a pixel


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object of a scene with its colour and its texture (plain, stripes or checker)."""

    solid: scene_geometry.Solid
    colour: str
    texture: str


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that a picture is rendered from. The first thing is the main one."""

    things: tuple[Thing, ...]
    camera: np.ndarray  # [3]
    axes: np.ndarray  # [3, 3] rows: right, up, forward
    light: np.ndarray  # [3] towards the light
    wall_z: float
    stuff_colours: np.ndarray  # [2, 3] wall, floor
    tile: float  # contrast of the floor's tiles

    @property
    def label(self) -> int:
        main = self.things[0]
        return KIND_NAMES.index(main.solid.kind) * len(COLOURS) + list(COLOURS).index(main.colour)


def _unit(vector) -> np.ndarray:
    vector = np.asarray(vector, np.float64)
    return (vector / np.sqrt((vector * vector).sum())).astype(np.float32)


def _draw_thing(rng: np.random.Generator, x: float, z: float, size: float) -> Thing:
    kind = KIND_NAMES[rng.integers(len(KIND_NAMES))]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    texture = ("plain", "plain", "stripes", "checker")[rng.integers(4)]
    turn = rng.uniform(-0.6, 0.6) + (np.pi / 4 if kind == "box" else 0.0)
    height = scene_geometry.KINDS[kind].bottom * size
    return Thing(scene_geometry.Solid(kind, (x, height, z), size, float(turn)), colour, texture)


def draw_scene(split: str, index: int) -> Scene:
    """The scene of record `index` of a split; the same on every machine."""
    rng = np.random.Generator(np.random.PCG64((_SEEDS[split], index)))
    x, z = float(rng.uniform(-0.3, 0.3)), float(rng.uniform(-0.25, 0.25))
    things = [_draw_thing(rng, x, z, float(rng.uniform(0.92, 1.12)))]
    first_side = rng.choice([-1, 1])
    for i in range(rng.choice(3, p=(0.5, 0.35, 0.15))):
        side = first_side * (-1) ** i
        x, z = float(side * rng.uniform(1.5, 2.0)), float(rng.uniform(0.5, 1.7))
        things.append(_draw_thing(rng, x, z, float(rng.uniform(0.3, 0.45))))
    camera = np.array([rng.uniform(-0.6, 0.6), rng.uniform(2.0, 2.8), -5.0], np.float32)
    forward = _unit(np.array([0.0, 0.85, 0.2]) - camera)
    right = _unit(np.cross([0.0, 1.0, 0.0], forward))
    light = _unit([rng.choice([-1, 1]) * rng.uniform(0.4, 0.9), 1.4, -rng.uniform(0.6, 0.9)])
    wall = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.03, 0.16), rng.uniform(0.85, 1.0))
    floor = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.05, 0.2), rng.uniform(0.55, 0.78))
    return Scene(
        things=tuple(things),
        camera=camera,
        axes=np.stack([right, np.cross(forward, right), forward]),
        light=light,
        wall_z=float(rng.uniform(2.6, 3.4)),
        stuff_colours=np.array([wall, floor], np.float32),
        tile=float(rng.choice([0.0, 0.12])),
    )


def _camera_rays(scene: Scene, size: int) -> np.ndarray:
    """Directions [3, size * size] in raster order; one unit of t is one metre of depth."""
    steps = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1) / _FOCAL
    right, up, forward = scene.axes
    rows = forward[:, None] - steps * up[:, None]
    return (rows[:, :, None] + (right[:, None] * steps)[:, None, :]).reshape(3, -1)


def _trace(scene: Scene, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth [n] and surface [n] (wall, floor, things from 2 on) that camera rays meet first."""
    o = scene.camera[:, None]
    t = (scene.wall_z - o[2]) / d[2]
    surface = np.full(t.shape, _WALL, np.int32)
    candidates = [np.where(d[1] < 0, -o[1] / np.minimum(d[1], -1e-6), np.float32(np.inf))]
    candidates += [thing.solid.intersect(o, d) for thing in scene.things]
    for i, candidate in enumerate(candidates, start=_FLOOR):
        nearer = candidate < t
        t, surface = np.where(nearer, candidate, t), np.where(nearer, np.int32(i), surface)
    return t, surface


def _texture(thing: Thing, points: np.ndarray) -> np.ndarray:
    """Brightness [n] of a thing's own pattern at points of the world."""
    if thing.texture == "plain":
        return np.ones(points.shape[1], np.float32)
    x, y, z = np.floor(thing.solid.to_local(points, is_point=True) * 1.9 + 0.5)
    parity = (y if thing.texture == "stripes" else x + y + z) % 2
    return 1 - np.float32(0.3) * parity


def _shadow(scene: Scene, points: np.ndarray) -> np.ndarray:
    """True [n] where a thing stands between a point and the light."""
    light = scene.light[:, None]
    hits = [np.isfinite(thing.solid.intersect(points, light)) for thing in scene.things]
    return np.any(hits, axis=0)


def _surface_colour(scene: Scene, points, surface) -> tuple[np.ndarray, np.ndarray]:
    """Colours and normals, both [3, n], of the surfaces at the points that rays met."""
    colour = scene.stuff_colours.T[:, np.minimum(surface, _FLOOR)]
    tile = (np.floor(points[0] * 0.8 + 0.5) + np.floor(points[2] * 0.8)) % 2
    colour = colour * np.where(surface == _FLOOR, 1 - scene.tile * tile, 1).astype(np.float32)
    normal = np.where(
        surface == _WALL,
        np.array([[0], [0], [-1]], np.float32),
        np.array([[0], [1], [0]], np.float32),
    )
    for i, thing in enumerate(scene.things, start=_FLOOR + 1):
        here = np.flatnonzero(surface == i)
        if here.size:
            own = np.array(COLOURS[thing.colour], np.float32)[:, None]
            colour[:, here] = own * _texture(thing, points[:, here])
            normal[:, here] = thing.solid.normal(points[:, here])
    return colour, normal


def _shade(scene: Scene, d, points, surface) -> np.ndarray:
    """Lit colours [3, n] in [0, 1]: ambient, diffuse with cast shadows, and a highlight."""
    colour, normal = _surface_colour(scene, points, surface)
    facing = (normal * scene.light[:, None]).sum(axis=0)
    lit = facing > 0
    where = np.flatnonzero(lit)
    lit[where] = ~_shadow(scene, points[:, where] + np.float32(0.02) * normal[:, where])
    mirrored = scene.light[:, None] - 2 * facing * normal
    shine = np.maximum((mirrored * d).sum(axis=0) / np.sqrt((d * d).sum(axis=0)), 0)
    for _ in range(5):  # to the power of 32
        shine = shine * shine
    shine = shine * (lit & (surface > _FLOOR))
    ambient = _AMBIENT * (0.85 + 0.15 * normal[1])
    light = ambient + _DIFFUSE * np.where(lit, facing, np.float32(0))
    return np.clip(colour * light + _SPECULAR * shine, 0, 1)


def render(scene: Scene, size: int) -> dict[str, np.ndarray]:
    """The arrays of a scene: image uint8 [S,S,3], depth float32 [S,S] in metres along the optical
    axis, segments int32 [S,S,2] (an index of SEGMENT_NAMES; the instance: 0 for stuff, the main
    object 1, then 2 and 3).

    Depth and segments are those of the pixels' centres; only the colours are antialiased.
    """
    depth, surface = _trace(scene, _camera_rays(scene, size))
    classes = [1 + KIND_NAMES.index(thing.solid.kind) + NUM_STUFF for thing in scene.things]
    semantic = np.array([1, 2, *classes], np.int32)[surface]
    instance = np.maximum(surface - _FLOOR, 0)

    fine = size * _SUPERSAMPLE
    d = _camera_rays(scene, fine)
    fine_depth, fine_surface = _trace(scene, d)
    points = scene.camera[:, None] + fine_depth * d
    colour = _shade(scene, d, points, fine_surface)
    blocks = colour.reshape(3, size, _SUPERSAMPLE, size, _SUPERSAMPLE).mean(axis=(2, 4))
    return {
        "image": np.ascontiguousarray(np.rint(blocks * 255).astype(np.uint8).transpose(1, 2, 0)),
        "depth": np.clip(depth, MIN_DEPTH, MAX_DEPTH).astype(np.float32).reshape(size, size),
        "segments": np.stack([semantic, instance], axis=-1).reshape(size, size, 2),
    }


class Scenes:
    """Random access to the scenes of a split: image, depth, segments and label of each.

    A split has no end of its own: `len` is its usual size, and any index is a record. Train and
    validation are drawn from different seeds. Raises UserError for an unknown split or a size
    below 8 pixels.
    """

    name = "scenes"
    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)

    def __init__(self, split: str, size: int):
        if split not in SIZES:
            raise UserError(f"scenes has no split {split!r}; it has {', '.join(SIZES)}.")
        if size < 8:
            raise UserError(f"A scene needs 8 pixels or more along a side, not {size}.")
        self.split, self.size = split, size

    def __len__(self) -> int:
        return SIZES[self.split]

    def __getitem__(self, index: int) -> dict:
        scene = draw_scene(self.split, int(index))
        return render(scene, self.size) | {"label": scene.label}

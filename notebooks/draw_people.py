"""The program that draws the sample: heads in space, lit and photographed, by NumPy alone.

Notebook 0.1 shows what it draws; `draw_sample` writes it all. Lengths are in units of the
distance between the eyes; x is right, y down, z towards the camera. A surface is a grid of
points that know where they are, where they face, their colour, and their part of the face.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
from joblib import delayed, Parallel
from scipy.interpolate import PchipInterpolator

from helpers import LANDMARK_COLUMNS, PARTS

# ------------------------------------------------------------------------- points with a colour


def step(low, high, x):
    """0 below `low`, 1 above `high`, smooth in between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def bump(x, middle, width):
    return np.exp(-(((x - middle) / width) ** 2))


def curve(knots, values):
    """A smooth curve through a few values, as a function of arrays (a table, looked up)."""
    table = np.linspace(knots[0], knots[-1], 512)
    fine = PchipInterpolator(knots, values)(table).astype(np.float32)
    return lambda x: np.interp(x, table, fine).astype(np.float32)


def streaks(rng, rows, columns, along, across):
    """Smooth noise of variance 1, (rows, columns); blobs are `along` x `across` pixels."""
    noise = cv2.GaussianBlur(
        rng.standard_normal((rows, columns), dtype=np.float32),
        (0, 0),
        sigmaX=across,
        sigmaY=along,
    )
    return noise / noise.std()


PART = {"background": 0} | {name: number for number, name in enumerate(PARTS, start=1)}
DROP = 255  # a hole: points of a surface that are not drawn


@dataclass
class Cloud:
    """Points of surfaces: place, normal, linear colour (N, 3), part, gloss and follow (N,).

    `follow` is how far a point moves with the body instead of the head; -1 marks clear glass.
    """

    xyz: np.ndarray
    normal: np.ndarray
    colour: np.ndarray
    part: np.ndarray
    gloss: np.ndarray
    follow: np.ndarray

    @staticmethod
    def join(clouds):
        return Cloud(
            *(
                np.concatenate([getattr(cloud, field.name) for cloud in clouds])
                for field in fields(Cloud)
            )
        )

    def keep(self, mask):
        return Cloud(*(getattr(self, field.name)[mask] for field in fields(Cloud)))


def surface(xyz, part, colour, gloss=0.1, follow=0.0, rough=None):
    """A grid of points (rows, columns, 3) as a Cloud.

    Seen from outside, columns go to the right and rows down.
    """
    xyz = np.asarray(xyz, np.float32)
    across, down = np.empty_like(xyz), np.empty_like(xyz)
    across[:, 1:-1], down[1:-1] = xyz[:, 2:] - xyz[:, :-2], xyz[2:] - xyz[:-2]
    across[:, 0], across[:, -1], down[0], down[-1] = (
        across[:, 1],
        across[:, -2],
        down[1],
        down[-2],
    )
    normal = np.stack([
        across[..., 1] * down[..., 2] - across[..., 2] * down[..., 1],
        across[..., 2] * down[..., 0] - across[..., 0] * down[..., 2],
        across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0],
    ], -1)  # fmt: skip
    normal /= np.sqrt((normal**2).sum(-1, keepdims=True)) + 1e-9
    if rough is not None:
        normal = normal + np.asarray(rough, np.float32)
        normal /= np.sqrt((normal**2).sum(-1, keepdims=True)) + 1e-9
    shape = xyz.shape[:2]

    def fill(value, kind, tail=()):
        return np.broadcast_to(np.asarray(value, kind), shape + tail).reshape(-1, *tail)

    part = fill(PART[part] if isinstance(part, str) else part, np.uint8)
    cloud = Cloud(
        xyz.reshape(-1, 3),
        normal.reshape(-1, 3),
        fill(colour, np.float32, (3,)),
        part,
        fill(gloss, np.float32),
        fill(follow, np.float32),
    )
    return cloud.keep(part != DROP) if (part == DROP).any() else cloud


def ball(centre, radii, part, colour, density, gloss=0.3, follow=0.0):
    rows, columns = (
        max(6, int(3.2 * max(radii) * density)),
        max(8, int(6.4 * max(radii) * density)),
    )
    v, u = np.meshgrid(
        np.linspace(0, np.pi, rows), np.linspace(-np.pi, np.pi, columns), indexing="ij"
    )
    return surface(
        np.asarray(centre)
        + np.asarray(radii)
        * np.stack([np.sin(v) * np.sin(u), -np.cos(v), np.sin(v) * np.cos(u)], -1),
        part,
        colour,
        gloss,
        follow,
    )


def tube(path, radius, part, colour, density, gloss=0.3, follow=0.0):
    """A round tube of `radius` (a number, or one per point) along `path` (K, 3)."""
    path = np.asarray(path, float)
    length = np.r_[0, np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()]
    rows = max(4, int(length[-1] * density))
    at = np.linspace(0, length[-1], rows)
    middle = np.stack([np.interp(at, length, path[:, axis]) for axis in range(3)], -1)
    radius = np.interp(at, length, np.broadcast_to(radius, len(path)))[:, None, None]
    along = np.gradient(middle, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    side = np.cross(along, np.where(np.abs(along[:, 2:]) > 0.9, [[1.0, 0, 0]], [[0, 0, 1.0]]))
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    other = np.cross(along, side)
    u = np.linspace(0, 2 * np.pi, max(8, int(6.4 * radius.max() * density)))[None, :, None]
    return surface(
        middle[:, None] + radius * (np.cos(u) * side[:, None] - np.sin(u) * other[:, None]),
        part,
        colour,
        gloss,
        follow,
    )


# -------------------------------------------------------------------------------- camera, light


def rotation(angles):
    """The rotation (3, 3) for yaw, pitch and roll in radians."""
    (sy, sp, sr), (cy, cp, cr) = np.sin(angles), np.cos(angles)
    about_y, about_x = (
        np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]),
        np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]),
    )
    return (np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]) @ about_x @ about_y).astype(
        np.float32
    )


class Camera:
    """A pinhole camera: points of the head's own frame to pixels of a picture.

    `size` is (width, height) in pixels; shot.distance is in eye distances.
    """

    def __init__(self, shot, size, unit, centre):
        self.size, self.unit, self.centre, self.distance = (
            size,
            unit,
            np.asarray(centre, np.float32),
            np.float32(shot.distance),
        )
        self.head, self.body = rotation(shot.angles), rotation(shot.angles * [0.35, 0.1, 0.2])

    def pose(self, xyz, follow=0.0, pivot=(0, 1.2, -0.4)):
        """Turns points about the neck: those that follow the body less than the head."""
        about = np.asarray(xyz, np.float32) - np.array(pivot, np.float32)
        turned, follow = about @ self.head.T, np.broadcast_to(np.float32(follow), len(about))
        moved = np.flatnonzero(follow > 0)
        turned[moved] += follow[moved, None] * (about[moved] @ self.body.T - turned[moved])
        return turned + np.array(pivot, np.float32)

    def project(self, posed):
        near = self.distance / (self.distance - (posed[:, 2:] - 1.2))
        return (posed[:, :2] - np.float32([0, 0.3])) * near * np.float32(
            self.unit
        ) + self.centre


def splat(pixels, depth, size):
    """The number of the nearest point at each pixel, (height, width); -1 where there is none.

    A pixel sees the points that fall on it or on its upper left neighbours.
    """
    column, row = (
        np.floor(pixels[:, 0]).astype(np.int32) + 1,
        np.floor(pixels[:, 1]).astype(np.int32) + 1,
    )
    seen = np.flatnonzero((column >= 0) & (column <= size[0]) & (row >= 0) & (row <= size[1]))
    wide = size[0] + 2
    place = row[seen].astype(np.int64) * wide + column[seen]
    code = ((depth[seen] + 20) * 1e6).astype(np.int64) << 24 | seen
    nearest = np.full(wide * (size[1] + 2), -1, np.int64)
    for shift in (0, 1, wide, wide + 1):  # a point covers 2 x 2 pixels: no gaps
        np.maximum.at(nearest, place + shift, code)
    nearest = nearest.reshape(size[1] + 2, wide)[1:-1, 1:-1]
    around = np.pad(nearest, 1, mode="edge")
    closest = np.max(
        [
            around[1 + dy : size[1] + 1 + dy, 1 + dx : size[0] + 1 + dx]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ],
        axis=0,
    )
    far = (nearest >> 24).astype(np.float32) / 1e6
    # What lies far behind most of its neighbours is seen through a gap.
    hole = cv2.medianBlur(far, 5) - far > 0.1
    nearest = np.where(hole, closest, nearest)
    return np.where(nearest >= 0, nearest & 0xFFFFFF, -1).astype(np.int32)


def shadow(posed, index, lamp, grid=150, span=3.4):
    """Share of the lamp's light that reaches each pixel: a second z-buffer, from the lamp."""
    side = np.cross(lamp, [0, 1, 0.3])
    side /= np.linalg.norm(side)
    basis = np.stack([side, np.cross(lamp, side), lamp], 1).astype(np.float32)
    seen = posed[::3] @ basis
    place = np.clip(((seen[:, :2] + span) * (grid / (2 * span))).astype(np.int32), 0, grid - 1)
    near = np.full(grid * grid, -9, np.float32)
    np.maximum.at(near, place[:, 1].astype(np.int64) * grid + place[:, 0], seen[:, 2])
    near = cv2.GaussianBlur(near.reshape(grid, grid), (3, 3), 0)
    here = posed[index.clip(0)] @ basis
    spot = ((here[..., :2] + span) * (grid / (2 * span)) - 0.5).astype(np.float32)
    cover = cv2.remap(near, spot[..., 0], spot[..., 1], cv2.INTER_LINEAR)
    return cv2.GaussianBlur(
        1 - step(0.05, 0.2, cover - here[..., 2]).astype(np.float32), (0, 0), 2.0
    )


SOFT = [PART[name] for name in ("skin", "nose", "l_ear", "r_ear", "neck", "u_lip", "l_lip")] + [
    0
]


def shade(cloud, posed, normals, index, shot):
    """The light that each pixel sends to the camera, linear (height, width, 3)."""
    lamp = np.float32(shot.light / np.linalg.norm(shot.light))
    flat = index.clip(0)
    normal, colour, gloss, part = (
        normals[flat],
        cloud.colour[flat],
        cloud.gloss[flat][..., None],
        cloud.part[flat],
    )
    facing = (normal @ lamp)[..., None]
    fleshy = np.isin(part, SOFT)[..., None] * np.array([0.32, 0.16, 0.12], np.float32)
    direct = (
        np.clip((facing + fleshy) / (1 + fleshy), 0, 1) * shadow(posed, index, lamp)[..., None]
    )
    depth = posed[flat][..., 2]
    around = cv2.GaussianBlur(depth, (0, 0), 7)
    open_air = np.exp(-1.6 * np.clip(around - depth, 0, 0.6))[..., None]
    sky = (0.72 - 0.28 * normal[..., 1:2]) * open_air
    middle = lamp + np.float32([0, 0, 1])
    middle /= np.linalg.norm(middle)
    shine = np.clip(normal @ middle, 0, 1)[..., None]
    hair = (part == PART["hair"])[..., None]
    glint = np.where(
        hair,
        0.1 * np.exp(-(((shine - 0.8) / 0.1) ** 2)) * (0.3 + colour),
        0.55 * gloss * shine ** np.where(gloss > 1, 160, 16) * (1 + 3 * (gloss > 1)),
    )
    return (
        colour
        * (shot.contrast * direct * 1.15 + (1 - shot.contrast) * sky + 0.12 * sky)
        * np.float32(shot.warm)
        + glint * direct * shot.contrast
    )


def linear(colour):
    """sRGB 0..255 to linear light 0..1: that is where light adds up."""
    return (np.clip(colour, 0, 255) / 255) ** 2.2


def backdrop(shot, size, rng):
    """A blurred indoor background, linear (height, width, 3)."""
    small = np.zeros((24, 24, 3), np.float32)
    rows = np.linspace(0, 1, 24)[:, None, None]
    small[:] = shot.background[0] * (1 - rows) + shot.background[1] * rows
    for _ in range(rng.integers(2, 9)):
        x, y, w, h = rng.integers(0, 24, 2).tolist() + rng.integers(2, 12, 2).tolist()
        small[y : y + h, x : x + w] = shot.background[2] * rng.uniform(0.3, 1.3)
    return cv2.resize(
        cv2.GaussianBlur(small, (0, 0), rng.uniform(0.6, 2.5)),
        size,
        interpolation=cv2.INTER_CUBIC,
    ).clip(0, 1)


def develop(light, shot, size, rng):
    """Lens and sensor: shrinks, blurs, adds noise, and encodes linear light as eight bits."""
    image = cv2.resize(
        light.astype(np.float32) * np.float32(shot.exposure), size, interpolation=cv2.INTER_AREA
    )
    if shot.blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), shot.blur * size[1] / 218)
    image = 255 * np.clip(image * 1.25 / (1 + 0.25 * image), 0, 1) ** (1 / 2.2)
    return np.clip(image + rng.normal(0, shot.noise, image.shape), 0, 255).astype(np.uint8)


def expose(cloud, camera, shot, rng):
    """What the camera sees: linear light (height, width, 3), part and clear-glass mask."""
    cloud = cloud.keep(
        np.einsum("ij,j->i", cloud.normal, camera.head[2]) > -0.35
    )  # what looks away for sure
    posed, normals = (
        camera.pose(cloud.xyz, cloud.follow),
        camera.pose(cloud.normal, cloud.follow, (0, 0, 0)),
    )
    glass = cloud.follow < 0
    front = np.flatnonzero((normals[:, 2] > -0.12) & ~glass)
    index = splat(camera.project(posed[front]), posed[front, 2], camera.size)
    index = np.where(index >= 0, front[index.clip(0)], -1)
    light = np.where(
        (index >= 0)[..., None],
        shade(cloud, posed, normals, index, shot),
        backdrop(shot, camera.size, rng),
    )
    part = np.where(index >= 0, cloud.part[index.clip(0)], 0).astype(np.uint8)
    lens = np.zeros(part.shape, bool)
    if glass.any():
        pane = splat(camera.project(posed[glass]), posed[glass, 2], camera.size)
        lens = (pane >= 0) & (posed[glass][pane.clip(0), 2] > posed[index.clip(0), 2])
        light = np.where(lens[..., None], light * 0.86 + 0.03, light)
    return light, part, lens


def plain_shot(**changes):
    """A plain frontal photograph without noise; `changes`, for instance angles in degrees."""
    shot = SimpleNamespace(
        angles=np.zeros(3), distance=10, light=np.array([-0.7, -0.6, 1.0]), contrast=0.7,
        exposure=1.0, warm=np.ones(3), background=np.full((3, 3), 0.45), blur=0, noise=0,
        seed=0, smile=0.0, open=0.0, shut=0.05, brows=0.0, gaze=np.zeros(2), hair=1,
        glasses="none", hat="none", necklace=False, earrings=False, cover="none",
        cover_at=np.array([0.0, 0.2]), cloth=linear(np.array([70.0, 90, 130])), pattern="plain",
        collar=0.3, eye_distance=62, offset=np.zeros(2),
    )  # fmt: skip
    vars(shot).update(changes)
    shot.angles = np.radians(shot.angles)
    return shot


def look_at(clouds, unit=58, **changes):
    """A picture (210, 210, 3) of some clouds."""
    shot, look = plain_shot(**changes), np.random.default_rng(0)
    light, _, _ = expose(
        Cloud.join(clouds), Camera(shot, (315, 315), unit * 1.5, (157, 165)), shot, look
    )
    return develop(light, shot, (210, 210), look)


# -------------------------------------------------------------------------- people, photographs

SKIN = np.array(
    [
        [245, 208, 186],
        [233, 185, 155],
        [220, 165, 128],
        [190, 130, 95],
        [140, 90, 62],
        [92, 58, 42],
    ],
    float,
)
HAIR = np.array(
    [
        [26, 22, 21],
        [58, 38, 26],
        [98, 64, 38],
        [152, 116, 80],
        [196, 164, 116],
        [128, 58, 30],
        [150, 148, 146],
    ],
    float,
)
IRIS = np.array(
    [[60, 38, 22], [96, 66, 36], [78, 100, 60], [70, 105, 140], [110, 116, 122]], float
)
FRAMES = [[20, 18, 18], [70, 40, 22], [150, 150, 155], [120, 25, 30]]
STYLES = ["short", "short", "parted", "curly", "long", "wavy", "bob", "fringe", "bald"]


def muted(rng, low, high):
    """A colour of walls and clothes, linear (3,): mostly grey, with some colour in it."""
    return linear(
        np.clip(
            rng.uniform(low, high) + rng.uniform(0.1, 0.8) * rng.uniform(-90, 90, 3), 8, 245
        )
    )


def make_person(rng):
    """What stays the same in all photographs of a person: bones, skin, hair, eyes."""
    male, young = rng.random() < 0.45, rng.random() < 0.75
    tone, kind = rng.integers(6), rng.integers(7) if not young else rng.integers(6)
    kind = rng.choice([0, 1]) if tone > 3 and kind < 6 else kind
    chance = (
        [0.24, 0.16, 0.18, 0.14, 0.04, 0.04, 0, 0.06, 0.14]
        if male
        else [0.03, 0.03, 0.06, 0.12, 0.24, 0.22, 0.16, 0.14, 0]
    )
    return SimpleNamespace(
        male=male, young=young, tone=tone, hair_kind=kind, style=rng.choice(STYLES, p=chance),
        seed=int(rng.integers(2**31)),
        skin=linear(SKIN[tone] + rng.normal(0, 7) + rng.normal(0, 3, 3)),
        hair=linear(HAIR[kind] + rng.normal(0, 9) + rng.normal(0, 3, 3)),
        iris=linear(IRIS[rng.integers(2 if tone > 3 else 5)]), width=rng.uniform(1.06, 1.27),
        crown=rng.uniform(1.75, 2.05), chin=rng.uniform(1.66, 2.02),
        jaw=rng.uniform(0.58, 0.95), jaw_power=rng.uniform(2.2, 4.5),
        cheek=rng.uniform(-0.02, 0.1), brow_ridge=rng.uniform(0.0, 0.1) + 0.05 * male,
        chin_out=rng.uniform(-0.04, 0.14), eye_width=rng.uniform(0.235, 0.3),
        eye_height=rng.uniform(0.085, 0.14), eye_tilt=rng.uniform(-0.12, 0.2),
        deep=rng.uniform(0.06, 0.2), brow_y=rng.uniform(-0.42, -0.27),
        brow_thick=rng.uniform(0.03, 0.062) + 0.025 * male, brow_tilt=rng.uniform(-0.1, 0.22),
        brow_arch=rng.uniform(0, 0.1), nose_y=rng.uniform(0.62, 0.86),
        nose_width=rng.uniform(0.2, 0.32), nose_out=rng.uniform(0.28, 0.46),
        bridge=rng.uniform(0.04, 0.18), nose_hook=rng.uniform(-0.05, 0.06),
        mouth_y=rng.uniform(0.33, 0.43), mouth_width=rng.uniform(0.36, 0.5),
        upper_lip=rng.uniform(0.05, 0.105), lower_lip=rng.uniform(0.07, 0.14),
        ears=rng.uniform(0.26, 0.36), ears_out=rng.uniform(0.25, 0.75),
        hairline=rng.uniform(-1.22, -0.92), length=rng.uniform(2.0, 3.3),
        part_side=rng.choice([-1, 1]),
        beard=rng.choice(["none", "stubble", "goatee", "full"], p=[0.5, 0.2, 0.12, 0.18])
        if male else "none",
        freckles=rng.random() < 0.25 and tone < 3,
        mole=(rng.uniform(-0.75, 0.75), rng.uniform(0.25, 1.3))
        if rng.random() < 0.35 else None,
        lipstick=not male and rng.random() < 0.45,
        lip=rng.uniform([0.3, 0.015, 0.03], [0.55, 0.07, 0.12]),
        wears_glasses=rng.random() < 0.16,
        frame=linear(rng.choice(FRAMES).astype(float)),
        round_glasses=rng.uniform(2.2, 5), wears_earrings=not male and rng.random() < 0.35,
        neck=0.7 + 0.14 * male + rng.uniform(-0.05, 0.06),
    )  # fmt: skip


def make_people(rng, count):
    return [make_person(rng) for _ in range(count)]


def make_shot(rng, person, flaw=None, covered=0.05):
    """What changes: pose, expression, light, camera, clothes, what is worn or in the way."""
    yaw, pitch, roll = rng.normal(0, 9.5), rng.normal(0, 7), rng.normal(0, 7)
    if flaw == "profile":
        yaw = rng.choice([-1, 1]) * rng.uniform(58, 75)
    smile = rng.choice([0, 1], p=[0.45, 0.55]) * rng.uniform(0.4, 1)
    warm = rng.normal(0, 0.07)
    return SimpleNamespace(
        flaw=flaw, angles=np.radians([yaw, pitch, roll]),
        eye_distance=13 if flaw == "tiny" else rng.uniform(38, 53),
        offset=rng.uniform([-9, -9], [9, 9]), distance=rng.uniform(7, 16), smile=smile,
        open=max(0.0, rng.normal(-0.05, 0.12)) * (1 + smile), brows=rng.normal(0, 0.03),
        shut=1.0 if rng.random() < 0.03
        else float(np.clip(rng.normal(0.05, 0.12) + 0.2 * smile, 0, 0.6)),
        gaze=rng.normal(0, 0.14, 2),
        glasses=rng.choice(
            ["none", "clear", "dark"],
            p=[0.1, 0.85, 0.05] if person.wears_glasses else [0.93, 0.02, 0.05],
        ),
        hat=rng.choice(["none", "cap", "beanie"], p=[0.93, 0.035, 0.035]),
        necklace=rng.random() < (0.02 if person.male else 0.12),
        earrings=rng.random() < (0.5 if person.wears_earrings else 0),
        cover=rng.choice(["hand", "microphone", "mask"]) if rng.random() < covered else "none",
        cover_at=rng.uniform([-0.35, -0.1], [0.35, 0.35]),
        light=np.array([rng.normal(0, 0.9), rng.uniform(-1.3, 0.2), rng.uniform(0.5, 1.6)]),
        contrast=rng.uniform(0.35, 0.85), exposure=rng.uniform(0.8, 1.25),
        warm=np.array([1 + warm, 1, 1 - warm]), cloth=muted(rng, 15, 225),
        pattern=rng.choice(["plain", "stripes", "checks", "bands"], p=[0.6, 0.15, 0.1, 0.15]),
        collar=rng.uniform(-0.1, 0.55),
        background=np.stack([muted(rng, 30, 235) for _ in range(3)]),
        blur=rng.uniform(2.2, 3.5) if flaw == "blurred" else max(0.0, rng.normal(0.25, 0.35)),
        noise=rng.uniform(0.5, 7), quality=int(rng.integers(62, 96)), hair=int(rng.integers(3)),
        seed=int(rng.integers(2**31)),
    )  # fmt: skip


# ---------------------------------------------------------------------------------- skull, face


class Head:
    """The skull of one person by angle `u` (0 in front, pi behind) and height `y`."""

    def __init__(self, person):
        p = self.person = person
        self.mouth_y = p.nose_y + p.mouth_y
        self.half, self.middle = (p.crown + p.chin) / 2, (p.chin - p.crown) / 2
        self.width = curve(
            [-2.1, -1.2, -0.5, 0.1, 0.6, 1.2, 2.1],
            np.array([1.0, 1.02, 1.0, 1.0, 0.96, p.jaw * 0.6 + 0.38, p.jaw]) * p.width,
        )
        self.front = curve(
            [-2.1, -1.2, -0.6, -0.25, 0.1, 0.6, 1.1, 1.5, 2.1],
            [1.2, 1.36, 1.46, 1.45, 1.36, 1.38, 1.42, 1.36, 1.36 + p.chin_out],
        )
        self.back = curve(
            [-2.1, -1.2, -0.4, 0.4, 1.1, 1.6, 2.1], [1.5, 1.62, 1.68, 1.5, 0.95, 0.4, 0.1]
        )

    def skull(self, u, y, out=0.0):
        """Points (..., 3) of the smooth skull, `out` eye distances outside it."""
        s = np.clip((y - self.middle) / self.half, -1, 1)
        above, below = 1 - np.abs(s) ** 2.5, 1 - np.abs(s) ** self.person.jaw_power
        close = np.sqrt(np.where(s < 0, above, below))
        close_deep = np.sqrt(np.where(s < 0, above, 1 - np.abs(s) ** 9))
        sine, cosine = np.sin(u), np.cos(u)
        x = (self.width(y) * close + out) * np.sign(sine) * np.abs(sine) ** 0.9
        depth = np.where(cosine > 0, self.front(y) * close_deep, self.back(y) * close) + out
        return np.stack(
            [x, y + out * s, depth * np.sign(cosine) * np.abs(cosine) ** 0.9], -1
        ).astype(np.float32)

    def grid(self, density, low=-np.pi, high=np.pi, top=None, bottom=None):
        """Angles and heights of a grid (rows, columns); `density`: points per eye distance."""
        top, bottom = (
            -self.person.crown if top is None else top,
            self.person.chin if bottom is None else bottom,
        )
        arc = np.linspace(0, np.pi, int(4.7 * density * (bottom - top) / (2 * self.half)))
        y = (
            self.middle - self.half * np.cos(arc)
            if bottom - top > 1.99 * self.half
            else np.linspace(top, bottom, len(arc))
        )
        u = np.linspace(low, high, int(1.32 * (high - low) * density))
        return np.meshgrid(u.astype(np.float32), y.astype(np.float32))


def nose_height(p, x, y):
    """How far the nose stands out over the cheeks at face points (x, y)."""
    t = (y + 0.08) / (p.nose_y + 0.08)
    ridge = (
        p.bridge
        + (p.nose_out - p.bridge) * np.clip(t, 0, 1) ** 1.4
        + p.nose_hook * np.sin(np.pi * np.clip(t, 0, 1))
    )
    ridge = np.where(t < 0, p.bridge * bump(t, 0, 0.35), ridge) * (
        1 - step(0.02, 0.2, y - p.nose_y)
    )
    half = 0.11 + (0.8 * p.nose_width - 0.11) * np.clip(t, 0, 1.2) ** 2
    wings = 0.2 * bump(np.abs(x), p.nose_width * 0.82, 0.085) * bump(y, p.nose_y + 0.05, 0.1)
    return ridge * np.exp(-(np.abs(x / half) ** 2.2)) + wings


def relief(head, shot, x, y):
    """All that bones, flesh and expression add in front of the skull at face points (x, y)."""
    p, side, m = head.person, np.abs(x), head.mouth_y
    z = nose_height(p, x, y) - (0.1 + p.deep) * bump(side, 0.5, 0.3) * bump(y, -0.02, 0.2)
    z += p.brow_ridge * bump(y, -0.3, 0.13) * bump(side, 0.45, 0.45) + (
        p.cheek + 0.06 * shot.smile
    ) * bump(side, 0.68, 0.25) * bump(y, 0.52, 0.25)
    z += (
        0.1 * bump(y, m, 0.2) * bump(x, 0, 0.42)
        - 0.07 * bump(y, m + 0.3, 0.09) * bump(x, 0, 0.3)
        + 0.06 * bump(y, p.chin - 0.25, 0.14) * bump(x, 0, 0.25)
    )
    z -= 0.03 * bump(x, 0, 0.045) * bump(y, (p.nose_y + m) / 2 + 0.04, 0.09)
    fold = side - (p.nose_width + 0.08 + 0.45 * np.clip(y - p.nose_y, 0, 1))
    z -= (
        (0.012 + 0.035 * shot.smile + 0.02 * (not p.young))
        * bump(fold, 0, 0.045)
        * step(p.nose_y - 0.1, p.nose_y + 0.1, y)
        * (1 - step(m + 0.05, m + 0.2, y))
    )
    return z


EYEBALL = 0.235  # radius; a real one has 12 mm, and eyes stand 63 mm apart


def eye_lids(p, shot, x, y):
    """Where (x, y) lies in the nearer eye: across, below the upper lid, above the lower lid.

    `across` is -1 at the nose and 1 at the outer corner.
    """
    across = (np.abs(x) - 0.5) / p.eye_width
    bend = np.clip(1 - across**2, 0, 1)
    upper = -p.eye_height * (1.25 - 2.2 * shot.shut) * bend**0.75 * (1 - 0.18 * across)
    lower = p.eye_height * (0.75 - 0.1 * shot.smile) * bend
    level = y + p.eye_tilt * across * 0.18
    return across, level - np.minimum(upper, lower), lower - level


def mouth_lines(head, shot, x):
    """Four lines at x: top and rim of the upper lip, rim and bottom of the lower lip."""
    p = head.person
    t = np.clip(np.abs(x) / (p.mouth_width * (1 + 0.22 * shot.smile)), 0, 1)
    seam = head.mouth_y - 0.13 * shot.smile * t**2 + 0.012 * np.cos(3 * np.pi * t)
    thin, full = 1 - 0.3 * shot.smile, (1 - t**2) ** 0.8
    upper = p.upper_lip * thin * (0.85 + 0.25 * bump(t, 0.22, 0.16)) * full
    return (
        seam - upper,
        seam,
        seam + shot.open * full,
        seam + shot.open * full + p.lower_lip * thin * full,
    )


def skin_colour(head, shot, texture, x, y, part, rim, low_rim):
    p, side = head.person, np.abs(x)
    blotch = 1 + 0.05 * texture["blotches"] + 0.015 * texture["pores"]
    colour = (p.skin * blotch[..., None]).astype(np.float32)
    red = (
        0.5 * bump(side, 0.62, 0.3) * bump(y, 0.6, 0.3)
        + 0.45 * bump(x, 0, 0.22) * bump(y, p.nose_y, 0.16)
        - 0.2 * bump(side, 0.45, 0.2) * bump(y, 0.22, 0.1)
    )
    colour *= 1 + red[..., None] * np.array([0.12, -0.16, -0.14])
    if p.freckles:
        colour *= 1 - 0.35 * (
            step(1.4, 2.2, texture["fine"]) * bump(y, 0.4, 0.35) * bump(x, 0, 0.9)
        )[..., None] * [0.5, 0.8, 1]
    if p.mole:
        colour *= 1 - 0.75 * ((x - p.mole[0]) ** 2 + (y - p.mole[1]) ** 2 < 0.0016)[..., None]
    colour *= (
        1
        - 0.75
        * (bump(side, 0.42 * p.nose_width, 0.055) * bump(y, p.nose_y + 0.125, 0.04))[..., None]
    )
    if p.beard != "none":
        full = (
            step(0.35, 0.75, side + 0.9 * (y - head.mouth_y) + 0.5)
            if p.beard != "goatee"
            else bump(x, 0, 0.34)
        )
        edge = step(
            head.mouth_y - 0.3,
            head.mouth_y - 0.12,
            y + 0.25 * step(0.6, 1, side) + 0.08 * texture["hair"],
        )
        amount = (np.clip(full, 0, 1) * edge * (0.35 if p.beard == "stubble" else 0.92))[
            ..., None
        ]
        colour = (
            colour * (1 - amount)
            + amount * p.hair * (0.7 + 0.3 * np.clip(texture["hair"], -1.5, 2))[..., None]
        )
    lips = np.isin(part, (PART["u_lip"], PART["l_lip"]))
    colour[lips] = (p.lip if p.lipstick else p.skin * [0.78, 0.42, 0.42]) * (
        1 + 0.08 * texture["hair"][lips, None]
    )
    mouth = part == PART["mouth"]
    teeth = (y - rim < 0.12) & (np.abs(x) < 0.85 * p.mouth_width)
    gap = 1 - 0.25 * (np.abs((x / 0.085) % 1 - 0.5) > 0.44)
    colour[mouth] = np.where(
        teeth[mouth, None],
        np.array([0.74, 0.71, 0.63]) * gap[mouth, None],
        [0.09, 0.015, 0.018],
    )
    return colour


def face_surface(head, shot, density, texture):
    """The front of the face: a Cloud, and its grid (rows, columns, 3) to find landmarks in."""
    p, m = head.person, head.mouth_y
    u, y = head.grid(density, -1.8, 1.8)
    xyz = head.skull(u, y)
    x, front = xyz[..., 0], np.clip(np.cos(u), 0, 1) ** 0.5
    xyz[..., 2] += relief(head, shot, x, y) * front
    across, below, above = eye_lids(p, shot, x, y)
    reach = (np.abs(x) - 0.5) ** 2 + y**2
    lid = head.eye[2] + np.sqrt(np.clip(EYEBALL**2 - reach, 0, None)) + 0.022
    xyz[..., 2] = np.where(
        (reach < 0.8 * EYEBALL**2) & (np.cos(u) > 0), np.maximum(xyz[..., 2], lid), xyz[..., 2]
    )
    tops, rim, low_rim, bottom = mouth_lines(head, shot, x)
    inside = np.abs(x) < p.mouth_width * (1 + 0.22 * shot.smile)
    lips = inside & (y > tops) & (y < bottom) & (np.cos(u) > 0)
    round_lip = np.where(
        y < rim, (y - tops) / (rim - tops + 1e-6), (bottom - y) / (bottom - low_rim + 1e-6)
    )
    xyz[..., 2] += np.where(lips, 0.055 * np.sqrt(np.clip(round_lip, 0, 1)), 0)
    hollow = lips & (y > rim) & (y < low_rim)
    xyz[..., 2] -= np.where(hollow, 0.09, 0)
    part = np.full(u.shape, PART["skin"], np.uint8)
    nose = (
        (np.abs(x) < 0.1 + (p.nose_width + 0.02) * step(0.1, p.nose_y, y))
        & (y > 0.05)
        & (y < p.nose_y + 0.17)
    )
    part[nose & (np.cos(u) > 0)] = PART["nose"]
    part[lips & (y <= rim)], part[lips & (y >= low_rim)], part[hollow] = (
        PART["u_lip"],
        PART["l_lip"],
        PART["mouth"],
    )
    colour = skin_colour(head, shot, texture, x, y, part, rim, low_rim)
    brow_offset = (
        y
        - (p.brow_y + shot.brows)
        - 0.25 * p.brow_tilt * (0.5 - np.abs(x))
        + p.brow_arch * bump(np.abs(x), 0.6, 0.22)
    )
    brow = p.brow_thick * (1.2 - step(0.4, 0.85, np.abs(x))) - np.abs(brow_offset)
    brow = np.where(
        (np.abs(x) > 0.2) & (np.abs(x) < 0.88) & (np.cos(u) > 0),
        brow + 0.008 * texture["hair"],
        -1,
    )
    cover = 0.85 * step(-0.004, 0.03, brow)[..., None]
    colour = colour * (1 - cover) + cover * (0.6 * p.hair + 0.02) * (
        1 + 0.2 * texture["hair"][..., None]
    )
    lash = (np.abs(across) < 1.06) & (below < 0) & (below > -0.028) & (np.cos(u) > 0)
    crease = 1 - 0.35 * bump(below, -0.075, 0.018) * (np.abs(across) < 1) * (1 - shot.shut)
    colour *= np.where(np.cos(u) > 0, crease, 1)[..., None]
    colour[lash] *= 0.16 if not p.male else 0.35
    # The person's left is on the right of the picture.
    for name, left in (("l", True), ("r", False)):
        here = (x > 0) == left
        part[(brow > 0) & here], part[lash & here] = PART[name + "_brow"], PART[name + "_eye"]
    opening = (below > 0) & (above > 0) & (np.abs(across) < 1) & (np.cos(u) > 0)
    xyz[opening, 2] = np.minimum(
        xyz[opening, 2],
        head.eye[2] + np.sqrt(np.clip(EYEBALL**2 - reach[opening], 0.02, None)) - 0.01,
    )
    colour[opening] = [0.35, 0.16, 0.15]
    part[opening] = np.where(x[opening] > 0, PART["l_eye"], PART["r_eye"])
    xyz[..., 1] += 0.8 * shot.open * step(m, m + 0.5, y)
    gloss = np.where(lips, 0.35 if p.lipstick else 0.22, 0.13) + 0.1 * nose
    return surface(
        xyz,
        part,
        np.clip(colour, 0, 1),
        gloss,
        rough=0.035 * texture["pores"][..., None] * [1, 1, 0],
    ), xyz


class Model:
    """A person ready to be photographed: head, textures and what no expression changes."""

    def __init__(self, person, density):
        self.person, self.density, self.head = person, density, Head(person)
        self.hair = {}  # ears and hair by hairdo: no expression moves them
        rng = np.random.default_rng(person.seed)
        u, _ = self.head.grid(density, -1.8, 1.8)
        rows, columns = u.shape
        fine = max(1.0, density / 90)
        self.texture = {
            "pores": streaks(rng, rows, columns, fine, fine),
            "blotches": streaks(rng, rows, columns, 14 * fine, 14 * fine),
            "hair": streaks(rng, rows, columns, 2.5 * fine, 0.9 * fine),
            "fine": streaks(rng, rows, columns, 1.6 * fine, 1.6 * fine),
            "strands": streaks(rng, 500, 1100, 60, 2.2), "curls": streaks(rng, 500, 1100, 9, 9),
        }  # fmt: skip
        still = SimpleNamespace(smile=0.0)
        around = np.arcsin((0.5 / float(self.head.width(0.0))) ** (1 / 0.9))
        skin = self.head.skull(around, np.array(0.0))[2] + float(
            relief(self.head, still, np.array(0.5), np.array(0.0))
        )
        self.head.eye = np.array([0.5, 0.0, skin + 0.03 - EYEBALL])


# ----------------------------------------------------------------------------- eyes, ears, hair


def eye_surfaces(head, shot, density):
    p, eyes = head.person, []
    v, h = np.meshgrid(
        np.linspace(-0.9, 0.9, int(0.5 * density)),
        np.linspace(-1.2, 1.2, int(0.62 * density)),
        indexing="ij",
    )
    direction = np.stack([np.sin(h) * np.cos(v), np.sin(v), np.cos(h) * np.cos(v)], -1)
    look = np.array(
        [shot.gaze[0] - shot.angles[0] * 0.5, shot.gaze[1] - shot.angles[1] * 0.5]
    ).clip(-0.45, 0.45)
    iris = np.array([np.sin(look[0]), np.sin(look[1]), np.cos(look[0])])
    away = np.linalg.norm(direction - iris, axis=-1) * EYEBALL
    ray = np.arctan2(direction[..., 1] - iris[1], direction[..., 0] - iris[0])
    for side, name in ((1, "l_eye"), (-1, "r_eye")):
        xyz = direction * EYEBALL + head.eye * [side, 1, 1]
        white = np.array([0.72, 0.68, 0.66]) * (1 - 0.3 * np.abs(h) / 1.2)[..., None] ** [
            0.6,
            1,
            1,
        ]
        rays = p.iris * (1 + 0.25 * np.sin(23 * ray) + 0.5 * step(0.05, 0.08, away))[..., None]
        colour = np.where(
            away[..., None] < 0.108,
            rays * (1 - 0.75 * step(0.09, 0.108, away))[..., None],
            white,
        )
        colour = np.where(away[..., None] < 0.042, 0.006, colour)
        _, below, _ = eye_lids(p, shot, xyz[..., 0], xyz[..., 1])
        colour = colour * (0.35 + 0.65 * step(-0.02, 0.1, below))[..., None]
        eyes.append(surface(xyz, name, colour, 1.6))
    return eyes


def ears(head, density):
    p, made = head.person, []
    v, u = np.meshgrid(
        np.linspace(0.05, np.pi - 0.05, int(1.2 * density)),
        np.linspace(-np.pi, np.pi, int(1.4 * density)),
        indexing="ij",
    )
    for side, name in ((1, "l_ear"), (-1, "r_ear")):
        flat = np.stack(
            [
                0.07 * np.sin(v) * np.sin(u),
                -p.ears * np.cos(v),
                0.2 * np.sin(v) * np.cos(u) * (1 - 0.25 * np.cos(v + 0.6)),
            ],
            -1,
        )
        rim = np.hypot(flat[..., 1] / p.ears, flat[..., 2] / 0.2)
        flat[..., 0] -= side * 0.05 * bump(rim, 0.45, 0.25) * (flat[..., 0] * side > 0)
        angle = side * p.ears_out
        x, z = (
            flat[..., 0] * np.cos(angle) - flat[..., 2] * np.sin(angle),
            flat[..., 0] * np.sin(angle) * 1 + flat[..., 2] * np.cos(angle),
        )
        place = np.stack(
            [x + side * (head.width(0.25) * 0.99 + 0.02), flat[..., 1] + 0.22, z - 0.12], -1
        )
        shade = np.clip(0.55 + 0.5 * step(0.35, 0.8, rim), 0, 1)[..., None]
        made.append(surface(place, name, p.skin * shade * [1.05, 0.92, 0.9], 0.12))
    return made


HAIRLINE = curve(
    [0, 0.5, 0.85, 1.1, 1.28, 1.45, 1.62, 1.9, 2.3, np.pi],
    [0, -0.02, 0.2, 0.62, 1.05, 1.35, 0.75, 1.2, 2.1, 2.3],
)


def hair_surfaces(head, shot, density, texture):
    """The hair on the skull down to the hairline, and below it for long styles."""
    p = head.person
    if p.style == "bald":
        return [
            surface(
                head.skull(*head.grid(0.8 * density, 1.75, 2 * np.pi - 1.75, bottom=1.3)),
                "skin",
                p.skin * 0.9,
                0.14,
            )
        ]
    curly, thick = (
        p.style == "curly",
        {"short": 0.1, "parted": 0.16, "curly": 0.26, "fringe": 0.15}.get(p.style, 0.14),
    )
    u, y = head.grid(0.9 * density, bottom=1.4)
    strand = cv2.resize(texture["curls" if curly else "strands"], u.shape[::-1])
    swing = u + 0.12 * (shot.hair - 1)
    line = (
        p.hairline
        + HAIRLINE(np.abs(u))
        + (0.25 if p.style in ("short", "parted") else 0) * step(1.7, 2.2, np.abs(u))
    )
    if p.style in ("fringe", "bob"):
        line = np.maximum(line, (-0.4 + 0.04 * (shot.hair - 1)) * (np.abs(u) < 0.8))
    if p.style in ("parted", "long", "wavy"):
        line = (
            line
            + 0.42 * bump(swing * p.part_side, 0.45, 0.35)
            - 0.1 * bump(swing * p.part_side, -0.1, 0.12)
        )
    depth = line - y + (0.1 if curly else 0.06) * strand
    out = thick * np.clip(depth / 0.3, 0.05, 1) ** 0.6 + (0.07 if curly else 0.018) * strand
    xyz = head.skull(u, y, out)
    shade = p.hair * (1 + 0.3 * np.clip(strand, -2, 2) - 0.3 * bump(depth, 0, 0.08))[..., None]
    rough = (
        strand[..., None]
        * np.stack([np.cos(u), 0 * u, -np.sin(u)], -1)
        * (0.45 if curly else 0.3)
    )
    made = [
        surface(
            xyz,
            np.where(depth > 0, PART["hair"], DROP),
            np.clip(shade, 0.003, 1),
            0.5,
            rough=rough,
        )
    ]
    if p.style in ("long", "wavy", "bob"):
        made.append(falling_hair(head, shot, density, texture))
    return made


def falling_hair(head, shot, density, texture):
    p = head.person
    end = 1.35 if p.style == "bob" else p.length
    u, y = np.meshgrid(
        np.linspace(1.0, 2 * np.pi - 1.0, int(6.2 * density)),
        np.linspace(-0.75, end, int((end + 0.75) * density)),
    )
    strand = cv2.resize(texture["strands"], u.shape[::-1])
    wave = (
        0.06
        * np.sin(4.6 * y + 2.2 * np.sin(3 * u) + shot.hair)
        * step(0, 1, y)
        * (p.style == "wavy")
    )
    wide = (
        head.width(np.minimum(y, 0.3))
        + 0.1
        + 0.1 * step(-0.6, 0.7, y)
        + 0.1 * step(1, 2.6, y)
        + wave
        + 0.025 * strand
    )
    inward = 0.25 * step(0.9, 1.35, y) * (p.style == "bob")
    forward = 1.0 + 0.02 * strand
    xyz = np.stack(
        [
            (wide - inward) * np.sin(u),
            y,
            forward * np.where(np.cos(u) > 0, 0.9, 1.5) * np.cos(u)
            - 0.05
            - 0.15 * step(1, 2.5, y),
        ],
        -1,
    )
    ragged = y > end - 0.12 - 0.12 * strand
    edge = np.minimum(u, 2 * np.pi - u) < 1.06 + 0.05 * np.abs(strand) + 0.12 * step(
        -0.1, -0.7, y
    )
    shade = p.hair * (1 + 0.32 * np.clip(strand, -2, 2) - 0.15 * step(0.3, 1.5, y))[..., None]
    rough = strand[..., None] * np.stack([np.cos(u), 0 * u, -np.sin(u)], -1) * 0.35
    return surface(
        xyz,
        np.where(ragged | edge, DROP, PART["hair"]),
        np.clip(shade, 0.003, 1),
        0.5,
        0.7 * step(1.2, 2.6, y),
        rough,
    )


# ---------------------------------------------------------------- clothes, and what people wear

TORSO_WIDTH = curve(
    [1.7, 2.0, 2.25, 2.42, 2.65, 3.1, 5.2], [0.7, 0.78, 1.05, 1.6, 2.25, 2.65, 2.8]
)
TORSO_DEPTH = curve([1.7, 2.1, 2.4, 2.8, 5.2], [0.66, 0.74, 0.9, 1.1, 1.3])


def torso(u, y, out=0.0):
    return np.stack(
        [(TORSO_WIDTH(y) + out) * np.sin(u), y, (TORSO_DEPTH(y) + out) * np.cos(u) - 0.35], -1
    )


def body_surfaces(head, shot, density):
    p = head.person
    u, y = np.meshgrid(
        np.linspace(-1.75, 1.75, int(2.6 * density)), np.linspace(0.7, 2.5, int(1.8 * density))
    )
    lean = 0.42 - 0.75 * step(0.7, 2.3, y)
    flare = p.neck * (1 + 0.22 * step(1.9, 2.5, y))
    throat = (
        1
        - 0.12 * bump(u, 0, 0.16) * (0 if p.male else 1)
        + 0.06 * bump(u, 0, 0.2) * bump(y, 1.95, 0.16) * p.male
    )
    neck = np.stack([flare * np.sin(u), y, flare * throat * np.cos(u) - 0.5 + lean], -1)
    made = [surface(neck, "neck", p.skin * 0.93, 0.1, step(1.1, 2.4, y))]
    u, y = np.meshgrid(
        np.linspace(-1.75, 1.75, int(6.5 * density)), np.linspace(1.95, 4.2, int(2.2 * density))
    )
    line = 2.2 + np.abs(shot.collar) * bump(u, 0, 0.5) if shot.collar > 0.12 else 2.12 + 0 * u
    cloth = y > line
    part = np.where(cloth, PART["cloth"], PART["neck"]).astype(np.uint8)
    phase = {
        "plain": 0 * y,
        "stripes": np.sin(14 * u),
        "bands": np.sin(16 * y),
        "checks": np.sin(14 * u) * np.sin(14 * y),
    }[shot.pattern]
    fabric = (
        shot.cloth
        * (1 - 0.55 * (phase > 0.3))[..., None]
        * (1 - 0.3 * bump(y - line, 0.07, 0.012))[..., None]
    )
    made.append(
        surface(
            torso(u, y, 0.045 * cloth),
            part,
            np.where(cloth[..., None], np.clip(fabric, 0.01, 1), p.skin * 0.93),
            np.where(cloth, 0.03, 0.1),
            1.0,
        )
    )
    return made


def glasses_surfaces(head, shot, density):
    p, made = head.person, []
    t = np.linspace(0, 2 * np.pi, 80)
    power = 2 / p.round_glasses
    rim_x = 0.36 * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** power
    rim_y = 0.25 * np.sign(np.sin(t)) * np.abs(np.sin(t)) ** power
    plane = lambda x, y: np.stack([x, y + 0.03, head.eye[2] + EYEBALL + 0.3 - 0.2 * x**2], -1)  # noqa: E731
    dark = shot.glasses == "dark"
    for side in (-1, 1):
        made.append(
            tube(plane(side * 0.48 + rim_x, rim_y), 0.028, "eye_g", p.frame, density, 1.0)
        )
        arm = [
            plane(side * 0.83, -0.08),
            [side * (head.width(0.0) + 0.03), -0.08, 0.7],
            [side * (head.width(0.0) + 0.03), 0.0, -0.1],
        ]
        made.append(
            tube(
                np.array([np.ravel(point) for point in arm]),
                0.024,
                "eye_g",
                p.frame,
                density,
                0.6,
            )
        )
        r, a = np.meshgrid(
            np.linspace(0, 1, int(0.6 * density)), np.linspace(0, 2 * np.pi, int(4 * density))
        )
        lens = plane(side * 0.48 + r * np.interp(a, t, rim_x), r * np.interp(a, t, rim_y))
        made.append(
            surface(
                lens,
                "eye_g",
                [0.01, 0.01, 0.012] if dark else [0.5, 0.5, 0.5],
                2.5 if dark else 2.0,
            )
        )
        made[-1].normal = np.tile(np.float32([0, 0, 1]), (len(made[-1].xyz), 1))
        if not dark:  # clear glass: drawn over what lies behind it
            made[-1].follow = np.full(len(made[-1].xyz), -1, np.float32)
    made.append(
        tube(
            plane(
                np.linspace(-0.14, 0.14, 9), -0.08 - 0.05 * np.cos(np.linspace(-1.5, 1.5, 9))
            ),
            0.026,
            "eye_g",
            p.frame,
            density,
            1.0,
        )
    )
    return made


def hat_surfaces(head, shot, density):
    u, y = head.grid(0.9 * density, bottom=0.0)
    low = -0.72 + 0.42 * np.abs(u) / np.pi
    knit = shot.hat == "beanie"
    ribs = np.sin(60 * u) * 0.3 if knit else 0.12 * (np.abs(np.sin(3 * u)) < 0.04)
    xyz = head.skull(
        u,
        y,
        0.3 + (0.04 * (y > low - 0.35) if knit else 0) - 0.12 * step(-0.9, low, y) * (not knit),
    )
    colour = shot.cloth[::-1] * np.where(
        y[..., None] > low[..., None] - 0.35, 0.75 if knit else 1.0, 1.0
    )
    made = [
        surface(
            xyz,
            np.where(y < low, PART["hat"], DROP),
            np.clip(colour * (1 - 0.25 * np.maximum(ribs, 0))[..., None], 0.01, 1),
            0.04,
        )
    ]
    if not knit:
        r, a = np.meshgrid(
            np.linspace(1.0, 1.62, int(0.8 * density)),
            np.linspace(-0.95, 0.95, int(3.2 * density)),
        )
        brim = head.skull(a, np.full_like(a, -0.74), 0.14) * np.stack(
            [1 + 0 * r, 1 + 0 * r, r], -1
        )
        brim[..., 1] += 0.22 * (r - 1) + 0.05 * (np.abs(a) / 0.95) ** 2
        made += [
            surface(brim[::-1], "hat", shot.cloth[::-1] * 0.9, 0.04),
            surface(np.add(brim, [0, 0.03, 0]), "hat", shot.cloth[::-1] * 0.35, 0.02),
        ]
    return made


def jewels(head, shot, density, rng):
    made = []
    if shot.necklace:
        u = np.linspace(-1.5, 1.5, 46)
        line = torso(u, 2.06 + 0.3 * bump(u, 0, 0.75), 0.1)
        beads = rng.random() < 0.5
        gold = linear(
            np.array([[215, 170, 80], [205, 205, 212], [230, 225, 215]])[
                rng.integers(3)
            ].astype(float)
        )
        made += (
            [ball(point, [0.055] * 3, "neck_l", gold, density, 1.5, 1.0) for point in line]
            if beads
            else [tube(line, 0.038, "neck_l", gold, density, 1.5, 1.0)]
        )
        made.append(
            ball(
                line[23] + [0, 0.1, 0.03], [0.08, 0.1, 0.05], "neck_l", gold, density, 2.0, 1.0
            )
        )
    if shot.earrings:
        gold, hoop = linear(np.array([220.0, 180, 95])), rng.random() < 0.5
        for side in (-1, 1):
            lobe = np.array([side * (head.width(0.25) + 0.07), 0.22 + head.person.ears, -0.05])
            t = np.linspace(0, 2 * np.pi, 30)
            ring = lobe + np.stack([0 * t, 0.15 - 0.15 * np.cos(t), 0.15 * np.sin(t)], -1)
            made.append(
                tube(ring, 0.03, "ear_r", gold, density, 1.5)
                if hoop
                else ball(
                    np.add(lobe, [0, 0.1, 0]), [0.06, 0.1, 0.06], "ear_r", gold, density, 1.8
                )
            )
    return made


def covers(head, shot, density, rng):
    """What hides part of the face; it belongs to no part, so the masks end there."""
    x, y = shot.cover_at[0], head.mouth_y + shot.cover_at[1]
    if shot.cover == "hand":
        side, skin, z = rng.choice([-1, 1]), head.person.skin * 0.95, 1.85
        made = [ball([x, y + 0.35, z], [0.36, 0.42, 0.14], 0, skin, density, 0.12)]
        made.append(
            tube(
                [
                    [x, y + 0.6, z - 0.02],
                    [x + side * 0.3, y + 1.3, z - 0.2],
                    [x + side * 0.8, y + 2.6, z - 0.6],
                ],
                [0.24, 0.23, 0.3],
                0,
                skin,
                density,
                0.1,
            )
        )
        for finger, (tilt, length) in enumerate(
            [(-0.22, 0.55), (-0.07, 0.66), (0.08, 0.62), (0.22, 0.48)]
        ):
            foot = np.array([x - 0.27 + 0.18 * finger, y + 0.05, z + 0.03])
            path = foot + np.array(
                [[0, 0, 0], [tilt * 0.5, -0.55 * length, 0.06], [tilt, -length, -0.02]]
            )
            made += [
                tube(path, [0.1, 0.095, 0.08], 0, skin, density, 0.12),
                ball(path[-1], [0.08] * 3, 0, skin, density, 0.12),
            ]
        return made
    if shot.cover == "microphone":
        stick = [[x, y + 0.15, 1.95], [x + rng.uniform(-0.5, 0.5), y + 2.2, 1.7]]
        return [
            ball([x, y, 1.95], [0.27] * 3, 0, [0.03, 0.03, 0.035], density, 0.8),
            tube(stick, [0.13, 0.1], 0, [0.02, 0.02, 0.02], density, 0.6),
        ]
    if shot.cover == "mask":
        u, y = head.grid(0.9 * density, -1.35, 1.35, 0.3, head.person.chin)
        xyz = head.skull(u, y, 0.07)
        xyz[..., 2] += (
            0.22 * bump(xyz[..., 0], 0, 0.35) * bump(y, head.person.nose_y, 0.5) + 0.12
        ) * np.clip(np.cos(u), 0, 1)
        top = 0.42 - 0.12 * bump(u, 0, 0.4) + 0.25 * (np.abs(u) / 1.35) ** 2
        pleats = 1 - 0.12 * (np.abs(((y - 0.6) / 0.22) % 1 - 0.5) > 0.43)
        mask = [
            surface(
                xyz,
                np.where(y > top, 0, DROP),
                np.array([0.33, 0.55, 0.66]) * pleats[..., None],
                0.03,
            )
        ]
        return mask + [
            tube(
                [head.skull(s * 1.3, 0.75, 0.07), head.skull(s * 1.7, 0.3, 0.06)],
                0.02,
                0,
                [0.7] * 3,
                density,
            )
            for s in (-1, 1)
        ]
    return []


# ------------------------------------------------------------------------------- the photograph


def surfaces(model, shot, rng):
    """All surfaces of one photograph as one Cloud, and the grid of the face."""
    head, d = model.head, model.density
    face, grid = face_surface(head, shot, d, model.texture)
    if shot.hair not in model.hair:
        model.hair[shot.hair] = Cloud.join(
            [*ears(head, d), *hair_surfaces(head, shot, d, model.texture)]
        )
    clouds = [
        face,
        model.hair[shot.hair],
        *eye_surfaces(head, shot, d),
        *body_surfaces(head, shot, d),
    ]
    clouds += jewels(head, shot, d, rng) + covers(head, shot, d, rng)
    if shot.glasses != "none":
        clouds += glasses_surfaces(head, shot, d)
    if shot.hat != "none":
        clouds += hat_surfaces(head, shot, d)
    return Cloud.join(clouds), grid


def landmarks_in_space(head, shot, grid):
    """Eyes, nose tip and mouth corners, (5, 3); left and right as seen in the picture."""
    p = head.person
    corner, drop = 0.97 * p.mouth_width * (1 + 0.22 * shot.smile), 0.13 * 0.94 * shot.smile
    front = grid[:, grid.shape[1] // 4 : -grid.shape[1] // 4].reshape(-1, 3)
    nearest = lambda x, y: front[((front[:, 0] - x) ** 2 + (front[:, 1] - y) ** 2).argmin()]  # noqa: E731
    lower = 0.75 - 0.1 * shot.smile
    height = (
        p.eye_height * (min(2.2 * shot.shut - 1.25, lower) + lower) / 2
    )  # the middle of the opening
    eye = [
        np.array([side * 0.5, height, head.eye[2] + np.sqrt(EYEBALL**2 - height**2)])
        for side in (-1, 1)
    ]
    return np.stack(
        [
            *eye,
            nearest(0, p.nose_y),
            nearest(-corner, head.mouth_y - drop),
            nearest(corner, head.mouth_y - drop),
        ]
    )


def photograph(model, shot, size=(178, 218), unit=None, centre=None, fine=1.25):
    """A picture (height, width, 3) uint8, landmarks (5, 2), part and clear-glass mask.

    `unit` is the distance between the eyes in pixels. All is drawn at `fine` times the size;
    parts are read at the middle of each pixel.
    """
    rng = np.random.default_rng(shot.seed)
    centre = (
        np.array([size[0] / 2, size[1] * 0.5]) + shot.offset
        if centre is None
        else np.asarray(centre)
    )
    big = (round(size[0] * fine), round(size[1] * fine))
    camera = Camera(shot, big, fine * (unit or shot.eye_distance), fine * (centre + 0.5) - 0.5)
    cloud, grid = surfaces(model, shot, rng)
    light, part, lens = expose(cloud, camera, shot, rng)
    points = camera.project(camera.pose(landmarks_in_space(model.head, shot, grid)))
    part, lens = (
        cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
        for mask in (part, lens)
    )
    return develop(light, shot, size, rng), (points + 0.5) / fine - 0.5, part, lens > 0


# ------------------------------------------------------------------------------ CelebA's layout


def in_parallel(work, items, what):
    """[work(*item) for item in items] on all cores, with a line of progress now and then."""

    def single(item):
        cv2.setNumThreads(1)
        return work(*item)

    started, results = time.perf_counter(), []
    for result in Parallel(n_jobs=os.cpu_count(), return_as="generator")(
        delayed(single)(item) for item in items
    ):
        results.append(result)
        if len(results) % max(1, len(items) // 5) == 0:
            print(
                f"{what}: {len(results)} of {len(items)}, {time.perf_counter() - started:.0f} s"
            )
    return results


def save(path, image, quality=95):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(
        str(path),
        image[..., ::-1],
        [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else [],
    ):
        raise OSError(f"{path.name} could not be written: is the disk full?")


FLAWS = ["profile", "tiny", "blurred", "wrong box"]
HEAD = [
    PART[name]
    for name in (
        "skin",
        "nose",
        "eye_g",
        "l_eye",
        "r_eye",
        "l_brow",
        "r_brow",
        "mouth",
        "u_lip",
        "l_lip",
    )
]


def box_of(part, unit, flaw, rng):
    """CelebA's kind of box: the face with a margin; off the face for "wrong box"."""
    head = np.isin(part, HEAD)
    columns, rows = np.flatnonzero(head.any(0)), np.flatnonzero(head.any(1))
    left, top, right, bottom = columns[0], rows[0], columns[-1], rows[-1]
    loose = rng.uniform(0.0, 0.35, 4) * unit
    box = np.array(
        [
            left - loose[0],
            top - loose[1],
            right - left + loose[0] + loose[2],
            bottom - top + loose[1] + loose[3],
        ]
    )
    if flaw == "wrong box":
        box[:2] += 2.2 * unit
    return box


def make_album(rng, people, counts, share_flawed):
    """All photographs to draw: (file name, identity, shot); `counts` says how many of whom."""
    album = []
    for identity, (person, count) in enumerate(zip(people, counts, strict=True), start=1):
        for _ in range(count):
            flaw = rng.choice(FLAWS) if rng.random() < share_flawed else None
            album.append((identity, make_shot(rng, person, flaw)))
            if rng.random() < 0.02:  # a near-duplicate: the same shot, saved again
                album.append(
                    (identity, SimpleNamespace(**{**vars(album[-1][1]), "noise": 4.0}))
                )
    order = rng.permutation(len(album))
    return [(f"{number:06d}.jpg", *album[i]) for number, i in enumerate(order, start=1)]


def draw_identity(person, shots, folder):
    """Draws the photographs of one person: {file name: (box, landmarks)}."""
    model, found = Model(person, 42), {}
    for name, shot in shots:
        image, landmarks, part, _ = photograph(model, shot)
        save(folder / name, image, shot.quality)
        box = box_of(part, shot.eye_distance, shot.flaw, np.random.default_rng(shot.seed))
        found[name] = box, landmarks
    return found


ATTRIBUTES = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose
Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee
Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard
Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair
Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young
""".split()


def attributes_of(p, shot):
    hair = p.style != "bald"
    true = {
        "Male": p.male, "Young": p.young, "Smiling": shot.smile > 0.5,
        "Eyeglasses": shot.glasses != "none", "Bald": not hair,
        "Bangs": p.style in ("fringe", "bob"), "Black_Hair": hair and p.hair_kind == 0,
        "Brown_Hair": hair and p.hair_kind in (1, 2),
        "Blond_Hair": hair and p.hair_kind in (3, 4), "Gray_Hair": hair and p.hair_kind == 6,
        "Blurry": shot.blur > 1.8, "Goatee": p.beard == "goatee", "No_Beard": p.beard == "none",
        "5_o_Clock_Shadow": p.beard == "stubble", "Bushy_Eyebrows": p.brow_thick > 0.075,
        "Big_Nose": p.nose_width > 0.29, "Pointy_Nose": p.nose_out > 0.41,
        "Big_Lips": p.upper_lip + p.lower_lip > 0.2, "Wearing_Hat": shot.hat != "none",
        "Wearing_Lipstick": p.lipstick, "Mouth_Slightly_Open": shot.open > 0.03,
        "Narrow_Eyes": p.eye_height * (1 - shot.shut) < 0.08, "Pale_Skin": p.tone == 0,
        "Chubby": p.width > 1.22 and p.jaw > 0.8, "Wearing_Necklace": shot.necklace,
        "Wearing_Earrings": shot.earrings,
        "Straight_Hair": p.style in ("long", "bob", "fringe"),
        "Wavy_Hair": p.style in ("wavy", "curly"),
        "Receding_Hairline": hair and p.hairline < -1.18,
    }  # fmt: skip
    return [1 if true.get(name) else -1 for name in ATTRIBUTES]


CELEBA_POINTS = [
    f"{point}_{axis}"
    for point in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    for axis in "xy"
]
BOX = ["image_id", "x_1", "y_1", "width", "height"]


def write_annotation(path, columns, names, rows):
    """CelebA's form: a count, the columns, then rows padded with blanks."""
    lines = [str(len(names)), " ".join(columns)]
    lines += [
        f"{i} " + " ".join(f"{v:3d}" for v in row) for i, row in zip(names, rows, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")


def draw_celeba(folder, rng, seed, people, counts, share_flawed):
    """CelebA's layout: img_celeba/, Anno/ and Eval/."""
    album, truth = make_album(rng, people, counts, share_flawed), {}
    shots = {identity: [] for identity in range(1, len(people) + 1)}
    for name, identity, shot in album:
        shots[identity].append((name, shot))
    items = [(people[i - 1], some, folder / "img_celeba") for i, some in shots.items()]
    for found in in_parallel(draw_identity, items, "people"):
        truth |= found
    for name in ("Anno", "Eval"):
        (folder / name).mkdir()
    names = [name for name, *_ in album]
    boxes = np.array([truth[name][0] for name in names]).round().astype(int)
    points = np.array([truth[name][1] for name in names]).reshape(-1, 10).round().astype(int)
    attributes = [attributes_of(people[identity - 1], shot) for _, identity, shot in album]
    write_annotation(folder / "Anno" / "list_bbox_celeba.txt", BOX, names, boxes)
    write_annotation(
        folder / "Anno" / "list_landmarks_celeba.txt", CELEBA_POINTS, names, points
    )
    write_annotation(folder / "Anno" / "list_attr_celeba.txt", ATTRIBUTES, names, attributes)
    partition = np.random.default_rng(seed).choice(3, len(people) + 1, p=[0.8, 0.1, 0.1])
    lines = "".join(f"{name} {identity}\n" for name, identity, _ in album)
    (folder / "Anno" / "identity_CelebA.txt").write_text(lines)
    lines = "".join(f"{name} {partition[identity]}\n" for name, identity, _ in album)
    (folder / "Eval" / "list_eval_partition.txt").write_text(lines)


# ----------------------------------------------------------------------- CelebAMask-HQ's layout


def overlapping_parts(part, lens):
    """The masks of one photograph as CelebAMask-HQ has them.

    Skin continues under eyes, nose, lips and glasses, the neck under a necklace.
    """
    masks = {name: part == number for name, number in PART.items() if number}
    masks["eye_g"] |= lens
    # A nostril or the rim of glasses is no hole.
    closed = (
        cv2.morphologyEx(
            np.isin(part, HEAD).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)
        )
        > 0
    )
    masks["skin"] = closed & ~np.isin(part, [PART["hair"], PART["hat"]])
    masks["neck"] |= masks["neck_l"]
    return {name: mask for name, mask in masks.items() if mask.sum() > 12}


def draw_masked_face(number, person, seed, folder):
    """A photograph of 512 px with its masks; returns (covered, landmarks)."""
    rng = np.random.default_rng(seed)
    shot = make_shot(rng, person)
    shot.angles, shot.noise, shot.blur = shot.angles * 0.7, shot.noise / 2, 0
    middle = (256 + rng.normal(0, 8), 246 + rng.normal(0, 10))
    model, unit = Model(person, 95), rng.uniform(105, 128)
    image, landmarks, part, lens = photograph(model, shot, (512, 512), unit, middle, 1.0)
    save(folder / "CelebA-HQ-img" / f"{number}.jpg", image)
    masks = folder / "CelebAMask-HQ-mask-anno" / str(number // 2000)
    for name, mask in overlapping_parts(part, lens).items():
        white = np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255
        save(masks / f"{number:05d}_{name}.png", white)
    return shot.cover != "none" or shot.glasses == "dark", landmarks


def draw_masked_faces(folder, seed, people, count):
    """CelebAMask-HQ's layout, and landmarks.csv: points, and which faces are covered."""
    numbers = [index * 30000 // max(1, count) for index in range(count)]
    identities = [index % len(people) + 1 for index in range(count)]
    items = [
        (number, people[identity - 1], [seed, 6, index], folder)
        for index, (number, identity) in enumerate(zip(numbers, identities, strict=True))
    ]
    found = in_parallel(draw_masked_face, items, "part masks")
    rows = [
        (number, identity, covered, *landmarks.ravel())
        for number, identity, (covered, landmarks) in zip(
            numbers, identities, found, strict=True
        )
    ]
    table = pd.DataFrame(rows, columns=["number", "identity", "covered", *LANDMARK_COLUMNS])
    table.to_csv(folder / "landmarks.csv", index=False, float_format="%.2f")


# ---------------------------------------------------------------------------- two unpaired sets


def animal(rng, striped):
    """The head of a horse or a zebra, as a Cloud in eye distances."""
    d = 46
    coat = linear(
        np.array([[120, 72, 40], [70, 44, 30], [168, 112, 64], [46, 40, 38], [186, 170, 150]])[
            rng.integers(5)
        ]
        + rng.normal(0, 8, 3)
    )
    poll, muzzle = np.array([-0.2, -0.9, 0.0]), np.array([rng.uniform(1.0, 1.5), 1.1, 0.5])
    path = np.stack(
        [
            poll + (muzzle - poll) * t + np.array([0, -0.12 * np.sin(np.pi * t), 0])
            for t in np.linspace(0, 1, 12)
        ]
    )
    head = tube(
        path,
        np.interp(
            np.linspace(0, 1, 12),
            [0, 0.15, 0.35, 0.7, 0.9, 1],
            [0.3, 0.62, 0.62, 0.4, 0.42, 0.1],
        ),
        "skin",
        coat,
        d,
        0.15,
    )
    neck = tube(
        [[-0.2, -0.6, -0.1], [-0.9, 0.6, -0.5], [-1.7, 2.4, -0.9], [-2.4, 4.2, -1.0]],
        [0.5, 0.75, 1.0, 1.3],
        "neck",
        coat,
        d,
        0.1,
    )
    mane = tube(
        [[-0.25, -1.25, 0.0], [-0.85, -0.5, -0.45], [-1.7, 0.7, -0.85], [-2.6, 2.6, -1.1]],
        [0.12, 0.26, 0.3, 0.3],
        "hair",
        coat * 0.35 + 0.01,
        d,
        0.2,
    )
    beasts = [head, neck, mane]
    for side in (-1, 1):
        beasts.append(
            tube(
                [
                    [-0.3, -1.3, side * 0.3],
                    [-0.38, -1.6, side * 0.42],
                    [-0.3, -2.0, side * 0.42],
                ],
                [0.16, 0.2, 0.02],
                "l_ear",
                coat * 0.8,
                d,
            )
        )
        along = poll + (muzzle - poll) * 0.3
        beasts.append(
            ball(
                along + np.array([0.12, -0.2, side * 0.55]),
                [0.13, 0.12, 0.1],
                "l_eye",
                [0.01, 0.008, 0.008],
                d,
                1.8,
            )
        )
        beasts.append(
            ball(
                muzzle + np.array([-0.1, -0.18, side * 0.2]),
                [0.09, 0.12, 0.09],
                "nose",
                [0.012, 0.01, 0.01],
                d,
                0.5,
            )
        )
    cloud = Cloud.join(beasts)
    bold = np.isin(cloud.part, [PART["skin"], PART["neck"], PART["hair"]])
    if striped:
        x, y, z = cloud.xyz.T
        warp = 0.35 * np.sin(2.3 * x + rng.uniform(0, 6)) + 0.3 * np.sin(
            1.9 * y + 2 * z + rng.uniform(0, 6)
        )
        stripe = step(
            -0.25, 0.25, np.sin(rng.uniform(8, 11) * (0.75 * y + 0.55 * x + 0.25 * warp)) - 0.1
        )
        dark = np.maximum(stripe, step(0.75, 1.0, 0.55 * x + 0.6 * y - 0.35))
        cloud.colour[bold] = (
            linear(np.array([225, 220, 208])) * (1 - dark[:, None]) + 0.012 * dark[:, None]
        )[bold].astype(np.float32)
    else:
        cloud.colour[bold] *= (
            1
            - 0.6
            * step(0.85, 1.1, 0.55 * cloud.xyz[bold, 0] + 0.6 * cloud.xyz[bold, 1] - 0.35)[
                :, None
            ]
        )
    return cloud


def draw_animal(path, person, seed, striped):
    rng = np.random.default_rng(seed)
    shot = make_shot(rng, person)
    angles = [rng.choice([0, 180]) + rng.normal(-15, 22), rng.normal(0, 8), rng.normal(0, 6)]
    shot.angles = np.radians(angles)
    meadow = np.array([[150, 180, 215], [96, 124, 58], [80, 104, 52]])
    shot.background = linear(meadow + rng.normal(0, 16, (3, 3)))
    cloud = animal(rng, striped)
    unit, centre = rng.uniform(40, 56), (128 + rng.normal(0, 14), 120 + rng.normal(0, 10))
    light, _, _ = expose(cloud, Camera(shot, (256, 256), unit, centre), shot, rng)
    save(path, develop(light, shot, (256, 256), rng))


def painted(image, rng):
    """A painted version: flat brush strokes, brown tones, and the texture of the canvas."""
    for _ in range(2):
        image = cv2.bilateralFilter(image, 7, 45, 5)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
    tones = 0.35 * image + 0.65 * grey * np.array([1.04, 0.94, 0.78])
    tones = np.floor(tones / 22) * 22 + 11
    strokes = cv2.GaussianBlur(
        rng.standard_normal(image.shape[:2]).astype(np.float32), (0, 0), sigmaX=3, sigmaY=0.7
    )[..., None]
    return np.clip(tones + 26 * strokes, 0, 255).astype(np.uint8)


def draw_selfie_or_portrait(path, people, seed, portrait):
    rng = np.random.default_rng(seed)
    person = people[0 if portrait else int(rng.integers(2, len(people) + 1)) - 1]
    shot = make_shot(rng, person)
    shot.distance = 12 if portrait else rng.uniform(4.5, 6.5)
    shot.cover, shot.angles = "none", shot.angles * 0.8
    unit, centre = rng.uniform(38, 46), (80 + rng.normal(0, 5), 78 + rng.normal(0, 5))
    image, *_ = photograph(Model(person, 52), shot, (160, 160), unit, centre)
    save(path, painted(image, rng) if portrait else image)


def draw_unpaired(folder, seed, people, count):
    """CycleGAN's layout: horse2zebra/ and selfie2portrait/, a third as many to test."""
    pictures = [
        (part + domain, index)
        for part, many in (("train", count), ("test", -(-count // 3)))
        for domain in "AB"
        for index in range(many)
    ]
    animals, faces = [], []
    for number, (name, index) in enumerate(pictures):
        is_b, entry = name.endswith("B"), [seed, 9, number]
        place = folder / "horse2zebra" / name / f"n{index:05d}.jpg"
        animals.append((place, people[0], entry, is_b))
        place = folder / "selfie2portrait" / name / f"{index:05d}.jpg"
        faces.append((place, people, entry, is_b))
    in_parallel(draw_animal, animals, "horses and zebras")
    in_parallel(draw_selfie_or_portrait, faces, "selfies and portraits")


# ------------------------------------------------------------- covered faces, a clip, all of it


def draw_covered_face(path, people, seed):
    rng = np.random.default_rng(seed)
    person = people[int(rng.integers(len(people)))]
    shot = make_shot(rng, person, covered=1)
    size = (int(rng.integers(200, 340)), int(rng.integers(240, 380)))
    image, *_ = photograph(Model(person, 80), shot, size, size[0] * rng.uniform(0.22, 0.3))
    save(path, image)


def draw_covered(folder, seed, people, count):
    """Photographs of covered faces, without masks."""
    items = [(folder / f"covered_{i:02d}.jpg", people, [seed, 7, i]) for i in range(count)]
    in_parallel(draw_covered_face, items, "covered faces")


def clip_frame(time, model, seed):
    """A head that turns while a microphone passes in front of it; `time` is 0 to 1."""
    shot = make_shot(np.random.default_rng([seed, 8]), model.person)
    angles = [45 * np.sin(2 * np.pi * time), 6 * np.sin(4 * np.pi * time), 0]
    shot.angles, shot.smile, shot.open, shot.shut = np.radians(angles), 0.6 * time, 0.0, 0.1
    shot.cover, shot.cover_at = "microphone", np.array([3.2 - 6.4 * time, -0.35])
    shot.gaze, shot.hat, shot.noise, shot.glasses = np.zeros(2), "none", 1.5, "none"
    return photograph(model, shot, (240, 280), 58, (120, 128))[0]


def draw_clip(path, seed, person):
    """A clip of twenty frames."""
    model = Model(person, 60)
    items = [(time, model, seed) for time in np.linspace(0, 1, 20)]
    frames = in_parallel(clip_frame, items, "frames")
    motion_jpeg = cv2.VideoWriter_fourcc(*"MJPG")
    film = cv2.VideoWriter(str(path), motion_jpeg, 10, frames[0].shape[1::-1])
    for frame in frames:
        film.write(frame[..., ::-1])
    film.release()


def draw_sample(sample, settings):
    """Draws the whole sample to the folder `sample`; the parameters of 0.1 are its settings.

    Nothing is drawn where the same code has drawn it with the same settings. All goes to a
    hidden folder that is renamed at the end, so an interrupted run leaves nothing half made.
    """
    code = Path(__file__).read_bytes()
    key = hashlib.sha256(code + json.dumps(settings, sort_keys=True).encode()).hexdigest()
    drawn_by = sample / "drawn_by.txt"
    if drawn_by.exists() and drawn_by.read_text() == key:
        print("The sample is already drawn.")
        return
    s = SimpleNamespace(**settings)
    building = sample.with_name(".building_sample")
    shutil.rmtree(building, ignore_errors=True)
    rng = np.random.default_rng(s.seed)
    people = make_people(rng, s.many_people + s.few_people)
    counts = [s.images_each] * s.many_people + [s.images_few] * s.few_people
    draw_celeba(building / "celeba", rng, s.seed, people, counts, s.share_flawed)
    draw_masked_faces(building / "CelebAMask-HQ", s.seed, people, s.masked_faces)
    draw_unpaired(building, s.seed, people, s.unpaired)
    draw_covered(building / "covered_faces", s.seed, people, s.covered)
    draw_clip(building / "turning_head.avi", s.seed, people[2])
    (building / "drawn_by.txt").write_text(key)
    shutil.rmtree(sample, ignore_errors=True)
    building.rename(sample)

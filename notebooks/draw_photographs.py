"""Photographs of the people of draw_people: pose, light, what they wear, what covers them.

A *shot* holds everything that changes from photograph to photograph.
"""

from functools import lru_cache
from types import SimpleNamespace

import cv2
import numpy as np

from draw_light import (
    ball,
    Camera,
    linear,
    noise,
    on_sphere,
    Radius,
    rotation,
    Scene,
    sheet,
    smoothstep,
    surface,
    tube,
    unit,
    vertex_normals,
)  # fmt: skip
from draw_people import (
    cloth_inside,
    EYE_DISTANCE,
    eye_look,
    face_hair,
    mesh,
    morph,
    NOSE_TIP,
    PART,
    skin_look,
)  # fmt: skip

BOTH = dict(slit="eye-{}-slit", wide="eye-{}-opened-up", shut="eye-{}-closure")
BOTH |= dict(up="eyebrows-{}-up", down="eyebrows-{}-down")
EXPRESSIONS = {
    "smile": {"mouth-corner-puller": 0.9, "mouth-retraction": 0.25, "slit": 0.25},
    "laugh": {
        "mouth-corner-puller": 1,
        "mouth-open": 0.35,
        "mouth-part-later": 0.6,
        "slit": 0.4,
    },
    "speak": {"mouth-open": 0.35, "mouth-part-later": 0.4},
    "neutral": {},
    "surprise": {"mouth-open": 0.5, "up": 0.8, "wide": 0.5},
    "frown": {"down": 0.7, "mouth-depression": 0.4},
    "pout": {"mouth-pursing": 0.5, "mouth-protusion": 0.3},
}
OFTEN = [0.36, 0.2, 0.1, 0.22, 0.03, 0.05, 0.04]
NECKLINES = dict(crew=0.3, vee=0.15, shirt=0.2, jacket=0.17, roll=0.08, wide=0.1)
PATTERNS = ["plain", "stripes", "checks", "flecks"]
PIVOT = np.array([0.0, -1.4, -1.15])  # where the head turns on the neck, from the eyes


def muted(rng, low, high, most=1.0):
    """A random colour, seldom a loud one."""
    colour = rng.uniform(low, high, 3)
    return linear(colour.mean() + (colour - colour.mean()) * most * rng.beta(1.2, 3.0))


def make_shot(rng, person, flaw=None, covered=0.05):
    """What changes from photograph to photograph.

    flaw: None, "profile", "tiny", "blurred" or "wrong box"; covered: how often a face is.
    """
    yaw, pitch, roll = rng.normal(0, 16), rng.normal(0, 7), rng.normal(0, 6)
    if flaw == "profile":
        yaw = rng.choice([-1, 1]) * rng.uniform(58, 75)
    warm, azimuth, height = rng.normal(0, 0.08), rng.normal(0, 0.9), rng.normal(0.45, 0.35)
    gaze = rng.normal(0, 0.1, 2) - 0.6 * np.radians([yaw, -pitch]) * (rng.random() < 0.6)
    clear, dark = (0.86, 0.04) if person.wears_glasses else (0.02, 0.04)
    cover = str(rng.choice(["hand", "microphone", "mask", "phone"]))
    return SimpleNamespace(
        flaw=flaw, angles=np.radians([yaw, pitch, roll]), body=rng.normal(0, 0.15),
        eye_distance=13 if flaw == "tiny" else np.exp(rng.uniform(np.log(34), np.log(62))),
        offset=rng.uniform([-9, -9], [9, 9]), distance=rng.uniform(7, 22),
        expression=str(rng.choice(list(EXPRESSIONS), p=OFTEN)), amount=rng.uniform(0.35, 1.0),
        shut=1.0 if rng.random() < 0.03 else max(0, rng.normal(0.02, 0.12)),
        gaze=np.clip(gaze, [-0.4, -0.25], [0.4, 0.25]),
        glasses=str(rng.choice(["none", "clear", "dark"], p=[1 - clear - dark, clear, dark])),
        hat=str(rng.choice(["none", "cap", "beanie", "brim"], p=[0.92, 0.03, 0.025, 0.025])),
        necklace=rng.random() < (0.03 if person.male else 0.15),
        earrings=rng.random() < (0.6 if person.wears_earrings else 0.01),
        cover=cover if rng.random() < covered else "none",
        cover_at=rng.uniform([-0.4, -1.1], [0.4, -0.3]), cover_turn=rng.normal(0, 0.35),
        light=unit(np.array([np.sin(azimuth), np.sin(height), np.cos(azimuth) + 0.15])),
        soft=rng.uniform(0.02, 0.2), contrast=rng.uniform(0.2, 0.75),
        rim=max(0, rng.normal(0, 0.5)), exposure=rng.uniform(0.85, 1.2),
        warm=np.array([1 + warm, 1, 1 - warm]), cool=np.array([1 - warm / 2, 1, 1 + warm / 2]),
        cloth=[muted(rng, 8, 235), muted(rng, 60, 240)], metal=False,
        neckline=str(rng.choice(list(NECKLINES), p=list(NECKLINES.values()))),
        pattern=str(rng.choice(PATTERNS, p=[0.66, 0.14, 0.1, 0.1])),
        background=np.stack([muted(rng, 15, 235, 0.4) for _ in range(3)]),
        blur=rng.uniform(2.2, 3.5) if flaw == "blurred" else max(0.0, rng.normal(0.3, 0.35)),
        noise=rng.uniform(0.4, 3.5), quality=int(rng.integers(58, 83)),
        jewel=linear([212, 170, 80] if rng.random() < 0.5 else [200, 200, 205]),
        hat_colour=muted(rng, 10, 220), mask_colour=muted(rng, 20, 250),
        seed=int(rng.integers(2**31)),
    )  # fmt: skip


def plain_shot(person, **changes):
    """A front view in even light, with changes; `angles` are in degrees."""
    shot = make_shot(np.random.default_rng(person.seed), person, covered=0)
    quiet = dict(angles=[0, 0, 0], body=0.0, expression="neutral", shut=0.0, gaze=np.zeros(2))
    quiet |= dict(
        glasses="none", hat="none", necklace=False, earrings=False, blur=0.0, noise=1.0
    )
    quiet |= dict(light=unit(np.array([0.5, 0.5, 0.8])), contrast=0.6, rim=0.0, distance=14.0)
    quiet |= (
        dict(neckline="crew", pattern="plain", offset=np.zeros(2), eye_distance=46) | changes
    )
    quiet["angles"] = np.radians(quiet["angles"])
    return SimpleNamespace(**vars(shot) | quiet)


def pose(points, shot, model):
    """Turns head and body about the neck; what is below the neck follows the body alone."""
    head = rotation(*shot.angles)
    body = rotation(shot.body + 0.35 * shot.angles[0], 0, 0.15 * shot.angles[2])
    pivot = PIVOT * model.scale
    apart = points - pivot
    height = points[..., 1] / model.scale + 0.25 * (points[..., 2] + 0.3)
    share = smoothstep(-1.85, -1.1, height)[..., None]
    turned = share * (apart @ head.T) + (1 - share) * (apart @ body.T)
    return turned + head @ pivot  # the eyes stay where they are


def with_expression(model, shot):
    """The points of the model with the shot's expression."""
    weights = {n: w * shot.amount for n, w in EXPRESSIONS[shot.expression].items()}
    weights["shut"] = min(1, shot.shut)
    for name in [name for name in BOTH if name in weights]:
        weight = weights.pop(name)
        weights |= {BOTH[name].format(side): weight for side in ("left", "right")}
    points = model.points.copy()
    for origin, some in zip(("african", "asian", "caucasian"), model.person.mix, strict=True):
        morph(points, {f"expression/units/{origin}/{n}": w * some for n, w in weights.items()})
    return points


def person_surfaces(model, shot, points):
    """Skin with clothes, eyes, teeth and tongue."""
    m, p = mesh(), model.person
    base = m.base[m.corners]
    used = (
        (m.groups == "body") & (base[..., 1].min(1) > 3.9) & (np.abs(base[..., 0]).max(1) < 2.6)
    )
    thick = 0.05 * smoothstep(-0.02, 0.05, cloth_inside(m.base, shot))[:, None]
    skin = points + thick * vertex_normals(points, m.corners[used])
    where, turned = dict(rest=m.base, uv=m.uv), rotation(*shot.angles)
    parts = [
        surface(
            skin,
            m.corners[used],
            PART["skin"],
            p.skin,
            0.3,
            "skin",
            skin_look(model, shot),
            **where,
        )
    ]
    for number, side in enumerate("rl"):
        look = eye_look(model, pose(model.eyes[number], shot, model), shot.gaze, turned)
        triangles = m.corners[m.groups == f"helper-{side}-eye"]
        parts.append(
            surface(points, triangles, PART[f"{side}_eye"], 0.5, 0.9, "eye", look, **where)
        )
    for group, colour in (
        ("upper-teeth", [0.62, 0.56, 0.47]), ("lower-teeth", [0.6, 0.54, 0.45]),
        ("tongue", [0.33, 0.09, 0.09]),
    ):  # fmt: skip
        triangles = m.corners[m.groups == f"helper-{group}"]
        parts.append(surface(points, triangles, PART["mouth"], colour, 0.9, **where))
    return parts


# --------------------------------------------------------------------------------- what is worn


def grain_look(strength, frequency, bumps=None):
    """A look of cloth: uneven colour, and bumps by a function of the surface's own points."""

    def look(seen):
        uneven = noise(seen.rest, frequency, 2)
        seen.colour = seen.colour * (1 + strength * uneven)[:, None]
        if bumps:
            seen.bumps = bumps(*seen.rest.T)

    return look


def hat_edge(z, shot, model):
    """Height of a hat's lower edge above the eyes."""
    front = dict(cap=0.62, beanie=0.5, brim=0.6)[shot.hat]
    return model.scale * (front + 0.16 * (z + 0.2) * (shot.hat != "cap"))


def hat(model, shot):
    s, kind, azimuth = model.scale, shot.hat, np.linspace(-np.pi, np.pi, 56, endpoint=False)
    edge = hat_edge(0.9 * np.cos(azimuth) - 0.7, shot, model) - model.middle[1]
    low = np.arctan2(edge, 0.9 * s)
    elevation = low + (np.pi / 2 - low) * np.linspace(0, 1, 16)[:, None]
    thick, tall = dict(cap=(0.09, 0.06), beanie=(0.11, 0.16), brim=(0.1, 0.24))[kind]
    radius = model.skull(azimuth, elevation) + s * (thick + tall * np.sin(elevation))
    crown = on_sphere(azimuth, elevation, radius, model.middle)
    knit = lambda x, y, z: 0.02 * np.sin(60 * np.arctan2(x, z)) * np.sin(30 * y)
    style = dict(gloss=0.05, look=grain_look(0.1, 30.0, knit if kind == "beanie" else None))
    parts, ring = [sheet(crown, PART["hat"], shot.hat_colour, True, **style)], crown[0]
    apart = ring - ring.mean(0)
    if kind == "beanie":
        folds = ((0.0, -0.06), (0.045, -0.05), (0.05, 0.16), (0.01, 0.2))
        band = [ring + apart * out + [0, up * s, 0] for out, up in folds]
        return [*parts, sheet(band, PART["hat"], shot.hat_colour, True, **style)]
    out, facing = np.linspace(0, 1, 7)[:, None, None], np.cos(azimuth)[:, None]
    if kind == "cap":
        reach = 0.75 * smoothstep(0.35, 0.95, facing)
        direction = unit(unit(apart * [1, 0, 1]) * [0.55, 0, 1] + [0, 0, 0.2])
        droop = -0.16 * out**1.5 + 0 * facing
    else:
        reach, direction = 0.55, unit(apart * [1, 0, 1])
        droop = -0.04 * out**1.5 + 0.05 * np.sin(2 * azimuth)[:, None] * out
    brim = ring + s * (reach * out * direction + droop * [0, 1, 0])
    for lift, shade in ((0, 0.9), (-0.02, 0.6)):
        colour = shot.hat_colour * shade
        parts.append(sheet(brim + [0, lift * s, 0], PART["hat"], colour, True, **style))
    return parts


def glasses(model, shot, points):
    p, s, parts, rims = model.person, model.scale, [], []
    style, glass = (
        dict(part=PART["eye_g"], gloss=0.8),
        "dark glass" if shot.glasses == "dark" else "glass",
    )
    skin = points[mesh().body] / s
    x, y, z = skin[(np.abs(skin[:, 0]) > 0.1) & (np.abs(skin[:, 0]) < 0.62)].T
    front = s * ((z + 0.22 * x**2)[np.abs(y + 0.02) < 0.2].max() + 0.04)
    angle = np.linspace(0, 2 * np.pi, 41)
    rounded = lambda v: np.sign(v) * np.abs(v) ** (2 / p.rim)
    for eye in model.eyes:
        x = eye[0] * 1.05 + 0.265 * s * rounded(np.cos(angle))
        y = eye[1] + s * ((0.21 if p.rim < 3 else 0.185) * rounded(np.sin(angle)) - 0.03)
        rims.append(np.stack([x, y, front - 0.22 * x**2 / s], 1))
        parts.append(
            tube(rims[-1], (0.014 if p.rim < 3.4 else 0.022) * s, colour=p.frame, **style)
        )
        fan = np.vstack([rims[-1].mean(0), rims[-1][:-1]])
        triangles = [[0, i, i % 40 + 1] for i in range(1, 41)]
        parts.append(surface(fan, triangles, PART["eye_g"], 0.02, 1.0, glass))
    inner = [rim[np.abs(rim[:, 0]).argmin()] for rim in rims]
    middle = np.mean(inner, 0) + [0, 0.03 * s, 0.03 * s]
    bridge = np.stack([inner[0], middle, inner[1]]) + [0, 0.05 * s, 0]
    parts.append(tube(bridge, 0.02 * s, colour=p.frame, **style))
    beside = model.skull(np.pi / 2, 0.0) + 0.03
    for side, rim in zip((-1, 1), rims, strict=True):
        hinge = rim[np.abs(rim[:, 0]).argmax()] + [0, 0.06 * s, 0]
        ear = np.array([side * beside, 0.0, -0.85 * s])
        path = np.stack([hinge, (0.75 * hinge + 0.25 * ear) * [1.02, 1, 1], ear])
        parts.append(tube(path, 0.016 * s, colour=p.frame, **style))
    return parts


def earrings(model, shot, points):
    s, parts, style = model.scale, [], dict(gloss=1.0, material="metal")
    angle = np.linspace(0, 2 * np.pi, 24)
    for lobe, side in zip(mesh().lobes, (-1, 1), strict=True):
        at = points[lobe] + np.array([side * 0.03, 0.05, 0.03]) * s
        ring = np.stack([0.25 * side * np.sin(angle) ** 2, np.cos(angle) - 1, np.sin(angle)], 1)
        if model.person.earring == 1:
            parts.append(
                tube(at + 0.16 * s * ring, 0.018 * s, PART["ear_r"], shot.jewel, **style)
            )
            continue
        drops = (
            ((0.02, 0.03), (0.14, 0.045), (0.26, 0.06))
            if model.person.earring
            else ((0, 0.05),)
        )
        for down, size in drops:
            parts.append(
                ball(at - [0, down * s, 0], size * s, PART["ear_r"], shot.jewel, **style)
            )
    return parts


def necklace(model, shot):
    s, azimuth = model.scale, np.linspace(-2.2, 2.2, 64)
    drop = np.interp(np.abs(azimuth), [0, 0.5, 1.2, 2.2], [-1.45, -1.41, -1.3, -1.12]) * s
    path = model.around_neck(azimuth, drop, 0.04)
    style = dict(gloss=1.0, material="metal")
    if model.person.beads:
        return [ball(at, 0.035 * s, PART["neck_l"], shot.jewel, **style) for at in path]
    size = np.array([0.06, 0.08, 0.03])
    pendant = ball(path[32] - [0, 0.09, 0], size, PART["neck_l"], shot.jewel, **style)
    return [tube(path, 0.016 * s, PART["neck_l"], shot.jewel, **style), pendant]


def collar(model, shot):
    azimuth = np.linspace(0.28, 2 * np.pi - 0.28, 60)
    azimuth = np.where(azimuth > np.pi, azimuth - 2 * np.pi, azimuth)
    facing = np.clip(np.cos(azimuth), 0, 1)
    rows = []
    for up, gap in ((0.0, 0.06), (0.22, 0.07), (0.26, 0.11), (0.16, 0.16), (-0.02, 0.2)):
        height = up - 1.62 - 0.28 * facing - 0.14 * facing**6 * (up < 0.1)
        rows.append(model.around_neck(azimuth, height * model.scale, gap * model.scale))
    colour = shot.cloth[shot.neckline == "jacket"]
    return [sheet(rows, PART["cloth"], colour, gloss=0.05, look=grain_look(0.06, 30.0))]


# ------------------------------------------------------------------------- what covers the face


@lru_cache(maxsize=1)
def hand_mesh():
    """The left hand of the base mesh, palm at the origin, fingers up: (points, triangles)."""
    m = mesh()
    used = (m.groups == "body") & (m.base[m.corners][..., 0].min(1) > 3.75)
    index = np.unique(m.corners[used])
    points = m.base[index]
    centre = points[points[:, 0] > 4.3].mean(0)
    up = unit(centre - points[points[:, 0] < 3.95].mean(0))
    apart = points - centre
    flat = np.linalg.svd(apart[apart @ up > 0])[2][2]  # the palm's normal
    side = unit(np.cross(up, flat))
    return (m.base - centre) @ np.stack([side, up, np.cross(side, up)], 1), m.corners[used]


def cover(model, shot, points):
    """A hand, a microphone, a telephone or a medical mask in front of the face; no part."""
    s, (x, y) = model.scale, shot.cover_at * model.scale
    if shot.cover == "hand":
        hand, triangles = hand_mesh()
        turn = rotation(shot.cover_turn, -0.2, 1.5 * shot.cover_turn + (0.6 if x > 0 else -0.6))
        hand = (hand * [1 if x > 0 else -1, 1, 1]) @ turn.T + [x, y, 0.75 * s]
        look = grain_look(0.1, 9.0, lambda *at: 0.003 * noise(3 * np.stack(at, 1), 8.0, 3))
        skin = dict(material="skin", look=look, rest=mesh().base)
        return [surface(hand, triangles, 0, model.person.skin, 0.3, **skin)]
    if shot.cover == "microphone":
        at = np.array([0.6 * x, min(y, -0.75 * s), 0.85 * s])
        path = at + unit(np.array([0.5 * x, -1.0, 0.35])) * np.array(
            [[0.15], [0.4], [1.0], [2.2]]
        )
        grip = tube(path, [0.12, 0.15, 0.13, 0.11], 0, 0.012, 20, gloss=0.6)
        return [ball(at, 0.24, 0, 0.05, gloss=0.5), grip]
    if shot.cover == "phone":
        a, b, c = np.meshgrid([-0.36, 0.36], [-0.75, 0.75], [-0.04, 0.04], indexing="ij")
        corner = np.stack([a, b, c], -1).reshape(-1, 3) @ rotation(0, 0.1, shot.cover_turn).T
        sides = [
            [0, 1, 3, 2],
            [4, 6, 7, 5],
            [0, 4, 5, 1],
            [2, 3, 7, 6],
            [1, 5, 7, 3],
            [0, 2, 6, 4],
        ]
        triangles = [side[:3] for side in sides] + [[side[0], *side[2:]] for side in sides]
        colour = shot.mask_colour.mean() * 0.15 + 0.01
        return [surface(corner + [1.6 * x, y, 0.8 * s], triangles, 0, colour, 0.9)]
    return medical_mask(model, shot, points) if shot.cover == "mask" else []


def medical_mask(model, shot, points):
    s, colour = model.scale, shot.mask_colour
    azimuth, rise = np.linspace(-1.3, 1.3, 45), np.linspace(0, 1, 19)[:, None]
    side, pole = np.abs(azimuth), np.array([0, 0, -1.2 * s])
    top = np.interp(side, [0, 0.2, 0.5, 0.9, 1.3], [-0.12, -0.2, -0.3, -0.38, -0.52])
    bottom = np.interp(side, [0, 0.5, 1.3], [-1.28, -1.12, -0.78])
    height = s * (bottom + (top - bottom) * rise)
    skin = points[mesh().body] - pole
    x, y, z = skin[(skin[:, 1] < -0.1 * s) & (skin[:, 1] > -1.25 * s)].T
    ranges = ((-np.pi, np.pi), (-1.25 * s, -0.1 * s))
    face = Radius(np.arctan2(x, z), y, np.hypot(x, z), *ranges, (90, 30), 1.2)
    over = np.interp(side, [0, 0.25, 0.6, 1.0, 1.3], [1.66, 1.58, 1.36, 1.14, 1.03])
    over = over + np.interp(rise, [0, 0.2, 0.6, 1], [-0.05, 0.12, 0.22, 0.04]) * np.exp(
        -5 * side**2
    )
    face = cv2.dilate(face(azimuth, height), np.ones((5, 5)))
    reach = cv2.GaussianBlur(np.maximum(0.8 * s * over, face), (0, 0), 1.5)
    reach = np.maximum(reach, face) + 0.06 * s
    rows = np.stack([reach * np.sin(azimuth), height, reach * np.cos(azimuth)], -1) + pole
    pleats = grain_look(0.06, 30.0, lambda x, y, z: 0.012 * np.sin(26 * y) * (np.abs(x) < 0.8))
    parts = [sheet(rows, 0, colour, gloss=0.05, look=pleats)]
    for side, column in ((-1, 0), (1, -1)):
        ear = np.array([side * 0.86, -0.1, -1.0]) * s
        for start in (rows[0, column], rows[-1, column]):
            path = np.stack([start, (start + ear) / 2 * [1.04, 1, 1], ear])
            parts.append(tube(path, 0.015, 0, colour, gloss=0.05))
    return parts


# ---------------------------------------------------------------------------------- photographs


def compose(model, shot):
    """(surfaces, sets of hairs, points with expression), all in the model's space."""
    points = with_expression(model, shot)
    parts = person_surfaces(model, shot, points)
    grown, own = face_hair(model, points), [SimpleNamespace(**vars(s)) for s in model.hair]
    if shot.cover == "mask" and model.person.beard != "none":
        grown.pop()
    if shot.hat != "none":
        parts += hat(model, shot)
        for s in own:
            _, y, z = s.lines[:, 0].T
            s.width = np.where(y > hat_edge(z, shot, model) - 0.02, 0, s.width)
    if shot.glasses != "none":
        parts += glasses(model, shot, points)
    if shot.earrings:
        parts += earrings(model, shot, points)
    if shot.necklace:
        parts += necklace(model, shot)
    if shot.neckline in ("shirt", "jacket"):
        parts += collar(model, shot)
    return parts + cover(model, shot, points), grown + own, points


def landmarks_of(model, points):
    """The five landmarks in space (5, 3), where CelebA's annotators put them.

    Measured: a network trained on drawn faces alone has a bias on real ones, and the other way
    round; the shifts below make both small. Pupils are high between the lids, and never above
    them; corners of the mouth are a little below those of the lips.
    """
    eyes = model.eyes * [0.96, 1, 1] + np.array([0, 0.06, 0.15]) * model.scale
    upper = np.array([points[lids[0]].mean(0) for lids in mesh().lids])
    eyes[:, 1] = np.minimum(eyes[:, 1], upper[:, 1])
    corners = points[mesh().mouth] - np.array([0, 0.015, 0]) * model.scale
    return np.array([*eyes, points[NOSE_TIP], *corners])


def photograph(
    model, shot, size=(178, 218), eye_distance=None, centre=None, fine=2, scene=None
):
    """A photograph: image, five landmarks (5, 2) in pixels, part of each pixel, lens mask.

    size: width and height in pixels; centre: where the middle of the eyes is; fine: rays a
    pixel and axis; scene: what `compose` gives, or a part of it.
    """
    if centre is None:
        centre = np.array([size[0] / 2, 0.47 * size[1]]) + shot.offset
    scale = (eye_distance or shot.eye_distance) / EYE_DISTANCE
    camera = Camera(shot.distance, scale, centre, size, fine)
    surfaces, strands, points = scene or compose(model, shot)
    surfaces, strands = (
        [SimpleNamespace(**vars(s)) for s in some] for some in (surfaces, strands)
    )
    for s in surfaces:
        s.points = pose(s.points, shot, model)
    for s in strands:
        s.lines = np.float32(pose(s.lines, shot, model))
    bright = 0.13 if shot.metal else 0.045 + 0.42 * model.person.skin.mean()
    shot.meter = (PART["skin"], bright)
    shot.hair_middle = pose(model.middle, shot, model)
    drawn = Scene(surfaces, strands, camera, shot)
    marks = pose(landmarks_of(model, points), shot, model)
    x, y, _ = camera.project(marks)
    image, part, lens = drawn.develop(size)
    return image, np.stack([x, y], 1) / fine, part, lens

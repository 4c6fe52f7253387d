"""Draws the sample: people and animals, in the files and folders of the real sets."""

import json
import os
import shutil
import time
import zipfile
from hashlib import sha256
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
from joblib import delayed, Parallel

from draw_light import (
    ball,
    Camera,
    hairs,
    linear,
    noise,
    rotation,
    Scene,
    sheet,
    smoothstep,
    tube,
    unit,
)
from draw_people import make_person, Model, PART
from draw_photographs import compose, make_shot, photograph, plain_shot
from helpers import LANDMARK_COLUMNS

FLAWS = ["profile", "tiny", "blurred", "wrong box"]
WORN = "hat glasses earrings necklace hat,earrings glasses,necklace - -".split()
FACE = "skin nose eye_g l_eye r_eye l_brow r_brow mouth u_lip l_lip".split()
AROUND_HAIR = "background skin neck cloth l_ear r_ear".split()


def in_parallel(work, items, what):
    """[work(*item) for item in items] on all cores, with a line of progress now and then."""

    def single(item):
        cv2.setNumThreads(1)
        return work(*item)

    started, results = time.perf_counter(), []
    jobs = (delayed(single)(item) for item in items)
    for result in Parallel(n_jobs=os.cpu_count(), return_as="generator")(jobs):
        results.append(result)
        if len(results) % max(1, len(items) // 5) == 0:
            seconds = time.perf_counter() - started
            print(f"{what}: {len(results)} of {len(items)}, {seconds:.0f} s", flush=True)
    return results


def save(path, image, quality=78):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    if path.suffix == ".png":
        options = [cv2.IMWRITE_PNG_COMPRESSION, 9]
    if not cv2.imwrite(str(path), image[..., ::-1], options):
        raise OSError(f"{path.name} could not be written: is the disk full?")


# ------------------------------------------------------------------------------ CelebA's layout


def box_of(part, unit_px, flaw, rng):
    """CelebA's kind of box: the face with a margin; off the face for "wrong box"."""
    face = np.isin(part, [PART[name] for name in FACE])
    columns, rows = np.flatnonzero(face.any(0)), np.flatnonzero(face.any(1))
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]])
    loose = rng.uniform(0.0, 0.35, (2, 2)) * unit_px
    low, high = low - loose[0], high + loose[1]
    return np.concatenate([low + 2.2 * unit_px * (flaw == "wrong box"), high - low])


def make_album(rng, people, counts, share_flawed):
    """All photographs to draw: (file name, identity, shot); `counts` says how many of whom."""
    album = []
    for identity, (person, count) in enumerate(zip(people, counts, strict=True), start=1):
        for _ in range(count):
            flaw = str(rng.choice(FLAWS)) if rng.random() < share_flawed else None
            album.append((identity, make_shot(rng, person, flaw)))
            if rng.random() < 0.02:  # a near-duplicate: the same shot, saved again
                album.append((identity, SimpleNamespace(**vars(album[-1][1]) | {"noise": 4.0})))
    order = rng.permutation(len(album))
    return [(f"{number:06d}.jpg", *album[i]) for number, i in enumerate(order, start=1)]


def draw_identity(person, shots, folder):
    """Draws the photographs of one person: {file name: (box, landmarks)}."""
    model, found = Model(person), {}
    for name, shot in shots:
        rng = np.random.default_rng(shot.seed)
        size = np.maximum([96, 120], shot.eye_distance * rng.uniform([3.7, 4.6], [4.7, 5.4]))
        size = (int(size[0]), int(size[1]))
        image, landmarks, part, _ = photograph(model, shot, size, fine=3)
        save(folder / name, image, shot.quality)
        found[name] = box_of(part, shot.eye_distance, shot.flaw, rng), landmarks
    return found


ATTRIBUTES = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose
Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee
Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard
Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair
Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young
""".split()


def attributes_of(p, shot):
    """CelebA's forty attributes, 1 or -1."""
    open_ = shot.expression in ("laugh", "speak", "surprise")
    true = {
        "Male": p.male, "Young": p.age < 45, "Smiling": shot.expression in ("smile", "laugh"),
        "Eyeglasses": shot.glasses != "none", "Bald": p.style == "bald",
        "Bangs": p.style == "fringe", "Black_Hair": p.hair_kind == "black",
        "Brown_Hair": p.hair_kind in ("dark", "brown", "chestnut"),
        "Blond_Hair": p.hair_kind in ("blond", "fair"), "Gray_Hair": p.hair_kind == "grey",
        "Blurry": shot.blur > 1.8, "Goatee": p.beard == "goatee", "No_Beard": p.beard == "none",
        "Mustache": p.beard in ("moustache", "goatee", "full"), "Rosy_Cheeks": p.blush > 1.1,
        "5_o_Clock_Shadow": p.beard == "stubble", "Bushy_Eyebrows": p.brow_thick > 0.048,
        "Bags_Under_Eyes": p.circles > 0.75, "Heavy_Makeup": p.lipstick and p.eye_shadow,
        "Wearing_Lipstick": p.lipstick, "Mouth_Slightly_Open": open_, "Pale_Skin": p.tone < 1,
        "Wearing_Hat": shot.hat != "none", "Wearing_Necklace": shot.necklace,
        "Wearing_Earrings": shot.earrings, "Sideburns": p.beard in ("short", "full"),
        "Straight_Hair": p.style in ("long", "bob", "fringe", "centre part") and not p.kinky,
        "Wavy_Hair": p.style in ("long waves", "curls"), "Receding_Hairline": p.recede > 0.25,
    }  # fmt: skip
    return [1 if true.get(name) else -1 for name in ATTRIBUTES]


POINTS = [
    f"{p}_{a}" for p in "lefteye righteye nose leftmouth rightmouth".split() for a in "xy"
]
BOX = ["image_id", "x_1", "y_1", "width", "height"]


def write_annotation(path, columns, names, rows):
    """CelebA's form: a count, the columns, then rows padded with blanks."""
    lines = [str(len(names)), " ".join(columns)]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name} " + " ".join(f"{v:3d}" for v in row))
    path.write_text("\n".join(lines) + "\n")


def draw_celeba(folder, rng, seed, people, counts, share_flawed):
    """CelebA's layout: img_celeba/, Anno/ and Eval/."""
    album, found = make_album(rng, people, counts, share_flawed), {}
    shots = {identity: [] for identity in range(1, len(people) + 1)}
    for name, identity, shot in album:
        shots[identity].append((name, shot))
    items = [(people[i - 1], some, folder / "img_celeba") for i, some in shots.items()]
    for some in in_parallel(draw_identity, items, "people"):
        found |= some
    anno, partition = folder / "Anno", folder / "Eval" / "list_eval_partition.txt"
    for place in (anno, partition.parent):
        place.mkdir(parents=True)
    names = [name for name, *_ in album]
    boxes = np.array([found[name][0] for name in names]).round().astype(int)
    points = np.array([found[name][1] for name in names]).reshape(-1, 10).round().astype(int)
    attributes = [attributes_of(people[identity - 1], shot) for _, identity, shot in album]
    write_annotation(anno / "list_bbox_celeba.txt", BOX, names, boxes)
    write_annotation(anno / "list_landmarks_celeba.txt", POINTS, names, points)
    write_annotation(anno / "list_attr_celeba.txt", ATTRIBUTES, names, attributes)
    of = np.random.default_rng(seed).choice(3, len(people) + 1, p=[0.8, 0.1, 0.1])
    lines = "".join(f"{name} {identity}\n" for name, identity, _ in album)
    (anno / "identity_CelebA.txt").write_text(lines)
    partition.write_text("".join(f"{name} {of[identity]}\n" for name, identity, _ in album))


# ----------------------------------------------------------------------- CelebAMask-HQ's layout


def outline(part, mouth_corners):
    """Parts as annotators outline them: hair without its strands, lips to their corners."""
    rows, columns = np.indices(part.shape)
    for x, y in mouth_corners:
        corner = np.hypot(columns - x, rows - y) < 3
        part = np.where(corner & (part == PART["skin"]), PART["l_lip"], part)
    hair = part == PART["hair"]
    around = np.isin(part, [PART[name] for name in AROUND_HAIR])
    area = (cv2.GaussianBlur(hair.astype(np.float32), (0, 0), 5) > 0.5) & (hair | around)
    _, nearest = cv2.distanceTransformWithLabels(
        hair.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    behind = np.zeros(nearest.max() + 1, part.dtype)  # the part that is nearest
    behind[nearest[~hair]] = part[~hair]
    behind[~np.isin(behind, [PART[name] for name in AROUND_HAIR])] = PART["skin"]
    return np.where(area, PART["hair"], np.where(hair, behind[nearest], part))


def overlapping_parts(part, lens):
    """The masks of one photograph as CelebAMask-HQ has them.

    Skin continues under eyes, nose, lips and glasses, the neck under a necklace.
    """
    masks = {name: part == number for name, number in PART.items() if number}
    masks["eye_g"] |= lens
    face = np.isin(part, [PART[name] for name in FACE]).astype(np.uint8)
    # A nostril or the rim of glasses is no hole.
    closed = cv2.morphologyEx(face, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)) > 0
    masks["skin"] = closed & ~np.isin(part, [PART["hair"], PART["hat"]])
    masks["neck"] |= masks["neck_l"]
    return {name: mask for name, mask in masks.items() if mask.sum() > 12}


def draw_masked_face(index, number, turn, person, seed, folder):
    """A photograph of 512 px with its masks; returns (covered, landmarks).

    Every rare part is worn in a quarter of the photographs.
    """
    rng = np.random.default_rng(seed)
    shot = make_shot(rng, person)
    shot.angles, shot.noise, shot.blur = shot.angles * 0.7, shot.noise / 2, 0
    worn = {
        "hat": rng.choice(["cap", "beanie", "brim"]),
        "glasses": rng.choice(["clear", "dark"]),
    }
    worn |= {"earrings": True, "necklace": True}
    shot.hat, shot.glasses, shot.earrings, shot.necklace = "none", "none", False, False
    for name in WORN[(index + turn) % 8].split(","):
        setattr(shot, name, worn.get(name))
    if shot.necklace:
        shot.neckline = "wide"
    middle, unit_px = (256 + rng.normal(0, 8), 246 + rng.normal(0, 10)), rng.uniform(105, 128)
    model = Model(person, 34000)
    image, landmarks, part, lens = photograph(model, shot, (512, 512), unit_px, middle, 2)
    save(folder / "CelebA-HQ-img" / f"{number}.jpg", image, 76)
    masks = folder / "CelebAMask-HQ-mask-anno" / str(number // 2000)
    for name, mask in overlapping_parts(outline(part, landmarks[3:]), lens).items():
        white = np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255
        save(masks / f"{number:05d}_{name}.png", white)
    return shot.cover != "none" or shot.glasses == "dark", landmarks


def draw_masked_faces(folder, seed, people, count):
    """CelebAMask-HQ's layout, and landmarks.csv: points, and which faces are covered."""
    items, rows = [], []
    for index in range(count):
        number, identity = index * 30000 // max(1, count), index % len(people) + 1
        items.append(
            (
                index,
                number,
                index // len(people),
                people[identity - 1],
                [seed, 6, index],
                folder,
            )
        )
        rows.append([number, identity])
    found = in_parallel(draw_masked_face, items, "part masks")
    rows = [(*row, covered, *p.ravel()) for row, (covered, p) in zip(rows, found, strict=True)]
    table = pd.DataFrame(rows, columns=["number", "identity", "covered", *LANDMARK_COLUMNS])
    table.to_csv(folder / "landmarks.csv", index=False, float_format="%.2f")


# ---------------------------------------------------------------------------- two unpaired sets


COATS = [
    [122, 74, 42],
    [84, 52, 34],
    [166, 118, 72],
    [52, 46, 44],
    [196, 184, 166],
    [140, 92, 58],
]


def coat_look(stripes):
    """A look: a horse's coat, or a zebra's; its stripes run across each limb."""

    def look(seen):
        rest, folds = seen.rest, 0.05 * noise(seen.rest, 4.0, 2)
        seen.colour = seen.colour * (1 + 2 * folds + 0.06 * noise(rest, 30.0, 1))[:, None]
        seen.bumps = 0.01 * folds
        if stripes:
            across = rest[:, 0] + 0.14 * noise(rest * [0.5, 1, 1], 2.2, 2)
            dark = smoothstep(0.12, -0.12, np.sin(stripes * across))[:, None]
            seen.colour = seen.colour * (1 - dark) + 0.012 * dark

    return look


def limb(path, radius, colour, look=None, flat=1.0):
    """A smooth tube through a few points; `rest` holds how far along it a point is."""
    path = np.array(path, float)
    steps = np.linspace(0, len(path) - 1, 5 * len(path))
    table = np.column_stack([path, radius])
    table = np.stack([np.interp(steps, range(len(path)), c) for c in table.T])
    table = np.stack(
        [np.convolve(np.pad(c, 2, "edge"), np.ones(5) / 5, "valid") for c in table]
    )
    part = tube(table[:3].T, table[3], 0, colour, 16, gloss=0.12, look=look)
    far = np.cumsum(np.linalg.norm(np.diff(table[:3], axis=1, prepend=table[:3, :1]), axis=0))
    middle = np.repeat(table[2], 16)
    part.points[:, 2] = middle + flat * (part.points[:, 2] - middle)
    part.rest = np.column_stack([np.repeat(far, 16) + 3 * path[0, 0], part.points[:, 1:]])
    return part


def animal(rng, stripes):
    """A horse or a zebra on grass: (surfaces, sets of hairs), its middle at the origin."""
    coat = linear([228, 222, 210] if stripes else COATS[rng.integers(6)] + rng.normal(0, 6, 3))
    look, dark = coat_look(stripes), linear([44, 37, 35])
    grazing = rng.random() < 0.3
    poll = np.array([1.67, 0.0, 0]) if grazing else np.array([1.42, rng.uniform(0.75, 1.0), 0])
    muzzle = poll + ([0.25, -0.62, 0] if grazing else [rng.uniform(0.45, 0.6), -0.42, 0])
    chest, along = np.array([0.85, 0.15, 0]), lambda t: poll + t * (muzzle - poll)
    back = (
        [-1.12, 0.1],
        [-0.85, 0.14],
        [-0.4, 0.08],
        [0.1, 0.02],
        [0.5, 0.05],
        [0.85, 0.1],
        [1.08, 0.08],
    )
    back = np.pad(back, ((0, 0), (0, 1)))
    nape = [chest - [0.25, 0.05, 0], 0.55 * chest + 0.45 * poll - [0.03, 0.02, 0], poll]
    face = [poll - [0.05, 0, 0], along(0.3) + [0.02, 0.03, 0], along(0.75), muzzle]
    nose = [along(0.85), muzzle, along(1) + 0.12 * unit(muzzle - poll)]
    parts = [
        limb(back, [0.1, 0.42, 0.44, 0.46, 0.46, 0.42, 0.12], coat, look, 0.82),
        limb(nape, [0.44, 0.3, 0.19], coat, look, 0.65),
        limb(face, [0.18, 0.2, 0.13, 0.12], coat, look, 0.75),
        limb(nose, [0.115, 0.135, 0.05], dark, flat=0.75),
    ]
    for z in (-0.22, 0.22):
        a, b = rng.normal(0, 0.16, 2)
        front = [
            [0.72, 0.1, 0.8 * z],
            [0.74 + 0.3 * a, -0.45, z],
            [0.76 + 0.7 * a, -0.8, z],
            [0.74 + a, -1.2, z],
            [0.8 + a, -1.42, z],
        ]
        hind = [
            [-0.72, 0.3, 0.5 * z],
            [-0.74, 0.0, z],
            [-0.74 + 0.3 * b, -0.38, z],
            [-0.92 + 0.8 * b, -0.78, z],
            [-0.86 + b, -1.2, z],
            [-0.8 + b, -1.42, z],
        ]
        parts.append(limb(front, [0.2, 0.16, 0.09, 0.06, 0.085], coat, look))
        parts.append(limb(hind, [0.2, 0.3, 0.24, 0.09, 0.06, 0.085], coat, look))
        for foot in (front[-1], hind[-1]):
            hoof = np.array(foot) + [[0, 0.06, 0], [0, 0, 0], [0, -0.06, 0]]
            parts.append(limb(hoof, [0.085, 0.1, 0.105], dark))
    for side in (-1, 1):
        ear = poll + [-0.02, 0.12, 0.1 * side]
        tip = [[0, 0, 0], [-0.01, 0.12, 0.04 * side], [0.03, 0.24, 0.04 * side]]
        parts.append(limb(ear + tip, [0.05, 0.07, 0.008], 0.8 * coat, look))
        parts.append(ball(along(0.32) + [0.03, 0.07, 0.15 * side], 0.035, 0, 0.01, gloss=2.0))
        parts.append(ball(muzzle + [0.04, 0.03, 0.07 * side], 0.03, 0, 0.01))
    count, t = 1500, np.linspace(0, 1, 12)[None, :, None]
    at, wild = rng.random((count, 1)), rng.normal(0, 1, (count, 1, 3))
    crest = (poll + [-0.12, 0.12, 0] + at * (chest + [-0.3, 0.42, 0] - poll))[:, None]
    fall = np.array([-0.08, -0.5, 0.3 * rng.choice([-1, 1])]) + 0.06 * wild
    mane = crest + t * ([-0.1, 0.2, 0] + 0.03 * wild if stripes else [-0.02, 0.1, 0])
    mane = mane if stripes else mane + t**1.5 * fall
    sway = t**1.3 * np.array([-0.25, -1.0, 0]) * rng.uniform(0.8, 1.1)
    tail = np.array([-1.1, 0.22, 0]) + t * [-0.2, 0, 0] + sway + 0.06 * wild * t * (2 - t)
    own = np.tile(0.25 * coat + 0.004, (count, 1))
    bars = np.where(np.sin(16 * at) > 0, 0.75, 0.02) * np.ones(3)
    sets = [
        hairs(mane, bars if stripes else own, 0, 0.008, 0.5),
        hairs(tail, own, 0, 0.008, 0.5),
    ]
    across, away = np.meshgrid(np.linspace(-14, 14, 30), np.linspace(-26, 5, 30), indexing="ij")
    grass = [[104, 118, 62], [150, 132, 84]][int(rng.random() < 0.4)] + rng.normal(0, 10, 3)
    field = sheet(np.stack([across, 0 * across - 1.47, away], -1), 0, linear(grass), gloss=0.02)
    field.look = grass_look
    turn = rotation(rng.choice([0, np.pi]) + rng.normal(0, 0.45), 0, 0)
    tilt = rotation(0, rng.uniform(0.04, 0.16), 0)
    for part in parts:
        part.points = part.points @ turn.T
    for one in sets:
        one.lines = np.float32(one.lines @ turn.T @ tilt.T)
    for part in [*parts, field]:
        part.points = part.points @ tilt.T
    return [*parts, field], sets


def grass_look(seen):
    uneven = 0.35 * noise(seen.rest * [1, 1, 0.5], 9.0, 3) + 0.2 * noise(seen.rest, 60.0, 1)
    seen.colour = seen.colour * (1 + uneven)[:, None]


def draw_animal(path, seed, striped, size=192):
    rng = np.random.default_rng(seed)
    shot = make_shot(rng, SimpleNamespace(wears_glasses=False, male=True, wears_earrings=False))
    sky = np.array([[186, 208, 232], [150, 160, 140], [96, 110, 70]]) + rng.normal(
        0, 14, (3, 3)
    )
    shot.background, shot.contrast = linear(sky), rng.uniform(0.5, 0.8)
    shot.light, shot.hair_middle = unit(np.array([rng.normal(0, 0.6), 0.9, 0.6])), np.zeros(3)
    shot.meter, centre = (-1, 1.0), size / 2 + rng.normal(0, 6, 2)
    camera = Camera(14.0, size * rng.uniform(0.24, 0.32), centre, (size, size), 2)
    scene = animal(rng, striped * rng.uniform(17, 24))
    save(path, Scene(*scene, camera, shot).develop((size, size))[0])


def draw_selfie_or_bust(path, people, seed, bust):
    """A selfie of one of the people, or a bronze bust of the first."""
    rng = np.random.default_rng(seed)
    person = people[0 if bust else int(rng.integers(1, len(people)))]
    shot = make_shot(rng, person)
    shot.distance, shot.metal = (12 if bust else rng.uniform(5, 7)), bust
    shot.cover, shot.angles, shot.blur = "none", shot.angles * 0.8, 0
    if bust:
        shot.hat, shot.glasses, shot.earrings, shot.necklace = "none", "none", False, False
        shot.expression, shot.gaze = "neutral", np.zeros(2)
    unit_px, centre = rng.uniform(44, 54), 96 + rng.normal(0, 6, 2)
    save(path, photograph(Model(person), shot, (192, 192), unit_px, centre, 3)[0])


def draw_unpaired(folder, seed, people, count):
    """CycleGAN's layout: horse2zebra/ and selfie2portrait/, a quarter as many to test."""
    animals, faces, number = [], [], 0
    for split, many in (("train", count), ("test", -(-count // 4))):
        for domain in "AB":
            for index in range(many):
                name, entry = f"{split}{domain}", [seed, 9, number]
                place = folder / "horse2zebra" / name / f"n{index:05d}.jpg"
                animals.append((place, entry, domain == "B"))
                place = folder / "selfie2portrait" / name / f"{index:05d}.jpg"
                faces.append((place, people, entry, domain == "B"))
                number += 1
    in_parallel(draw_animal, animals, "horses and zebras")
    in_parallel(draw_selfie_or_bust, faces, "selfies and busts")


# ------------------------------------------------------------- covered faces, a clip, all of it


def draw_covered_face(path, people, seed):
    rng = np.random.default_rng(seed)
    person = people[int(rng.integers(len(people)))]
    shot = make_shot(rng, person, covered=1)
    size = (int(rng.integers(240, 340)), int(rng.integers(280, 400)))
    unit_px, centre = size[0] * rng.uniform(0.2, 0.28), (size[0] / 2, size[1] * 0.47)
    save(path, photograph(Model(person), shot, size, unit_px, centre, 2)[0])


def clip_frame(at, person, shot):
    """A frame of the clip, `at` 0 to 1: the head turns and speaks, and a hand passes."""
    shot = SimpleNamespace(**vars(shot))
    shot.angles = np.radians([40 * np.sin(2 * np.pi * at), 6 * np.sin(4 * np.pi * at), 0])
    shot.expression, shot.amount = "speak", 0.5 + 0.5 * np.sin(26 * np.pi * at)
    shot.shut = float(abs(at - 0.3) < 0.012 or abs(at - 0.8) < 0.012)
    passing = (at - 0.45) / 0.3
    shot.cover = "hand" if 0 <= passing <= 1 else "none"
    shot.cover_at, shot.cover_turn = np.array([2.4 - 4.8 * passing, -0.7]), 0.1
    shot.gaze = np.array([-0.3 * shot.angles[0], 0])
    return photograph(Model(person), shot, (240, 280), 58, (120, 128), 2)[0]


def draw_clip(path, seed, person, frames=100, rate=25):
    """A clip of four seconds."""
    shot = make_shot(np.random.default_rng([seed, 8]), person)
    shot.hat, shot.noise, shot.glasses, shot.blur = "none", 1.0, "none", 0
    items = [(at, person, shot) for at in np.linspace(0, 1, frames)]
    pictures = in_parallel(clip_frame, items, "frames")
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (240, 280))
    film.set(cv2.VIDEOWRITER_PROP_QUALITY, 80)
    for picture in pictures:
        film.write(picture[..., ::-1])
    film.release()


def draw_steps(folder, person):
    """How one face is built up, in six pictures: for notebook 0.1."""
    bare = {"weights": {}, "style": "bald", "beard": "none"}
    macro = {n: w for n, w in person.weights.items() if n.startswith("macrodetails")}
    stages = {"1 base mesh": bare, "2 sex, age, origin": bare | {"weights": macro}}
    stages["3 bones"] = bare | {"weights": person.weights}
    stages |= {"4 skin, eyes": stages["3 bones"], "5 hair": {}, "6 light, expression": {}}
    for number, (name, changes) in enumerate(stages.items()):
        model = Model(SimpleNamespace(**vars(person) | changes), 26000)
        shot = plain_shot(person, angles=[20, 0, 0], neckline="crew")
        if number == 5:
            shot = make_shot(np.random.default_rng(5), person, covered=0)
            shot.angles, shot.expression, shot.amount = np.radians([20, 0, 0]), "smile", 0.8
        surfaces, strands, points = compose(model, shot)
        for part in surfaces if number < 3 else []:  # of clay
            part.look, part.colour, part.material = None, 0 * part.colour + 0.4, "plain"
        shown = surfaces, strands if number > 3 else [], points
        picture = photograph(model, shot, (220, 260), 58, (110, 125), 3, shown)[0]
        save(folder / f"{name}.jpg", picture)


def draw_sample(sample, settings):
    """Draws the whole sample to the folder `sample`; the parameters of 0.1 are its settings.

    All goes to a hidden folder that is renamed at the end, so an interrupted run leaves
    nothing half made. The same settings draw the same bytes; what was drawn with them is kept.
    """
    stamp = json.dumps(settings, sort_keys=True)
    if (sample / "made_by.txt").exists() and (sample / "made_by.txt").read_text() == stamp:
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
    places = [building / "covered_faces" / f"covered_{i:02d}.jpg" for i in range(s.covered)]
    items = [(place, people, [s.seed, 7, i]) for i, place in enumerate(places)]
    in_parallel(draw_covered_face, items, "covered faces")
    draw_clip(building / "turning_head.avi", s.seed, people[2 % len(people)], s.frames)
    draw_steps(building / "how_a_face_is_built_up", people[3 % len(people)])
    (building / "made_by.txt").write_text(stamp)
    shutil.rmtree(sample, ignore_errors=True)
    building.rename(sample)


def pack(sample, archive):
    """Packs a sample for the repository, the same bytes each time; prints the hash."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for path in sorted(sample.rglob("*")):
            if path.is_file() and path.name != "made_by.txt":
                entry = zipfile.ZipInfo(path.relative_to(sample).as_posix())
                packed.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    print(
        f"{archive.stat().st_size / 1e6:.1f} MB, sha256:",
        sha256(archive.read_bytes()).hexdigest(),
    )


def make_people(rng, count):
    """`count` people: tones and ages evenly, one after the other by the golden ratio."""
    at = (np.arange(count) * 0.6180339887 + rng.random()) % 1
    years = (np.arange(count) * 0.7548776662 + rng.random()) % 1
    sexes = rng.permutation(np.arange(count) % 2 == 0)
    return [
        make_person(rng, 9 * tone, bool(male), 18 + 52 * year)
        for tone, male, year in zip(at, sexes, years, strict=True)
    ]

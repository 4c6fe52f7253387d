"""The drawn sample: exact ground truth, the files of the real sets, the same for a seed."""

import hashlib

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import run_stages, small

from helpers import LANDMARK_COLUMNS, PARTS


@pytest.fixture(scope="session")
def masks(series):
    """One entry per image of the masked set: row of the table, image, masks by part."""
    folder = series / "data/sample/CelebAMask-HQ"
    entries = []
    for row in pd.read_csv(folder / "landmarks.csv").itertuples():
        paths = (folder / "CelebAMask-HQ-mask-anno" / str(row.number // 2000)).glob(
            f"{row.number:05d}_*.png"
        )
        found = {path.stem[6:]: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths}
        assert all(
            mask.shape == (512, 512, 3) and set(np.unique(mask)) == {0, 255}
            for mask in found.values()
        )
        image = cv2.imread(str(folder / "CelebA-HQ-img" / f"{row.number}.jpg"))
        entries.append((row, image, {name: mask[..., 0] > 0 for name, mask in found.items()}))
    return entries


def distance_to(mask, point):
    """Pixels from a point to the nearest pixel of a mask."""
    rows, columns = np.nonzero(mask)
    return np.hypot(columns - point[0], rows - point[1]).min()


def test_parts_have_the_names_of_the_real_set(masks):
    assert set().union(*(found for _, _, found in masks)) <= set(PARTS)
    assert all({"skin", "nose", "neck"} <= set(found) or row.covered for row, _, found in masks)
    assert all(image.shape == (512, 512, 3) for _, image, _ in masks)


def test_landmarks_lie_in_their_parts(masks):
    checked = 0
    for row, _, found in masks:
        points = np.array([getattr(row, name) for name in LANDMARK_COLUMNS]).reshape(5, 2)
        if row.covered:
            continue
        lips = np.any(
            [found[name] for name in ("u_lip", "l_lip", "mouth") if name in found], axis=0
        )
        # The person's right is on the left of the image.
        for name, point in zip(("r_eye", "l_eye", "nose"), points[:3], strict=True):
            if name in found and found[name].sum() > 150:
                assert distance_to(found[name], point) <= 2, (row.number, name)
                checked += 1
        for point in points[3:]:
            assert distance_to(lips, point) <= 2, (row.number, "mouth corner")
    assert checked >= 10


def test_left_parts_are_on_the_persons_left(masks):
    for _, _, found in masks:
        for part in ("eye", "brow", "ear"):
            if {f"l_{part}", f"r_{part}"} <= set(found):
                left, right = (np.nonzero(found[f"{side}_{part}"])[1].mean() for side in "lr")
                assert left > right


def test_skin_covers_the_face_without_holes(masks):
    for row, _, found in masks:
        if row.covered:
            continue
        over = np.any(
            [found[name] for name in ("hair", "hat", "eye_g") if name in found], axis=0
        )
        filled = np.zeros((512, 512), np.uint8)
        outlines, _ = cv2.findContours(
            found["skin"].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(filled, outlines, -1, 1, -1)
        holes = (filled > 0) & ~found["skin"] & ~over
        assert holes.sum() <= 0.003 * found["skin"].sum(), row.number


def test_boxes_hold_the_face(series):
    annotations = series / "data/sample/celeba/Anno"
    boxes = np.loadtxt(annotations / "list_bbox_celeba.txt", skiprows=2, usecols=range(1, 5))
    points = np.loadtxt(
        annotations / "list_landmarks_celeba.txt", skiprows=2, usecols=range(1, 11)
    ).reshape(-1, 5, 2)
    inside = (
        (points >= boxes[:, None, :2] - 3)
        & (points <= boxes[:, None, :2] + boxes[:, None, 2:] + 3)
    ).all((1, 2))
    assert 0.9 < inside.mean() < 1, "all but the boxes that are wrong on purpose"


def test_unpaired_sets_and_covered_faces_are_there(series):
    sample = series / "data/sample"
    for name in ("horse2zebra", "selfie2portrait"):
        for part in ("trainA", "trainB", "testA", "testB"):
            assert list((sample / name / part).glob("*.jpg")), (name, part)
    assert list((sample / "covered_faces").glob("*.jpg"))
    assert cv2.VideoCapture(str(sample / "turning_head.avi")).read()[0]


def test_one_seed_draws_the_same_bytes(series, tmp_path):
    run_stages(tmp_path, "0.1", **small("0.1"))

    def digests(folder):
        files = [path for path in sorted((folder / "data/sample").rglob("*")) if path.is_file()]
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    assert digests(series) == digests(tmp_path)


def test_a_drawn_sample_is_not_drawn_again(series):
    drawn = series / "data/sample/drawn_by.txt"
    stamp = drawn.stat().st_mtime_ns
    (series / "runs/sample/notebooks/0.1.json").rename(series / "0.1.json")
    try:
        run_stages(series, "0.1", **small("0.1"))
    finally:
        (series / "0.1.json").replace(series / "runs/sample/notebooks/0.1.json")
    assert drawn.stat().st_mtime_ns == stamp

"""The drawn sample: exact ground truth, the files of the real sets, the same for a seed."""

import hashlib

import cv2
import numpy as np
import pandas as pd
import pytest
import real_data
from conftest import run_stages, takes_a_minute

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
            x, y = point.round().astype(int)
            if (found["skin"] | lips)[y, x]:  # else the cheek of a profile hides it
                assert distance_to(lips, point) <= 2, (row.number, "mouth corner")
                checked += 1
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


FEW = {"seed": 3, "many_people": 1, "images_each": 2, "few_people": 1, "images_few": 1}
FEW |= {"share_flawed": 0.5, "masked_faces": 2, "unpaired": 1, "covered": 1, "frames": 2}


def digests(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return dict(zip([p.relative_to(folder).as_posix() for p in files], hashes, strict=True))


@takes_a_minute
def test_one_seed_draws_the_same_bytes(tmp_path):
    """By the notebook and by the program, which can also be packed; nothing is drawn twice."""
    pytest.importorskip("numba")
    from draw_sample import draw_sample, pack

    run_stages(tmp_path / "a", "0.1", draw=True, **FEW)
    first, second = tmp_path / "a/data/sample", tmp_path / "b"
    draw_sample(second, FEW)
    assert digests(first) == digests(second)
    drawn = (second / "made_by.txt").stat().st_mtime_ns
    draw_sample(second, FEW)
    assert (second / "made_by.txt").stat().st_mtime_ns == drawn, "it is not drawn again"
    for folder in (first, second):
        pack(folder, tmp_path / f"{folder.name}.zip")
    assert (tmp_path / "sample.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    names = {path.parent.name for path in second.rglob("*.jpg")}
    assert {"img_celeba", "CelebA-HQ-img", "trainA", "testB", "covered_faces"} <= names
    assert len(list((second / "how_a_face_is_built_up").iterdir())) == 6


def test_the_whole_sample_is_unpacked(tmp_path):
    folder = tmp_path / "sample"
    assert "files in" in real_data.unpack_sample(folder)
    names = [line.split()[0] for line in (folder / "celeba/Anno/identity_CelebA.txt").open()]
    assert {path.name for path in (folder / "celeba/img_celeba").iterdir()} == set(names)
    assert "is there" in real_data.unpack_sample(folder)
    people = pd.read_csv(folder / "celeba/Anno/identity_CelebA.txt", sep=" ", header=None)[1]
    counts = people.value_counts()
    assert len(counts) >= 70 and (counts >= 18).sum() >= 60
    masks = folder.glob("CelebAMask-HQ/CelebAMask-HQ-mask-anno/*/*.png")
    worn = pd.Series([path.stem[6:] for path in masks]).value_counts()
    assert worn[["hat", "eye_g", "ear_r", "neck_l"]].min() >= 28, "12 + 4 + 4 with a margin"


def test_a_share_of_the_sample_is_whole_in_itself(series):
    folder = series / "data/sample"
    anno = folder / "celeba/Anno"
    images = {path.name for path in (folder / "celeba/img_celeba").iterdir()}
    for name in ("list_bbox_celeba.txt", "list_landmarks_celeba.txt", "list_attr_celeba.txt"):
        count, _, *rows = (anno / name).read_text().splitlines()
        assert int(count) == len(rows)
        assert {row.split()[0] for row in rows} == images
    numbers = {int(path.stem) for path in (folder / "CelebAMask-HQ/CelebA-HQ-img").iterdir()}
    masks = folder.glob("CelebAMask-HQ/CelebAMask-HQ-mask-anno/*/*.png")
    assert {int(path.stem[:5]) for path in masks} == numbers
    assert set(pd.read_csv(folder / "CelebAMask-HQ/landmarks.csv")["number"]) == numbers


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_that_is_none_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match=r"share=.* must be more than 0 and at most 1"):
        real_data.unpack_sample(tmp_path / "sample", share)


def test_a_damaged_archive_is_refused(tmp_path, monkeypatch):
    archive = tmp_path / "sample.zip"
    archive.write_bytes(real_data.SAMPLE.read_bytes()[:-100])
    monkeypatch.setattr(real_data, "SAMPLE", archive)
    with pytest.raises(ValueError, match=r"sample\.zip is not what it should be"):
        real_data.unpack_sample(tmp_path / "sample", archive=archive)
    assert not (tmp_path / "sample").exists()

"""Real photographs: FACES_TEST_DATA names a folder with celeba/, CelebAMask-HQ/ and more."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_stages, small

DATA = os.environ.get("FACES_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="FACES_TEST_DATA is not set")


def people_of_the_original_criteria() -> list[int]:
    """Those with twenty images whose eyes are 30 px apart, the nose well between them."""
    read = dict(sep=r"\s+", header=None, index_col=0)
    points = pd.read_csv(f"{DATA}/celeba/Anno/list_landmarks_celeba.txt", skiprows=2, **read)
    identity = pd.read_csv(f"{DATA}/celeba/Anno/identity_CelebA.txt", **read)[1]
    left, right, nose = (points.to_numpy(float)[:, 2 * k : 2 * k + 2] for k in range(3))
    across = right - left
    distance = np.hypot(*across.T)
    yaw = ((nose - left) * across).sum(1) / distance**2
    passed = (distance > 30) & (np.abs(yaw - 0.5) <= 0.2)
    counts = identity.loc[points.index[passed]].value_counts()
    return sorted(counts.index[counts >= 20])


def test_selected_photographs_are_cropped(tmp_path):
    """As many people as the original criteria leave with twenty images."""
    run_stages(tmp_path, "1.3", dataset="celeba", data=DATA)
    names = ("train", "val", "selected", "cropped_landmarks", "rejected")
    tables = [pd.read_csv(tmp_path / f"csv/celeba/{name}.csv") for name in names]
    train, val, selected, cropped, rejected = tables
    people = len(people_of_the_original_criteria())
    assert people > 70
    assert train["label"].nunique() == people
    assert (len(train), len(val)) == (16 * people, 4 * people)
    test = selected.query("landmark_split == 'test'")
    assert len(test) > 200
    trained = selected.query("landmark_split == 'train'")
    assert not set(test["identity"]) & set(trained["identity"])
    rejected = rejected.query("stage == 1.3")
    assert len(selected) == len(cropped) + len(rejected)
    assert len(rejected) < 10


def test_occluded_faces_are_tested_or_source_images(tmp_path):
    """Twenty photographs of CelebAMask-HQ, five of them occluded, and four from the web."""
    source, folder = Path(DATA) / "CelebAMask-HQ", tmp_path / "data/CelebAMask-HQ"
    images, masks = "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"
    listed = json.loads((source / "occluded.json").read_text())
    others = [path.stem for path in sorted((source / images).glob("*.jpg"))]
    chosen = [*list(listed)[:5], *[name for name in others if name not in listed][:15]]
    (folder / images).mkdir(parents=True)
    for image_id in chosen:
        name = f"{image_id}.jpg"
        (folder / images / name).symlink_to(source / images / name)
        for mask in source.glob(f"{masks}/*/{int(image_id):05d}_*.png"):
            (folder / masks / mask.parent.name).mkdir(parents=True, exist_ok=True)
            (folder / masks / mask.parent.name / mask.name).symlink_to(mask)
    (folder / "occluded.json").write_text((source / "occluded.json").read_text())
    (tmp_path / "own").mkdir()
    for path in sorted((Path(DATA) / "covered_faces").iterdir())[:4]:
        (tmp_path / "own" / path.name).symlink_to(path)
    settings = small("3.1", "3.4") | {"own_photographs": tmp_path / "own"}
    settings |= {"data": tmp_path / "data", "val_count": 3, "test_count": 5}
    settings |= {"occluders": ROOT / "benchmarks/occluders.json", "occluder_sources": "even"}
    run_stages(tmp_path, "3.1", "3.4", dataset="celeba", **settings)
    scores = pd.read_csv(tmp_path / "csv/celeba/occlusion_scores.csv")
    sets = {"clean", "occluded", "drawn occluders", "microphone"}
    assert set(scores["test_set"]) == sets
    tested = scores.query("test_set == 'occluded'")
    assert (tested["count"] == 2).all(), "three of the five are source images"
    assert (scores[["dice", "iou"]].stack() <= 1).all()
    assert len(list((tmp_path / "runs/celeba/face_masks").glob("*.png"))) == 4

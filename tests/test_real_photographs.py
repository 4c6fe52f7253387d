"""Real photographs: FACES_TEST_DATA names a folder with celeba/, CelebAMask-HQ/ and more."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_stages, small

DATA = os.environ.get("FACES_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="FACES_TEST_DATA is not set")


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("real")
    run_stages(output, "1.2", "1.3", dataset="celeba", data=DATA)
    return output


def test_selection_finds_the_identities_of_the_original_criteria(real):
    names = ("train", "val", "selected")
    train, val, selected = (pd.read_csv(real / f"csv/celeba/{name}.csv") for name in names)
    assert train["label"].nunique() == 77
    assert (len(train), len(val)) == (1232, 308)
    test = selected.query("landmark_split == 'test'")
    assert len(test) == 260
    trained = selected.query("landmark_split == 'train'")
    assert not set(test["identity"]) & set(trained["identity"])


def test_every_photograph_is_cropped(real):
    selected = pd.read_csv(real / "csv/celeba/selected.csv")
    cropped = pd.read_csv(real / "csv/celeba/cropped_landmarks.csv")
    rejected = pd.read_csv(real / "csv/celeba/rejected.csv").query("stage == 1.3")
    assert len(selected) == len(cropped) + len(rejected)
    assert len(rejected) < 10


def test_occluded_faces_are_tested_and_never_trained_on(tmp_path):
    """Thirty photographs of CelebAMask-HQ, ten of them occluded, and eight from the web."""
    source, folder = Path(DATA) / "CelebAMask-HQ", tmp_path / "data/CelebAMask-HQ"
    images, masks = "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"
    listed = json.loads((source / "occluded.json").read_text())
    others = [path.stem for path in sorted((source / images).glob("*.jpg"))]
    chosen = [*list(listed)[:10], *[name for name in others if name not in listed][:20]]
    (folder / images).mkdir(parents=True)
    for image_id in chosen:
        name = f"{image_id}.jpg"
        (folder / images / name).symlink_to(source / images / name)
        for mask in source.glob(f"{masks}/*/{int(image_id):05d}_*.png"):
            (folder / masks / mask.parent.name).mkdir(parents=True, exist_ok=True)
            (folder / masks / mask.parent.name / mask.name).symlink_to(mask)
    (folder / "occluded.json").write_text((source / "occluded.json").read_text())
    (tmp_path / "own").mkdir()
    for path in sorted((Path(DATA) / "covered_faces").iterdir())[:8]:
        (tmp_path / "own" / path.name).symlink_to(path)
    settings = small("3.1", "3.4") | {"own_photographs": tmp_path / "own"}
    settings |= {"data": tmp_path / "data", "val_count": 5, "test_count": 8}
    run_stages(tmp_path, "3.1", "3.4", dataset="celeba", **settings)
    scores = pd.read_csv(tmp_path / "csv/celeba/occlusion_scores.csv")
    sets = {"clean", "occluded", "drawn occluders", "microphone"}
    assert set(scores["test_set"]) == sets
    assert (scores.query("test_set == 'occluded'")["count"] == 10).all()
    assert (scores[["dice", "iou"]].stack() <= 1).all()
    assert len(list((tmp_path / "runs/celeba/face_masks").glob("*.png"))) == 8

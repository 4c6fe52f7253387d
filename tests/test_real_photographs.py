"""Real photographs, where FACES_TEST_DATA names a folder that holds celeba/, CelebAMask-HQ/ and covered_faces/."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import known, ROOT

DATA = os.environ.get("FACES_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="FACES_TEST_DATA is not set: no real photographs here")


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("real")
    run_real(output, DATA, "1.2", "1.3")
    return output


def run_real(output, data, *stages, **settings):
    pairs = [f"{name}={value}" for name, value in {"data": data, "output": output, **settings}.items()]
    subprocess.run([sys.executable, str(ROOT / "notebooks/run.py"), *stages, "--dataset", "celeba", "--set", *pairs], check=True)


def test_selection_finds_the_persons_of_the_seed_filter(real):
    train, val, selected = (pd.read_csv(real / f"csv/celeba/{name}.csv") for name in ("train", "val", "selected"))
    assert train["label"].nunique() == 77
    assert (len(train), len(val)) == (1232, 308)
    test = selected.query("landmark_split == 'test'")
    assert len(test) == 260
    assert not set(test["identity"]) & set(selected.query("landmark_split == 'train'")["identity"])


def test_every_photograph_is_cropped(real):
    selected = pd.read_csv(real / "csv/celeba/selected.csv")
    cropped = pd.read_csv(real / "csv/celeba/cropped_landmarks.csv")
    rejected = pd.read_csv(real / "csv/celeba/rejected.csv").query("stage == 1.3")
    assert len(selected) == len(cropped) + len(rejected)
    assert len(rejected) < 10


def test_faces_that_are_covered_judge_and_never_train(tmp_path):
    """Thirty photographs of CelebAMask-HQ, ten of them covered, and eight photographs from the web."""
    source, folder = Path(DATA) / "CelebAMask-HQ", tmp_path / "data/CelebAMask-HQ"
    listed = json.loads((source / "occluded.json").read_text())
    covered = list(listed)[:10]
    others = [path.stem for path in sorted((source / "CelebA-HQ-img").glob("*.jpg")) if path.stem not in listed][:20]
    (folder / "CelebA-HQ-img").mkdir(parents=True)
    for image_id in covered + others:
        (folder / "CelebA-HQ-img" / f"{image_id}.jpg").symlink_to(source / "CelebA-HQ-img" / f"{image_id}.jpg")
        for mask in source.glob(f"CelebAMask-HQ-mask-anno/*/{int(image_id):05d}_*.png"):
            (folder / "CelebAMask-HQ-mask-anno" / mask.parent.name).mkdir(parents=True, exist_ok=True)
            (folder / "CelebAMask-HQ-mask-anno" / mask.parent.name / mask.name).symlink_to(mask)
    (folder / "occluded.json").write_text((source / "occluded.json").read_text())
    (tmp_path / "own").mkdir()
    for path in sorted((Path(DATA) / "covered_faces").iterdir())[:8]:
        (tmp_path / "own" / path.name).symlink_to(path)
    settings = {name: value for name, value in known(("3.1", "3.4")).items() if name not in ("masked_faces", "persons")}
    run_real(tmp_path, tmp_path / "data", "3.1", "3.4", **settings, own_photographs=tmp_path / "own", val_count=5, test_count=8)
    scores = pd.read_csv(tmp_path / "csv/celeba/occlusion_scores.csv")
    assert set(scores["photographs"]) == {"clean", "covered", "drawn over", "microphone"}
    assert (scores.query("photographs == 'covered'")["count"] == 10).all()
    assert (scores[["dice", "iou"]].stack() <= 1).all()
    assert len(list((tmp_path / "runs/celeba/face_masks").glob("*.png"))) == 8

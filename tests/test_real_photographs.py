"""Real CelebA photographs, where FACES_TEST_DATA names a folder that holds celeba/."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

DATA = os.environ.get("FACES_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="FACES_TEST_DATA is not set: no real photographs here")


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("real")
    command = [
        sys.executable,
        str(ROOT / "notebooks/run.py"),
        "1.2",
        "1.3",
        "--dataset",
        "celeba",
        "--set",
        f"DATA={DATA}",
        f"OUTPUT={output}",
    ]
    subprocess.run(command, check=True)
    return output


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

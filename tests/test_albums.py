"""0.2: folders of photographs become a data set that 1.1 reads; what is unsure is set aside."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import run_stages
from PIL import Image

from faces import albums, selection


def unit(*rows):
    rows = np.array(rows, float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_strangers_are_those_unlike_the_others():
    same = unit([1, 0.1, 0], [1, 0, 0.1], [1, 0.1, 0.1])
    stranger, another = unit([0, 1, 0]), unit([0, 0, 1])
    found = albums.find_strangers(np.concatenate([stranger, same, another]), 0.25)
    assert found.tolist() == [True, False, False, False, True]
    assert not albums.find_strangers(same, 0.25).any()
    assert not albums.find_strangers(np.concatenate([stranger, another]), 0.25).any()
    assert not albums.find_strangers(same[:1], 0.25).any()


def test_folders_are_listed_with_all_their_files(tmp_path):
    for name in (
        "ada/2019/a.jpg",
        "ada/b.HEIC",
        "ada/.DS_Store",
        "zoë x/c.png",
        "__MACOSX/d.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = albums.list_albums(tmp_path)
    assert listed["person"].tolist() == ["ada", "ada", "zoë x"]
    assert [path.name for path in listed["path"]] == ["a.jpg", "b.HEIC", "c.png"]
    for empty in (tmp_path / "ada/2019/a.jpg", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="make one for each person"):
            albums.list_albums(empty)


@pytest.fixture
def stand_in(monkeypatch):
    """The calls of `datasets` that are used, on a table in memory."""

    class Rows(list):
        def cast_column(self, *_):
            return self

        def remove_columns(self, names):
            rows = [{key: row[key] for key in row if key not in names} for row in self]
            return SimpleNamespace(to_pandas=lambda: pd.DataFrame(rows))

    picture = {"path": "x.png", "bytes": b"png"}
    row = {"image": picture, "celeb_id": 7, "Male": True, "Smiling": False}
    rows = Rows([row, row | {"celeb_id": 9, "image": {"path": None, "bytes": b"jpg"}}])
    rows.column_names = ["image", "celeb_id", "Male", "Smiling"]
    module = SimpleNamespace(load_dataset=lambda *_, **__: rows, Image=lambda **_: None)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return rows


def test_a_parquet_file_becomes_folders(tmp_path, stand_in):
    attributes = albums.unpack_parquet(tmp_path / "part.parquet", tmp_path / "albums")
    assert (tmp_path / "albums/7/part_000000.png").read_bytes() == b"png"
    assert (tmp_path / "albums/9/part_000001.jpg").read_bytes() == b"jpg"
    assert attributes.loc["7/part_000000.png"].to_dict() == {"Male": True, "Smiling": False}
    stand_in.column_names = ["picture", "who"]
    with pytest.raises(
        ValueError, match="needs columns image and celeb_id; it has picture, who"
    ):
        albums.unpack_parquet(tmp_path / "part.parquet", tmp_path / "albums")


def test_without_datasets_a_parquet_file_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"a\.parquet needs a package: pip install datasets"):
        albums.unpack_parquet(tmp_path / "a.parquet", tmp_path)


def test_what_is_written_is_read_back(tmp_path):
    """Points, boxes and who is who; a large photograph shrinks with its points."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        path = tmp_path / f"album/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 200), (9, 90, 200)).save(path)
        points, box = rng.uniform(50, 150, (5, 2)), np.array([20.0, 20, 150, 160])
        rows.append({"person": path.parent.name, "path": path, "points": points, "box": box})
    kept = pd.DataFrame(rows).sort_values("path")
    names = [path.relative_to(tmp_path / "album").as_posix() for path in kept["path"]]
    attributes = pd.DataFrame({"Male": [True, False, True, False]}, names)
    albums.write_celeba(kept, tmp_path / "celeba", tmp_path / "album", attributes)
    faces, read = selection.read_celeba(tmp_path / "celeba")
    assert faces["identity"].tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(
        faces[selection.LANDMARK_COLUMNS], np.stack(kept["points"]).reshape(-1, 10), atol=0.06
    )
    assert read["Male"].tolist() == [True, False, True, False]
    assert not read["Smiling"].any()
    listed = pd.read_csv(tmp_path / "celeba/files.csv")
    assert listed["file"].tolist() == names
    assert not selection.near_duplicates(faces, read).any()


def test_the_series_goes_on_with_your_photographs(series, tmp_path):
    """Folders without annotations, one file of each wrong kind, then 1.1 on what 0.2 wrote."""
    people = series / "runs/sample/albums"
    done = run_stages(tmp_path, "0.2", dataset="family", people=people)
    assert "[1/1] 0.2_your_own_photographs" in done.stdout, "nothing of the sample is needed"
    tables = tmp_path / "csv/family"
    found = pd.read_csv(tables / "found_faces.csv")
    reasons = pd.read_csv(tables / "rejected.csv").set_index("image_id")["reason"]
    names = {path.split("/")[1]: reason for path, reason in reasons.items()}
    assert names["two people.jpg"] == "2 faces"
    assert names["sky.jpg"] == "no face was found"
    assert "cannot be decoded" in names["cut off.jpg"]
    assert "letter.txt" in names
    files = sum(path.is_file() for path in people.rglob("*"))
    assert len(found) + len(reasons) == files
    celeba = tmp_path / "data/family/celeba"
    assert len(list((celeba / "img_celeba").iterdir())) == len(found)
    assert set(pd.read_csv(celeba / "people.csv")["person"]) == set(found["person"])
    settings = {"images_each": 3, "val_each": 1, "unseen_people": "0"}
    run_stages(tmp_path, "1.1", dataset="family", **settings)
    train = pd.read_csv(tables / "train.csv")
    assert train["identity"].nunique() == 3
    assert len(train) == 6


def test_a_data_set_that_was_there_is_not_replaced(series, tmp_path):
    there = tmp_path / "data/family/celeba/img_celeba"
    there.mkdir(parents=True)
    (there / "mine.jpg").write_bytes(b"mine")
    settings = {"people": series / "runs/sample/albums"}
    done = run_stages(tmp_path, "0.2", dataset="family", check=False, **settings)
    assert done.returncode != 0
    assert "was not made by this notebook: choose another DATASET or DATA" in done.stderr
    assert (there / "mine.jpg").read_bytes() == b"mine"

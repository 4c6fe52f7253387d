"""1.1: criteria, splits and the spread-out choice, on small tables."""

import numpy as np
import pandas as pd
import pytest

from faces import selection
from helpers import BOX_COLUMNS, LANDMARK_COLUMNS
from notebooks import celeba_files

HEADERS = {
    "list_bbox_celeba": "image_id x_1 y_1 width height",
    "list_landmarks_celeba": " ".join(LANDMARK_COLUMNS),
    "list_attr_celeba": "Male Young Smiling Eyeglasses Blurry",
}


@pytest.fixture
def celeba(tmp_path):
    """Three images of two people in CelebA's files."""
    anno = tmp_path / "Anno"
    anno.mkdir()
    values = {
        "list_bbox_celeba": "10 10 100 120",
        "list_landmarks_celeba": "40 50 80 50 60 75 45 100 75 100",
        "list_attr_celeba": " 1 -1  1 -1 -1",
    }
    for name, header in HEADERS.items():
        rows = [f"{i}.jpg {values[name]}" for i in (1, 2, 3)]
        (anno / f"{name}.txt").write_text("\n".join(["3", header, *rows]) + "\n")
    (anno / "identity_CelebA.txt").write_text("1.jpg 7\n2.jpg 7\n3.jpg 9\n")
    return tmp_path


def test_annotations_are_read_and_joined(celeba):
    faces, attributes = selection.read_celeba(celeba)
    assert faces["identity"].tolist() == [7, 7, 9]
    assert faces.loc["2.jpg", BOX_COLUMNS].tolist() == [10, 10, 100, 120]
    assert attributes.loc["1.jpg"].tolist() == [True, False, True, False, False]


def test_an_image_that_a_file_lacks_is_left_out(celeba, capsys):
    path = celeba / "Anno" / "list_bbox_celeba.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    faces, attributes = selection.read_celeba(celeba)
    assert faces.index.tolist() == attributes.index.tolist() == ["1.jpg", "2.jpg"]
    assert "1 images lack a row" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("list_bbox_celeba", "3.jpg", "2.jpg", "2.jpg is listed twice"),
        ("list_bbox_celeba", "120", "tall", "column height holds missing or non-numeric"),
        ("list_bbox_celeba", " height", "", "rows have more fields than its header"),
        ("list_bbox_celeba", "width", "width depth", "column height holds missing"),
        ("list_attr_celeba", "Blurry", "Sharp", "no column Blurry"),
    ],
)
def test_a_broken_file_is_one_sentence(celeba, name, old, new, message):
    path = celeba / "Anno" / f"{name}.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        selection.read_celeba(celeba)


@pytest.mark.parametrize("name", ["list_bbox_celeba", "identity_CelebA"])
def test_an_empty_file_is_named(celeba, name):
    (celeba / "Anno" / f"{name}.txt").write_text("")
    with pytest.raises(ValueError, match=rf"{name}\.txt has no rows"):
        selection.read_celeba(celeba)


@pytest.mark.parametrize("name", HEADERS)
def test_a_missing_file_is_named(celeba, name):
    (celeba / "Anno" / f"{name}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}\.txt is missing"):
        selection.read_celeba(celeba)


def test_faults_and_near_duplicates(celeba):
    faces, attributes = selection.read_celeba(celeba)
    assert selection.near_duplicates(faces, attributes).tolist() == [False, True, False]
    faces.loc["1.jpg", "box_width"] = 0
    faces.loc["2.jpg", "box_x"] = 300
    faults = selection.box_faults(faces).tolist()
    assert faults == ["the box has no area", "the box does not hold its landmarks", ""]


def test_pose_agrees_with_a_rotated_face():
    """A face that is rolled keeps its pitch; moving the nose sideways changes yaw alone."""
    points = np.array([[0, 0], [60, 0], [30, 42], [15, 70], [45, 70]], float)
    angle = np.radians(15)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = points + np.where(np.arange(5) == 2, 12, 0)[:, None] * [1, 0]
    rows = np.stack([points, points @ rotation.T, moved]).reshape(3, 10)
    poses = selection.pose(pd.DataFrame(rows, columns=LANDMARK_COLUMNS))
    np.testing.assert_allclose(poses["roll"], [0, 15, 0], atol=1e-9)
    np.testing.assert_allclose(poses["pitch"], 0.6)
    np.testing.assert_allclose(poses["yaw"].iloc[[0, 2]], [0.5, 0.7])


def test_spread_out_beats_chance_and_never_repeats():
    rng = np.random.default_rng(2)
    table = np.full((3, 30), -1)
    for person, count in enumerate((20, 25, 30)):
        table[person, :count] = rng.permutation(1000)[:count]
    bits = rng.random((3, 30, 40)) < 0.3
    chosen = selection.spread_out(table, bits, 20)
    assert (chosen >= 0).all()
    assert all(len(set(row)) == 20 for row in chosen)

    def closest(line, rows):
        own = bits[line, [table[line].tolist().index(row) for row in rows]]
        distance = (own[:, None] != own).sum(2) + 99 * np.eye(len(own), dtype=int)
        return distance.min()

    few = selection.spread_out(table, bits, 8)
    for line in range(3):
        at_random = [closest(line, rng.permutation(table[line, :20])[:8]) for _ in range(20)]
        assert closest(line, few[line]) > np.mean(at_random)


def test_shares_are_kept():
    groups = pd.Series([0] * 60 + [1] * 30 + [2] * 10, index=range(100))
    for count in (10, 33, 50, 100):
        drawn = selection.draw_keeping_shares(
            groups, groups.index, count, np.random.default_rng(0)
        )
        assert len(set(drawn)) == count
        exact = count * np.array([0.6, 0.3, 0.1])
        found = groups[drawn].value_counts().reindex([0, 1, 2], fill_value=0)
        assert (np.abs(found - exact) < 1).all()


def unseen_of(wanted, seed=0):
    """Of twenty people with ten images and ten with six; the twenty qualify."""
    identity = pd.Series(np.repeat(np.arange(30), np.repeat([10, 6], [20, 10])))
    passed = np.ones(len(identity), bool)
    rng = np.random.default_rng(seed)
    return selection.choose_unseen(wanted, identity, passed, np.arange(20), 15, rng)


def test_unseen_people_come_in_four_ways(tmp_path):
    assert len(unseen_of("0.125")) == 8, "a share is at least eight people"
    assert (unseen_of("0.125") >= 20).all(), "people with too few images come first"
    assert len(unseen_of("0")) == 0
    assert len(unseen_of("12")) == 12
    assert len(unseen_of("100")) == 28, "two are left to recognise"
    assert unseen_of("3,17,99").tolist() == [3, 17]
    assert unseen_of("5,").tolist() == [5]
    path = tmp_path / "unseen.txt"
    path.write_text("4\n2\n")
    assert unseen_of(str(path)).tolist() == [2, 4]
    with pytest.raises(ValueError, match=r"unseen_people=nobody\.txt is not a share"):
        unseen_of("nobody.txt")


def test_the_people_of_celebas_test_images_may_be_the_unseen_ones(celeba):
    identity = selection.read_celeba(celeba)[0]["identity"]
    with pytest.raises(FileNotFoundError, match=r"partition\.txt is missing.*Eval folder"):
        celeba_files.official_unseen(celeba, identity)
    (celeba / "Eval").mkdir()
    path = celeba / "Eval" / "list_eval_partition.txt"
    path.write_text("1.jpg 0\n2.jpg 0\n3.jpg 2\n")
    assert celeba_files.official_unseen(celeba, identity).tolist() == [9]
    path.write_text("1.jpg 0\n2.jpg 0\n3.jpg 1\n")
    with pytest.raises(ValueError, match=r"partition\.txt marks none of these"):
        celeba_files.official_unseen(celeba, identity)
    path.unlink()
    kaggle = "image_id,partition\n1.png,2\n2.png,2\n3.png,0\n"
    (celeba / "list_eval_partition.csv").write_text(kaggle)
    assert celeba_files.official_unseen(celeba, identity).tolist() == [7]


def test_landmark_test_people_are_in_no_other_landmark_split():
    identity = pd.Series([1, 1, 2, 3, 4])
    split = pd.Series(["train", "val", "extra", "unseen", ""])
    expected = ["train", "val", "train", "test", "unused"]
    assert selection.landmark_splits(split, identity).tolist() == expected
    testing = np.array([True, False, False, False, True])
    expected = ["test", "unused", "train", "unused", "test"]
    assert selection.landmark_splits(split, identity, testing).tolist() == expected


def test_extra_people_come_whole():
    identity = pd.Series(np.repeat([1, 2, 3, 4], [1, 5, 5, 5]))
    free = np.ones(len(identity), bool)
    people = selection.whole_people(identity, free, 11, np.random.default_rng(0))
    assert len(people) == 2 and 1 not in people

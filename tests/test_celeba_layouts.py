"""CelebA as the official page, torchvision and Kaggle hand it out: found, read, or refused."""

import numpy as np
import pandas as pd
import pytest
from conftest import run_stages, small
from PIL import Image

from faces import selection
from helpers import BOX_COLUMNS, LANDMARK_COLUMNS
from notebooks import celeba_files

ATTRIBUTES = ["Male", "Young", "Smiling", "Eyeglasses", "Blurry"]
ALIGNED = [69, 111, 108, 111, 88, 135, 71, 152, 106, 152]
TABLES = ("identity_CelebA", "list_bbox_celeba", "list_landmarks_celeba", "list_attr_celeba")


def tables(count=12, names="{:06d}.jpg", aligned=False):
    """Name of a file -> table by image_id, two images of each person."""
    index = pd.Index([names.format(i) for i in range(1, count + 1)], name="image_id")
    rng = np.random.default_rng(0)
    shift = np.zeros((count, 1)) if aligned else rng.integers(100, 300, (count, 1))
    points = np.array(ALIGNED) + shift + rng.integers(-2, 3, (count, 10))
    boxes = np.hstack([points[:, :2] - 30, np.full((count, 2), 120)])
    rows = {
        "identity_CelebA": (np.arange(count)[:, None] // 2 + 1, ["identity"]),
        "list_bbox_celeba": (boxes.astype(int), ["x_1", "y_1", "width", "height"]),
        "list_landmarks_celeba": (points.astype(int), LANDMARK_COLUMNS),
        "list_attr_celeba": (rng.choice([-1, 1], (count, 5)), ATTRIBUTES),
    }
    return {name: pd.DataFrame(values, index, cols) for name, (values, cols) in rows.items()}


def write_text(table, path, header=True):
    """CelebA's text format: a count and the columns, then names and values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{name} {' '.join(map(str, row))}" for name, *row in table.itertuples()]
    first = [str(len(table)), " ".join(table.columns)] if header else []
    path.write_text("\n".join([*first, *rows]) + "\n")


def write_images(folder, names, size):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, (90, 120, 150)).save(folder / name)


def official(root):
    found = tables()
    for name, table in found.items():
        write_text(table, root / "Anno" / f"{name}.txt", header=name != "identity_CelebA")
    write_images(root / "img_celeba", found["list_attr_celeba"].index, (500, 600))
    return found


def torchvision(root):
    """All files flat, the aligned images, boxes of the images in the wild."""
    found, wild = tables(aligned=True), tables()
    found["list_bbox_celeba"] = wild["list_bbox_celeba"]
    for name, table in found.items():
        called = name.replace("landmarks", "landmarks_align")
        write_text(table, root / f"{called}.txt", header=name != "identity_CelebA")
    write_images(root / "img_align_celeba", found["list_attr_celeba"].index, (178, 218))
    return found


def kaggle(root):
    """CSV files, images two folders deep, no identities."""
    found, wild = tables(aligned=True), tables()
    found["list_bbox_celeba"] = wild["list_bbox_celeba"]
    root.mkdir(parents=True)
    for name, table in found.items():
        if name != "identity_CelebA":
            table.to_csv(root / f"{name.replace('landmarks', 'landmarks_align')}.csv")
    images = root / "img_align_celeba" / "img_align_celeba"
    write_images(images, found["list_attr_celeba"].index, (178, 218))
    return found


def everything_official(root):
    """The official download with both kinds of landmarks, and the aligned images unpacked."""
    found, wild = tables(aligned=True), tables()
    for name, table in {
        **found,
        "list_landmarks_celeba": wild["list_landmarks_celeba"],
    }.items():
        write_text(table, root / "Anno" / f"{name}.txt", header=name != "identity_CelebA")
    align = found["list_landmarks_celeba"]
    write_text(align, root / "Anno" / "list_landmarks_align_celeba.txt")
    names = [f"{name[:-4]}.png" for name in align.index]
    write_images(root / "Img" / "img_align_celeba_png", names, (178, 218))
    return found


LAYOUTS = {f.__name__: f for f in (official, torchvision, kaggle, everything_official)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(tmp_path, capsys, layout):
    expected = LAYOUTS[layout](tmp_path / "celeba")
    faces, attributes = selection.read_celeba(tmp_path / "celeba")
    printed = capsys.readouterr().out
    images = celeba_files.photograph_folder(tmp_path / "celeba")
    assert set(faces.index) == {path.name for path in images.iterdir()}
    points = expected["list_landmarks_celeba"].to_numpy()
    np.testing.assert_array_equal(faces[LANDMARK_COLUMNS], points)
    np.testing.assert_array_equal(attributes, expected["list_attr_celeba"] > 0)
    if layout == "official":
        np.testing.assert_array_equal(faces[BOX_COLUMNS], expected["list_bbox_celeba"])
        assert printed == ""
    else:
        assert (faces[BOX_COLUMNS] == list(celeba_files.ALIGNED_BOX)).all(axis=None)
        assert (selection.box_faults(faces) == "").all(), "the region holds the points"
        assert "The boxes belong to the images in the wild" in printed
    if layout == "kaggle":
        assert faces["identity"].is_unique
        assert "identity_CelebA.txt is missing, so people cannot be told apart" in printed
    else:
        assert faces["identity"].tolist() == expected["identity_CelebA"]["identity"].tolist()


def test_without_boxes_aligned_images_have_their_region(tmp_path, capsys):
    torchvision(tmp_path / "celeba")
    (tmp_path / "celeba" / "list_bbox_celeba.txt").unlink()
    faces, _ = selection.read_celeba(tmp_path / "celeba")
    assert (faces[BOX_COLUMNS] == list(celeba_files.ALIGNED_BOX)).all(axis=None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("place", ["img_celeba/img_celeba", "Img/wild/part1", "elsewhere"])
@pytest.mark.parametrize("ending", [".JPG", ".png", ".jpeg", ".webp"])
def test_images_deeper_and_with_other_endings(tmp_path, place, ending):
    found = official(tmp_path / "celeba")
    for path in sorted((tmp_path / "celeba" / "img_celeba").iterdir()):
        new = tmp_path / "celeba" / place / f"{path.stem}{ending}"
        new.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(tmp_path / f"x{ending}")
        path.unlink()
        (tmp_path / f"x{ending}").rename(new)
    faces, _ = selection.read_celeba(tmp_path / "celeba")
    listed = found["list_attr_celeba"].index
    assert faces.index.tolist() == [f"{name[:-4]}{ending}" for name in listed]


def test_a_linked_folder_is_followed(tmp_path):
    official(tmp_path / "far")
    (tmp_path / "celeba").mkdir()
    (tmp_path / "celeba" / "Anno").symlink_to(tmp_path / "far" / "Anno")
    (tmp_path / "celeba" / "img_celeba").symlink_to(tmp_path / "far" / "img_celeba")
    faces, _ = selection.read_celeba(tmp_path / "celeba")
    assert len(faces) == 12
    assert celeba_files.photograph_folder(tmp_path / "celeba").name == "img_celeba"


def test_names_with_blanks_accents_and_foreign_bytes(tmp_path):
    """The list has one form of an accent, the disk the other; a name is no UTF-8."""
    names = ["my photo (1).jpg", "Zo\u00e9.jpg", "Jos\u00e9 2.jpg", "\udcff.jpg"]
    table = pd.DataFrame({"identity": range(4)}, pd.Index(names, name="image_id"))
    path = tmp_path / "identity_CelebA.txt"
    text = "".join(f"{name} {value}\n" for name, value in table["identity"].items())
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    read = celeba_files.read_table(path, ["identity"], int)
    assert read["identity"].to_dict() == table["identity"].to_dict()
    matched = celeba_files.match_names(read.index, {"Zoe\u0301.jpg", "Jose\u0301 2.PNG"})
    assert matched.tolist() == [names[0], "Zoe\u0301.jpg", "Jose\u0301 2.PNG", names[3]]


def test_one_file_is_not_given_to_two_rows():
    listed = pd.Index(["a.jpg", "a.png", "b.jpg"])
    assert celeba_files.match_names(listed, {"a.jpg", "b.webp"}).tolist() == [
        "a.jpg",
        "a.png",
        "b.webp",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,  # a byte order mark
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.split("\n", 1)[1],  # no count
        lambda text: text.replace("x_1", "image_id x_1", 1),
        lambda text: text.replace(" ", "   "),
        lambda text: text.replace(" ", "\t"),
        lambda text: text.split("\n", 1)[1].replace(" ", ","),  # CSV that does not name names
        lambda text: text.split("\n", 1)[1].replace("x_1", "file x_1").replace(" ", ";"),
        lambda text: text + "\n\n",
    ],
)
def test_variants_of_a_text_file(tmp_path, change):
    found = tables()["list_bbox_celeba"]
    path = tmp_path / "list_bbox_celeba.txt"
    write_text(found, path)
    path.write_bytes(change(path.read_text()).encode())
    read = celeba_files.read_table(path)
    np.testing.assert_array_equal(read, found)
    assert read.index.tolist() == found.index.tolist()


@pytest.mark.parametrize("name", TABLES)
def test_an_identity_table_as_csv_or_a_table_in_capitals(tmp_path, name):
    official(tmp_path)
    path = tmp_path / "Anno" / f"{name}.txt"
    table = tables()[name]
    path.unlink()
    table.to_csv(path.with_name(f"{name.upper()}.csv"))
    faces, _ = selection.read_celeba(tmp_path)
    assert len(faces) == 12


def test_a_list_of_other_images_is_said_at_once(tmp_path):
    official(tmp_path / "celeba")
    for path in (tmp_path / "celeba" / "img_celeba").iterdir():
        path.rename(path.with_name(f"face_{path.name}"))
    message = r"None of 12 listed images \(000001.jpg first\).*img_celeba/ with 12 files"
    with pytest.raises(ValueError, match=message):
        selection.read_celeba(tmp_path / "celeba")


def test_tables_of_other_images_are_refused(tmp_path):
    """Aligned images with points of the wild ones, and the reverse, and resized copies."""
    wild, align = tmp_path / "wild", tmp_path / "align"
    official(wild)
    write_images(wild / "img_celeba", tables()["list_attr_celeba"].index, (178, 218))
    with pytest.raises(ValueError, match=r"landmarks_celeba.txt does not belong .*178 x 218"):
        selection.read_celeba(wild)
    found = torchvision(align)
    write_images(align / "img_align_celeba", found["list_attr_celeba"].index, (400, 500))
    with pytest.raises(ValueError, match=r"align_celeba.txt belongs to the aligned images"):
        selection.read_celeba(align)
    official(wild)
    write_images(wild / "img_celeba", tables()["list_attr_celeba"].index, (64, 64))
    with pytest.raises(ValueError, match="points lie outside"):
        selection.read_celeba(wild)


def test_small_images_in_the_wild_keep_their_boxes(tmp_path):
    """All of 178 x 218 pixels, but with points and boxes of their own that fit."""
    found = tables(aligned=True)
    for name, table in found.items():
        write_text(table, tmp_path / "Anno" / f"{name}.txt", header=name != "identity_CelebA")
    write_images(tmp_path / "img_celeba", found["list_attr_celeba"].index, (178, 218))
    faces, _ = selection.read_celeba(tmp_path)
    np.testing.assert_array_equal(faces[BOX_COLUMNS], found["list_bbox_celeba"])


def test_annotations_alone_are_enough(tmp_path):
    official(tmp_path)
    for path in (tmp_path / "img_celeba").iterdir():
        path.unlink()
    assert len(selection.read_celeba(tmp_path)[0]) == 12


def test_without_identities_the_landmarks_go_on(tmp_path):
    """1.1 of a copy like Kaggle's: three landmark splits, no image twice, nobody labelled."""
    rng, count = np.random.default_rng(0), 60
    celeba = tmp_path / "data" / "celeba"
    celeba.mkdir(parents=True)
    found = tables(count, aligned=True)
    found["list_landmarks_celeba"] += rng.integers(-8, 9, (count, 10))
    for name in TABLES[2:]:
        called = name.replace("landmarks", "landmarks_align")
        found[name].to_csv(celeba / f"{called}.csv")
    images = celeba / "img_align_celeba" / "img_align_celeba"
    write_images(images, found["list_attr_celeba"].index, (178, 218))
    run_stages(tmp_path, "1.1", dataset="kaggle", data=tmp_path / "data", **small("1.1"))
    selected = pd.read_csv(tmp_path / "csv/kaggle/selected.csv")
    assert set(selected["landmark_split"]) == {"train", "val", "test"}
    assert selected["image_id"].is_unique
    assert len(pd.read_csv(tmp_path / "csv/kaggle/train.csv")) == 0


def test_stages_that_need_identities_are_left_out(tmp_path, capsys):
    from run import Series

    kaggle(tmp_path / "celeba")
    settings = {"data": str(tmp_path), "output": str(tmp_path)}
    assert Series("kaggle", settings, {}).everything() == ["1.1", "1.2", "1.3", "1.4", "1.5"]
    assert "2.1 2.2 5.1 left out: no table says who is who" in capsys.readouterr().out

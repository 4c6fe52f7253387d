"""Masks and archives as people have them: names, colours, layouts, damage; nothing is lost."""

import contextlib
import errno
import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_stages
from PIL import Image

import helpers
from faces import parts, segmentation
from faces.parts import NUMBER
from notebooks import mask_files, real_data

SIDE = 48
DISC = np.hypot(*(np.indices((SIDE, SIDE)) - 20)) < 12

# --------------------------------------------------------------------------- a mask's pixels


def grey(mask, value=255):
    return Image.fromarray((mask * value).astype(np.uint8))


def coloured(mask, colour, background=(0, 0, 0)):
    return Image.fromarray(np.where(mask[..., None], colour, background).astype(np.uint8))


def in_palette(mask, colours, index=1):
    image = Image.fromarray((mask * index).astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def with_alpha(colour, alpha):
    return Image.fromarray(np.dstack([colour, alpha]).astype(np.uint8))


def noise():
    return np.random.default_rng(0).integers(1, 256, (SIDE, SIDE, 3))


SAVED = {
    "black and white.png": lambda m: grey(m),
    "0 and 1.png": lambda m: grey(m, 1),
    "0 and 7.png": lambda m: grey(m, 7),
    "0 and 120.bmp": lambda m: grey(m, 120),
    "RGB.png": lambda m: grey(m).convert("RGB"),
    "RGB 0 and 1.png": lambda m: grey(m, 1).convert("RGB"),
    "dark red.png": lambda m: coloured(m, (90, 0, 0)),
    "blue.tif": lambda m: coloured(m, (0, 0, 200)),
    "palette.png": lambda m: in_palette(m, [(0, 0, 0), (128, 0, 0)]),
    "palette, grey ramp.png": lambda m: grey(m).convert("P"),
    "palette, index 14.png": lambda m: in_palette(m, [(0, 0, 0)] * 14 + [(64, 0, 128)], 14),
    "palette in two colours.png": lambda m: in_palette(m, [(200, 200, 40), (10, 60, 90)]),
    "palette by colours.gif": lambda m: coloured(m, (0, 128, 128)).quantize(2),
    "white on transparent.png": lambda m: with_alpha(np.full((SIDE, SIDE, 3), 255), 255 * m),
    "black on transparent.png": lambda m: with_alpha(np.zeros((SIDE, SIDE, 3)), 255 * m),
    "a cut-out.png": lambda m: with_alpha(noise(), 255 * m),
    "opaque RGBA.png": lambda m: grey(m).convert("RGBA"),
    "transparent with colour.png": lambda m: with_alpha(255 * np.dstack([m] * 3), 0 * m),
    "grey with alpha.png": lambda m: with_alpha(np.full((SIDE, SIDE), 255), 255 * m),
    "16 bits.png": lambda m: Image.fromarray((m * 65535).astype(np.uint16)),
    "16 bits, 0 and 1.png": lambda m: Image.fromarray(m.astype(np.uint16)),
    "32 bits.tif": lambda m: Image.fromarray(m.astype(np.float32)),
    "1 bit.png": lambda m: Image.fromarray(m),
    "grey.jpg": lambda m: grey(m),
    "colour.JPEG": lambda m: grey(m).convert("RGB"),
    "CMYK.jpg": lambda m: grey(m).convert("CMYK"),
    "lossy.webp": lambda m: grey(m).convert("RGB"),
}
# Where all is part, these hold one colour that could as well be the background's.
NEVER_FULL = {
    "palette by colours.gif",
    "transparent with colour.png",
    "black on transparent.png",
    "a cut-out.png",
}


@pytest.mark.parametrize("name", SAVED)
def test_a_mask_is_the_same_however_it_is_saved(tmp_path, name):
    SAVED[name](DISC).save(tmp_path / name)
    mask = parts.read_mask(tmp_path / name)
    assert mask.dtype == bool and mask.shape == DISC.shape
    allowed = 0.02 * DISC.size if name.lower().endswith(("jpg", "jpeg", "webp")) else 0
    assert (mask != DISC).sum() <= allowed


@pytest.mark.parametrize("name", sorted(set(SAVED) - {"palette in two colours.png"}))
def test_an_empty_mask_is_empty_and_a_full_one_full(tmp_path, name):
    SAVED[name](np.zeros_like(DISC)).save(tmp_path / name)
    assert not parts.read_mask(tmp_path / name).any()
    if name not in NEVER_FULL:
        SAVED[name](np.ones_like(DISC)).save(tmp_path / name)
        assert parts.read_mask(tmp_path / name).all()


def test_noise_of_a_format_is_no_part(tmp_path):
    speckle = np.random.default_rng(0).integers(0, 6, DISC.shape).astype(np.uint8)
    for name in ("a.jpg", "b.png"):
        Image.fromarray(speckle).save(tmp_path / name)
        assert not parts.read_mask(tmp_path / name).any(), name


@pytest.mark.parametrize("damage", ["cut", "text", "nothing"])
def test_a_mask_that_is_no_image_is_named(tmp_path, damage):
    path = tmp_path / "00012_skin.png"
    Image.fromarray(noise().astype(np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:900], "text": b"<html>quota</html>", "nothing": b""}[damage]
    )
    with pytest.raises(
        ValueError, match=r"^00012_skin\.png cannot be read: download it again$"
    ):
        parts.read_mask(path)


# ------------------------------------------------------------------------------- label maps


def label_map(seed=0):
    labels = np.random.default_rng(seed).integers(0, 19, (6, 6)).astype(np.uint8)
    labels[0, :3] = 0, 18, 255
    return np.kron(labels, np.ones((8, 8), np.uint8))


def by(colours, labels):
    table = np.full((256, 3), 255)
    table[:19] = colours
    return table[labels].astype(np.uint8)


MAPS = {
    "grey.png": lambda labels: Image.fromarray(labels),
    "RGB.png": lambda labels: Image.fromarray(labels).convert("RGB"),
    "alpha.png": lambda labels: with_alpha(labels, np.full_like(labels, 255)),
    "16 bits.png": lambda labels: Image.fromarray(labels.astype(np.uint16)),
    "32 bits.tif": lambda labels: Image.fromarray(labels.astype(np.int32)),
    "bitmap.bmp": lambda labels: Image.fromarray(labels),
    "palette.png": lambda labels: in_palette(
        labels, np.random.default_rng(0).integers(0, 255, (256, 3)).tolist()
    ),
    "our colours.png": lambda labels: Image.fromarray(by(parts.COLOURS, labels)),
    "their colours.png": lambda labels: Image.fromarray(
        by(mask_files.OFFICIAL_COLOURS, labels)
    ),
    "colours, quantised.png": lambda labels: Image.fromarray(
        by(parts.COLOURS, labels)
    ).quantize(20, dither=Image.Dither.NONE),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_label_map_is_taken_as_it_is(tmp_path, name):
    MAPS[name](label_map()).save(tmp_path / name)
    labels = mask_files.label_map_of(tmp_path / name)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, label_map())


def test_a_label_map_with_other_values_is_refused(tmp_path):
    wrong = np.where(label_map() == 18, 37, label_map()).astype(np.uint8)
    Image.fromarray(wrong).save(tmp_path / "1.png")
    Image.fromarray(label_map()).save(tmp_path / "2.jpg")
    Image.fromarray(noise().astype(np.uint8)).save(tmp_path / "3.png")
    (tmp_path / "4.png").write_bytes(b"")
    messages = ["1.png has the value 37: labels are 0 to 18", "2.jpg: JPEG changes labels"]
    messages += ["3.png has colours that stand for no part", "4.png cannot be read"]
    for path, message in zip(sorted(tmp_path.iterdir()), messages, strict=True):
        with pytest.raises(ValueError, match=message):
            mask_files.label_map_of(path)


# ----------------------------------------------------------------------------- 3.1 as a whole


def photograph(number, side=SIDE):
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def masks_for(number):
    """Some parts of a face, part -> (SIDE, SIDE) bool; the skin lies below the others."""
    y, x = np.indices((SIDE, SIDE))
    masks = {"skin": np.hypot(x - 24, y - 24) < 18, "nose": np.hypot(x - 24, y - 26) < 4}
    masks["hair"] = (y < 8 + number % 4) & (x > 4)
    if number % 3 == 0:
        masks["neck_l"] = (abs(y - 40) < 2) & (abs(x - 24) < 10)
    return masks


def expected_map(number):
    return parts.paint(masks_for(number), parts.PAINT_ORDER)


def make_set(folder, numbers, photo="{n}.jpg", mask="0/{n:05d}_{part}.png", saved=grey):
    """A set in CelebAMask-HQ's layout, or with other names; returns its folder."""
    folder = folder / "CelebAMask-HQ"
    for n in numbers:
        path = folder / "CelebA-HQ-img" / photo.format(n=n)
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(n).save(path, quality=95)
        for part, values in masks_for(n).items():
            path = folder / "CelebAMask-HQ-mask-anno" / mask.format(n=n, part=part)
            path.parent.mkdir(parents=True, exist_ok=True)
            saved(values).save(path)
    return folder


def run_masks(place, **parameters):
    """Runs the code of 3.1 in this process; returns its variables and what it printed."""
    notebook = nbformat.read(ROOT / "notebooks/3.1_mask_merging.ipynb", 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"][1:]
    given = {"dataset": "mine", "data": str(place), "output": str(place / "out"), **parameters}
    names, printed = {}, io.StringIO()
    matplotlib.use("agg")
    with contextlib.redirect_stdout(printed):
        for cell in cells:
            exec(compile(cell.source, "3.1", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names.update(given)
    matplotlib.pyplot.close("all")
    return SimpleNamespace(**names), printed.getvalue()


def written(place, name):
    return pd.read_csv(
        place / f"out/csv/mine/{name}.csv", dtype={"image_id": str, "stage": str}
    )


def check_maps(place, numbers):
    for n in numbers:
        stored = np.asarray(Image.open(place / f"out/runs/mine/label_maps/{n}.png"))
        np.testing.assert_array_equal(stored, expected_map(n))
    split = written(place, "segmentation_split")
    assert set(split["image_id"]) == {str(n) for n in numbers}
    assert set(split["split"]) == {"train", "val", "test"}
    return split


NUMBERS = [0, 3, 12, 345, 6789, 10000, 29999]
LAYOUTS = {
    "as published": ("{n}.jpg", "{n:05d}_{part}.png", grey),
    "padded": ("{n:05d}.jpg", "0/{n:06d}_{part}.png", grey),
    "PNG, one deeper": ("inner/{n}.png", "{n}_{part}.PNG", lambda m: grey(m, 1)),
    "JPG, two deeper": ("a/b/{n:05d}.JPG", "0/1/{n}_{part}.png", SAVED["palette.png"]),
    "jpeg, by part": ("{n}.jpeg", "{part}/{n:05d}.png", SAVED["white on transparent.png"]),
    "webp, by photograph": ("{n}.webp", "x/{n}/{part}.png", SAVED["16 bits.png"]),
    "capitals and dashes": ("{n:08d}.PNG", "{n}-{part}.tif", SAVED["dark red.png"]),
    "names of one's own": ("Zoë {n}.png", "Zoë {n}_{part}.png", SAVED["1 bit.png"]),
}


@pytest.mark.parametrize("layout", ["PNG, one deeper", "jpeg, by part", "webp, by photograph"])
def test_a_set_in_any_layout_gives_the_same_label_maps(tmp_path, layout):
    """Sizes differ too: photographs of CelebAMask-HQ have 1024 pixels, its masks 512."""
    folder = make_set(tmp_path, NUMBERS, *LAYOUTS[layout])
    for path in folder.rglob("CelebA-HQ-img/**/*.*"):
        with Image.open(path) as image:
            image.resize((2 * SIDE, 2 * SIDE)).save(path)
    ghosts = ["CelebA-HQ-img/Thumbs.db", "CelebA-HQ-img/._3.jpg", "CelebA-HQ-img/.DS_Store"]
    ghosts += ["CelebAMask-HQ-mask-anno/__MACOSX/0/00003_skin.png"]
    ghosts += ["CelebAMask-HQ-mask-anno/._00003_skin.png", "CelebAMask-HQ-mask-anno/Thumbs.db"]
    for ghost in ghosts:
        (folder / ghost).parent.mkdir(parents=True, exist_ok=True)
        (folder / ghost).write_bytes(b"\0" * 4096)
    _, printed = run_masks(tmp_path)
    assert "7 photographs; 0 photographs set aside" in printed
    split = check_maps(tmp_path, NUMBERS)
    assert written(tmp_path, "rejected").empty
    folders = helpers.open_dataset("mine", tmp_path, tmp_path / "out", needs="CelebAMask-HQ")
    images, maps = segmentation.part_cache(folders, split["image_id"], SIDE, folder)
    for image, labels, n in zip(images, maps, split["image_id"].astype(int), strict=True):
        np.testing.assert_array_equal(labels, expected_map(n))
        assert np.abs(image - np.asarray(photograph(n)).astype(int)).mean() < 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_and_folders_are_understood(tmp_path, layout):
    photo, mask, saved = LAYOUTS[layout]
    folder = make_set(tmp_path, NUMBERS, photo, mask, saved)
    place = mask_files.photograph_folder(folder)
    found, unclear = mask_files.photographs_of(place)
    table, is_merged = mask_files.masks_of(mask_files.mask_folder(folder))
    own = "Zoë " if "own" in layout else ""
    assert set(found) == {f"{own}{n}" for n in NUMBERS} == set(table["image_id"])
    assert not unclear and not is_merged and not mask_files.masks_twice(table, folder)
    counts = {f"{own}{n}": len(masks_for(n)) for n in NUMBERS}
    assert table["image_id"].value_counts().to_dict() == counts
    assert mask_files.photograph_names(place, [f"{own}12"]) == [photo.format(n=12)]


@pytest.mark.parametrize("nesting", ["CelebAMask-HQ", "a/CelebAMask-HQ", "linked"])
def test_a_set_in_a_folder_of_its_own_name_is_found(tmp_path, nesting):
    made = make_set(tmp_path / "made", [1, 2])
    outer = tmp_path / "data/CelebAMask-HQ"
    if nesting == "linked":
        outer.mkdir(parents=True)
        for path in made.iterdir():
            (outer / path.name).symlink_to(path)
        (made / "CelebA-HQ-img/again").symlink_to(made)  # a circle
    else:
        shutil.copytree(made, outer / nesting)
    assert mask_files.photograph_folder(outer).name == "CelebA-HQ-img"
    assert len(mask_files.photographs_of(mask_files.photograph_folder(outer))[0]) == 2
    assert len(mask_files.masks_of(mask_files.mask_folder(outer))[0]) == 6


def test_empty_masks_are_absent_parts_and_nothing_but_empty_ones_is_rejected(tmp_path):
    """Photograph 4790 of CelebAMask-HQ has eleven empty masks beside its skin."""
    folder = make_set(tmp_path, [*range(1, 9), 4790, 4791])
    anno = folder / "CelebAMask-HQ-mask-anno/0"
    for part in ("nose", "hair", "l_eye"):
        grey(np.zeros_like(DISC)).save(anno / f"04790_{part}.png")
    for path in anno.glob("04791_*.png"):
        grey(np.zeros_like(DISC)).convert("RGB").save(path)
    _, printed = run_masks(tmp_path)
    assert "3 masks in 1 photographs (4790 first) are empty" in printed
    split = written(tmp_path, "segmentation_split").set_index("image_id")
    assert "4791" not in split.index
    assert split.loc["4790", ["nose", "hair", "l_eye"]].tolist() == [0, 0, 0]
    assert split.loc["4790", "skin"] > 0
    rejected = written(tmp_path, "rejected")
    assert rejected[["image_id", "reason"]].to_numpy().tolist() == [
        ["4791", "all its masks are empty"]
    ]


def test_what_belongs_to_nothing_or_to_two_is_rejected(tmp_path, capsys):
    folder = make_set(tmp_path, range(1, 13))
    images, anno = folder / "CelebA-HQ-img", folder / "CelebAMask-HQ-mask-anno/0"
    photograph(1).save(images / "00001.png")
    shutil.copy(anno / "00002_skin.png", anno / "2_skin.jpg.png")
    shutil.copy(anno / "00002_skin.png", anno / "2_skin.png")
    (images / "3.jpg").unlink()
    for path in anno.glob("00004_*.png"):
        path.unlink()
    grey(np.ones((9, 9), bool)).save(anno / "00005_hat.png")
    shutil.copy(images / "6.jpg", images / "deeper.jpg")
    (images / "old").mkdir()
    photograph(99).save(images / "old/7.jpg")  # the nearer one counts
    _, printed = run_masks(tmp_path)
    assert "1 files name no known part, 2_skin.jpg.png first" in printed
    reasons = written(tmp_path, "rejected").set_index("image_id")["reason"]
    assert reasons["1"] == "00001.png and 1.jpg have the same number"
    assert reasons["2"] == "0/00002_skin.png and 0/2_skin.png are both its skin"
    assert reasons["3"] == "the masks have no photograph"
    assert reasons["4"] == reasons["deeper"] == "the photograph has no mask"
    assert reasons["5"] == "its masks have different sizes: (9, 9) and (48, 48)"
    split = written(tmp_path, "segmentation_split")
    assert set(split["image_id"]) == {str(n) for n in range(6, 13)}


# ---- the same photograph under two numbers


def save_copies(folder):
    """101 is a copy of 1, 102 a PNG of 2, 103 is 3 saved again, 104 is 4 at another size."""
    images = folder / "CelebA-HQ-img"
    for n in (1, 2, 3, 4):
        photograph(n, 128).save(images / f"{n}.jpg", quality=90)
        (images / f"{100 + n}.jpg").unlink()
    shutil.copy(images / "1.jpg", images / "101.jpg")
    Image.open(images / "2.jpg").save(images / "102.png")
    Image.open(images / "3.jpg").save(images / "103.jpg", quality=75)
    Image.open(images / "4.jpg").resize((200, 200)).save(images / "104.webp", quality=90)


def test_the_same_photograph_under_two_numbers_stays_in_one_split(tmp_path):
    numbers = [*range(1, 41), 101, 102, 103, 104]
    save_copies(make_set(tmp_path, numbers))
    sides = []
    for seed in range(4):
        made, printed = run_masks(tmp_path, seed=seed)
        said = "4 photographs are copies and stay with the first: "
        assert f"{said}101 is 1, 102 is 2, 103 is 3, 104 is 4\n" in printed
        split = written(tmp_path, "segmentation_split").set_index("image_id")["split"]
        assert len(split) == 44
        assert all(split[str(n)] == split[str(100 + n)] for n in (1, 2, 3, 4))
        sides.append([split[str(n)] for n in (1, 2, 3, 4)])
        assert made.counts == (29, 4, 7), "of 40 different ones"
    assert len({*map(tuple, sides)}) > 1, "by the seed, not all in training"


def test_copies_follow_celebas_partition_and_a_split_file_is_told(tmp_path):
    save_copies(folder := make_set(tmp_path, [*range(1, 13), 101, 102, 103, 104]))
    ids = [*range(1, 13), 101, 102, 103, 104]
    rows = [f"{n} {n} {n:06d}.jpg" for n in ids]
    mapping = folder / "CelebA-HQ-to-CelebA-mapping.txt"
    mapping.write_text("idx orig_idx orig_file\n" + "\n".join(rows))
    (tmp_path / "celeba/Eval").mkdir(parents=True)
    sides = [f"{n:06d}.jpg {place % 3}" for place, n in enumerate(ids)]
    (tmp_path / "celeba/Eval/list_eval_partition.txt").write_text("\n".join(sides) + "\n")
    _, printed = run_masks(tmp_path)
    assert "The split is CelebA's partition" in printed
    split = written(tmp_path, "segmentation_split").set_index("image_id")["split"]
    assert split[["1", "2", "3", "4"]].tolist() == ["train", "val", "test", "train"]
    assert all(split[str(n)] == split[str(100 + n)] for n in (1, 2, 3, 4))
    own = pd.DataFrame({"image_id": [f"{n:05d}.jpg" for n in ids], "split": "train"})
    own.loc[:2, "split"] = ["val", "test", "test"]
    own.to_csv(tmp_path / "own.csv", index=False)
    _, printed = run_masks(tmp_path, split_file=str(tmp_path / "own.csv"))
    assert "It has copies in two splits: 101, 102, 103 and their firsts." in printed
    split = written(tmp_path, "segmentation_split").set_index("image_id")["split"]
    assert split[["1", "2", "3", "101"]].tolist() == ["val", "test", "test", "train"]


def test_only_the_same_photograph_is_the_same():
    one = np.clip(np.asarray(photograph(1, 16)), 10, 230).astype(int)
    plus = lambda levels: one + levels  # noqa: E731 - its standard deviation is 59
    spot, flat = one.copy(), np.full((16, 16, 3), 90)
    spot[6:10, 6:10] = 255 - spot[6:10, 6:10]
    images = [one, plus(2), plus(8), one[:, ::-1], spot, one[::-1], 0.7 * one, flat, flat + 1]
    images += [one, flat, plus(-2), plus(10)]
    assert parts.same_photographs(images).tolist() == [0, 0, 2, 3, 4, 5, 6, 7, 8, 0, 7, 0, 2]
    assert parts.same_photographs(images[:1]).tolist() == [0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,split\n1,train\n", "needs the columns image_id and split"),
        ("image_id,split\n1,train\n00001,val\n", "1 is listed twice"),
        ("image_id,split\n1,training\n", "split 'training' is none of train, val, test"),
    ],
)
def test_a_split_file_that_is_wrong_is_one_sentence(tmp_path, table, message):
    (tmp_path / "own.csv").write_text(table)
    with pytest.raises(ValueError, match=rf"own\.csv.*{message}"):
        mask_files.read_split(tmp_path / "own.csv", ("train", "val", "test"))


# ---- label maps instead of masks


@pytest.mark.parametrize("place", ["label_maps", "CelebAMask-HQ-mask", "elsewhere"])
def test_label_maps_are_an_input_of_their_own(tmp_path, place):
    folder = make_set(tmp_path, range(1, 13), "{n:05d}.png")
    shutil.rmtree(folder / "CelebAMask-HQ-mask-anno")
    (folder / place / "0").mkdir(parents=True)
    for n in range(1, 13):
        labels = expected_map(n)
        labels[0, :5] = 255
        labels[1, 1] = {11: 19, 12: 0}.get(n, labels[1, 1])
        Image.fromarray(labels * (n != 12)).save(folder / place / f"0/{n}.png")
    given = {"masks": str(folder / place)} if place == "elsewhere" else {}
    _, printed = run_masks(tmp_path, **given)
    assert "12 label maps, merged already: no parts overlap in them." in printed
    assert "No parts overlap, so the order decides nothing." in printed
    reasons = written(tmp_path, "rejected").set_index("image_id")["reason"].to_dict()
    assert reasons == {
        "11": "11.png has the value 19: labels are 0 to 18",
        "12": "its label map is empty",
    }
    folders = helpers.open_dataset("mine", tmp_path, tmp_path / "out", needs="CelebAMask-HQ")
    for n in range(1, 11):
        labels = parts.read_label_map(folders, str(n))
        assert (labels[0, :5] == 255).all()
        np.testing.assert_array_equal(labels[1:], expected_map(n)[1:])
    assert written(tmp_path, "part_overlaps")["pixels"].sum() == 0
    split = written(tmp_path, "segmentation_split")
    sums = split.set_index("image_id").loc["3", ["skin", "neck_l"]].tolist()
    assert sums == [(expected_map(3)[1:] == NUMBER[p]).sum() for p in ("skin", "neck_l")]
    _, maps = segmentation.part_cache(folders, split["image_id"], SIDE, folder)
    assert (maps[:, 0, :5] == 255).all()


# ---- folders that do not fit


def test_masks_of_other_photographs_are_one_sentence(tmp_path):
    folder = make_set(tmp_path, [1, 2])
    for path in (folder / "CelebA-HQ-img").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(
        FileNotFoundError,
        match=r"None of 6 masks in .*-mask-anno \(0/00001_hair\.png first\) belongs to a "
        r"photograph of .*-img \(2 photographs, x1\.jpg first\): set data, images or masks\.$",
    ):
        run_masks(tmp_path)


def test_folders_that_hold_something_else_say_what(tmp_path):
    folder = make_set(tmp_path, [1, 2])
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*none: check data and"):
        run_masks(tmp_path, masks=str(tmp_path / "none"))
    shutil.rmtree(folder / "CelebAMask-HQ-mask-anno")
    (folder / "CelebAMask-HQ-mask-anno/0").mkdir(parents=True)
    (folder / "CelebAMask-HQ-mask-anno/0/00001_skin.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"has no masks .*; it holds 0/ with 1 files\."):
        run_masks(tmp_path)
    with pytest.raises(
        ValueError, match=r"None of the photographs can be used; 2: 2\.jpg: JPEG"
    ):
        run_masks(tmp_path, masks=str(folder / "CelebA-HQ-img"))


def test_too_few_different_photographs_are_one_sentence(tmp_path):
    folder = make_set(tmp_path, range(1, 9))
    for n in range(2, 9):
        shutil.copy(folder / "CelebA-HQ-img/1.jpg", folder / f"CelebA-HQ-img/{n}.jpg")
    with pytest.raises(ValueError, match=r"1 different photographs have masks; .* are wanted"):
        run_masks(tmp_path)


def test_the_notebook_runs_with_papermill_on_a_mixed_set(tmp_path):
    """Every photograph has its masks saved in another way."""
    numbers = list(range(len(SAVED)))
    folder = make_set(tmp_path, numbers)
    anno, exact = folder / "CelebAMask-HQ-mask-anno/0", []
    for n, (name, saved) in zip(numbers, SAVED.items(), strict=True):
        ending = Path(name).suffix
        exact += [n] if ending.lower() not in (".jpg", ".jpeg", ".webp") else []
        for part, values in masks_for(n).items():
            (anno / f"{n:05d}_{part}.png").unlink()
            saved(values).save(anno / f"{n}_{part}{ending}")
    run_stages(tmp_path / "out", "3.1", dataset="mine", data=tmp_path)
    assert set(written(tmp_path, "segmentation_split")["image_id"]) == set(map(str, numbers))
    for n in numbers:
        stored = np.asarray(Image.open(tmp_path / f"out/runs/mine/label_maps/{n}.png"))
        share = (stored != expected_map(n)).mean()
        assert share == 0 if n in exact else share < 0.05


# ----------------------------------------------------------------------------------- archives

CONTENT = {f"trainA/{n}.jpg": bytes([n]) * 5000 for n in range(3)}


def pack(path, files, kind="zip"):
    """An archive of names and bytes: a zip, or a tar with the compression `kind`."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in files.items():
                packed.writestr(name, content)
        return path
    with tarfile.open(path, f"w:{kind}") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


KINDS = ["zip", "", "gz", "bz2", "xz"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".zip", ".tar.gz", ""])
def test_the_kind_of_an_archive_is_read_from_it_not_from_its_name(tmp_path, kind, ending):
    archive = pack(tmp_path / f"set{ending}", CONTENT, kind)
    assert files_in(real_data.unpack(archive, tmp_path / "to")) == CONTENT


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_what_macos_and_windows_add_is_left_out(tmp_path, kind):
    """In an archive packed on a Mac every file has a ghost of 4 kB, __MACOSX/.../._name."""
    ghost = b"\0\5\26\7" + bytes(4092)
    files = {}
    for name, content in CONTENT.items():
        files |= {f"__MACOSX/set/trainA/._{name[7:]}": ghost, f"set/{name}": content}
        files |= {f"set/trainA/._{name[7:]}": ghost}
    files |= {"set/.DS_Store": ghost, "set/trainA/Thumbs.db": ghost, "set/desktop.ini": ghost}
    archive = pack(tmp_path / "set.zip", files, kind)
    got = files_in(real_data.unpack(archive, tmp_path / "to"))
    assert got == {f"set/{name}": content for name, content in CONTENT.items()}
    horses = {f"x/{name.replace('train', 'trainB/../train')}": v for name, v in files.items()}
    pack(tmp_path / "horse2zebra.zip", horses, kind)
    assert "3 files" in real_data.bring("horse2zebra", tmp_path / "data", tmp_path)
    assert files_in(tmp_path / "data/horse2zebra") == CONTENT


@pytest.mark.parametrize("kind", ["zip", "gz"])
@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "a/../../x", "..", "..\\x", "a\\..\\..\\x", "C:\\x", "C:/x"]
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, kind, name):
    archive = pack(tmp_path / "set.zip", {**CONTENT, name: b"x"}, kind)
    (tmp_path / "to").mkdir()
    (tmp_path / "to/kept").write_text("x")
    with pytest.raises(ValueError, match=r"^set\.zip holds a path that leaves its folder"):
        real_data.unpack(archive, tmp_path / "to")
    assert files_in(tmp_path) == {"set.zip": archive.read_bytes(), "to/kept": b"x"}


def pack_link(path, kind, name, target):
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("a/x.txt", "x")
            link = zipfile.ZipInfo(name)
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(link, target)
    else:
        with tarfile.open(path, "w") as packed:
            member = tarfile.TarInfo("a/x.txt")
            member.size = 1
            packed.addfile(member, io.BytesIO(b"x"))
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            packed.addfile(link)
    return path


@pytest.mark.parametrize("kind", ["zip", ""])
def test_a_link_may_not_leave_the_folder(tmp_path, kind):
    inside = pack_link(tmp_path / "in.zip", kind, "b/y.txt", "../a/x.txt")
    folder = real_data.unpack(inside, tmp_path / "to")
    assert (folder / "b/y.txt").is_symlink() and (folder / "b/y.txt").read_text() == "x"
    for target in ("/etc/passwd", "../../x", "../.."):
        outside = pack_link(tmp_path / "out.zip", kind, "b/y.txt", target)
        with pytest.raises(ValueError, match="holds a path that leaves its folder"):
            real_data.unpack(outside, tmp_path / "to")
        assert set(files_in(folder)) == {"a/x.txt", "b/y.txt"}, "the old one is kept"


def test_names_of_other_systems_are_understood(tmp_path):
    """Backslashes of Windows, UTF-8 that is not marked as such, and bytes of neither."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("set\\trainA\\1.jpg", "x")
        packed.writestr("set\\trainB\\", "")
        packed.writestr("set/Zoë.txt", "y")
    raw = (tmp_path / "a.zip").read_bytes()
    assert raw.count("Zoë".encode()) == 2
    marked = zipfile.ZipFile(tmp_path / "a.zip").getinfo("set/Zoë.txt")
    assert marked.flag_bits & 0x800
    unmarked = raw.replace(b"\x14\x00\x00\x08", b"\x14\x00\x00\x00")
    assert unmarked != raw
    (tmp_path / "b.zip").write_bytes(unmarked)
    for name in ("a.zip", "b.zip"):
        folder = real_data.unpack(tmp_path / name, tmp_path / "to")
        assert files_in(folder) == {"set/trainA/1.jpg": b"x", "set/Zoë.txt": b"y"}
        assert (folder / "set/trainB").is_dir()
    (tmp_path / "c.zip").write_bytes(unmarked.replace("Zoë".encode(), b"Zo\xe9\xff"))
    pack(tmp_path / "d.tar", {"trainA/Zo\udce9.jpg": b"x", "trainA\\2.jpg": b"y"}, "")
    assert len(files_in(real_data.unpack(tmp_path / "c.zip", tmp_path / "to"))) == 2
    folder = real_data.unpack(tmp_path / "d.tar", tmp_path / "to")
    assert sorted(os.fsencode(path.name) for path in folder.rglob("*.jpg")) == [
        b"2.jpg",
        b"Zo\xe9.jpg",
    ]


def encrypted(path):
    raw = bytearray(pack(path, CONTENT).read_bytes())
    for start, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for place in range(len(raw)):
            if raw.startswith(start, place):
                raw[place + offset] |= 1
    path.write_bytes(raw)


def wrong_method(path):
    raw = pack(path, CONTENT).read_bytes()
    path.write_bytes(raw.replace(b"\x14\x00\x00\x00\x08\x00", b"\x14\x00\x00\x00\x09\x00"))


def wrong_content(path):
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("trainA/1.jpg", b"x" * 5000)
    path.write_bytes(path.read_bytes().replace(b"x" * 5000, b"x" * 4999 + b"y"))


def device(path):
    with tarfile.open(path, "w") as packed:
        member = tarfile.TarInfo("trainA/fifo")
        member.type = tarfile.FIFOTYPE
        packed.addfile(member)


def cut(path, kind, share):
    raw = pack(path, CONTENT, kind).read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])


PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></html>"
DAMAGED = {
    "a page": (lambda path: path.write_bytes(PAGE), "is a web page, not an archive"),
    "nothing": (lambda path: path.write_bytes(b""), "is empty"),
    "an empty zip": (lambda path: pack(path, {}), "holds no files"),
    "an empty tar": (lambda path: pack(path, {}, "gz"), "holds no files"),
    "only ghosts": (lambda path: pack(path, {"__MACOSX/._x": b"x"}), "holds no files"),
    "text": (lambda path: path.write_bytes(b"Dear reader"), "it is no zip or tar archive"),
    "gzip, no tar": (lambda path: path.write_bytes(gzip.compress(b"x" * 999)), "it is no zip"),
    "7z": (lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(99)), "is a 7z archive"),
    "RAR": (lambda path: path.write_bytes(b"Rar!\x1a\7\1" + bytes(99)), "is a RAR archive"),
    "encrypted": (encrypted, "is encrypted: unpack it by hand"),
    "Deflate64": (wrong_method, "cannot be unpacked here"),
    "other content": (wrong_content, r"cannot be unpacked \(BadZipFile\)"),
    "a device": (device, "trainA/fifo is a device"),
    "a file as a folder": (lambda path: pack(path, {"a": b"", "a/b": b""}), "cannot be unpack"),
    **{
        f"{kind or 'tar'} cut at {share}": (
            lambda path, kind=kind, share=share: cut(path, kind, share),
            r"cannot be unpacked.* download it again",
        )
        for kind in KINDS
        for share in (0.3, 0.7, 0.97 if kind else 0.75)
    },
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_archive_is_one_sentence_and_nothing_is_lost(tmp_path, damage):
    spoil, message = DAMAGED[damage]
    archive = tmp_path / "horse2zebra.zip"
    spoil(archive)
    (tmp_path / "to").mkdir()
    (tmp_path / "to/kept").write_text("x")
    with pytest.raises((ValueError, OSError), match=message) as error:
        real_data.unpack(archive, tmp_path / "to")
    assert "horse2zebra.zip" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises((ValueError, OSError), match=message):
        real_data.bring("horse2zebra", tmp_path / "data", tmp_path)
    there = {"horse2zebra.zip": archive.read_bytes(), "to/kept": b"x"}
    assert files_in(tmp_path) == there
    assert not any((tmp_path / "data").iterdir())


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(tmp_path, monkeypatch, kind):
    archive = pack(tmp_path / "set.zip", CONTENT, kind)
    (tmp_path / "to").mkdir()
    (tmp_path / "to/kept").write_text("x")
    there = files_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=14_000))
        with pytest.raises(
            OSError, match=r"set\.zip needs 0\.00 GB unpacked, and 0\.00 GB are"
        ):
            real_data.unpack(archive, tmp_path / "to")
    assert files_in(tmp_path) == there

    def full(source, target, *options):
        target.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        patch.setattr(tarfile, "copyfileobj", full)
        with pytest.raises(OSError, match=r"set\.zip cannot be unpacked .*the disk is full"):
            real_data.unpack(archive, tmp_path / "to")
    assert files_in(tmp_path) == there
    assert files_in(real_data.unpack(archive, tmp_path / "to")) == CONTENT


def test_what_was_there_outlives_every_interruption(tmp_path, monkeypatch):
    """Killed at each rename in turn: the old or the new is there whole after the next run."""
    archive = pack(tmp_path / "set.zip", CONTENT)
    rename, calls = Path.rename, []

    class Killed(BaseException):
        pass

    def killed_at(number):
        def renamed(path, target):
            calls.append(path)
            if len(calls) >= number:  # nor does anything that cleans up get to its end
                raise Killed
            return rename(path, target)

        return renamed

    for number in (1, 2, 3):
        folder = tmp_path / f"to{number}"
        folder.mkdir()
        (folder / "old").write_text("x")
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed_at(number))
            with contextlib.suppress(Killed):
                real_data.unpack(archive, folder)
        real_data.recover(folder)
        assert files_in(folder) in ({"old": b"x"}, CONTENT), number
        real_data.unpack(archive, folder)
        assert files_in(folder) == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zip", "to1", "to2", "to3"]


def test_a_set_that_was_moved_aside_is_there_again(tmp_path):
    pack(tmp_path / ".old.horse2zebra.x", {})
    (tmp_path / ".old.horse2zebra").mkdir()
    (tmp_path / ".old.horse2zebra/mine.txt").write_text("x")
    assert real_data.bring("horse2zebra", tmp_path) == "horse2zebra is there"
    assert files_in(tmp_path / "horse2zebra") == {"mine.txt": b"x"}


# ---- sets in archives

ATTRIBUTES = b"image_id,Young\n000001.jpg,1\n"
PHOTO = b"\xff\xd8 a photograph \xff\xd9"
CELEBAS = {
    "official": {
        "CelebA/Anno/list_attr_celeba.txt": b"1\nYoung\n000001.jpg 1\n",
        "CelebA/Img/img_align_celeba.zip": {"img_align_celeba/000001.jpg": PHOTO},
        "CelebA/Eval/list_eval_partition.txt": b"000001.jpg 0\n",
    },
    "its photographs in the wild": {
        "Anno/identity_CelebA.txt": b"000001.jpg 1\n",
        "img_celeba/000001.jpg": PHOTO,
    },
    "torchvision": {
        "celeba/list_attr_celeba.txt": b"1\nYoung\n000001.jpg 1\n",
        "celeba/img_align_celeba/000001.jpg": PHOTO,
    },
    "Kaggle": {
        "list_attr_celeba.csv": ATTRIBUTES,
        "img_align_celeba/img_align_celeba/000001.jpg": PHOTO,
    },
    "Kaggle, packed twice": {
        "list_attr_celeba.csv.zip": {"list_attr_celeba.csv": ATTRIBUTES},
        "img_align_celeba.zip": {"img_align_celeba/000001.jpg": PHOTO},
    },
    "annotations beside images": {
        "my/annotations/List_Landmarks_Align_CelebA.CSV": ATTRIBUTES,
        "my/images/000001.png": PHOTO,
    },
    "identities alone": {"x/identity_CelebA.csv": b"image_id,identity\n1.jpg,1\n"},
}


def inner(content):
    if isinstance(content, bytes):
        return content
    packed = io.BytesIO()
    pack(packed, content)
    return packed.getvalue()


@pytest.mark.parametrize("layout", CELEBAS)
@pytest.mark.parametrize("name", ["celeba.zip", "CelebA-dataset (1).zip", "celeba.tar.gz"])
def test_celeba_is_brought_in_every_layout(tmp_path, layout, name):
    files = {path: inner(content) for path, content in CELEBAS[layout].items()}
    files |= {f"__MACOSX/{path}": b"ghost" for path in files}
    pack(tmp_path / name, files, "gz" if name.endswith("gz") else "zip")
    pack(tmp_path / "CelebAMask-HQ.zip", {"CelebA-HQ-img/1.jpg": PHOTO})
    sentence = real_data.bring("celeba", tmp_path / "data", tmp_path)
    assert sentence.startswith("celeba: ")
    got = files_in(tmp_path / "data/celeba")
    photographs = [path for path in got if path.endswith((".jpg", ".png"))]
    assert len(photographs) == (layout != "identities alone")
    assert all(got[path] == PHOTO for path in photographs)
    assert not any("__MACOSX" in path or path.endswith(".zip") for path in got)
    tables = [path for path in got if path.lower().endswith((".csv", ".txt"))]
    assert tables and b"ghost" not in got.values()
    assert os.listdir(tmp_path / "data") == ["celeba"]


def test_an_archive_may_be_named_itself_and_parts_for_other_programs_are_told(tmp_path):
    files = {"celeba/Anno/a.txt": b"", "celeba/Img/img_celeba.7z/img_celeba.7z.001": b"7z"}
    archive = pack(tmp_path / "archive.zip", files)
    sentence = real_data.bring("celeba", tmp_path / "data", archive)
    assert sentence.endswith("; img_celeba.7z.001 has to be unpacked by hand")
    broken = {"celeba/Anno/a.txt": b"", "celeba/img_align_celeba.zip": b"PK\3\4"}
    archive = pack(tmp_path / "archive.zip", broken)
    with pytest.raises(ValueError, match=r"In archive\.zip: img_align_celeba\.zip cannot be"):
        real_data.bring("celeba", tmp_path / "other", archive)
    assert not any((tmp_path / "other").iterdir())


def test_a_foreign_archive_and_a_link_to_nowhere_are_one_sentence(tmp_path):
    pack(tmp_path / "celeba.zip", {"somewhere/else.txt": b"x"})
    with pytest.raises(ValueError, match=r"celeba\.zip holds no folder Anno or its files: it"):
        real_data.bring("celeba", tmp_path / "data", tmp_path)
    (tmp_path / "data/celeba").symlink_to(tmp_path / "a drive that is not here")
    with pytest.raises(FileNotFoundError, match="or a link to a folder that is not there"):
        real_data.bring("celeba", tmp_path / "data", tmp_path)
    assert (tmp_path / "data/celeba").is_symlink(), "it is left alone"


def test_masks_packed_on_a_mac_go_from_the_archive_through_to_label_maps(tmp_path):
    folder = make_set(tmp_path / "made", range(1, 9))
    files = {f"top/{path}": content for path, content in files_in(folder.parent).items()}
    ghosts = {f"__MACOSX/{p}/._{p.split('/')[-1]}": bytes(4096) for p in files}
    pack(tmp_path / "CelebAMask-HQ.zip", ghosts | files)
    assert "files in" in real_data.bring("CelebAMask-HQ", tmp_path / "data", tmp_path)
    _, printed = run_masks(tmp_path / "data")
    assert "8 photographs; 0 photographs set aside" in printed
    check_maps(tmp_path / "data", range(1, 9))

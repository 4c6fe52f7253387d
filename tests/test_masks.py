"""3.1: label maps are what the masks say, counts are right, a broken mask is set aside."""

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import copy_series, run_stages
from PIL import Image

import helpers
from faces import parts
from faces.parts import NUMBER
from helpers import PARTS

WORN = ["eye_g", "hat", "ear_r", "neck_l"]


def split_of(series):
    table = pd.read_csv(series / "csv/sample/segmentation_split.csv", dtype={"image_id": str})
    return table.set_index("image_id")


def masks_of(series, image_id):
    folder = series / "data/sample/CelebAMask-HQ/CelebAMask-HQ-mask-anno"
    paths = folder.glob(f"*/{int(image_id):05d}_*.png")
    return {path.stem[6:]: cv2.imread(str(path), 0) > 127 for path in paths}


def test_label_maps_follow_the_masks(series):
    split = split_of(series)
    for image_id in split.index:
        path = series / f"runs/sample/label_maps/{image_id}.png"
        label_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        masks = masks_of(series, image_id)
        some = np.any(list(masks.values()), axis=0)
        assert label_map.dtype == np.uint8
        assert ((label_map > 0) == some).all(), "labelled where a mask is, nowhere else"
        for part, number in NUMBER.items():
            assert (label_map == number).sum() == split.loc[image_id, part]
            if part in masks:
                assert masks[part][label_map == number].all(), "only pixels of its own mask"
        for part in set(WORN) & set(masks):
            over = np.zeros(label_map.shape, bool)
            for other in set(WORN) & set(masks) - {part}:
                over |= masks[other]
            alone = masks[part] & ~over
            assert (label_map == NUMBER[part])[alone].all(), "what is worn is not covered"


def test_paint_gives_the_overlap_to_the_later_part():
    masks = {"neck": np.ones((4, 4), bool), "neck_l": np.eye(4, dtype=bool)}
    painted = parts.paint(masks, ["neck", "neck_l"])
    assert (painted == np.where(masks["neck_l"], NUMBER["neck_l"], NUMBER["neck"])).all()
    assert (parts.paint(masks, ["neck_l", "neck"]) == NUMBER["neck"]).all()
    assert (parts.paint(masks, parts.PAINT_ORDER) == painted).all()


def test_each_label_has_a_colour_of_its_own():
    label_map = np.arange(20, dtype=np.uint8).reshape(4, 5)
    label_map[-1, -1] = parts.IGNORED
    colours = parts.colourise(label_map).reshape(-1, 3)
    assert colours.dtype == np.uint8
    assert (colours[: len(PARTS) + 1] == parts.COLOURS).all() and (colours[-1] == 255).all()
    assert len(np.unique(colours, axis=0)) == 20


@pytest.mark.parametrize("counts", [(30, 10, 10), (5, 2, 3), (380, 60, 60)])
def test_split_has_the_counts_and_shares_the_rare(counts):
    total = sum(counts)
    image_ids, flags = np.arange(total).astype(str), np.zeros((total, 4), bool)
    flags[: total // 5, 0] = True
    split = parts.stratified_split(image_ids, flags, counts, 0)
    assert tuple(len(split[name]) for name in ("train", "val", "test")) == counts
    assert len(set().union(*map(set, split.values()))) == total
    if total >= 500:
        shares = [flags[np.array(ids, int), 0].mean() for ids in split.values()]
        assert np.ptp(shares) < 0.03


def test_broken_masks_and_label_maps_are_named(tmp_path):
    (tmp_path / "00012_skin.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"00012_skin\.png cannot be read"):
        parts.read_mask(tmp_path / "00012_skin.png")
    folders = helpers.open_dataset("mine", output=tmp_path, needs="")
    (folders.runs / "label_maps").mkdir()
    too_high = np.full((8, 8), len(PARTS) + 1, np.uint8)
    Image.fromarray(too_high).save(folders.runs / "label_maps/00001.png")
    (folders.runs / "label_maps/00002.png").write_bytes(b"not an image")
    for image_id in ("00001", "00002", "00003"):
        message = rf"{image_id}\.png is missing or is not a label map.*make 3\.1"
        with pytest.raises(ValueError, match=message):
            parts.read_label_map(folders, image_id)


def test_broken_masks_and_photographs_are_set_aside(series, tmp_path):
    output = tmp_path / "broken"
    copy_series(series, output)
    folder = output / "data/sample/CelebAMask-HQ"
    masks, photographs = folder / "CelebAMask-HQ-mask-anno", folder / "CelebA-HQ-img"
    first, second, third, fourth = split_of(series).index[:4]
    broken = next(masks.glob(f"*/{int(first):05d}_skin.png"))
    broken.write_bytes(broken.read_bytes()[:30])
    (photographs / f"{second}.jpg").unlink()
    for path in masks.glob(f"*/{int(third):05d}_*.png"):
        path.unlink()
    photograph = photographs / f"{fourth}.jpg"
    photograph.write_bytes(photograph.read_bytes()[:500])
    (output / "runs/sample/notebooks/3.1.json").unlink()
    run_stages(output, "3.1")
    rejected = pd.read_csv(output / "csv/sample/rejected.csv", dtype=str)
    reasons = rejected.query("stage == '3.1'").set_index("image_id")["reason"]
    assert broken.name in reasons[first]
    assert "no photograph" in reasons[second]
    assert "no mask" in reasons[third]
    assert f"{fourth}.jpg: cannot be decoded" in reasons[fourth]
    assert not set(reasons.index) & set(split_of(output).index)


def test_a_split_file_of_your_own_is_used_as_it_is(series, tmp_path):
    output = tmp_path / "own"
    copy_series(series, output)
    own = pd.DataFrame({"image_id": split_of(series).index, "split": "train"})
    own.loc[:3, "split"] = ["val", "test", "val", "test"]
    own.to_csv(tmp_path / "own.csv", index=False)
    run_stages(output, "3.1", split_file=tmp_path / "own.csv")
    assert split_of(output)["split"].to_dict() == own.set_index("image_id")["split"].to_dict()


def test_nobody_of_the_sample_is_in_two_splits(series):
    faces = pd.read_csv(series / "data/sample/CelebAMask-HQ/landmarks.csv")
    person = faces.set_index("number")["identity"]
    split = pd.read_csv(series / "csv/sample/segmentation_split.csv").set_index("image_id")
    splits_of = split["split"].groupby(person.reindex(split.index).to_numpy()).nunique()
    assert len(splits_of) > 5
    assert (splits_of == 1).all()
    assert set(split["split"]) == {"train", "val", "test"}

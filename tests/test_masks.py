"""3.1: label maps are what the masks say, the counts are the label maps', a broken mask is set aside."""

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import copy_series, definitions, run_stages

from helpers import PARTS

WORN = ["eye_g", "hat", "ear_r", "neck_l"]


def split_of(series):
    return pd.read_csv(series / "csv/sample/segmentation_split.csv", dtype={"image_id": str}).set_index("image_id")


def masks_of(series, image_id):
    folder = series / "data/sample/CelebAMask-HQ/CelebAMask-HQ-mask-anno"
    return {path.stem[6:]: cv2.imread(str(path), 0) > 127 for path in folder.glob(f"*/{int(image_id):05d}_*.png")}


def test_label_maps_follow_the_masks(series):
    split = split_of(series)
    for image_id in split.index:
        label_map = cv2.imread(str(series / f"runs/sample/label_maps/{image_id}.png"), cv2.IMREAD_UNCHANGED)
        masks = masks_of(series, image_id)
        assert label_map.dtype == np.uint8
        assert ((label_map > 0) == np.any(list(masks.values()), axis=0)).all(), "labelled where some mask is, nowhere else"
        for number, part in enumerate(PARTS, start=1):
            assert (label_map == number).sum() == split.loc[image_id, part]
            if part in masks:
                assert masks[part][label_map == number].all(), "a pixel is given only to a part whose mask holds it"
        for part in set(WORN) & set(masks):
            over = np.any([masks[other] for other in WORN if other in masks and other != part] or [np.zeros_like(masks[part])], axis=0)
            assert (label_map == PARTS.index(part) + 1)[masks[part] & ~over].all(), "what is worn is not painted over"


def test_paint_gives_the_overlap_to_the_later_part():
    space = definitions("3.1", "paint")
    space["number"] = {"neck": 17, "neck_l": 16}
    neck, necklace = np.ones((4, 4), bool), np.eye(4, dtype=bool)
    painted = space["paint"]({"neck": neck, "neck_l": necklace}, ["neck", "neck_l"])
    assert (painted == np.where(necklace, 16, 17)).all()
    assert (space["paint"]({"neck": neck, "neck_l": necklace}, ["neck_l", "neck"]) == 17).all()


@pytest.mark.parametrize("counts", [(30, 10, 10), (5, 2, 3), (380, 60, 60)])
def test_split_has_the_counts_and_shares_the_rare(counts):
    deal = definitions("3.1", "deal")["deal"]
    total = sum(counts)
    image_ids, flags = np.arange(total).astype(str), np.zeros((total, 4), bool)
    flags[: total // 5, 0] = True
    split = deal(image_ids, flags, counts, 0)
    assert tuple(len(split[name]) for name in ("train", "val", "test")) == counts
    assert len(set().union(*map(set, split.values()))) == total
    if total >= 500:
        shares = [np.mean([flags[int(image_id), 0] for image_id in split[name]]) for name in ("train", "val", "test")]
        assert np.ptp(shares) < 0.03


def test_broken_masks_and_photographs_are_set_aside(series, tmp_path):
    output = tmp_path / "broken"
    copy_series(series, output)
    folder = output / "data/sample/CelebAMask-HQ"
    first, second, third, fourth = split_of(series).index[:4]
    broken = next((folder / "CelebAMask-HQ-mask-anno").glob(f"*/{int(first):05d}_skin.png"))
    broken.write_bytes(broken.read_bytes()[:30])
    (folder / "CelebA-HQ-img" / f"{second}.jpg").unlink()
    for path in (folder / "CelebAMask-HQ-mask-anno").glob(f"*/{int(third):05d}_*.png"):
        path.unlink()
    photograph = folder / "CelebA-HQ-img" / f"{fourth}.jpg"
    photograph.write_bytes(photograph.read_bytes()[:500])
    (output / "runs/sample/notebooks/3.1.json").unlink()
    run_stages(output, "3.1")
    rejected = pd.read_csv(output / "csv/sample/rejected.csv", dtype=str).query("stage == '3.1'").set_index("image_id")["reason"]
    assert broken.name in rejected[first]
    assert "no photograph" in rejected[second]
    assert "no mask" in rejected[third]
    assert f"{fourth}.jpg: cannot be decoded" in rejected[fourth]
    assert not set(rejected.index) & set(split_of(output).index)


def test_an_own_split_is_taken_as_it_is(series, tmp_path):
    output = tmp_path / "own"
    copy_series(series, output)
    own = pd.DataFrame({"image_id": split_of(series).index, "split": "train"})
    own.loc[:3, "split"] = ["val", "test", "val", "test"]
    own.to_csv(tmp_path / "own.csv", index=False)
    run_stages(output, "3.1", split_file=tmp_path / "own.csv")
    assert split_of(output)["split"].to_dict() == own.set_index("image_id")["split"].to_dict()

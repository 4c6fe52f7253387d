"""The photographs and masks of CelebAMask-HQ, however they are named, nested and coloured.

| what | names |
|---|---|
| photograph 12 | 12.jpg, 00012.jpg, 00012.PNG |
| its mask of the skin | 00012_skin.png, 12-skin.jpg, skin/12.png, 12/skin.png |
| its label map, all parts in one image | 12.png, 00012.png |

Each may lie some folders deeper.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from helpers import PARTS
from notebooks.celeba_files import contents, is_image
from notebooks.files import display_path
from notebooks.photographs import printable

PHOTOGRAPH_FOLDERS = ("CelebA-HQ-img", "images", "image", "imgs", "img", "photographs")
MASK_FOLDERS = (
    "CelebAMask-HQ-mask-anno",
    "CelebAMask-HQ-mask",  # label maps, as the authors' own programs write them
    "label_maps",
    "CelebAMask-HQ-mask-color",
    "masks",
    "mask",
    "labels",
)
PART_NAME = re.compile(rf"(.+?)[_-]({'|'.join(PARTS)})", re.IGNORECASE)
LOSSY = {"JPEG", "MPO", "WEBP", "AVIF", "HEIF"}  # formats that change the values of pixels
IGNORED = 255  # label of pixels that do not count
# The colours in which the authors' g_color.py draws a label map.
OFFICIAL_COLOURS = (
    "000000 cc0000 4c9900 cccc00 3333ff cc00cc 00ffff ffcccc 663300 ff0000 66cc00 ffff00 "
    "000099 0000cc ff3399 00cccc 003300 ff9933 00cc00"
)
OFFICIAL_COLOURS = [[*bytes.fromhex(colour)] for colour in OFFICIAL_COLOURS.split()]

# ------------------------------------------------------------------------------------ folders


def _find_folder(start: str | Path, names: Iterable[str]) -> Path:
    """The folder with one of `names` in `start`, down to three folders deep; else `start`."""
    level = [Path(start)]
    for _ in range(3):
        level = [path for folder in level for path in _subfolders(folder)]
        called = {path.name.casefold(): path for path in reversed(level)}
        for name in names:
            if name.casefold() in called:
                return called[name.casefold()]
    return Path(start)


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries if e.is_dir() and e.name[0] not in "._")


def photograph_folder(start: str | Path) -> Path:
    """The folder CelebA-HQ-img/ in `start` or deeper; `start` itself where there is none."""
    _check_folder(start, "images")
    return _find_folder(start, PHOTOGRAPH_FOLDERS)


def mask_folder(start: str | Path) -> Path:
    """The folder of the part masks or label maps in `start`; `start` where there is none."""
    _check_folder(start, "masks")
    return _find_folder(start, MASK_FOLDERS)


def _check_folder(folder: str | Path, parameter: str) -> None:
    if not Path(folder).is_dir():
        where = display_path(folder)
        raise FileNotFoundError(f"There is no folder {where}: check data and {parameter}.")


def image_files(folder: Path) -> list[Path]:
    """The images of a folder and of all folders in it, sorted; linked ones are followed.

    Hidden files and __MACOSX/, which macOS puts into archives, are left out.
    """
    found, visited = [], set()
    for where, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in visited:  # a link to a folder above
            inner.clear()
            continue
        visited.add(real)
        inner[:] = [name for name in inner if name != "__MACOSX" and name[0] != "."]
        found += [Path(where, name) for name in names if is_image(name)]
    return sorted(found)


# -------------------------------------------------------------------------------------- names


def image_id_of(name: str) -> str:
    """The name of a photograph without padding and in one form of its accents: 00012 -> 12."""
    if name.isdecimal():
        return str(int(name))
    return unicodedata.normalize("NFC", printable(name))


def part_of(path: Path) -> tuple[str, str]:
    """The photograph and the part that a mask is of; no part ("") for any other image."""
    stem, folder = path.stem, path.parent.name
    if found := PART_NAME.fullmatch(stem):
        return image_id_of(found[1]), found[2].lower()
    if stem.lower() in PARTS:
        return image_id_of(folder), stem.lower()
    return image_id_of(stem), folder.lower() if folder.lower() in PARTS else ""


def in_order(image_ids: Iterable[str]) -> list[str]:
    """Numbers by their size, then names by the alphabet."""
    return sorted(image_ids, key=lambda key: (int(key) if key.isdecimal() else 1e12, key))


def photographs_of(
    folder: Path, without: Path | None = None
) -> tuple[dict[str, Path], dict[str, str]]:
    """Image id -> path of the photographs in a folder; and image id -> why it is not clear.

    Of two with the same number the one that lies nearer counts. Masks are left out, and all
    that lies in the folder `without`.
    """
    groups: dict[str, list[Path]] = {}
    for path in image_files(folder):
        inside = without not in (None, folder) and path.is_relative_to(without)
        if not inside and not PART_NAME.fullmatch(path.stem):
            groups.setdefault(image_id_of(path.stem), []).append(path)
    found, unclear = {}, {}
    for image_id, paths in groups.items():
        nearest = min(len(path.parts) for path in paths)
        paths = [path for path in paths if len(path.parts) == nearest]
        if len(paths) > 1:
            unclear[image_id] = f"{_names(paths, folder)} have the same number"
        else:
            found[image_id] = paths[0]
    return found, unclear


def photograph_names(folder: Path, image_ids: Iterable[str]) -> list[str]:
    """The file names, relative to `folder`, of the photographs that 3.1 calls `image_ids`."""
    found, _ = photographs_of(folder)
    given = {key: os.path.relpath(path, folder) for key, path in found.items()}
    return [given.get(image_id, f"{image_id}.jpg") for image_id in image_ids]


def _names(paths: list[Path], folder: Path) -> str:
    return " and ".join(path.relative_to(folder).as_posix() for path in paths[:3])


def masks_of(folder: Path) -> tuple[pd.DataFrame, bool]:
    """A row per mask (path, image_id, part), and whether they are label maps (part "").

    Images that name no part are left out and counted, unless all are so: then these are label
    maps. Raises FileNotFoundError where there is no image at all.
    """
    paths = image_files(folder)
    if not paths:
        raise FileNotFoundError(
            f"{display_path(folder)} has no masks with names such as 0/00012_skin.png, and no "
            f"label maps such as 12.png; it holds {contents(folder)}."
        )
    rows = [(path, *part_of(path)) for path in paths]
    table = pd.DataFrame(rows, columns=["path", "image_id", "part"])
    other = table["part"] == ""
    if other.any() and not other.all():
        first = table["path"][other].iloc[0].name
        print(f"{other.sum():,} files name no known part, {first} first.")
        table = table[~other]
    return table, bool(other.all())


def masks_twice(table: pd.DataFrame, folder: Path) -> dict[str, str]:
    """Image id -> reason, where two files are the mask of one part."""
    twice = table[table.duplicated(["image_id", "part"], keep=False)]
    reasons = {}
    for (image_id, part), paths in twice.groupby(["image_id", "part"])["path"]:
        reasons[image_id] = f"{_names(list(paths), folder)} are both its {part or 'label map'}"
    return reasons


def nothing_fits(
    table: pd.DataFrame, masks: Path, found: dict[str, Path], photographs: Path
) -> str:
    """The sentence for masks none of which belongs to a photograph: what both folders hold."""
    first = table["path"].iloc[0].relative_to(masks).as_posix()
    there = f"{len(found):,} photographs" if found else contents(photographs)
    if found:
        there += f", {next(iter(found.values())).relative_to(photographs).as_posix()} first"
    return (
        f"None of {len(table):,} masks in {display_path(masks)} ({first} first) belongs to a "
        f"photograph of {display_path(photographs)} ({there}): set data, images or masks."
    )


def read_split(path: str | Path, names: tuple[str, ...]) -> dict[str, str]:
    """Image id -> split, from a file (CSV) with the columns image_id and split.

    Ids may be padded, and end like the photograph. Raises ValueError for another table.
    """
    where, table = display_path(path), pd.read_csv(path, dtype=str, encoding="utf-8-sig")
    if not {"image_id", "split"} <= set(table):
        raise ValueError(f"{where} needs the columns image_id and split.")
    table = table.dropna(subset=["image_id", "split"])
    image_ids = [
        image_id_of(os.path.splitext(name)[0] if is_image(name) else name)
        for name in table["image_id"].str.strip()
    ]
    split = pd.Series(table["split"].to_numpy(), image_ids)
    if split.index.has_duplicates:
        twice = split.index[split.index.duplicated()][0]
        raise ValueError(f"{where}: {twice} is listed twice.")
    if other := set(split) - set(names):
        raise ValueError(f"{where}: split {min(other)!r} is none of {', '.join(names)}.")
    return split.to_dict()


# ------------------------------------------------------------------------------------- pixels


def _open(path: Path) -> tuple[Image.Image, bool]:
    """An image, decoded, and whether its format changes values; ValueError if unreadable."""
    try:
        with Image.open(path) as image:
            image.load()
            return image, image.format in LOSSY
    except Exception as error:  # Pillow raises a dozen kinds
        raise ValueError(f"{path.name} cannot be read: download it again") from error


def _palette(image: Image.Image) -> np.ndarray:
    """The 256 colours of a palette image, (256, 3); black where it has fewer."""
    colours = np.zeros((256, 3), np.uint8)
    given = np.reshape(image.getpalette("RGB") or [], (-1, 3))[:256]
    colours[: len(given)] = given
    return colours


def _brighter(values: np.ndarray, lossy: bool) -> np.ndarray:
    """The pixels (H, W) above the middle between the lowest and the highest value.

    Where all are alike, up to the noise of a lossy format, all or none of them.
    """
    low, high = values.min(), values.max()
    noise = lossy or len(np.unique(values)) > 2
    if high - low < (32 if noise else 1):
        return np.full(values.shape, bool(high > (127 if noise else 0)))
    return values > (float(low) + float(high)) / 2


def mask_of(path: str | Path) -> np.ndarray:
    """A mask (H, W) bool, saved as 0 and any value, in colour, or as what is not transparent.

    Raises ValueError where the file cannot be read.
    """
    image, lossy = _open(Path(path))
    if image.mode == "P" and "transparency" not in image.info:
        index, colours = np.asarray(image), _palette(image)
        if index.any() and not index.all() and colours[np.unique(index)].any(1).all():
            return index > 0  # no black: the first colour is the background
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    elif image.mode not in ("1", "L", "LA", "RGB", "RGBA", "F") and image.mode[0] != "I":
        image = image.convert("RGB")
    values = np.asarray(image)
    values = values.astype(np.float32) if values.dtype.kind != "u" else values
    if image.mode not in ("LA", "RGBA"):
        return _brighter(values if values.ndim == 2 else values.max(2), lossy)
    grey, alpha = values[..., :-1].max(2), values[..., -1]
    if alpha.min() == alpha.max():
        is_visible = alpha.any() or len(np.unique(grey)) == 2
        return _brighter(grey, lossy) if is_visible else np.zeros(grey.shape, bool)
    opaque = _brighter(alpha, lossy)
    inside = np.unique(grey[opaque])
    return opaque & (grey > 0) if len(inside) == 2 and inside[0] == 0 else opaque


def label_map_of(path: str | Path) -> np.ndarray:
    """A label map (H, W) uint8: 0 to 18, or 255 where a pixel does not count.

    Labels are grey values, places in a palette, or the colours of 3.1 or of the authors. Raises
    ValueError for another value or colour, and for a format that changes the values.
    """
    image, lossy = _open(Path(path))
    name = Path(path).name
    if lossy:
        raise ValueError(f"{name}: {image.format} changes labels; a label map has to be a PNG")
    if image.mode == "P":
        labels, of_colours = np.asarray(image), _labels_of_colours(_palette(image))
        labels = labels if of_colours is None else of_colours[labels]
    else:
        values = np.asarray(image)
        values = values[..., :-1] if image.mode in ("LA", "RGBA") else values
        labels = values if values.ndim == 2 else values[..., 0]
        if values.ndim == 3 and (values != labels[..., None]).any():
            labels = _labels_of_colours(values)
            if labels is None:
                raise ValueError(f"{name} has colours that stand for no part")
    wrong = labels[(labels > len(PARTS)) & (labels != IGNORED) | (labels < 0)]
    if wrong.size:
        raise ValueError(f"{name} has the value {wrong[0]}: labels are 0 to {len(PARTS)}")
    return labels.astype(np.uint8)


def _labels_of_colours(image: np.ndarray) -> np.ndarray | None:
    """Colours (..., 3) as labels (...); None where there are others than a label map has."""
    from faces.parts import COLOURS  # 3.1 defines them, and its module imports this one

    pack = np.array([65536, 256, 1])
    used, place = np.unique((image @ pack).ravel(), return_inverse=True)
    for colours in (COLOURS, OFFICIAL_COLOURS):
        labels = dict(zip((np.array(colours) @ pack).tolist(), range(19), strict=True))
        labels[0xFFFFFF] = IGNORED
        if labels.keys() >= set(used.tolist()):
            values = np.array([labels[colour] for colour in used.tolist()])
            return values[place].reshape(image.shape[:-1])
    return None

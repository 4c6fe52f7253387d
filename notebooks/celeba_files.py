"""CelebA's files in every layout that they are handed out in.

| copy | annotations | images |
|---|---|---|
| official | Anno/*.txt, Eval/*.txt | img_celeba/ ("in the wild"), or Img/img_align_celeba/ |
| torchvision's | *.txt beside the images | img_align_celeba/ |
| Kaggle's | *.csv, no identities | img_align_celeba/img_align_celeba/ |
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from notebooks.files import display_path
from notebooks.photographs import ENDINGS, image_size

NO_IMAGES = {"Anno", "Eval", "__MACOSX"}
ALIGNED_SIZE = 178, 218
# Where CelebA's boxes lie about the mean points of the aligned images: x, y, width, height.
ALIGNED_BOX = 37, 61, 102, 142

# ------------------------------------------------------------------------------------ folders


def _folders(folder: Path, depth: int = 3) -> Iterator[Path]:
    """A folder and those in it, the nearest first; those "in the wild" before the aligned."""
    level = [folder]
    for _ in range(depth + 1):
        yield from level
        inner = [path for one in level for path in _subfolders(one)]
        level = sorted(inner, key=lambda path: ("align" in path.name, path.name))


def _subfolders(folder: Path) -> list[Path]:
    """The folders in a folder; one that begins with a file is taken to hold files alone."""
    found = []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if (
                entry.is_dir()
                and not entry.name.startswith(".")
                and entry.name not in NO_IMAGES
            ):
                found.append(Path(entry.path))
            elif number > 1000 and not found:  # 202,599 images: no folder is among them
                break
    return found


def is_image(name: str) -> bool:
    """Whether a name ends like an image, and is no hidden file."""
    return os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith(".")


def photograph_folder(celeba: Path) -> Path:
    """The folder that holds the images of a copy of CelebA, down to three folders deep.

    img_celeba/ where there is none. Linked folders are followed.
    """
    for folder in _folders(celeba) if celeba.is_dir() else ():
        with os.scandir(folder) as entries:
            if any(is_image(entry.name) and not entry.is_dir() for entry in entries):
                return folder
    return celeba / "img_celeba"


def image_names(folder: Path) -> set[str]:
    """The names of the images in a folder; none where it is missing."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if is_image(entry.name)}


def _plain(name: str) -> str:
    """A name without its ending, in one of the two forms that accents have, in lower case."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0]).casefold()


def match_names(listed: pd.Index, present: set[str]) -> pd.Index:
    """The listed names as the files are called: another ending, another form of an accent."""
    there = listed.isin(present)
    left = sorted(present.difference(listed))
    if there.all() or not left:
        return listed
    called = {_plain(name): name for name in reversed(left)}
    names = listed.to_numpy(object, copy=True)
    for place in np.flatnonzero(~there):
        names[place] = called.pop(_plain(str(names[place])), names[place])
    return pd.Index(names, name=listed.name)


# ------------------------------------------------------------------------------------- tables


def annotation_file(celeba: Path, name: str) -> Path | None:
    """The file called `name`, with the ending .txt or .csv: in Anno/, Eval/, or elsewhere."""
    wanted = {f"{name}.txt".lower(), f"{name}.csv".lower()}
    places = [celeba / "Anno", celeba / "Eval", celeba] if celeba.is_dir() else []
    deeper = (path for folder in places[2:] for path in _folders(folder, 2))
    for folder in (*places, *deeper):
        for ending in (".txt", ".csv"):
            if (path := folder / f"{name}{ending}").is_file():
                return path
        if folder.is_dir() and folder.name in ("Anno", "Eval", celeba.name):
            found = [path for path in folder.iterdir() if path.name.lower() in wanted]
            if found:
                return min(found)
    return None


def _first_lines(path: Path) -> tuple[list[str], int]:
    """The lines of a table from its header on, at most two, and how many came before."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [next(file, "").strip() for _ in range(3)]
    skipped = int(lines[0].strip(",; ").isdigit())  # a count
    return [line for line in lines[skipped:] if line], skipped


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _with_blanks(path: Path, skipped: int, names: list[str]) -> pd.DataFrame | None:
    """A table whose names hold blanks; None where that is not what is wrong with it."""
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    lines = [line for line in text.splitlines()[skipped:] if line.strip()]
    rows = [line.rsplit(maxsplit=len(names) - 1) for line in lines]
    if not all(len(row) == len(names) and is_image(row[0]) for row in rows):
        return None
    table = pd.DataFrame(rows, columns=names)
    return table.assign(**table[names[1:]].apply(pd.to_numeric, errors="coerce"))


def read_table(path: Path, columns: list[str] | None = None, dtype=float) -> pd.DataFrame:
    """One of CelebA's files by image_id, text or CSV; `columns` where it need not name them.

    Raises FileNotFoundError or ValueError that names the file and what is wrong with it.
    """
    where = display_path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{where} is missing: it comes with CelebA's {path.parent.name} folder."
        )
    lines, skipped = _first_lines(path)
    separator = next((mark for mark in ",;\t" if lines and mark in lines[-1]), None)
    header = [name.strip(' "') for name in lines[0].split(separator)] if lines else []
    if columns is None or (header and not _is_number(header[-1])):
        skipped += 1
    if columns is None:
        fields = len(lines[-1].split(separator)) if lines else 0
        is_named = header[:1] == ["image_id"] or (separator and len(header) == fields)
        columns = header[1:] if is_named else header
    names, reason = ["image_id", *columns], "its rows have more fields than its header"
    options = dict(encoding="utf-8-sig", encoding_errors="surrogateescape", names=names)
    try:
        table = pd.read_csv(
            path, sep=separator or r"\s+", header=None, skiprows=skipped, **options
        )
    except pd.errors.EmptyDataError:
        table = pd.DataFrame(columns=names)
    except ValueError as error:
        table, reason = None, f"it is not a valid table ({str(error).strip()})"
    if separator is None and (table is None or not isinstance(table.index, pd.RangeIndex)):
        table = _with_blanks(path, skipped, names)
    if table is None or (len(table) and not isinstance(table.index, pd.RangeIndex)):
        raise ValueError(f"{where}: {reason}.")
    return _checked(table, where, columns, dtype)


def _checked(table: pd.DataFrame, where: str, columns: list[str], dtype) -> pd.DataFrame:
    if table.empty:
        raise ValueError(f"{where} has no rows: download it again.")
    bad = [c for c in columns if table[c].dtype.kind not in "iuf" or table[c].hasnans]
    if bad:
        raise ValueError(f"{where}: column {bad[0]} holds missing or non-numeric values.")
    table["image_id"] = table["image_id"].astype(str)
    if not table["image_id"].is_unique:
        twice = table["image_id"][table["image_id"].duplicated()].iloc[0]
        raise ValueError(f"{where}: {twice} is listed twice.")
    return table.set_index("image_id").astype(dtype)


# ------------------------------------------------------------------------- images and tables


def sizes_of(names: pd.Index, folder: Path, most: int = 64) -> pd.DataFrame:
    """Width and height of `most` of the images, spread over the list; those that open."""
    some = names[np.linspace(0, len(names) - 1, min(most, len(names))).astype(int)]
    sizes = pd.DataFrame([image_size(folder / name) for name in some], some, ["x", "y"])
    return sizes[sizes.min(axis=1) > 1]


def contents(folder: Path) -> str:
    """What a folder holds, in words: its folders with their counts of files, then its files."""
    if not folder.is_dir():
        return "no such folder"
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [
        f"{path.name}/ with {sum(1 for _ in path.iterdir()):,} files"
        for path in inside
        if path.is_dir()
    ]
    files = [path.name for path in inside if path.is_file()]
    more = [f"{len(files):,} files, {files[0]} first"] if files else []
    return ", ".join([*folders[:5], *more]) or "nothing"


def check_present(listed: pd.Index, present: set[str], images: Path, celeba: Path) -> None:
    """Raises ValueError where there are images, and none of them is listed."""
    if not present or not present.isdisjoint(listed):
        return
    where = display_path(images)
    raise ValueError(
        f"None of {len(listed):,} listed images ({listed[0]} first) is in {where}, which holds "
        f"{contents(images)}; {display_path(celeba)} holds {contents(celeba)}."
    )


def read(celeba: Path, name: str, columns: list[str] | None = None, dtype=float):
    """The table called `name`, wherever it lies; see `read_table`."""
    return read_table(
        annotation_file(celeba, name) or celeba / "Anno" / f"{name}.txt", columns, dtype
    )


def read_boxes_and_points(celeba: Path, images: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Boxes (4 columns) and landmarks (10) by image_id, of the images that are there.

    The aligned images, all 178 x 218, have points of their own, and one box for all. Raises
    FileNotFoundError or ValueError where the tables at hand belong to other images.
    """
    wild, aligned = (
        annotation_file(celeba, f"list_landmarks_{kind}celeba") for kind in ("", "align_")
    )
    first = read_table(wild or aligned or celeba / "Anno" / "list_landmarks_celeba.txt")
    present = image_names(images)
    names = match_names(first.index, present)
    check_present(names, present, images, celeba)
    sizes = sizes_of(names[names.isin(present)], images) if present else pd.DataFrame()
    is_template = len(sizes) > 0 and (sizes == list(ALIGNED_SIZE)).all(axis=None)
    if aligned and (is_template or not (wild or len(sizes))):
        points = first if wild is None else read_table(aligned)
        _check_fit(points, sizes, aligned, images)
        if annotation_file(celeba, "list_bbox_celeba"):
            print(
                "The boxes belong to the images in the wild, and these are the aligned ones: "
                "the face's region in their template is used instead."
            )
        boxes = np.tile(np.array(ALIGNED_BOX, float), (len(points), 1))
        return pd.DataFrame(boxes, points.index), points
    if wild is None:
        raise ValueError(
            f"{display_path(aligned)} belongs to the aligned images, 178 x 218; "
            f"{display_path(images)} holds others: list_landmarks_celeba.txt is needed."
        )
    _check_fit(first, sizes, wild, images)
    return read(celeba, "list_bbox_celeba"), first


def _check_fit(points: pd.DataFrame, sizes: pd.DataFrame, file: Path, images: Path) -> None:
    """Raises ValueError where points lie outside of most of the images with these sizes."""
    if not len(sizes) or points.shape[1] != 10:
        return
    listed = match_names(points.index, set(sizes.index))
    inner = points.set_axis(listed).reindex(sizes.index).to_numpy(float)
    most = sizes.to_numpy(float)[:, None]
    places = inner.reshape(len(sizes), 5, 2)
    outside = ((places < -0.05 * most) | (places > 1.05 * most)).any((1, 2))
    if outside.mean() > 0.5:
        width, height = sizes.iloc[0]
        raise ValueError(
            f"{display_path(file)} does not belong to these images: in {outside.sum()} of "
            f"{len(sizes)} that were looked at in {display_path(images)} (one has "
            f"{width} x {height} pixels) points lie outside."
        )


def read_identities(celeba: Path, names: pd.Index) -> pd.DataFrame:
    """The identity of each image; where no file has them, each image gets one of its own."""
    file = annotation_file(celeba, "identity_CelebA")
    if file:
        return read_table(file, ["identity"], int)
    print(
        "identity_CelebA.txt is missing, so people cannot be told apart. 1.1 to 1.5 go on "
        "with landmarks alone; 2.1 and 2.2 need identities (see CelebA's page)."
    )
    return pd.DataFrame({"identity": np.arange(1, len(names) + 1)}, names)


def official_unseen(celeba: Path, identity: pd.Series) -> np.ndarray:
    """The people of CelebA's official test images; `identity`: image_id -> who it shows.

    The partition shares no person (Liu et al., ICCV 2015, section 4). Raises FileNotFoundError
    or ValueError that names the file.
    """
    name = "list_eval_partition"
    path = annotation_file(celeba, name) or celeba / "Eval" / f"{name}.txt"
    partition = read_table(path, ["partition"], int)["partition"]
    partition.index = match_names(partition.index, set(identity.index))
    people = np.unique(identity[partition.reindex(identity.index).to_numpy() == 2])
    if not len(people):
        raise ValueError(f"{display_path(path)} marks none of these images as test (2).")
    return people

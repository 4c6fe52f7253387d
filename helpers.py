"""What two or more notebooks of the series share: folders, set-up, manifests, photographs, geometry, training state, pictures.

Conventions: points are (..., 2) in pixels, x right and y down, (0, 0) the centre of the top left pixel (as in CelebA's
files and cv2.warpAffine). A matrix is 2x3 and maps points of the original photograph to points of a crop.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import http.client
import inspect
import json
import linecache
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pandera.pandas as pa
import torch
import torchvision
from accelerate import Accelerator
from PIL import ExifTags, Image, ImageOps

plt.rcParams.update({"figure.dpi": 80, "font.size": 8})
ROOT = Path(__file__).resolve().parent
POINTS = ["left_eye", "right_eye", "nose", "left_mouth", "right_mouth"]  # left and right as seen in the image
FLIPPED_POINTS = [1, 0, 2, 4, 3]  # the order of the points once the image is mirrored
LANDMARK_COLUMNS = [f"{point}_{axis}" for point in POINTS for axis in "xy"]
MATRIX_COLUMNS = [f"m{row}{column}" for row in (0, 1) for column in (0, 1, 2)]
BOX_COLUMNS = ["box_x", "box_y", "box_width", "box_height"]
# The parts of CelebAMask-HQ in the order of their labels, 1 to 18 (0 is background); l_ is the person's left, the right of the picture.
PARTS = "skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip hair hat ear_r neck_l neck cloth".split()
PART_COLOURS = np.array([
    [0, 0, 0], [214, 165, 130], [190, 120, 90], [60, 60, 220], [60, 200, 230], [30, 140, 190], [120, 90, 40], [80, 60, 20], [230, 130, 160], [200, 90, 130],
    [110, 10, 25], [230, 60, 80], [180, 20, 60], [90, 60, 120], [240, 150, 30], [255, 235, 60], [120, 255, 90], [170, 140, 100], [60, 120, 90],
], np.uint8)  # fmt: skip
CROP_SIZE, ALIGNED_SIZE = 256, 112  # pixels: the crops of 1.3, the aligned faces of 1.5
# InsightFace's template for a 112 x 112 aligned face (arcface_torch, `arcface_dst`).
TEMPLATE_112 = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


# ---------------------------------------------------------------- folders and files


def open_dataset(
    name: str, data: str | Path | None = None, output: str | Path | None = None, needs: str | None = "celeba"
) -> SimpleNamespace:
    """The folders of one data set: `.data`, in it the folder that a stage `needs` (or None), `.csv` and `.runs` to write to (both are made).

    `data` holds `celeba/`, `CelebAMask-HQ/` and so on; by default `data/<name>/` for the sample and `data/` for real
    sets. `output` holds `csv/` and `runs/`; by default the project itself.
    """
    may_draw = name == "sample" and not data
    data = Path(data) if data else Path(output or ROOT) / "data" / "sample" if name == "sample" else ROOT / "data"
    output = Path(output) if output else ROOT
    folders = SimpleNamespace(name=name, data=data, celeba=data / "celeba", photographs=data / "celeba" / "img_celeba")
    folders.csv, folders.runs = output / "csv" / name, output / "runs" / name
    for folder in (folders.csv, folders.runs):
        folder.mkdir(parents=True, exist_ok=True)
    bring_back(folders)
    if needs is None:
        return folders
    if not (data / needs).is_dir() and may_draw:
        print("The sample is not drawn yet: notebook 0.1 does it now, in a minute or two.")
        subprocess.run([sys.executable, ROOT / "notebooks" / "run.py", "0.1", "--set", f"OUTPUT={output}"], check=True)
    if not (data / needs).is_dir():
        raise FileNotFoundError(f"{shown(data / needs)} is missing: put the set there, or set DATA= to the folder that holds {needs}/.")
    return folders


def make_first(folders: SimpleNamespace, needed: Mapping[str, str]) -> None:
    """Runs earlier notebooks of the sample whose files in runs/ are missing, as when one notebook is opened alone.

    `needed`: file or folder in runs/<dataset>/ -> the stage that leaves it. For other sets the notebooks themselves say
    what is missing: their training takes too long to begin unasked.
    """
    stages = sorted({stage for name, stage in needed.items() if not (folders.runs / name).exists()})
    if stages and folders.name == "sample":
        print(f"{' and '.join(stages)} have not run here yet: they do now, some minutes each.", flush=True)
        command = [sys.executable, ROOT / "notebooks" / "run.py", *stages, "--set", f"OUTPUT={folders.runs.parent.parent}"]
        subprocess.run([*command, f"DATA={folders.data}"], check=True)


def shown(path: str | Path) -> str:
    """A path as a reader should see it: relative to the project or its neighbourhood, never the machine's own folders."""
    path = Path(path)
    relative = os.path.relpath(path, ROOT)
    return relative if relative.count("..") <= 1 else os.path.join("...", path.parent.name, path.name)


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Calls `write(temporary)` beside `path`, then renames: a reader never sees half a file, a full disk keeps the old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}_{threading.get_ident()}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def in_threads(work: Callable, *rows: Iterable, at_once: int = 16) -> list:
    """[work(*row) for row in zip(*rows)] on all cores; a thread takes `at_once` rows: handing over small photographs one by one costs a quarter of reading them."""
    jobs = list(zip(*rows, strict=True))
    parts = [jobs[first : first + at_once] for first in range(0, len(jobs), at_once)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [result for part in pool.map(lambda part: [work(*row) for row in part], parts) for result in part]


def kept_folder(root: Path) -> Path | None:
    """Where the finished files of the project at `root` are kept besides: FACES_KEEP, else `faces/` in a mounted Google Drive, else nowhere.

    An empty FACES_KEEP turns it off. Another OUTPUT than the project itself has its own folder there.
    """
    given, drive = os.environ.get("FACES_KEEP"), "/content/drive/MyDrive"
    place = Path(given).absolute() if given else Path(drive) / "faces" if given is None and os.path.isdir(drive) else None
    return place / root.name if place and root != ROOT else place


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _contents(path: Path) -> dict[str, str]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {os.path.relpath(file, path): sha256_of(file) for file in files}


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _kept_copy(path: Path) -> tuple[Path, Path, Path] | None:
    """The copy of a path in csv/ or runs/, and its names while it is new and once it is old; None where nothing is kept."""
    root = next((parent.parent for parent in path.absolute().parents if parent.name in ("csv", "runs")), None)
    place = kept_folder(root) if root and os.environ.get("RANK", "0") == "0" else None
    if place is None:
        return None
    copied = place / path.absolute().relative_to(root)
    return copied, copied.with_name(f".new.{copied.name}"), copied.with_name(f".old.{copied.name}")


def keep(path: Path) -> Path:
    """Copies a finished file or folder of csv/ or runs/ to `kept_folder` as well: the copy is read back before it replaces the old one.

    Manifests, weights and checkpoints go there; pixels stay here. Where a Drive is full or gone it says so, and the run goes on.
    """
    names = _kept_copy(path)
    if names is None:
        return path
    copied, new, old = names
    try:
        copied.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not copied.exists():  # killed between the two renames below
            old.rename(copied)
        _remove(new)
        _remove(old)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, new)
        if _contents(new) != _contents(path):
            raise OSError("what was written there reads back differently")
        if copied.is_dir():
            copied.rename(old)
        new.replace(copied)
        _remove(old)
    except OSError as error:
        print(f"{shown(path)} could not be kept in {copied.parent.name}/ of the second place ({error}); it is safe here, copy it by hand.")
        with contextlib.suppress(OSError):
            if old.exists() and not copied.exists():
                old.rename(copied)
            _remove(new)
    return path


def forget(path: Path) -> None:
    """Removes a file or folder here and where `keep` has put it; what cannot be removed there stays, and is named."""
    _remove(path)
    try:
        for copied in _kept_copy(path) or ():
            _remove(copied)
    except OSError as error:
        print(f"{copied.name} of the second place is no longer needed and could not be removed ({error}).")


def bring_back(folders: SimpleNamespace) -> None:
    """Fetches what `keep` left of this data set and is missing here; a checkpoint comes whole or not at all."""
    root = folders.runs.parent.parent
    place = kept_folder(root)
    if place is None:
        return
    fetched = []
    try:
        for old in [old for part in ("csv", "runs") for old in (place / part / folders.name).rglob(".old.*")]:
            copied = old.with_name(old.name.removeprefix(".old."))
            if not copied.exists():
                old.rename(copied)
        found = [path for part in ("csv", "runs") for path in sorted((place / part / folders.name).rglob("*"))]
        for path in found:
            inside = path.relative_to(place).parts
            is_checkpoint = path.is_dir() and path.parent.name == "checkpoints"
            here = root.joinpath(*inside)
            there = here.exists() or here.with_name(f"{here.name}.old").exists()
            hidden = any(name.startswith(".") for name in inside)
            if there or hidden or not (is_checkpoint or (path.is_file() and path.parent.parent.name != "checkpoints")):
                continue
            copy_of = shutil.copytree if is_checkpoint else shutil.copyfile
            temporary = here.with_name(f".{os.getpid()}.{here.name}")
            here.parent.mkdir(parents=True, exist_ok=True)
            copy_of(path, temporary)
            os.replace(temporary, here)
            fetched.append(here.name)
    except OSError as error:
        print(f"What an earlier session kept in {place.name}/ cannot be fetched ({error}).")
    if fetched:
        print(
            f"{len(fetched)} files of an earlier session came back from {place.name}/: {', '.join(fetched[:6])}{' ...' * (len(fetched) > 6)}"
        )


def fetch(url: str, path: str | Path, size: int | None = None, sha256: str | None = None) -> Path:
    """Downloads `url` to `path`, once: goes on where it broke off, checks size and hash, refuses a page in place of a file.

    Until all is right it is called `<name>.part`. Raises OSError with one sentence.
    """
    path = Path(path)
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise OSError(
                    f"{path.name}: {url} answers with a page, not a file; over its quota, or moved. Download it by hand to {shown(path)}"
                )
            goes_on = have and answer.status == 206
            expected = int(answer.headers.get("Content-Length", 0)) + (have if goes_on else 0)
            with open(part, "ab" if goes_on else "wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: nothing follows what is here already
            raise
        expected = have
    except http.client.HTTPException as error:
        raise OSError(f"{path.name}: the connection broke ({type(error).__name__}); run again, it goes on from there.") from None
    got = part.stat().st_size
    if got < (size or expected):
        raise OSError(f"{path.name}: broke off after {got:,} of {size or expected:,} bytes; run again, it goes on from there.")
    if got != (size or got) or sha256 not in (None, sha256_of(part)):
        part.unlink()
        raise OSError(f"{path.name}: {url} gave a file of other size or content than expected; it was thrown away. Try again later.")
    return part.replace(path)


# ---------------------------------------------------------------- manifests


def _schema(maker: str, unique: Sequence[str] = ("image_id",), **columns) -> tuple[str, pa.DataFrameSchema]:
    checks = {name: column if isinstance(column, pa.Column) else pa.Column(column) for name, column in columns.items()}
    return maker, pa.DataFrameSchema(checks, unique=list(unique), coerce=True)


_number = {"dtype": float, "nullable": False}
_landmarks = {name: pa.Column(**_number) for name in LANDMARK_COLUMNS}
_matrix = {name: pa.Column(**_number) for name in MATRIX_COLUMNS}
_score = pa.Column(float, pa.Check.in_range(0, 1))
_score_or_none = pa.Column(float, pa.Check.in_range(0, 1), nullable=True)
_label = pa.Column(int, pa.Check.ge(0))
_faces = {"image_id": str, "identity": int}
_boxes = {name: pa.Column(**_number) for name in BOX_COLUMNS}
_splits = pa.Column(str, pa.Check.isin(["train", "val", "unseen", "extra", "spare", "judge"]))
_landmark_splits = pa.Column(str, pa.Check.isin(["train", "val", "test", "unused"]))
_report = {"image_id": str, "label": _label, "predicted": _label, "is_recognized": bool, "score": _score}
_optional = pa.Column(float, nullable=True, required=False)
_translation = {
    **dict.fromkeys(("pair", "direction", "pictures", "features"), str), "count": _label, **dict.fromkeys(("kid", "kid_spread", "fid"), float),
    "taken_for_target": _score, "cycle_l1": _optional, "cycle_ssim": _optional,
}  # fmt: skip

# Every manifest that goes from one notebook to another: who makes it, and what it holds.
SCHEMAS = {
    "selected": _schema("1.1", **_faces, split=_splits, landmark_split=_landmark_splits, **_boxes, **_landmarks),
    "attributes": _schema("1.1", image_id=str),  # and one column of 0 and 1 for each attribute of the data set
    "train": _schema("1.1", **_faces, label=_label),
    "val": _schema("1.1", **_faces, label=_label),
    "cropped_landmarks": _schema("1.3", **_faces, **_landmarks, **_matrix),
    "rejected": _schema("1.3", unique=("image_id", "stage"), image_id=str, stage=str, reason=str),
    "predicted_landmarks": _schema("1.4", image_id=str, **_landmarks, confidence=_score),
    "landmark_report": _schema("1.4", image_id=str, landmark_split=_landmark_splits, nme=float),
    **{f"aligned_{n}": _schema("1.5", image_id=str, **_matrix, residual=float) for n in (2, 3, 5)},
    "alignment_report": _schema("2.1", unique=("alignment",), alignment=str, top1=_score, top5=_score),
    "val_report_ce_loss": _schema("2.1", **_report),
    "val_report_arcface_loss": _schema("2.2", **_report),
    "verification_report": _schema("2.2", unique=("loss", "far"), loss=str, far=_score, tar=_score_or_none, eer=_score),
    "segmentation_split": _schema(
        "3.1", image_id=str, split=pa.Column(str, pa.Check.isin(["train", "val", "test"])), **{part: _label for part in PARTS}
    ),
    "segmentation_scores": _schema("3.2", unique=("model", "split", "part"), model=str, split=str, part=str, f1=_score_or_none),
    "segmentation_models": _schema(
        "3.2",
        unique=("model",),
        model=str,
        parameters=_label,
        megabytes=float,
        seconds_per_epoch=pa.Column(float, nullable=True),
        images_per_second=float,
    ),
    "deeplabv3_scores": _schema(
        "3.3", unique=("loss", "part"), loss=str, part=str, f1=_score_or_none, precision=_score_or_none, recall=_score_or_none
    ),
    "occlusion_scores": _schema(
        "3.4", unique=("model", "photographs"), model=str, photographs=str, count=_label, dice=_score, iou=_score, boundary_f=_score
    ),
    "cyclegan_scores": _schema("4.1", unique=("pair", "direction", "pictures"), **_translation),
    "portrait_scores": _schema("4.2", unique=("pair", "direction", "pictures"), **_translation),
    "people": _schema(
        "5.1",
        unique=("image_id", "face"),
        image_id=str,
        face=_label,
        person=pa.Column(str, nullable=True),
        score=float,
        confidence=_score,
        milliseconds=float,
        **_landmarks,
    ),
    "part_overlaps": _schema("3.1", unique=("part", "other"), part=str, other=str, photographs=_label, pixels=_label, mean_pixels=float),
}


def _validate(frame: pd.DataFrame, name: str, where: str, dataset: str) -> pd.DataFrame:
    maker, schema = SCHEMAS[name]
    again = f"Notebook {maker} makes it: delete it, then make {maker} DATASET={dataset}"
    for column in frame.select_dtypes("float"):
        if str(getattr(schema.columns.get(column), "dtype", "")).startswith("int") and (frame[column].dropna() % 1 != 0).any():
            raise ValueError(f"{where}: column {column}: only whole numbers make sense there. {again}")
    try:
        return schema.validate(frame)
    except (pa.errors.SchemaError, pa.errors.SchemaErrors) as error:
        first = getattr(error, "schema_errors", [error])[0]
        column = f"column {first.schema.name}: " if getattr(first.schema, "name", None) else ""
        reason = column + str(first).splitlines()[0].rstrip(":")
        raise ValueError(f"{where}: {reason}. {again}") from None


def write_manifest(frame: pd.DataFrame, name: str, folders: SimpleNamespace) -> Path:
    """Checks `frame` against its schema, sorts it by its key and writes csv/<dataset>/<name>.csv atomically."""
    frame = _validate(frame, name, f"{name}.csv (about to be written)", folders.name).sort_values(SCHEMAS[name][1].unique)
    whole = [column for column in frame.select_dtypes("float") if (frame[column] % 1 == 0).all()]
    frame = frame.astype(dict.fromkeys(whole, int))  # the same text, in a third of the time
    return keep(write_atomically(folders.csv / f"{name}.csv", lambda path: frame.to_csv(path, index=False, float_format="%.6g")))


def read_manifest(name: str, folders: SimpleNamespace) -> pd.DataFrame:
    """Reads and checks csv/<dataset>/<name>.csv; a missing or broken one is named with the notebook that makes it."""
    path, maker = folders.csv / f"{name}.csv", SCHEMAS[name][0]
    if not path.exists():
        raise FileNotFoundError(f"{shown(path)} is missing. Notebook {maker} makes it: make {maker} DATASET={folders.name}")
    try:
        frame = pd.read_csv(path, dtype={"image_id": str})
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError("its rows have more fields than its head")
    except ValueError as error:  # what pandas raises for an empty file, a row too long, bytes that are no text
        raise ValueError(f"{shown(path)} is no table ({str(error).strip()}). Delete it, then make {maker} DATASET={folders.name}") from None
    return _validate(frame, name, shown(path), folders.name)


def reject(stage: str, reasons: Mapping[str, str], folders: SimpleNamespace) -> pd.DataFrame:
    """Replaces what `stage` has put into the rejected manifest by `reasons` (image_id -> sentence); returns its rows."""
    path = folders.csv / "rejected.csv"
    others = read_manifest("rejected", folders).query("stage != @stage") if path.exists() else None
    rows = pd.DataFrame({"image_id": list(reasons), "stage": stage, "reason": list(reasons.values())}, dtype=object)
    write_manifest(rows if others is None else pd.concat([others, rows]), "rejected", folders)
    return rows


def fingerprint(*parts) -> str:
    """A short hash of frames, functions (their source) and values: what a checkpoint was trained on, and how."""

    def text(part) -> str:
        if isinstance(part, pd.DataFrame):
            return part.to_csv(index=False, float_format="%.6g")
        return inspect.getsource(part) if callable(part) else repr(part)

    return hashlib.sha256("\0".join(map(text, parts)).encode()).hexdigest()[:16]


def landmarks_of(frame: pd.DataFrame) -> np.ndarray:
    """The five points of a manifest, (N, 5, 2) float."""
    return frame[LANDMARK_COLUMNS].to_numpy(float).reshape(-1, 5, 2)


def matrices_of(frame: pd.DataFrame) -> np.ndarray:
    """The matrices of a manifest, (N, 2, 3) float."""
    return frame[MATRIX_COLUMNS].to_numpy(float).reshape(-1, 2, 3)


# ---------------------------------------------------------------- geometry


def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., K, 2) through matrices (..., 2, 3)."""
    return points @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]


def invert_affine(matrix: np.ndarray) -> np.ndarray:
    """The way back: (..., 2, 3) from crop to photograph."""
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -(linear @ matrix[..., 2:])], axis=-1)


def square_matrix(box: np.ndarray, size: int, scale: float = 1.0) -> np.ndarray:
    """Matrices (N, 2, 3) that cut squares `scale` times the longer side of `box` (N, 4: x y width height) to `size` pixels.

    The squares are whole pixels of the photograph: they can be cut out and resized, at a tenth of the cost of a warp.
    """
    box = np.asarray(box, float)
    side = np.maximum(1, np.round(scale * box[..., 2:].max(-1)))
    corner = np.round(box[..., :2] + (box[..., 2:] - side[..., None]) / 2)
    matrix = np.zeros((*box.shape[:-1], 2, 3))
    matrix[..., 0, 0] = matrix[..., 1, 1] = size / side
    matrix[..., 2] = (size / side[..., None]) * (0.5 - corner) - 0.5  # pixel edges onto pixel edges
    return matrix


def widen(matrix: np.ndarray, side: int, view: int, room: float, seen: float = 1.0) -> tuple[np.ndarray, int]:
    """Matrices to a `side` px crop, changed to a store in which the middle share `seen` of that crop is the middle `view` px.

    The store is `room` times as wide as the view. Returns (matrices, store size in pixels).
    """
    store, zoom = round(view * room), view / (side * seen)
    wider = matrix * zoom
    wider[..., 2] += (store - 1) / 2 - zoom * (side - 1) / 2
    return wider, store


def fit_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares rotation, scale and shift (no mirror) from `source` to `target`, both (..., K, 2): matrices (..., 2, 3).

    In the plane Umeyama's problem (PAMI 1991, eq. 39-43) is linear when a point is read as a complex number: the best
    factor is <source, target> / <source, source> about the two means.
    """
    source, target = np.broadcast_arrays(np.asarray(source, float), np.asarray(target, float))
    from_mean, to_mean = source.mean(-2, keepdims=True), target.mean(-2, keepdims=True)
    a, b = source - from_mean, target - to_mean
    energy = np.maximum((a**2).sum((-1, -2)), 1e-12)
    real = (a * b).sum((-1, -2)) / energy
    imaginary = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(-1) / energy
    linear = np.stack([np.stack([real, -imaginary], -1), np.stack([imaginary, real], -1)], -2)
    shift = to_mean[..., 0, :] - (linear @ from_mean.swapaxes(-1, -2))[..., 0]
    return np.concatenate([linear, shift[..., None]], -1)


# ---------------------------------------------------------------- photographs


class PhotographError(ValueError):
    """A photograph that cannot be used; the message names the file and the reason."""


UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for a bad file


def _is_ordinary(image: Image.Image) -> bool:
    """Whether it is a JPEG in colour, upright, with the mark at its end that a truncated one lacks."""
    if image.format != "JPEG" or image.mode != "RGB" or image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return False
    place = image.fp.tell()
    image.fp.seek(-2, os.SEEK_END)
    end = image.fp.read()
    image.fp.seek(place)
    return end == b"\xff\xd9"


def read_photograph(path: str | Path) -> np.ndarray:
    """A photograph as (H, W, 3) uint8 RGB: turned upright by its EXIF tag; grey, CMYK, 16-bit and alpha are converted.

    Raises PhotographError for a missing, empty, truncated or foreign file.
    """
    try:
        with Image.open(path) as image:
            if _is_ordinary(image):
                ordinary = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR_RGB)  # half of Pillow's time, and beside other threads
                if ordinary is not None:
                    return ordinary
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # the way that Pillow does not warn about
            if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it
                image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except FileNotFoundError:
        raise PhotographError(f"{Path(path).name}: no such photograph") from None
    except UNREADABLE as error:
        raise PhotographError(f"{Path(path).name}: cannot be decoded ({error})".replace(str(path), "file")) from None


def write_jpeg(picture: np.ndarray, path: str | Path) -> Path:
    """Writes (H, W, 3) uint8 RGB as a JPEG of quality 95, atomically; OpenCV encodes, beside other threads."""
    turned = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)

    def write(temporary: Path) -> None:
        if not cv2.imwrite(os.fspath(temporary), turned, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OSError(f"{Path(path).name} could not be written: is the disk full?")

    return write_atomically(path, write)


def _whole_square(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray | None:
    """What `matrix` cuts out, where that is an upright square of whole pixels inside the image (as of square_matrix)."""
    zoom = matrix[0, 0]
    if zoom <= 0 or matrix[1, 1] != zoom or matrix[0, 1] or matrix[1, 0]:
        return None
    exact = np.array([*(0.5 - (matrix[:, 2] + 0.5) / zoom), size / zoom])
    left, top, side = whole = np.round(exact).astype(int)
    inside = left >= 0 and top >= 0 and left + side <= image.shape[1] and top + side <= image.shape[0]
    return image[top : top + side, left : left + side] if inside and np.abs(exact - whole).max() < 1e-6 else None


def warp_photograph(image: np.ndarray, matrix: np.ndarray, size: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """Samples a `size` x `size` crop once from the photograph; where it shrinks, each pixel averages what it covers."""
    square = _whole_square(image, matrix, size)
    if square is not None:
        return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if len(square) > size else cv2.INTER_CUBIC)
    shrink = 1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    samples = int(np.clip(np.ceil(shrink), 1, 16))
    fine = samples * matrix
    fine[:, 2] += (samples - 1) / 2
    interpolation = cv2.INTER_LINEAR if samples > 1 else cv2.INTER_CUBIC
    crop = cv2.warpAffine(image, fine, (size * samples,) * 2, flags=interpolation, borderMode=border)
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA) if samples > 1 else crop


def photograph_store(
    folder: str | Path, image_ids: Sequence[str], matrices: np.ndarray, size: int, cache: str | Path
) -> tuple[np.ndarray, dict[str, str]]:
    """Decodes each photograph once, in parallel, and keeps its crop: ((N, size, size, 3) uint8, image_id -> why it failed).

    The array is a memory-mapped file at `cache`, made anew when the list, the matrices, the size or a photograph
    changes. A photograph that fails leaves a black crop and a sentence.
    """
    folder, cache, image_ids = Path(folder), Path(cache), list(image_ids)
    matrices = np.ascontiguousarray(matrices, dtype=float)
    stats = [(path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else 0 for path in map(folder.joinpath, image_ids)]
    code = fingerprint(read_photograph, warp_photograph, _whole_square)
    key = hashlib.sha256(json.dumps([image_ids, size, stats, code]).encode() + matrices.tobytes()).hexdigest()
    notes = cache.with_suffix(".json")
    if cache.exists() and notes.exists() and (known := json.loads(notes.read_text()))["key"] == key:
        return np.load(cache, mmap_mode="r"), known["failures"]

    failures: dict[str, str] = {}
    cv2.setNumThreads(1)  # the threads below are one to a photograph

    def fill(path: Path) -> None:
        shape = (len(image_ids), size, size, 3)
        start = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).offset

        def sixteen(first: int) -> None:
            some = slice(first, first + 16)
            crops = np.zeros((len(image_ids[some]), *shape[1:]), np.uint8)
            for crop, image_id, matrix in zip(crops, image_ids[some], matrices[some], strict=True):
                try:
                    crop[:] = warp_photograph(read_photograph(folder / image_id), matrix, size)
                except PhotographError as error:
                    failures[image_id] = str(error)
            with open(path, "r+b") as file:  # through a memory map it would take half as long again
                file.seek(start + first * crops[0].nbytes)
                file.write(crops)

        in_threads(sixteen, range(0, len(image_ids), 16), at_once=1)

    notes.unlink(missing_ok=True)  # killed between the two, the array must not pass for what the old notes say
    write_atomically(cache, fill)
    write_atomically(notes, lambda path: path.write_text(json.dumps({"key": key, "failures": failures})))
    return np.load(cache, mmap_mode="r"), failures


# ---------------------------------------------------------------- set-up and training state


def best_precision(device: torch.device) -> str:
    """bfloat16 where the matrix units have it, float16 on older GPUs (a T4), else plain float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or torch.cpu._is_avx512_bf16_supported():
            return "bf16"
    return "no"


def set_up(
    stage: str,
    folders: SimpleNamespace,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    tracker: str = "tensorboard",
) -> Accelerator:
    """Seeds everything and returns the Accelerator of a stage: `device` None takes the best, `precision` None what it does well."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries still draw from it
    torch.manual_seed(seed)
    cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    kind = torch.device("cpu" if cpu else "cuda" if torch.cuda.is_available() else "mps")
    if device not in (None, kind.type):
        raise ValueError(f"DEVICE={device} is not to be had here; there is {kind.type}.")
    logs = folders.runs / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision or best_precision(kind), log_with=tracker or None, project_dir=str(logs))
    accelerator.init_trackers(stage)
    if tracker and accelerator.is_main_process and not accelerator.trackers:
        raise ValueError(f"TRACKER={tracker} is not installed: pip install {tracker}, or set tracker to tensorboard or an empty string.")
    accelerator.print(f"{stage} on {accelerator.device}, precision {accelerator.mixed_precision}, seed {seed}")
    return accelerator


KEEP_EVERY = 120.0  # seconds between two copies of a checkpoint to a second place, which may be slow


class Checkpoint:
    """The state of a training run, kept after every epoch in `folder`, from which it goes on with the same numbers.

    `settings` (JSON) says what is trained on what: a checkpoint of other settings is not resumed. Everything random in an
    epoch must come from generators seeded by (seed, epoch); then a run that is killed repeats that epoch alike.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, settings: Mapping, average: torch.nn.Module) -> None:
        self.accelerator, self.folder, self.average = accelerator, Path(folder), average
        self.settings = json.loads(json.dumps({**settings, "precision": accelerator.mixed_precision}))
        self.kept = 0.0

    def resume(self) -> list[dict]:
        """Loads the newest state, if there is one for these settings; returns the history, one row per epoch done."""
        notes, old = self.folder / "progress.json", self.folder.with_name(self.folder.name + ".old")
        if old.exists() and not self.folder.exists():  # killed between the two renames of `save`
            old.rename(self.folder)
        if not notes.exists():
            return []
        try:
            progress = json.loads(notes.read_text())
            if progress["settings"] != self.settings:
                self.accelerator.print(f"{shown(self.folder)} belongs to other settings: training starts afresh.")
                return []
            self.accelerator.load_state(str(self.folder))
            self.average.load_state_dict(torch.load(self.folder / "average.pt", map_location="cpu", weights_only=True))
        except Exception as error:
            raise RuntimeError(
                f"The checkpoint {shown(self.folder)} cannot be read ({type(error).__name__}); delete that folder, and its copy where it is kept, to train afresh."
            ) from error
        self.accelerator.print(f"Resumed {shown(self.folder)} after epoch {len(progress['history'])}.")
        return progress["history"]

    def save(self, history: list[dict], keep_state: bool = True) -> None:
        """Writes the state beside the old one, then swaps; the history also goes to `<folder>_history.csv` and the trackers.

        Without `keep_state` only the history goes out: a run that is killed then repeats the epochs since the last state.
        """
        if not all(np.isfinite(value) for value in history[-1].values()):
            raise FloatingPointError(f"Epoch {len(history)} gave {history[-1]}; the checkpoint before it is kept. Lower the learning rate.")
        temporary, old = self.folder.with_name(self.folder.name + ".new"), self.folder.with_name(self.folder.name + ".old")
        if self.accelerator.is_main_process:
            table = pd.DataFrame(history)
            write_atomically(self.folder.with_name(self.folder.name + "_history.csv"), lambda path: table.to_csv(path, index=False))
        self.accelerator.log({f"{self.folder.name}/{name}": value for name, value in history[-1].items()}, step=len(history))
        if not keep_state:
            return
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            torch.save(self.average.state_dict(), temporary / "average.pt")
            (temporary / "progress.json").write_text(json.dumps({"settings": self.settings, "history": history}))
            shutil.rmtree(old, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(old)
            temporary.rename(self.folder)
            shutil.rmtree(old, ignore_errors=True)
            if time.monotonic() - self.kept > KEEP_EVERY:
                self.kept = time.monotonic()
                keep(self.folder)


def moving_average(network: torch.nn.Module, decay: float = 0.998) -> torch.optim.swa_utils.AveragedModel:
    """A copy of `network` that follows its weights as an exponential moving average, quicker at the start.

    Statistics of normalisations are copied: they are averages already, and to average them again would leave them behind.
    """

    def follow(average: list, current: list, count: torch.Tensor) -> None:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(average, current, 1 - keep)

    return torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=follow)


def refresh_normalisation(average: torch.nn.Module, images: Iterable[torch.Tensor], accelerator: Accelerator) -> None:
    """Gives averaged weights batch statistics of their own, from some batches of `images`; those that were copied belong to other weights."""
    with accelerator.autocast():
        torch.optim.swa_utils.update_bn(images, average)


def save_weights(network: torch.nn.Module, path: str | Path) -> Path:
    """Writes the state dict of `network` atomically."""
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    return keep(write_atomically(path, lambda temporary: torch.save(state, temporary)))


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """A state dict from a file; a missing or corrupt file is named in one sentence."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No weights at {shown(path)}: check WEIGHTS=, or leave it out to train.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{shown(path)} is not a readable file of weights ({type(error).__name__}); fetch or train it again.") from error


def export_program(module: torch.nn.Module, example: torch.Tensor, path: str | Path, **facts) -> Path:
    """Writes what `module` computes with torch.export, for any number of pictures; checks that the file gives the same numbers.

    A later notebook runs it without the class, by `load_program`; `facts` (JSON) say what it has to know, such as sizes.
    """
    module = copy.deepcopy(module).cpu().to(memory_format=torch.contiguous_format).eval()
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("faces", min=1)},))
    path = write_atomically(
        path, lambda temporary: torch.export.save(program, str(temporary), extra_files={"facts.json": json.dumps(facts)})
    )
    with torch.inference_mode():
        difference = (torch.export.load(str(path)).module()(example[:1]) - module(example[:1])).abs().max().item()
    if difference > 1e-4:
        raise RuntimeError(f"{shown(path)} differs from its network by {difference:.1e}.")
    print(f"{shown(path)}: {path.stat().st_size / 1e6:.1f} MB, differs from the network by {difference:.1e}")
    return keep(path)


def load_program(path: str | Path, maker: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], SimpleNamespace]:
    """An exported program and its facts; a missing or foreign file is named with the notebook, `maker`, that writes it."""
    path, extra = Path(path), {"facts.json": ""}
    if not path.exists():
        raise FileNotFoundError(f"{shown(path)} is missing. Notebook {maker} makes it: make {maker}")
    try:
        program = torch.export.load(str(path), extra_files=extra).module()
        facts = SimpleNamespace(**json.loads(extra["facts.json"]))
    except Exception as error:
        raise ValueError(f"{shown(path)} cannot be read as an exported program ({type(error).__name__}): make {maker} anew.") from error
    return program, facts


def load_weights(network: torch.nn.Module, path: str | Path) -> None:
    """Fills `network` from a file of weights; a foreign file is named in one sentence."""
    state = read_weights(path)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{shown(path)} does not fit this network: {str(error).splitlines()[0]}") from error


# ---------------------------------------------------------------- batches on the device


def warm_cosine(progress: float, warm_up: float = 0.05) -> float:
    """Learning-rate factor at `progress` in [0, 1] of a run: linear warm-up, then half a cosine down to nearly nothing."""
    if progress < warm_up:
        return max(progress / warm_up, 0.01)
    return max(0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))), 0.002)


def set_learning_rate(optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = float(rate)  # a NumPy number would make the checkpoint unreadable for weights_only


def random_views(count: int, size: int, view: int, rotation: float, scale: float, shift: float, flip: bool) -> torch.Tensor:
    """Random matrices (count, 2, 3) that take the middle `view` pixels of a `size` px store to a `view` px picture.

    Normal in rotation (standard deviation in degrees), in the logarithm of scale and in shift (share of the side); mirrored
    for every second one if `flip`. All zero and no flip: the plain centre crop. Draws from torch's global generator.
    """
    turn = torch.randn(count).clamp(-3, 3) * rotation * torch.pi / 180
    zoom = torch.exp(torch.randn(count).clamp(-3, 3) * scale)
    cosine, sine = torch.cos(turn) * zoom, torch.sin(turn) * zoom
    linear = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
    if flip:
        linear[:, 0] *= torch.where(torch.rand(count) < 0.5, -1.0, 1.0)[:, None]
    target = (view - 1) / 2 + torch.randn(count, 2, 1).clamp(-3, 3) * shift * view
    return torch.cat([linear, target - linear @ torch.full((2, 1), (size - 1) / 2)], -1)


def sample_views(pictures: torch.Tensor, matrices: torch.Tensor, view: int) -> torch.Tensor:
    """Warps a batch on its device: `pictures` (N, H, W, 3) uint8, `matrices` (N, 2, 3) picture -> view; (N, 3, view, view) in 0..1."""
    images = pictures.permute(0, 3, 1, 2).float() / 255
    side = torch.tensor([images.shape[3], images.shape[2]], device=images.device)
    linear = torch.linalg.inv(matrices[..., :2].float())
    axis = torch.arange(view, device=images.device, dtype=torch.float32)
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, -1, 2)
    source = (pixels - matrices[:, None, :, 2].float()) @ linear.transpose(1, 2)
    source = torch.minimum(source.clamp_min(0), side - 1)  # repeats the border, also on devices whose grid_sample cannot
    grid = ((source + 0.5) / side * 2 - 1).view(-1, view, view, 2)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False)


# ---------------------------------------------------------------- what both recognisers share


def resnet18_trunk(start: str = "scratch") -> torch.nn.Module:
    """torchvision's ResNet18 without its classifier, (N, 3, S, S) -> (N, 512), from "scratch" or from "imagenet" weights."""
    trunk = torchvision.models.resnet18(zero_init_residual=True)
    if start == "imagenet":
        try:
            trunk.load_state_dict(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))
        except OSError as error:
            print(f"ImageNet weights cannot be downloaded here ({type(error).__name__}): training starts from scratch.")
    elif start != "scratch":
        raise ValueError(f"start is {start!r}: choose 'scratch' or 'imagenet'.")
    trunk.fc = torch.nn.Identity()
    return trunk


def decayed(network: torch.nn.Module, weight_decay: float = 0.05) -> list[dict]:
    """Parameter groups for AdamW: matrices and kernels decay, biases and normalisations do not."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def shuffled_batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """`rows` in a new order from torch's global generator, cut into full batches (one smaller one if there are too few)."""
    order = rows[torch.randperm(len(rows)).numpy()]
    return [order[first : first + size] for first in range(0, max(1, len(order) - size + 1), size)]


def own_random_numbers(accelerator: Accelerator) -> None:
    """From here on each further process draws other random numbers, lest all augment their shares of a batch alike."""
    if accelerator.process_index:
        torch.manual_seed(torch.initial_seed() + 7919 * accelerator.process_index)


# ---------------------------------------------------------------- parts of faces

IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its encoders expect


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a photograph as it is seen, from its header; (1, 1) where there is none."""
    try:
        with Image.open(path) as image:
            return image.size[::-1] if image.getexif().get(ExifTags.Base.Orientation, 1) > 4 else image.size
    except UNREADABLE:
        return 1, 1


# ---------------------------------------------------------------- any photograph


class FaceFinder:
    """Faces and their five landmarks in any photograph, by the exported program of 1.4.

    The program says where the points are, not whether there is a face. So it looks twice: a face that is cut out again,
    upright and at its usual size, has its points where they were; anything else moves. Windows from large to small are
    tried until something holds still. Where nothing is sure the likeliest place is returned, with its lower confidence.
    """

    SURE, LIKELY = (0.95, 0.05), (0.85, 0.06)  # at least so confident, moved by no more than this share of the eye distance

    def __init__(self, path: str | Path) -> None:
        self.program, facts = load_program(path, "1.4")
        self.size, self.usual = facts.input_size, np.array(facts.usual)

    def look(self, photograph: np.ndarray, matrices: np.ndarray, mirror: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Landmarks in the photograph, (N, 5, 2), and confidence, (N,), seen through `matrices` (N, 2, 3) photograph -> picture."""
        read, sure = [], []
        for some in np.array_split(matrices, -(-len(matrices) // 32)):
            crops = np.stack([warp_photograph(photograph, matrix, self.size) for matrix in some])
            images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
            with torch.inference_mode():
                maps = self.program(images)
                if mirror:
                    maps = (maps + self.program(images.flip(3)).flip(3)[:, FLIPPED_POINTS]) / 2
            cells, confidence = decode_heatmaps(maps)
            stride = self.size / maps.shape[-1]
            points = cells.numpy().astype(float) * stride + (stride - 1) / 2
            read.append(apply_affine(invert_affine(some), points))
            sure.append(confidence.mean(1).numpy())
        return np.concatenate(read), np.concatenate(sure)

    def refine(self, photograph: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A second look at faces with these points, (N, 5, 2): points, confidence (N,), how far they moved in eye distances (N,).

        Points that fell together, with eyes less than 6 pixels apart, are left out.
        """
        matrices = fit_similarity(points, self.usual)
        usable = (np.linalg.norm(points[:, 0] - points[:, 1], axis=-1) > 6) & (np.linalg.det(matrices[..., :2]) > 1e-4)
        points, matrices = points[usable], matrices[usable]
        if not len(points):
            return points, np.zeros(0), np.zeros(0)
        again, confidence = self.look(photograph, matrices)
        apart = np.maximum(np.linalg.norm(again[:, 0] - again[:, 1], axis=-1), 1e-6)
        return again, confidence, np.linalg.norm(again - points, axis=-1).mean(1) / apart

    def windows(self, shape: Sequence[int], share: float) -> np.ndarray:
        """Overlapping squares of `share` of the shorter side, closer to each other the larger they are: boxes (N, 4)."""
        side = share * min(shape[:2])
        step = (0.35 if share > 0.4 else 0.5) * side
        x, y = (np.linspace(0, length - side, 1 + int(np.ceil((length - side) / step))) for length in (shape[1], shape[0]))
        corners = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
        return np.concatenate([corners, np.full_like(corners, side)], 1)

    def __call__(self, photograph: np.ndarray, starts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Landmarks (N, 5, 2) and confidence (N,), the largest face first; N may be 0. `starts`: points of a detector, (N, 5, 2)."""
        likely = np.zeros((0, 5, 2)), np.zeros(0)
        zoom = min(1.0, 640 / min(photograph.shape[:2]))  # to search, not to read points
        small = cv2.resize(photograph, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA) if zoom < 1 else photograph
        for shares in ((1.0, 0.8, 0.62), (0.45, 0.32), (0.2,)) if starts is None else ((),):
            points = starts
            if starts is None:
                boxes = np.concatenate([self.windows(small.shape, share) for share in shares])
                points = self.look(small, square_matrix(boxes, self.size), mirror=False)[0] / zoom
            points, _, _ = self.refine(photograph, points)
            points, confidence, moved = self.refine(photograph, points)
            if len(points):
                usable = self.plausible(points, photograph.shape)
                sure, maybe = (usable & (confidence > least) & (moved < most) for least, most in (self.SURE, self.LIKELY))
                if sure.any():
                    return self.distinct(points[sure], confidence[sure])
                if maybe.any() and confidence[maybe].max() > likely[1].max(initial=0):
                    best = np.flatnonzero(maybe)[confidence[maybe].argmax()]
                    likely = points[best : best + 1], confidence[best : best + 1]
            if min(photograph.shape[:2]) * min(shares, default=0) < 32:
                break
        return likely

    def plausible(self, points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Whether points (N, 5, 2) lie like a face, mostly inside a photograph of this shape: (N,) bool."""
        usual_width = np.linalg.norm(self.usual[0] - self.usual[1])
        matrix = fit_similarity(points, self.usual)
        misfit = np.linalg.norm(apply_affine(matrix, points) - self.usual, axis=-1).mean(1) / usual_width
        middle = points.mean(1)
        inside = ((middle >= 0) & (middle < np.array(shape[1::-1]))).all(1)
        return (misfit < 0.2) & inside & (points[:, 0, 0] < points[:, 1, 0] + 1e-9)

    @staticmethod
    def distinct(points: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One entry per face: of those closer than two eye distances the surest; the largest face first."""
        width = np.linalg.norm(points[:, 0] - points[:, 1], axis=-1)
        kept: list[int] = []
        for index in np.argsort(-confidence):
            apart = [np.linalg.norm(points[index].mean(0) - points[other].mean(0)) / max(width[index], width[other]) for other in kept]
            if all(distance > 2 for distance in apart):
                kept.append(int(index))
        kept.sort(key=lambda index: -width[index])
        return points[kept], confidence[kept]


def paste_back(photograph: np.ndarray, picture: np.ndarray, matrix: np.ndarray, edge: float = 0.2) -> np.ndarray:
    """`picture` (S, S, 3), made of a crop by `matrix` photograph -> crop, back in its place, fading out over `edge` of its side."""
    size = len(picture)
    ramp = np.clip(np.minimum(np.arange(size) + 0.5, size - 0.5 - np.arange(size)) / (edge * size), 0, 1)
    weight = np.minimum(ramp[:, None], ramp[None]) ** 2 * (3 - 2 * np.minimum(ramp[:, None], ramp[None]))
    back, shape = invert_affine(matrix), photograph.shape[1::-1]
    layer = cv2.warpAffine(picture.astype(np.float32), back, shape, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    weight = cv2.warpAffine(weight.astype(np.float32), back, shape, flags=cv2.INTER_LINEAR)[..., None]
    return np.clip(weight * layer + (1 - weight) * photograph, 0, 255).round().astype(np.uint8)


# ---------------------------------------------------------------- two domains of pictures


def list_pictures(folder: str | Path) -> list[Path]:
    """The picture files of a folder, sorted; one sentence where there is no such folder or no picture in it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {shown(folder)}: check its name.")
    endings = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in endings and not path.name.startswith(".")]
    if not files:
        raise FileNotFoundError(f"There is no picture in {shown(folder)}: put JPEG or PNG files there, or name another folder.")
    return files


def shared_definitions(notebook: str, **given) -> SimpleNamespace:
    """What the cells of `notebook` that are tagged "shared" define: a later notebook uses it without a copy.

    Only imports and definitions are tagged, so nothing is run; `given` are parameters of `notebook` that they use.
    `.source` is their text, for fingerprints.
    """
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    source = "\n\n\n".join("".join(cell["source"]) for cell in cells if "shared" in cell["metadata"].get("tags", []))
    name = f"notebooks/{notebook}.ipynb"
    module = types.ModuleType(name)
    vars(module).update(given)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # so that errors show the line
    exec(compile(source, name, "exec"), module.__dict__)
    return SimpleNamespace(**{key: value for key, value in vars(module).items() if not key.startswith("__")}, source=source)


# ---------------------------------------------------------------- heatmaps


def draw_heatmaps(points: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
    """Gaussians of height 1 at the real, sub-pixel positions `points` (N, K, 2), in cells: (N, K, size, size)."""
    axis = torch.arange(size, device=points.device, dtype=points.dtype)
    across, down = (torch.exp(-((axis - points[..., i : i + 1]) ** 2) / (2 * sigma**2)) for i in (0, 1))
    return down[..., :, None] * across[..., None, :]


def decode_heatmaps(heatmaps: torch.Tensor, method: str = "soft", radius: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads points off non-negative maps (N, K, H, W): points (N, K, 2) in cells, and the share of each map near its peak (N, K).

    "argmax": the highest cell. "quarter": a quarter cell towards the higher neighbour (Newell et al., ECCV 2016).
    "dark": a Newton step on the logarithm (Zhang et al., CVPR 2020, eq. 8). "soft": the mean of the cells around the peak.
    """
    n, k, _, width = heatmaps.shape
    peak = heatmaps.flatten(2).argmax(-1)
    points = torch.stack([peak % width, peak // width], -1)
    offset = torch.arange(-radius, radius + 1, device=heatmaps.device)
    columns, rows = points[..., :1] + radius + offset, points[..., 1:] + radius + offset
    padded = torch.nn.functional.pad(heatmaps, (radius,) * 4)
    index = rows[..., :, None] * (width + 2 * radius) + columns[..., None, :]
    patch = padded.flatten(2).gather(2, index.flatten(2)).view(n, k, 2 * radius + 1, 2 * radius + 1)
    confidence = (patch.sum((-1, -2)) / heatmaps.sum((-1, -2)).clamp_min(1e-9)).clamp(0, 1)
    points, middle = points.to(heatmaps.dtype), radius
    if method == "quarter":
        right = patch[..., middle, middle + 1] - patch[..., middle, middle - 1]
        down = patch[..., middle + 1, middle] - patch[..., middle - 1, middle]
        points = points + 0.25 * torch.stack([right, down], -1).sign()
    elif method == "dark":
        log = patch.clamp_min(1e-6).log()[..., middle - 1 : middle + 2, middle - 1 : middle + 2]
        slope = torch.stack([log[..., 1, 2] - log[..., 1, 0], log[..., 2, 1] - log[..., 0, 1]], -1) / 2
        xx = log[..., 1, 2] - 2 * log[..., 1, 1] + log[..., 1, 0]
        yy = log[..., 2, 1] - 2 * log[..., 1, 1] + log[..., 0, 1]
        xy = (log[..., 2, 2] - log[..., 2, 0] - log[..., 0, 2] + log[..., 0, 0]) / 4
        determinant = xx * yy - xy**2
        step = torch.stack([xy * slope[..., 1] - yy * slope[..., 0], xy * slope[..., 0] - xx * slope[..., 1]], -1)
        peaked = (determinant > 1e-6) & (xx < 0)
        step = torch.where(peaked[..., None], step / determinant.clamp_min(1e-6)[..., None], torch.zeros_like(step))
        points = points + step.clamp(-1, 1)
    elif method == "soft":
        mass = patch.sum((-1, -2)).clamp_min(1e-9)
        points = points + torch.stack([(patch.sum(-2) * offset).sum(-1), (patch.sum(-1) * offset).sum(-1)], -1) / mass[..., None]
    elif method != "argmax":
        raise ValueError(f"There is no decoder {method!r}: argmax, quarter, dark or soft.")
    return points, confidence


# ---------------------------------------------------------------- pictures


def tinted(picture: np.ndarray, mask: np.ndarray, colour: Sequence[int] = (0, 255, 90)) -> np.ndarray:
    """A picture (H, W, 3) uint8 with the mask (H, W) laid over it."""
    return np.where(np.asarray(mask, bool)[..., None], (0.55 * picture + 0.45 * np.array(colour)).astype(np.uint8), picture)


def show_images(images, titles=None, columns: int = 8, size: float = 1.4, points=None, title: str | None = None, cmap=None):
    """A grid of images ((H, W, 3) or (H, W)); `points` is one (K, 2) array per image, or several in a list, each with its own colour."""
    images = list(images)
    if not images:
        return
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, size * rows * (1.18 if titles is not None else 1)), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for index, axis in enumerate(axes.flat):
        axis.axis("off")
        if index >= len(images):
            continue
        axis.imshow(images[index], cmap=cmap)
        if titles is not None:
            axis.set_title(titles[index], fontsize=7, pad=2)
        if points is not None:
            groups = points[index] if isinstance(points[index], list) else [points[index]]
            for group, colour in zip(groups, ("lime", "red", "yellow"), strict=False):
                axis.scatter(*np.asarray(group).T, s=7, c=colour, edgecolors="black", linewidths=0.3)
            axis.set(xlim=(-0.5, images[index].shape[1] - 0.5), ylim=(images[index].shape[0] - 0.5, -0.5))
    if title:
        figure.suptitle(title, fontsize=9)
    plt.show()

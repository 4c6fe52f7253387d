"""What two or more notebooks of the series share: folders, set-up, manifests, photographs, geometry, training state, pictures.

Conventions: points are (..., 2) in pixels, x right and y down, (0, 0) the centre of the top left pixel (as in CelebA's
files and cv2.warpAffine). A matrix is 2x3 and maps points of the original photograph to points of a crop.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import linecache
import math
import os
import random
import shutil
import subprocess
import sys
import time
import types
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
from accelerate.utils import broadcast_object_list
from PIL import Image, ImageOps
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix
from torchvision import tv_tensors
from torchvision.transforms import v2

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
    [250, 250, 250], [230, 60, 80], [180, 20, 60], [90, 60, 120], [240, 150, 30], [255, 235, 60], [120, 255, 90], [170, 140, 100], [60, 120, 90],
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
    data = Path(data) if data else Path(output or ROOT) / "data" / "sample" if name == "sample" else ROOT / "data"
    output = Path(output) if output else ROOT
    folders = SimpleNamespace(name=name, data=data, celeba=data / "celeba", photographs=data / "celeba" / "img_celeba")
    folders.csv, folders.runs = output / "csv" / name, output / "runs" / name
    for folder in (folders.csv, folders.runs):
        folder.mkdir(parents=True, exist_ok=True)
    if needs is None:
        return folders
    if not (data / needs).is_dir() and name == "sample":
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
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


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
    with urllib.request.urlopen(request, timeout=30) as answer:
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise OSError(
                f"{path.name}: {url} answers with a page, not a file; over its quota, or moved. Download it by hand to {shown(path)}"
            )
        goes_on = have and answer.status == 206
        expected = int(answer.headers.get("Content-Length", 0)) + (have if goes_on else 0)
        with open(part, "ab" if goes_on else "wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
    got = part.stat().st_size
    if got < (size or expected):
        raise OSError(f"{path.name}: broke off after {got:,} of {size or expected:,} bytes; run again, it goes on from there.")
    with open(part, "rb") as file:
        right = got == (size or got) and sha256 in (None, hashlib.file_digest(file, "sha256").hexdigest())
    if not right:
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


def _validate(frame: pd.DataFrame, name: str, where: str) -> pd.DataFrame:
    maker, schema = SCHEMAS[name]
    try:
        return schema.validate(frame)
    except (pa.errors.SchemaError, pa.errors.SchemaErrors) as error:
        first = getattr(error, "schema_errors", [error])[0]
        column = f"column {first.schema.name}: " if getattr(first.schema, "name", None) else ""
        reason = column + str(first).splitlines()[0].rstrip(":")
        raise ValueError(f"{where}: {reason}. Notebook {maker} makes it: make {maker}") from None


def write_manifest(frame: pd.DataFrame, name: str, folders: SimpleNamespace) -> Path:
    """Checks `frame` against its schema, sorts it by its key and writes csv/<dataset>/<name>.csv atomically."""
    frame = _validate(frame, name, f"{name}.csv (about to be written)").sort_values(SCHEMAS[name][1].unique)
    return write_atomically(folders.csv / f"{name}.csv", lambda path: frame.to_csv(path, index=False, float_format="%.6g"))


def read_manifest(name: str, folders: SimpleNamespace) -> pd.DataFrame:
    """Reads and checks csv/<dataset>/<name>.csv; a missing or broken one is named with the notebook that makes it."""
    path, maker = folders.csv / f"{name}.csv", SCHEMAS[name][0]
    if not path.exists():
        raise FileNotFoundError(f"{shown(path)} is missing. Notebook {maker} makes it: make {maker} DATASET={folders.name}")
    frame = pd.read_csv(path, dtype={"image_id": str})
    return _validate(frame, name, shown(path))


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

    return hashlib.sha256("".join(map(text, parts)).encode()).hexdigest()[:16]


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
    """Matrices (N, 2, 3) that cut squares `scale` times the longer side of `box` (N, 4: x y width height) to `size` pixels."""
    box = np.asarray(box, float)
    zoom = size / (scale * box[..., 2:].max(-1))
    centre = box[..., :2] + (box[..., 2:] - 1) / 2
    matrix = np.zeros((*box.shape[:-1], 2, 3))
    matrix[..., 0, 0] = matrix[..., 1, 1] = zoom
    matrix[..., 2] = (size - 1) / 2 - zoom[..., None] * centre
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


def read_photograph(path: str | Path) -> np.ndarray:
    """A photograph as (H, W, 3) uint8 RGB: turned upright by its EXIF tag; grey, CMYK, 16-bit and alpha are converted.

    Raises PhotographError for a missing, empty, truncated or foreign file.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it
                image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise PhotographError(f"{Path(path).name}: no such photograph") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PhotographError(f"{Path(path).name}: cannot be decoded ({error})".replace(str(path), "file")) from None


def warp_photograph(image: np.ndarray, matrix: np.ndarray, size: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """Samples a `size` x `size` crop once from the photograph; where it shrinks, each pixel averages what it covers."""
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
    key = hashlib.sha256(json.dumps([image_ids, size, stats]).encode() + matrices.tobytes()).hexdigest()
    notes = cache.with_suffix(".json")
    if cache.exists() and notes.exists() and (known := json.loads(notes.read_text()))["key"] == key:
        return np.load(cache, mmap_mode="r"), known["failures"]

    failures: dict[str, str] = {}
    cv2.setNumThreads(1)  # the threads below are one to a photograph

    def fill(path: Path) -> None:
        store = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(image_ids), size, size, 3))

        def one(index: int) -> None:
            try:
                image = read_photograph(folder / image_ids[index])
                store[index] = warp_photograph(image, matrices[index], size)
            except PhotographError as error:
                failures[image_ids[index]] = str(error)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, range(len(image_ids))))
        store.flush()

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


class Checkpoint:
    """The state of a training run, kept after every epoch in `folder`, from which it goes on with the same numbers.

    `settings` (JSON) says what is trained on what: a checkpoint of other settings is not resumed. Everything random in an
    epoch must come from generators seeded by (seed, epoch); then a run that is killed repeats that epoch alike.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, settings: Mapping, average: torch.nn.Module) -> None:
        self.accelerator, self.folder, self.average = accelerator, Path(folder), average
        self.settings = json.loads(json.dumps(settings))

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
                f"The checkpoint {shown(self.folder)} cannot be read ({type(error).__name__}); delete that folder to train afresh."
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
    return write_atomically(path, lambda temporary: torch.save(state, temporary))


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
    return path


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


class FaceBatches:
    """Batches of a recogniser's faces, (N, 3, view, view) about zero, from a store of uint8 pictures (faces, size, size, 3).

    `plain` is the middle of the store; `augmented` turns, scales, shifts and mirrors it a little, changes light and colour,
    blurs some and covers a patch of others, each face by its own draw from torch's global generator.
    """

    def __init__(self, store: np.ndarray, view: int, device: torch.device) -> None:
        self.store, self.view, self.device = store, view, device
        self.light = v2.Compose([v2.ColorJitter(0.3, 0.3, 0.2), v2.RandomGrayscale(0.1)])
        self.blur = v2.RandomApply([v2.GaussianBlur(5, (0.5, 2.0))], p=0.1)
        self.cover = v2.RandomErasing(p=0.4, scale=(0.02, 0.16), ratio=(0.4, 2.5), value="random")

    def _views(self, rows, **spread) -> torch.Tensor:
        pictures = torch.from_numpy(self.store[np.asarray(rows)]).to(self.device)
        matrices = random_views(len(rows), self.store.shape[1], self.view, **spread)
        return sample_views(pictures, matrices.to(self.device), self.view)

    def plain(self, rows) -> torch.Tensor:
        return self._ready(self._views(rows, rotation=0, scale=0, shift=0, flip=False))

    def mirrored(self, rows) -> torch.Tensor:
        """Turned over left to right for every second one, nothing else: the plain recipe's augmentation."""
        return self._ready(self._views(rows, rotation=0, scale=0, shift=0, flip=True))

    def augmented(self, rows) -> torch.Tensor:
        images = self._views(rows, rotation=6, scale=0.08, shift=0.025, flip=True)
        return self._ready(torch.stack([self.cover(self.blur(self.light(image))) for image in images]))

    @staticmethod
    def _ready(images: torch.Tensor) -> torch.Tensor:
        return ((images - 0.45) / 0.25).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def as_pictures(images: torch.Tensor) -> np.ndarray:
        """A batch back as pictures to look at, (N, view, view, 3) in 0..1."""
        return (images * 0.25 + 0.45).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


# ---------------------------------------------------------------- what both recognisers share


def labelled_faces(folders: SimpleNamespace) -> tuple[pd.DataFrame, int]:
    """The aligned faces with identity, split and label, and how many persons are judged.

    Labels 0 .. persons - 1 are those of `train` and `val`; persons who only help to train (extra) come after them; an
    unseen person has label -1.
    """
    train = read_manifest("train", folders)
    judged = train.drop_duplicates("label").set_index("identity")["label"]
    faces = read_manifest("aligned_5", folders)[["image_id"]].merge(
        read_manifest("selected", folders)[["image_id", "identity", "split"]], on="image_id", validate="1:1"
    )
    further = np.setdiff1d(faces.query("split == 'extra'")["identity"], judged.index)
    labels = pd.concat([judged, pd.Series(np.arange(len(judged), len(judged) + len(further)), index=further)])
    faces["label"] = faces["identity"].map(labels).fillna(-1).astype(int)
    faces = faces[(faces["label"] >= 0) | (faces["split"] == "unseen")].reset_index(drop=True)
    if (faces["label"][faces["split"] == "unseen"] >= 0).any():
        raise ValueError("selected.csv lists an unseen person among those who train; make it anew: make 1.1")
    return faces, len(judged)


def alignment_manifest(alignment: str) -> str:
    """The manifest that holds the matrices of an alignment: "none", or 2, 3 or 5 points."""
    return "cropped_landmarks" if alignment == "none" else f"aligned_{alignment}"


def face_attributes(faces: pd.DataFrame, folders: SimpleNamespace) -> torch.Tensor:
    """The attributes of each face, (N, attributes) float of 0 and 1; 1.1 takes them from CelebA's list."""
    table = (
        faces[["image_id"]].merge(read_manifest("attributes", folders), on="image_id", how="left", validate="1:1").drop(columns="image_id")
    )
    if table.isna().any(axis=None):
        raise ValueError("attributes.csv lacks photographs of selected.csv; make both anew: make 1.1")
    return torch.tensor(table.to_numpy(np.float32))


def face_store(
    faces: pd.DataFrame, alignment: str, view: int, photographs: Path, folders: SimpleNamespace, seen: float = 1.0, room: float = 1.43
) -> np.ndarray:
    """The faces under one alignment ("none": the box crop of 1.3, else 2, 3 or 5 points) with room around: (N, S, S, 3) uint8.

    The middle `view` pixels show the share `seen` of the aligned face: below 1 is closer.
    """
    side = CROP_SIZE if alignment == "none" else ALIGNED_SIZE
    manifest = faces[["image_id"]].merge(read_manifest(alignment_manifest(alignment), folders), on="image_id", how="left", validate="1:1")
    matrices, size = widen(matrices_of(manifest), side, view, room, seen)
    cache = folders.runs / "stores" / f"faces_{alignment}_{view}_{seen:g}.npy"
    store, failures = photograph_store(photographs, faces["image_id"], matrices, size, cache)
    if failures:
        raise ValueError(f"{next(iter(failures.values()))}; run 1.3 again, it sets such photographs aside: make 1.3")
    return store


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


def embed_faces(network: torch.nn.Module, rows: np.ndarray, batches: FaceBatches, accelerator: Accelerator) -> torch.Tensor:
    """`network.embed` of each face and of its mirror image, averaged: (N, 512) float32."""
    network.eval()
    parts = []
    with torch.inference_mode(), accelerator.autocast():
        for part in np.array_split(rows, max(1, -(-len(rows) // 128))):
            images = batches.plain(part)
            parts.append((network.embed(images).float() + network.embed(images.flip(3)).float()) / 2)
    return torch.cat(parts)


def closed_set(logits: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in 0..1 of logits (N, persons) for labels (N,)."""
    persons = logits.shape[1]
    top1, top5 = (multiclass_accuracy(logits, target, num_classes=persons, average="micro", top_k=min(k, persons)).item() for k in (1, 5))
    return top1, top5


def load_recogniser(network: torch.nn.Module, path: str | Path) -> bool:
    """Fills `network` (trunk, neck, head, buffer `identities`) from a file; True if it was trained on the same persons.

    Of other persons only trunk and neck are taken: the caller gives the head new class centres.
    """
    state, own = read_weights(path), network.state_dict()
    known = state.get("identities") if isinstance(state, dict) else None
    if known is None or not {name for name in own if name.startswith("trunk.")} <= set(state):
        raise ValueError(f"{shown(path)} does not fit this network: it is not a recogniser of 2.1 or 2.2.")
    same = torch.equal(known, own["identities"].cpu()) and all(own[name].shape == state[name].shape for name in own if name in state)
    network.load_state_dict(state if same else {name: state[name] if name.startswith(("trunk.", "neck.")) else own[name] for name in own})
    if not same:
        print(f"{shown(path)} was trained on other persons: each person's centre is now the mean of their training photographs.")
    return same


def class_centres(
    network: torch.nn.Module, faces: pd.DataFrame, classes: int, batches: FaceBatches, accelerator: Accelerator
) -> torch.Tensor:
    """The mean unit embedding of each label's training photographs, (classes, 512)."""
    rows = np.flatnonzero(faces["split"].isin(["train", "extra"]) & (faces["label"] < classes))
    unit = torch.nn.functional.normalize(embed_faces(network, rows, batches, accelerator))
    labels = torch.tensor(faces["label"].to_numpy()[rows], device=unit.device)
    sums = torch.zeros(classes, unit.shape[1], device=unit.device).index_add_(0, labels, unit)
    return torch.nn.functional.normalize(sums)


# ---------------------------------------------------------------- parts of faces

MIRRORED_PARTS = [0] + [
    1 + PARTS.index({"l": "r", "r": "l"}[part[0]] + part[1:] if part[:2] in ("l_", "r_") and part[2:] != "lip" else part) for part in PARTS
]
IGNORED = 255  # label of pixels that an augmentation moved in from outside the picture
STATE_EVERY = 20.0  # seconds between two states on disk: a small network must not spend its time on writing them
FACE_MEAN, FACE_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its encoders expect


def part_store(
    folders: SimpleNamespace, image_ids: Sequence[str], size: int, photographs: str | Path, kind: str = "label_maps"
) -> tuple[np.ndarray, np.ndarray]:
    """Photographs and label maps of 3.1 at one size: (N, size, size, 3) uint8 RGB and (N, size, size) uint8, in the order of `image_ids`."""
    photographs, image_ids = Path(photographs), list(image_ids)
    names = [f"{image_id}.jpg" for image_id in image_ids]
    sides = np.array([picture_size(photographs / name) for name in names], float)
    matrices = np.zeros((len(names), 2, 3))
    matrices[:, 0, 0], matrices[:, 1, 1] = (size / sides).T
    matrices[..., 2] = (size / sides - 1) / 2  # pixel centres onto pixel centres
    images, failures = photograph_store(photographs, names, matrices, size, folders.runs / "stores" / f"parts_{size}.npy")
    if failures:
        raise ValueError(f"{next(iter(failures.values()))}; delete it and run 3.1 again, it sets such photographs aside: make 3.1")

    def fill(path: Path) -> None:
        maps = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(names), size, size))

        def one(index: int) -> None:
            maps[index] = cv2.resize(read_label_map(folders, image_ids[index], kind), (size, size), interpolation=cv2.INTER_NEAREST_EXACT)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, range(len(names))))
        maps.flush()

    path = write_atomically(folders.runs / "stores" / f"{kind}_{size}.npy", fill)
    return images, np.load(path, mmap_mode="r")


def split_rows(split: pd.DataFrame, without: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Positions in `split` of the photographs that train, choose the epoch (val) and judge (test), those in `without` left out."""
    rows = {part: np.flatnonzero((split["split"] == part) & ~split["image_id"].isin(without)) for part in ("train", "val", "test")}
    empty = [part for part, index in rows.items() if not len(index)]
    if empty:
        raise ValueError(
            f"segmentation_split.csv has no photographs left for {' and '.join(empty)}: make 3.1 with other counts, or another split file"
        )
    return rows


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a photograph as it is seen, from its header; (1, 1) where there is none."""
    try:
        with Image.open(path) as image:
            return image.size[::-1] if image.getexif().get(0x0112, 1) > 4 else image.size
    except OSError:
        return 1, 1


def read_label_map(folders: SimpleNamespace, image_id: str, kind: str = "label_maps") -> np.ndarray:
    """The label map that 3.1 made of one photograph, (H, W) uint8; `kind` "label_maps_as_listed": in the seeds' order."""
    path = folders.runs / kind / f"{image_id}.png"
    label_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if label_map is None or label_map.ndim != 2 or label_map.max() > len(PARTS):
        raise ValueError(f"{shown(path)} is missing or no label map. Notebook 3.1 makes it: make 3.1 DATASET={folders.name}")
    return label_map


def build_segmenter(architecture: str, encoder: str, classes: int, start: str | Path | None = None) -> torch.nn.Module:
    """A network of segmentation-models-pytorch, (N, 3, S, S) -> logits (N, classes, S, S), S a multiple of 32.

    `start`: None, "imagenet" (its encoder's weights are downloaded), or a file of weights of one encoder. Where they
    cannot be had, or belong to another encoder, training starts from scratch, said aloud.
    """
    import segmentation_models_pytorch as smp  # the notebooks before 3.2 do without it

    if start == "imagenet":
        try:
            return smp.create_model(architecture, encoder, encoder_weights="imagenet", classes=classes)
        except OSError as error:
            print(f"ImageNet weights of {encoder} cannot be downloaded here ({type(error).__name__}): it starts from scratch.")
    network = smp.create_model(architecture, encoder, encoder_weights=None, classes=classes)
    if start not in (None, "imagenet"):
        own, state = network.encoder.state_dict(), read_weights(start)
        needed = [name for name in own if not name.endswith("num_batches_tracked")]
        if all(name in state and state[name].shape == own[name].shape for name in needed):
            network.encoder.load_state_dict({**own, **{name: state[name] for name in needed}}, strict=False)
        else:
            print(f"{Path(start).name} does not fit {encoder}: it starts from scratch.")
    return network


class MirrorParts(v2.Transform):
    """Mirrors image and label map with probability `p`; what was a left part is then a right one."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def make_params(self, flat_inputs):
        return {"mirror": bool(torch.rand(()) < self.p)}

    def transform(self, inpt, params):
        if not params["mirror"]:
            return inpt
        mirrored = v2.functional.horizontal_flip(inpt)
        return (
            tv_tensors.wrap(
                torch.tensor([*MIRRORED_PARTS, *range(len(MIRRORED_PARTS), 256)], dtype=inpt.dtype, device=inpt.device)[mirrored.long()],
                like=inpt,
            )
            if isinstance(inpt, tv_tensors.Mask)
            else mirrored
        )


def part_augmentation(crop: int, size: int) -> v2.Compose:
    """Turned, scaled, cut to `crop` pixels, mirrored, relit, blurred: image and label map together."""
    fill = {tv_tensors.Image: 110, tv_tensors.Mask: IGNORED}
    return v2.Compose([
        v2.RandomAffine(12, (0.05, 0.05), (0.75, 1.3), interpolation=v2.InterpolationMode.BILINEAR, fill=fill),
        v2.RandomCrop(crop) if crop < size else v2.Identity(), MirrorParts(), v2.ColorJitter(0.35, 0.35, 0.3, 0.03), v2.RandomGrayscale(0.08),
        v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.5))], 0.15),
    ])  # fmt: skip


class PartBatches:
    """Batches of photographs, (N, 3, S, S) about zero, and label maps, (N, S, S) int64, from the arrays of `part_store`."""

    def __init__(self, images: np.ndarray, label_maps: np.ndarray, device: torch.device, augmentation: v2.Transform | None = None) -> None:
        self.images, self.label_maps, self.device, self.augmentation = images, label_maps, device, augmentation

    def plain(self, rows) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.tensor(self.images[np.asarray(rows)]).permute(0, 3, 1, 2)
        return self.ready(images), torch.tensor(self.label_maps[np.asarray(rows)]).to(self.device, torch.long)

    def augmented(self, rows) -> tuple[torch.Tensor, torch.Tensor]:
        if self.augmentation is None:
            return self.plain(rows)
        pairs = []
        for row in rows:
            image = torch.tensor(self.images[row], device=self.device).permute(2, 0, 1)
            label_map = torch.tensor(self.label_maps[row], device=self.device)
            pairs.append(self.augmentation(tv_tensors.Image(image), tv_tensors.Mask(label_map)))
        return self.ready(torch.stack([image for image, _ in pairs])), torch.stack([mask for _, mask in pairs]).to(self.device, torch.long)

    def ready(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, H, W) as an encoder expects it."""
        scaled = v2.functional.to_dtype(torch.as_tensor(images).to(self.device), torch.float32, scale=True)
        return v2.functional.normalize(scaled, FACE_MEAN, FACE_SPREAD).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def as_pictures(images: torch.Tensor) -> np.ndarray:
        """A batch back as pictures to look at, (N, S, S, 3) in 0..1."""
        spread, mean = (torch.tensor(values).view(3, 1, 1) for values in (FACE_SPREAD, FACE_MEAN))
        return (images.cpu() * spread + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def label_colours(label_map) -> np.ndarray:
    """A label map (H, W) as a picture (H, W, 3) uint8; ignored pixels are white."""
    label_map = np.asarray(label_map)
    return np.where((label_map == IGNORED)[..., None], 255, PART_COLOURS[np.minimum(label_map, len(PARTS))]).astype(np.uint8)


def fit_segmenter(
    name: str,
    network: torch.nn.Module,
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    draw_rows: Callable[[], np.ndarray],
    batches: PartBatches,
    judge: Callable[[torch.nn.Module], float],
    accelerator: Accelerator,
    folders: SimpleNamespace,
    settings: Mapping,
    schedule: Callable[[float], float] = warm_cosine,
) -> tuple[torch.nn.Module, pd.DataFrame]:
    """The loop of every segmentation network: returns the averaged network of the best epoch by `judge`, and the history.

    `settings` holds epochs, batch_size, learning_rate, seed and whatever else distinguishes the run. An epoch runs over
    `draw_rows()`; `criterion(logits, labels)` is the loss. Best weights go to runs/<dataset>/segmentation/<name>.pt; a run
    that is finished there with the same settings is loaded, one that was interrupted goes on.
    """
    epochs, size, rate = settings["epochs"], settings["batch_size"], settings["learning_rate"]
    accelerator.free_memory()
    network = network.to(memory_format=torch.channels_last)
    network, optimizer = accelerator.prepare(network, torch.optim.AdamW(decayed(network, 0.01), rate))
    steps = max(1, epochs * len(draw_rows()) // size)
    average = moving_average(accelerator.unwrap_model(network), min(0.998, 1 - 10 / max(20, steps)))
    best, notes = (folders.runs / "segmentation" / f"{name}.{ending}" for ending in ("pt", "json"))
    checkpoint = Checkpoint(accelerator, folders.runs / "checkpoints" / name, settings, average)
    finished = json.loads(notes.read_text()) if notes.exists() and best.exists() else {}
    if finished.get("settings") == checkpoint.settings:
        load_weights(average.module, best)
        return average.module.eval(), pd.DataFrame(finished["history"])
    notes.unlink(missing_ok=True)  # from here on `best` is no longer what they say
    history, saved = checkpoint.resume(), time.perf_counter()
    for epoch in range(len(history), epochs):
        torch.manual_seed(1000 * settings["seed"] + epoch)
        network.train()
        started, losses = time.perf_counter(), []
        order = shuffled_batches(draw_rows(), size)
        for index, batch in enumerate(order):
            set_learning_rate(optimizer, rate * schedule((epoch + index / len(order)) / epochs))
            with accelerator.split_between_processes(batch.tolist()) as mine:
                images, labels = batches.augmented(mine)
                loss = criterion(network(images).float(), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            average.update_parameters(accelerator.unwrap_model(network))
            losses.append(loss.item())
        seconds = time.perf_counter() - started
        refresh_normalisation(average.module, (batches.augmented(batch.tolist())[0] for batch in order[:12]), accelerator)
        history.append({"epoch": epoch + 1, "loss": float(np.mean(losses)), "val_score": judge(average.module), "seconds": seconds})
        if history[-1]["val_score"] >= max(row["val_score"] for row in history):
            save_weights(average.module, best)
        (due,) = broadcast_object_list([time.perf_counter() - saved >= STATE_EVERY])  # all processes save, or none
        checkpoint.save(history, due)
        saved = time.perf_counter() if due else saved
    write_atomically(notes, lambda path: path.write_text(json.dumps({"settings": checkpoint.settings, "history": history})))
    shutil.rmtree(checkpoint.folder, ignore_errors=True)  # optimizer and all: four times the weights
    load_weights(average.module, best)
    return average.module.eval(), pd.DataFrame(history)


class EmbeddingProgram(torch.nn.Module):
    """What is exported of a recogniser: pictures (N, 3, S, S) in 0..1 -> unit embeddings (N, 512), each with its mirror image's."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = (images - 0.45) / 0.25
        return torch.nn.functional.normalize(self.network.embed(images) + self.network.embed(images.flip(3)))


class PartProgram(torch.nn.Module):
    """What is exported: pictures (N, 3, S, S) in 0..1 -> probabilities (N, C, S, S); it normalises for the encoder itself."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(FACE_MEAN).view(3, 1, 1))
        self.register_buffer("spread", torch.tensor(FACE_SPREAD).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - self.mean) / self.spread).softmax(1)


def part_probabilities(network: torch.nn.Module, images: torch.Tensor, accelerator: Accelerator, mirror: bool = True) -> torch.Tensor:
    """Softmax over the labels, (N, C, H, W) float32, averaged with the mirrored picture's (left and right parts swapped back)."""
    with torch.inference_mode(), accelerator.autocast():
        probability = network(images).float().softmax(1)
        if mirror:
            other = network(images.flip(3)).float().softmax(1).flip(3)
            swap = MIRRORED_PARTS if other.shape[1] == len(MIRRORED_PARTS) else slice(None)
            probability = (probability + other[:, swap]) / 2
    return probability


def part_confusions(
    network: torch.nn.Module,
    rows: np.ndarray,
    batches: PartBatches,
    accelerator: Accelerator,
    truth: Callable[[int], np.ndarray] | None = None,
    mirror: bool = False,
) -> torch.Tensor:
    """One confusion matrix per photograph, (N, C, C) int64, true label down, predicted across.

    `truth(row)` gives the label map to be judged at, of any size; by default the one of the batch.
    """
    network.eval()
    matrices = []
    for part in np.array_split(rows, max(1, len(rows) // 8)):
        images, labels = batches.plain(part)
        probability = part_probabilities(network, images, accelerator, mirror)
        for row, one, label_map in zip(part, probability, labels, strict=True):
            target = label_map if truth is None else torch.from_numpy(truth(row)).to(one.device, torch.long)
            if target.shape != one.shape[1:]:
                one = torch.nn.functional.interpolate(one[None], target.shape, mode="bilinear", align_corners=False)[0]
            matrices.append(multiclass_confusion_matrix(one.argmax(0), target, num_classes=len(one), ignore_index=IGNORED))
    return torch.stack(matrices).cpu()


def f1_scores(confusion: torch.Tensor) -> torch.Tensor:
    """F1 (Dice) of each class from confusion matrices (..., C, C): 2 TP / (2 TP + FP + FN), NaN where a class is in neither map."""
    hits = confusion.diagonal(dim1=-2, dim2=-1).double()
    return 2 * hits / (confusion.sum(-1) + confusion.sum(-2))


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


def shared_definitions(notebook: str) -> SimpleNamespace:
    """What the cells of `notebook` that are tagged "shared" define: a later notebook uses it without a copy.

    Only imports and definitions are tagged, so nothing is run; `.source` is their text, for fingerprints.
    """
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    source = "\n\n\n".join("".join(cell["source"]) for cell in cells if "shared" in cell["metadata"].get("tags", []))
    name = f"notebooks/{notebook}.ipynb"
    module = types.ModuleType(name)
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


def show_images(images, titles=None, columns: int = 8, size: float = 1.4, points=None, title: str | None = None, cmap=None):
    """A grid of images ((H, W, 3) or (H, W)); `points` is one (K, 2) array per image, or several in a list, each with its own colour."""
    images = list(images)
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

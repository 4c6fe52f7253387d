"""Plumbing that the notebooks share: folders, manifests, runs that resume, models, figures.

Points are (..., 2) in pixels, x to the right and y down; (0, 0) is the centre of the top left
pixel, as in CelebA's files and in cv2.warpAffine. A matrix is 2x3; it maps points of the
original photograph to points of a crop.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pandera.pandas as pa
import torch
import yaml
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from filelock import FileLock

from notebooks.celeba_files import photograph_folder
from notebooks.files import (  # noqa: F401 - notebooks use them as helpers.fetch and so on
    bring_back,
    display_path,
    fetch,
    forget,
    given_state,
    given_weights,
    keep,
    ROOT,
    sha256_of,
    WEIGHTS,
    write_atomically,
)
from notebooks.photographs import (  # noqa: F401
    astronaut,
    image_size,
    list_images,
    PhotographError,
    read_photograph,
    write_jpeg,
)
from notebooks.real_data import unpack_sample
from notebooks.settings import best_precision, check_settings, device_here, precision_here  # noqa: F401

plt.rcParams.update({"figure.dpi": 120, "font.size": 8, "figure.constrained_layout.use": True})
POINTS = ["left_eye", "right_eye", "nose", "left_mouth", "right_mouth"]  # as seen in the image
FLIPPED_POINTS = [1, 0, 2, 4, 3]  # the order of the points in a mirrored image
LANDMARK_COLUMNS = [f"{point}_{axis}" for point in POINTS for axis in "xy"]
MATRIX_COLUMNS = [f"m{row}{column}" for row in (0, 1) for column in (0, 1, 2)]
BOX_COLUMNS = ["box_x", "box_y", "box_width", "box_height"]
# CelebAMask-HQ's parts by label, 1 to 18; 0 is background. l_ is left as seen by the person.
PARTS = (
    "skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip hair hat "
    "ear_r neck_l neck cloth"
).split()

# ------------------------------------------------------------------------------------- folders


def open_dataset(
    name: str, data: str | Path = "", output: str | Path = "", needs: str = "celeba"
) -> SimpleNamespace:
    """The folders of a data set: .data, .celeba, .photographs to read, .csv and .runs to write.

    `data` holds celeba/, CelebAMask-HQ/ and so on; empty: data/<name>, or else data/.
    `output` gets csv/ and runs/; empty: the project, where a run on the sample works on a copy
    of its manifests. Raises FileNotFoundError where the folder that a stage `needs` is missing.
    """
    is_sample, output = name == "sample" and not data, Path(output or ROOT)
    is_published = name == "sample" and output == ROOT
    own = output / "data" / name  # of the sample, and where 0.2 writes
    data = Path(data or (own if is_sample or (own / needs).is_dir() else ROOT / "data"))
    folders = SimpleNamespace(name=name, data=data, celeba=data / "celeba", output=output)
    folders.photographs = photograph_folder(folders.celeba)
    published, folders.runs = output / "csv" / name, output / "runs" / name
    folders.csv = folders.runs / "manifests" if is_published else published
    is_new = not folders.csv.exists()
    bring_back(output, name)
    for folder in (folders.csv, folders.runs):
        folder.mkdir(parents=True, exist_ok=True)
    for path in published.glob("*.csv") if is_published and is_new else ():
        if not (folders.csv / path.name).exists():  # it may have come back
            shutil.copy2(path, folders.csv)
    if needs and is_sample and not (data / needs).is_dir():
        print(unpack_sample(data))
    if needs and not (data / needs).is_dir():
        raise FileNotFoundError(
            f"{display_path(data / needs)} is missing: put the data set there, or set DATA= to "
            f"the folder that holds {needs}/."
        )
    return folders


def run_stages(*stages: str, **settings) -> None:
    """Runs notebooks in a process of their own, as make does; first installs papermill."""
    needed = [sys.executable, ROOT / "notebooks" / "install_missing.py", "papermill"]
    subprocess.run(needed, check=True)
    pairs = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, ROOT / "notebooks" / "run.py", *stages, "--set", *pairs]
    subprocess.run(command, check=True)


def make_first(folders: SimpleNamespace, needed: Mapping[str, str]) -> None:
    """Runs earlier notebooks of the sample, as when one notebook is opened alone.

    `needed`: file or folder in runs/<dataset>/ -> the stage that writes it.
    """
    missing = {stage for name, stage in needed.items() if not (folders.runs / name).exists()}
    if (stages := sorted(missing)) and folders.name == "sample":
        print(f"{' and '.join(stages)} must run first; this takes some minutes.", flush=True)
        run_stages(*stages, OUTPUT=folders.output, DATA=folders.data)


def in_threads(work: Callable, *rows: Iterable, at_once: int = 16) -> list:
    """[work(*row) for row in zip(*rows)] on all cores; a thread takes `at_once` of them."""
    jobs = list(zip(*rows, strict=True))
    parts = [jobs[first : first + at_once] for first in range(0, len(jobs), at_once)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda part: [work(*row) for row in part], parts)
        return [result for part in done for result in part]


# ----------------------------------------------------------------------------------- manifests

_MANIFESTS = yaml.safe_load((ROOT / "csv" / "manifests.yaml").read_text(encoding="utf-8"))
_GROUPS = dict(landmarks=LANDMARK_COLUMNS, matrix=MATRIX_COLUMNS, box=BOX_COLUMNS, parts=PARTS)
_KINDS = {
    "text": pa.Column(str),
    "flag": pa.Column(bool),
    "number": pa.Column(float),
    "whole": pa.Column(int, pa.Check.ge(0)),
    "share": pa.Column(float, pa.Check.in_range(0, 1)),
    "optional text": pa.Column(str, nullable=True),
    "optional number": pa.Column(float, nullable=True, required=False),
    "optional share": pa.Column(float, pa.Check.in_range(0, 1), nullable=True),
}


def _schema(name: str) -> pa.DataFrameSchema:
    columns = {}
    for group, kind in _MANIFESTS[name]["columns"].items():
        one_of = isinstance(kind, list)
        column = pa.Column(str, pa.Check.isin(kind)) if one_of else _KINDS[kind]
        columns |= dict.fromkeys(_GROUPS.get(group, [group]), column)
    return pa.DataFrameSchema(columns, unique=_MANIFESTS[name]["key"], coerce=True)


def _check(frame: pd.DataFrame, name: str, where: str, dataset: str) -> pd.DataFrame:
    maker, schema = _MANIFESTS[name]["notebook"], _schema(name)
    again = f"Notebook {maker} makes it: delete it, then make {maker} DATASET={dataset}"
    for key in frame.select_dtypes("float"):
        whole = str(getattr(schema.columns.get(key), "dtype", "")).startswith("int")
        if whole and (frame[key].dropna() % 1 != 0).any():
            raise ValueError(f"{where}: column {key} must hold whole numbers. {again}")
    try:
        return schema.validate(frame)
    except (pa.errors.SchemaError, pa.errors.SchemaErrors) as error:
        first = getattr(error, "schema_errors", [error])[0]
        column = getattr(first.schema, "name", None)
        reason = str(first).splitlines()[0].rstrip(":")
        reason = f"column {column}: {reason}" if column else reason
        raise ValueError(f"{where}: {reason}. {again}") from None


def write_manifest(frame: pd.DataFrame, name: str, folders: SimpleNamespace) -> Path:
    """Checks `frame` by csv/manifests.yaml, then writes csv/<dataset>/<name>.csv in order."""
    frame = _check(frame, name, f"{name}.csv (about to be written)", folders.name)
    frame = frame.sort_values(_MANIFESTS[name]["key"])
    floats = frame.select_dtypes("float")
    whole = [column for column in floats if (floats[column] % 1 == 0).all()]
    frame = frame.astype(dict.fromkeys(whole, int))  # the same text in a third of the time
    write = lambda path: frame.to_csv(path, index=False, float_format="%.6g")  # noqa: E731
    return keep(write_atomically(folders.csv / f"{name}.csv", write))


def read_manifest(name: str, folders: SimpleNamespace) -> pd.DataFrame:
    """Reads and checks csv/<dataset>/<name>.csv.

    Raises FileNotFoundError or ValueError that name the file and the notebook that makes it.
    """
    path, maker = folders.csv / f"{name}.csv", _MANIFESTS[name]["notebook"]
    where, again = display_path(path), f"make {maker} DATASET={folders.name}"
    if not path.exists():
        raise FileNotFoundError(f"{where} is missing. Notebook {maker} makes it: {again}")
    try:
        frame = pd.read_csv(path, dtype={"image_id": str, "stage": str})
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError("its rows have more fields than its header")
    except ValueError as error:  # an empty file, a row too long, bytes that are no text
        reason = f"is not a valid table ({str(error).strip()})"
        raise ValueError(f"{where} {reason}. Delete it, then {again}") from None
    return _check(frame, name, where, folders.name)


def reject(stage: str, reasons: Mapping[str, str], folders: SimpleNamespace) -> pd.DataFrame:
    """Replaces the rows of `stage` in rejected.csv by `reasons` (image_id -> sentence)."""
    ids, sentences = list(reasons), list(reasons.values())
    rows = pd.DataFrame({"image_id": ids, "stage": stage, "reason": sentences}, dtype=object)
    with FileLock(folders.runs / ".rejected.lock"):  # another stage may write beside this one
        table = rows
        if (folders.csv / "rejected.csv").exists():
            others = read_manifest("rejected", folders).query("stage != @stage")
            table = pd.concat([others, rows])
        write_manifest(table, "rejected", folders)
    return rows


def landmarks_of(frame: pd.DataFrame) -> np.ndarray:
    """The five points of a manifest, (N, 5, 2) float."""
    return frame[LANDMARK_COLUMNS].to_numpy(float).reshape(-1, 5, 2)


def matrices_of(frame: pd.DataFrame) -> np.ndarray:
    """The matrices of a manifest, (N, 2, 3) float."""
    return frame[MATRIX_COLUMNS].to_numpy(float).reshape(-1, 2, 3)


def fingerprint(*parts) -> str:
    """A short hash of tables and plain values: what a model was trained on."""
    as_text = lambda part: part.to_csv(index=False, float_format="%.6g")  # noqa: E731
    texts = [as_text(p) if isinstance(p, pd.DataFrame) else repr(p) for p in parts]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


# ----------------------------------------------------------------------- training runs, models


def set_up(
    stage: str, folders: SimpleNamespace, seed=0, device="auto", precision="auto", tracker=""
) -> Accelerator:
    """Seeds everything and returns the Accelerator of a stage, by default of the best device.

    Several processes share each batch and have random numbers of their own. A second call in a
    kernel may choose another device or precision. Raises ValueError for one that is not here.
    """
    device = device_here(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:  # of an earlier call in this kernel
        AcceleratorState._reset_state(reset_partial_state=True)
    logs = folders.runs / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision_here(precision, device),
        log_with=tracker or None,
        project_dir=str(logs),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    set_seed(seed, device_specific=True)
    accelerator.init_trackers(stage)
    if tracker and accelerator.is_main_process and not accelerator.trackers:
        raise ValueError(f"TRACKER={tracker} is not installed: pip install {tracker}")
    where = f"{accelerator.device}, precision {accelerator.mixed_precision}"
    accelerator.print(f"{stage} on {where}, seed {seed}")
    return accelerator


class Checkpoint:
    """The state of a training run, saved in `folder`; it resumes to the same numbers.

    `settings` (JSON) say what is trained on what; a checkpoint of others is not resumed.
    `average` is the moving average of the network, or whatever else belongs to the state; what
    the accelerator has prepared, and the random numbers, are saved by the accelerator.
    """

    COPY_EVERY = 120.0  # seconds between two copies to a second place, which may be slow

    def __init__(self, accelerator, folder: Path, settings: Mapping, average) -> None:
        self.accelerator, self.folder, self.average = accelerator, Path(folder), average
        code = os.environ.get("FACES_CODE", "")  # a hash of the training code, by run.py
        more = {"precision": accelerator.mixed_precision, "code": code}
        self.settings = json.loads(json.dumps({**settings, **more}))
        self.copied = 0.0

    def matches(self, other: Mapping) -> bool:
        """Whether settings are those of this run; without run.py the code is not compared."""
        ignored = {} if self.settings["code"] and other.get("code") else {"code": ""}
        return {**self.settings, **ignored} == {**other, **ignored}

    def resume(self) -> list[dict]:
        """Loads the newest state, if it has these settings; returns a row per past epoch."""
        old, notes = self._named("old"), self.folder / "progress.json"
        if old.exists() and not self.folder.exists():  # killed between the renames of `save`
            old.rename(self.folder)
        if not notes.exists():
            return []
        where = display_path(self.folder)
        try:
            progress = json.loads(notes.read_text())
            if not self.matches(progress["settings"]):
                self.accelerator.print(f"{where} has other settings: training starts afresh.")
                return []
            self.accelerator.load_state(str(self.folder))
            state = torch.load(self.folder / "average.pt", "cpu", weights_only=True)
            self.average.load_state_dict(state)
        except Exception as error:
            kind = type(error).__name__
            raise RuntimeError(
                f"The checkpoint {where} cannot be read ({kind}); delete that folder, and its "
                "second copy where there is one, to train afresh."
            ) from error
        self.accelerator.print(f"Resumed {where} after epoch {len(progress['history'])}.")
        return progress["history"]

    def save(self, history: list[dict], keep_state: bool = True) -> None:
        """Writes the state and the history, one row per epoch; call it last in an epoch.

        Without `keep_state` only the history is written. Raises FloatingPointError for a NaN.
        """
        row, main = history[-1], self.accelerator.is_main_process
        if not all(np.isfinite(value) for value in row.values()):
            raise FloatingPointError(
                f"Epoch {len(history)} gave {row}; the checkpoint before it is kept. "
                "Lower the learning rate."
            )
        name, table = self.folder.name, pd.DataFrame(history)
        if main:
            write = lambda path: table.to_csv(path, index=False)  # noqa: E731
            write_atomically(self.folder.with_name(f"{name}_history.csv"), write)
        logged = {f"{name}/{key}": value for key, value in row.items()}
        self.accelerator.log(logged, step=len(history))
        if not keep_state:
            return
        new, old = self._named("new"), self._named("old")
        if main:
            shutil.rmtree(new, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(new))
        self.accelerator.wait_for_everyone()
        if main:
            torch.save(self.average.state_dict(), new / "average.pt")
            progress = {"settings": self.settings, "history": history}
            (new / "progress.json").write_text(json.dumps(progress))
            shutil.rmtree(old, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(old)
            new.rename(self.folder)
            shutil.rmtree(old, ignore_errors=True)
            if time.monotonic() - self.copied > self.COPY_EVERY:
                self.copied = time.monotonic()
                keep(self.folder)

    def _named(self, kind: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{kind}")


def moving_average(network: torch.nn.Module, decay: float = 0.998):
    """A copy of `network` that follows its weights as an exponential moving average.

    It is faster at the start. Running statistics are copied: they are averages already.
    """

    def follow(average: list, current: list, count: torch.Tensor) -> None:
        share = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(average, current, 1 - share)

    return torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=follow)


def save_model(model: torch.nn.Module, folder: str | Path, **more) -> Path:
    """model.save_pretrained(folder), atomically; `more` goes to preprocessor_config.json."""

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        if more:
            (temporary / "preprocessor_config.json").write_text(json.dumps(more, indent=2))

    return keep(write_atomically(folder, write))


def load_model(from_pretrained: Callable, source: str | Path, maker: str) -> torch.nn.Module:
    """A model from a folder or a hub id, in eval mode; `maker` is the notebook that trains it.

    Raises FileNotFoundError or ValueError with one sentence where it is missing or unreadable.
    """
    source, again = str(source), f"Notebook {maker} makes it: make {maker}"
    shown, there = display_path(source), Path(source).exists()
    if not (Path(source) / "config.json").exists() and (there or source.count("/") != 1):
        raise FileNotFoundError(f"{shown} is not the folder of a model. {again}")
    try:
        with contextlib.redirect_stdout(None):  # huggingface_hub says where it reads from
            return from_pretrained(source, strict=True).eval()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if there else "no folder, not on the hub"
        raise ValueError(f"{shown} cannot be loaded ({reason}). {again}") from error


# ------------------------------------------------------------------------------------- figures


def overlay_mask(image: np.ndarray, mask: np.ndarray, colour: Sequence[int] = (0, 255, 90)):
    """An image (H, W, 3) uint8 with the mask (H, W) laid over it."""
    mixed = (0.55 * image + 0.45 * np.array(colour)).astype(np.uint8)
    return np.where(np.asarray(mask, bool)[..., None], mixed, image)


def show_images(
    images, titles=None, columns: int = 5, size: float = 1.6, points=None, title="", cmap=None
) -> None:
    """A grid of images ((H, W, 3) or (H, W)), each `size` inches wide.

    `points` holds one (K, 2) array per image, or lists of several: green, red and yellow.
    """
    images = list(images)
    if not images:
        return
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    shape = images[0].shape
    height = rows * (size * shape[0] / shape[1] + (0.2 if titles is not None else 0.03))
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, height + 0.2 * bool(title)), squeeze=False
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
                x, y = np.asarray(group).T
                axis.scatter(x, y, s=8, c=colour, edgecolors="black", linewidths=0.3)
            height, width = images[index].shape[:2]
            axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    if title:
        figure.suptitle(title, fontsize=9)
    plt.show()

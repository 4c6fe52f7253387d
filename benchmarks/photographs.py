"""Cropping, alignment, the photograph store and mask merging against plain loops and against bare decoding and encoding.

The plain loops are what a student writes: cv2.imread, one crop after the other, on one core. All write to memory where the system
has a folder for that: a disk can take longer over a new file than the whole work on a photograph.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import cv2
import mask_merging
import numpy as np
import pandas as pd
from measure import interleaved, line

from helpers import fit_similarity, in_threads, photograph_store, square_matrix, TEMPLATE_112, write_jpeg

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def annotations(celeba: Path, count: int) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Files, boxes (N, 4) and landmarks (N, 5, 2) of the first photographs that are there."""
    tables = []
    for name in ("list_bbox_celeba", "list_landmarks_celeba"):
        tables.append(pd.read_csv(celeba / "Anno" / f"{name}.txt", sep=r"\s+", header=None, skiprows=2, index_col=0))
    names = [name for name in tables[0].index if (celeba / "img_celeba" / name).exists()][:count]
    boxes, points = (table.loc[names].to_numpy(float) for table in tables)
    good = (boxes[:, 2:] > 16).all(1)
    return (
        [celeba / "img_celeba" / name for name, keep in zip(names, good, strict=True) if keep],
        boxes[good],
        points[good].reshape(-1, 5, 2),
    )


def crop_and_keep(files: list[Path], matrices: np.ndarray, size: int, folder: Path) -> None:
    """As 1.3 and 1.5 do it: one store, then one JPEG each."""
    store, _ = photograph_store(files[0].parent, [file.name for file in files], matrices, size, folder / "store.npy")
    in_threads(write_jpeg, store, [folder / file.name for file in files])


def plain_crops(files: list[Path], boxes: np.ndarray, folder: Path) -> None:
    for file, (x, y, width, height) in zip(files, boxes.astype(int), strict=True):
        image = cv2.imread(str(file))
        side = int(0.8 * max(width, height))
        left, top = max(0, x + (width - side) // 2), max(0, y + (height - side) // 2)
        cv2.imwrite(str(folder / file.name), cv2.resize(image[top : top + side, left : left + side], (256, 256)))


def plain_alignment(files: list[Path], points: np.ndarray, folder: Path) -> None:
    for file, landmarks in zip(files, points, strict=True):
        matrix, _ = cv2.estimateAffinePartial2D(landmarks, TEMPLATE_112, method=cv2.RANSAC)
        cv2.imwrite(str(folder / file.name), cv2.warpAffine(cv2.imread(str(file)), matrix, (112, 112)))


def decode_and_encode(files: list[Path], size: int) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8)
    picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC)  # as smooth as a face

    def both(file):
        cv2.imread(str(file))
        cv2.imencode(".jpg", picture)

    in_threads(both, files)


def epochs_of(files: list[Path], matrices: np.ndarray, folder: Path, epochs: int = 5) -> None:
    store, _ = photograph_store(files[0].parent, [file.name for file in files], matrices, 128, folder / "store.npy")
    for _ in range(epochs):
        for batch in np.array_split(np.arange(len(files)), max(1, len(files) // 32)):
            np.ascontiguousarray(store[batch])


def plain_epochs(files: list[Path], boxes: np.ndarray, epochs: int = 5) -> None:
    for _ in range(epochs):
        for file, (x, y, width, height) in zip(files, boxes.astype(int), strict=True):
            cv2.resize(cv2.imread(str(file))[max(0, y) : y + height, max(0, x) : x + width], (128, 128))


def rows(data: Path, count: int, rounds: int) -> list[dict]:
    """Lines for cropping, alignment, five epochs of photographs, and merging."""
    cv2.setNumThreads(1)
    files, boxes, points = annotations(data / "celeba", count)
    what, table = f"{len(files)} photographs", []
    crops = square_matrix(boxes, 256, 0.8)
    with tempfile.TemporaryDirectory(dir=MEMORY) as temporary:
        folder = Path(temporary) / "written"

        def clear() -> None:  # a store already made would not be made again, and to replace a file costs more than to write one
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

        clear()
        works = {
            "ours": lambda: crop_and_keep(files, crops, 256, folder),
            "plain": lambda: plain_crops(files, boxes, folder),
            "limit": lambda: decode_and_encode(files, 256),
        }
        table.append(line("1.3 cropping", what, interleaved(works, rounds, clear)))
        works = {
            "ours": lambda: crop_and_keep(files, fit_similarity(points, TEMPLATE_112), 112, folder),
            "plain": lambda: plain_alignment(files, points, folder),
            "limit": lambda: decode_and_encode(files, 112),
        }
        table.append(line("1.5 alignment", what, interleaved(works, rounds, clear)))
        works = {
            "ours": lambda: epochs_of(files, square_matrix(boxes, 128), folder),
            "plain": lambda: plain_epochs(files, boxes),
            "limit": lambda: in_threads(cv2.imread, [str(file) for file in files]),
        }
        table.append(line("photographs of five epochs", what, interleaved(works, rounds, clear)))
    table.append(mask_merging.row(data / "CelebAMask-HQ", count, rounds))
    return table

"""Cropping, alignment, the image cache and mask merging, against plain loops and a limit.

The plain loops are what a student writes: cv2.imread, one crop after the other, on one core.
The limit is decoding and encoding alone. All write to memory where the system has a folder for
that: a disk can take longer to create a file than the whole work on a photograph takes.
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

import helpers
from faces import alignment, crops

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def annotations(celeba: Path, count: int) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Files, boxes (N, 4) and landmarks (N, 5, 2) of the first photographs that are there."""
    images, tables = celeba / "img_celeba", []
    for name in ("list_bbox_celeba", "list_landmarks_celeba"):
        path = celeba / "Anno" / f"{name}.txt"
        tables.append(pd.read_csv(path, sep=r"\s+", header=None, skiprows=2, index_col=0))
    names = [name for name in tables[0].index if (images / name).exists()][:count]
    boxes, points = (table.loc[names].to_numpy(float) for table in tables)
    good = (boxes[:, 2:] > 16).all(1)
    files = [images / name for name, is_good in zip(names, good, strict=True) if is_good]
    return files, boxes[good], points[good].reshape(-1, 5, 2)


def cached(files: list[Path], matrices: np.ndarray, size: int, folder: Path) -> np.ndarray:
    """The image cache of these files."""
    names, cache = [file.name for file in files], folder / "crops.npy"
    return crops.cached_crops(files[0].parent, names, matrices, size, cache)[0]


def crop_and_save(files: list[Path], matrices: np.ndarray, size: int, folder: Path) -> None:
    """As 1.3 and 1.5 do it: one image cache, then one JPEG each."""
    faces = cached(files, matrices, size, folder)
    helpers.in_threads(helpers.write_jpeg, faces, [folder / file.name for file in files])


def plain_crops(files: list[Path], boxes: np.ndarray, folder: Path) -> None:
    for file, (x, y, width, height) in zip(files, boxes.astype(int), strict=True):
        image = cv2.imread(str(file))
        side = int(0.8 * max(width, height))
        left, top = max(0, x + (width - side) // 2), max(0, y + (height - side) // 2)
        crop = cv2.resize(image[top : top + side, left : left + side], (256, 256))
        cv2.imwrite(str(folder / file.name), crop)


def plain_alignment(files: list[Path], points: np.ndarray, folder: Path) -> None:
    template = alignment.TEMPLATE
    for file, landmarks in zip(files, points, strict=True):
        matrix, _ = cv2.estimateAffinePartial2D(landmarks, template, method=cv2.RANSAC)
        face = cv2.warpAffine(cv2.imread(str(file)), matrix, (112, 112))
        cv2.imwrite(str(folder / file.name), face)


def decode_and_encode(files: list[Path], size: int) -> None:
    small = np.random.default_rng(0).integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8)
    smooth = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)  # like a face

    def both(file):
        cv2.imread(str(file))
        cv2.imencode(".jpg", smooth)

    helpers.in_threads(both, files)


def cached_epochs(
    files: list[Path], matrices: np.ndarray, folder: Path, epochs: int = 5
) -> None:
    faces = cached(files, matrices, 128, folder)
    for _ in range(epochs):
        for batch in np.array_split(np.arange(len(files)), max(1, len(files) // 32)):
            np.ascontiguousarray(faces[batch])


def plain_epochs(files: list[Path], boxes: np.ndarray, epochs: int = 5) -> None:
    for _ in range(epochs):
        for file, (x, y, width, height) in zip(files, boxes.astype(int), strict=True):
            face = cv2.imread(str(file))[max(0, y) : y + height, max(0, x) : x + width]
            cv2.resize(face, (128, 128))


def rows(data: Path, count: int, rounds: int) -> list[dict]:
    """Lines for cropping, alignment, five epochs of photographs, and merging."""
    cv2.setNumThreads(1)
    files, boxes, points = annotations(data / "celeba", count)
    what, table = f"{len(files)} photographs", []
    with tempfile.TemporaryDirectory(dir=MEMORY) as temporary:
        folder = Path(temporary) / "written"

        def clear() -> None:
            """A cache that exists is not made again, and replacing a file costs more."""
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

        def measure(stage: str, ours, plain, limit) -> None:
            works = {"ours": ours, "plain": plain, "limit": limit}
            table.append(line(stage, what, interleaved(works, rounds, clear)))

        clear()
        squares = crops.square_matrix(boxes, 256, 0.8)
        measure(
            "1.3 cropping",
            lambda: crop_and_save(files, squares, 256, folder),
            lambda: plain_crops(files, boxes, folder),
            lambda: decode_and_encode(files, 256),
        )
        fit = lambda: alignment.fit_similarity(points, alignment.TEMPLATE)  # noqa: E731
        measure(
            "1.5 alignment",
            lambda: crop_and_save(files, fit(), 112, folder),
            lambda: plain_alignment(files, points, folder),
            lambda: decode_and_encode(files, 112),
        )
        small = crops.square_matrix(boxes, 128)
        measure(
            "photographs of five epochs",
            lambda: cached_epochs(files, small, folder),
            lambda: plain_epochs(files, boxes),
            lambda: helpers.in_threads(cv2.imread, [str(file) for file in files]),
        )
    table.append(mask_merging.row(data / "CelebAMask-HQ", count, rounds))
    return table

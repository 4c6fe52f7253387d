"""3.1's merging against a plain loop over the parts, interleaved in one run: python benchmarks/mask_merging.py FOLDER

FOLDER is CelebAMask-HQ. Both give label maps in memory; the plain loop is what a student writes: cv2.imread in colour, resize
where needed, one assignment after the other, on one core. The limit is reading and decoding the same files on all cores.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from measure import interleaved, line

from helpers import PARTS

NUMBER = {part: index for index, part in enumerate(PARTS, start=1)}


def plain(photographs: dict[str, dict[str, Path]]) -> dict[str, np.ndarray]:
    merged = {}
    for image_id, paths in photographs.items():
        label_map = np.zeros((512, 512))
        for part in PARTS:
            if part in paths:
                mask = cv2.imread(str(paths[part]))
                label_map[mask[:, :, 0] != 0] = NUMBER[part]
        merged[image_id] = label_map.astype(np.uint8)
    return merged


def merge_one(paths: dict[str, Path]) -> np.ndarray:
    label_map = np.zeros((512, 512), np.uint8)
    for part in PARTS:
        if part in paths:
            label_map[cv2.imread(str(paths[part]), cv2.IMREAD_GRAYSCALE) > 127] = NUMBER[part]
    return label_map


def ours(photographs: dict[str, dict[str, Path]]) -> dict[str, np.ndarray]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(photographs, pool.map(merge_one, photographs.values()), strict=True))


def limit(photographs: dict[str, dict[str, Path]]) -> None:
    files = [path for paths in photographs.values() for path in paths.values()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), files))


def row(folder: Path, count: int = 10**6, rounds: int = 3) -> dict:
    """A line of the table; all three give the same label maps."""
    cv2.setNumThreads(1)
    photographs: dict[str, dict[str, Path]] = {}
    for path in sorted((folder / "CelebAMask-HQ-mask-anno").glob("*/*_*.png")):
        photographs.setdefault(path.stem[:5], {})[path.stem[6:]] = path
    photographs = dict(list(photographs.items())[:count])
    by_plain, by_ours = plain(photographs), ours(photographs)
    assert all((by_plain[image_id] == by_ours[image_id]).all() for image_id in photographs), "the same label maps"
    works = {"ours": ours, "plain": plain, "limit": limit}
    seconds = interleaved({name: lambda work=work: work(photographs) for name, work in works.items()}, rounds)
    return line("3.1 mask merging", f"{len(photographs)} photographs", seconds)


if __name__ == "__main__":
    row(Path(sys.argv[1]))

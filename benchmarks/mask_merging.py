"""3.1's merging against a plain loop over the parts, interleaved in one run: python benchmarks/mask_merging.py FOLDER

FOLDER is CelebAMask-HQ. Both give label maps in memory; the plain loop is what a student writes: cv2.imread in colour, resize
where needed, one assignment after the other, on one core. The limit is reading and decoding the same files on all cores.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
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


def main() -> None:
    cv2.setNumThreads(1)
    photographs: dict[str, dict[str, Path]] = {}
    for path in sorted((Path(sys.argv[1]) / "CelebAMask-HQ-mask-anno").glob("*/*_*.png")):
        photographs.setdefault(path.stem[:5], {})[path.stem[6:]] = path
    seconds: dict[str, list[float]] = {"plain": [], "ours": [], "limit": []}
    for _ in range(3):
        results = {}
        for name, work in (("plain", plain), ("ours", ours), ("limit", limit)):
            started = time.perf_counter()
            results[name] = work(photographs)
            seconds[name].append(time.perf_counter() - started)
        assert all((results["plain"][image_id] == results["ours"][image_id]).all() for image_id in photographs), "the same label maps"
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{len(photographs)} photographs, {os.cpu_count()} cores, median of 3:", {name: round(value, 2) for name, value in median.items()}
    )
    print(f"plain / ours {median['plain'] / median['ours']:.2f}, ours / limit {median['ours'] / median['limit']:.2f}")


if __name__ == "__main__":
    main()

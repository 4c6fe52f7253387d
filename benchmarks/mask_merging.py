"""3.1's merging against a plain loop over the parts: python benchmarks/mask_merging.py FOLDER

FOLDER is CelebAMask-HQ. Both give label maps in memory; the plain loop is what a student
writes: cv2.imread in colour, one assignment after the other, on one core. The limit is reading
and decoding the same files on all cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from measure import interleaved, line

import helpers
from faces import parts

Masks = dict[str, dict[str, Path]]  # image id -> part -> file


def plain(photographs: Masks) -> dict[str, np.ndarray]:
    merged = {}
    for image_id, paths in photographs.items():
        label_map = np.zeros((512, 512))
        for part in parts.LISTED_ORDER:
            if part in paths:
                mask = cv2.imread(str(paths[part]))
                label_map[mask[:, :, 0] != 0] = parts.NUMBER[part]
        merged[image_id] = label_map.astype(np.uint8)
    return merged


def merge_one(paths: dict[str, Path]) -> np.ndarray:
    masks = {part: parts.read_mask(path) for part, path in paths.items()}
    return parts.paint(masks, parts.LISTED_ORDER)


def ours(photographs: Masks) -> dict[str, np.ndarray]:
    label_maps = helpers.in_threads(merge_one, photographs.values(), at_once=1)
    return dict(zip(photographs, label_maps, strict=True))


def limit(photographs: Masks) -> None:
    files = [str(path) for paths in photographs.values() for path in paths.values()]
    helpers.in_threads(lambda file: cv2.imread(file, cv2.IMREAD_GRAYSCALE), files)


def row(folder: Path, count: int = 10**6, rounds: int = 3) -> dict:
    """A line of the table; ours and the plain loop give the same label maps."""
    cv2.setNumThreads(1)
    photographs: Masks = {}
    for path in sorted((folder / "CelebAMask-HQ-mask-anno").glob("*/*_*.png")):
        photographs.setdefault(path.stem[:5], {})[path.stem[6:]] = path
    photographs = dict(list(photographs.items())[:count])
    by_plain, by_ours = plain(photographs), ours(photographs)
    for image_id in photographs:
        assert (by_plain[image_id] == by_ours[image_id]).all(), f"{image_id} differs"
    works = {"ours": ours, "plain": plain, "limit": limit}
    timed = {name: lambda work=work: work(photographs) for name, work in works.items()}
    seconds = interleaved(timed, rounds)
    return line("3.1 mask merging", f"{len(photographs)} photographs", seconds)


if __name__ == "__main__":
    row(Path(sys.argv[1]))

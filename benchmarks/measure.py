"""What all benchmarks share: measuring side by side, in turn, and saying on what machine."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ.setdefault(
    "THP_MEM_ALLOC_ENABLE", "1"
)  # as notebooks/run.py sets it, for all that is compared
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

import cv2
import numpy as np
import torch


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes, a GPU's queue included."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def interleaved(
    works: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    after: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Median seconds of each work; one after the other in each round, so that a machine that slows down slows all.

    `after` is called after each work and not counted, for instance to remove what it wrote.
    """
    seconds: list[dict[str, float]] = []
    for _ in range(rounds):
        seconds.append({})
        for name, work in works.items():
            seconds[-1][name] = timed(work)
            if after:
                after()
    return {name: statistics.median(row[name] for row in seconds) for name in works}


def line(stage: str, what: str, seconds: Mapping[str, float], **more) -> dict:
    """A row of the table: seconds of ours, of the plain recipe and of the limit, and their ratios."""
    ours, plain, limit = (seconds.get(name, np.nan) for name in ("ours", "plain", "limit"))
    row = {
        "stage": stage,
        "what": what,
        "ours": ours,
        "plain": plain,
        "limit": limit,
        "plain/ours": plain / ours,
        "ours/limit": ours / limit,
    }
    print(
        f"{stage:28s} ours {ours:8.3f} s  plain {plain:8.3f}  limit {limit:8.3f}  {plain / ours:5.2f} x plain  {more or ''}",
        flush=True,
    )
    return row | more


def machine() -> str:
    """Processor or GPU, cores and versions, in one line."""
    names = (
        [
            row.split(":")[1].strip()
            for row in Path("/proc/cpuinfo").read_text().splitlines()
            if row.startswith("model name")
        ]
        if (Path("/proc/cpuinfo").exists())
        else [platform.processor()]
    )
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{names[0]}, {os.cpu_count()} cores"
    )
    bf16 = (
        "bfloat16" if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() else "no bfloat16"
    )
    return f"{device}, {bf16}, torch {torch.__version__}, OpenCV {cv2.__version__}, Python {platform.python_version()}"

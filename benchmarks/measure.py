"""What all benchmarks share: timing in turn, a row of the table, the name of the machine."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as in notebooks/run.py, for all works
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT), str(ROOT / "notebooks")]  # HERE first

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
    """Median seconds of each work, one after the other in every round.

    A machine that slows down then slows all of them. `after` is called after each work and is
    not timed, for instance to remove what it wrote.
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
    """A row of the table: seconds of ours, of the plain recipe and of the limit, and ratios."""
    ours, plain, limit = (seconds.get(name, np.nan) for name in ("ours", "plain", "limit"))
    row = {"stage": stage, "what": what, "ours": ours, "plain": plain, "limit": limit}
    row |= {"plain/ours": plain / ours, "ours/limit": ours / limit}
    times = f"ours {ours:8.3f} s  plain {plain:8.3f}  limit {limit:8.3f}"
    print(f"{stage:28s} {times}  {plain / ours:5.2f} x plain  {more or ''}", flush=True)
    return row | more


def processor() -> str:
    """The name of the processor, and its number of cores."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [text.split(":")[1].strip() for text in lines if text.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores"


def machine() -> str:
    """Processor or GPU, cores and versions, in one line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    versions = f"torch {torch.__version__}, OpenCV {cv2.__version__}"
    versions += f", Python {platform.python_version()}"
    return f"{device}, {'bfloat16' if bf16 else 'no bfloat16'}, {versions}"

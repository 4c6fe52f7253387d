"""Seconds and memory for 1, 4 and 16 times the rows and photographs.

python benchmarks/growth.py          both tables, on the drawn sample
Each size runs in a process of its own. Memory is what that process holds of its own (Linux:
RssAnon); pages of the memory-mapped image cache belong to the file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import selection
from cropping import annotations
from measure import ROOT, timed

from faces import crops

ROWS, PHOTOGRAPHS = 12_662, 400  # at 1 x; 16 x are 202,592 rows and 6,400 photographs


def many_annotations(celeba: Path, target: Path, rows: int) -> Path:
    """CelebA's files with `rows` rows: those of `celeba` repeated.

    Each copy has new names and new people, and its points are moved a little.
    """
    (target / "Anno").mkdir(parents=True)
    rng = np.random.default_rng(0)
    headers = {"list_bbox_celeba": 2, "list_landmarks_celeba": 2, "list_attr_celeba": 2}
    for name, header in {"identity_CelebA": 0, **headers}.items():
        path = celeba / "Anno" / f"{name}.txt"
        head = path.read_text().splitlines()[:header]
        table = pd.read_csv(path, sep=r"\s+", header=None, skiprows=header)
        copies = pd.concat([table] * -(-rows // len(table)), ignore_index=True).iloc[:rows]
        copies[0] = [f"{index:06d}.jpg" for index in range(1, rows + 1)]
        if not header:
            copies[1] += 100_000 * (np.arange(rows) // len(table))
        if name == "list_landmarks_celeba":
            copies.iloc[:, 1:] += rng.integers(-1, 2, (rows, 10))
        with (target / "Anno" / path.name).open("w") as file:
            file.write("".join(f"{line}\n" for line in [str(rows), *head[1:]][:header]))
            copies.to_csv(file, sep=" ", header=False, index=False)
    return target


@contextlib.contextmanager
def watched():
    """Yields a dictionary that gets `seconds` and `megabytes` (the peak beyond the start)."""

    def held() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    answer, done, start = {}, threading.Event(), held()
    most = [start]

    def watch():
        while not done.wait(0.02):
            most[0] = max(most[0], held())

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.perf_counter()
    yield answer
    answer["seconds"] = time.perf_counter() - started
    done.set()
    thread.join()
    answer["megabytes"] = most[0] - start


def of_selection(celeba: Path, times: int) -> dict:
    quiet = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet, watched() as answer:
        selection.select(celeba, Path(folder))
    reading = timed(lambda: selection.read_only(celeba))
    return {**answer, "count": times * ROWS, "reading": reading}


def of_cache(celeba: Path, times: int) -> dict:
    files, boxes, _ = annotations(celeba, PHOTOGRAPHS)
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{index:06d}.jpg" for index in range(times * len(files))]
        for index, name in enumerate(names):
            os.symlink(files[index % len(files)].resolve(), Path(folder) / name)
        matrices = crops.square_matrix(np.tile(boxes, (times, 1)), 128)
        with watched() as answer:
            crops.cached_crops(folder, names, matrices, 128, Path(folder) / "crops.npy")
        return {**answer, "count": len(names)}


def shown(row: dict) -> str:
    texts = {n: f"{v:,.2f}" if isinstance(v, float) else str(v) for n, v in row.items()}
    return "  ".join(f"{name} {text}" for name, text in texts.items())


def rows(data: Path) -> list[dict]:
    """A row for each stage and size, and seconds for 202,599 photographs by the slope."""
    table = []
    for stage in ("selection", "cache"):
        for times in (1, 4, 16):
            with tempfile.TemporaryDirectory() as folder:
                celeba = data / "celeba"
                if stage == "selection":
                    celeba = many_annotations(celeba, Path(folder) / "celeba", times * ROWS)
                command = [sys.executable, __file__, stage, str(times), str(celeba)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            answer = json.loads(done.stdout.splitlines()[-1])
            table.append({"stage": stage, "times": times, **answer})
            print(shown(table[-1]), flush=True)
    cache = pd.DataFrame(table).query("stage == 'cache'")
    slope, rest = np.polyfit(cache["count"], cache["seconds"], 1)
    minutes = (slope * 202_599 + rest) / 60
    print(f"202,599 photographs of this size would take {minutes:.1f} minutes by the slope")
    return table


if __name__ == "__main__":
    if len(sys.argv) == 4:
        work = {"selection": of_selection, "cache": of_cache}[sys.argv[1]]
        print(json.dumps(work(Path(sys.argv[3]), int(sys.argv[2]))))
    else:
        rows(ROOT / "data" / "sample")

"""Seconds and peak memory of 1.1 on a folder of annotations, figures left out, beside a plain recipe and the bare reading of the same files.

python benchmarks/selection.py FOLDER   (FOLDER holds Anno/, as CelebA's own folder does)
"""

import contextlib
import io
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import nbformat
import numpy as np
import pandas as pd
from measure import interleaved, line, ROOT


def read_only(celeba: Path) -> dict[str, pd.DataFrame]:
    skipped = {"identity_CelebA": 0, "list_bbox_celeba": 2, "list_landmarks_celeba": 2, "list_attr_celeba": 2}
    return {name: pd.read_csv(celeba / "Anno" / f"{name}.txt", sep=r"\s+", header=None, skiprows=skip) for name, skip in skipped.items()}


def select(celeba: Path, cells: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        (data / "celeba").symlink_to(celeba.resolve())
        space: dict = {"Path": Path, "os": os}
        spent = 0.0
        for source in cells:
            started = time.perf_counter()
            exec(compile(source, "1.1", "exec"), space)
            if 'dataset = "sample"' in source:
                space.update(dataset="benchmark", data=data, output=folder)
            elif not source.startswith("import"):
                spent += time.perf_counter() - started
        return spent


def plain(celeba: Path, folder: Path, persons: int = 500, each: int = 20) -> None:
    """What a student writes: merged frames, the seed project's three criteria, one person after the other; no check, no near-duplicates."""
    read = read_only(celeba)
    faces = read["identity_CelebA"].rename(columns={1: "identity"})
    for name in ("list_landmarks", "list_bbox", "list_attr"):
        faces = faces.merge(read[f"{name}_celeba"].add_prefix(f"{name}_").rename(columns={f"{name}_0": 0}), on=0)
    left, right, nose = (faces[f"list_landmarks_{column}"] for column in (1, 3, 5))
    apart, to_nose = right - left, nose - left
    faces = faces[(apart > 30) & (to_nose >= 0.3 * apart) & (to_nose <= 0.7 * apart)]
    traits = [column for column in faces if str(column).startswith("list_attr_")]
    train, val = [], []
    for _, person in faces.groupby("identity"):
        if len(person) < each or len(train) == persons:
            continue
        bits, taken = person[traits].to_numpy(), [0]
        while len(taken) < each:
            taken.append(int(np.argmax([-1 if index in taken else (bits[taken] != row).sum(1).min() for index, row in enumerate(bits)])))
        train.append(person.iloc[taken[:-4]])
        val.append(person.iloc[taken[-4:]])
    for name, chosen in (("train", train), ("val", val)):
        pd.concat(chosen).to_csv(folder / f"{name}.csv", index=False)


def cells_of_notebook() -> list[str]:
    """The code of 1.1 without set-up and figures."""
    notebook = nbformat.read(next((ROOT / "notebooks").glob("1.1_*.ipynb")), 4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"][1:]
    figures = ("plt.subplots", "plot.bar", "show_images(open_faces(look")
    return [source for source in code if not any(figure in source for figure in figures)]


def row(celeba: Path, rounds: int = 3) -> dict:
    """A line of the table; here the limit is the bare reading of the same files."""
    spent = []

    def ours():
        with contextlib.redirect_stdout(io.StringIO()):
            spent.append(select(celeba, cells_of_notebook()))

    with tempfile.TemporaryDirectory() as folder:
        works = {"ours": ours, "plain": lambda: plain(celeba, Path(folder)), "limit": lambda: read_only(celeba)}
        seconds = interleaved(works, rounds)
    count = sum(1 for _ in (celeba / "Anno/identity_CelebA.txt").open())
    return line("1.1 selection", f"{count:,} rows", seconds | {"ours": statistics.median(spent)})


if __name__ == "__main__":
    row(Path(sys.argv[1]))
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")

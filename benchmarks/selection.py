"""Seconds and peak memory of 1.1 on a folder of annotations, figures left out, beside the bare reading of the same files.

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
import pandas as pd
from measure import interleaved, line, ROOT


def read_only(celeba: Path) -> float:
    started = time.perf_counter()
    for name, header in (("identity_CelebA", 0), ("list_bbox_celeba", 2), ("list_landmarks_celeba", 2), ("list_attr_celeba", 2)):
        pd.read_csv(celeba / "Anno" / f"{name}.txt", sep=r"\s+", header=None, skiprows=header)
    return time.perf_counter() - started


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

    seconds = interleaved({"ours": ours, "limit": lambda: read_only(celeba)}, rounds)
    count = sum(1 for _ in (celeba / "Anno/identity_CelebA.txt").open())
    return line("1.1 selection", f"{count:,} rows", seconds | {"ours": statistics.median(spent)})


if __name__ == "__main__":
    row(Path(sys.argv[1]))
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")

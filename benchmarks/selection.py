"""Seconds and peak memory of 1.1 on a folder of annotations, figures left out, beside the bare reading of the same files.

python benchmarks/selection.py FOLDER   (FOLDER holds Anno/, as CelebA's own folder does)
"""

import contextlib
import io
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def read_only(celeba: Path) -> float:
    started = time.perf_counter()
    for name, header in (("identity_CelebA", 0), ("list_bbox_celeba", 2), ("list_landmarks_celeba", 2), ("list_attr_celeba", 2)):
        pd.read_csv(celeba / "Anno" / f"{name}.txt", sep=r"\s+", header=None, skiprows=header)
    return time.perf_counter() - started


def select(celeba: Path, cells: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        (data / "celeba").symlink_to(celeba.resolve())
        space: dict = {"Path": Path}
        spent = 0.0
        for source in cells:
            started = time.perf_counter()
            exec(compile(source, "1.1", "exec"), space)
            if 'dataset = "sample"' in source:
                space.update(dataset="benchmark", data=data, output=folder)
            elif not source.startswith("import"):
                spent += time.perf_counter() - started
        return spent


def main() -> None:
    celeba = Path(sys.argv[1])
    notebook = nbformat.read(next((ROOT / "notebooks").glob("1.1_*.ipynb")), 4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"][1:]
    cells = [
        source
        for source in code
        if "plt.subplots" not in source and "plot.bar" not in source and "show_images(open_faces(look" not in source
    ]
    reading, selecting = [], []
    for _ in range(3):
        reading.append(read_only(celeba))
        with contextlib.redirect_stdout(io.StringIO()):
            selecting.append(select(celeba, cells))
    read, selected = statistics.median(reading), statistics.median(selecting)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"read only {read:.2f} s, read and select {selected:.2f} s, ratio {selected / read:.2f}, peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()

"""All benchmarks in one run: results.csv, growth.csv and a figure, results.png, in benchmarks/.

python benchmarks/bench.py [--data FOLDER] [--count 400] [--steps 20] [--rounds 5]
FOLDER holds celeba/ and CelebAMask-HQ/; by default the drawn sample. For each stage ours, the
plain recipe and the limit are measured in turn. What has been run in runs/sample/ is added with
its seconds: 5.1 on one photograph, and each notebook.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import textwrap
from pathlib import Path

import cropping
import growth
import matplotlib.pyplot as plt
import pandas as pd
import selection
import training
from measure import interleaved, line, machine, ROOT

import helpers
from faces import pipeline


def one_photograph(data: Path, runs: Path, rounds: int) -> list[dict]:
    """5.1 on one photograph; its limit is the same without the search for the face."""
    if not (runs / "gallery.npz").exists():
        print("5.1 has not run on the sample yet, so it is not measured: make 5.1")
        return []
    process = pipeline.FacePipeline(runs)
    gallery = pipeline.Gallery.load(runs / "gallery.npz")
    files, _, points = cropping.annotations(data / "celeba", 1)
    image, finder = helpers.read_photograph(files[0]), process.finder
    process(image, gallery)

    def told():
        process.finder = lambda photograph, starts=None: finder(photograph, points)
        process(image, gallery)
        process.finder = finder

    works = {"ours": lambda: process(image, gallery), "limit": told}
    return [line("5.1 one photograph", "every stage", interleaved(works, rounds))]


def figure(table: pd.DataFrame, path: Path, where: str) -> None:
    """Times of the plain recipe and of the limit, with ours as 1."""
    compared = table.dropna(subset=["limit"]).iloc[::-1]
    fig, axis = plt.subplots(figsize=(7, 0.32 * len(compared) + 1), layout="constrained")
    axis.barh(
        compared["stage"],
        compared["plain"] / compared["ours"],
        color="lightgrey",
        label="plain recipe",
    )
    axis.barh(compared["stage"], 1, color="seagreen", height=0.5, label="ours")
    axis.barh(
        compared["stage"],
        compared["limit"] / compared["ours"],
        color="black",
        height=0.2,
        label="limit",
    )
    axis.set(xlabel="time, ours = 1", title=textwrap.fill(where, 95))
    axis.title.set_fontsize(7)
    axis.legend(fontsize=7)
    fig.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "sample")
    parser.add_argument("--count", type=int, default=400, help="photographs")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--precision",
        help="of our training steps: bf16, fp16 or no; by default what the device does well",
    )
    options = parser.parse_args()
    if not (options.data / "celeba").is_dir():
        parser.error(f"{options.data} holds no celeba/: make 0.1 draws the sample")
    if options.steps < 10:
        parser.error("--steps must be at least 10: the first three are not counted")
    precision = options.precision or "as the device does well"
    where = f"{machine()}; photographs of {options.data.name}/; precision {precision}"
    print(where)
    with tempfile.TemporaryDirectory() as temporary:
        rows_16 = growth.many_annotations(
            options.data / "celeba", Path(temporary) / "celeba", 202_599
        )
        rows = [selection.row(rows_16, min(3, options.rounds))]
        rows += cropping.rows(options.data, options.count, options.rounds)
        rows += training.rows(options.data, Path(temporary), options.steps, options.precision)
    runs = ROOT / "runs" / "sample"
    rows += one_photograph(ROOT / "data" / "sample", runs, options.rounds)
    notebooks = {
        path.stem: json.loads(path.read_text())["seconds"]
        for path in sorted((runs / "notebooks").glob("[0-9].[0-9].json"))
    }
    if len(notebooks) == len(list((ROOT / "notebooks").glob("[0-9].[0-9]_*.ipynb"))):
        rows.append(
            {
                "stage": "make run, notebooks",
                "what": " ".join(notebooks),
                "ours": sum(notebooks.values()),
            }
        )
    table = pd.DataFrame(rows).assign(machine=where)
    here = Path(__file__).resolve().parent
    table.to_csv(here / "results.csv", index=False, float_format="%.4g")
    figure(table, here / "results.png", where)
    pd.DataFrame(growth.rows(options.data)).assign(machine=where).to_csv(
        here / "growth.csv", index=False, float_format="%.4g"
    )


if __name__ == "__main__":
    main()

"""Runs notebooks of the series with papermill, each after what it needs; a stage that is up to date is not run again.

python notebooks/run.py 1.4 --dataset celeba --set DATA=../photographs EPOCHS=20
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import hashlib
import io
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import papermill
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# stage -> the stages whose files it reads; 0.1 draws the sample, so only the sample needs it.
NEEDS = {
    "0.1": [],
    "1.1": ["0.1"],
    "1.2": ["1.1"],
    "1.3": ["1.1"],
    "1.4": ["1.3"],
    "1.5": ["1.4"],
    "2.1": ["1.5"],
    "2.2": ["2.1"],
    "3.1": ["0.1"],
    "3.2": ["3.1"],
    "3.3": ["3.1"],
    "3.4": ["3.1"],
    "4.1": ["0.1"],
    "4.2": ["1.4"],
    "5.1": ["2.2", "3.2", "3.4", "4.2"],
}
SETS = {"1.1": "celeba", "3.1": "CelebAMask-HQ", "4.1": "horse2zebra", "4.2": "selfie2portrait"}  # what `all` needs of DATA
NO_RESULT = {"real_sets", "archives", "tracker"}  # settings that change nothing a later stage reads
EVERYWHERE = {"data", "output", "photographs", "images", "device", "seed", "tracker"}  # settings that also reach the stages before
PATHS = {
    "data",
    "output",
    "photographs",
    "weights",
    "unseen_persons",
    "landmark_test",
    "images",
    "masks",
    "split_file",
    "encoder_weights",
    "own_photographs",
    "video",
    "features",
    "folder_a",
    "folder_b",
    "photograph",
    "archives",
    "people",
    "detector",
}

RANK = int(os.environ.get("RANK", 0))  # under torchrun or `accelerate launch` every process runs the notebook; the first one keeps it
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages: a training step on a processor gains a tenth


def notebooks() -> list[Path]:
    return sorted(HERE.glob("[0-9].[0-9]_*.ipynb"))


def notebook_of(stage: str) -> Path:
    found = sorted(HERE.glob(f"{stage}_*.ipynb"))
    if not found:
        sys.exit(f"No notebook for stage {stage}; there are {', '.join(NEEDS)}.")
    return found[0]


def parameters_of(notebook: nbformat.NotebookNode) -> set[str]:
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    return set(re.findall(r"^(\w+)\s*=", cell.source, re.MULTILINE))


def shared_source(notebook: nbformat.NotebookNode, known: set[str]) -> list[str]:
    """The cells tagged "shared" of all notebooks that this one names, and of those that they name; `known` are done already."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    sources = []
    for name in sorted(set(re.findall(r'"(\d\.\d_\w+)"', "\n".join(code))) - known):
        if (HERE / f"{name}.ipynb").exists():
            known.add(name)
            other = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
            sources += [cell.source for cell in other.cells if "shared" in cell.metadata.get("tags", [])]
            sources += shared_source(other, known)
    return sources


def source_hash(notebook: nbformat.NotebookNode) -> str:
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"] + shared_source(notebook, set())
    return hashlib.sha256("\0".join([*code, (ROOT / "helpers.py").read_text()]).encode()).hexdigest()[:16]


def value_of(name: str, text: str):
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    words = {
        "unseen_persons": r"\d+|\[.*",
        "encoder_weights": "imagenet",
        "features": "inception|classifier",
        "photograph": "upload|webcam|https?://.*",
        "detector": "yunet",
    }  # what is no path all the same
    if name in PATHS and not re.fullmatch(words.get(name, ""), text):
        return str(Path(text).expanduser().resolve())
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@contextlib.contextmanager
def alone_in(folder: Path):
    """One run at a time in a folder; what a notebook runs in its turn belongs to the run that started the notebook."""
    if RANK or os.environ.get("FACES_RUN") == str(folder):
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.exit(
            f"Another run is at work in {os.path.relpath(folder.parent)}: wait for it, or give this one a folder of its own, OUTPUT=..."
        )
    os.environ["FACES_RUN"] = str(folder)
    try:
        yield
    finally:
        lock.release()


class Series:
    """One data set's run: where executed notebooks and their records lie, and which settings were asked for."""

    def __init__(self, dataset: str, settings: dict) -> None:
        self.dataset, self.settings, self.left_out = dataset, settings, set()
        self.folder = Path(settings.get("output", ROOT)) / "runs" / dataset / "notebooks"
        self.folder.mkdir(parents=True, exist_ok=True)

    def needs(self, stage: str) -> list[str]:
        drawn = self.dataset == "sample" and "data" not in self.settings  # with DATA= the pictures are there already
        return [other for other in NEEDS[stage] if (other != "0.1" or drawn) and other not in self.left_out]

    def everything(self) -> list[str]:
        """All stages for which there are pictures; those left out are named."""
        if self.dataset == "sample":
            return list(NEEDS)
        data = Path(self.settings.get("data") or ROOT / "data")
        pair = {} if "folder_a" in self.settings else {stage: self.settings.get("pair", SETS[stage]) for stage in ("4.1", "4.2")}
        for stage, name in {"1.1": SETS["1.1"], "3.1": SETS["3.1"], **pair}.items():
            if (data / name).is_dir():
                continue
            after = {other for other in NEEDS if stage in self.order([other]) and (other != "5.1" or stage == "1.1")}
            print(f"{' '.join(sorted(after))} left out: there is no {name}/ in {os.path.relpath(data)}", flush=True)
            self.left_out |= after
        return [stage for stage in NEEDS if stage != "0.1" and stage not in self.left_out]

    def order(self, stages: list[str]) -> list[str]:
        ordered: list[str] = []

        def visit(stage: str) -> None:
            for other in self.needs(stage):
                visit(other)
            if stage not in ordered:
                ordered.append(stage)

        for stage in stages:
            visit(stage)
        return ordered

    def record(self, stage: str) -> dict:
        path = self.folder / f"{stage}.json"
        return json.loads(path.read_text() or "{}") if path.exists() else {}

    def inputs(self, stage: str, parameters: dict) -> str:
        """A hash that changes when photographs are added to a stage's folders or taken away, or an annotation file is exchanged."""
        if stage not in SETS or self.dataset == "sample":
            return ""
        folders = [parameters[name] for name in ("photographs", "images", "masks", "folder_a", "folder_b") if parameters.get(name)]
        folders.append(Path(parameters.get("data") or ROOT / "data") / parameters.get("pair", SETS[stage]))
        seen = []
        for where, inner, files in (row for folder in folders for row in os.walk(folder)):
            inner.sort()
            listed = [Path(where, name) for name in sorted(files) if name.endswith((".txt", ".csv", ".json"))]
            seen.append([len(files), *((path.stat().st_size, path.stat().st_mtime_ns) for path in (Path(where), *listed))])
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]

    def made_since(self, stage: str, clock: float) -> list[str]:
        """What a stage has left, relative to the folder that holds csv/ and runs/: its manifests, files and folders of files."""
        root = self.folder.parent.parent.parent
        passing = {"notebooks", "checkpoints", "logs", "stores", "rejected.csv"}
        left = [path for part in ("csv", "runs") for path in (root / part / self.dataset).glob("*") if path.name not in passing]
        left += [root / "data" / "sample"] * (stage == "0.1")
        return sorted(path.relative_to(root).as_posix() for path in left if path.exists() and path.stat().st_mtime >= clock)

    def wanted(self, stage: str, asked: bool, known: set[str]) -> dict:
        """The parameters of a stage: those asked for, and for a stage that only has to come before, those of its last run."""
        before = (
            {} if asked else {n: v for n, v in self.record(stage).get("parameters", {}).items() if n in known - EVERYWHERE - {"dataset"}}
        )
        chosen = before | {name: value for name, value in self.settings.items() if name in known and (asked or name in EVERYWHERE)}
        return chosen if self.dataset == "sample" else {"dataset": self.dataset, **chosen}

    def bring_up_to_date(self, stage: str, asked: bool, label: str) -> None:
        path = notebook_of(stage)
        notebook = nbformat.read(path, as_version=4)
        parameters = self.wanted(stage, asked, parameters_of(notebook))
        upstream = {other: self.record(other).get("key") for other in self.needs(stage)}
        old, source = self.record(stage), source_hash(notebook)
        executed = self.folder / path.name
        always = (EVERYWHERE & set(parameters)) | ({"data", "photographs", "images"} & set(old.get("parameters", {})))
        compared = set(parameters) | set(old.get("parameters", {})) if asked else always
        same_settings = all(old.get("parameters", {}).get(name) == parameters.get(name) for name in compared - {"output"})
        whole = executed.exists() and all((self.folder.parent.parent.parent / name).exists() for name in old.get("made", []))
        inputs = self.inputs(stage, parameters)
        if whole and old.get("inputs") == inputs and old.get("source") == source and old.get("upstream") == upstream and same_settings:
            print(f"{label} {path.stem}: up to date", flush=True)
            return
        print(f"{label} {path.stem} ...", flush=True)
        started, clock = time.perf_counter(), time.time()
        temporary = executed.with_suffix(f".{RANK}.running.ipynb" if RANK else ".running.ipynb")
        try:
            papermill.execute_notebook(
                path, temporary, parameters, cwd=HERE, kernel_name="python3", progress_bar=False, extra_arguments=["--log-level=40"]
            )
        except DeadKernelError:
            sys.exit(f"{label} {path.stem}: its kernel died, most often for want of memory; lower batch_size. What was finished is kept.")
        except PapermillExecutionError as error:
            stopped = temporary.replace(executed.with_suffix(".stopped.ipynb"))
            sys.exit(
                f"{label} {path.stem} stopped in cell In [{error.exec_count}]: {error.ename}: {error.evalue}\n"
                f"See {os.path.relpath(stopped)}; what was finished before it is kept."
            )
        if RANK:
            temporary.unlink()
            return
        temporary.replace(executed)
        seconds = round(time.perf_counter() - started, 1)
        matter = {name: value for name, value in parameters.items() if name not in NO_RESULT}
        key = hashlib.sha256(json.dumps([source, matter, upstream, inputs], sort_keys=True).encode()).hexdigest()[:16]
        record = {"key": key, "made": self.made_since(stage, clock), "inputs": inputs, "source": source}
        record |= {"parameters": parameters, "upstream": upstream, "seconds": seconds}
        written = self.folder / f".{stage}.json"
        written.write_text(json.dumps(record, indent=1))
        written.replace(self.folder / f"{stage}.json")
        print(f"{label} {path.stem}: {seconds:.0f} s", flush=True)


def smaller(png: str) -> str:
    """A figure (base64 PNG) with a palette of 256 colours, rare ones included, where that is smaller: notebooks have to stay light."""
    image, slim = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image.quantize(256, kmeans=1, dither=Image.Dither.FLOYDSTEINBERG).save(slim, "PNG", optimize=True)
    text = base64.b64encode(slim.getvalue()).decode()
    return min(text, png, key=len)


def refresh_outputs(series: Series) -> None:
    """Copies the executed notebooks over the committed ones, without papermill's times and paths.

    The last figure of each cell tagged "gallery" goes to notebooks/pictures/, where the README shows it.
    """
    for stage in NEEDS:
        path = notebook_of(stage)
        notebook = nbformat.read(series.folder / path.name, as_version=4)
        for part in (notebook, *notebook.cells):
            part.metadata.pop("papermill", None)
            part.metadata.pop("execution", None)
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            if "tags" in cell.metadata and not cell.metadata["tags"]:
                del cell.metadata["tags"]
            pictured = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
            for output in pictured:
                output.data["image/png"] = smaller(output.data["image/png"])
            figures = [output.data["image/png"] for output in pictured]
            if figures and "gallery" in cell.metadata.get("tags", []):
                (HERE / "pictures").mkdir(exist_ok=True)
                (HERE / "pictures" / f"{stage}.png").write_bytes(base64.b64decode(figures[-1]))
        nbformat.write(notebook, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", help="all, or stages such as 1.4")
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of the notebooks")
    parser.add_argument("--outputs", action="store_true", help="refresh the committed notebooks afterwards")
    options = parser.parse_args()
    for wrong in [item for item in options.set if "=" not in item] + [name for name in options.stages if name not in (*NEEDS, "all")]:
        sys.exit(f"{wrong}: stages are all, {', '.join(NEEDS)}, and settings NAME=VALUE.")
    pairs = [item.split("=", 1) for item in options.set]
    settings = {name.lower(): value_of(name.lower(), value) for name, value in pairs if value or name.lower() == "tracker"}
    if "dataset" in settings:
        sys.exit("The data set is chosen by --dataset (make: DATASET=), not as a setting: its files have a folder of their own.")
    series = Series(options.dataset, settings)
    asked = series.everything() if "all" in options.stages else options.stages
    unknown = set(settings) - EVERYWHERE - set().union(*(parameters_of(nbformat.read(notebook_of(stage), 4)) for stage in NEEDS))
    if unknown:
        sys.exit(f"No notebook has a parameter named {', '.join(sorted(unknown))}.")
    for name in ("epochs", "batch_size"):
        if settings.get(name) is not None and (type(settings[name]) is not int or settings[name] < 1):
            sys.exit(f"{name.upper()}={settings[name]} will not do: a whole number from 1 up.")
    order = series.order(asked)
    with alone_in(series.folder.resolve()):
        for number, stage in enumerate(order, 1):
            series.bring_up_to_date(stage, stage in asked, f"[{number}/{len(order)}]")
    if options.outputs:
        refresh_outputs(series)


if __name__ == "__main__":
    main()

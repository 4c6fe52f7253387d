"""Runs notebooks with papermill, each after the stages it needs; skips what is up to date.

python notebooks/run.py 1.4 --dataset celeba --set DATA=../photographs EPOCHS=20
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}.")
try:
    import nbformat
    import papermill
    import yaml
    from filelock import FileLock, Timeout
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed: {sys.executable} -m pip install {error.name}")

from settings import check_settings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# stage -> the stages whose files it reads; only the sample needs 0.1, which unpacks it
NEEDS = {
    "0.1": [],
    "0.2": ["0.1"],
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
# what a stage writes to runs/<dataset>/; csv/manifests.yaml names its tables
MAKES = {
    "0.2": ["own_photographs"],
    "1.3": ["Cropped"],
    "1.4": ["landmarks"],
    "1.5": ["Aligned_*"],
    "2.1": ["recognition_ce", "embeddings_ce_loss.npz", "recognition_table.json"],
    "2.2": ["recognition_arcface"],
    "3.1": ["label_maps"],
    "3.2": ["face_parts"],
    "3.3": ["deeplabv3"],
    "3.4": ["face_mask", "face_masks*"],
    "4.1": ["cyclegan_*"],
    "4.2": ["portrait", "portraits", "portrait_training", "faces_found.json"],
    "5.1": ["gallery.npz", "people", "everything"],
}
# the folder in DATA that a stage begins with
SETS = {"1.1": "celeba", "3.1": "CelebAMask-HQ", "4.1": "horse2zebra", "4.2": "selfie2portrait"}
NO_RESULT = {
    "real_sets",
    "archives",
    "tracker",
}  # settings that change nothing a later stage reads
EVERYWHERE = {"data", "output", "photographs", "images", "device", "seed", "tracker"}

RANK = int(os.environ.get("RANK", 0))  # under torchrun every process runs; the first one saves
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: a tenth less time on a CPU
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two stages at once share the cores


def has_identities(celeba: Path) -> bool:
    """Whether a copy of CelebA says who is who."""
    sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]
    from notebooks.celeba_files import annotation_file  # imports pandas: only where needed

    return annotation_file(celeba, "identity_CelebA") is not None


def notebook_of(stage: str) -> Path:
    found = sorted(HERE.glob(f"{stage}_*.ipynb"))
    if not found:
        sys.exit(f"No notebook for stage {stage}; there are {', '.join(NEEDS)}.")
    return found[0]


# ---------------------------------------------------------------------------------- parameters


@functools.cache
def parameters_of(stage: str) -> dict[str, tuple[object, str]]:
    """name -> (value, comment) of a notebook's parameters cell."""
    found = papermill.inspect_notebook(notebook_of(stage))
    return {name: (ast.literal_eval(p["default"]), p["help"]) for name, p in found.items()}


def value_of(name: str, text: str, default: object, comment: str = "") -> object:
    """A value from the command line, of the type that it has in the parameters cell."""
    try:
        if isinstance(default, bool):
            return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]
        if isinstance(default, list):
            return ast.literal_eval(text) if text.startswith("[") else text.split(",")
        if isinstance(default, (int, float)):
            return type(default)(text)
    except (KeyError, ValueError, SyntaxError):
        kinds = {bool: "True or False", int: "a whole number", float: "a number"}
        expected = f"{kinds.get(type(default), 'a list')} is expected, like {default!r}"
        sys.exit(f"{name.upper()}={text} is not valid: {expected}.")
    path = Path(text).expanduser()
    is_path = (
        re.match("(folder|file)s? ", comment) and text and (path.exists() or name == "output")
    )
    return str(path.resolve()) if is_path else text


def default_profile(dataset: str) -> str:
    own = (HERE / "profiles" / f"{dataset}.yaml").exists()
    return "quick" if dataset == "sample" else dataset if own else "celeba"


def profile_of(dataset: str, name: str | None) -> dict[str, dict]:
    """Stage -> parameters, from profiles/<name>.yaml; by default quick for the sample."""
    name = name or default_profile(dataset)
    if name == "none":
        return {}
    path = HERE / "profiles" / f"{name}.yaml"
    if not path.exists():
        there = ", ".join(sorted(path.stem for path in path.parent.glob("*.yaml")))
        sys.exit(f"There is no profile {name}: choose one of {there}, or none.")
    profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    for stage, values in profile.items():
        if wrong := set(values) - set(parameters_of(stage)):
            sys.exit(f"{path.name}: {stage} has no parameter {', '.join(sorted(wrong))}.")
    return profile


# --------------------------------------------------------------------------------- source code


def code_of(source: str) -> str:
    """Python without comments and layout, so that they may change."""
    try:
        return ast.unparse(ast.parse(source))
    except SyntaxError:
        return source


def library_of(source: str, known: set[str]) -> list[str]:
    """The modules of notebooks/ that a source imports, and what they import; fills `known`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):  # import draw_sample
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level and node.module:
            names = [f"faces/{node.module}"]  # from .alignment import SIZE
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module == "faces"):
            names = [f"faces/{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "notebooks":
            names = [alias.name for alias in node.names]  # from notebooks import celeba_files
        elif isinstance(node, ast.ImportFrom):  # from draw_light import unit
            names = [node.module.replace(".", "/")]
        for path in [HERE / f"{name}.py" for name in sorted(set(names) - known)]:
            known.add(path.relative_to(HERE).with_suffix("").as_posix())
            if path.exists():
                text = path.read_text(encoding="utf-8")
                found += [text, *library_of(text, known)]
    return found


def hashes_of(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """Of all code that a notebook runs, and of that which decides what training gives."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    known = {"faces/pipeline"}  # draws a last figure; its edits train nothing anew
    library = library_of("\n".join(cells), known)
    plumbing = [HERE / f"{name}.py" for name in ("files", "photographs", "settings")]
    plumbing.append(ROOT / "helpers.py")
    training = [cell for cell in cells if "#| export" in cell or ".backward(" in cell]
    parts = [cells + library + [path.read_text() for path in plumbing], training + library]
    texts = ["\0".join(map(code_of, part)) for part in parts]
    return tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts)


# -------------------------------------------------------------------------------------- stages


def claim(folder: Path) -> FileLock | None:
    """One run at a time in a folder, until it ends; a notebook may start stages in its own."""
    if RANK or os.environ.get("FACES_RUN") == str(folder):
        return None
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        where = os.path.relpath(folder.parent)
        sys.exit(
            f"Another run is active in {where}: wait for it, or set OUTPUT= to another folder."
        )
    os.environ["FACES_RUN"] = str(folder)
    return lock


class OwnKernel(AsyncKernelManager):
    """The kernel of this Python, whatever another environment installed as python3."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


class Series:
    """The run of one data set: its stages, their parameters, what is up to date."""

    def __init__(
        self, dataset: str, settings: dict[str, str], profile: dict[str, dict]
    ) -> None:
        self.dataset, self.settings, self.profile = dataset, settings, profile
        self.left_out: set[str] = set()
        self.root = Path(settings.get("output") or ROOT).expanduser().resolve()
        own = self.root / "data" / dataset  # where 0.2 writes
        place = own if any((own / name).is_dir() for name in SETS.values()) else ROOT / "data"
        self.data = Path(settings.get("data") or place).expanduser()
        self.folder = self.root / "runs" / dataset / "notebooks"
        self.folder.mkdir(parents=True, exist_ok=True)

    def needs(self, stage: str) -> list[str]:
        """The stages before `stage`; where DATA is given nothing is unpacked."""
        unpacked = self.dataset == "sample" and not self.settings.get("data")
        needed = [other for other in NEEDS[stage] if other != "0.1" or unpacked]
        return [other for other in needed if other not in self.left_out]

    def everything(self) -> list[str]:
        """All stages for which there are images; those left out are named."""
        if self.dataset == "sample":
            return list(NEEDS)
        pair = self.settings.get("pair")
        sets = SETS if not pair else SETS | {"4.1": pair, "4.2": pair}
        if self.settings.get("folder_a"):
            sets = {stage: name for stage, name in sets.items() if stage < "4"}
        for stage, name in sets.items():
            if not (self.data / name).is_dir():
                after = {other for other in NEEDS if stage in self.order([other])}
                after -= (
                    {"5.1"} if stage != "1.1" else set()
                )  # 5.1 works without the optional models
                where = f"there is no {name}/ in {os.path.relpath(self.data)}"
                print(f"{' '.join(sorted(after))} left out: {where}", flush=True)
                self.left_out |= after
        if "1.1" not in self.left_out and not has_identities(self.data / "celeba"):
            print("2.1 2.2 5.1 left out: no table says who is who (identity_CelebA.txt)")
            self.left_out |= {"2.1", "2.2", "5.1"}
        return [stage for stage in NEEDS if stage > "1" and stage not in self.left_out]

    def order(self, stages: list[str]) -> list[str]:
        """`stages` and all that they need, in order."""
        ordered: list[str] = []
        for stage in stages:
            before = self.order(self.needs(stage))
            ordered += [other for other in [*before, stage] if other not in ordered]
        return ordered

    def record(self, stage: str) -> dict:
        path = self.folder / f"{stage}.json"
        return json.loads(path.read_text() or "{}") if path.exists() else {}

    def inputs(self, stage: str, parameters: dict) -> str:
        """A hash that changes with the images and annotation files of a stage's folders."""
        if stage not in SETS or self.dataset == "sample":
            return ""
        names = ("photographs", "images", "masks", "folder_a", "folder_b")
        folders = [parameters[name] for name in names if parameters.get(name)]
        folders.append(self.data / parameters.get("pair", SETS[stage]))
        seen = []
        for where, inner, files in (row for folder in folders for row in os.walk(folder)):
            inner.sort()
            tables = [
                name for name in sorted(files) if name.endswith((".txt", ".csv", ".json"))
            ]
            stats = [Path(where, name).stat() for name in ["", *tables]]
            seen.append([len(files), *((stat.st_size, stat.st_mtime_ns) for stat in stats)])
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]

    def made_since(self, stage: str, clock: float) -> list[str]:
        """What a stage has written, relative to the folder that holds csv/ and runs/."""
        runs = self.folder.parent
        tables = yaml.safe_load((ROOT / "csv" / "manifests.yaml").read_text(encoding="utf-8"))
        names = [name for name in tables if tables[name]["notebook"] == stage]
        places = (self.root / "csv" / self.dataset, runs / "manifests")
        paths = [place / f"{name}.csv" for place in places for name in names]
        paths += [path for pattern in MAKES.get(stage, ()) for path in runs.glob(pattern)]
        paths += [self.root / "data" / "sample"] * (stage == "0.1")
        new = [path for path in paths if path.exists() and path.stat().st_mtime >= clock]
        return sorted(path.relative_to(self.root).as_posix() for path in new)

    def wanted(self, stage: str, asked: bool) -> dict:
        """Parameters: the profile's and the command line's; of a stage that was not asked for,
        those of its last run."""
        known = parameters_of(stage)
        names = set(known) & (set(known) if asked else EVERYWHERE)
        given = {name: text for name, text in self.settings.items() if name in names}
        given = {name: value_of(name, text, *known[name]) for name, text in given.items()}
        last = self.record(stage).get("parameters")
        start = self.profile.get(stage, {}) if asked or last is None else last
        start = {name: value for name, value in start.items() if name in known}
        if not asked:
            start = {name: v for name, v in start.items() if name not in EVERYWHERE}
        name = {} if self.dataset == "sample" else {"dataset": self.dataset}
        return start | name | given

    def bring_up_to_date(self, stage: str, asked: bool, label: str) -> None:
        """Runs a stage, unless code, parameters, inputs and the stages before are the same."""
        path, old = notebook_of(stage), self.record(stage)
        parameters = self.wanted(stage, asked)
        upstream = {other: self.record(other).get("key") for other in self.needs(stage)}
        source, training = hashes_of(nbformat.read(path, as_version=4))
        inputs = self.inputs(stage, parameters)
        now = {"inputs": inputs, "source": source, "upstream": upstream}
        compared = (set(parameters) | set(old.get("parameters", {}))) - {"output"}
        compared &= compared if asked else EVERYWHERE - NO_RESULT
        same = all(old.get("parameters", {}).get(n) == parameters.get(n) for n in compared)
        same &= {name: old.get(name) for name in now} == now
        executed = self.folder / path.name
        there = [executed, *(self.root / name for name in old.get("made", []))]
        if same and all(path.exists() for path in there):
            print(f"{label} {path.stem}: up to date", flush=True)
            return
        print(f"{label} {path.stem} ...", flush=True)
        started, clock = time.perf_counter(), time.time()
        os.environ["FACES_CODE"] = training
        if not self.execute(path, parameters, label):
            return
        seconds = round(time.perf_counter() - started, 1)
        matter = {name: v for name, v in parameters.items() if name not in NO_RESULT}
        key = json.dumps([source, matter, upstream, inputs], sort_keys=True)
        record = {
            "key": hashlib.sha256(key.encode()).hexdigest()[:16],
            **now,
            "seconds": seconds,
        }
        record |= {"parameters": parameters, "made": self.made_since(stage, clock)}
        record["cores"] = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        written = self.folder / f".{stage}.json"
        written.write_text(json.dumps(record, indent=1))
        written.replace(self.folder / f"{stage}.json")
        print(f"{label} {path.stem}: {seconds:.0f} s", flush=True)

    def execute(self, path: Path, parameters: dict, label: str) -> bool:
        """Runs a notebook; whether this process is the one that records it."""
        executed = self.folder / path.name
        ending = f".{RANK}.running.ipynb" if RANK else ".running.ipynb"
        temporary = executed.with_suffix(ending)
        options = dict(kernel_name="python3", kernel_manager_class=OwnKernel)
        options |= dict(progress_bar=False, cwd=HERE)
        try:
            papermill.execute_notebook(
                path, temporary, parameters, extra_arguments=["--log-level=40"], **options
            )
        except DeadKernelError:
            sys.exit(
                f"{label} {path.stem}: its kernel died, most often for lack of memory; lower "
                "batch_size. What was finished is kept."
            )
        except PapermillExecutionError as error:
            stopped = temporary.replace(executed.with_suffix(".stopped.ipynb"))
            sys.exit(
                f"{label} {path.stem} stopped in cell In [{error.exec_count}]: {error.ename}: "
                f"{error.evalue}\n"
                f"See {os.path.relpath(stopped)}; what was finished before it is kept."
            )
        if RANK:
            temporary.unlink()
        else:
            temporary.replace(executed)
        return not RANK


def jobs_here() -> int:
    """How many stages to run at once: two on a processor with two cores, one on a GPU.

    Small networks make poor use of two cores; two of them, on a core each, make full use.
    """
    has_gpu = shutil.which("nvidia-smi") or sys.platform == "darwin"
    return 1 if has_gpu or "RANK" in os.environ else min(2, os.cpu_count() or 1)


def share_cores(jobs: int) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))


def in_parallel(series: Series, order: list[str], asked: list[str], jobs: int) -> None:
    """Runs the stages of `order`, `jobs` at once, each when those that it needs are done.

    Where several could start, the one with the longest chain of stages behind it does. After a
    failure nothing new starts; what runs beside it is finished first.
    """
    waiting, running, failures = list(order), {}, []
    label = {stage: f"[{number}/{len(order)}]" for number, stage in enumerate(order, 1)}

    def behind(stage: str) -> int:
        return 1 + max((behind(o) for o in order if stage in series.needs(o)), default=0)

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, share_cores, (jobs,)) as pool:
        while (waiting and not failures) or running:
            busy = {*waiting, *running.values()}
            ready = [stage for stage in waiting if not busy.intersection(series.needs(stage))]
            ready.sort(key=behind, reverse=True)
            for stage in ready[: 0 if failures else jobs - len(running)]:
                work = (stage, stage in asked, label[stage])
                running[pool.submit(series.bring_up_to_date, *work)] = stage
                waiting.remove(stage)
            done: set[Future] = wait(running, return_when=FIRST_COMPLETED).done
            for future in done:
                running.pop(future)
                if error := future.exception():
                    failures.append(error)
                    print(error, file=sys.stderr, flush=True)  # the other one may take long
    if failures:
        raise SystemExit(1) from failures[0]


def finish(series: Series, tidy: bool, seconds: float) -> None:
    """Says where to look; `tidy` removes what serves to resume, or is quickly made again."""
    runs, where = series.folder.parent, os.path.relpath(series.folder)
    if tidy:
        for name in ("checkpoints", "image_cache", "segmentation"):
            shutil.rmtree(runs / name, ignore_errors=True)
    print(f"All done in {seconds / 60:.1f} minutes. To read the notebooks: make lab, {where}/")
    print("To see it on a face of your own: make photo PHOTO=me.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", help="all, or stages such as 1.4")
    parser.add_argument("--dataset", default="sample")
    parser.add_argument(
        "--profile", help="a file of profiles/; none: the notebooks' own values"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters")
    parser.add_argument("--jobs", type=int, default=0, help="stages at once; 0: as suits here")
    options = parser.parse_args()
    wrong = [item for item in options.set if "=" not in item]
    wrong += [name for name in options.stages if name not in (*NEEDS, "all")]
    if wrong:
        stages = f"all, {', '.join(NEEDS)}"
        sys.exit(f"{wrong[0]} is not valid: stages are {stages}; settings are NAME=VALUE.")
    pairs = [item.split("=", 1) for item in options.set]
    settings = {name.lower(): value for name, value in pairs}
    if "dataset" in settings:
        sys.exit("The data set is chosen by --dataset (make: DATASET=), not as a setting.")
    known = EVERYWHERE.union(*map(parameters_of, NEEDS))
    if unknown := set(settings) - known:
        sys.exit(f"No notebook has a parameter named {', '.join(sorted(unknown))}.")
    profile = profile_of(options.dataset, options.profile)
    series = Series(options.dataset, settings, profile)
    asked = series.everything() if "all" in options.stages else options.stages
    order, started = series.order(asked), time.monotonic()
    for stage in order:  # a wrong value is said before anything runs
        values = {name: value for name, (value, _) in parameters_of(stage).items()}
        try:
            check_settings(stage, values | series.wanted(stage, stage in asked))
        except ValueError as error:
            sys.exit(str(error))
    lock = claim(series.folder)
    jobs = options.jobs or (jobs_here() if len(asked) > 1 else 1)
    if jobs > 1:
        in_parallel(series, order, asked, jobs)
    else:
        for number, stage in enumerate(order, 1):
            series.bring_up_to_date(stage, stage in asked, f"[{number}/{len(order)}]")
    if "all" in options.stages and not RANK:
        quick = (options.profile or default_profile(options.dataset)) == "quick"
        finish(series, quick and series.root == ROOT, time.monotonic() - started)
    if lock:
        lock.release()


if __name__ == "__main__":
    main()

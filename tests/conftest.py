"""The real notebooks, run once in order at a small size; tests look at what they left."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

os.environ["FACES_KEEP"] = ""  # no test writes to a Drive that may be mounted

SMALL = {
    "many_persons": 8, "few_persons": 10, "photographs_few": 9, "epochs": 2, "short_epochs": 1, "channels": 16, "face_size": 32,
    "tracker": '""', "persons": 6, "batch_size": 16, "masked_faces": 12, "unpaired": 4, "covered": 3,
    "architectures": ["FPN", "Segformer"], "table_size": 64, "table_epochs": 1, "plain_epochs": 1, "best_size": 128, "best_crop": 96,
    "first_epochs": 1, "final_epochs": 1, "size": 64, "classifier_steps": 10,
}  # fmt: skip


def run_stages(output: Path, *stages: str, check: bool = True, **settings) -> subprocess.CompletedProcess:
    """`notebooks/run.py` in a process of its own, writing under `output`."""
    pairs = [f"{name}={value}" for name, value in {"output": output, **settings}.items()]
    command = [sys.executable, str(ROOT / "notebooks" / "run.py"), *stages, "--set", *pairs]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "agg"}, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def known(stages: tuple[str, ...]) -> dict:
    """Those of the small settings that the notebooks of `stages` have."""
    from notebooks.run import notebook_of, parameters_of

    names = set().union(*(parameters_of(nbformat.read(notebook_of(stage), 4)) for stage in stages))
    return {name: value for name, value in SMALL.items() if name in names}


@pytest.fixture(scope="session")
def series(tmp_path_factory) -> Path:
    """A folder in which the whole series has run on a small sample."""
    output = tmp_path_factory.mktemp("series")
    run_stages(output, "all", **SMALL)
    return output


def copy_series(series: Path, output: Path) -> None:
    """A copy to break, without the gigabyte of DeepLabV3's weights."""
    shutil.copytree(series, output, ignore=shutil.ignore_patterns("deeplabv3_*.pt", "model.pth"))


def definitions(stage: str, *names: str, **given) -> dict:
    """Runs the cells of a notebook that import or define `names` and returns what they define; `given` are parameters they use."""
    from notebooks.run import notebook_of

    space: dict = dict(given)
    for cell in nbformat.read(notebook_of(stage), 4).cells:
        heads = [f"{kind} {name}(" for name in names for kind in ("def", "class")]
        if cell.cell_type != "code" or "sys.path.insert" in cell.source:
            continue
        imports = cell.source.startswith(("import ", "from "))
        if imports or any(head in cell.source for head in heads):
            blocks = cell.source.split("\n\n\n")
            source = cell.source if imports else "\n\n\n".join(b for b in blocks if b.lstrip().startswith(("def", "class")))
            exec(compile(source, stage, "exec"), space)
    return space

"""The real notebooks, run once in order at a small size; tests look at what they wrote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks"), str(ROOT / "benchmarks")]

os.environ["FACES_KEEP"] = ""  # no test writes to a Drive that may be mounted
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each of the processes that test at once

EVERYTHING = bool(os.environ.get("FACES_TEST_EVERYTHING"))
takes_a_minute = pytest.mark.skipif(
    not EVERYTHING, reason="takes a minute: FACES_TEST_EVERYTHING=1 make test runs it"
)
SMALL = {
    "share": 0.2,
    "sample_people": 3,
    "identities": 6,
    "save_images": True,
    "start": "scratch",
    "tracker": "",
    "epochs": 2,
    "short_epochs": 1,
    "first_epochs": 1,
    "final_epochs": 1,
    "table_epochs": 1,
    "plain_epochs": 1,
    "batch_size": 16,
    "channels": 16,
    "face_size": 32,
    "size": 64,
    "table_size": 64,
    "best_size": 128,
    "best_crop": 96,
    "architectures": "FPN,Segformer",
    "classifier_steps": 10,
}


def run_command(output: Path, *stages: str, dataset: str = "sample", **settings) -> list[str]:
    """The command that runs stages of a data set, writing under `output`."""
    pairs = [f"{name}={value}" for name, value in {"output": output, **settings}.items()]
    script = str(ROOT / "notebooks" / "run.py")
    return [sys.executable, script, *stages, "--dataset", dataset, "--set", *pairs]


def run_stages(output: Path, *stages: str, check: bool = True, **settings):
    """Runs stages in a process of their own; returns the finished process with its output."""
    command = run_command(output, *stages, **settings)
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def small(*stages: str, without: tuple[str, ...] = ()) -> dict:
    """Those of the small settings that the notebooks of `stages` have."""
    from run import parameters_of

    names = set().union(*map(parameters_of, stages)) - set(without)
    return {name: value for name, value in SMALL.items() if name in names}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int:
    """`-n auto`: one process for each core, four at most."""
    return min(4, os.cpu_count() or 1)


def pytest_collection_modifyitems(items) -> None:
    """Tests of the series first: one process runs it while the other has the rest."""
    items.sort(key=lambda item: "series" not in item.fixturenames)


@pytest.fixture(scope="session")
def series(tmp_path_factory, worker_id) -> Path:
    """A folder in which the whole series has run on a small sample, once for all processes."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    output, done = shared / "series", shared / "series.done"
    with FileLock(shared / "series.lock"):
        if not done.exists():
            run_stages(output, "all", **SMALL)
            done.touch()
    return output


def copy_series(series: Path, output: Path) -> None:
    """A copy to break, without the gigabyte of states that only a resumed training reads."""

    def heavy(folder: str, names: list[str]) -> list[str]:
        states = {"checkpoints": ("deeplabv3", "recognition"), "sample": ("deeplabv3",)}
        states = states.get(Path(folder).name, ())
        heavy = [name for name in names if states and name.startswith(states)]
        heavy += ["segmentation"] * (Path(folder).parts[-2:] == ("runs", "sample"))
        return [name for name in heavy if not name.endswith(".csv")]

    shutil.copytree(series, output, ignore=heavy)

"""The series in order: what each stage writes, nothing done twice, failures named."""

import functools
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import (
    copy_series,
    EVERYTHING,
    ROOT,
    run_command,
    run_stages,
    SMALL,
    small,
    takes_a_minute,
)
from filelock import FileLock
from run import hashes_of, NEEDS, notebook_of, parameters_of, profile_of, Series, value_of

import helpers
from faces import alignment, crops

TAGS = ("parameters", "gallery")


def manifest(series, name):
    path = series / "csv" / "sample" / f"{name}.csv"
    return pd.read_csv(path, dtype={"image_id": str, "stage": str})


@pytest.mark.parametrize("stage", NEEDS)
def test_notebook_ran_in_order_without_errors(series, stage):
    notebook = nbformat.read(
        series / "runs" / "sample" / "notebooks" / notebook_of(stage).name, 4
    )
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        output for cell in cells for output in cell.outputs if output.output_type == "error"
    ]


def code_cells(stage):
    return [c for c in nbformat.read(notebook_of(stage), 4).cells if c.cell_type == "code"]


@pytest.mark.parametrize("stage", NEEDS)
def test_notebook_keeps_the_rules(stage):
    notebook = nbformat.read(notebook_of(stage), 4)
    cells, texts = code_cells(stage), [c for c in notebook.cells if c.cell_type == "markdown"]
    assert cells[0].source == code_cells("0.1")[0].source, "one bootstrap cell for all"
    assert texts[1].source.startswith(f"# {stage} "), "the title follows the badge"
    assert "\n> " in texts[1].source, "and one sentence says what it is"
    tagged = {tag: [c for c in cells if tag in c.metadata.get("tags", [])] for tag in TAGS}
    assert all(len(found) == 1 for found in tagged.values()), "one cell of each"
    for cell in cells:
        limit = 40 if re.search(r"^class ", cell.source, re.M) else 30
        lines = cell.source.splitlines()
        assert len(lines) <= limit or cell in tagged["parameters"], cell.source[:200]
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("stage", NEEDS)
def test_parameters_are_explicit(stage):
    """No None that is looked up later; folders and files are marked as such for the runner."""
    found = parameters_of(stage)
    assert all(value is not None for value, _ in found.values())
    paths = {"data", "output", "photographs", "images", "weights", "encoder_weights"}
    for name in paths & set(found):
        assert re.match("folder|file", found[name][1]), f"the comment of {name}"


def test_the_library_is_what_the_notebooks_export(tmp_path):
    from export import export

    ignored = shutil.ignore_patterns("pictures", "__pycache__", "weights")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=ignored)
    for path in (tmp_path / "notebooks/faces").glob("*.py"):
        if path.name != "__init__.py":
            path.unlink()
    export(tmp_path / "notebooks")
    fresh, committed = (
        {path.name: path.read_bytes() for path in folder.glob("*.py")}
        for folder in (tmp_path / "notebooks/faces", ROOT / "notebooks/faces")
    )
    assert set(fresh) == set(committed)
    assert [name for name in fresh if fresh[name] != committed[name]] == [], "make export"


def test_the_library_is_imported_in_plain_python(tmp_path):
    """Also where the clone itself, a folder called faces, lies in the working directory."""
    (tmp_path / "faces").mkdir()
    code = "from faces import landmarks; print(landmarks.LandmarkModel.__name__)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "notebooks")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "LandmarkModel\n", done.stderr


def test_the_plumbing_is_small_and_shared():
    """helpers.py has under 450 lines, and no name that a single file uses."""
    assert len((ROOT / "helpers.py").read_text().splitlines()) < 450
    source = (ROOT / "helpers.py").read_text()
    files = [*(ROOT / "notebooks").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    texts = [path.read_text() for path in files]
    texts += ["\n".join(cell.source for cell in code_cells(stage)) for stage in NEEDS]
    names = re.findall(r"^(?:def |class )?([A-Za-z]\w+)(?:\(| =|:)", source, re.M)
    assert {"reject", "Checkpoint", "POINTS"} <= set(names)
    for name in set(names):
        used = re.compile(rf"helpers\.{name}\b|from helpers import [^\n]*\b{name}\b")
        users = sum(bool(used.search(text)) for text in texts)
        inside = len(re.findall(rf"\b{name}\b", source)) > 1
        assert users > 1 or (users == 0 and inside), f"{name} has {users} users"


def test_second_run_does_nothing(series):
    done = run_stages(series, "all", **SMALL)
    assert done.stdout.count("up to date") == len(NEEDS)


def test_split_shares_no_image_and_no_unseen_identity(series):
    selected, train, val = (manifest(series, name) for name in ("selected", "train", "val"))
    assert not set(train["image_id"]) & set(val["image_id"])
    assert (train.groupby("identity").size() == 12).all()
    assert (val.groupby("identity").size() == 4).all()
    assert set(train["identity"]) == set(val["identity"])
    unseen = set(selected.query("split == 'unseen'")["identity"])
    assert unseen
    others = selected.query("split not in ['unseen', 'landmark_test']")
    assert not unseen & set(others["identity"])


def test_rows_in_are_rows_out_plus_rejected(series):
    selected, cropped, rejected = (
        manifest(series, name) for name in ("selected", "cropped_landmarks", "rejected")
    )
    here = rejected.query("stage == '1.3'")
    assert len(selected) == len(cropped) + len(here)
    assert len(list((series / "runs/sample/Cropped").glob("*.jpg"))) == len(cropped)


def test_wrong_boxes_are_rejected_with_the_reason(series):
    reasons = manifest(series, "rejected").query("stage == '1.1'")["reason"]
    assert (reasons == "the box does not hold its landmarks").sum() >= 1


def test_crop_matrix_moves_the_landmarks(series):
    cropped = manifest(series, "cropped_landmarks").set_index("image_id")
    selected = manifest(series, "selected").set_index("image_id").loc[cropped.index]
    moved = crops.apply_affine(helpers.matrices_of(cropped), helpers.landmarks_of(selected))
    np.testing.assert_allclose(moved, helpers.landmarks_of(cropped), atol=0.05)


def test_reports_agree_with_their_photographs(series):
    val = manifest(series, "val").set_index("image_id")["label"]
    for loss in ("ce", "arcface"):
        report = manifest(series, f"val_report_{loss}_loss").set_index("image_id")
        assert (report["label"] == val.loc[report.index]).all()
        assert (report["is_recognized"] == (report["label"] == report["predicted"])).all()
        assert len(report) == len(val)
    verification = manifest(series, "verification_report")
    assert set(verification["loss"]) == {"ce", "arcface"}
    tar = verification.pivot(index="far", columns="loss", values="tar").sort_index()
    assert (tar.diff().dropna() >= 0).all().all(), "more false accepts allow more true ones"


def test_alignment_puts_the_points_on_the_template(series):
    predicted = manifest(series, "predicted_landmarks").set_index("image_id")
    for count, exact in ((2, 2), (3, 3)):
        aligned = (
            manifest(series, f"aligned_{count}").set_index("image_id").loc[predicted.index]
        )
        points = crops.apply_affine(
            helpers.matrices_of(aligned), helpers.landmarks_of(predicted)
        )
        error = np.abs(points[:, :exact] - alignment.TEMPLATE[:exact]).max((1, 2))
        assert np.median(error) < 0.1
    five, two = (manifest(series, f"aligned_{count}")["residual"] for count in (5, 2))
    assert (five <= two + 1e-3).all(), "least squares is the best similarity"


def test_weights_are_loaded_and_not_trained(series, tmp_path):
    output = tmp_path / "copy"
    copy_series(series, output)
    before = manifest(output, "landmark_report")
    weights = output / "runs/sample/landmarks"
    stamp = (weights / "model.safetensors").stat().st_mtime_ns
    (output / "csv/sample/landmark_report.csv").unlink()
    run_stages(output, "1.4", weights=weights, **small("1.4", without=("epochs",)))
    assert (weights / "model.safetensors").stat().st_mtime_ns == stamp
    pd.testing.assert_frame_equal(manifest(output, "landmark_report"), before, rtol=1e-3)


def test_weights_serve_other_identities(series, tmp_path):
    """With one person fewer the head no longer fits: backbone and neck are kept."""
    output = tmp_path / "others"
    copy_series(series, output)
    for name in ("train", "val"):
        frame = manifest(output, name).query("label > 0")
        frame = frame.assign(label=frame["label"] - 1)
        frame.to_csv(output / f"csv/sample/{name}.csv", index=False)
    for loss, stage in (("ce", "2.1"), ("arcface", "2.2"))[0 if EVERYTHING else 1 :]:
        (output / f"csv/sample/val_report_{loss}_loss.csv").unlink()
        settings = small(stage, without=("epochs", "short_epochs"))
        weights = output / f"runs/sample/recognition_{loss}"
        run_stages(output, stage, weights=weights, **settings)
        report = manifest(output, f"val_report_{loss}_loss")
        assert set(report["label"]) == set(manifest(output, "val")["label"])


def test_selection_is_the_same_twice(series, tmp_path):
    output = tmp_path / "again"
    copy_series(series, output)
    (output / "runs/sample/notebooks/1.1.json").unlink()
    run_stages(output, "1.1", **small("1.1"))
    for name in ("selected", "train", "val"):
        assert (output / f"csv/sample/{name}.csv").read_bytes() == (
            series / f"csv/sample/{name}.csv"
        ).read_bytes()


@pytest.mark.parametrize(
    ("stage", "folder"),
    [
        pytest.param("1.4", "stacked_hourglass", marks=takes_a_minute),
        pytest.param("2.1", "recognition_ce", marks=takes_a_minute),
        ("2.2", "recognition_arcface"),
        pytest.param("4.1", "cyclegan_horse2zebra", marks=takes_a_minute),
    ],
)
def test_killed_training_resumes_to_the_same_numbers(series, tmp_path, stage, folder):
    """kill -9 after the first epoch; the next run ends with an uninterrupted run's numbers."""
    output = tmp_path / "killed"
    copy_series(series, output)
    checkpoints = output / "runs/sample/checkpoints"
    uninterrupted = pd.read_csv(checkpoints / f"{folder}_history.csv")
    shutil.rmtree(checkpoints / folder, ignore_errors=True)
    (output / f"runs/sample/notebooks/{stage}.json").unlink()
    command = run_command(output, stage, **small(stage))
    silent = subprocess.DEVNULL
    running = subprocess.Popen(command, stdout=silent, stderr=silent)
    progress, deadline = checkpoints / folder / "progress.json", time.monotonic() + 240
    while not progress.exists():
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = psutil.Process(running.pid)
    for one in [*process.children(recursive=True), process]:
        one.kill()
    running.wait()
    epochs = len(json.loads(progress.read_text())["history"])
    assert epochs == 1, "killed too late to prove anything"
    run_stages(output, stage, **small(stage))
    resumed = pd.read_csv(checkpoints / f"{folder}_history.csv")
    columns = [column for column in resumed if column != "seconds"]
    pd.testing.assert_frame_equal(resumed[columns], uninterrupted[columns], rtol=1e-4)


def test_deleted_manifest_is_made_again(series, tmp_path):
    output = tmp_path / "deleted"
    copy_series(series, output)
    (output / "csv/sample/cropped_landmarks.csv").unlink()
    done = run_stages(output, "1.3")
    assert "1.1_subset_selection: up to date" in done.stdout
    assert "1.3_face_crops: up to date" not in done.stdout
    pd.testing.assert_frame_equal(
        manifest(output, "cropped_landmarks"), manifest(series, "cropped_landmarks")
    )


@takes_a_minute
def test_deleted_model_is_made_again(series, tmp_path):
    output = tmp_path / "deleted"
    copy_series(series, output)
    shutil.rmtree(output / "runs/sample/landmarks")
    done = run_stages(output, "1.4", **small("1.4"))
    assert "1.3_face_crops: up to date" in done.stdout
    assert (output / "runs/sample/landmarks/model.safetensors").exists()


def test_a_comment_changes_nothing_and_a_loss_starts_afresh():
    """A checkpoint belongs to the code that trains, not to figures, comments and layout."""
    notebook = nbformat.read(notebook_of("1.4"), 4)
    code, training = hashes_of(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    loop = next(cell for cell in cells if "accelerator.backward(loss)" in cell.source)
    loop.source += "\n# a remark"
    assert hashes_of(notebook) == (code, training)
    cells[-1].source += "\nprint(1)"
    assert hashes_of(notebook)[0] != code
    assert hashes_of(notebook)[1] == training
    loss = next(cell for cell in cells if "def heatmap_loss" in cell.source)
    loss.source = loss.source.replace("10 * distance", "5 * distance")
    assert hashes_of(notebook)[1] != training


@pytest.mark.parametrize(
    ("stage", "name", "text", "value"),
    [
        ("3.2", "architectures", "FPN", ["FPN"]),
        ("3.2", "architectures", "FPN,Unet", ["FPN", "Unet"]),
        ("3.2", "architectures", "['FPN']", ["FPN"]),
        ("3.2", "architectures", "[]", []),
        ("2.1", "alignment", "5", "5"),
        ("2.1", "use_spare", "true", True),
        ("2.1", "epochs", "3", 3),
        ("2.2", "margin", "0.3", 0.3),
        ("1.1", "unseen_people", "12", "12"),
    ],
)
def test_settings_have_the_types_of_the_parameters_cell(stage, name, text, value):
    read = value_of(name, text, *parameters_of(stage)[name])
    assert (type(read), read) == (type(value), value)


def test_paths_on_the_command_line_are_those_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    known = parameters_of("1.4")
    assert value_of("data", "mine", *known["data"]) == str(tmp_path / "mine")
    assert value_of("output", "new", *known["output"]) == str(tmp_path / "new")
    assert value_of("weights", "owner/model", *known["weights"]) == "owner/model", "a hub id"


def test_the_command_line_wins_over_the_profile(tmp_path):
    settings = {"output": str(tmp_path), "epochs": "3"}
    series = Series("sample", settings, profile_of("sample", None))
    assert series.wanted("1.4", asked=True)["epochs"] == 3
    assert series.wanted("2.1", asked=True)["face_size"] == 64, "of quick.yaml"
    real = Series("family", {"output": str(tmp_path)}, profile_of("family", None))
    assert real.wanted("1.4", asked=True)["epochs"] == 14, "of celeba.yaml"
    assert profile_of("family", "none") == {}
    for profile in ("quick", "outputs", "celeba"):
        assert profile_of("sample", profile)
    with pytest.raises(SystemExit, match="There is no profile fast"):
        profile_of("sample", "fast")


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("9.9", "SEED=1"),
        ("1.1", "SEED"),
        ("1.1", "DATASET=celeba"),
        ("1.4", "EPOCHS=0"),
        ("1.4", "BATCH_SIZE=many"),
        ("2.1", "USE_SPARE=perhaps"),
    ],
)
def test_an_invalid_command_is_refused(tmp_path, stage, setting):
    command = [sys.executable, str(ROOT / "notebooks/run.py"), stage]
    command += ["--set", f"OUTPUT={tmp_path}", setting]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.rglob("*.ipynb")) == []


def test_an_exchanged_annotation_file_is_noticed(series, tmp_path):
    """A set of one's own: unchanged it is up to date; with fewer rows it is selected anew."""
    shutil.copytree(series / "data/sample/celeba", tmp_path / "data/celeba")
    settings = {"data": tmp_path / "data", "images_each": 16, **small("1.1")}
    again = lambda: run_stages(tmp_path, "1.1", dataset="family", **settings).stdout  # noqa: E731
    printed = [again(), again()]
    identities = tmp_path / "data/celeba/Anno/identity_CelebA.txt"
    lines = identities.read_text().splitlines(keepends=True)
    identities.write_text("".join(lines[:-2]))
    printed.append(again())
    assert ["up to date" in text for text in printed] == [False, True, False]


def test_missing_column_is_named(series, tmp_path):
    output = tmp_path / "column"
    copy_series(series, output)
    path = output / "csv/sample/selected.csv"
    pd.read_csv(path).drop(columns="box_width").to_csv(path, index=False)
    (output / "runs/sample/notebooks/1.3.json").unlink()
    done = run_stages(output, "1.3", check=False)
    assert done.returncode != 0
    assert "box_width" in done.stdout + done.stderr
    assert "selected.csv" in done.stdout + done.stderr
    assert "1.3_face_crops stopped in cell In [" in done.stdout + done.stderr


def test_bad_photographs_are_set_aside(series, tmp_path):
    """Truncated, empty, missing and blank ones are rejected; others are cropped as before."""
    from PIL import Image

    output = tmp_path / "bad"
    copy_series(series, output)
    before = manifest(output, "cropped_landmarks")
    names = before["image_id"].tolist()[:4]
    folder = output / "data/sample/celeba/img_celeba"
    (folder / names[0]).write_bytes((folder / names[0]).read_bytes()[:1500])
    (folder / names[1]).write_bytes(b"")
    (folder / names[2]).unlink()
    Image.new("RGB", (178, 218), (40, 40, 40)).save(folder / names[3])
    (output / "runs/sample/notebooks/1.3.json").unlink()
    run_stages(output, "1.3", **small("1.3"))
    rejected = (
        manifest(output, "rejected").query("stage == '1.3'").set_index("image_id")["reason"]
    )
    assert set(names) <= set(rejected.index)
    assert "decoded" in rejected[names[0]]
    assert "no such photograph" in rejected[names[2]]
    after = manifest(output, "cropped_landmarks")
    assert set(after["image_id"]) == set(before["image_id"]) - set(names)


def test_unknown_setting_is_refused(series):
    done = run_stages(series, "1.4", check=False, epoch=3)
    assert done.returncode != 0
    assert "epoch" in done.stderr


def test_all_leaves_out_what_has_no_images(tmp_path, capsys):
    (tmp_path / "celeba").mkdir()
    (tmp_path / "celeba" / "identity_CelebA.txt").write_text("1.jpg 1")
    family = Series("family", {"data": str(tmp_path), "output": str(tmp_path)}, {})
    assert family.everything() == ["1.1", "1.2", "1.3", "1.4", "1.5", "2.1", "2.2", "5.1"]
    expected = ["1.1", "1.3", "1.4", "1.5", "2.1", "2.2", "5.1"]
    assert family.order(["5.1"]) == expected, "5.1 works without the optional models"
    assert "3.1 3.2 3.3 3.4 left out: there is no CelebAMask-HQ/ in" in capsys.readouterr().out
    sample = Series("sample", {"output": str(tmp_path)}, {})
    assert sample.everything() == list(NEEDS)
    assert sample.order(["3.2"]) == ["0.1", "3.1", "3.2"]
    given = Series("sample", {"output": str(tmp_path), "data": str(tmp_path)}, {})
    assert given.order(["3.2"]) == ["3.1", "3.2"], "nothing is unpacked"


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    folder = tmp_path / "runs/sample/notebooks"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        done = run_stages(tmp_path, "1.1", check=False)
    assert done.returncode != 0
    assert "Another run is active in" in done.stderr
    assert "OUTPUT=" in done.stderr
    assert list(folder.iterdir()) == [folder / ".lock"], "it has touched nothing"


def test_a_person_with_one_image_is_left_out(series, tmp_path):
    """One image gets a new identity: nobody can be trained and tested on it."""
    output = tmp_path / "single"
    copy_series(series, output)
    name = manifest(output, "train")["image_id"].iloc[0]
    path = output / "data/sample/celeba/Anno/identity_CelebA.txt"
    lines = path.read_text().splitlines()
    lines = [f"{name} 99999" if line.startswith(f"{name} ") else line for line in lines]
    path.write_text("\n".join(lines))
    (output / "runs/sample/notebooks/1.1.json").unlink()
    run_stages(output, "1.1", **small("1.1"))
    both = pd.concat([manifest(output, "train"), manifest(output, "val")])
    assert name not in set(both["image_id"])
    assert 99999 not in set(both["identity"])


@pytest.fixture(scope="session")
def repository(series, tmp_path_factory):
    """The project as a git repository, with the manifests of the small series committed."""
    origin = tmp_path_factory.mktemp("origin") / "faces"
    ignored = shutil.ignore_patterns(".venv", "runs", "data", ".git", "__pycache__")
    shutil.copytree(ROOT, origin, ignore=ignored)
    shutil.rmtree(origin / "csv/sample", ignore_errors=True)
    shutil.copytree(series / "csv/sample", origin / "csv/sample")
    commit = ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "all"]
    for command in (["init", "-q"], ["add", "-A"], commit):
        subprocess.run(["git", *command], cwd=origin, check=True)
    return origin


QUICK = ("1.2", "3.1")  # to run alone; of the others each takes a minute
ALONE = [s if s in QUICK else pytest.param(s, marks=takes_a_minute) for s in NEEDS]


@pytest.mark.parametrize("stage", ALONE)
def test_alone_in_an_empty_folder(series, repository, tmp_path, stage):
    """As in Colab: a notebook in an empty folder, the repository by git, Colab a stand-in."""
    path = notebook_of(stage)
    shutil.copy(path, tmp_path)
    (tmp_path / "google/colab").mkdir(parents=True)
    (tmp_path / "google/colab/__init__.py").write_text("files = output = None\n")
    values = profile_of("sample", "quick").get(stage, {})
    texts = small(stage) | ({} if stage == "0.1" else {"data": series / "data/sample"})
    known = parameters_of(stage)
    values |= {name: value_of(name, str(text), *known[name]) for name, text in texts.items()}
    pairs = [[f"{name}: {json.dumps(value)}"] for name, value in values.items()]
    pairs = [item for pair in pairs for item in ("-y", *pair)]
    command = [sys.executable, "-m", "papermill", path.name, "out.ipynb", "-k", "python3"]
    more = {"FACES_REPOSITORY": str(repository), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "--no-progress-bar", *pairs],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", **more},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "faces/helpers.py").exists()
    cells = nbformat.read(tmp_path / "out.ipynb", 4).cells
    printed = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
    assert not any(text.startswith("Installing") for text in printed), "nothing was missing"
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=tmp_path / "faces", capture_output=True, text=True
    )
    assert status.stdout == "", "what is committed stays as it is"


# ------------------------------------------------------------------------------------- set-up


@pytest.fixture
def index(tmp_path):
    """A stand-in for PyTorch's package index, with a page for torch."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/index.html").write_text("torch-2.14.1+cpu")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pip's torch has no CUDA")
def test_torch_without_cuda_is_chosen_where_there_is_no_card(index, monkeypatch):
    import install_torch

    has_card = [False]
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/nvidia-smi" * has_card[0])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert install_torch.chosen_index(index) == index
    assert install_torch.chosen_index(f"{index}/nowhere") == "", "no page for torch"
    assert install_torch.chosen_index("http://127.0.0.1:9") == "", "nobody answers"
    has_card[0] = True
    assert install_torch.chosen_index(index) == "", "CUDA is of use"
    has_card[0] = False
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "a torch")
    assert install_torch.chosen_index(index) == "", "a torch that is there stays"


def test_an_index_that_does_not_answer_is_not_waited_for(monkeypatch):
    import install_torch

    monkeypatch.setattr(install_torch, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        started = time.monotonic()
        assert not install_torch.answers(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < 5


def test_a_failure_beside_another_stage_is_named_and_ends_the_run(series, tmp_path):
    """Two stages at once: what can run does, what needs the broken one does not start."""
    output = tmp_path / "broken"
    copy_series(series, output)
    for stage in ("1.1", "1.2", "3.1"):
        (output / f"runs/sample/notebooks/{stage}.json").unlink()
    (output / "data/sample/celeba/Anno/list_bbox_celeba.txt").write_text("")
    command = run_command(output, "1.2", "3.1", **small("1.2", "3.1"))
    at = command.index("--set")
    command[at:at] = ["--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1.1_subset_selection stopped" in done.stderr
    assert "list_bbox_celeba.txt" in done.stderr
    assert "3.1_mask_merging: " in done.stdout, "it needs nothing that is broken"
    assert "1.2_boxes" not in done.stdout

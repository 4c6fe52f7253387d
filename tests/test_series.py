"""The series in order: what each stage leaves, that nothing is done twice, that failures are named."""

import json
import os
import shutil
import subprocess
import sys
import time

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import copy_series, known, ROOT, run_stages, SMALL
from filelock import FileLock

import helpers
from notebooks.run import NEEDS, notebook_of, Series


def manifest(series, name):
    return pd.read_csv(series / "csv" / "sample" / f"{name}.csv", dtype={"image_id": str, "stage": str})


@pytest.mark.parametrize("stage", NEEDS)
def test_notebook_ran_in_order_without_errors(series, stage):
    notebook = nbformat.read(series / "runs" / "sample" / "notebooks" / notebook_of(stage).name, 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("stage", NEEDS)
def test_notebook_keeps_the_house_rules(stage):
    notebook = nbformat.read(notebook_of(stage), 4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    first = nbformat.read(notebook_of("0.1"), 4)
    assert code[0] == next(cell.source for cell in first.cells if cell.cell_type == "code"), "one bootstrap cell for all"
    assert max(len(source.splitlines()) for source in code) <= 50
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    assert "widgets" not in notebook.metadata


def test_second_run_does_nothing(series):
    done = run_stages(series, "all", **SMALL)
    assert done.stdout.count("up to date") == len(NEEDS)


def test_split_shares_no_photograph_and_no_unseen_person(series):
    selected, train, val = (manifest(series, name) for name in ("selected", "train", "val"))
    assert not set(train["image_id"]) & set(val["image_id"])
    assert (train.groupby("identity").size() == 12).all()
    assert (val.groupby("identity").size() == 4).all()
    assert set(train["identity"]) == set(val["identity"])
    unseen = set(selected.query("split == 'unseen'")["identity"])
    assert unseen
    assert not unseen & set(selected.query("split != 'unseen'")["identity"])


def test_rows_in_are_rows_out_plus_rejected(series):
    selected, cropped, rejected = (manifest(series, name) for name in ("selected", "cropped_landmarks", "rejected"))
    here = rejected.query("stage == '1.3'")
    assert len(selected) == len(cropped) + len(here)
    assert len(list((series / "runs/sample/Cropped").glob("*.jpg"))) == len(cropped)


def test_wrong_boxes_are_rejected_with_the_reason(series):
    reasons = manifest(series, "rejected").query("stage == '1.1'")["reason"]
    assert (reasons == "the box does not hold its landmarks").sum() >= 1


def test_crop_matrix_moves_the_landmarks(series):
    cropped = manifest(series, "cropped_landmarks").set_index("image_id")
    selected = manifest(series, "selected").set_index("image_id").loc[cropped.index]
    moved = helpers.apply_affine(helpers.matrices_of(cropped), helpers.landmarks_of(selected))
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
        aligned = manifest(series, f"aligned_{count}").set_index("image_id").loc[predicted.index]
        points = helpers.apply_affine(helpers.matrices_of(aligned), helpers.landmarks_of(predicted))
        error = np.abs(points[:, :exact] - helpers.TEMPLATE_112[:exact]).max((1, 2))
        assert np.median(error) < 0.1
    five, two = (manifest(series, f"aligned_{count}")["residual"] for count in (5, 2))
    assert (five <= two + 1e-3).all(), "least squares is the best similarity"


def test_weights_are_loaded_and_not_trained(series, tmp_path):
    output = tmp_path / "copy"
    copy_series(series, output)
    before = manifest(output, "landmark_report")
    weights = output / "runs/sample/model_params_stackedhourglass.pt"
    stamp = weights.stat().st_mtime_ns
    (output / "csv/sample/landmark_report.csv").unlink()
    settings = {name: value for name, value in known(("1.4",)).items() if name != "epochs"}
    done = run_stages(output, "1.4", weights=weights, **settings)
    assert "1.4_stacked_hourglass:" in done.stdout
    assert weights.stat().st_mtime_ns == stamp
    pd.testing.assert_frame_equal(manifest(output, "landmark_report"), before, rtol=1e-3)


def test_weights_serve_another_set_of_persons(series, tmp_path):
    """With one person fewer the head no longer fits: trunk and neck are kept, centres come from the training photographs."""
    output = tmp_path / "others"
    copy_series(series, output)
    for name in ("train", "val"):
        frame = manifest(output, name).query("label > 0")
        frame.assign(label=frame["label"] - 1).to_csv(output / f"csv/sample/{name}.csv", index=False)
    for loss, stage in (("ce", "2.1"), ("arcface", "2.2")):
        (output / f"csv/sample/val_report_{loss}_loss.csv").unlink()
        weights = output / f"runs/sample/model_params_resnet18_{loss}_loss.pt"
        settings = {name: value for name, value in known((stage,)).items() if not name.endswith("epochs")}
        run_stages(output, stage, weights=weights, **settings)
        report = manifest(output, f"val_report_{loss}_loss")
        assert set(report["label"]) == set(manifest(output, "val")["label"])


def test_selection_is_the_same_twice(series, tmp_path):
    output = tmp_path / "again"
    run_stages(output, "0.1", "1.1", **known(("0.1", "1.1")))
    for name in ("selected", "train", "val"):
        assert (output / f"csv/sample/{name}.csv").read_bytes() == (series / f"csv/sample/{name}.csv").read_bytes()


@pytest.mark.parametrize(
    ("stage", "folder"),
    [("1.4", "stacked_hourglass"), ("2.1", "resnet18_ce_loss"), ("2.2", "resnet18_arcface_loss"), ("4.1", "cyclegan_horse2zebra")],
)
def test_killed_training_resumes_to_the_same_numbers(series, tmp_path, stage, folder):
    """kill -9 after the first epoch; the second run must end with the numbers of an uninterrupted one."""
    output = tmp_path / "killed"
    copy_series(series, output)
    checkpoints = output / "runs/sample/checkpoints"
    uninterrupted = pd.read_csv(checkpoints / f"{folder}_history.csv")
    shutil.rmtree(checkpoints / folder)
    (output / f"runs/sample/notebooks/{stage}.json").unlink()
    pairs = [f"{name}={value}" for name, value in {"output": output, **known((stage,))}.items()]
    command = [sys.executable, str(ROOT / "notebooks/run.py"), stage, "--set", *pairs]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress, deadline = checkpoints / folder / "progress.json", time.monotonic() + 240
    while not progress.exists():
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]:
        process.kill()
    running.wait()
    done_epochs = len(json.loads(progress.read_text())["history"])
    assert done_epochs == 1, "killed too late to prove anything"
    run_stages(output, stage, **known((stage,)))
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
    pd.testing.assert_frame_equal(manifest(output, "cropped_landmarks"), manifest(series, "cropped_landmarks"))


def test_deleted_program_is_made_again(series, tmp_path):
    output = tmp_path / "deleted"
    copy_series(series, output)
    (output / "runs/sample/stacked_hourglass.pt2").unlink()
    done = run_stages(output, "1.4", **known(("1.4",)))
    assert "1.3_face_crops: up to date" in done.stdout
    assert (output / "runs/sample/stacked_hourglass.pt2").exists()


def test_committed_figures_keep_the_colours_of_rare_parts():
    """Seventy pixels of each part's colour in a picture of many others are still nearest to that colour."""
    import base64
    import io

    from PIL import Image

    from notebooks.run import smaller

    ramp = np.linspace(0, 255, 240)
    picture = np.stack([*np.meshgrid(ramp, ramp), np.full((240, 240), 120.0)], 2).astype(np.uint8)
    for index, colour in enumerate(helpers.PART_COLOURS):
        picture[12 * index : 12 * index + 6, :12] = colour
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "PNG", compress_level=0)
    kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(smaller(base64.b64encode(written.getvalue()).decode())))).convert("RGB"))
    colours = helpers.PART_COLOURS.astype(int)
    seen = [kept[12 * index : 12 * index + 6, :12].reshape(-1, 3).mean(0) for index in range(len(colours))]
    nearest = [int(np.abs(colours - one).max(1).argmin()) for one in seen]
    assert nearest == list(range(len(colours)))


def test_settings_are_read_as_they_are_written():
    from notebooks.run import value_of

    assert [value_of("views", text) for text in ("false", "True", "none")] == [False, True, None]
    assert value_of("epochs", "3") == 3
    assert value_of("unseen_persons", "None") is None


@pytest.mark.parametrize(
    ("stage", "setting"), [("9.9", "SEED=1"), ("1.1", "SEED"), ("1.1", "DATASET=celeba"), ("1.4", "EPOCHS=0"), ("1.4", "BATCH_SIZE=many")]
)
def test_a_command_that_cannot_be_meant_is_refused(tmp_path, stage, setting):
    command = [sys.executable, str(ROOT / "notebooks/run.py"), stage, "--set", f"OUTPUT={tmp_path}", setting]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_an_exchanged_annotation_file_is_noticed(series, tmp_path):
    """A data set of one's own: unchanged it is up to date; with fewer rows it is selected from again."""
    shutil.copytree(series / "data/sample/celeba", tmp_path / "data/celeba")
    settings = {"dataset": "family", "data": tmp_path / "data", "photographs_each": 16, **known(("1.1",))}
    command = [sys.executable, str(ROOT / "notebooks/run.py"), "1.1", "--dataset", settings.pop("dataset"), "--set", f"OUTPUT={tmp_path}"]
    command += [f"{name}={value}" for name, value in settings.items()]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    identities = tmp_path / "data/celeba/Anno/identity_CelebA.txt"
    identities.write_text("".join(identities.read_text().splitlines(keepends=True)[:-2]))
    outputs.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert ["up to date" in output for output in outputs] == [False, True, False]


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
    """A truncated, an empty, a missing and a blank photograph end in `rejected`; the others are cropped as before."""
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
    run_stages(output, "1.3", **known(("1.3",)))
    rejected = manifest(output, "rejected").query("stage == '1.3'").set_index("image_id")["reason"]
    assert set(names) <= set(rejected.index)
    assert "decoded" in rejected[names[0]]
    assert "no such photograph" in rejected[names[2]]
    after = manifest(output, "cropped_landmarks")
    assert set(after["image_id"]) == set(before["image_id"]) - set(names)


def test_unknown_setting_is_refused(series):
    done = run_stages(series, "1.4", check=False, epoch=3)
    assert done.returncode != 0
    assert "epoch" in done.stderr


def test_all_leaves_out_what_has_no_pictures(tmp_path, capsys):
    (tmp_path / "celeba").mkdir()
    family = Series("family", {"data": str(tmp_path), "output": str(tmp_path)})
    assert family.everything() == ["1.1", "1.2", "1.3", "1.4", "1.5", "2.1", "2.2", "5.1"]
    assert family.order(["5.1"]) == ["1.1", "1.3", "1.4", "1.5", "2.1", "2.2", "5.1"], "5.1 does without the other rooms"
    assert "3.1 3.2 3.3 3.4 left out: there is no CelebAMask-HQ/ in" in capsys.readouterr().out
    assert Series("sample", {"output": str(tmp_path)}).everything() == list(NEEDS)
    assert Series("sample", {"output": str(tmp_path)}).order(["3.2"]) == ["0.1", "3.1", "3.2"]
    assert Series("sample", {"output": str(tmp_path), "data": str(tmp_path)}).order(["3.2"]) == ["3.1", "3.2"], "nothing is drawn"


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    folder = tmp_path / "runs/sample/notebooks"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        done = run_stages(tmp_path, "1.1", check=False)
    assert done.returncode != 0
    assert "Another run is at work in" in done.stderr
    assert "OUTPUT=" in done.stderr
    assert list(folder.iterdir()) == [folder / ".lock"], "it has touched nothing"


def test_a_person_with_one_photograph_is_left_out(series, tmp_path):
    """One photograph gets a new identity: nobody can be trained and judged on it, so it is in no split of persons."""
    output = tmp_path / "single"
    copy_series(series, output)
    name = manifest(output, "train")["image_id"].iloc[0]
    path = output / "data/sample/celeba/Anno/identity_CelebA.txt"
    lines = [f"{name} 99999" if line.startswith(f"{name} ") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    (output / "runs/sample/notebooks/1.1.json").unlink()
    run_stages(output, "1.1", **known(("1.1",)))
    assert name not in set(manifest(output, "train")["image_id"]) | set(manifest(output, "val")["image_id"])
    assert 99999 not in set(manifest(output, "train")["identity"]) | set(manifest(output, "val")["identity"])


@pytest.mark.parametrize("fault", ["out of range", "two persons with one label", "one person with two labels"])
def test_a_wrong_label_is_named(series, tmp_path, fault):
    output = tmp_path / "labels"
    shutil.copytree(series / "csv", output / "csv")
    frame = manifest(output, "train")
    last = frame["label"] == frame["label"].max()
    if fault == "one person with two labels":
        frame.loc[frame.index[last][0], "label"] = 0
    else:
        frame.loc[last, "label"] = 70 if fault == "out of range" else 0
    frame.to_csv(output / "csv/sample/train.csv", index=False)
    recognition = helpers.shared_definitions("2.1_recognition_ce")
    folders = helpers.open_dataset("sample", series / "data/sample", output)
    with pytest.raises(ValueError, match=r"train\.csv must give each person one label, from 0 to \d+ without gaps: make 1\.1"):
        recognition.labelled_faces(folders)


@pytest.fixture(scope="session")
def repository(series, tmp_path_factory):
    """The project as a git repository, with the manifests of the small series as those that are committed."""
    origin = tmp_path_factory.mktemp("origin") / "faces"
    shutil.copytree(ROOT, origin, ignore=shutil.ignore_patterns(".venv", "runs", "data", ".git", "__pycache__"))
    shutil.rmtree(origin / "csv/sample", ignore_errors=True)
    shutil.copytree(series / "csv/sample", origin / "csv/sample")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=origin, check=True)
    return origin


@pytest.mark.parametrize("stage", NEEDS)
def test_alone_in_an_empty_folder(series, repository, tmp_path, stage):
    """As in Colab: one notebook in an empty folder, no helpers.py beside it, the repository only by git, `google.colab` a stand-in."""
    if stage not in ("1.1", "1.2", "1.3", "2.2", "3.1") and not os.environ.get("FACES_TEST_EVERYTHING"):
        pytest.skip("takes a minute or more: FACES_TEST_EVERYTHING=1 make test runs it")
    path = notebook_of(stage)
    shutil.copy(path, tmp_path)
    (tmp_path / "google/colab").mkdir(parents=True)
    (tmp_path / "google/colab/__init__.py").write_text("files = output = None\n")
    settings = known((stage,)) | ({} if stage == "0.1" else {"data": series / "data/sample"})
    settings |= {"tracker": ""} if "tracker" in settings else {}
    pairs = [item for name, value in settings.items() for item in ("-y", f"{name}: {json.dumps(value, default=str)}")]
    command = [sys.executable, "-m", "papermill", path.name, "out.ipynb", "-k", "python3", "--no-progress-bar", *pairs]
    environment = {**os.environ, "FACES_REPOSITORY": str(repository), "PYTHONPATH": str(tmp_path), "MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "faces/helpers.py").exists()
    printed = [output.get("text", "") for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert not any(text.startswith("Installing") for text in printed), "nothing was missing, so nothing is installed"

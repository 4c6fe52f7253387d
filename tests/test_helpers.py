"""Files, photographs, manifests, runs and models: references, and faults made on purpose."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import PyTorchModelHubMixin
from PIL import Image

import helpers
from notebooks import files


@pytest.fixture
def folders(tmp_path):
    made = SimpleNamespace(name="test", csv=tmp_path / "csv", runs=tmp_path / "runs")
    made.csv.mkdir()
    made.runs.mkdir()
    return made


def save_photograph(path, mode="RGB", size=(60, 40), **options):
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 4, y * 6, x + y], -1).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


# ---- photographs


@pytest.mark.parametrize("name", ["L.jpg", "CMYK.jpg", "RGB.jpg", "RGBA.png", "P.png", "1.png"])
def test_every_mode_becomes_rgb(tmp_path, name):
    save_photograph(tmp_path / name, mode=name.split(".")[0])
    image = helpers.read_photograph(tmp_path / name)
    assert image.shape == (40, 60, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10


@pytest.mark.parametrize("tail", [b"", b"a maker's note"])
def test_a_jpeg_has_the_pixels_that_pillow_reads(tmp_path, tail):
    path = tmp_path / "photo.jpg"
    save_photograph(path)
    path.write_bytes(path.read_bytes() + tail)
    with Image.open(path) as image:
        np.testing.assert_array_equal(helpers.read_photograph(path), np.asarray(image))


def test_a_jpeg_written_comes_back(tmp_path):
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None]
    image = np.tile(ramp, (1, 64, 3)) // np.array([1, 2, 4], np.uint8)
    path = helpers.write_jpeg(image, tmp_path / "written.jpg")
    assert np.abs(helpers.read_photograph(path).astype(int) - image).max() <= 8
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    image.putpalette([value for c in range(256) for value in (c, 0, 255 - c)])
    image.save(tmp_path / "palette.png", transparency=bytes(range(64)))
    read = helpers.read_photograph(tmp_path / "palette.png")
    assert read.shape == (8, 8, 3)
    assert read[0, 5].tolist() == [250, 250, 255], "5 / 255 of (5, 0, 250) on white"


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256 * 4).reshape(4, 256).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    image = helpers.read_photograph(tmp_path / "deep.png")
    assert image[0, 0, 0] < 3
    assert 60 < image[1, 0, 0] < 68


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_photograph(tmp_path / "turned.jpg", exif=exif)
    assert helpers.read_photograph(tmp_path / "turned.jpg").shape == (60, 40, 3)
    assert helpers.image_size(tmp_path / "turned.jpg") == (40, 60)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
def test_broken_photographs_are_named(tmp_path, damage):
    path = tmp_path / "broken.jpg"
    save_photograph(path)
    whole = path.read_bytes()
    contents = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "text": b"<html>quota</html>",
    }
    path.unlink() if damage == "missing" else path.write_bytes(contents[damage])
    with pytest.raises(helpers.PhotographError, match=r"broken\.jpg") as error:
        helpers.read_photograph(path)
    assert str(tmp_path) not in str(error.value)


def test_an_image_too_large_to_be_safe_has_no_size(tmp_path, monkeypatch):
    save_photograph(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert helpers.image_size(tmp_path / "a.png") == (1, 1)
    with pytest.raises(helpers.PhotographError, match=r"a\.png"):
        helpers.read_photograph(tmp_path / "a.png")


def test_images_of_a_folder_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        helpers.list_images(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="There is no image"):
        helpers.list_images(tmp_path)
    for name in ("b.PNG", "a.jpg", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in helpers.list_images(tmp_path)] == ["a.jpg", "b.PNG"]


# ---- manifests


def val_frame():
    columns = {"image_id": ["b.jpg", "a.jpg"], "identity": [3, 4], "label": [0, 1]}
    return pd.DataFrame(columns)


def test_a_label_that_is_not_a_whole_number_is_refused(folders):
    with pytest.raises(ValueError, match=r"val\.csv .*column label must hold whole numbers"):
        helpers.write_manifest(val_frame().assign(label=[0.7, 1.0]), "val", folders)


@pytest.mark.parametrize(
    "content", [b"", b"image_id,identity,label\na.jpg,1,2,3,4\n", b"image_id\xff\xfe\n"]
)
def test_a_file_that_is_not_a_table_is_named(folders, content):
    (folders.csv / "val.csv").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"val\.csv is not a valid table .*make 1\.1 DATASET=test"
    ):
        helpers.read_manifest("val", folders)


def test_fingerprints_tell_where_a_value_ends():
    assert helpers.fingerprint(3, 64, 3, 20) != helpers.fingerprint(3, 64, 32, 0)
    assert helpers.fingerprint(val_frame(), 1) == helpers.fingerprint(val_frame(), 1)
    assert helpers.fingerprint(val_frame()) != helpers.fingerprint(val_frame().iloc[:1])


def test_a_manifest_is_sorted_and_comes_back(folders):
    helpers.write_manifest(val_frame(), "val", folders)
    back = helpers.read_manifest("val", folders)
    assert back["image_id"].tolist() == ["a.jpg", "b.jpg"]
    assert back["label"].dtype == int


DAMAGES = {
    "no label": (lambda frame: frame.drop(columns="label"), "label"),
    "other name": (lambda frame: frame.rename(columns={"image_id": "file"}), "image_id"),
    "twice": (lambda frame: pd.concat([frame, frame]), "image_id"),
    "text": (lambda frame: frame.assign(label="seven"), "label"),
    "negative": (lambda frame: frame.assign(label=[-1, 0]), "column label"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_manifest_is_named_with_its_notebook(folders, damage):
    change, message = DAMAGES[damage]
    change(val_frame()).to_csv(folders.csv / "val.csv", index=False)
    with pytest.raises(ValueError, match=r"val\.csv") as error:
        helpers.read_manifest("val", folders)
    assert message in str(error.value)
    assert "make 1.1" in str(error.value)


def test_a_value_that_is_not_in_the_list_is_refused(folders):
    split = pd.DataFrame({"image_id": ["a"], "landmark_split": ["other"], "nme": [1.0]})
    with pytest.raises(ValueError, match=r"landmark_report\.csv .*landmark_split"):
        helpers.write_manifest(split, "landmark_report", folders)


def test_a_missing_manifest_names_notebook_and_command(folders):
    with pytest.raises(
        FileNotFoundError, match=r"val\.csv is missing.*Notebook 1\.1.*make 1\.1"
    ):
        helpers.read_manifest("val", folders)


def test_bad_rows_are_not_written(folders):
    helpers.write_manifest(val_frame(), "val", folders)
    with pytest.raises(ValueError, match="label"):
        helpers.write_manifest(val_frame().assign(label=-5), "val", folders)
    assert (helpers.read_manifest("val", folders)["label"] >= 0).all()


def test_a_stage_replaces_only_what_it_has_rejected(folders):
    helpers.reject("1.1", {"a.jpg": "one"}, folders)
    helpers.reject("1.3", {"a.jpg": "two", "b.jpg": "three"}, folders)
    helpers.reject("1.3", {"c.jpg": "four"}, folders)
    rows = helpers.read_manifest("rejected", folders)
    pairs = zip(rows["image_id"], rows["stage"], strict=True)
    assert set(pairs) == {("a.jpg", "1.1"), ("c.jpg", "1.3")}
    assert helpers.reject("1.3", {}, folders).empty
    assert helpers.read_manifest("rejected", folders)["image_id"].tolist() == ["a.jpg"]


# ---- folders and files


def test_a_data_set_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"celeba is missing: .*DATA="):
        helpers.open_dataset("mine", tmp_path / "data", tmp_path)


def test_threads_keep_the_order():
    rows = range(50), range(50, 100)
    assert helpers.in_threads(lambda a, b: a * b, *rows, at_once=3) == [
        a * b for a, b in zip(*rows, strict=True)
    ]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")

    def full_disk(temporary):
        temporary.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="space"):
        helpers.write_atomically(path, full_disk)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_folder(tmp_path):
    path = tmp_path / "model"
    helpers.save_model(Tiny(), path)

    def full_disk(temporary):
        temporary.mkdir()
        (temporary / "config.json").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="space"):
        helpers.write_atomically(path, full_disk)
    assert isinstance(helpers.load_model(Tiny.from_pretrained, path, "1.4"), Tiny)
    assert list(tmp_path.iterdir()) == [path]


# ---- training runs


def trained(folder, settings=None):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    network = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    network, optimizer = accelerator.prepare(network, optimizer)
    average = helpers.moving_average(network)
    return helpers.Checkpoint(accelerator, folder, settings or {"a": 1}, average)


HISTORY = [{"epoch": 1, "loss": 0.5}]


def test_a_checkpoint_of_other_settings_is_not_resumed(tmp_path, capsys):
    trained(tmp_path / "run").save(HISTORY)
    assert trained(tmp_path / "run").resume() == HISTORY
    assert trained(tmp_path / "run", {"a": 2}).resume() == []
    assert "has other settings" in capsys.readouterr().out


def test_a_checkpoint_of_other_code_is_not_resumed_under_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FACES_CODE", "one")
    trained(tmp_path / "run").save(HISTORY)
    assert trained(tmp_path / "run").resume() == HISTORY
    monkeypatch.setenv("FACES_CODE", "two")
    assert trained(tmp_path / "run").resume() == []
    monkeypatch.delenv("FACES_CODE")  # a notebook opened by hand cannot tell
    assert trained(tmp_path / "run").resume() == HISTORY


def test_resuming_restores_the_random_numbers(tmp_path):
    checkpoint = trained(tmp_path / "run")
    torch.rand(7)
    checkpoint.save(HISTORY)
    after = torch.rand(3)
    checkpoint = trained(tmp_path / "run")
    assert checkpoint.resume() == HISTORY
    assert torch.equal(torch.rand(3), after)


def test_a_run_killed_between_two_renames_is_resumed(tmp_path):
    trained(tmp_path / "run").save(HISTORY)
    (tmp_path / "run").rename(tmp_path / "run.old")
    assert trained(tmp_path / "run").resume() == HISTORY


def test_nan_keeps_the_last_good_checkpoint(tmp_path):
    checkpoint = trained(tmp_path / "run")
    checkpoint.save(HISTORY)
    with pytest.raises(FloatingPointError, match="checkpoint before it is kept"):
        checkpoint.save([*HISTORY, {"epoch": 2, "loss": float("nan")}])
    assert checkpoint.resume() == HISTORY


@pytest.mark.parametrize("file", ["average.pt", "progress.json", "model.safetensors"])
def test_a_corrupt_checkpoint_is_named(tmp_path, file):
    checkpoint = trained(tmp_path / "run")
    checkpoint.save(HISTORY)
    (tmp_path / "run" / file).write_bytes(b"half a fi")
    with pytest.raises(RuntimeError, match=r"run cannot be read .*delete that folder"):
        checkpoint.resume()


def test_the_moving_average_follows_weights_and_statistics():
    network = torch.nn.BatchNorm1d(3)
    average = helpers.moving_average(network)
    for _ in range(300):
        network(torch.randn(8, 3) + 5)
        average.update_parameters(network)
    assert (average.module.running_mean - 5).abs().max() < 0.5
    assert average.module.num_batches_tracked == network.num_batches_tracked


def test_a_device_that_is_not_here_is_named(folders):
    other = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(ValueError, match=f"DEVICE={other} is not available here"):
        helpers.set_up("1.4", folders, device=other)


# ---- models


class Tiny(torch.nn.Module, PyTorchModelHubMixin):
    """The smallest model in the hub's convention."""

    def __init__(self, inputs: int = 4):
        super().__init__()
        self.layer = torch.nn.Linear(inputs, 2)


class Other(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, inputs: int = 4):
        super().__init__()
        self.other_layer = torch.nn.Linear(inputs, 2)


def test_a_model_comes_back_from_its_folder(tmp_path):
    model = Tiny(inputs=3)
    folder = helpers.save_model(model, tmp_path / "model", size=64)
    back = helpers.load_model(Tiny.from_pretrained, folder, "1.4")
    assert torch.equal(back.layer.weight, model.layer.weight)
    assert not back.training
    assert '"size": 64' in (folder / "preprocessor_config.json").read_text()
    helpers.save_model(Tiny(inputs=5), folder)
    back = helpers.load_model(Tiny.from_pretrained, folder, "1.4")
    assert back.layer.in_features == 5
    assert not (folder / "preprocessor_config.json").exists(), "all of the old folder is gone"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_missing_model_is_named_with_its_notebook(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        with pytest.raises(FileNotFoundError, match=rf"{name} is not the folder .*make 1\.4"):
            helpers.load_model(Tiny.from_pretrained, tmp_path / name, "1.4")


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "other model"])
def test_a_corrupt_or_foreign_model_is_named(tmp_path, damage):
    folder = tmp_path / "model"
    helpers.save_model(Other() if damage == "other model" else Tiny(), folder)
    if damage != "other model":
        (folder / damage).write_bytes(b"half a fi")
    with pytest.raises(
        ValueError, match=r"model cannot be loaded \(.*\)\. Notebook 1\.4"
    ) as error:
        helpers.load_model(Tiny.from_pretrained, folder, "1.4")
    assert len(str(error.value).splitlines()) == 1


def test_a_hub_id_that_cannot_be_reached_is_named():
    def offline(source, **_):
        raise OSError(f"{source} cannot be reached\nand many lines more")

    with pytest.raises(ValueError, match=r"someone/model cannot be loaded \(no folder, not on"):
        helpers.load_model(offline, "someone/model", "1.4")


# ---- the second copy


@pytest.fixture
def drive(tmp_path, monkeypatch):
    monkeypatch.setenv("FACES_KEEP", str(tmp_path / "drive"))
    return tmp_path / "drive"


def opened(output):
    return helpers.open_dataset("mine", output / "data", output, needs="")


def new_machine(output):
    """The same OUTPUT with nothing in it, as on Colab the next day."""
    output.rename(output.with_name("yesterday"))
    return opened(output)


def test_what_is_finished_is_copied_and_comes_back(tmp_path, drive, capsys):
    """As on Colab: manifests, models and the checkpoint go to Drive; a new machine resumes."""
    folders = opened(tmp_path / "here")
    (folders.runs / "image_cache").mkdir()
    (folders.runs / "image_cache/pixels.npy").write_bytes(b"many")
    helpers.reject("1.1", {"a.jpg": "why"}, folders)
    model = Tiny()
    helpers.save_model(model, folders.runs / "segmentation/fpn", size=32)
    trained(folders.runs / "checkpoints/run").save(HISTORY)
    assert list(drive.rglob("model.safetensors"))
    assert not list(drive.rglob("pixels.npy")), "images stay on the local disk"
    again = new_machine(tmp_path / "here")
    assert "3 files of an earlier session came back from here/" in capsys.readouterr().out
    assert helpers.read_manifest("rejected", again)["image_id"].tolist() == ["a.jpg"]
    back = helpers.load_model(Tiny.from_pretrained, again.runs / "segmentation/fpn", "3.2")
    assert torch.equal(back.layer.weight, model.layer.weight)
    assert (again.runs / "segmentation/fpn/preprocessor_config.json").exists()
    assert trained(again.runs / "checkpoints/run").resume() == HISTORY
    other = opened(tmp_path / "elsewhere")
    assert list(other.runs.iterdir()) == [], "another OUTPUT has a place of its own"


def test_only_what_is_missing_comes_back(tmp_path, drive):
    runs = opened(tmp_path / "here").runs
    kept, lost, gone = (
        helpers.save_model(Tiny(), runs / name) for name in ("kept", "lost", "gone")
    )
    (kept / "config.json").write_text("newer")
    files.remove(lost)
    helpers.forget(gone)
    opened(tmp_path / "here")
    assert (kept / "config.json").read_text() == "newer"
    assert helpers.load_model(Tiny.from_pretrained, lost, "1.4")
    assert not gone.exists()


def test_what_cannot_be_removed_from_the_second_place_is_named(
    tmp_path, drive, monkeypatch, capsys
):
    path = helpers.save_model(Tiny(), opened(tmp_path / "here").runs / "model")
    remove = files.remove

    def remove_here(gone):
        if gone.is_relative_to(drive):
            raise PermissionError("a disk that can only be read")
        remove(gone)

    monkeypatch.setattr(files, "remove", remove_here)
    helpers.forget(path)
    assert not path.exists()
    assert (drive / "here/runs/mine/model").exists()
    message = "model of the second place could not be removed (a disk that can only be read)"
    assert message in capsys.readouterr().out


def test_a_copy_that_reads_back_differently_does_not_replace_the_old_one(
    tmp_path, drive, monkeypatch, capsys
):
    path = helpers.save_model(Tiny(), opened(tmp_path / "here").runs / "model")
    kept = drive / "here/runs/mine/model"
    before = (kept / "model.safetensors").read_bytes()
    copytree = files.shutil.copytree

    def half(source, target):
        copytree(source, target)
        (target / "model.safetensors").write_bytes(b"half a fi")

    monkeypatch.setattr(files.shutil, "copytree", half)
    helpers.save_model(Tiny(), path)
    assert (kept / "model.safetensors").read_bytes() == before
    printed = capsys.readouterr().out
    assert "model could not be copied to mine/" in printed
    assert "(what was written there reads back differently)" in printed
    assert [file.name for file in kept.parent.iterdir()] == ["model"]
    assert (path / "model.safetensors").read_bytes() != before, "the run itself continues"


def test_a_manifest_that_reads_back_differently_does_not_replace_the_old_one(
    tmp_path, drive, monkeypatch, capsys
):
    folders = opened(tmp_path / "here")
    helpers.reject("1.1", {"a.jpg": "one"}, folders)
    kept = drive / "here/csv/mine/rejected.csv"
    before = kept.read_text()
    half = lambda source, target: target.write_bytes(source.read_bytes()[:9])  # noqa: E731
    monkeypatch.setattr(files.shutil, "copyfile", half)
    helpers.reject("1.1", {"b.jpg": "two"}, folders)
    assert kept.read_text() == before
    assert "rejected.csv could not be copied to mine/" in capsys.readouterr().out


def test_a_folder_that_cannot_be_swapped_leaves_the_old_copy(
    tmp_path, drive, monkeypatch, capsys
):
    checkpoint = trained(opened(tmp_path / "here").runs / "checkpoints/run")
    checkpoint.save(HISTORY)
    kept, replace = drive / "here/runs/mine/checkpoints/run", files.Path.replace

    def broken(self, target):
        if self.name.startswith(".new."):
            raise OSError("Transport endpoint is not connected")
        return replace(self, target)

    monkeypatch.setattr(files.Path, "replace", broken)
    helpers.keep(checkpoint.folder)
    assert "is not connected" in capsys.readouterr().out
    assert (kept / "progress.json").exists()
    assert [file.name for file in kept.parent.iterdir()] == ["run"]


def test_a_second_place_that_does_not_exist_is_named_and_the_run_continues(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FACES_KEEP", str(tmp_path / "file"))
    folders = opened(tmp_path / "here")
    assert helpers.save_model(Tiny(), folders.runs / "model").exists()
    assert "model could not be copied" in capsys.readouterr().out
    monkeypatch.setenv("FACES_KEEP", "")
    helpers.save_model(Tiny(), folders.runs / "model")
    assert capsys.readouterr().out == ""

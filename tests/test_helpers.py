"""Geometry, photographs, manifests, heatmaps and state, each against a reference or a thing broken on purpose."""

from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from skimage.transform import SimilarityTransform

import helpers


@pytest.fixture
def folders(tmp_path):
    made = SimpleNamespace(name="test", csv=tmp_path / "csv", runs=tmp_path / "runs")
    made.csv.mkdir()
    made.runs.mkdir()
    return made


def photograph(path, mode="RGB", size=(60, 40), **options):
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 4, y * 6, x + y], -1).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return pixels


# ---- geometry


def test_similarity_agrees_with_scikit_image():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(20, 5, 2)) * 30, rng.normal(size=(20, 5, 2)) * 30
    ours = helpers.fit_similarity(source, target)
    for a, b, matrix in zip(source, target, ours, strict=True):
        reference = SimilarityTransform.from_estimate(a, b)
        np.testing.assert_allclose(matrix, reference.params[:2], atol=1e-8)


def test_affine_there_and_back():
    rng = np.random.default_rng(1)
    matrix, points = rng.normal(size=(7, 2, 3)), rng.normal(size=(7, 5, 2))
    np.testing.assert_allclose(helpers.apply_affine(helpers.invert_affine(matrix), helpers.apply_affine(matrix, points)), points, atol=1e-9)


def test_square_matrix_maps_the_box_centre_to_the_crop_centre():
    box = np.array([10.0, 20, 100, 50])
    matrix = helpers.square_matrix(box, 64, 1.0)
    np.testing.assert_allclose(helpers.apply_affine(matrix, np.array([[59.5, 44.5]])), [[31.5, 31.5]])
    boxes = np.random.default_rng(0).uniform(20, 90, (50, 4))  # no box begins at a whole pixel, the squares do
    centres = boxes[:, None, :2] + (boxes[:, None, 2:] - 1) / 2
    off = (helpers.apply_affine(helpers.square_matrix(boxes, 64, 0.8), centres) - 31.5) / helpers.square_matrix(boxes, 64, 0.8)[:, :1, :1]
    assert np.abs(off).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("box", [(11, 7, 40, 40), (3, 20, 70, 50), (-9, 5, 60, 60)])
def test_cutting_out_agrees_with_the_warp(box, monkeypatch):
    image = cv2.GaussianBlur(np.random.default_rng(4).integers(0, 256, (90, 80, 3), dtype=np.uint8), (0, 0), 2)
    matrix = helpers.square_matrix(np.array(box, float), 64)
    quick = helpers.warp_photograph(image, matrix, 64).astype(int)
    monkeypatch.setattr(helpers, "_whole_square", lambda *_: None)
    slow = helpers.warp_photograph(image, matrix, 64)
    assert np.abs(quick - slow)[2:-2, 2:-2].mean() < 0.6 and np.abs(quick - slow)[2:-2, 2:-2].max() <= 4


def test_widen_keeps_the_view_in_the_middle():
    box = np.array([[10.0, 20, 100, 100]])
    crop = helpers.square_matrix(box, 256)
    store, size = helpers.widen(crop, 256, 128, 1.5)
    view = helpers.random_views(1, size, 128, 0, 0, 0, flip=False).numpy()
    points = np.array([[[30.0, 40], [80, 90]]])
    in_view = helpers.apply_affine(view, helpers.apply_affine(store, points))
    np.testing.assert_allclose(in_view, (helpers.apply_affine(crop, points) + 0.5) / 2 - 0.5, atol=1e-4)


def test_warp_identity_and_shrink():
    image = np.random.default_rng(2).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert (helpers.warp_photograph(image, np.eye(2, 3), 96) == image).all()
    shrunk = helpers.warp_photograph(image, helpers.square_matrix(np.array([0, 0, 96, 96]), 24), 24)
    reference = cv2.resize(image, (24, 24), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - reference).max() <= 1


def test_device_sampling_agrees_with_opencv():
    image = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (80, 80, 3), dtype=np.uint8), (0, 0), 2)
    matrix = np.array([[0.8, -0.2, 5.0], [0.2, 0.8, -3.0]])
    ours = helpers.sample_views(torch.from_numpy(image[None]), torch.from_numpy(matrix[None]), 64)[0].permute(1, 2, 0).numpy() * 255
    reference = cv2.warpAffine(image, matrix, (64, 64), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(ours - reference)[4:-4, 4:-4].mean() < 0.6


def test_mirrored_views_mirror():
    torch.manual_seed(0)
    matrices = helpers.random_views(64, 40, 40, 0, 0, 0, flip=True)
    mirrored = torch.linalg.det(matrices[:, :, :2]) < 0
    assert 10 < mirrored.sum() < 54
    image = torch.arange(40).expand(1, 40, 40)[..., None].repeat(1, 1, 1, 3).to(torch.uint8)
    view = helpers.sample_views(image, matrices[mirrored][:1], 40)[0, 0]
    torch.testing.assert_close((view * 255).round(), torch.arange(39.0, -1, -1).expand(40, 40), atol=0.01, rtol=0)


# ---- photographs


@pytest.mark.parametrize(("mode", "ending"), [("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("1", "png"), ("RGB", "jpg")])
def test_every_mode_becomes_rgb(tmp_path, mode, ending):
    path = tmp_path / f"photo.{ending}"
    photograph(path, mode)
    image = helpers.read_photograph(path)
    assert image.shape == (40, 60, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10


@pytest.mark.parametrize("tail", [b"", b"a maker's note"])
def test_a_jpeg_has_the_same_pixels_whichever_library_decodes_it(tmp_path, monkeypatch, tail):
    """OpenCV reads ordinary ones, Pillow whatever differs, as by bytes behind the end."""
    path = tmp_path / "photo.jpg"
    photograph(path)
    path.write_bytes(path.read_bytes() + tail)
    by_opencv = []
    monkeypatch.setattr(helpers.cv2, "imread", lambda *given, imread=cv2.imread: by_opencv.append(given) or imread(*given))
    with Image.open(path) as image:
        np.testing.assert_array_equal(helpers.read_photograph(path), np.asarray(image))
    assert len(by_opencv) == (not tail)


def test_a_jpeg_written_comes_back(tmp_path):
    picture = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 64, 3)) // np.array([1, 2, 4], np.uint8)
    path = helpers.write_jpeg(picture, tmp_path / "written.jpg")
    assert np.abs(helpers.read_photograph(path).astype(int) - picture).max() <= 8
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    picture.putpalette([value for colour in range(256) for value in (colour, 0, 255 - colour)])
    picture.save(tmp_path / "palette.png", transparency=bytes(range(64)))
    image = helpers.read_photograph(tmp_path / "palette.png")
    assert image.shape == (8, 8, 3) and image[0, 5].tolist() == [5, 0, 250]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256 * 4).reshape(4, 256).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    image = helpers.read_photograph(tmp_path / "deep.png")
    assert image[0, 0, 0] < 3
    assert 60 < image[1, 0, 0] < 68


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(tmp_path / "turned.jpg", exif=exif)
    assert helpers.read_photograph(tmp_path / "turned.jpg").shape == (60, 40, 3)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
def test_broken_photographs_are_named(tmp_path, damage):
    path = tmp_path / "broken.jpg"
    photograph(path)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"<html>quota exceeded</html>"}[damage])
    with pytest.raises(helpers.PhotographError, match=r"broken\.jpg") as error:
        helpers.read_photograph(path)
    assert str(tmp_path) not in str(error.value)


def test_store_is_made_once_and_anew_when_a_photograph_changes(tmp_path):
    names = [f"{index}.png" for index in range(3)]
    for name in names:
        photograph(tmp_path / name)
    matrices = np.repeat(np.eye(2, 3)[None], 3, 0)
    cache = tmp_path / "store.npy"
    store, failures = helpers.photograph_store(tmp_path, names, matrices, 32, cache)
    first = cache.stat().st_mtime_ns
    assert not failures
    assert store.shape == (3, 32, 32, 3)
    helpers.photograph_store(tmp_path, names, matrices, 32, cache)
    assert cache.stat().st_mtime_ns == first
    (tmp_path / names[1]).write_bytes(b"broken")
    store, failures = helpers.photograph_store(tmp_path, names, matrices, 32, cache)
    assert list(failures) == [names[1]]
    assert store[1].max() == 0
    assert store[2].max() > 0


def test_a_store_that_was_interrupted_is_not_taken_for_an_older_one(tmp_path, monkeypatch):
    """Killed between the pixels and their notes: the next request for the older crops makes them anew."""
    photograph(tmp_path / "a.png")
    one, two = np.eye(2, 3)[None], np.array([[[1.0, 0, -20], [0, 1, -5]]])
    cache = tmp_path / "store.npy"
    first = helpers.photograph_store(tmp_path, ["a.png"], one, 16, cache)[0].copy()
    write = helpers.write_atomically

    def killed(path, work):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        return write(path, work)

    monkeypatch.setattr(helpers, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        helpers.photograph_store(tmp_path, ["a.png"], two, 16, cache)
    monkeypatch.setattr(helpers, "write_atomically", write)
    np.testing.assert_array_equal(helpers.photograph_store(tmp_path, ["a.png"], one, 16, cache)[0], first)


def test_a_picture_too_large_to_be_safe_has_no_size(tmp_path, monkeypatch):
    photograph(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert helpers.picture_size(tmp_path / "a.png") == (1, 1)
    with pytest.raises(helpers.PhotographError, match=r"a\.png"):
        helpers.read_photograph(tmp_path / "a.png")


# ---- manifests


def val_frame():
    return pd.DataFrame({"image_id": ["b.jpg", "a.jpg"], "identity": [3, 4], "label": [0, 1]})


def test_a_label_that_is_no_whole_number_is_refused(folders):
    with pytest.raises(ValueError, match=r"val\.csv .*column label: only whole numbers"):
        helpers.write_manifest(val_frame().assign(label=[0.7, 1.0]), "val", folders)


@pytest.mark.parametrize("content", [b"", b"image_id,identity,label\na.jpg,1,2,3,4\n", b"image_id\xff\xfe\n"])
def test_a_file_that_is_no_table_is_named(folders, content):
    (folders.csv / "val.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"val\.csv is no table .*make 1\.1 DATASET=test"):
        helpers.read_manifest("val", folders)


def test_fingerprints_know_where_a_value_ends():
    assert helpers.fingerprint(3, 64, 3, 20) != helpers.fingerprint(3, 64, 32, 0)


def test_manifest_is_sorted_and_comes_back(folders):
    helpers.write_manifest(val_frame(), "val", folders)
    back = helpers.read_manifest("val", folders)
    assert back["image_id"].tolist() == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.drop(columns="label"), "label"),
        (lambda f: f.rename(columns={"image_id": "file"}), "image_id"),
        (lambda f: pd.concat([f, f]), "image_id"),
        (lambda f: f.assign(label="seven"), "label"),
        (lambda f: f.assign(label=[-1, 0]), "label"),
    ],
)
def test_broken_manifest_is_named_with_its_maker(folders, damage, message):
    damage(val_frame()).to_csv(folders.csv / "val.csv", index=False)
    with pytest.raises(ValueError, match=r"val\.csv") as error:
        helpers.read_manifest("val", folders)
    assert message in str(error.value)
    assert "make 1.1" in str(error.value)


def test_missing_manifest_names_notebook_and_command(folders):
    with pytest.raises(FileNotFoundError, match=r"val\.csv is missing.*Notebook 1\.1.*make 1\.1"):
        helpers.read_manifest("val", folders)


def test_bad_rows_are_not_written(folders):
    helpers.write_manifest(val_frame(), "val", folders)
    with pytest.raises(ValueError, match="label"):
        helpers.write_manifest(val_frame().assign(label=-5), "val", folders)
    assert (helpers.read_manifest("val", folders)["label"] >= 0).all()


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")

    def full_disk(temporary):
        temporary.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="space"):
        helpers.write_atomically(path, full_disk)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_rejected_of_one_stage_replaces_only_its_own(folders):
    helpers.reject("1.1", {"a.jpg": "one"}, folders)
    helpers.reject("1.3", {"a.jpg": "two", "b.jpg": "three"}, folders)
    helpers.reject("1.3", {"c.jpg": "four"}, folders)
    assert set(zip(*helpers.read_manifest("rejected", folders)[["image_id", "stage"]].to_numpy().T, strict=True)) == {
        ("a.jpg", "1.1"),
        ("c.jpg", "1.3"),
    }


# ---- heatmaps


@pytest.mark.parametrize(("method", "limit"), [("argmax", 0.75), ("quarter", 0.4), ("dark", 1e-3), ("soft", 0.02)])
def test_decoders_give_the_points_back(method, limit):
    points = torch.rand(50, 5, 2, generator=torch.Generator().manual_seed(0)) * 40 + 10
    read, confidence = helpers.decode_heatmaps(helpers.draw_heatmaps(points, 64, 1.5), method)
    assert (read - points).norm(dim=-1).max() < limit
    assert confidence.min() > 0.95


def test_decoders_survive_edges_and_empty_maps():
    maps = torch.zeros(1, 3, 16, 16)
    maps[0, 0, 0, 0] = maps[0, 1, 15, 15] = 1
    for method in ("argmax", "quarter", "dark", "soft"):
        read, confidence = helpers.decode_heatmaps(maps, method)
        assert torch.isfinite(read).all()
        assert torch.isfinite(confidence).all()
        torch.testing.assert_close(read[0, 1], torch.tensor([15.0, 15.0]), atol=1.0, rtol=0)
    with pytest.raises(ValueError, match="argmax, quarter, dark or soft"):
        helpers.decode_heatmaps(maps, "best")


# ---- state


def trained(folder, settings=None):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    network = torch.nn.Linear(4, 2)
    network, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters(), 1e-2))
    average = helpers.moving_average(network)
    return network, optimizer, average, helpers.Checkpoint(accelerator, folder, settings or {"a": 1}, average)


def test_checkpoint_of_other_settings_is_not_resumed(tmp_path, capsys):
    *_, checkpoint = trained(tmp_path / "run")
    checkpoint.save([{"epoch": 1, "loss": 0.5}])
    assert trained(tmp_path / "run")[-1].resume() == [{"epoch": 1, "loss": 0.5}]
    assert trained(tmp_path / "run", {"a": 2})[-1].resume() == []
    assert "other settings" in capsys.readouterr().out


def test_nan_keeps_the_last_good_checkpoint(tmp_path):
    *_, checkpoint = trained(tmp_path / "run")
    checkpoint.save([{"epoch": 1, "loss": 0.5}])
    with pytest.raises(FloatingPointError, match="checkpoint before it is kept"):
        checkpoint.save([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": float("nan")}])
    assert len(checkpoint.resume()) == 1


@pytest.mark.parametrize("file", ["average.pt", "progress.json", "model.safetensors"])
def test_corrupt_checkpoint_is_named(tmp_path, file):
    *_, checkpoint = trained(tmp_path / "run")
    checkpoint.save([{"epoch": 1, "loss": 0.5}])
    (tmp_path / "run" / file).write_bytes(b"half a fi")
    with pytest.raises(RuntimeError, match=r"run cannot be read .*delete that folder"):
        checkpoint.resume()


def test_weights_missing_corrupt_or_foreign(tmp_path):
    network, path = torch.nn.Linear(4, 2), tmp_path / "weights.pt"
    with pytest.raises(FileNotFoundError, match=r"weights\.pt"):
        helpers.load_weights(network, path)
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="not a readable file of weights"):
        helpers.load_weights(network, path)
    helpers.save_weights(torch.nn.Linear(3, 2), path)
    with pytest.raises(ValueError, match="does not fit this network"):
        helpers.load_weights(network, path)
    helpers.save_weights(torch.nn.Linear(4, 2), path)
    helpers.load_weights(network, path)


def test_moving_average_follows_weights_and_statistics():
    network = torch.nn.BatchNorm1d(3)
    average = helpers.moving_average(network)
    for _ in range(300):
        network(torch.randn(8, 3) + 5)
        average.update_parameters(network)
    assert (average.module.running_mean - 5).abs().max() < 0.5
    assert average.module.num_batches_tracked == network.num_batches_tracked


def test_further_processes_draw_other_numbers_and_the_first_its_own():
    drawn = []
    for process in (0, 1, 2):
        torch.manual_seed(5)
        helpers.own_random_numbers(SimpleNamespace(process_index=process))
        drawn.append(torch.rand(3).tolist())
    torch.manual_seed(5)
    assert drawn[0] == torch.rand(3).tolist()
    assert len({tuple(numbers) for numbers in drawn}) == 3


# ---- a second place


@pytest.fixture
def drive(tmp_path, monkeypatch):
    monkeypatch.setenv("FACES_KEEP", str(tmp_path / "drive"))
    return tmp_path / "drive"


def opened(output):
    return helpers.open_dataset("mine", output / "data", output, needs=None)


def new_machine(output):
    """The same OUTPUT with nothing in it, as on Colab the next day."""
    output.rename(output.with_name("yesterday"))
    return opened(output)


def test_what_is_finished_is_kept_in_a_second_place_and_comes_back(tmp_path, drive, capsys):
    """As on Colab: manifests, weights and the checkpoint go to Drive; a new machine takes them from there and goes on."""
    folders = opened(tmp_path / "here")
    (folders.runs / "stores").mkdir()
    (folders.runs / "stores/pixels.npy").write_bytes(b"many")
    helpers.reject("1.1", {"a.jpg": "why"}, folders)
    helpers.save_weights(torch.nn.Linear(2, 1), folders.runs / "weights.pt")
    *_, checkpoint = trained(folders.runs / "checkpoints/run")
    checkpoint.save([{"epoch": 1, "loss": 0.5}])
    assert list(drive.rglob("weights.pt"))
    assert not list(drive.rglob("pixels.npy")), "pixels stay on the local disk"
    again = new_machine(tmp_path / "here")
    assert "came back from here/" in capsys.readouterr().out
    assert helpers.read_manifest("rejected", again)["image_id"].tolist() == ["a.jpg"]
    helpers.load_weights(torch.nn.Linear(2, 1), again.runs / "weights.pt")
    assert trained(again.runs / "checkpoints/run")[-1].resume() == [{"epoch": 1, "loss": 0.5}]
    other = opened(tmp_path / "elsewhere")
    assert list(other.runs.iterdir()) == [], "another OUTPUT has a place of its own"


def test_only_what_is_missing_comes_back_and_what_is_forgotten_does_not(tmp_path, drive):
    folders = opened(tmp_path / "here")
    first, other, third = (helpers.save_weights(torch.nn.Linear(2, 1), folders.runs / f"{name}.pt") for name in ("first", "other", "third"))
    first.write_bytes(b"newer")
    other.unlink()
    helpers.forget(third)
    opened(tmp_path / "here")
    assert first.read_bytes() == b"newer"
    assert other.exists()
    assert not third.exists()


def test_what_cannot_be_removed_from_the_second_place_is_named(tmp_path, drive, monkeypatch, capsys):
    folders = opened(tmp_path / "here")
    path = helpers.save_weights(torch.nn.Linear(2, 1), folders.runs / "weights.pt")
    kept = drive / "here/runs/mine/weights.pt"
    remove = helpers._remove

    def remove_here(gone):
        if gone.is_relative_to(drive):
            raise PermissionError("a disk that can only be read")
        remove(gone)

    monkeypatch.setattr(helpers, "_remove", remove_here)
    helpers.forget(path)
    assert not path.exists()
    assert kept.exists()
    assert "weights.pt of the second place is no longer needed and could not be removed (a disk that can only" in capsys.readouterr().out


def test_a_copy_that_reads_back_differently_does_not_replace_the_old_one(tmp_path, drive, monkeypatch, capsys):
    folders = opened(tmp_path / "here")
    path = helpers.save_weights(torch.nn.Linear(2, 1), folders.runs / "weights.pt")
    kept = drive / "here/runs/mine/weights.pt"
    before = kept.read_bytes()
    monkeypatch.setattr(helpers.shutil, "copyfile", lambda source, target: target.write_bytes(source.read_bytes()[:100]))
    helpers.save_weights(torch.nn.Linear(2, 1), path)
    assert kept.read_bytes() == before
    assert (
        "weights.pt could not be kept in mine/ of the second place (what was written there reads back differently)"
        in capsys.readouterr().out
    )
    assert [file.name for file in kept.parent.iterdir()] == ["weights.pt"]
    assert path.read_bytes() != before, "the run itself goes on"


def test_a_folder_that_cannot_be_swapped_leaves_the_old_copy(tmp_path, drive, monkeypatch, capsys):
    folders = opened(tmp_path / "here")
    *_, checkpoint = trained(folders.runs / "checkpoints/run")
    checkpoint.save([{"epoch": 1, "loss": 0.5}])
    kept = drive / "here/runs/mine/checkpoints/run"
    replace = helpers.Path.replace

    def broken(self, target):
        if self.name.startswith(".new."):
            raise OSError("Transport endpoint is not connected")
        return replace(self, target)

    monkeypatch.setattr(helpers.Path, "replace", broken)
    helpers.keep(checkpoint.folder)
    assert "is not connected" in capsys.readouterr().out
    assert (kept / "progress.json").exists()
    assert [file.name for file in kept.parent.iterdir()] == ["run"]


def test_a_second_place_that_is_none_is_said_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FACES_KEEP", str(tmp_path / "file"))
    folders = opened(tmp_path / "here")
    assert helpers.save_weights(torch.nn.Linear(2, 1), folders.runs / "weights.pt").exists()
    assert "weights.pt could not be kept" in capsys.readouterr().out
    monkeypatch.setenv("FACES_KEEP", "")
    helpers.save_weights(torch.nn.Linear(2, 1), tmp_path / "weights.pt")
    assert capsys.readouterr().out == ""

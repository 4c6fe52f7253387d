"""5.1: any photograph, people who are unknown, downloads that fail, the page in a browser."""

import hashlib
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copy_series, ROOT, run_stages, takes_a_minute
from PIL import Image
from safetensors.torch import load_file
from skimage import data

import helpers
from faces import alignment, crops, landmarks, pipeline
from notebooks import real_data

# ------------------------------------------------------------------------------- finding faces

FACE = np.array([[40.0, 50], [88, 50], [64, 76], [46, 96], [82, 96]])  # in an image of 128 px
COLOURS = [[250, 20, 20], [250, 20, 20], [20, 20, 250], [20, 250, 20], [20, 250, 20]]


def dotted(shape, faces):
    """A grey image with faces of five dots: red eyes, blue nose, green corners of the mouth."""
    image = np.full((*shape, 3), 128, np.uint8)
    y, x = np.indices(shape)
    for points in faces:
        radius = np.linalg.norm(points[0] - points[1]) / 10
        for (px, py), colour in zip(points, COLOURS, strict=True):
            image[np.hypot(x - px, y - py) < radius] = colour
    return image


class DotModel(torch.nn.Module):
    """Stands in for 1.4's model: heatmaps of the dots, at a quarter of the size."""

    input_size, stride, mean_face = 128, 4, FACE

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def colours(self, images):
        """How red, red, blue, green and green each cell is, (N, 5, H / 4, W / 4)."""
        small = torch.nn.functional.avg_pool2d(images, 4)
        others = [small[:, [c for c in range(3) if c != own]].amax(1) for own in range(3)]
        strength = small - torch.stack(others, 1)
        return strength.clamp_min(0.15)[:, [0, 0, 2, 1, 1]] - 0.15

    def forward(self, images, use=None):
        return 40 * self.colours(images) - 4

    def predict(self, images, flip=True):
        maps, across = self.colours(images), torch.arange(images.shape[3] // 4)
        for channel, side in ((0, -1), (1, 1), (3, -1), (4, 1)):
            strength = maps[:, channel]
            total = strength.sum((1, 2)).clamp_min(1e-6)
            centre = (strength * across).sum((1, 2)) / total
            maps[:, channel] = strength * (side * (across - centre[:, None, None]) > 0)
        return maps + 1e-6, landmarks.face_score(self(images))


@pytest.fixture
def finder():
    return landmarks.FaceFinder(DotModel())


def placed(x, y, width, degrees=0.0):
    """FACE about (x, y), rotated, with eyes `width` pixels apart."""
    roll = np.radians(degrees)
    linear = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    return (FACE - FACE.mean(0)) @ (width / 48 * linear).T + (x, y)


def test_faces_of_two_sizes_are_found(finder):
    truth = [placed(130, 150, 70, 12), placed(420, 120, 55, -8)]
    points, confidence = finder(dotted((300, 560), truth))
    assert len(points) == 2
    assert (confidence > 0.85).all()
    for found, true in zip(points, truth, strict=True):
        eyes = np.linalg.norm(true[0] - true[1])
        assert np.linalg.norm(found - true, axis=1).max() < 0.06 * eyes


def test_a_small_face_is_found_at_a_larger_size(finder):
    truth = placed(300, 260, 40)
    points, _ = finder(dotted((500, 600), [truth]))
    assert len(points) == 1
    assert np.linalg.norm(points[0] - truth, axis=1).max() < 4


def test_no_face_is_found_in_noise_and_in_a_flat_image(finder):
    noise = np.random.default_rng(0).integers(0, 255, (200, 240, 3), dtype=np.uint8)
    flat, one_pixel = np.full((200, 240, 3), 128, np.uint8), np.zeros((1, 1, 3), np.uint8)
    for image in (noise, flat, one_pixel):
        points, confidence = finder(image)
        assert points.shape == (0, 5, 2)
        assert len(confidence) == 0


def test_a_detector_may_say_where_to_look(finder):
    truth = placed(150, 120, 60, 20)
    points, _ = finder(dotted((240, 300), [truth]), starts=truth[None] + 4)
    assert np.linalg.norm(points[0] - truth, axis=1).max() < 3


def test_celeba_hq_square_follows_karras():
    """Eyes 100 apart, mouth 120 below: side max(400, 432), centre 12 below the eyes."""
    points = np.array([[[100.0, 200], [200, 200], [150, 260], [110, 320], [190, 320]]])
    matrix = pipeline.celeba_hq_matrix(points, 512)[0]
    assert matrix[0, 0] == pytest.approx(512 / 432)
    centre = crops.apply_affine(matrix, np.array([[150.0, 212]]))[0]
    assert centre == pytest.approx([255.5, 255.5])


def test_a_detector_is_optional(tmp_path, monkeypatch, capsys):
    assert pipeline.detector_file("", tmp_path) is None
    assert pipeline.detector_file(tmp_path / "own.onnx", tmp_path) == tmp_path / "own.onnx"
    monkeypatch.setattr(pipeline, "YUNET", "http://127.0.0.1:9/yunet.onnx")  # nobody listens
    assert pipeline.detector_file("yunet", tmp_path) is None
    assert "YuNet cannot be downloaded" in capsys.readouterr().out


# --------------------------------------------------------------------------------- recognition


class SameForAll(torch.nn.Module):
    """Stands in for a recogniser: every face has the same embedding, of four numbers."""

    face_size, alignment, crop_fraction = 32, "2", 1.0

    def __init__(self, alignment="2"):
        super().__init__()
        self.alignment, self.weight = alignment, torch.nn.Parameter(torch.zeros(1))

    def embed(self, images):
        return torch.ones(len(images), 4)


def stand_in(finder, gallery=None, **models):
    """A pipeline of these models, without files."""
    made = object.__new__(pipeline.FacePipeline)
    made.models = {"recognition": SameForAll(), **models}
    made.finder, made.detector = finder, None
    made.gallery = gallery or pipeline.Gallery.empty("a hash")
    return made


def one_per_square(photograph, starts):
    """Stands in for the search: a face in each square of a photograph."""
    side = min(photograph.shape[:2])
    count = photograph.shape[1] // side
    shifts = side * np.stack([np.arange(count), np.zeros(count)], 1)[:, None]
    return FACE / 128 * side + shifts, np.ones(count)


def gallery_of(vectors, threshold):
    names = [f"p{index}" for index in range(len(vectors))]
    images = np.zeros((len(vectors), 32, 32, 3), np.uint8)
    return pipeline.Gallery(names, np.asarray(vectors), images, threshold, "a hash")


def test_a_stranger_is_unknown(tmp_path):
    gallery = gallery_of(np.eye(4)[:3], 0.8)
    known = SimpleNamespace(matches=gallery.nearest(np.array([0.1, 0.99, 0, 0.1])))
    stranger = SimpleNamespace(matches=gallery.nearest(np.array([0.5, 0.5, 0.1, 0.7])))
    assert gallery.name_of(known) == "p1"
    assert gallery.name_of(stranger) is None
    assert gallery.name_of(SimpleNamespace(matches=None)) is None
    again = pipeline.Gallery.load(gallery.save(tmp_path / "gallery.npz"))
    assert again.names == gallery.names
    assert (again.threshold, again.recogniser) == (0.8, "a hash")
    np.testing.assert_array_equal(again.centres, gallery.centres)
    assert again.images.dtype == np.uint8


def test_one_photograph_is_enough_to_enroll(tmp_path):
    """And one with two faces is not: whose name would they get?"""
    for name, count in (("ada", 1), ("both", 2), ("p1", 1)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (60 * count, 60)).save(tmp_path / name / "1.png")
    (tmp_path / "nothing").mkdir()
    made = stand_in(one_per_square)
    gallery, reasons = pipeline.enroll(made, gallery_of(np.eye(4)[:2], 0.8), tmp_path)
    assert gallery.names == ["p0", "p1", "ada"], "p1 is enrolled anew, not twice"
    assert gallery.centres[1:] == pytest.approx(np.full((2, 4), 0.5))
    reason = "1.png: 2 faces found, one is needed to enroll both"
    assert reasons.pop("both/1.png") == reason
    assert "There is no image in" in reasons.pop("nothing")
    assert not reasons
    with pytest.raises(FileNotFoundError, match="holds no folders: make one for each person"):
        pipeline.enroll(made, gallery, tmp_path / "nobody")


@pytest.mark.parametrize("name", ["none", "3"])
def test_an_alignment_that_the_pipeline_cannot_make_is_refused(name):
    with pytest.raises(ValueError, match=f"alignment '{name}'.*2 or 5 points: make 2.2"):
        pipeline.recogniser_matrix(alignment.TEMPLATE[None], SameForAll(name))


def test_a_crowd_goes_through_in_portions(monkeypatch):
    seen = []
    stages = {"recognition": pipeline.recognise, "parts": lambda m, few: seen.append(len(few))}
    monkeypatch.setattr(pipeline, "STAGES", stages)
    photograph = np.zeros((40, 400, 3), np.uint8)
    made = stand_in(one_per_square, gallery_of(np.eye(4), 0.4), parts=None)
    result = made(photograph)
    faces = result.faces
    assert seen == [8, 2]
    stages = ["faces and landmarks", "alignment", "recognition", "parts"]
    assert list(result.milliseconds) == stages
    assert all(face.matches[0][1] == pytest.approx(0.5) for face in faces)
    assert faces[3].label_map is None


# --------------------------------------------------------------------------------- photographs


def test_a_file_that_is_no_photograph_is_one_sentence(tmp_path):
    (tmp_path / "notes.jpg").write_text("not a photograph")
    with pytest.raises(helpers.PhotographError, match=r"notes\.jpg: cannot be decoded"):
        pipeline.open_result(tmp_path / "notes.jpg")
    with pytest.raises(helpers.PhotographError, match="works in Colab only"):
        pipeline.open_result("webcam")


def test_colab_gives_a_file_or_a_picture(tmp_path, monkeypatch):
    data, uploaded = io.BytesIO(), {}
    Image.new("RGB", (40, 30), (200, 20, 20)).save(data, "PNG")
    address = (
        "data:image/png;base64," + __import__("base64").b64encode(data.getvalue()).decode()
    )
    colab = SimpleNamespace(
        files=SimpleNamespace(upload=lambda: uploaded),
        output=SimpleNamespace(eval_js=lambda script: address),
    )
    monkeypatch.setitem(sys.modules, "google", SimpleNamespace(colab=colab))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert pipeline.open_result("webcam").photograph.shape == (30, 40, 3)
    with pytest.raises(helpers.PhotographError, match="No file was uploaded"):
        pipeline.open_result("upload")
    uploaded["me.png"] = data.getvalue()
    assert pipeline.open_result("upload").photograph.shape == (30, 40, 3)


def test_twenty_megapixels_are_reduced(tmp_path):
    """And the points in people.csv are those of the file."""
    Image.new("RGB", (5472, 3648), (90, 120, 150)).save(tmp_path / "large.jpg")
    assert pipeline.open_result(tmp_path / "large.jpg").photograph.shape == (1067, 1600, 3)
    made, target = stand_in(one_per_square, gallery_of(np.eye(4), 0.4)), tmp_path / "figures"
    (row,), reasons = pipeline.process_folder(made, tmp_path, target)
    assert not reasons
    assert (row["image_id"], row["face"], row["person"]) == ("large.jpg", 0, "p0")
    assert row["left_eye_x"] == pytest.approx((40 / 128 * 1067 + 0.5) * 3.42 - 0.5)
    assert (target / "large.jpg.png").exists()


@takes_a_minute
def test_a_folder_is_processed_and_what_cannot_be_is_rejected(series, tmp_path):
    output, own = tmp_path / "series", tmp_path / "own"
    copy_series(series, output)
    own.mkdir()
    source = sorted((series / "data/sample/celeba/img_celeba").glob("*.jpg"))[0]
    shutil.copy(source, own / "one.jpg")
    (own / "broken.jpg").write_bytes(source.read_bytes()[:700])
    Image.new("L", (3, 1)).save(own / "tiny.png")
    run_stages(output, "5.1", own_photographs=own)
    table = pd.read_csv(output / "csv/sample/rejected.csv", dtype=str)
    reasons = table.query("stage == '5.1'").set_index("image_id")["reason"]
    assert "decoded" in reasons["broken.jpg"]
    assert "no face" in reasons["tiny.png"]
    people = pd.read_csv(output / "csv/sample/people.csv")
    assert set(people["image_id"]) <= {"one.jpg"}, "nobody of the folder before"
    found = "one.jpg" in set(people["image_id"])
    assert found != ("one.jpg" in reasons.index), "a photograph is in one of the two tables"


# -------------------------------------------------------------------------------------- models


def test_a_missing_model_is_named_and_a_broken_one_is_one_sentence(series, tmp_path, capsys):
    for name in ("landmarks", "recognition_arcface"):
        shutil.copytree(series / "runs/sample" / name, tmp_path / name)
    made = pipeline.FacePipeline(tmp_path)
    assert list(made.models) == ["recognition"]
    printed = capsys.readouterr().out
    assert all(f"make {stage}" in printed for stage in ("3.2", "3.4", "4.2"))
    for name, maker in (("face_parts", "3.2"), ("portrait", "4.2"), ("landmarks", "1.4")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text("no model")
        with pytest.raises(ValueError, match=rf"{name} cannot be loaded .*make {maker}"):
            pipeline.FacePipeline(tmp_path)
        shutil.rmtree(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"landmarks is not the folder .*make 1\.4"):
        pipeline.FacePipeline(tmp_path)


def test_every_stage_answers_for_a_face(series):
    made = pipeline.FacePipeline(series / "runs/sample")
    folder = series / "data/sample/CelebAMask-HQ/CelebA-HQ-img"
    photograph = helpers.read_photograph(sorted(folder.glob("*.jpg"))[0])
    made.finder = lambda image, starts: ((FACE * 4)[None], np.array([0.9]))
    gallery = pipeline.Gallery.load(series / "runs/sample/gallery.npz")
    assert gallery.recogniser == made.gallery.recogniser
    made.gallery = gallery
    result = made(photograph)
    (face,), milliseconds = result.faces, result.milliseconds
    assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-3)
    assert len(face.matches) == 3
    assert face.label_map.max() <= len(helpers.PARTS)
    assert face.mask.dtype == bool
    assert face.portrait.shape == photograph.shape
    stages = ["faces and landmarks", "alignment", "recognition", "parts", "mask", "portrait"]
    assert list(milliseconds) == stages


# ----------------------------------------------------------------- the models that we ship


@pytest.fixture(scope="module")
def shipped():
    return pipeline.FacePipeline.from_pretrained(device="cpu")


def test_a_real_photograph_goes_through_all_stages(shipped):
    """Eileen Collins: where her eyes and mouth are was read off the photograph by hand."""
    result = shipped(helpers.astronaut())
    (face,) = result.faces
    by_hand = np.array([[204, 101], [247, 103], [225, 127], [203, 140], [245, 141]])
    assert np.linalg.norm(face.points - by_hand, axis=1).max() < 4
    x, y, width, height = face.box
    assert x < 195 < 255 < x + width
    assert y < 90 < 155 < y + height
    assert face.confidence > 0.9
    named = np.array(["", *helpers.PARTS])[face.label_map]
    size = len(named)
    eyes = crops.apply_affine(face.matrix, face.points) * size / 256
    for point, part in zip(eyes.round().astype(int), ("r_eye", "l_eye", "nose"), strict=False):
        around = named[point[1] - 6 : point[1] + 7, point[0] - 6 : point[0] + 7]
        assert part in around
    assert (named[: size // 3] == "hair").mean() > 0.2
    assert 0.1 < face.mask.mean() < 0.6
    assert np.abs(face.portrait.astype(int) - helpers.astronaut()).max() > 30
    row = result.to_dict()
    assert len(row["faces"][0]["embedding"]) == 1280
    assert row["faces"][0]["landmarks"]["nose"] == pytest.approx(face.points[2], abs=0.01)


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket"])
def test_there_is_no_face_where_nobody_is(shipped, name):
    assert shipped(getattr(data, name)()).faces == []


def test_paths_arrays_lists_and_folders_give_the_same(shipped, tmp_path):
    small = Image.fromarray(helpers.astronaut()[:256, 96:352])
    small.save(tmp_path / "b.png")
    (tmp_path / "a.jpg").write_text("no photograph")
    one = shipped(tmp_path / "b.png").faces[0].points
    for other in (small, np.asarray(small), str(tmp_path / "b.png")):
        assert shipped(other).faces[0].points == pytest.approx(one, abs=1e-3)
    broken, good = shipped(tmp_path)
    assert broken.source == "a.jpg" and "cannot be decoded" in broken.problem
    assert good.faces[0].points == pytest.approx(one, abs=1e-3)
    assert [len(result.faces) for result in shipped([small, small])] == [1, 1]
    with pytest.raises(helpers.PhotographError, match="uint8, RGB"):
        shipped(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="Nobody is known yet"):
        shipped.identify(small)


def test_the_command_line_writes_a_figure_and_numbers(tmp_path):
    command = [sys.executable, "-m", "faces.pipeline", "-o", str(tmp_path)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "notebooks")])
    environment = {**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "agg"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.startswith("faces: 1"), done.stderr
    numbers = json.loads((tmp_path / "astronaut.json").read_text())
    assert (numbers["width"], numbers["height"], len(numbers["faces"])) == (512, 512, 1)
    assert Image.open(tmp_path / "astronaut.png").size[0] > 800
    (tmp_path / "letter.jpg").write_text("Dear reader")
    command += ["letter.jpg", "--models", str(helpers.WEIGHTS)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.startswith("letter.jpg: cannot be decoded"), done.stderr
    assert not list(tmp_path.glob("letter.jpg.*"))
    command += ["--models", "nowhere"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr.strip().startswith("nowhere: no folder, and no hub id")


def test_shipped_models_are_what_the_cards_say():
    total = 0
    for name in ("landmarks", "recognition", "parts", "face_mask", "portrait"):
        folder = helpers.WEIGHTS / name
        weights = load_file(folder / "model.safetensors")
        kinds = {str(w.dtype) for w in weights.values() if w.is_floating_point()}
        assert kinds == {"torch.float16"}
        total += (folder / "model.safetensors").stat().st_size
        card = (folder / "README.md").read_text()
        for heading in ("Scores", "Where it fails", "What it must not be used for", "Licence"):
            assert f"## {heading}" in card
    assert total < 50 * 2**20
    assert helpers.given_weights("pretrained", "landmarks") == str(
        helpers.WEIGHTS / "landmarks"
    )
    assert helpers.given_weights("ada/faces", "landmarks") == "ada/faces"
    with pytest.raises(ValueError, match="No pretrained model comes with this notebook"):
        helpers.given_weights("pretrained")


@pytest.mark.parametrize("stage", ["landmarks", "portrait"])
def test_onnx_computes_what_pytorch_computes(tmp_path, stage):
    make_onnx = pytest.importorskip("notebooks.make_onnx")
    model = pipeline.load_models(helpers.WEIGHTS, "arcface")[stage]
    assert make_onnx.export(stage, model, tmp_path / "model.onnx") < 1e-3


# ---------------------------------------------------------------------- downloads and archives

CONTENT = bytes(range(256)) * 400


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; /cut breaks off the first time, /page is HTML, /lies has other bytes."""

    cut = True

    def do_GET(self):
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        others = {"/page": b"<html>quota exceeded</html>", "/lies": CONTENT[::-1]}
        body = others.get(self.path, CONTENT[start:])
        if start >= len(CONTENT) or self.path == "/missing":
            self.send_error(404 if self.path == "/missing" else 416)
            return
        self.send_response(206 if start else 200)
        kind = "text/html" if self.path == "/page" else "application/octet-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/cut" and Server.cut:
            Server.cut = False
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetch(url, path):
    return helpers.fetch(url, path, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_a_broken_download_is_resumed(address, tmp_path):
    Server.cut, path = True, tmp_path / "set.zip"
    with pytest.raises(OSError, match="broke off after 51,200 of 102,400 bytes"):
        fetch(f"{address}/cut", path)
    assert not path.exists()
    assert (tmp_path / "set.zip.part").stat().st_size == 51_200
    assert fetch(f"{address}/cut", path).read_bytes() == CONTENT
    assert not (tmp_path / "set.zip.part").exists()


def test_a_download_that_only_lacked_its_name_is_finished(address, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(CONTENT)
    assert fetch(f"{address}/set", tmp_path / "set.zip").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "message"), [("page", "answers with a page"), ("lies", "other size or content")]
)
def test_a_wrong_download_is_refused(address, tmp_path, path, message):
    with pytest.raises(OSError, match=message):
        fetch(f"{address}/{path}", tmp_path / "set.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "limit", "message"),
    [
        ("set", 100_000, "more than 0 MB; save it smaller"),
        ("set", 200_000, "cannot be decoded"),
        ("missing", 200_000, "missing cannot be downloaded .*404"),
        ("two words", 200_000, "two words: cannot be decoded"),
    ],
)
def test_a_url_that_is_no_photograph_is_one_sentence(address, path, limit, message):
    with pytest.raises(helpers.PhotographError, match=message):
        content = pipeline.content_of(f"{address}/{path}", limit)
        pipeline.reading.read_reduced(content, name=pipeline.reading.source_name(path))


def test_an_archive_cannot_leave_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("../outside.txt", "x")
    with tarfile.open(tmp_path / "b.tar", "w") as packed:
        packed.addfile(tarfile.TarInfo("../outside.txt"), io.BytesIO())
    for name in ("a.zip", "b.tar"):
        with pytest.raises(ValueError, match=f"{name} (holds a path|cannot be unpacked)"):
            real_data.unpack(tmp_path / name, tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.tar"]


def test_half_an_archive_leaves_nothing(tmp_path):
    good, half = tmp_path / "good.zip", tmp_path / "half.zip"
    with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("trainA/1.txt", "x" * 9000)
    half.write_bytes(good.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"half\.zip cannot be unpacked"):
        real_data.unpack(half, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    for _ in range(2):  # the second time over what an interrupted run has left
        assert (real_data.unpack(good, tmp_path / "set") / "trainA/1.txt").exists()


def test_a_real_set_is_brought_from_an_archive(tmp_path, monkeypatch):
    """Wherever in the archive the set lies; a foreign archive is refused and leaves nothing."""
    entry = ("", "horse2zebra.zip", "trainA")
    monkeypatch.setitem(real_data.REAL_SETS, "horse2zebra", entry)
    place, archives = tmp_path / "data", tmp_path / "downloads"
    place.mkdir()
    archives.mkdir()
    with pytest.raises(FileNotFoundError, match=r"horse2zebra\.zip is missing"):
        real_data.bring("horse2zebra", place, archives)
    with zipfile.ZipFile(archives / "horse2zebra.zip", "w") as packed:
        packed.writestr("somewhere/else.txt", "x")
    with pytest.raises(ValueError, match="holds no folder trainA"):
        real_data.bring("horse2zebra", place, archives)
    assert list(place.iterdir()) == []
    with zipfile.ZipFile(archives / "horse2zebra.zip", "w") as packed:
        packed.writestr("sets/horse2zebra/trainA/1.jpg", "x")
    assert "1 files" in real_data.bring("horse2zebra", place, archives)
    assert [path.name for path in place.iterdir()] == ["horse2zebra"]
    assert "is there" in real_data.bring("horse2zebra", place, archives)


# ------------------------------------------------------------------------ the page, the badges


def test_badges_are_stamped_everywhere(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "pictures", "weights")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=ignored)
    shutil.copy(ROOT / "README.md", tmp_path)
    command = [sys.executable, tmp_path / "notebooks/badges.py", "ada/lovelace"]
    subprocess.run(command, check=True, capture_output=True)
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        bootstrap = next(c.source for c in notebook.cells if c.cell_type == "code")
        assert "github/ada/lovelace/blob/main/notebooks/" in notebook.cells[0].source
        assert 'FACES_REPOSITORY", "https://github.com/ada/lovelace"' in bootstrap
    clone = "git clone https://github.com/ada/lovelace && cd lovelace\n"
    assert clone in (tmp_path / "README.md").read_text()


def test_the_page_answers_in_a_browser(tmp_path):
    """A real photograph is dropped, its person enrolled; a wrong file gets a sentence."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    from notebooks import demo

    made = pipeline.FacePipeline.from_pretrained()
    page = demo.build_page(demo.Page(made, str(tmp_path)))
    options = dict(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    options |= dict(max_file_size=demo.LARGEST, show_error=True)
    _, url, public = page.launch(**options)
    assert public is None, "nothing is shared unless asked"
    photograph, second = tmp_path / "astronaut.heic", tmp_path / "dark.png"
    real = Image.fromarray(helpers.astronaut())
    real.save(photograph)
    real.point(lambda value: value * 0.7).save(second)
    (tmp_path / "letter.jpg").write_text("Dear reader")
    try:
        with playwright.sync_playwright() as driver:
            started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            window = started.new_page()
            window.goto(url)
            window.set_input_files("#photograph input[type=file]", str(photograph))
            window.wait_for_selector("#result img", timeout=90_000)
            assert "One face. Milliseconds: faces and landmarks" in window.inner_text(
                "#sentence"
            )
            window.get_by_role("tab", name="Parts").click()
            window.wait_for_selector("#parts img")
            assert "left eye" in window.inner_text("#legend")
            with window.expect_download() as download:
                window.click("#download")
            names = zipfile.ZipFile(download.value.path()).namelist()
            assert {"faces.json", "figure.png", "face_1_parts.png"} <= set(names)
            window.get_by_role("tab", name="People").click()
            window.set_input_files("#album input[type=file]", [str(photograph), str(second)])
            window.fill("#name textarea, #name input", "Eileen")
            window.click("#enroll")
            window.wait_for_selector("text=Known: Eileen")
            window.click("#example")
            window.wait_for_selector("text=One face: Eileen", timeout=90_000)
            window.reload()
            letter = str(tmp_path / "letter.jpg")
            window.set_input_files("#photograph input[type=file]", letter)
            reason = "text=letter.jpg: cannot be decoded"
            window.wait_for_selector(reason, timeout=60_000)
    finally:
        page.close()

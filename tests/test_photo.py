"""5.1: faces are found in any photograph, strangers stay strangers, downloads and archives fail safely, the page answers in a browser."""

import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copy_series, definitions, ROOT, run_stages
from PIL import Image

import helpers

rooms = helpers.shared_definitions("5.1_photo_to_everything")

# ---------------------------------------------------------------- finding faces

FACE = np.array([[40.0, 50], [88, 50], [64, 76], [46, 96], [82, 96]])  # in a picture of 128 px
COLOURS = np.array([[250, 20, 20], [250, 20, 20], [20, 20, 250], [20, 250, 20], [20, 250, 20]])


def dotted(shape, faces):
    """A grey picture with faces that are five dots: eyes red, nose blue, corners of the mouth green."""
    picture = np.full((*shape, 3), 128, np.uint8)
    y, x = np.indices(shape)
    for points in faces:
        radius = np.linalg.norm(points[0] - points[1]) / 10
        for (px, py), colour in zip(points, COLOURS, strict=True):
            picture[np.hypot(x - px, y - py) < radius] = colour
    return picture


def dot_program(images):
    """Stands in for 1.4's program: maps (N, 5, 32, 32) of the dots, left and right told apart by the side they lie on."""
    maps = []
    small = torch.nn.functional.interpolate(images, 32, mode="area")
    across = torch.arange(32.0)
    for channel, side in ((0, -1), (0, 1), (2, 0), (1, -1), (1, 1)):
        other = small[:, [c for c in range(3) if c != channel]].amax(1)
        strength = (small[:, channel] - other).clamp_min(0.15) - 0.15
        middle = (strength * across).sum((1, 2)) / strength.sum((1, 2)).clamp_min(1e-6)
        if side:
            strength = strength * (side * (across - middle[:, None, None]) > 0)
        maps.append(strength)
    return torch.stack(maps, 1) + 1e-6


@pytest.fixture
def finder():
    made = object.__new__(helpers.FaceFinder)
    made.program, made.size, made.usual = dot_program, 128, FACE
    return made


def placed(x, y, width, degrees=0.0):
    turn = np.radians(degrees)
    matrix = width / 48 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return (FACE - FACE.mean(0)) @ matrix.T + (x, y)


def test_faces_of_two_sizes_are_found(finder):
    truth = [placed(130, 150, 70, 12), placed(420, 120, 55, -8)]
    points, confidence = finder(dotted((300, 560), truth))
    assert len(points) == 2
    assert (confidence > 0.85).all()
    for found, true in zip(points, truth, strict=True):
        assert np.linalg.norm(found - true, axis=1).max() < 0.06 * np.linalg.norm(true[0] - true[1])


def test_a_small_face_is_found_by_smaller_windows(finder):
    truth = placed(300, 260, 40)
    points, _ = finder(dotted((500, 600), [truth]))
    assert len(points) == 1
    assert np.linalg.norm(points[0] - truth, axis=1).max() < 4


def test_nobody_is_found_in_noise_and_in_a_flat_picture(finder):
    noise = np.random.default_rng(0).integers(0, 255, (200, 240, 3), dtype=np.uint8)
    for picture in (noise, np.full((200, 240, 3), 128, np.uint8), np.zeros((1, 1, 3), np.uint8)):
        points, confidence = finder(picture)
        assert points.shape == (0, 5, 2)
        assert len(confidence) == 0


def test_a_detector_may_say_where_to_look(finder):
    truth = placed(150, 120, 60, 20)
    points, _ = finder(dotted((240, 300), [truth]), starts=truth[None] + 4)
    assert np.linalg.norm(points[0] - truth, axis=1).max() < 3


def test_celeba_hq_square_follows_karras():
    """Upright face, eyes 100 apart, mouth 120 below: side max(400, 432), centre 12 below the eyes."""
    points = np.array([[[100.0, 200], [200, 200], [150, 260], [110, 320], [190, 320]]])
    matrix = rooms.celeba_hq_matrix(points, 512)[0]
    assert matrix[0, 0] == pytest.approx(512 / 432)
    centre = helpers.apply_affine(matrix, np.array([[150.0, 212]]))[0]
    assert centre == pytest.approx([255.5, 255.5])


# ---------------------------------------------------------------- who is it


def gallery_of(vectors, threshold):
    pictures = [np.zeros((32, 32, 3), np.uint8)] * len(vectors)
    return rooms.Gallery([f"p{index}" for index in range(len(vectors))], vectors, pictures, threshold, "a program")


def test_a_stranger_is_nobody(tmp_path):
    gallery = gallery_of(np.eye(4)[:3], 0.8)
    known = SimpleNamespace(matches=gallery.nearest(np.array([0.1, 0.99, 0, 0.1])))
    stranger = SimpleNamespace(matches=gallery.nearest(np.array([0.5, 0.5, 0.1, 0.7])))
    assert gallery.name_of(known) == "p1"
    assert gallery.name_of(stranger) is None
    again = rooms.Gallery.load(gallery.save(tmp_path / "gallery.npz"))
    assert again.names == gallery.names
    assert again.threshold == 0.8
    assert again.recogniser == "a program"


def test_a_gallery_of_another_recogniser_is_refused(tmp_path):
    pytest.importorskip("gradio")
    from notebooks import demo

    path = gallery_of(np.eye(4)[:3], 0.8).save(tmp_path / "gallery.npz")
    assert demo.gallery_for(SimpleNamespace(recogniser="a program"), rooms, path, "make 5.1").names == ["p0", "p1", "p2"]
    np.savez(tmp_path / "old.npz", **{name: value for name, value in np.load(path).items() if name != "recogniser"})
    for other, file in (("retrained", path), ("a program", tmp_path / "old.npz")):
        with pytest.raises(SystemExit, match=rf"{file.name} was made with another recogniser: make 5\.1"):
            demo.gallery_for(SimpleNamespace(recogniser=other), rooms, file, "make 5.1")


def test_one_photograph_is_enough_to_enrol(tmp_path):
    """And one with two faces is not: whose is it?"""
    house = object.__new__(rooms.House)
    house.face, house.detector = SimpleNamespace(face_size=32, alignment="2", closeness=1.0), None
    house.recognise = lambda images: torch.ones(len(images), 4) / 2
    for name, count in (("ada", 1), ("both", 2)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (60 * count, 60)).save(tmp_path / name / "1.png")
    house.finder = lambda photograph, starts: (np.stack([FACE + 5] * (photograph.shape[1] // 60)), np.ones(photograph.shape[1] // 60))
    gallery, refused = rooms.enrol(house, gallery_of(np.eye(4)[:2], 0.8), tmp_path)
    assert gallery.names == ["p0", "p1", "ada"]
    assert refused == {"both/1.png": "1.png: 2 faces found, one is needed to enrol both"}


def test_a_photograph_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "notes.jpg").write_text("not a photograph")
    with pytest.raises(helpers.PhotographError, match=r"notes\.jpg: cannot be decoded"):
        rooms.photograph_from(tmp_path / "notes.jpg")
    with pytest.raises(helpers.PhotographError, match="works in Colab only"):
        rooms.photograph_from("webcam")


def test_twenty_megapixels_are_taken_smaller(tmp_path):
    Image.new("RGB", (5472, 3648), (90, 120, 150)).save(tmp_path / "large.jpg")
    assert rooms.photograph_from(tmp_path / "large.jpg").shape == (1067, 1600, 3)


def test_a_folder_goes_through_and_what_cannot_is_set_aside(series, tmp_path):
    output, own = tmp_path / "series", tmp_path / "own"
    copy_series(series, output)
    own.mkdir()
    source = sorted((series / "data/sample/celeba/img_celeba").glob("*.jpg"))[0]
    shutil.copy(source, own / "one.jpg")
    (own / "broken.jpg").write_bytes(source.read_bytes()[:700])
    Image.new("L", (3, 1)).save(own / "tiny.png")
    run_stages(output, "5.1", own_photographs=own)
    rejected = pd.read_csv(output / "csv/sample/rejected.csv", dtype=str).query("stage == '5.1'").set_index("image_id")["reason"]
    assert "decoded" in rejected["broken.jpg"]
    assert "no face" in rejected["tiny.png"]
    people = pd.read_csv(output / "csv/sample/people.csv")
    assert set(people["image_id"]) <= {"one.jpg"}, "nobody of the folder before"
    found = "one.jpg" in set(people["image_id"])
    assert found != ("one.jpg" in rejected.index), "a photograph is a row of one of the two, not of both or neither"


def test_a_missing_room_is_said_and_passed_by(series, tmp_path, capsys):
    for name in ("stacked_hourglass.pt2", "recogniser_arcface.pt2"):
        shutil.copy(series / "runs/sample" / name, tmp_path)
    house = rooms.House(tmp_path)
    assert house.rooms == {}
    assert "make 3.2" in capsys.readouterr().out
    (tmp_path / "face_parts.pt2").write_bytes(b"no program")
    with pytest.raises(ValueError, match=r"face_parts\.pt2 cannot be read as an exported program.*make 3\.2"):
        rooms.House(tmp_path)


def test_every_room_answers_for_a_face(series):
    house = rooms.House(series / "runs/sample")
    photograph = helpers.read_photograph(sorted((series / "data/sample/CelebAMask-HQ/CelebA-HQ-img").glob("*.jpg"))[0])
    house.finder = lambda image, starts: ((FACE * 4)[None], np.array([0.9]))
    faces, spent = rooms.everything(house, photograph, rooms.Gallery.load(series / "runs/sample/gallery.npz"))
    (face,) = faces
    assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-3)
    assert len(face.matches) == 3
    assert face.label_map.max() <= len(helpers.PARTS)
    assert face.mask.dtype == bool
    assert face.portrait.shape == photograph.shape
    assert set(spent) == {"faces and landmarks", "alignment", "recognition", "parts", "mask", "portrait"}


# ---------------------------------------------------------------- downloads and archives

CONTENT = bytes(range(256)) * 400


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; /cut breaks off half way the first time, /page answers with HTML, /lies with other bytes."""

    cut = True

    def do_GET(self):
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        body = {"/page": b"<html>quota exceeded</html>", "/lies": CONTENT[::-1]}.get(self.path, CONTENT[start:])
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "application/octet-stream")
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


def sha256(content):
    import hashlib

    return hashlib.sha256(content).hexdigest()


def test_a_broken_download_goes_on_where_it_broke(address, tmp_path):
    Server.cut = True
    with pytest.raises(OSError, match="broke off after 51,200 of 102,400 bytes"):
        helpers.fetch(f"{address}/cut", tmp_path / "set.zip", len(CONTENT), sha256(CONTENT))
    assert not (tmp_path / "set.zip").exists()
    assert (tmp_path / "set.zip.part").stat().st_size == 51_200
    path = helpers.fetch(f"{address}/cut", tmp_path / "set.zip", len(CONTENT), sha256(CONTENT))
    assert path.read_bytes() == CONTENT
    assert not (tmp_path / "set.zip.part").exists()


def test_a_download_that_only_lacked_its_name_is_finished(address, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(CONTENT)
    assert helpers.fetch(f"{address}/set", tmp_path / "set.zip", len(CONTENT), sha256(CONTENT)).read_bytes() == CONTENT


@pytest.mark.parametrize(("path", "message"), [("page", "answers with a page"), ("lies", "other size or content")])
def test_a_wrong_download_is_refused(address, tmp_path, path, message):
    with pytest.raises(OSError, match=message):
        helpers.fetch(f"{address}/{path}", tmp_path / "set.zip", len(CONTENT), sha256(CONTENT))
    assert list(tmp_path.iterdir()) == []


unpack = definitions("0.1", "unpack", Path=Path, os=os)["unpack"]


def test_an_archive_cannot_leave_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("../outside.txt", "x")
    with tarfile.open(tmp_path / "b.tar", "w") as packed:
        packed.addfile(tarfile.TarInfo("../outside.txt"), io.BytesIO())
    for name in ("a.zip", "b.tar"):
        with pytest.raises(ValueError, match=f"{name} (holds a path|cannot be unpacked)"):
            unpack(tmp_path / name, tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.tar"]


def test_half_an_archive_leaves_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "good.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("trainA/1.txt", "x" * 9000)
    (tmp_path / "half.zip").write_bytes((tmp_path / "good.zip").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"half\.zip cannot be unpacked"):
        unpack(tmp_path / "half.zip", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert (unpack(tmp_path / "good.zip", tmp_path / "set") / "trainA/1.txt").exists()
    assert (unpack(tmp_path / "good.zip", tmp_path / "set") / "trainA/1.txt").exists(), "over what a run that was stopped has left"


def test_a_real_set_is_brought_from_an_archive(tmp_path):
    """Wherever in the archive the set lies; a foreign archive is refused and leaves nothing; a set that is there stays."""
    space = definitions("0.1", "bring", "unpack", Path=Path, os=os)
    space["REAL_SETS"] = {"horse2zebra": (None, "horse2zebra.zip", "trainA")}
    place, archives = tmp_path / "data", tmp_path / "downloads"
    place.mkdir()
    archives.mkdir()
    with pytest.raises(FileNotFoundError, match=r"horse2zebra\.zip is missing"):
        space["bring"]("horse2zebra", place, archives)
    with zipfile.ZipFile(archives / "horse2zebra.zip", "w") as packed:
        packed.writestr("somewhere/else.txt", "x")
    with pytest.raises(ValueError, match="holds no folder trainA"):
        space["bring"]("horse2zebra", place, archives)
    assert list(place.iterdir()) == []
    with zipfile.ZipFile(archives / "horse2zebra.zip", "w") as packed:
        packed.writestr("sets/horse2zebra/trainA/1.jpg", "x")
    assert "1 files" in space["bring"]("horse2zebra", place, archives)
    assert [path.name for path in place.iterdir()] == ["horse2zebra"]
    assert "is there" in space["bring"]("horse2zebra", place, archives)


# ---------------------------------------------------------------- the page, the badges


def test_badges_are_stamped_everywhere(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("__pycache__", "pictures"))
    shutil.copy(ROOT / "README.md", tmp_path)
    subprocess.run([sys.executable, tmp_path / "notebooks/badges.py", "ada/lovelace"], check=True, capture_output=True)
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        assert "github/ada/lovelace/blob/main/notebooks/" in notebook.cells[0].source
        assert 'FACES_REPOSITORY", "https://github.com/ada/lovelace"' in next(c.source for c in notebook.cells if c.cell_type == "code")


def test_the_page_answers_in_a_browser(series, tmp_path):
    """Chromium opens the page, drops a photograph, sees the result; a wrong file gets a sentence."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    gradio, playwright = pytest.importorskip("gradio"), pytest.importorskip("playwright.sync_api")
    assert gradio
    from notebooks import demo

    house = rooms.House(series / "runs/sample")
    gallery = rooms.Gallery.load(series / "runs/sample/gallery.npz")
    page = demo.build_page(demo.answerer(house, gallery, rooms))
    _, url, public = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, max_file_size=demo.LARGEST, quiet=True, show_error=True)
    assert public is None, "nothing is shared unless asked"
    photograph = sorted((series / "data/sample/celeba/img_celeba").glob("*.jpg"))[0]
    (tmp_path / "letter.jpg").write_text("Dear reader")
    try:
        with playwright.sync_playwright() as driver:
            window = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
            window.goto(url)
            window.set_input_files("#photograph input[type=file]", str(photograph))
            window.wait_for_selector("#result img", timeout=90_000)
            assert "Milliseconds: faces and landmarks" in window.inner_text("#sentence")
            window.reload()
            window.set_input_files("#photograph input[type=file]", str(tmp_path / "letter.jpg"))
            window.wait_for_selector("text=letter.jpg: cannot be decoded", timeout=60_000)
    finally:
        page.close()

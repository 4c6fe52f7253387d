"""Photographs and videos as people have them: read, or refused in one sentence."""

import http.server
import io
import os
import subprocess
import sys
import threading
import unicodedata

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from skimage import data

from faces import pipeline
from helpers import list_images, PhotographError, read_photograph
from notebooks import photographs

PICTURE = np.ascontiguousarray(data.astronaut()[:240, :320])


def close_to(read, expected=PICTURE, most=6.0):
    assert read.shape == expected.shape
    assert np.abs(read.astype(float) - expected).mean() < most


def jpeg(quality=92, **options):
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


# -------------------------------------------------------------------------------------- formats


ENDINGS = "heic heif avif jfif JPG jpe webp bmp tif png ppm jp2 tga pcx"


@pytest.mark.parametrize("name", [f"a.{ending}" for ending in ENDINGS.split()])
def test_formats_are_read(tmp_path, name):
    kinds = {".jfif": "JPEG", ".jpe": "JPEG", ".JPG": "JPEG"}
    Image.fromarray(PICTURE).save(tmp_path / name, kinds.get(name[1:]), quality=92)
    close_to(read_photograph(tmp_path / name))
    assert list_images(tmp_path) == [tmp_path / name]


@pytest.mark.parametrize("name", ["photo", "photo.png", "photo.dat", "photo.heic"])
def test_the_content_counts_and_not_the_ending(tmp_path, name):
    (tmp_path / name).write_bytes(jpeg())
    close_to(read_photograph(tmp_path / name))
    assert list_images(tmp_path) == [tmp_path / name]


MODES = {
    "grey": lambda im: im.convert("L"),
    "black and white": lambda im: im.convert("1"),
    "palette": lambda im: im.convert("P", palette=Image.Palette.ADAPTIVE),
    "LA": lambda im: im.convert("LA"),
    "RGBA": lambda im: im.convert("RGBA"),
    "CMYK": lambda im: im.convert("CMYK"),
    "LAB": lambda im: im.convert("LAB"),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = MODES[mode](Image.fromarray(PICTURE))
    image.save(tmp_path / ("x.tif" if image.mode in ("CMYK", "LAB") else "x.png"))
    (path,) = tmp_path.iterdir()
    read = read_photograph(path)
    assert (read.shape, read.dtype) == (PICTURE.shape, np.uint8)
    grey = image.mode in ("L", "1", "LA")
    expected = PICTURE.mean(2, keepdims=True).repeat(3, 2) if grey else PICTURE
    close_to(read, expected, 120 if image.mode == "1" else 12)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_sixteen_bits_of_which_fewer_are_used(tmp_path, bits):
    """A camera's 12 bits are not read as a black picture."""
    grey = PICTURE.mean(2)
    values = (grey / 255 * (2**bits - 1)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    Image.fromarray(values).save(tmp_path / "x.png")
    close_to(read_photograph(tmp_path / "x.png"), grey[..., None].repeat(3, 2))
    colour = (PICTURE.astype(np.uint16) << (bits - 8)) + (1 << (bits - 8)) - 1
    cv2.imwrite(str(tmp_path / "y.png"), colour[..., ::-1])
    close_to(read_photograph(tmp_path / "y.png"))


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_tiffs_of_floats(tmp_path, scale):
    grey = (PICTURE.mean(2) / 255 * scale).astype(np.float32)
    Image.fromarray(grey).save(tmp_path / "x.tif")
    close_to(read_photograph(tmp_path / "x.tif"), PICTURE.mean(2, keepdims=True).repeat(3, 2))


def test_what_is_transparent_becomes_white(tmp_path):
    alpha = np.full((*PICTURE.shape[:2], 1), 255, np.uint8)
    alpha[:100] = 0
    Image.fromarray(np.concatenate([PICTURE, alpha], 2)).save(tmp_path / "x.png")
    read = read_photograph(tmp_path / "x.png")
    assert (read[:100] == 255).all()
    close_to(read[100:], PICTURE[100:])


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png"])
def test_of_an_animation_the_first_picture_counts(tmp_path, name):
    first, second = Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1].copy())
    first.save(tmp_path / name, save_all=True, append_images=[second], duration=90)
    close_to(read_photograph(tmp_path / name), most=12)


# --------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("value", [0, 9, 65535, "6", b"6", (6, 1), 2.5, None])
def test_an_orientation_of_any_value_never_raises(tmp_path, value):
    exif = Image.Exif()
    if value is not None:
        exif[0x0112] = value
    try:
        block = exif.tobytes()
    except Exception:
        pytest.skip("Pillow cannot write it")
    (tmp_path / "x.jpg").write_bytes(jpeg(exif=block))
    assert sorted(read_photograph(tmp_path / "x.jpg").shape) == [3, 240, 320]


@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0junk"]
)
def test_a_corrupt_exif_block_is_passed_over(tmp_path, block):
    (tmp_path / "x.jpg").write_bytes(jpeg(exif=b"Exif\0\0" + block))
    close_to(read_photograph(tmp_path / "x.jpg"))
    assert photographs.image_size(tmp_path / "x.jpg") == (320, 240)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_are_applied_once(tmp_path, name, orientation):
    turned = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.swapaxes(0, 1),
        6: np.rot90(PICTURE),
        7: PICTURE[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(PICTURE, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turned))
    stored.save(tmp_path / name, exif=exif, quality=92)
    close_to(read_photograph(tmp_path / name))
    assert photographs.image_size(tmp_path / name) == (320, 240)


# -------------------------------------------------------------------------------------- damage


def cut_and_closed(content):
    return content[: len(content) // 2] + b"\xff\xd9"


def zeros_inside(content):
    middle = len(content) // 2
    return content[:middle] + bytes(3000) + content[middle + 3000 :]


def page_inside(content):
    middle = len(content) // 2
    page = b"<html><body>502 Bad Gateway</body></html>" * 60
    return content[:middle] + page + content[middle + len(page) :]


@pytest.mark.parametrize("damage", [cut_and_closed, zeros_inside, page_inside])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_a_damaged_jpeg_is_set_aside(tmp_path, damage, options):
    (tmp_path / "x.jpg").write_bytes(damage(jpeg(95, **options)))
    with pytest.raises(PhotographError, match=r"^x\.jpg: cannot be decoded \(.+\)$"):
        read_photograph(tmp_path / "x.jpg")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
@pytest.mark.parametrize("more", [b"", bytes(100), b"appended by a telephone"])
def test_a_healthy_jpeg_is_not(tmp_path, options, more):
    (tmp_path / "x.jpg").write_bytes(jpeg(**options) + more)
    close_to(read_photograph(tmp_path / "x.jpg"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.jpg", b"", "the file is empty"),
        ("x.jpg", b"<!DOCTYPE html><html>quota</html>", "a web page"),
        ("x.png", b"not a picture", "no image"),
        ("x.cr2", b"II*\0raw", "export it as JPEG"),
    ],
)
def test_what_is_no_photograph_is_one_sentence(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PhotographError, match=rf"^{name}: cannot be decoded \(.*{reason}"):
        read_photograph(tmp_path / name)


def test_what_is_no_image_is_counted_and_named(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    for name in ("notes.txt", "clip.mp4", ".hidden.jpg", "._a.jpg", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"something")
    (tmp_path / "2019").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg"]
    printed = capsys.readouterr().out
    assert "3 are no images: 2019/, clip.mp4, notes.txt" in printed
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"only 2019/, clip\.mp4, notes\.txt"):
        list_images(tmp_path)


# ---------------------------------------------------------------------------------- large ones


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_hundred_megapixels_need_little_memory(tmp_path):
    """12,000 x 9,000 pixels, in a process of its own; points are those of the file."""
    small = Image.fromarray(PICTURE).resize((1200, 900))
    small.resize((12_000, 9_000), Image.Resampling.NEAREST).save(tmp_path / "x.jpg", quality=80)
    code = (
        "import re, sys; from faces import pipeline;"
        "r = pipeline.open_result(sys.argv[1]);"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1];"
        "print(r.photograph.shape, r.scale, peak)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "notebooks")}
    command = [sys.executable, "-c", code, str(tmp_path / "x.jpg")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *shape, scale, kilobytes = done.stdout.replace("(", "").replace(")", "").split()
    assert shape == ["1200,", "1600,", "3"]
    assert float(scale) == 7.5
    assert int(kilobytes) < 2e6


def test_a_decompression_bomb_is_refused(tmp_path):
    import struct
    import zlib

    chunk = lambda kind, body: (  # noqa: E731
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    )
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    (tmp_path / "bomb.png").write_bytes(content + chunk(b"IEND", b""))
    with pytest.raises(PhotographError, match=r"bomb\.png.*more than 250 megapixels"):
        read_photograph(tmp_path / "bomb.png")


# --------------------------------------------------------------------------------------- names


def test_names_of_every_kind(tmp_path):
    """Blanks, both forms of an accent, bytes that are no UTF-8, 255 bytes, signs."""
    names = ["my photo (1).jpg", "Zo\u00e9.jpg", "Zoe\u0301.jpg", "\udce9t\udce9.jpg"]
    names += ["x" * 251 + ".jpg", "100%.jpg", "#1.jpg", "a b\u2028c.jpg", "\u5bb6\u65cf.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(jpeg())
    found = list_images(tmp_path)
    assert {path.name for path in found} == set(names)
    taken = set()
    for path in found:
        close_to(read_photograph(path))
        shown = photographs.source_name(path)
        shown.encode()
        target = tmp_path / "results" / f"{photographs.result_name(shown, taken)}.png"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(b"")
    assert len(list((tmp_path / "results").iterdir())) == len(names)


def test_the_other_form_of_an_accent_is_found(tmp_path):
    name = unicodedata.normalize("NFD", "Jos\u00e9.jpg")
    (tmp_path / name).write_bytes(jpeg())
    close_to(read_photograph(tmp_path / unicodedata.normalize("NFC", name)))


def test_results_of_equal_names_are_kept_apart():
    taken = set()
    names = ["x.jpg", "x.png", "X.JPG", "x.jpg", "a/b:c?.jpg"]
    given = [photographs.result_name(name, taken) for name in names]
    assert given == ["x.jpg", "x.png", "X.JPG_2", "x.jpg_3", "a_b_c_.jpg"]


# -------------------------------------------------------------------------------- URLs, videos


class Server(http.server.BaseHTTPRequestHandler):
    """Refuses programs without a name; serves a photograph, a page, and errors."""

    def do_GET(self):
        agent = self.headers.get("User-Agent", "")
        code = {"/403.jpg": 403, "/404.jpg": 404, "/500.jpg": 500}.get(self.path, 200)
        code = 403 if not agent or agent.startswith("Python-urllib") else code
        if self.path == "/moved.jpg":
            self.send_response(302)
            self.send_header("Location", "/me.jpg")
            self.end_headers()
            return
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"<html>a page</html>" if self.path == "/page" else jpeg())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("name", ["me.jpg", "moved.jpg", "two \u00e9.jpg", "me.jpg?size=9"])
def test_a_photograph_of_the_web_is_read(address, name):
    result = pipeline.open_result(f"{address}/{name}")
    close_to(result.photograph)
    assert result.source == name.split("?")[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("403.jpg", "error 403.*use a browser"),
        ("404.jpg", "error 404.*check the address"),
        ("500.jpg", "error 500.*try again later"),
        ("page", "a web page, not an image"),
    ],
)
def test_what_the_web_refuses_is_one_sentence(address, path, message):
    with pytest.raises(PhotographError, match=message) as caught:
        pipeline.open_result(f"{address}/{path}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.jpg", "https://nowhere.invalid/x.jpg"])
def test_no_network_is_one_sentence(url):
    with pytest.raises(PhotographError, match="check the network and the address"):
        pipeline.open_result(url)


def write_video(path, rate=25.0, count=30, code="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, (160, 120))
    for number in range(count):
        writer.write(np.full((120, 160, 3), number * 8, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("rate", [8, 25, 60, 120])
def test_a_video_becomes_frames_that_a_gif_can_hold(tmp_path, rate):
    frames, pause = photographs.read_video(write_video(tmp_path / "x.avi", rate))
    assert pause >= 20
    assert pause % 10 == 0
    assert len(frames) == 30 // max(1, -(-rate // 50))
    assert frames[0].shape == (120, 160, 3)


def test_bad_frames_are_skipped_and_counted(tmp_path, capsys):
    content = bytearray(write_video(tmp_path / "x.avi").read_bytes())
    starts = [i for i in range(len(content) - 4) if content[i : i + 4] == b"00dc"][:30]
    for start in starts[10:13]:
        content[start + 8 : start + 200] = bytes(192)
    (tmp_path / "x.avi").write_bytes(content)
    frames, _ = photographs.read_video(tmp_path / "x.avi")
    assert 24 <= len(frames) <= 29
    assert "frames cannot be decoded; they were skipped" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"Dear all", bytes(5000)])
def test_a_file_without_a_picture_is_one_sentence(tmp_path, content):
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(PhotographError, match=r"x\.mp4: no video, or none with a picture"):
        photographs.read_video(tmp_path / "x.mp4")
    with pytest.raises(PhotographError, match=r"y\.mp4: no such video"):
        photographs.read_video(tmp_path / "y.mp4")


# --------------------------------------------------------------------------------------- finder


@pytest.fixture(scope="module")
def finder():
    from faces import landmarks
    from helpers import WEIGHTS

    model = landmarks.LandmarkModel.from_pretrained(WEIGHTS / "landmarks")
    return landmarks.FaceFinder(model.eval())


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_photograph_on_its_side_is_turned(finder, quarters):
    photograph = data.astronaut()
    upright, _ = finder(photograph)
    turned, confidence = finder(np.ascontiguousarray(np.rot90(photograph, quarters)))
    assert len(upright) == len(turned) == 1
    assert confidence[0] > 0.99
    from faces import landmarks

    expected = landmarks.turn_back(upright, 4 - quarters, photograph.shape)
    eyes = np.linalg.norm(upright[0, 0] - upright[0, 1])
    assert np.abs(turned - expected).max() < 0.05 * eyes


def test_small_faces_beside_a_large_one_are_found(finder):
    photograph = cv2.resize(data.astronaut(), (1000, 1000))
    small = cv2.resize(
        data.astronaut()[20:220, 110:310], (110, 110), None, 0, 0, cv2.INTER_AREA
    )
    for y, x in ((60, 40), (500, 20), (80, 850)):
        photograph[y : y + 110, x : x + 110] = small
    points, _ = finder(photograph)
    assert len(points) == 4
    widths = np.linalg.norm(points[:, 0] - points[:, 1], axis=1)
    assert widths[0] > 3 * widths[1]

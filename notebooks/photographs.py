"""Reading photographs and videos of any kind, from anywhere; writing images."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import math
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from pillow_heif import register_heif_opener
from skimage import data

from notebooks import jpeg
from notebooks.files import display_path, open_url, write_atomically

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # our sentences say what is wrong
register_heif_opener()  # what iPhones write
Image.init()
Image.MAX_IMAGE_PIXELS = MOST_PIXELS = 250_000_000  # the largest telephones have 200 megapixels
# Of these Pillow knows only the header, or calls another program.
NO_PHOTOGRAPHS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
KINDS = [kind for kind in Image.ID if kind not in NO_PHOTOGRAPHS]
ENDINGS = {end for end, kind in Image.registered_extensions().items() if kind in KINDS}
RAW = set(".arw .cr2 .cr3 .dng .nef .nrw .orf .pef .raf .raw .rw2 .srw".split())
# What a file without a known ending may be: kinds that their first bytes tell for certain.
CERTAIN = "AVIF BMP DDS GIF HEIF ICNS JPEG JPEG2000 PNG PPM PSD QOI TIFF WEBP".split()
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}  # of Windows and macOS


class PhotographError(ValueError):
    """A photograph or video that cannot be used; the message names the file and the reason."""


# --------------------------------------------------------------------------------------- names


def printable(name: str | Path) -> str:
    r"""A name that can be printed and saved: bytes that are not UTF-8 become \xe9 and so on."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def existing(path: str | Path) -> Path:
    """The path; where nothing is there, a file with that name as others write it, if any.

    An accent is one character or two; bytes that are not UTF-8 may have become `printable`.
    """
    path = Path(path)
    if os.path.lexists(path):
        return path
    unescape = lambda found: bytes.fromhex(found[1].decode())  # noqa: E731
    raw = re.sub(rb"\\x([0-9a-f]{2})", unescape, os.fsencode(path.name))
    forms = [
        lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFD")
    ]
    others = [
        path.with_name(name) for name in (*(f(path.name) for f in forms), os.fsdecode(raw))
    ]
    others += [Path(form(str(path))) for form in forms]
    return next((other for other in others if os.path.lexists(other)), path)


def is_url(source) -> bool:
    """Whether it is the address of something in the web."""
    return str(source).lower().startswith(("http://", "https://"))


def source_name(source: str | Path) -> str:
    """The name of a file or a URL, without its folder, that can be printed and saved."""
    if is_url(source):
        parts = urlsplit(str(source))
        return unquote(Path(parts.path).name) or parts.netloc
    return printable(Path(source).name)


def result_name(source: str, taken: set[str]) -> str:
    """A name for the results of a source, without ending; unlike those `taken`, which gets it.

    No system refuses it, and it is short enough for an ending.
    """
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", source).strip() or "photograph"
    if len(name.encode()) > 200:
        start = name.encode()[:180].decode(errors="ignore")
        name = f"{start}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    key = lambda name: unicodedata.normalize("NFC", name).casefold()  # noqa: E731
    numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    free = next(one for one in (name, *numbered) if key(one) not in taken)
    taken.add(key(free))
    return free


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder, sorted; what else lies there is counted and named in a line.

    Raises FileNotFoundError where there is no folder or no image in it.
    """
    folder = existing(folder)
    where = printable(display_path(folder))
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {where}: check its name.")
    images, others = [], []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.name.lower() not in LITTER:
            (images if _is_image(path) else others).append(path)
    names = [printable(path.name) + "/" * path.is_dir() for path in others]
    listed = ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
    if not images:
        holds = f", only {listed}" if names else ""
        raise FileNotFoundError(
            f"There is no image in {where}{holds}: put JPEG or PNG files there."
        )
    if names:
        count = "1 is no image" if len(names) == 1 else f"{len(names)} are no images"
        print(f"{where}: {count}: {listed}")
    return images


def _is_image(path: Path) -> bool:
    """Whether it is a file with the ending of an image, or with an image's first bytes."""
    ending = path.suffix.lower()
    if not path.is_file() or ending in RAW:
        return False
    if ending in ENDINGS:  # a damaged one, too: reading it says so
        return True
    try:
        with Image.open(path, formats=CERTAIN):
            return True
    except Exception:  # whatever other files provoke
        return False


# ------------------------------------------------------------------------------------- reading


def astronaut() -> np.ndarray:
    """A real photograph (512, 512, 3): Eileen Collins, by NASA, in the public domain."""
    return data.astronaut()


def read_photograph(path: str | Path) -> np.ndarray:
    """A photograph as (H, W, 3) uint8 RGB, upright by its EXIF tag, of any mode and depth.

    What is transparent becomes white. Raises PhotographError for a missing, empty, damaged or
    foreign file.
    """
    return read_reduced(path)[0]


def read_reduced(
    source: str | Path | bytes, largest: int = 0, name: str = ""
) -> tuple[np.ndarray, tuple[int, int]]:
    """`read_photograph` with sides of at most `largest` pixels; the file's width and height.

    `source` is a path, or what a file `name` holds. A pixel x of the photograph is
    (x + 0.5) * scale - 0.5 in the file, where scale = max(width, height) / largest, if above 1.
    """
    name, content = name or source_name(source), source
    try:
        if not isinstance(source, bytes):
            content = _content_of(existing(source))
        array, size, factor = _decode(content, largest)
    except FileNotFoundError:
        raise PhotographError(f"{name}: no such photograph") from None
    except Image.DecompressionBombError:
        reason = f"more than {MOST_PIXELS // 1_000_000} megapixels: save it smaller"
    except UnidentifiedImageError:
        reason = _kind_of(content)
    except Exception as error:  # decoders raise whatever a damaged file provokes
        reason = str(error).replace(str(source), "file") or type(error).__name__
    else:
        return _resized(array, size, factor, largest), size
    raise PhotographError(f"{name}: cannot be decoded ({reason})")


def pixels_of(image: Image.Image) -> np.ndarray:
    """A PIL image as (H, W, 3) uint8 RGB, upright by its EXIF tag, of any mode and depth."""
    return _upright(_pixels(image, 1), _orientation(image))


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of the upright photograph, from its header; (1, 1) if unreadable."""
    try:
        with Image.open(existing(path), formats=KINDS) as image:
            return _upright_size(image)
    except Exception:  # decoders raise whatever a damaged file provokes
        is_tiff = Path(path).suffix.lower() in (".tif", ".tiff")
    with contextlib.suppress(PhotographError):
        return read_reduced(path)[1] if is_tiff else (1, 1)  # of floats, which Pillow lacks
    return 1, 1


def _content_of(path: Path) -> bytes:
    """What a file holds; ValueError for what is no photograph by its name."""
    if path.suffix.lower() in RAW:
        raise ValueError("the raw file of a camera: export it as JPEG")
    if path.is_dir():
        raise ValueError("a folder, not an image")
    return path.read_bytes()


def _kind_of(content: bytes) -> str:
    """What a file is that is no image."""
    start = content[:1024].lstrip().lower()
    if start.startswith(b"<!doctype html") or b"<html" in start:
        return "a web page, not an image"
    return "no image, or of an unknown kind" if content else "the file is empty"


def _decode(content: bytes, largest: int) -> tuple[np.ndarray, tuple[int, int], int]:
    """Upright pixels (H, W, 3), width and height of the file, and how many of its pixels fit in
    one: 1, 2, 4 or 8, as many as leave `largest`.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=KINDS)
    except UnidentifiedImageError:
        array = _decode_deep(content, 1) if content[:2] in (b"II", b"MM") else None
        if array is None:
            raise
        return array, array.shape[1::-1], 1  # a TIFF of floats in three channels
    with image:
        if image.size[0] * image.size[1] > MOST_PIXELS:
            raise Image.DecompressionBombError
        fitting = (step for step in (8, 4, 2) if largest and step * largest <= max(image.size))
        factor, array = next(fitting, 1), None
        is_deep = ";16" in str(image.tile) or image.format in ("PPM", "JPEG2000")
        if image.format in ("JPEG", "MPO"):
            array = jpeg.decode(content, image.mode, image.size, factor)
        elif is_deep and image.mode in ("RGB", "RGBA", "LA"):  # Pillow cuts off lower bits
            array = _decode_deep(content, factor)
        elif image.format == "WEBP" and factor > 1:  # OpenCV needs half of Pillow's memory
            array = _decode_deep(content, factor, np.uint8)
        if array is None:
            array = _pixels(image, factor)
        if image.format != "TIFF":  # which Pillow and OpenCV turn themselves
            array = _upright(array, _orientation(image))
        return array, _upright_size(image), factor


def _resized(array: np.ndarray, size: tuple, factor: int, largest: int) -> np.ndarray:
    """What was decoded at 1 / factor of its size, with a longer side of `largest` at most."""
    scale = max(1.0, max(size) / largest) if largest else 1.0
    if scale == 1:
        return array
    width, height = (max(1, round(side / scale)) for side in size)
    array = cv2.resize(array, None, None, factor / scale, factor / scale, cv2.INTER_AREA)
    bottom, right = max(0, height - len(array)), max(0, width - array.shape[1])
    if bottom or right:
        array = cv2.copyMakeBorder(array, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(array[:height, :width])


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = _orientation(image) > 4 and image.format != "TIFF"
    return image.size[::-1] if turned else image.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that is valid."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        value = int(value[0] if isinstance(value, tuple | list) else value)
    except Exception:  # Pillow raises whatever a corrupt block provokes
        return 1
    return value if 1 <= value <= 8 else 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors an image (H, W, 3) as its EXIF orientation says."""
    array = array.swapaxes(0, 1) if orientation > 4 else array
    array = array[:, ::-1] if orientation in (2, 3, 6, 7) else array
    array = array[::-1] if orientation in (3, 4, 7, 8) else array
    return np.ascontiguousarray(array)


def _decode_deep(content: bytes, factor: int, least=np.uint16) -> np.ndarray | None:
    """The pixels (H, W, 3) of several channels of `least`, or deeper ones; else None."""
    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.ndim != 3 or array.itemsize < np.dtype(least).itemsize:
        return None
    return _eight_bits(array, factor)


def _eight_bits(values: np.ndarray, factor: int) -> np.ndarray:
    """Numbers of any type and range, (H, W) or BGR or BGRA, as (H, W, 3) uint8 RGB.

    Whole ones are scaled by the fewest of 8, 10, 12, 14 and 16 bits that hold them, floats of
    about 0 to 1 or 0 to 255 by that, others by their own range.
    """
    low, high = _range_of(values)
    slope, parts = 255 / max(high - low, 1e-12), []
    for first in range(0, len(values), 256):  # a part at a time: memory
        part = values[first : first + 256]
        if part.dtype.kind == "f":
            part = np.nan_to_num(part, nan=low, posinf=high, neginf=low)
        part = np.clip(part, *np.array([low, high]).astype(part.dtype))
        part = cv2.convertScaleAbs(part, alpha=slope, beta=-low * slope)
        if part.ndim == 3:
            code = cv2.COLOR_BGRA2RGBA if part.shape[2] == 4 else cv2.COLOR_BGR2RGB
            part = cv2.cvtColor(part, code)
        parts.append(_pixels(Image.fromarray(part), factor))
    return np.concatenate(parts)


def _range_of(values: np.ndarray) -> tuple[float, float]:
    """The numbers that become 0 and 255."""
    is_real, lows, highs = values.dtype.kind == "f", [], []
    for first in range(0, len(values), 256):
        part = values[first : first + 256]
        part = part[np.isfinite(part)] if is_real else part
        lows.append(float(part.min(initial=np.inf) if is_real else part.min()))
        highs.append(float(part.max(initial=-np.inf) if is_real else part.max()))
    low, high = min(lows), max(highs)
    if not np.isfinite(low) or (is_real and low >= -0.1 and 0.1 < high <= 1.1):
        return 0.0, 1.0
    if is_real and low >= -10 and 64 < high <= 280:
        return 0.0, 255.0
    if low < 0:
        return low, high
    bits = [float(2**bits - 1) for bits in (8, 10, 12, 14, 16) if not is_real]
    return 0.0, next(top for top in (*bits, high) if high <= 1.05 * top)


def _pixels(image: Image.Image, factor: int) -> np.ndarray:
    """The pixels (H, W, 3) of an image of any mode, at 1 / factor of their size."""
    image.load()
    if image.mode[0] in "IF":  # numbers, which Pillow would clip
        if factor > 1 and ";" not in image.mode:
            image, factor = image.reduce(factor), 1
        values = np.asarray(image)
        return _eight_bits(values.astype(values.dtype.newbyteorder("="), copy=False), factor)
    if image.has_transparency_data:
        clear = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(clear, mask=clear)
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    image = image.reduce(factor) if factor > 1 else image
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def download(url: str, limit: int = 100_000_000) -> bytes:
    """What a URL gives, at most `limit` bytes; raises PhotographError."""
    try:
        with open_url(url) as answer:
            content = answer.read(limit + 1)
    except (OSError, http.client.HTTPException) as error:
        known = "cannot be downloaded" in str(error)
        reason = str(error) if known else f"{url} cannot be downloaded ({error})"
        raise PhotographError(reason) from None
    if len(content) > limit:
        size = f"more than {limit / 1e6:.0f} MB"
        raise PhotographError(f"{url}: {size}; save it smaller and give the path of the file.")
    return content


def read_video(path: str | Path, most: int = 120, side: int = 400) -> tuple[list, int]:
    """At most `most` frames spread over a video, (H, W, 3) RGB, and the milliseconds between.

    Their longer side is at most `side` pixels; the time is one that a GIF can hold. Frames that
    cannot be decoded are skipped and counted in a line. Raises PhotographError.
    """
    name, path = source_name(path), existing(path)
    if not path.exists():
        raise PhotographError(f"{name}: no such video")
    video = cv2.VideoCapture(str(path))
    rate, count = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    rate = rate if 0 < rate <= 1000 else 10.0  # unknown
    every = max(1, -(-count // most), math.ceil(0.02 * rate))  # browsers slow faster ones down
    frames, number, bad, failed = {}, 0, 0, 0  # number -> frame
    while video.isOpened() and failed < 100:
        frame = None
        if video.grab():
            bad, failed, wanted = bad + failed, 0, number % every == 0
            frame = video.retrieve()[1] if wanted else None
            bad += wanted and frame is None
        else:  # a frame that is damaged, or the end
            failed += 1
        if frame is not None:
            zoom = min(1.0, side / max(frame.shape[:2]))
            small = cv2.resize(frame, None, None, zoom, zoom, cv2.INTER_AREA)
            frames[number] = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
        if len(frames) > most:  # the length was unknown, or wrong
            every *= 2
            frames = {place: kept for place, kept in frames.items() if place % every == 0}
        number += 1
    if not frames:
        raise PhotographError(
            f"{name}: no video, or none with a picture that can be read: convert it to MP4 "
            "(H.264) or AVI (MJPEG)."
        )
    missing = count - (number - failed)
    bad += missing if missing > max(1, 0.02 * count) else 0  # some counts are estimates
    if bad:
        print(f"{name}: {bad} frames cannot be decoded; they were skipped.")
    return list(frames.values()), max(20, 10 * round(100 * every / rate))


# ------------------------------------------------------------------------------------- writing


def write_jpeg(image: np.ndarray, path: str | Path) -> Path:
    """Writes (H, W, 3) uint8 RGB as a JPEG of quality 95, atomically."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
    content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1]
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))

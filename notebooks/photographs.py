"""Reading photographs of any kind, and writing images."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps
from pillow_heif import register_heif_opener
from skimage import data

from notebooks.files import display_path, write_atomically

register_heif_opener()  # what iPhones write
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
)  # raised by Pillow


class PhotographError(ValueError):
    """A photograph that cannot be used; the message names the file and the reason."""


def _is_ordinary(image: Image.Image) -> bool:
    """Whether it is an upright colour JPEG that ends with the marker a truncated one lacks."""
    if image.format != "JPEG" or image.mode != "RGB":
        return False
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return False
    place = image.fp.tell()
    image.fp.seek(-2, os.SEEK_END)
    end = image.fp.read()
    image.fp.seek(place)
    return end == b"\xff\xd9"


def read_photograph(path: str | Path) -> np.ndarray:
    """A photograph as (H, W, 3) uint8 RGB, upright by its EXIF tag, of any mode and depth.

    Raises PhotographError for a missing, empty, truncated or foreign file.
    """
    try:
        with Image.open(path) as image:
            if _is_ordinary(image):
                ordinary = cv2.imread(
                    os.fspath(path), cv2.IMREAD_COLOR_RGB
                )  # half of Pillow's time
                if ordinary is not None:
                    return ordinary
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # the conversion that Pillow does not warn about
            if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it
                image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except FileNotFoundError:
        raise PhotographError(f"{Path(path).name}: no such photograph") from None
    except UNREADABLE as error:
        reason = str(error).replace(str(path), "file")
        raise PhotographError(f"{Path(path).name}: cannot be decoded ({reason})") from None


def astronaut() -> np.ndarray:
    """A real photograph (512, 512, 3): Eileen Collins, by NASA, in the public domain."""
    return data.astronaut()


def write_jpeg(image: np.ndarray, path: str | Path) -> Path:
    """Writes (H, W, 3) uint8 RGB as a JPEG of quality 95, atomically."""

    def write(temporary: Path) -> None:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(os.fspath(temporary), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OSError(f"{Path(path).name} could not be written: is the disk full?")

    return write_atomically(path, write)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright photograph, from its header; (1, 1) if unreadable."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
            return image.size[::-1] if turned else image.size
    except UNREADABLE:
        return 1, 1


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder, sorted.

    Raises FileNotFoundError where there is no folder or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {display_path(folder)}: check its name.")
    endings = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic"}
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in endings]
    files = [path for path in files if not path.name.startswith(".")]
    if not files:
        where = display_path(folder)
        raise FileNotFoundError(f"There is no image in {where}: put JPEG or PNG files there.")
    return files

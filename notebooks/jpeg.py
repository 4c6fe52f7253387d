"""Decoding JPEG files and noticing damage: most decoders fill what is missing with grey."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import numpy as np
import simplejpeg

MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # of a segment, not inside a scan
END, SCAN, TABLES, PROGRESSIVE = 0xD9, 0xDA, 0xC4, 0xC2
HARMLESS = "Adobe color transform", "JFIF revision", "Invalid SOS", "extraneous bytes"
UNSUPPORTED = "subsampling", "color conversion", "precision", "rithmetic cod"
SURPLUS = re.compile(r"(\d+) extraneous bytes before marker 0x(..)")
FILLED = 48  # bytes in a row that no scan has: text, zeros, or ones before no marker
TEXT = re.compile(rb"[\t\n\r -~]{%d,}" % FILLED)
HIGH_BITS, BELOW_TAB = np.uint64(0x8080808080808080), np.uint64(0x0909090909090909)


def decode(content: bytes, mode: str, size: tuple[int, int], factor: int) -> np.ndarray | None:
    """A JPEG's pixels (H, W, 3) RGB uint8 at 1 / factor of their size; EXIF is not applied.

    `mode` and `size` are Pillow's. None where Pillow must decode it: CMYK, and rare kinds.
    Raises ValueError where the decoder warns of damage, or something else fills a part of it.
    """
    width, height = (-(-side // factor) for side in size)
    options = dict(min_width=width, min_height=height, min_factor=factor) if factor > 1 else {}
    options["colorspace"] = "CMYK" if mode == "CMYK" else "RGB"
    array, warning = _strictly(content, options)
    if "Premature end" in warning or "Invalid SOS" in warning:  # it hides what else there is
        content = _mended(content)
        array, warning = _strictly(content, options)
    if any(text in warning for text in UNSUPPORTED):
        return None
    if warning:
        if not any(text in warning for text in HARMLESS):
            raise ValueError(f"damaged: {warning}")
        with contextlib.suppress(ValueError):  # simplejpeg refuses some headers anyway
            array = simplejpeg.decode_jpeg(content, strict=False, **options)
        content = _without_surplus(content, warning)
    if filled := _filled(content):
        raise ValueError(f"damaged: {filled} in the picture")
    is_right = mode != "CMYK" and array is not None and array.shape[:2] == (height, width)
    return array if is_right else None


def _strictly(content: bytes, options: dict) -> tuple[np.ndarray | None, str]:
    """The pixels, or the first warning of the decoder."""
    try:
        return simplejpeg.decode_jpeg(content, strict=True, **options), ""
    except ValueError as error:
        return None, str(error)


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the content of each segment, up to the first image's end."""
    place = 2
    while (found := MARKER.search(content, place)) and found[1][0] != END:
        start = found.end() + 2
        place = start - 2 + int.from_bytes(content[start - 2 : start], "big")
        yield found[1][0], start, place


def _first_scan(content: bytes) -> int:
    """Where the data of the first scan starts; the length of the file if there is none."""
    scans = (end for marker, _, end in _segments(content) if marker == SCAN)
    return next(scans, len(content))


def _mended(content: bytes) -> bytes:
    """With an end marker, and the scan header that some telephones write wrongly put right."""
    content = bytearray(content + b"\xff\xd9")
    for marker, _, end in _segments(bytes(content)):
        if marker == PROGRESSIVE:  # its scans differ
            break
        if marker == SCAN:
            content[end - 3 : end] = 0, 63, 0
    return bytes(content)


def _without_surplus(content: bytes, warning: str) -> bytes:
    """Without what cameras leave behind a picture: a few bytes, zeros, or a note.

    Raises ValueError for more: it belongs to a picture that the decoder has lost.
    """
    found = SURPLUS.search(warning)
    if not found:
        return content
    count, is_last = int(found[1]), found[2] == "d9"
    end = content.find(b"\xff\xd9", _first_scan(content))
    extra, before = content[end - count : end], content[end - count - 16 : end - count]
    is_fill = not extra.strip(b"\0") and before.strip(b"\0")
    is_note = TEXT.fullmatch(extra) and not re.fullmatch(rb"[\t\n\r -~]+", before)
    if count > 4 and not (is_last and (count <= 16 or is_fill or is_note)):
        raise ValueError(f"damaged: {warning}")
    return content[: end - count] + content[end:] if is_last else content


def _filled(content: bytes) -> str:
    """What fills a part of the scans that is no picture; "" in a sound file."""
    start = _first_scan(content)
    stop = max(start, content.find(b"\xff\xd9", start))
    words = np.frombuffer(content, "<u8", (stop - start) // 8, start)
    if content.find(b"\xff" * FILLED, start, stop) >= 0:
        return "ones"
    if not len(_zeros(words & HIGH_BITS)):  # neither text nor zeros
        return ""
    for place in _zeros(((words - BELOW_TAB) | words) & HIGH_BITS):
        begin = start + 8 * max(0, int(place) - 1)
        run = TEXT.search(content, begin, min(stop, begin + 20 * FILLED))
        letters = sum(97 <= code <= 122 or code == 32 for code in run[0]) if run else 0
        if run and letters > len(run[0]) / 2 and len(set(run[0])) > 8:
            return "text"
    return "zeros" if len(_zeros(words)) and _has_zeros(content) else ""


def _zeros(words: np.ndarray) -> np.ndarray:
    """Where five or more zeros in a row start."""
    rows = words == 0
    rows = rows[:-4] & rows[1:-3] & rows[2:-2] & rows[3:-1] & rows[4:]
    return np.flatnonzero(rows & ~np.append(False, rows[:-1]))


def _has_zeros(content: bytes) -> bool:
    """Whether a scan has zeros in a row that are no picture; in a flat one they may be."""
    first = {}  # symbol of each Huffman table that a row of zeros stands for
    for marker, start, end in _segments(content):
        table = content[start:end] if marker == TABLES else b""
        while len(table) > 17:
            first[table[0]], table = table[17], table[17 + sum(table[1:17]) :]
        if marker == SCAN:
            header, following = content[start:end], MARKER.search(content, end)
            stop = following.start() if following else len(content)
            used = [key for ids in header[2:-3:2] for key in (ids >> 4, 16 | (ids & 15))]
            flat = all(first.get(key, 0) & 15 == 0 for key in used) or header[-1] >> 4
            if not flat and content.find(bytes(FILLED), end, stop) >= 0:
                return True
    return False

"""Brings the real data sets to data/: from an archive you have, or from the official place.

CelebA's photographs "in the wild" come in parts that only a browser can download: unpack them
by hand, or pack img_celeba/, Anno/ and Eval/ into one celeba.zip.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from notebooks.files import display_path, fetch

DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
# The official address of the archive, its name, and a folder that must be in it.
REAL_SETS = {
    "horse2zebra": (
        "http://efrosgans.eecs.berkeley.edu/cyclegan/datasets/horse2zebra.zip",
        "horse2zebra.zip",
        "trainA",
    ),
    "CelebAMask-HQ": (
        DRIVE + "1badu11NqxGf6qM3PTTooQDJvQbejgbTv",
        "CelebAMask-HQ.zip",
        "CelebA-HQ-img",
    ),
    "celeba": ("", "celeba.zip", "Anno"),
}


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpacks a zip or tar archive into `folder`, through a hidden folder beside it.

    Raises ValueError for a broken archive, or one with a path that leaves the folder; nothing
    is left of it then.
    """
    archive, folder = Path(archive), Path(folder)
    temporary = folder.with_name(f".{os.getpid()}.{folder.name}")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                places = [(temporary / name).resolve() for name in packed.namelist()]
                if not all(place.is_relative_to(temporary.resolve()) for place in places):
                    raise ValueError(
                        f"{archive.name} holds a path that leaves its folder; not unpacked."
                    )
                packed.extractall(temporary)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(temporary, filter="data")
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted here
        return temporary.rename(folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        kind = type(error).__name__
        raise ValueError(
            f"{archive.name} cannot be unpacked ({kind}); fetch it again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def bring(name: str, folder: Path, archives: str | Path = "") -> str:
    """Brings one of REAL_SETS to folder/<name>, from `archives` if given; returns a sentence.

    A set that is there already is left alone. An interrupted download is resumed the next time.
    """
    if name not in REAL_SETS:
        raise ValueError(f"There is no set {name!r}: choose from {', '.join(REAL_SETS)}.")
    address, archive, needed = REAL_SETS[name]
    if (folder / name).is_dir():
        return f"{name} is there"
    own = Path(archives or folder) / archive
    if not own.exists() and not address:
        raise FileNotFoundError(
            f"{archive} is missing: download {name} from its page (see the README), then put "
            f"{archive} into {display_path(own.parent)}."
        )
    fetched = None if own.exists() else fetch(address, folder / archive)
    try:
        unpacked = unpack(fetched or own, folder / f".unpacked_{name}")
    except ValueError:
        if fetched:
            fetched.unlink()  # or it would never be downloaded again
        raise
    found = [path.parent for path in sorted(unpacked.rglob(needed)) if path.is_dir()]
    if not found:
        shutil.rmtree(unpacked)
        raise ValueError(
            f"{archive} holds no folder {needed}: it is not {name}, or not all of it."
        )
    found[0].rename(folder / name)
    shutil.rmtree(unpacked, ignore_errors=True)
    count = sum(path.is_file() for path in (folder / name).rglob("*"))
    return f"{name}: {count:,} files in {display_path(folder / name)}"

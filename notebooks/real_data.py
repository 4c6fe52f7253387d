"""Unpacks the sample, and brings the real data sets to data/.

A real set comes from an archive you have, or from the official place.

CelebA's photographs "in the wild" come in parts that only a browser can download: unpack them
by hand, or pack img_celeba/, Anno/ and Eval/ into one celeba.zip.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from notebooks.files import display_path, fetch

SAMPLE = Path(__file__).with_name("sample.zip")
# draw_sample.pack prints the hash.
SAMPLE_SHA256 = "56238b01b388f1d58609a95cf57d427f1a81ab838712d2176f00e4779ac6c612"
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


def unpack_sample(folder: Path, share: float = 1.0, archive: Path = SAMPLE) -> str:
    """Unpacks the sample, or a `share` of it (see `shorten`); returns a sentence.

    Raises ValueError for another share, and where the archive is not that of this version.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be more than 0 and at most 1.")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    stamp, made_by = f"{found} {share}", folder / "made_by.txt"
    if made_by.exists() and made_by.read_text() == stamp:
        return "The sample is there."
    if archive == SAMPLE and found != SAMPLE_SHA256:
        raise ValueError(f"{archive.name} is not what it should be: fetch the project again.")
    building = unpack(archive, folder.with_name(".building_sample"))
    if share < 1:
        shorten(building, share)
    (building / "made_by.txt").write_text(stamp)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    count = sum(path.is_file() for path in folder.rglob("*"))
    return f"The sample: {count:,} files in {display_path(folder)}."


def shorten(sample: Path, share: float) -> None:
    """Keeps a `share` of the people and of the masked faces, and `share`² of the other sets.

    Those are searched for faces or translated, which takes longest.
    """

    def first(things, share=share):
        return set(things[: max(2, round(share * len(things)))])

    identities = (sample / "celeba/Anno/identity_CelebA.txt").read_text().split()
    people = sorted({int(number) for number in identities[1::2]})
    count = max(2, round(share * len(people)))
    people = {people[i * len(people) // count] for i in range(count)}  # with few images too
    pairs = zip(identities[::2], identities[1::2], strict=True)
    kept = {name for name, number in pairs if int(number) in people}
    for path in sample.glob("celeba/*/*.txt"):
        lines = path.read_text().splitlines(keepends=True)
        rows = [line for line in lines if line.split()[0] in kept]
        counted = lines[0].strip().isdigit()  # a count and the columns come first
        path.write_text("".join([f"{len(rows)}\n", lines[1], *rows] if counted else rows))
    removed = [p for p in (sample / "celeba/img_celeba").iterdir() if p.name not in kept]
    masked = sample / "CelebAMask-HQ"
    numbers = first(sorted(int(p.stem) for p in masked.glob("CelebA-HQ-img/*")))
    removed += [p for p in masked.glob("CelebA-HQ-img/*") if int(p.stem) not in numbers]
    masks = list(masked.glob("CelebAMask-HQ-mask-anno/*/*.png"))
    removed += [p for p in masks if int(p.stem[:5]) not in numbers]
    lines = (masked / "landmarks.csv").read_text().splitlines(keepends=True)
    rows = [line for line in lines[1:] if int(line.split(",")[0]) in numbers]
    (masked / "landmarks.csv").write_text("".join([lines[0], *rows]))
    for folder in [*sample.glob("*2*/*"), sample / "covered_faces"]:
        images = sorted(folder.iterdir())
        removed += sorted(set(images) - first(images, share**2))
    for path in removed:
        path.unlink()


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

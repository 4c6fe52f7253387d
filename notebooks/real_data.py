"""Unpacks the sample, and brings the real data sets to data/.

A real set comes from an archive you have, or from the official place.

CelebA's photographs "in the wild" come in parts that only a browser can download: unpack them
by hand, or pack img_celeba/, Anno/ and Eval/ into one celeba.zip.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import lzma
import os
import posixpath
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from notebooks.celeba_files import is_image
from notebooks.files import display_path, fetch

SAMPLE = Path(__file__).with_name("sample.zip")
# draw_sample.pack prints the hash.
SAMPLE_SHA256 = "56238b01b388f1d58609a95cf57d427f1a81ab838712d2176f00e4779ac6c612"
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
# The official address of the archive, its name, and what must be in it: a folder, or else one
# of the files that follow.
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
    "celeba": (
        "",
        "celeba.zip",
        "Anno list_*celeba*.txt list_*celeba*.csv identity_celeba*.txt identity_celeba*.csv",
    ),
}
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
GHOSTS = {".ds_store", "thumbs.db", "desktop.ini"}  # what macOS and Windows leave in folders
FOREIGN = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "RAR", b"\x28\xb5\x2f\xfd": "Zstandard"}
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    UnicodeError,
)


# ----------------------------------------------------------------------------------- archives


class PlaceError(OSError):
    """An archive that is whole cannot be unpacked where it should be, as on a full disk."""


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpacks a zip or tar archive into `folder`, whatever its ending; returns the folder.

    What macOS and Windows add (__MACOSX/, ._x, Thumbs.db) is left out. What `folder` held stays
    until the new is whole. Raises ValueError for an archive that is broken, encrypted, empty or
    none, or has a path that leaves the folder, and OSError where the disk is full or the
    archive is missing.
    """
    archive, folder = Path(archive), Path(folder)
    recover(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{os.getpid()}.{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        extract = _extract_zip if _is_zip(archive) else _extract_tar
        temporary.mkdir()
        if not extract(archive, temporary):
            raise ValueError(f"{archive.name} holds no files: download it again.")
        return put_in_place(temporary, folder)
    except PlaceError:
        raise
    except (*BROKEN, NotImplementedError, OSError) as error:
        raise _in_words(error, archive, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _in_words(error: Exception, archive: Path, folder: Path) -> Exception:
    """An error of the archive (ValueError) or of its place (OSError), as one sentence."""
    name, reason = archive.name, getattr(error, "strerror", None) or str(error)
    if isinstance(error, FileNotFoundError) and not archive.exists():
        return FileNotFoundError(f"{name} is missing.")
    if isinstance(error, NotImplementedError):
        return ValueError(f"{name} cannot be unpacked here ({reason}): unpack it by hand.")
    if isinstance(error, tarfile.SpecialFileError):
        return ValueError(f"{name} cannot be unpacked: {error.tarinfo.name} is a device.")
    if isinstance(error, tarfile.FilterError):
        return ValueError(_leaves(archive, error.tarinfo.name))
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return PlaceError(
            f"{name} cannot be unpacked into {display_path(folder.parent)}: "
            f"{'the disk is full' if full else reason}; what was there is kept."
        )
    kind = type(error).__name__
    return ValueError(
        f"{name} cannot be unpacked ({kind}): it is damaged, or not all is there; download it "
        "again."
    )


def put_in_place(new: Path, folder: Path) -> Path:
    """Renames `new` to `folder`; the old one is moved aside, and removed after that."""
    old = _aside(folder)
    if os.path.lexists(folder):
        _remove(old)
        folder.rename(old)
    try:
        new.rename(folder)
    finally:
        recover(folder)
    _remove(old)
    return folder


def recover(folder: Path) -> None:
    """Brings back what `put_in_place` has moved aside, if it was interrupted there."""
    if _aside(folder).exists() and not os.path.lexists(folder):
        _aside(folder).rename(folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".old.{folder.name}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_zip(archive: Path) -> bool:
    """Whether it is a zip archive, or else a tar; ValueError for any other file."""
    with open(archive, "rb") as file:
        head = file.read(512)
    name = archive.name
    if not head:
        raise ValueError(f"{name} is empty: download it again.")
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return True
    if tarfile.is_tarfile(archive):
        return False
    if b"<html" in head.lower() or head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<"):
        raise ValueError(
            f"{name} is a web page, not an archive (a quota, or a log-in?): download it again "
            "in a browser."
        )
    for start, kind in FOREIGN.items():
        if head.startswith(start):
            raise ValueError(f"{name} is a {kind} archive: unpack it by hand.")
    if zipfile.is_zipfile(archive):  # one that unpacks itself
        return True
    raise ValueError(
        f"{name} cannot be unpacked: it is no zip or tar archive, or a damaged one; download "
        "it again."
    )


def _leaves(archive: Path, name: str) -> str:
    shown = name.encode(errors="replace").decode()
    return f"{archive.name} holds a path that leaves its folder ({shown}); not unpacked."


def _inner_path(archive: Path, name: str) -> str:
    """The path of a member in the folder; "" for what is left out, ValueError if it leaves."""
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith(("/", "../")) or path == ".." or re.match("[A-Za-z]:", path):
        raise ValueError(_leaves(archive, name))
    *folders, last = path.split("/")
    is_ghost = "__MACOSX" in folders or last == "__MACOSX" or last.startswith("._")
    return "" if is_ghost or last.lower() in GHOSTS or path == "." else path


def _check_space(archive: Path, folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise PlaceError(
            f"{archive.name} needs {size / 1e9:.2f} GB unpacked, and {free / 1e9:.2f} GB are "
            f"free in {display_path(folder.parent)}: free some of it first."
        )


def _extract_zip(archive: Path, folder: Path) -> int:
    """Extracts the files of a zip archive; returns how many."""
    links, count = [], 0
    with zipfile.ZipFile(archive) as packed:
        members = [(_inner_path(archive, _zip_name(m)), m) for m in packed.infolist()]
        members = [(path, member) for path, member in members if path]
        if any(member.flag_bits & 1 for _, member in members):
            raise ValueError(f"{archive.name} is encrypted: unpack it by hand.")
        _check_space(archive, folder, sum(member.file_size for _, member in members))
        for path, member in members:
            place = folder / path
            if member.filename.endswith(("/", "\\")):
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(member.external_attr >> 16):
                links.append((place, packed.read(member).decode(errors="surrogateescape")))
                continue
            with packed.open(member) as source, open(place, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            count += 1
    for place, target in links:  # last, so that no file is written through one
        place.symlink_to(target)
    for place, target in links:
        if not place.resolve().is_relative_to(folder.resolve()):
            raise ValueError(_leaves(archive, f"{place.name} -> {target}"))
    return count


def _zip_name(member: zipfile.ZipInfo) -> str:
    """The name of a member; UTF-8 that is not marked as such (macOS) is read as what it is."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


def _extract_tar(archive: Path, folder: Path) -> int:
    """Extracts the files of a tar archive, compressed or not; returns how many."""
    with tarfile.open(archive) as packed:
        members = []
        for member in packed.getmembers():
            if path := _inner_path(archive, member.name):
                member.name = path
                members.append(member)
        packed.fileobj.seek(packed.offset)
        if packed.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")  # getmembers says nothing of it
        while packed.fileobj.read(1 << 20):  # to the checksum of a compressed one
            pass
        _check_space(archive, folder, sum(member.size for member in members))
        packed.extractall(folder, members, filter="data")
    return sum(member.isfile() for member in members)


# ------------------------------------------------------------------------------------- sample


def unpack_sample(folder: Path, share: float = 1.0, archive: Path = SAMPLE) -> str:
    """Unpacks the sample, or a `share` of it (see `shorten`); returns a sentence.

    Raises ValueError for another share, and where the archive is not that of this version.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be more than 0 and at most 1.")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    stamp, made_by = f"{found} {share}", folder / "made_by.txt"
    recover(folder)
    if made_by.exists() and made_by.read_text() == stamp:
        return "The sample is there."
    if archive == SAMPLE and found != SAMPLE_SHA256:
        raise ValueError(f"{archive.name} is not what it should be: fetch the project again.")
    building = unpack(archive, folder.with_name(".building_sample"))
    if share < 1:
        shorten(building, share)
    (building / "made_by.txt").write_text(stamp)
    put_in_place(building, folder)
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


# ---------------------------------------------------------------------------------- real sets


def bring(name: str, folder: Path, archives: str | Path = "") -> str:
    """Brings one of REAL_SETS to folder/<name>, from `archives` if given; returns a sentence.

    `archives` is a folder with celeba.zip, celeba-dataset.zip, celeba.tar.gz or the like, or
    such a file itself. A set that is there already is left alone. An interrupted download is
    resumed the next time. Raises ValueError or OSError with one sentence.
    """
    if name not in REAL_SETS:
        raise ValueError(f"There is no set {name!r}: choose from {', '.join(REAL_SETS)}.")
    address, archive, needed = REAL_SETS[name]
    place = folder / name
    recover(place)
    if os.path.lexists(place) and not place.is_dir():
        raise FileNotFoundError(
            f"{display_path(place)} is a file, or a link to a folder that is not there."
        )
    if place.is_dir() and any(path.name.lower() not in GHOSTS for path in place.iterdir()):
        return f"{name} is there"
    own = _archive_in(Path(archives or folder).expanduser(), name, archive)
    if own is None and not address:
        raise FileNotFoundError(
            f"{archive} is missing: download {name} from its page (see the README), then put "
            f"{archive} into {display_path(archives or folder)}."
        )
    fetched = None if own else fetch(address, folder / archive)
    unpacked = folder / f".unpacked_{name}"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was interrupted
    try:
        unpack(own or fetched, unpacked)
        left = _unpack_inner(unpacked, (own or fetched).name)
        put_in_place(_root_of(unpacked, needed, (own or fetched).name, name), place)
    except ValueError:
        if fetched:
            fetched.unlink()  # or it would never be downloaded again
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    count = sum(path.is_file() for path in place.rglob("*"))
    more = f"; {left} has to be unpacked by hand" if left else ""
    return f"{name}: {count:,} files in {display_path(place)}{more}"


def _archive_in(folder: Path, name: str, archive: str) -> Path | None:
    """The archive of a set in a folder, or `folder` if it is a file; as a browser names it."""
    if folder.is_file() or (folder / archive).is_file():
        return folder if folder.is_file() else folder / archive
    ending = "|".join(map(re.escape, ENDINGS))
    like = re.compile(rf"{re.escape(name)}([-_ (.].*)?({ending})", re.IGNORECASE)
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((path for path in there if like.fullmatch(path.name) and path.is_file()), None)


def _unpack_inner(folder: Path, outer: str, depth: int = 3) -> str:
    """Unpacks the archives in a folder beside themselves, and removes them.

    Kaggle and CelebA pack images once more. Returns the name of one that Python cannot unpack.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files if depth else ():
        ending = next((end for end in ENDINGS if path.name.lower().endswith(end)), None)
        inner = path.with_name(path.name[: -len(ending)] or "inner") if ending else path
        if inner.exists():
            continue
        try:
            unpack(path, inner)
        except ValueError as error:
            raise ValueError(f"In {outer}: {error}") from error
        path.unlink()
        again = inner / inner.name
        if [*inner.iterdir()] == [again] and again.is_dir():
            again.rename(path)
            inner.rmdir()
            path.rename(inner)
        _unpack_inner(inner, outer, depth - 1)
    foreign = [
        path.name for path in files if re.search(r"\.(7z|rar)(\.\d+)?$", path.name.lower())
    ]
    return foreign[0] if foreign else ""


def _root_of(unpacked: Path, needed: str, archive: str, name: str) -> Path:
    """The folder in an unpacked archive that is the set: what is needed, and the images."""
    wanted, *files = needed.split()
    inside = sorted(unpacked.rglob("*"), key=lambda path: (len(path.parts), path))
    found = [path for path in inside if path.name.lower() == wanted.lower() and path.is_dir()]
    for pattern in files:
        matches = (p for p in inside if fnmatch.fnmatch(p.name.lower(), pattern))
        found += [path for path in matches if path.is_file()]
    if not found:
        raise ValueError(
            f"{archive} holds no folder {wanted}{' or its files' if files else ''}: it is not "
            f"{name}, or not all of it."
        )
    root = found[0].parent
    images = [path for path in inside if is_image(path.name)]
    while images and root != unpacked and not any(p.is_relative_to(root) for p in images):
        root = root.parent
    return root

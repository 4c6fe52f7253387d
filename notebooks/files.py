"""Files that are never half written: atomic writing, resumed downloads, and a second copy.

The second copy lies in a mounted Google Drive, or in any folder that FACES_KEEP names.
Manifests, models and checkpoints are copied there and read back; images stay here. A later
session that lacks a file takes it from there, so that what Colab cut off continues.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "notebooks" / "weights"  # models that come with the project
DRIVE = "/content/drive/MyDrive"
USER_AGENT = "Mozilla/5.0 (compatible; faces-notebooks)"  # many servers refuse Python's own


def display_path(path: str | Path) -> str:
    """A path as a reader should see it: relative if it lies in the project or beside it."""
    path = Path(path)
    relative = os.path.relpath(path, ROOT)
    near = relative.count("..") <= 1
    return relative if near else os.path.join("...", path.parent.name, path.name)


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Calls `write(temporary)`, a file or folder beside `path`, and renames it when whole.

    Nobody reads half a file, and a full disk keeps the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    end = path.name if len(os.fsencode(path.name)) < 200 else path.name[-50:]  # of 255 bytes
    temporary = path.with_name(f".{os.getpid()}_{threading.get_ident()}.{end}")
    old = path.with_name(f".old.{end}")
    try:
        write(temporary)
        if temporary.is_dir() and path.exists():  # a folder cannot replace another in one step
            remove(old)
            path.rename(old)
        os.replace(temporary, path)
        if path.is_dir():
            remove(old)
    finally:
        remove(temporary)
    return path


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 hash of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_url(url: str, **headers: str):
    """A server's answer, to be read and closed. Raises OSError with one sentence."""
    advice = {401: "programs are refused there, use a browser", 404: "check the address"}
    advice |= {403: advice[401], 410: advice[404], 429: "try again later"}
    try:
        quoted = urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~")  # blanks and accents
        request = urllib.request.Request(quoted, headers={"User-Agent": USER_AGENT, **headers})
        return urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing follows the given Range
            raise
        todo = advice.get(error.code, advice[429 if error.code >= 500 else 404])
        reason = f"error {error.code}, {error.reason.splitlines()[0]}): {todo}"
    except (ValueError, http.client.HTTPException):
        reason = "no valid address): check it"
    except OSError as error:  # no network, no such server, a wrong certificate, a time-out
        reason = f"{getattr(error, 'reason', error)}): check the network and the address"
    raise OSError(f"{url} cannot be downloaded ({reason}.")


def fetch(url: str, path: str | Path, size: int | None = None, sha256: str = "") -> Path:
    """Downloads `url` to `path`, once; resumes where it broke off, checks size and hash.

    Until all is right it is called `<name>.part`. Raises OSError with one sentence.
    """
    path = Path(path)
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    try:
        with open_url(url, **({"Range": f"bytes={have}-"} if have else {})) as answer:
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise OSError(
                    f"{path.name}: {url} answers with a page, not a file (quota?). "
                    f"Download it to {display_path(path)}"
                )
            resumes = have and answer.status == 206
            expected = int(answer.headers.get("Content-Length", 0)) + (have if resumes else 0)
            with open(part, "ab" if resumes else "wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
    except urllib.error.HTTPError:  # nothing follows what is here already
        if not have:
            raise
        expected = have
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        kind = type(error).__name__
        raise OSError(f"{path.name}: connection lost ({kind}); run again to resume.") from None
    got = part.stat().st_size
    if got < (size or expected):
        raise OSError(
            f"{path.name}: broke off after {got:,} of {size or expected:,} bytes; "
            "run again to resume."
        )
    if got != (size or got) or (sha256 and sha256 != sha256_of(part)):
        part.unlink()
        raise OSError(
            f"{path.name}: {url} gave a file of other size or content than expected; "
            "it was thrown away. Try again later."
        )
    return part.replace(path)


# ----------------------------------------------------------------------------- the second copy

NOTES = ".second_copy"  # in runs/: the second place, and a file for each path that it missed
GONE = {errno.ENOTCONN, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT}
PAUSES = (2.0, 5.0)  # seconds before what is gone is tried again at the start of a notebook
RETRY_EVERY = 60.0  # seconds between two tries of what a place that is there does not take
_said: set[tuple] = set()  # what went wrong and was said, once in a process
_failed: dict[Path, float] = {}  # place -> when it last refused what it had missed


def copy_folder(root: Path) -> Path | None:
    """Where finished files of `root` are copied: FACES_KEEP, else `faces/` in a mounted Drive.

    An empty FACES_KEEP turns it off. Another OUTPUT than the project has its own folder there.
    A Drive that was mounted when something was copied counts until it is back.
    """
    given = os.environ.get("FACES_KEEP")
    place = Path(given).absolute() if given else Path(DRIVE) / "faces"
    place = place / root.name if root != ROOT else place
    if given is None and not os.path.isdir(DRIVE) and not _was_there(root, place):
        return None
    return None if given == "" else place


def keep(path: Path) -> Path:
    """Copies a finished file or folder of csv/ or runs/, reads the copy back, then swaps.

    Where the second place is full or gone it says so once, and the run continues; what was
    missed is copied once it is back, at the next call or in the next notebook. Returns `path`.
    """
    names = _copy_names(path)
    if names is None:
        return path
    root = _root_of(path)
    try:
        _reach(root)
        _copy(path, *names)
    except OSError as error:
        _note(root, path, "copy")
        where = f"{names[0].parent.name}/ of the second place"
        later = "it is safe here, and is copied once that works again"
        _say_once(root, path, error, f"{path.name} could not be copied to {where}", later)
        return path
    _note(root, path)
    if time.monotonic() - _failed.get(root, -RETRY_EVERY) >= RETRY_EVERY:
        _catch_up(root)
    return path


def forget(path: Path) -> None:
    """Removes a file or folder here and its second copy; what cannot be removed is named."""
    remove(path)
    names, root = _copy_names(path), _root_of(path)
    if names is None or not _was_there(root, copy_folder(root)):
        return
    try:
        _reach(root)
        for copy in names:
            remove(copy)
        _note(root, path)
    except OSError as error:
        _note(root, path, "remove")
        what = f"{path.name} of the second place could not be removed"
        _say_once(root, path, error, what, "it is once that works again")


def bring_back(root: Path, dataset: str) -> None:
    """Fetches what `keep` left of a data set and `root` lacks; folders come whole.

    What the second place missed is copied to it first.
    """
    place = copy_folder(root)
    if place is None:
        return
    fetched: list[str] = []
    for pause in (*PAUSES, None):
        try:
            if _was_there(root, place) or place.exists():
                _reach(root)
                _catch_up(root)
                _fetch_lacking(root, place, dataset, fetched)
            break
        except OSError as error:
            if pause is not None and (error.errno in GONE or not os.path.exists(place)):
                time.sleep(pause)
                continue
            what = f"What an earlier session copied to {place.name}/ cannot be fetched"
            later = "what is finished is safe here, and is copied once that works again"
            _say_once(root, root, error, what, later)
            break
    if fetched:
        names = ", ".join(fetched[:6]) + " ..." * (len(fetched) > 6)
        print(
            f"{len(fetched)} files of an earlier session came back from {place.name}/: {names}"
        )


def _fetch_lacking(root: Path, place: Path, dataset: str, fetched: list[str]) -> None:
    """Copies what `root` lacks from the second place; adds the names to `fetched`."""
    folders = [place / part / dataset for part in ("csv", "runs")]
    removed = {path for _, task, path in _notes(root) if task == "remove"}
    for old in [old for folder in folders for old in folder.rglob(".old.*")]:
        copy = old.with_name(old.name.removeprefix(".old."))
        if not copy.exists():
            old.rename(copy)
    for copy in [copy for folder in folders for copy in _whole_copies(folder)]:
        here = root / copy.relative_to(place)
        kept = here.exists() or here.with_name(f"{here.name}.old").exists()
        if kept or here in removed:
            continue
        temporary = here.with_name(f".{os.getpid()}.{here.name}")
        here.parent.mkdir(parents=True, exist_ok=True)
        try:
            (shutil.copytree if copy.is_dir() else shutil.copyfile)(copy, temporary)
            os.replace(temporary, here)
        finally:
            remove(temporary)
        fetched.append(here.name)


def _catch_up(root: Path) -> None:
    """Copies and removes in the second place what it missed; says how much that was."""
    done, lock = 0, FileLock(root / "runs" / NOTES / "lock")
    if os.environ.get("RANK", "0") != "0":
        return
    with contextlib.suppress(Timeout), lock.acquire(timeout=0):  # one process does it
        for note, task, path in _notes(root):
            names = _copy_names(path)
            try:
                if task == "copy" and path.exists():
                    _copy(path, *names)
                for copy in names if task == "remove" and not path.exists() else ():
                    remove(copy)
                note.unlink(missing_ok=True)
                done += 1
            except OSError:
                _failed[root] = time.monotonic()
    if done:
        print(f"The second place, {copy_folder(root).name}/, has what it had missed: {done}.")
    if not _notes(root):
        _said.difference_update([key for key in _said if key[0] == root])


def _reach(root: Path) -> None:
    """Makes the second place at first; raises OSError where it was there, and is gone."""
    place = copy_folder(root)
    if _was_there(root, place):
        os.stat(os.environ.get("FACES_KEEP") or DRIVE)
    place.mkdir(parents=True, exist_ok=True)
    if not _was_there(root, place):
        write = lambda path: path.write_text(str(place), encoding="utf-8")  # noqa: E731
        write_atomically(root / "runs" / NOTES / "place", write)


def _was_there(root: Path, place: Path) -> bool:
    """Whether a file of `root` was once copied to this second place, or fetched from it."""
    note = root / "runs" / NOTES / "place"
    return note.exists() and note.read_text(encoding="utf-8") == str(place)


def _notes(root: Path) -> list[tuple[Path, str, Path]]:
    """What the second place has yet to do: the note, "copy" or "remove", and the path."""
    notes = []
    for note in sorted((root / "runs" / NOTES).glob("*.missed")):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            task, relative = note.read_text(encoding="utf-8").split(" ", 1)
            notes.append((note, task, root / relative))
    return notes


def _note(root: Path, path: Path, task: str = "") -> None:
    """Notes that "copy" or "remove" is to be done for a path, or that nothing is."""
    relative = path.absolute().relative_to(root).as_posix()
    name = hashlib.sha256(os.fsencode(relative)).hexdigest()[:16]
    note = root / "runs" / NOTES / f"{name}.missed"
    if task:
        write = lambda path: path.write_text(f"{task} {relative}", encoding="utf-8")  # noqa: E731
        write_atomically(note, write)
    else:
        note.unlink(missing_ok=True)


def _say_once(root: Path, path: Path, error: OSError, what: str, later: str) -> None:
    """Prints what went wrong; for an error with a number once for all files."""
    key = (root, error.errno or path)
    if key not in _said:
        _said.add(key)
        print(f"{what} ({error}); {later}.")


def _copy(path: Path, copy: Path, new: Path, old: Path) -> None:
    """Copies a path to `new`, reads it back, and puts it in the place of `copy`."""
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not copy.exists():  # killed between the two renames below
            old.rename(copy)
        remove(new)
        remove(old)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, new)
        if _contents(new) != _contents(path):
            raise OSError("what was written there reads back differently")
        if copy.is_dir():
            copy.rename(old)
        new.replace(copy)
        remove(old)
    except OSError as error:
        with contextlib.suppress(OSError):
            if old.exists() and not copy.exists():
                old.rename(copy)
            remove(new)
        if isinstance(error, shutil.Error):  # copytree: a list with a text for each file
            first = str(error.args[0][0][2])
            number = re.match(r"\[Errno (\d+)\]", first)
            reason = (int(number[1]), os.strerror(int(number[1]))) if number else (first,)
            raise OSError(*reason) from None
        raise


def _contents(path: Path) -> dict[str, str]:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {os.path.relpath(file, path): sha256_of(file) for file in files}


def _root_of(path: Path) -> Path | None:
    """The folder that holds csv/ or runs/ with a path."""
    return next((p.parent for p in path.absolute().parents if p.name in ("csv", "runs")), None)


def _copy_names(path: Path) -> tuple[Path, Path, Path] | None:
    """The second copy of a path in csv/ or runs/, its name while new and once it is old."""
    root = _root_of(path)
    place = copy_folder(root) if root and os.environ.get("RANK", "0") == "0" else None
    if place is None:
        return None
    copy = place / path.absolute().relative_to(root)
    return copy, copy.with_name(f".new.{copy.name}"), copy.with_name(f".old.{copy.name}")


def _whole_copies(folder: Path) -> list[Path]:
    """Files, and folders that belong together: checkpoints, and models (config.json)."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        whole = (
            path.is_file() or (path / "config.json").exists() or folder.name == "checkpoints"
        )
        found += [path] if whole else _whole_copies(path)
    return found


def given_weights(weights: str, name: str = "") -> str:
    """The parameter `weights`, where "pretrained" is the folder `name` of notebooks/weights.

    Raises ValueError where nothing that fits comes with the project.
    """
    if weights != "pretrained":
        return weights
    if not (name and (WEIGHTS / name / "config.json").exists()):
        raise ValueError(
            'No pretrained model comes with this notebook: train it, weights = "".'
        )
    return str(WEIGHTS / name)


def given_state(name: str, part: str) -> dict:
    """The weights of `part` of the model `name` in notebooks/weights, in float32, by name."""
    state = load_file(WEIGHTS / name / "model.safetensors")
    inside = {key for key in state if key.startswith(f"{part}.")}
    values = {key.removeprefix(f"{part}."): state[key] for key in inside}
    return {key: v.float() if v.is_floating_point() else v for key, v in values.items()}

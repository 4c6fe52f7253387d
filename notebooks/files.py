"""Files that are never half written: atomic writing, resumed downloads, and a second copy.

The second copy lies in a mounted Google Drive, or in any folder that FACES_KEEP names.
Manifests, models and checkpoints are copied there and read back; images stay here. A later
session that lacks a file takes it from there, so that what Colab cut off continues.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "notebooks" / "weights"  # models that come with the project
DRIVE = "/content/drive/MyDrive"


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
    temporary = path.with_name(f".{os.getpid()}_{threading.get_ident()}.{path.name}")
    old = path.with_name(f".old.{path.name}")
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
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise OSError(
                    f"{path.name}: {url} answers with a page, not a file (quota?). "
                    f"Download it to {display_path(path)}"
                )
            resumes = have and answer.status == 206
            expected = int(answer.headers.get("Content-Length", 0)) + (have if resumes else 0)
            with open(part, "ab" if resumes else "wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: nothing follows what is here already
            raise
        expected = have
    except http.client.HTTPException as error:
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


def copy_folder(root: Path) -> Path | None:
    """Where finished files of `root` are copied: FACES_KEEP, else `faces/` in a mounted Drive.

    An empty FACES_KEEP turns it off. Another OUTPUT than the project has its own folder there.
    """
    given = os.environ.get("FACES_KEEP")
    if given:
        place = Path(given).absolute()
    else:
        place = Path(DRIVE) / "faces" if given is None and os.path.isdir(DRIVE) else None
    return place / root.name if place and root != ROOT else place


def keep(path: Path) -> Path:
    """Copies a finished file or folder of csv/ or runs/, reads the copy back, then swaps.

    Where the second place is full or gone it says so, and the run continues. Returns `path`.
    """
    names = _copy_names(path)
    if names is None:
        return path
    copy, new, old = names
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
        where = f"{copy.parent.name}/ of the second place"
        print(f"{path.name} could not be copied to {where} ({error}); it is safe here.")
        with contextlib.suppress(OSError):
            if old.exists() and not copy.exists():
                old.rename(copy)
            remove(new)
    return path


def forget(path: Path) -> None:
    """Removes a file or folder here and its second copy; what cannot be removed is named."""
    remove(path)
    try:
        for copy in _copy_names(path) or ():
            remove(copy)
    except OSError as error:
        print(f"{copy.name} of the second place could not be removed ({error}).")


def bring_back(root: Path, dataset: str) -> None:
    """Fetches what `keep` left of a data set and `root` lacks; folders come whole."""
    place = copy_folder(root)
    if place is None:
        return
    fetched = []
    try:
        folders = [place / part / dataset for part in ("csv", "runs")]
        for old in [old for folder in folders for old in folder.rglob(".old.*")]:
            copy = old.with_name(old.name.removeprefix(".old."))
            if not copy.exists():
                old.rename(copy)
        for copy in [copy for folder in folders for copy in _whole_copies(folder)]:
            here = root / copy.relative_to(place)
            if here.exists() or here.with_name(f"{here.name}.old").exists():
                continue
            temporary = here.with_name(f".{os.getpid()}.{here.name}")
            here.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if copy.is_dir() else shutil.copyfile)(copy, temporary)
            os.replace(temporary, here)
            fetched.append(here.name)
    except OSError as error:
        print(f"What an earlier session copied to {place.name}/ cannot be fetched ({error}).")
    if fetched:
        names = ", ".join(fetched[:6]) + " ..." * (len(fetched) > 6)
        print(
            f"{len(fetched)} files of an earlier session came back from {place.name}/: {names}"
        )


def _contents(path: Path) -> dict[str, str]:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {os.path.relpath(file, path): sha256_of(file) for file in files}


def _copy_names(path: Path) -> tuple[Path, Path, Path] | None:
    """The second copy of a path in csv/ or runs/, its name while new and once it is old."""
    path = path.absolute()
    root = next((p.parent for p in path.parents if p.name in ("csv", "runs")), None)
    place = copy_folder(root) if root and os.environ.get("RANK", "0") == "0" else None
    if place is None:
        return None
    copy = place / path.relative_to(root)
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

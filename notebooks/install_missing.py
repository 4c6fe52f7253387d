"""Installs what a kernel needs of requirements.txt and this Python lacks; nothing is changed.

Packages that run notebooks from outside are left out, unless they are named:
python notebooks/install_missing.py papermill
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}.")

import importlib.metadata
import re
import subprocess
from pathlib import Path

OUTSIDE = {"jupyter", "ipykernel", "papermill"}  # a notebook that is open has its kernel


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


installed: dict[str, str] = {}
for distribution in importlib.metadata.distributions():
    if (
        distribution.name
    ):  # a half-removed package has none; the first of a name is the one that is imported
        installed.setdefault(normal(distribution.name), distribution.version)
requirements = (Path(__file__).resolve().parent.parent / "requirements.txt").read_text()
wanted = re.findall(r"^([\w-]+)(\S*)", requirements, re.MULTILINE)
# Any flavour of OpenCV serves; two of them in one environment overwrite each other's files.
if any(name.startswith("opencv-") for name in installed):
    installed.setdefault("opencv-python-headless", "")
passed_over = (OUTSIDE - {*sys.argv[1:]}) | {*installed}
missing = [name + bound for name, bound in wanted if normal(name) not in passed_over]
if missing:
    print("Installing", ", ".join(missing), flush=True)
    kept = [
        f"{name}=={installed[name]}"
        for name in ("torch", "torchvision", "numpy")
        if name in installed
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *missing, *kept], check=True
    )

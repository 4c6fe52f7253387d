"""Installs what requirements.txt names and this Python lacks; what is installed stays."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path


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
missing = [name + bound for name, bound in wanted if normal(name) not in installed]
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

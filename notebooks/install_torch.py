"""Installs PyTorch's own CPU build, where that spares gigabytes of CUDA libraries.

Only on Linux, without an NVIDIA card and without a torch that is there; pip then finds torch
installed. Where PyTorch's index does not answer, pip installs what it finds.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

INDEX = "https://download.pytorch.org/whl/cpu"
PATIENCE = 3  # seconds


def answers(index: str) -> bool:
    """Whether a package index lists torch, within some seconds."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=PATIENCE) as answer:
            return answer.status == 200
    except (OSError, ValueError):  # no network, no such page, no address
        return False


def chosen_index(index: str = INDEX) -> str:
    """The index to take torch from; "" leaves the choice to pip."""
    has_card = shutil.which("nvidia-smi") or os.path.exists("/dev/nvidia0")
    there = importlib.util.find_spec("torch")
    return "" if sys.platform != "linux" or has_card or there or not answers(index) else index


if __name__ == "__main__":
    requirements = (Path(__file__).resolve().parent.parent / "requirements.txt").read_text()
    wanted = re.findall(r"^(?:torch|torchvision)[>=]\S+", requirements, re.MULTILINE)
    if index := chosen_index(os.environ.get("FACES_TORCH_INDEX", INDEX)):
        print("No NVIDIA card: installing PyTorch for the processor alone", flush=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--index-url",
            index,
        ]
        subprocess.run([*command, *wanted], check=False)  # else pip finds it elsewhere

"""Writes the models of a folder as ONNX, and compares them with PyTorch.

make onnx, or python notebooks/make_onnx.py --models notebooks/weights --output runs/onnx
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import helpers
from faces import recognition, segmentation
from faces.pipeline import load_models

LIMIT = 1e-3  # difference from PyTorch, relative to the largest output where that is above 1


class FromImages(torch.nn.Module):
    """Images (N, 3, S, S) in 0..1 -> what a model says of them; its preparation is inside."""

    def __init__(self, model: torch.nn.Module, prepare, stage: str) -> None:
        super().__init__()
        self.model, self.prepare, self.stage = model, prepare, stage

    def forward(self, images):
        images = self.prepare(images)
        if self.stage == "recognition":
            return torch.nn.functional.normalize(self.model.embed(images))
        return self.model(images)


# stage -> how images are prepared, name of the output, attribute that holds S
STAGES = {
    "landmarks": (lambda images: images, "logits", "input_size"),
    "recognition": (recognition.normalise, "embeddings", "face_size"),
    "parts": (segmentation.normalise, "logits", "input_size"),
    "mask": (segmentation.normalise, "logits", "input_size"),
    "portrait": (lambda images: images, "portraits", "size"),
}


def export(stage: str, model: torch.nn.Module, path: Path) -> float:
    """Writes one model; returns its largest difference from PyTorch, on random images."""
    prepare, output, side = STAGES[stage]
    network = FromImages(model, prepare, stage).eval()
    size = getattr(model, side)
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    options = dict(
        input_names=["images"], output_names=[output], external_data=False, verbose=False
    )
    batch = {"images": {0: torch.export.Dim("batch")}}

    def write(file: Path) -> None:
        torch.onnx.export(network, (images[:2],), file, dynamic_shapes=batch, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        helpers.write_atomically(path, write)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        expected = network(images).numpy()
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=str(helpers.WEIGHTS), help="folder of the models")
    parser.add_argument("--output", default=str(helpers.ROOT / "runs" / "onnx"))
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    for stage, model in load_models(Path(options.models), "arcface").items():
        path = Path(options.output) / f"{stage}.onnx"
        difference = export(stage, model, path)
        size = path.stat().st_size / 1e6
        where = helpers.display_path(path)
        print(f"{where}: {size:.1f} MB, differs from PyTorch by {difference:.1e}", flush=True)
        if difference > LIMIT:
            sys.exit(f"{where} does not compute what PyTorch does: more than {LIMIT:g}.")


if __name__ == "__main__":
    main()

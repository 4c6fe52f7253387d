"""Trains a small network by the loop of 3.2 and writes its history: under torchrun in one process or in several."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import helpers


def main() -> None:
    output = Path(sys.argv[1])
    segmentation = helpers.shared_definitions("3.2_segmentation_architectures")
    folders = helpers.open_dataset("mine", output / "data", output, needs=None)
    accelerator = helpers.set_up("test", folders, device="cpu", precision="no", tracker="")
    images = np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3)).astype(np.uint8)
    batches = segmentation.PartBatches(images, (images[..., 0] > 127).astype(np.uint8), accelerator.device)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
    settings = dict(epochs=3, batch_size=4, learning_rate=1e-2, seed=0)

    def judge(model):
        return segmentation.f1_scores(segmentation.part_confusions(model, np.arange(4), batches, accelerator).sum(0)).mean().item()

    loss = torch.nn.functional.cross_entropy
    _, history = segmentation.fit_segmenter("tiny", network, loss, lambda: np.arange(16), batches, judge, accelerator, folders, settings)
    if accelerator.is_main_process:
        history["processes"] = accelerator.num_processes
        (output / "history.json").write_text(json.dumps(history.to_dict("list")))
    accelerator.end_training()


if __name__ == "__main__":
    main()

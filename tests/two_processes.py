"""Trains a small network by the loop of 3.2 under torchrun, in one process or in several."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root / "notebooks")]
import helpers
from faces import segmentation


def rows_of_an_epoch(accelerator) -> list[list[int]]:
    """Which rows each process draws at random in one epoch, a list for each of them."""
    dataset = TensorDataset(torch.arange(16))
    sampler = WeightedRandomSampler(torch.ones(16), 16, replacement=False)
    loader = accelerator.prepare(DataLoader(dataset, batch_size=4, sampler=sampler))
    return gather_object([[int(row) for (rows,) in loader for row in rows]])


def main() -> None:
    output = Path(sys.argv[1])
    folders = helpers.open_dataset("mine", output / "data", output, needs="")
    accelerator = helpers.set_up("test", folders, device="cpu", precision="no")
    images = np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3)).astype(np.uint8)
    dataset = segmentation.PartDataset(images, (images[..., 0] > 127).astype(np.uint8))
    facts = {"rows": rows_of_an_epoch(accelerator)}
    facts["random"] = gather_object([torch.rand(()).item()])
    torch.manual_seed(0)
    first = torch.nn.Conv2d(3, 8, 3, padding=1)
    network = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))

    def validate(network):
        found = segmentation.confusions(network, dataset, np.arange(4), accelerator)
        return segmentation.f1_scores(found.sum(0)).mean().item()

    loader = DataLoader(dataset, batch_size=4)  # in order: one process or two, the same batches
    settings = dict(epochs=3, learning_rate=1e-2, seed=0)
    run = (F.cross_entropy, loader, None, validate, accelerator, folders, settings)
    _, history = segmentation.fit("tiny", network, *run)
    if accelerator.is_main_process:
        facts |= history.to_dict("list")
        (output / "facts.json").write_text(json.dumps(facts))
    accelerator.end_training()


if __name__ == "__main__":
    main()

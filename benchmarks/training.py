"""A training step of each network as its notebook takes it, against the plain recipe and the bare network.

Ours: pictures from the store, augmented, in the precision and layout of the notebook, with moving average. Plain: each picture
read and resized again by cv2, float32, PyTorch's own layout, no average. Limit: forward, backward and step of our network on one
batch that is there already. Ours and plain learn from the same batches, so their losses can be compared.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import cyclegan_step
import mask_merging
import numpy as np
import torch
import torchvision
from accelerate import Accelerator
from measure import line, timed
from photographs import annotations
from torch.nn import functional as F

from helpers import best_precision, moving_average, photograph_store, shared_definitions, square_matrix


class Contest:
    """One network, three times: as its notebook trains it (ours), plainly, and bare (limit)."""

    def __init__(self, network: torch.nn.Module, loss_of: Callable, accelerator: Accelerator) -> None:
        self.accelerator, self.loss_of = accelerator, loss_of
        self.plain = copy.deepcopy(network).to(accelerator.device)
        self.plain_optimizer = torch.optim.AdamW(self.plain.parameters(), 1e-3)
        self.ours, self.optimizer = self.prepared(copy.deepcopy(network))
        self.bare, self.bare_optimizer = self.prepared(network)
        self.average = moving_average(accelerator.unwrap_model(self.ours))

    def prepared(self, network: torch.nn.Module):
        network = network.to(memory_format=torch.channels_last)
        return self.accelerator.prepare(network, torch.optim.AdamW(network.parameters(), 1e-3, fused=True))

    def our_step(self, images: torch.Tensor, target) -> float:
        loss = self.loss_of(self.ours, layout(images), target)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.ours.parameters(), 5.0)
        self.optimizer.step()
        self.average.update_parameters(self.accelerator.unwrap_model(self.ours))
        return loss.item()

    def plain_step(self, images: torch.Tensor, target) -> float:
        loss = self.loss_of(self.plain, images.contiguous(), target)
        self.plain_optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.plain.parameters(), 5.0)
        self.plain_optimizer.step()
        return loss.item()

    def bare_step(self, images: torch.Tensor, target) -> None:
        loss = self.loss_of(self.bare, images, target)
        self.bare_optimizer.zero_grad()
        self.bare_optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.bare_optimizer.step()


def compare(stage: str, what: str, contest: Contest, batches: Iterator, read_plainly: Callable, steps: int) -> dict:
    """Steps in turn; medians without the first three. `batches` gives (images, target), `read_plainly` what the plain recipe reads."""
    seconds, losses, fixed = {"ours": [], "plain": [], "limit": [], "step": [], "plain step": []}, [], None
    for number in range(steps):
        given, values = {}, {}
        making = timed(lambda given=given: given.update(batch=next(batches)))
        images, target = given["batch"]
        fixed = fixed or (layout(images), target)
        torch.manual_seed(number)  # dropout, where a network has it, is the same for both
        step = timed(lambda: values.update(ours=contest.our_step(images, target)))  # noqa: B023 - called at once
        reading = timed(read_plainly)
        torch.manual_seed(number)
        plain = timed(lambda: values.update(plain=contest.plain_step(images, target)))  # noqa: B023
        bare = timed(lambda: contest.bare_step(*fixed))  # noqa: B023
        for name, value in (("ours", making + step), ("plain", reading + plain), ("limit", bare), ("step", step), ("plain step", plain)):
            seconds[name].append(value)
        losses.append((values["ours"], values["plain"]))
    median = {name: statistics.median(values[3:]) for name, values in seconds.items()}
    apart = np.mean([abs(ours - plain) / abs(plain) for ours, plain in losses])
    more = {"steps alone": round(median["plain step"] / median["step"], 2), "losses apart": f"{apart:.1%} over {steps} steps"}
    return line(stage, what, median, **more)


def forever(work: Callable) -> Iterator:
    while True:
        yield work()


def read_faces(files: list[Path], boxes: np.ndarray, count: int, size: int, rng: np.random.Generator) -> None:
    """One batch as the plain recipe's loader reads it."""
    for index in rng.integers(len(files), size=count):
        x, y, width, height = boxes[index].astype(int)
        cv2.resize(cv2.imread(str(files[index]))[max(0, y) : y + height, max(0, x) : x + width], (size, size))


def rows(data: Path, cache: Path, steps: int, precision: str | None = None) -> list[dict]:
    """Lines for hourglass, both recognisers, FPN, DeepLabV3 and CycleGAN."""
    on_gpu = torch.cuda.is_available()
    precision = precision or best_precision(torch.device("cuda" if on_gpu else "cpu"))
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision)
    rng, table, device = np.random.default_rng(0), [], accelerator.device
    files, boxes, points = annotations(data / "celeba", 256)
    matrices = square_matrix(boxes, 192)
    store, _ = photograph_store(files[0].parent, [file.name for file in files], matrices, 192, cache / "bench_faces.npy")
    truth = torch.from_numpy(points @ matrices[:, :, :2].swapaxes(1, 2) + matrices[:, None, :, 2]).float()

    settings = dict(stride=4, cells=32, sigma=1.5, input_size=128, store_size=192, store=store, truth=truth, accelerator=accelerator)
    hourglass = shared_definitions("1.4_stacked_hourglass", **settings)
    torch.manual_seed(0)
    contest = Contest(hourglass.StackedHourglass(2, 96, 5, 4), lambda net, x, y: hourglass.heatmap_loss(net(x - 0.45), y), accelerator)
    batches = forever(lambda: hourglass.augmented_batch(rng.integers(len(store), size=32)))
    table.append(compare("1.4 hourglass step", "32 x 128 px", contest, batches, lambda: read_faces(files, boxes, 32, 128, rng), steps))

    persons = torch.arange(len(store), device=device) % 77
    traits = torch.zeros(len(store), 40, device=device)
    identities = np.arange(77)
    views = shared_definitions("2.1_recognition_ce").FaceBatches(store, 112, device)
    faces = forever(lambda: (lambda some: (views.augmented(some), persons[some]))(rng.integers(len(store), size=32)))
    for stage, notebook, forward in (
        ("2.1 ResNet18, CE step", "2.1_recognition_ce", lambda net, x, y: net(x)[0]),
        ("2.2 ResNet18, ArcFace step", "2.2_recognition_arcface", lambda net, x, y: net(x, y, 0.25)[0]),
    ):
        torch.manual_seed(0)
        network = shared_definitions(notebook, start="scratch", attributes=traits, scale=16.0).Recogniser(identities)
        contest = Contest(network, lambda net, x, y, forward=forward: F.cross_entropy(forward(net, x, y).float(), y), accelerator)
        table.append(compare(stage, "32 x 112 px", contest, faces, lambda: read_faces(files, boxes, 32, 112, rng), steps))

    parts = shared_definitions("3.2_segmentation_architectures")
    photographs, label_maps, pairs = labelled(data / "CelebAMask-HQ", 64, 192)
    for stage, size, network in (
        ("3.2 FPN step", 192, lambda: parts.build_segmenter("FPN", "mobilenet_v2", 19)),
        (
            "3.3 DeepLabV3 step",
            64,
            lambda: Dictionary(torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=19)),
        ),
    ):
        shrink = 192 // size
        pictures = parts.PartBatches(
            photographs[:, ::shrink, ::shrink], label_maps[:, ::shrink, ::shrink], device, parts.part_augmentation(size, size)
        )
        torch.manual_seed(0)
        contest = Contest(network(), lambda net, x, y: F.cross_entropy(net(x).float(), y, ignore_index=parts.IGNORED), accelerator)
        batches = forever(lambda pictures=pictures: pictures.augmented(rng.integers(len(photographs), size=8)))
        read = lambda size=size: [cv2.resize(cv2.imread(str(file)), (size, size)) for pair in rng.choice(pairs, 8) for file in pair]  # noqa: E731
        table.append(compare(stage, f"8 x {size} px", contest, batches, read, steps))

    seconds, apart = cyclegan_step.compare(
        SimpleNamespace(size=64, channels=32, blocks=6, upsampling="resize", steps=steps, precision=precision)
    )
    table.append(line("4.1 CycleGAN step", "1 x 64 px", seconds, **{"losses apart": f"{apart:.1%} over {steps} steps"}))
    return table


def layout(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last)


class Dictionary(torch.nn.Module):
    """torchvision's segmentation networks answer with a dictionary; this gives its entry `out`."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)["out"]


def labelled(folder: Path, count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photographs (N, size, size, 3), label maps (N, size, size) and files (N, 2): the photograph, and a mask in place of its label map."""
    masks: dict[str, dict[str, Path]] = {}
    for path in sorted((folder / "CelebAMask-HQ-mask-anno").glob("*/*_*.png")):
        masks.setdefault(path.stem[:5], {})[path.stem[6:]] = path
    masks = dict(list(masks.items())[:count])
    files = [(folder / "CelebA-HQ-img" / f"{int(image_id)}.jpg", next(iter(paths.values()))) for image_id, paths in masks.items()]
    pictures = [cv2.imread(str(photograph))[..., ::-1] for photograph, _ in files]
    label_maps = [mask_merging.merge_one(paths) for paths in masks.values()]
    return (
        np.stack([cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA) for picture in pictures]),
        np.stack([cv2.resize(label_map, (size, size), interpolation=cv2.INTER_NEAREST) for label_map in label_maps]),
        np.array(files),
    )

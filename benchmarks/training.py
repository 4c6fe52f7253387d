"""A training step of each network against the plain recipe and the bare network.

Ours: crops from the image cache, augmented, in the precision and layout of the notebook, with
moving average. Plain: each image read and resized again by cv2, float32, PyTorch's own layout,
no average. Limit: forward, backward and step of our network on one batch that is there already.
Ours and plain learn from the same batches, so their losses can be compared.
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
from accelerate import Accelerator
from cropping import annotations
from measure import line, timed
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import helpers
from faces import arcface, crops, focal, landmarks, parts, recognition, segmentation


class Contest:
    """One network, three times: as its notebook trains it (ours), plainly, and bare (limit)."""

    def __init__(
        self, network: torch.nn.Module, loss_of: Callable, accelerator: Accelerator
    ) -> None:
        self.accelerator, self.loss_of = accelerator, loss_of
        self.plain = copy.deepcopy(network).to(accelerator.device)
        self.plain_optimizer = torch.optim.AdamW(self.plain.parameters(), 1e-3)
        self.ours, self.optimizer = self.prepared(copy.deepcopy(network))
        self.bare, self.bare_optimizer = self.prepared(network)
        self.average = helpers.moving_average(accelerator.unwrap_model(self.ours))

    def prepared(self, network: torch.nn.Module):
        network = network.to(memory_format=torch.channels_last)
        return self.accelerator.prepare(
            network, torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
        )

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


def compare(
    stage: str,
    what: str,
    contest: Contest,
    batches: Iterator,
    read_plainly: Callable,
    steps: int,
) -> dict:
    """Steps in turn; medians without the first three. `batches` gives (images, target)."""
    seconds, losses, fixed = (
        {"ours": [], "plain": [], "limit": [], "step": [], "plain step": []},
        [],
        None,
    )
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
        for name, value in (
            ("ours", making + step),
            ("plain", reading + plain),
            ("limit", bare),
            ("step", step),
            ("plain step", plain),
        ):
            seconds[name].append(value)
        losses.append((values["ours"], values["plain"]))
    median = {name: statistics.median(values[3:]) for name, values in seconds.items()}
    apart = np.mean([abs(ours - plain) / abs(plain) for ours, plain in losses])
    more = {
        "steps alone": round(median["plain step"] / median["step"], 2),
        "losses apart": f"{apart:.1%} over {steps} steps",
    }
    return line(stage, what, median, **more)


def read_faces(
    files: list[Path], boxes: np.ndarray, count: int, size: int, rng: np.random.Generator
) -> None:
    """One batch as the plain recipe's loader reads it."""
    for index in rng.integers(len(files), size=count):
        x, y, width, height = boxes[index].astype(int)
        cv2.resize(
            cv2.imread(str(files[index]))[max(0, y) : y + height, max(0, x) : x + width],
            (size, size),
        )


def endless(loader: DataLoader, augment: Callable) -> Iterator:
    """Augmented batches of a loader, over and over."""
    while True:
        for batch in loader:
            yield augment(*batch)


def rows(data: Path, cache: Path, steps: int, precision: str | None = None) -> list[dict]:
    """Lines for hourglass, both recognisers, FPN, DeepLabV3 and CycleGAN."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = precision or helpers.best_precision(device)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    rng, table = np.random.default_rng(0), []
    files, boxes, points = annotations(data / "celeba", 256)
    matrices = crops.square_matrix(boxes, 192)
    names = [file.name for file in files]
    images, _ = crops.cached_crops(files[0].parent, names, matrices, 192, cache / "faces.npy")
    images = torch.from_numpy(images).to(device)
    points = torch.from_numpy(crops.apply_affine(matrices, points)).float().to(device)
    read = lambda size: read_faces(files, boxes, 32, size, rng)  # noqa: E731

    torch.manual_seed(0)
    loss = lambda net, x, y: landmarks.heatmap_loss(net(x - 0.45), y, 128, 1.5)  # noqa: E731
    contest = Contest(landmarks.StackedHourglass(2, 96, 5, 4), loss, accelerator)
    loader = DataLoader(TensorDataset(images, points), 32, shuffle=True, drop_last=True)
    batches = endless(loader, lambda x, y: landmarks.augment(x, y, 128))
    line_of = compare(
        "1.4 hourglass step", "32 x 128 px", contest, batches, lambda: read(128), steps
    )
    table.append(line_of)

    labels = torch.arange(len(images), device=device) % 77
    loader = DataLoader(TensorDataset(images, labels), 32, shuffle=True, drop_last=True)
    batches = endless(loader, lambda x, y: (recognition.augment(x, 112), y))
    cross_entropy = lambda net, x, y: F.cross_entropy(net(x)[0].float(), y)  # noqa: E731
    with_margin = lambda net, x, y: F.cross_entropy(net(x, y, 0.25)[0].float(), y)  # noqa: E731
    for stage, network, loss in (
        ("2.1 ResNet18, CE step", recognition.Recogniser, cross_entropy),
        ("2.2 ResNet18, ArcFace step", arcface.ArcFaceRecogniser, with_margin),
    ):
        torch.manual_seed(0)
        contest = Contest(network(list(range(77))), loss, accelerator)
        table.append(compare(stage, "32 x 112 px", contest, batches, lambda: read(112), steps))

    photographs, label_maps, pairs = labelled(data / "CelebAMask-HQ", 64, 192)
    loss = lambda net, x, y: F.cross_entropy(net(x).float(), y, ignore_index=parts.IGNORED)  # noqa: E731
    fpn = lambda: segmentation.build("FPN", "mobilenet_v2", 19)  # noqa: E731
    for stage, size, network in (
        ("3.2 FPN step", 192, fpn),
        ("3.3 DeepLabV3 step", 64, focal.DeepLab),
    ):
        shrink = 192 // size
        small = photographs[:, ::shrink, ::shrink], label_maps[:, ::shrink, ::shrink]
        loader = DataLoader(segmentation.PartDataset(*small), 8, shuffle=True, drop_last=True)
        transform = segmentation.part_augmentation(size, size)
        batches = endless(
            loader,
            lambda x, y, t=transform: segmentation.augment(x.to(device), y.to(device), t),
        )
        torch.manual_seed(0)
        contest = Contest(network(), loss, accelerator)
        read_pairs = lambda size=size: read_labelled(rng.choice(pairs, 8), size)  # noqa: E731
        table.append(compare(stage, f"8 x {size} px", contest, batches, read_pairs, steps))

    options = dict(size=64, channels=32, blocks=6, upsampling="resize", steps=steps)
    options = SimpleNamespace(**options, precision=precision)
    seconds, apart = cyclegan_step.compare(options)
    more = {"losses apart": f"{apart:.1%} over {steps} steps"}
    table.append(line("4.1 CycleGAN step", "1 x 64 px", seconds, **more))
    return table


def read_labelled(pairs: np.ndarray, size: int) -> None:
    """One batch of photographs and masks as the plain recipe's loader reads it."""
    for file in pairs.ravel():
        cv2.resize(cv2.imread(str(file)), (size, size))


def layout(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def labelled(folder: Path, count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photographs (N, S, S, 3), label maps (N, S, S) and files (N, 2): photograph, one mask."""
    masks: dict[str, dict[str, Path]] = {}
    for path in sorted((folder / "CelebAMask-HQ-mask-anno").glob("*/*_*.png")):
        masks.setdefault(path.stem[:5], {})[path.stem[6:]] = path
    masks = dict(list(masks.items())[:count])
    files = [
        (folder / "CelebA-HQ-img" / f"{int(image_id)}.jpg", next(iter(paths.values())))
        for image_id, paths in masks.items()
    ]
    pictures = [cv2.imread(str(photograph))[..., ::-1] for photograph, _ in files]
    label_maps = [mask_merging.merge_one(paths) for paths in masks.values()]
    return (
        np.stack(
            [
                cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
                for picture in pictures
            ]
        ),
        np.stack(
            [
                cv2.resize(label_map, (size, size), interpolation=cv2.INTER_NEAREST)
                for label_map in label_maps
            ]
        ),
        np.array(files),
    )

"""A training step of 4.1 against the plain recipe: the same networks, one generator pass for each term of the loss, float32.

python benchmarks/cyclegan_step.py [--size 64 --channels 32 --blocks 6]
Side by side in one process, interleaved; prints seconds, their ratio, and how far the losses of 50 steps are apart.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as notebooks/run.py sets it, for both
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from helpers import best_precision, shared_definitions


def plain_step(translators, critics, optimizers, a, b):
    """The recipe as the paper tells it; returns the generators' loss and the mean of the critics' losses."""
    to_b, to_a = translators.to_b, translators.to_a
    fake_b, fake_a = to_b(a), to_a(b)
    loss = 10 * (F.l1_loss(to_a(fake_b), a) + F.l1_loss(to_b(fake_a), b)) + 5 * (F.l1_loss(to_b(b), b) + F.l1_loss(to_a(a), a))
    loss = loss + ((critics.a(fake_a) - 1) ** 2).mean() + ((critics.b(fake_b) - 1) ** 2).mean()
    optimizers[0].zero_grad()
    loss.backward()
    optimizers[0].step()
    halves = [
        0.5 * (((critic(real) - 1) ** 2).mean() + (critic(fake.detach()) ** 2).mean())
        for critic, real, fake in ((critics.a, a, fake_a), (critics.b, b, fake_b))
    ]
    critic_loss = sum(halves) / 2
    optimizers[1].zero_grad()
    critic_loss.backward()
    optimizers[1].step()
    return loss.item(), critic_loss.item()


def copy_of(network):
    """The network as it is, without the precision that accelerate wrapped around its forward."""
    plain = copy.deepcopy(network)
    plain.__dict__.pop("forward", None)
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--upsampling", default="resize")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    cyclegan = shared_definitions("4.1_cyclegan")
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=best_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    )
    torch.manual_seed(0)
    run = cyclegan.new_run(accelerator, options.size, options.channels, options.blocks, options.upsampling, options.steps, pool_size=0)
    translators, critics = copy_of(accelerator.unwrap_model(run.translators)), copy_of(accelerator.unwrap_model(run.critics))
    plain = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in (translators, critics)]
    seconds, losses = {"ours": [], "plain": []}, {"ours": [], "plain": []}
    for step in range(options.steps):
        pictures = torch.rand(2, 1, 3, options.size, options.size, generator=torch.Generator().manual_seed(step)) * 2 - 1
        a, b = pictures.to(accelerator.device)
        started = time.perf_counter()
        values = cyclegan.train_step(run, a, b, 10.0, 0.5)
        losses["ours"].append(sum(float(values[name]) for name in ("fooling", "cycle", "identity")))
        seconds["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        losses["plain"].append(plain_step(translators, critics, plain, a, b)[0])
        seconds["plain"].append(time.perf_counter() - started)
    ours, by_plain = (statistics.median(seconds[name][5:]) for name in ("ours", "plain"))
    apart = [abs(one - other) / other for one, other in zip(losses["ours"], losses["plain"], strict=True)]
    print(f"{options.size} px, {options.channels} channels, {options.blocks} blocks, {options.upsampling}, batch 1, {accelerator.device}")
    print(f"ours ({accelerator.mixed_precision}) {ours:.3f} s, plain (float32) {by_plain:.3f} s a step: ratio {by_plain / ours:.2f}")
    print(f"generators' loss over {options.steps} steps: mean {statistics.mean(apart):.2%} apart, last {apart[-1]:.2%}")


if __name__ == "__main__":
    main()

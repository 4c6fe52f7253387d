"""A training step of 4.1 against the plain recipe: the same networks, one generator pass for each term of the loss, float32.

python benchmarks/cyclegan_step.py [--size 64 --channels 32 --blocks 6]
Side by side in one process, interleaved; prints seconds, their ratio, and how far the losses of 50 steps are apart.
"""

from __future__ import annotations

import argparse
import copy
import statistics

import torch
from accelerate import Accelerator
from measure import line, timed
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


def compare(options) -> tuple[dict[str, float], float]:
    """Median seconds of a step, ours, plain and bare; mean relative distance of the generators' losses. `options`: see below."""
    cyclegan = shared_definitions("4.1_cyclegan")
    on_gpu = torch.cuda.is_available()
    precision = options.precision or best_precision(torch.device("cuda" if on_gpu else "cpu"))
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision)
    torch.manual_seed(0)
    run = cyclegan.new_run(accelerator, options.size, options.channels, options.blocks, options.upsampling, options.steps, pool_size=0)
    translators, critics = copy_of(accelerator.unwrap_model(run.translators)), copy_of(accelerator.unwrap_model(run.critics))
    plain = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in (translators, critics)]
    bare = cyclegan.new_run(accelerator, options.size, options.channels, options.blocks, options.upsampling, options.steps, pool_size=0)
    seconds, losses = {"ours": [], "plain": [], "limit": []}, {"ours": [], "plain": []}

    def our_step(a, b):
        values = cyclegan.train_step(run, a, b, 10.0, 0.5)
        losses["ours"].append(sum(float(values[name]) for name in ("fooling", "cycle", "identity")))

    def bare_step(a, b):
        """Both networks forward and back once, without average, pool and numbers."""
        bare.critics.requires_grad_(False)
        terms, made = cyclegan.generator_losses(bare, a, b, 10.0, 0.5)
        bare.optimizers[0].zero_grad()
        accelerator.backward(sum(terms.values()))
        bare.optimizers[0].step()
        bare.critics.requires_grad_(True)
        bare.optimizers[1].zero_grad()
        loss, _ = cyclegan.critic_losses(bare, a, b, made["fake_a"].detach(), made["fake_b"].detach())
        accelerator.backward(loss)
        bare.optimizers[1].step()

    for step in range(options.steps):
        pictures = torch.rand(2, 1, 3, options.size, options.size, generator=torch.Generator().manual_seed(step)) * 2 - 1
        a, b = pictures.to(accelerator.device)
        seconds["ours"].append(timed(lambda: our_step(a, b)))  # noqa: B023 - called at once
        seconds["plain"].append(timed(lambda: losses["plain"].append(plain_step(translators, critics, plain, a, b)[0])))  # noqa: B023
        seconds["limit"].append(timed(lambda: bare_step(a, b)))  # noqa: B023
    apart = [abs(one - other) / other for one, other in zip(losses["ours"], losses["plain"], strict=True)]
    return {name: statistics.median(values[3:]) for name, values in seconds.items()}, statistics.mean(apart)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--upsampling", default="resize")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", help="bf16, fp16 or no; by default what the device does well")
    options = parser.parse_args()
    seconds, apart = compare(options)
    what = f"1 x {options.size} px, {options.channels} channels, {options.blocks} blocks"
    line("4.1 CycleGAN step", what, seconds, **{"losses apart": f"{apart:.2%} over {options.steps} steps"})


if __name__ == "__main__":
    main()

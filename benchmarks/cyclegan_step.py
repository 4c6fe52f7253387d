"""A training step of 4.1 against the plain recipe: one generator pass per loss, float32.

python benchmarks/cyclegan_step.py [--size 64 --channels 32 --blocks 6]
Both are measured in turn in one process; prints seconds, their ratio, and how far the losses
of 50 steps are apart.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys

import torch
from accelerate import Accelerator
from measure import line, ROOT, timed
from torch.nn import functional as F

sys.path.insert(0, str(ROOT / "notebooks"))
from faces import cyclegan
from helpers import best_precision


def plain_step(translators, discriminators, optimizers, a, b):
    """The recipe of the paper; the generators' loss and the discriminators' mean loss."""
    to_b, to_a = translators.to_b, translators.to_a
    fake_b, fake_a = to_b(a), to_a(b)
    loss = 10 * (F.l1_loss(to_a(fake_b), a) + F.l1_loss(to_b(fake_a), b))
    loss = loss + 5 * (F.l1_loss(to_b(b), b) + F.l1_loss(to_a(a), a))
    loss = loss + ((discriminators.a(fake_a) - 1) ** 2).mean()
    loss = loss + ((discriminators.b(fake_b) - 1) ** 2).mean()
    optimizers[0].zero_grad()
    loss.backward()
    optimizers[0].step()
    triples = ((discriminators.a, a, fake_a), (discriminators.b, b, fake_b))
    halves = [
        0.5 * (((network(real) - 1) ** 2).mean() + (network(fake.detach()) ** 2).mean())
        for network, real, fake in triples
    ]
    discriminator_loss = sum(halves) / 2
    optimizers[1].zero_grad()
    discriminator_loss.backward()
    optimizers[1].step()
    return loss.item(), discriminator_loss.item()


def copy_of(network):
    """The network without the precision that accelerate wrapped around its forward."""
    plain = copy.deepcopy(network)
    plain.__dict__.pop("forward", None)
    return plain


def new_run(accelerator, size, channels, blocks, upsampling, steps) -> cyclegan.Run:
    """A run without pools and without augmentation, which the plain recipe has not."""
    translators = cyclegan.Translators(channels, blocks, upsampling)
    networks = translators, cyclegan.Discriminators(channels)
    return cyclegan.Run(accelerator, networks, size, steps, pool_size=0)


def bare_step(run, a, b) -> None:
    """Both networks forward and backward once, without average, pool and numbers."""
    run.discriminators.requires_grad_(False)
    networks = run.translators, run.accelerator.unwrap_model(run.discriminators)
    terms, out = cyclegan.generator_losses(*networks, a, b, 10.0, 0.5)
    run.optimizers[0].zero_grad()
    run.accelerator.backward(sum(terms.values()))
    run.optimizers[0].step()
    run.discriminators.requires_grad_(True)
    run.optimizers[1].zero_grad()
    fakes = out["fake_a"].detach(), out["fake_b"].detach()
    loss, _ = cyclegan.discriminator_loss(run.discriminators, a, b, *fakes)
    run.accelerator.backward(loss)
    run.optimizers[1].step()


def compare(options) -> tuple[dict[str, float], float]:
    """Median seconds of a step: ours, plain, limit; mean relative distance of the losses.

    `options` has the attributes of the command line below.
    """
    on_gpu = torch.cuda.is_available()
    precision = options.precision or best_precision("cuda" if on_gpu else "cpu")
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision)
    torch.manual_seed(0)
    shape = options.size, options.channels, options.blocks, options.upsampling
    run = new_run(accelerator, *shape, 2 * options.steps)  # at a constant learning rate
    pair = [accelerator.unwrap_model(n) for n in (run.translators, run.discriminators)]
    translators, discriminators = map(copy_of, pair)
    plain = [
        torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999))
        for network in (translators, discriminators)
    ]
    bare = new_run(accelerator, *shape, 2 * options.steps)
    seconds, losses = {"ours": [], "plain": [], "limit": []}, {"ours": [], "plain": []}

    def our_step(a, b):
        values = cyclegan.train_step(run, a, b, 10.0, 0.5)
        names = ("adversarial", "cycle", "identity")
        losses["ours"].append(sum(float(values[name]) for name in names))

    def the_plain_step(a, b):
        losses["plain"].append(plain_step(translators, discriminators, plain, a, b)[0])

    works = {"ours": our_step, "plain": the_plain_step, "limit": lambda *x: bare_step(bare, *x)}
    for step in range(options.steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.rand(2, 1, 3, options.size, options.size, generator=generator) * 2 - 1
        a, b = images.to(accelerator.device)
        for name, work in works.items():
            seconds[name].append(timed(lambda: work(a, b)))  # noqa: B023 - called at once
    pairs = zip(losses["ours"], losses["plain"], strict=True)
    apart = statistics.mean(abs(ours - other) / other for ours, other in pairs)
    return {name: statistics.median(values[3:]) for name, values in seconds.items()}, apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--upsampling", default="resize")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", help="bf16, fp16 or no; by default the device's best")
    options = parser.parse_args()
    seconds, apart = compare(options)
    what = f"1 x {options.size} px, {options.channels} channels, {options.blocks} blocks"
    more = {"losses apart": f"{apart:.2%} over {options.steps} steps"}
    line("4.1 CycleGAN step", what, seconds, **more)


if __name__ == "__main__":
    main()

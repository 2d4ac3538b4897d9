"""Train networks by turns on one card for some minutes, from packed scans and digital bodies.

    python recipes/gpu/train.py OUT --pack PACK --bodies BODIES --minutes 8 [--total 20] [--resume STATE]

Med-K2N's synthesizer and the reference U-Net see the same batches and take as many steps; then, for `--weighing`
seconds, Med-K2N's weighting networks learn beside the averaged synthesizer, on subjects that it has not seen. All data
live on the device (`medk2n.training.device_feed`). OUT gets state-K.safetensors (weights, and their averages, in files
of at most 15 MB), state.json and log.csv, anew after each validation, and, given `--statistics`, a model folder;
`--resume` goes on from such a folder, so short runs add up to `--total` minutes of one schedule. Momenta are not kept:
a resumed run warms up again.
"""

import argparse
import copy
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from kept import load_state, save_models, save_state
from learner import Learner, learners_of, spared
from loaded import CORE, SLICES, Data, read_data

from medk2n.cli.common import resolve_device
from medk2n.config.schema import LossWeights, Optimiser, load_config
from medk2n.data.batches import Augmentation, Batch
from medk2n.errors import ConfigError, InternalError, Medk2nError
from medk2n.losses.reconstruction import mean_squared_error
from medk2n.models.layers.shared_passes import padded, stacked
from medk2n.registry import resolve
from medk2n.training.device_damage import Chance
from medk2n.training.device_feed import draw_sources, narrowed
from medk2n.training.lesson import Pupil
from medk2n.training.lessons.medk2n import MedK2NLesson

_TOLD_EVERY = 50
_WARM_AGAIN = 150


@torch.no_grad()
def validate(network: nn.Module, watched: Mapping[str, Sequence[Batch]], most: int) -> dict[str, float]:
    """Mean PSNR in dB within the foreground over missing targets of fixed slices and subsets, by set and in all."""
    values: dict[str, list[Tensor]] = {}
    for name, batches in watched.items():
        for k, batch in enumerate(batches):
            chance = Chance(torch.Generator().manual_seed(k))
            sources = draw_sources(batch.acquired.cpu(), chance, most=most).to(batch.images.device)
            h, w = batch.images.shape[-2:]
            x = padded(stacked(batch.images, sources), 16)
            mean = network(x.contiguous(memory_format=torch.channels_last))[0][..., :h, :w].float()
            row, target = (batch.acquired & ~sources).nonzero().unbind(dim=1)
            mse = mean_squared_error(mean[row, target], batch.targets[row, target], batch.foreground[row])
            values.setdefault(name, []).append(-10 * torch.log10(mse + 1e-6))
    means = {name: float(torch.cat(v).mean()) for name, v in values.items()}
    return means | ({"all": float(torch.cat([x for v in values.values() for x in v]).mean())} if values else {})


def rate_at(progress: float, settings: Optimiser, steps: int) -> float:
    """Warm-up (of a resumed run too) and cosine, as in `medk2n train`."""
    warm = min(1.0, progress / settings.warm_up, (steps + 1) / _WARM_AGAIN) if settings.warm_up else 1.0
    fall = max(0.0, (progress - settings.warm_up) / (1 - settings.warm_up))
    return settings.learning_rate * max(warm, 1e-3) * (0.5 * (1 + math.cos(math.pi * fall)) * 0.98 + 0.02)


def learn(asked: argparse.Namespace) -> dict[str, Any]:
    """A whole run; returns the facts that state.json holds."""
    began = time.monotonic()
    device = torch.device(resolve_device(asked.device))
    bf16 = asked.precision == "bf16" or (asked.precision == "auto" and device.type == "cuda")
    settings = Optimiser(learning_rate=asked.rate, ema=asked.ema, warm_up=asked.warm_up)
    weights = LossWeights()
    data = read_data(asked, device)
    chance = Chance(torch.Generator(device=device).manual_seed(asked.seed))
    data.take_bodies(chance, at_once=max(asked.wait_bodies, 1))
    while data.bodies is not None and len(data.taken) < asked.wait_bodies:
        time.sleep(0.2)
        data.look_at = 0.0
        data.take_bodies(chance, at_once=asked.wait_bodies - len(data.taken))
    augmentation = Augmentation(strip=asked.strip, restyle=asked.restyle, corrupt=asked.corrupt)
    core = torch.tensor([name in CORE for name in data.modalities], device=device)

    def draw() -> tuple[Batch, Tensor]:
        batch = data.feed.batch(chance, asked.batch, asked.crop, SLICES, augmentation)
        if not all(name in CORE for name in data.modalities):
            acquired = narrowed(batch.acquired, core, chance, share=asked.core_share)
            batch = replace(batch, acquired=acquired)
        sources = draw_sources(batch.acquired, chance, most=asked.most_sources)
        return batch, spared(sources, batch.severity, chance)

    torch.manual_seed(asked.seed)
    learners = learners_of(asked, draw()[0], settings, device)
    facts = load_state(asked.resume, learners) if asked.resume else {"steps": 0, "seconds": 0.0, "history": []}
    chance.generator.manual_seed(asked.seed + 1 + facts["steps"])
    sizes = ", ".join(f"{one.name} {sum(p.numel() for p in one.module.parameters()) / 1e6:.1f} M" for one in learners)
    taken, spent = len(data.taken), time.monotonic() - began
    _say(f"{device}: {len(data.feed)} studies; {taken} digital ones taken; {spent:.0f} s; {sizes}")
    for one in learners if asked.compile else ():
        done = one.compile(
            asked.compile_seconds, asked.compile, partial(lambda o: o.loss(*draw(), weights, bf16=bf16), one)
        )
        _say(f"{one.name}: {'compiled' if done else f'not compiled within {asked.compile_seconds} s'}")
    return _loop(asked, data, learners, facts, settings, weights, chance, draw, bf16, began)


def _loop(asked, data, learners, facts, settings, weights, chance, draw, bf16, began) -> dict[str, Any]:
    """Steps, validation and saving until the minutes are over; reading and compiling count."""
    out, before, total = asked.out, facts["seconds"], 60 * (asked.total or asked.minutes)
    deadline, first = began + 60 * asked.minutes, time.monotonic()
    if asked.resume and asked.resume != out:
        out.mkdir(parents=True, exist_ok=True)
        if (asked.resume / "log.csv").is_file():
            shutil.copy(asked.resume / "log.csv", out / "log.csv")
    marks = [k / asked.validations for k in range(1, asked.validations)]
    steps, told_at, made = 0, time.monotonic(), 0
    losses: dict[str, Tensor] = {}
    reserve = 0.0
    while True:
        now = time.monotonic()
        if now + reserve >= deadline or (asked.steps and steps >= asked.steps):
            break
        spent = now - first
        rate = rate_at(min(1.0, (before + spent) / total), settings, steps)
        batch, sources = draw()
        for learner in learners:
            loss = learner.loss(batch, sources, weights, bf16=bf16)
            learner.step(loss, rate, facts["steps"] + steps)
            losses[learner.name] = loss.detach()
        steps += 1
        made += asked.batch
        if steps % _TOLD_EVERY == 0 or steps == 1:
            numbers = {name: float(loss) for name, loss in losses.items()}
            if not all(map(math.isfinite, numbers.values())):
                raise InternalError(f"the loss is not finite at step {steps}: {numbers}; the last state is in {out}")
            speed = made / (time.monotonic() - told_at)
            if steps % (_TOLD_EVERY * 10) == 0 or steps == 1:
                line = ", ".join(f"{k} {v:.4f}" for k, v in numbers.items())
                at = f"step {facts['steps'] + steps}, {spent:.0f} s, {speed:.0f} crops/s, rate {rate:.2e}"
                _say(f"{at}, {line}, {len(data.feed)} studies")
            told_at, made = time.monotonic(), 0
            data.take_bodies(chance, at_once=16)
        if marks and spent >= marks[0] * 60 * asked.minutes:
            marks.pop(0)
            reserve = _keep(asked, data, learners, facts, steps, before + time.monotonic() - first)
    _keep(asked, data, learners, facts, steps, before + time.monotonic() - first)
    if asked.weighing:
        weigh(asked, data, next(one for one in learners if one.name == "medk2n"), chance)
        _keep(asked, data, learners, facts, steps, before + time.monotonic() - first)
    if asked.statistics:
        save_models(
            asked,
            data,
            learners,
            facts | {"steps": facts["steps"] + steps, "seconds": before + time.monotonic() - first},
        )
    return json.loads((out / "state.json").read_text(encoding="utf-8"))


def weigh(asked: argparse.Namespace, data: Data, learner: Learner, chance: Chance) -> None:
    """The weighting networks, beside the averaged synthesizer, on the held out subjects; leaves them in the average."""
    net = learner.module.net
    settings = [
        "modalities=" + json.dumps(list(data.modalities)),
        "core=[]",
        f"batch.most_sources={asked.most_sources}",
    ]
    config = load_config("tiny", ["spacing_mm=1.5", "batch.size=2", "batch.crop=96", "batch.draws=1", *settings])
    lesson = MedK2NLesson(Pupil(net, resolve("models", "medk2n"), config))
    lesson.enter(learner.averaged.net)
    learning = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-2)
    average = copy.deepcopy(net).requires_grad_(False).eval()
    augmentation = Augmentation(strip=asked.strip, restyle=asked.restyle, corrupt=config.teaching.corrupt)
    held = data.fold if len(data.fold) else data.feed  # a handful of studies is not parted
    began, steps, told = time.monotonic(), 0, {}
    while (spent := (time.monotonic() - began) / asked.weighing) < 1 and not (asked.steps and steps >= asked.steps):
        batch = held.batch(chance, asked.weighing_batch, asked.crop, SLICES, augmentation)
        loss, parts = lesson.loss(batch, asked.seed + steps, 1.0, _Alone(batch.images.device))
        loss.backward()
        lesson.learned(_Alone(batch.images.device))
        nn.utils.clip_grad_norm_(learning, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (steps + 1) / 30) * (0.5 * (1 + math.cos(math.pi * spent)) + 0.01)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        steps += 1
        decay = min(0.99, steps / (10 + steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
        for name, value in parts.items():
            told[name] = 0.95 * told.get(name, value) + 0.05 * value
        if steps % 100 == 0:
            _say(f"weighing {steps}: " + ", ".join(f"{k} {v:.4f}" for k, v in told.items()))
    for name, buffer in net.named_buffers():
        average.get_buffer(name).copy_(buffer)
    net.load_state_dict(average.state_dict())
    learner.averaged.net.load_state_dict(average.state_dict())


class _Alone:
    """One process, in full precision: what a lesson asks of the world."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def autocast(self) -> AbstractContextManager[None]:
        """None: gains are small differences."""
        return nullcontext()

    def summed(self, tensor: Tensor) -> Tensor:
        """There is nobody else."""
        return tensor


def _keep(asked, data: Data, learners: Sequence[Learner], facts: dict[str, Any], steps: int, seconds: float) -> float:
    """Validate and save; how long it took."""
    started = time.monotonic()
    scores = {one.name: validate(one.averaged, data.watched, asked.most_sources) for one in learners}
    done = facts["steps"] + steps
    facts["history"].append({"steps": done, "seconds": seconds, "digital": len(data.taken), "psnr": scores})
    told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
    now = facts | {"steps": done, "seconds": seconds, "asked": told, "free": asked.free,
                   "sets": list(data.shares)}  # fmt: skip
    save_state(asked.out, learners, now)
    with (asked.out / "log.csv").open("a", encoding="utf-8") as file:
        for name, by_set in scores.items():
            for where, value in by_set.items():
                file.write(f"{done},{seconds:.1f},{name},{where},{value:.4f}\n")
    _say(f"validation at step {done}: " + "; ".join(
        f"{name} " + ", ".join(f"{k} {v:.2f}" for k, v in by.items()) for name, by in scores.items()))  # fmt: skip
    return time.monotonic() - started


def _say(text: str) -> None:
    print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("out", type=Path, nargs="?", help="folder for the state and the log")
    made.add_argument("--pack", type=Path, help="folder of part-N.zip (recipes/gpu/pack.py)")
    made.add_argument("--bodies", type=Path, help="folder that recipes/gpu/digital.py writes, or has written")
    made.add_argument(
        "--wait-bodies", type=int, default=0, help="bodies to take before the first step; more come later"
    )
    made.add_argument("--most-bodies", type=int, default=1000)
    made.add_argument("--room", type=int, default=24_000, help="MB of device memory for digital subjects")
    made.add_argument("--free", action="store_true", help="learn only from what leaves the weights Apache-2.0")
    made.add_argument("--shares", help="of the crops, by set: lgg128=0.5,digital=0.5")
    made.add_argument("--modalities", default="t1c,t1n,t2f,t2w")
    made.add_argument("--minutes", type=float, default=1.0, help="of this run, reading included")
    made.add_argument("--total", type=float, help="minutes of the schedule, over all runs that resume each other")
    made.add_argument("--steps", type=int, help="at most so many (for tests)")
    made.add_argument("--resume", type=Path)
    made.add_argument("--networks", default="medk2n,unet")
    made.add_argument("--widths", default="32,48,80,128,160")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    made.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    made.add_argument("--batch", type=int, default=64)
    made.add_argument("--crop", type=int, default=128)
    made.add_argument("--rate", type=float, default=1.5e-3)
    made.add_argument("--warm-up", type=float, default=0.03)
    made.add_argument("--ema", type=float, default=0.998)
    made.add_argument("--strip", type=float, default=0.3)
    made.add_argument("--restyle", type=float, default=0.5)
    made.add_argument("--corrupt", type=float, default=0.1)
    made.add_argument("--most-sources", type=int, default=3)
    made.add_argument("--core-share", type=float, default=0.6)
    made.add_argument("--validations", type=int, default=4)
    made.add_argument("--watched", type=int, default=6, help="slices of each watched subject")
    made.add_argument("--compile", nargs="?", const="default", help="torch.compile, and its mode")
    made.add_argument("--compile-seconds", type=int, default=90)
    made.add_argument(
        "--statistics", type=Path, help="of recipes/gpu/pair_statistics.py: then OUT/model is written at the end"
    )
    made.add_argument("--licence", default="Apache-2.0", help="of the weights, for their folder")
    made.add_argument("--hide", type=float, default=0.05)
    made.add_argument("--weighing", type=float, default=60, help="seconds, after the minutes")
    made.add_argument("--weighing-batch", type=int, default=16)
    made.add_argument("--seed", type=int, default=0)
    return made


def main() -> None:
    """Train."""
    asked = parser().parse_args()
    try:
        if asked.out is None:
            raise ConfigError("expected a folder for the state: train.py OUT --minutes M")
        learn(asked)
    except Medk2nError as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()

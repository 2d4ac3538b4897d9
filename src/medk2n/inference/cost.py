"""What an answer costs: parameters, FLOPs, measured latency and peak memory for every number of inputs and targets.

An answer is that of one slice, all of it foreground, from K inputs to N of the modalities that are left. A study's
decisions are taken before, once; here they are laid down, so that nothing is saved. Two cases bound the work: in the
first each target lets in every input, and all targets share one pass; in the second ("apart") each lets in other
inputs than those before it, as far as there are sets of inputs, and has a pass of its own.
Time and memory do not depend on what images show, or on what was learned: noise stands for images.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from medk2n.checkpoint import build, read_config
from medk2n.inference.memory import peaks_alone
from medk2n.inference.predictor import Progress, SlicePredictor, as_predictor, load_predictor
from medk2n.models._flops import counting
from medk2n.models._spec import Prediction
from medk2n.models.medk2n_parts.control import Control, Plan, PlannedStep

SIZE = (160, 192)
"""Voxels of the slice: a head at 1.5 mm in its box."""
REPEATS = 5
_COUNTED = ("encoder", "trunk")

Tick = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """K inputs, N targets, and whether the targets let in different inputs."""

    inputs: int
    targets: int
    apart: bool = False


@dataclass(frozen=True)
class Row:
    """The cost of one slice in one case.

    Attributes:
        inputs, targets, apart: the case.
        encodes: frames that went through an encoder, counted; None for a model without frames, as what follows.
        passes: of the synthesizer, counted.
        encoder_share: of the latency; None without an encoder.
        gflop: of matrix products, convolutions and attention, two a multiplication.
        latency_ms: wall time, median of the repeats.
        memory_mb: peak above what the loaded model and the program hold before; None where the system does not tell.
    """

    inputs: int
    targets: int
    apart: bool
    encodes: int | None
    passes: int | None
    encoder_share: float | None
    gflop: float
    latency_ms: float
    memory_mb: float | None


@dataclass(frozen=True)
class Ratio:
    """t(K, 3) / t(K, 1), median over the repeats: with all inputs let in, and apart (None where that cannot be)."""

    inputs: int
    open: float
    apart: float | None


@dataclass(frozen=True)
class Card:
    """All of a model on one device.

    Attributes:
        parameters, trainable: all, and those that training moves.
        size: (h, w) of the slice, in voxels.
        repeats: measurements of each latency, taken in turns.
        device: as torch calls it.
        device_name: for people.
        threads: that torch uses on the CPU.
        rows: in order of inputs and targets.
        ratios: for every K that leaves three targets.
    """

    parameters: int
    trainable: int
    size: tuple[int, int]
    repeats: int
    device: str
    device_name: str
    threads: int
    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]


def measure(
    folder: Path,
    device: str = "cpu",
    progress: Progress | None = None,
    *,
    size: tuple[int, int] = SIZE,
    repeats: int = REPEATS,
) -> Card:
    """The cost card of a model folder; progress is called with (measurements done, measurements in all).

    Raises:
        CheckpointError: the folder is no whole model.
    """
    bench = Bench(load_predictor(folder, device), size)
    cases = bench.cases()
    done, total = 0, len(cases) * (2 + repeats) + 1

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    counts = [bench.count(case, tick) for case in cases]  # first: these passes warm up
    times, encoding = bench.times(cases, repeats, tick)
    peaks = bench.peaks(folder, cases, tick)
    rows = []
    for case, (gflop, *counted), memory in zip(cases, counts, peaks, strict=True):
        shares = [a / b for a, b in zip(encoding[case.inputs], times[case], strict=bench.encodes)]
        share = median(shares) if shares else None
        latency = 1e3 * median(times[case])
        rows.append(Row(case.inputs, case.targets, case.apart, *counted, share, gflop, latency, memory))
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    facts = (size, repeats, device, name, torch.get_num_threads())
    return Card(*parameters(folder), *facts, tuple(rows), ratios(times))


def parameters(folder: Path) -> tuple[int, int]:
    """All of a model's, and those that training moves: adapters, but not the encoder's weights that they adapt."""
    counts = [(p.numel(), p.requires_grad) for p in build(read_config(folder)).parameters()]
    return sum(n for n, _ in counts), sum(n for n, learned in counts if learned)


def ratios(times: dict[Case, list[float]]) -> tuple[Ratio, ...]:
    """t(K, 3) / t(K, 1) of every K that has both; repeats are paired, since they were taken close to each other."""

    def ratio(case: Case) -> float:
        return median(a / b for a, b in zip(times[case], times[Case(case.inputs, 1)], strict=True))

    three = [case for case in times if case.targets == 3]
    apart = {case.inputs: ratio(case) for case in three if case.apart}
    return tuple(Ratio(case.inputs, ratio(case), apart.get(case.inputs)) for case in three if not case.apart)


class Bench:
    """A model, and a slice for it to answer."""

    def __init__(self, predictor: SlicePredictor, size: tuple[int, int]) -> None:
        self.predictor, self.module = predictor, predictor.module
        self.decides = predictor.decides
        self.encodes = self.decides and self.module.encoder is not None
        self.m = len(predictor.modalities)
        shape = (1, self.m, predictor.config.params["slices"], *size)
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        self.images = (0.05 + 0.9 * noise).to(predictor.device)

    def cases(self) -> list[Case]:
        """Every K and N with at most all modalities between them; apart too, where there are sets to tell apart."""
        cases = []
        for k in range(1, self.m):
            for n in range(1, self.m - k + 1):
                cases.append(Case(k, n))
                if self.decides and min(k, n) > 1:
                    cases.append(Case(k, n, apart=True))
        return cases

    @torch.inference_mode()
    def answer(self, case: Case) -> Prediction:
        """One pass through the network, as `SlicePredictor.infer` makes it once the decisions are there."""
        targets = range(case.inputs, case.inputs + case.targets)
        query = self.predictor.query(1, {j: range(case.inputs) for j in targets})
        return self.predictor.run(self.images, query, self._plan(case, targets) if self.decides else None, Control())

    @torch.inference_mode()
    def encode(self, inputs: int) -> None:
        """The part of it that all targets share."""
        self.module.encode(self.images, torch.arange(self.m, device=self.images.device)[None] < inputs)

    def _plan(self, case: Case, targets: Sequence[int]) -> Plan:
        """Gates as the case wants them; the larger sets of inputs come first."""
        inputs = range(case.inputs)
        sets = [let_in for k in range(case.inputs, 0, -1) for let_in in combinations(inputs, k)]
        plan: Plan = {}
        for n, j in enumerate(targets):
            gates = dict.fromkeys(inputs, 0.0) | dict.fromkeys(sets[n % len(sets) if case.apart else 0], 1.0)
            order = sorted(inputs, key=lambda i: -gates[i])
            plan[j] = tuple(PlannedStep(i, gates[i], 0.0, gates[i]) for i in order)
        return plan

    def count(self, case: Case, tick: Tick) -> tuple[float, int | None, int | None]:
        """GFLOP, encodes and passes of a case."""
        rows: Counter[str] = Counter()
        hooks = [
            self.module.get_submodule(part).register_forward_pre_hook(
                lambda _, given, part=part: rows.update({part: len(given[0])})
            )
            for part in _COUNTED
            if self.decides and getattr(self.module, part) is not None
        ]
        with counting() as counter:
            self.answer(case)
        for hook in hooks:
            hook.remove()
        tick()
        encodes, passes = (rows[part] if self.decides else None for part in _COUNTED)
        return counter.get_total_flops() / 1e9, encodes, passes

    def times(
        self, cases: Sequence[Case], repeats: int, tick: Tick
    ) -> tuple[dict[Case, list[float]], dict[int, list[float]]]:
        """Seconds of every case, and of encoding so many inputs, repeat by repeat: what else runs slows all alike."""
        times: dict[Case, list[float]] = {case: [] for case in cases}
        encoding: dict[int, list[float]] = {case.inputs: [] for case in cases}
        for _ in range(repeats):
            if self.encodes:
                for k, taken in encoding.items():
                    taken.append(self._seconds(self.encode, k))
            for case, taken in times.items():
                taken.append(self._seconds(self.answer, case))
                tick()
        return times, encoding

    def _seconds(self, work: Callable[..., object], what: Case | int) -> float:
        self._wait()
        started = perf_counter()
        work(what)
        self._wait()
        return perf_counter() - started

    def _wait(self) -> None:
        if self.images.device.type != "cpu":
            torch.accelerator.synchronize()

    def peaks(self, folder: Path, cases: Sequence[Case], tick: Tick) -> list[float | None]:
        """Peak memory of every case in MB, above what is held before it."""
        if self.predictor.device == "cpu":
            size = tuple(self.images.shape[-2:])
            found = peaks_alone(_alone, [(folder, size, case) for case in (None, *cases)])
        else:
            found = (self._peak_on_device(case) for case in (None, *cases))
        peaks = []
        for peak in found:
            peaks.append(peak)
            tick()
        idle = peaks.pop(0)
        return [None if peak is None or idle is None else peak - idle for peak in peaks]

    def _peak_on_device(self, case: Case | None) -> float | None:
        device = self.images.device
        if device.type != "cuda":  # Apple's tells no peak
            return None
        torch.cuda.reset_peak_memory_stats(device)
        if case is not None:
            self.answer(case)
        return torch.cuda.max_memory_allocated(device) / 2**20


def _alone(folder: Path, size: tuple[int, int], case: Case | None) -> None:
    """What a process does whose memory is measured; it reads no weights, since that may take more than the pass."""
    config = read_config(folder)
    bench = Bench(as_predictor(build(config).eval().requires_grad_(False), config), size)
    if case is not None:
        bench.answer(case)

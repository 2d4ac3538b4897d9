"""What a batch is asked for: input subsets and targets drawn among what each sample has."""

from dataclasses import replace

import numpy as np
import torch

from medk2n.config.schema import TrainConfig
from medk2n.data.batches import Batch
from medk2n.models._spec import Query


def focused(batch: Batch, config: TrainConfig, rng: np.random.Generator) -> Batch:
    """The batch as it is asked about: in a share of the crops what is not `core` is taken for absent."""
    core = np.isin(config.modalities, config.core)
    acquired = narrowed(batch.acquired.cpu().numpy(), core, rng, share=config.core_share)
    return replace(batch, acquired=torch.from_numpy(acquired).to(batch.acquired.device))


def narrowed(acquired: np.ndarray, core: np.ndarray, rng: np.random.Generator, *, share: float) -> np.ndarray:
    """Hide what is not core (m,) in a share of the samples (b, m); never leaves fewer than two."""
    chosen = (rng.random(len(acquired)) < share) & ((acquired & core).sum(axis=1) >= 2)
    return np.where(chosen[:, None], acquired & core, acquired)


def draw_sources(
    acquired: np.ndarray, rng: np.random.Generator, *, draws: int, most: int, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Draw input subsets for every sample: (b draws,) sample index, (b draws, m) bool.

    The size is uniform over least .. min(most, acquired - 1), so that something is missing; fewer where there are
    no more.
    """
    samples, subsets = [], []
    for b, has in enumerate(acquired):
        here = np.flatnonzero(has)
        for _ in range(draws):
            largest = max(1, min(most, len(here) - 1))
            size = rng.integers(min(least, largest), largest + 1)
            subset = np.zeros(len(has), dtype=bool)
            subset[rng.choice(here, size=min(size, len(here)), replace=False)] = True
            samples.append(b)
            subsets.append(subset)
    return np.array(samples), np.array(subsets)


def draw_targets(
    askable: np.ndarray, samples: np.ndarray, subsets: np.ndarray, rng: np.random.Generator, *, targets: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per subset `targets` different targets, missing ones first; one in ten is a re-made input.

    Args:
        askable: (p, m) bool, what each subset may be asked for (`Batch.askable`).

    Returns samples, subsets and targets with one row per query.
    """
    out: tuple[list[int], list[np.ndarray], list[int]] = ([], [], [])
    for b, subset, may in zip(samples, subsets, askable, strict=True):
        missing = rng.permutation(np.flatnonzero(may & ~subset))
        remade = rng.permutation(np.flatnonzero(subset))
        pool = (
            np.concatenate([remade[:1], missing, remade[1:]])
            if rng.random() < 0.1
            else np.concatenate([missing, remade])
        )
        for j in pool[: min(targets, max(1, len(missing)))]:
            out[0].append(int(b))
            out[1].append(subset)
            out[2].append(int(j))
    return np.array(out[0]), np.array(out[1]), np.array(out[2])


def every_target(
    askable: np.ndarray, samples: np.ndarray, subsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One query per subset and askable modality: for models that give all of them in one pass anyway."""
    row, target = np.nonzero(askable)
    return samples[row], subsets[row], target


def as_query(samples: np.ndarray, subsets: np.ndarray, targets: np.ndarray) -> Query:
    """numpy -> tensors."""
    return Query(torch.from_numpy(samples), torch.from_numpy(subsets), torch.from_numpy(targets))

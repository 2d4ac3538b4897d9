"""What every model has in common: how it is built, what it is asked, what it answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Query:
    """What a batch is asked for: each row wants one target from a subset of one sample's modalities.

    Shapes: q queries over b samples of m modalities.

    Attributes:
        sample: (q,) which sample of the batch.
        sources: (q, m) bool, the input subset S; never empty, always acquired.
        target: (q,) index of the target modality.
    """

    sample: Tensor
    sources: Tensor
    target: Tensor

    def to(self, device: torch.device) -> "Query":
        """The same on another device."""
        return Query(self.sample.to(device), self.sources.to(device), self.target.to(device))

    def only(self, rows: Tensor) -> "Query":
        """Some of the queries, by index or mask."""
        return Query(self.sample[rows], self.sources[rows], self.target[rows])

    @property
    def remade(self) -> Tensor:
        """(q,) bool, whether the target is among its own sources."""
        return self.sources.gather(1, self.target[:, None]).squeeze(1)

    def needed(self, samples: int) -> Tensor:
        """(b, m) bool, which modalities of each of so many samples any query reads."""
        used = self.sources.new_zeros(samples, self.sources.shape[1], dtype=torch.long)
        return used.index_add(0, self.sample, self.sources.long()) > 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image per query, in the scaled unit (0 to 1 is the 0.5 to 99.5 percentile range).

    A model whose own losses or reports need more returns a subclass of its own.

    Attributes:
        mean: (q, h, w).
        log_variance: (q, h, w) or None, if the model gives no error estimate.
    """

    mean: Tensor
    log_variance: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the training subjects tell a model before any step, all in scaled units inside the foreground.

    Shapes (m, m): [i, j] speaks of modality i among the subjects that have both i and j.

    Attributes:
        mean, deviation: of modality i; of all subjects that have i where the pair was never seen together.
        correlation: between i and j, positive definite; 0 where the pair was never seen together.
        variance: (m,) of each modality, the error of predicting its mean.
        texts: (m, d) frozen embeddings of what is said of each modality, if anything is.
    """

    mean: Tensor
    deviation: Tensor
    correlation: Tensor
    variance: Tensor
    texts: Tensor | None = None

    @classmethod
    def neutral(cls, m: int) -> "Statistics":
        """Modalities alike in mean and spread, correlated by one half: for tests and untrained models."""
        correlation = 0.5 * torch.ones(m, m) + 0.5 * torch.eye(m)
        return cls(torch.full((m, m), 0.4), torch.full((m, m), 0.2), correlation, torch.full((m,), 0.05))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """How a model is built and what it needs to learn.

    Attributes:
        build: (params, m, statistics) -> the module, for m modalities.
        every_target: whether one pass, or most of its work, serves all targets: then it is taught all of them at once.
        objective: its paper's, by name, in `losses/papers`; None is the one that `losses` of the configuration weighs.
        adversary: (params, m) -> a module that the objective sets against it; learns beside it and is not saved.
        sizes: parameters that a training plan may choose, each with its small, medium and large value.
        described: whether embeddings may begin from what is said of each modality; `params.text` is then its width.
        lesson: how it is taught, by name, in `training/lessons`.
    """

    name: str
    params: type
    build: Callable[[Any, int, Statistics], nn.Module]
    sizes: Mapping[str, Sequence[tuple[int, ...]]] = field(default_factory=dict)
    every_target: bool = False
    objective: str | None = None
    adversary: Callable[[Any, int], nn.Module] | None = None
    described: bool = False
    lesson: str = "plain"

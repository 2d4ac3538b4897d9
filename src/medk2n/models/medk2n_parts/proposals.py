"""What the synthesizer proposes from sets of whole frames: a set of a sample is passed once, however often asked for.

Progressive fusion, its explanation and the measured gains all ask about subsets of the same few frames.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Propose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""sample (p,), members (p, m) bool -> mean and log-variance of every modality, (p, m, h, w) each."""


class Proposals:
    """Rows are added as sets are asked for.

    Args:
        propose: makes passes.

    Attributes:
        mean, log_variance: (rows, m, h, w).
    """

    def __init__(self, propose: Propose) -> None:
        self._propose = propose
        self._row: dict[tuple[int, int], int] = {}
        self.mean = self.log_variance = torch.zeros(0)

    def rows(self, sample: Tensor, members: Tensor) -> Tensor:
        """The row (n,) of each sample (n,) and set (n, m) bool; none of the sets is empty."""
        codes = (members * 2 ** torch.arange(members.shape[1], device=members.device)).sum(dim=1)
        keys = list(zip(sample.tolist(), codes.tolist(), strict=True))
        new = {key: k for k, key in enumerate(keys) if key not in self._row}
        if new:
            at = torch.tensor(list(new.values()), device=sample.device)
            made = self._propose(sample[at], members[at])
            self._row |= {key: len(self._row) + k for k, key in enumerate(new)}
            if not len(self.mean):
                self.mean, self.log_variance = made
            else:
                self.mean = torch.cat([self.mean, made[0]])
                self.log_variance = torch.cat([self.log_variance, made[1]])
        return torch.tensor([self._row[key] for key in keys], device=sample.device)

    def of(self, rows: Tensor, modality: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (n, h, w) of one modality (n,) of each row (n,)."""
        return self.mean[rows, modality], self.log_variance[rows, modality]

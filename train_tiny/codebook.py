"""Learn a residual codebook: k-means start, EMA, restart of dead codes.

`craft.quantize.ResidualCodebook` is frozen by construction. Here the codewords are plain tensors that a
training script changes; after training they become a `ResidualCodebook`.
"""

import torch
from torch import Tensor

from craft.quantize import ResidualCodebook


class CodebookLearner:
    """L levels of K codewords that follow the features given to `update`.

    Args:
        levels, size, dim: L, K, d.
        decay: of the exponential moving averages of counts and sums.
        restart_below: a codeword whose averaged count falls below this is replaced by a random residual.
    """

    def __init__(
        self, levels: int, size: int, dim: int, decay: float = 0.99, restart_below: float = 0.3
    ) -> None:
        self.decay, self.restart_below = decay, restart_below
        self.codewords = torch.zeros(levels, size, dim)
        self.counts = torch.ones(levels, size)
        self.sums = torch.zeros(levels, size, dim)

    @torch.no_grad()
    def start(self, features: Tensor, generator: torch.Generator, iterations: int = 12) -> None:
        """Fit each level by k-means to the residuals of the previous levels; features are `[n, d]`."""
        tables = (self.codewords, self.counts, self.sums)
        self.codewords, self.counts, self.sums = (table.to(features.device) for table in tables)
        rest = features
        for level in range(len(self.codewords)):
            size = self.codewords.shape[1]
            centres = rest[torch.randperm(len(rest), generator=generator)[:size]].clone()
            for _ in range(iterations):
                index = ResidualCodebook(centres[None]).quantize(rest).codes[:, 0]
                counts = torch.bincount(index, minlength=size)
                sums = torch.zeros_like(centres).index_add_(0, index, rest)
                empty = counts == 0
                centres = sums / counts.clamp(min=1)[:, None]
                centres[empty] = rest[torch.randint(len(rest), (int(empty.sum()),), generator=generator)]
            self.codewords[level] = centres
            self.counts[level] = counts.float().clamp(min=1)
            self.sums[level] = centres * self.counts[level][:, None]
            rest = rest - centres[ResidualCodebook(centres[None]).quantize(rest).codes[:, 0]]

    @torch.no_grad()
    def update(self, features: Tensor, codes: Tensor, generator: torch.Generator) -> int:
        """One EMA step from features `[n, d]` and their codes `[n, L]`; returns how many codes restarted."""
        rest, restarted = features, 0
        for level in range(len(self.codewords)):
            size = self.codewords.shape[1]
            index = codes[:, level]
            chosen = self.codewords[level][index]
            counts = torch.bincount(index, minlength=size).float()
            sums = torch.zeros_like(self.codewords[level]).index_add_(0, index, rest)
            self.counts[level].mul_(self.decay).add_(counts, alpha=1 - self.decay)
            self.sums[level].mul_(self.decay).add_(sums, alpha=1 - self.decay)
            dead = self.counts[level] < self.restart_below
            if dead.any():
                fresh = rest[torch.randint(len(rest), (int(dead.sum()),), generator=generator)]
                self.sums[level][dead], self.counts[level][dead] = fresh, 1.0
                restarted += int(dead.sum())
            self.codewords[level] = self.sums[level] / self.counts[level][:, None]
            rest = rest - chosen
        return restarted

    def frozen(self) -> ResidualCodebook:
        """A frozen copy of the codebook."""
        return ResidualCodebook(self.codewords.clone())

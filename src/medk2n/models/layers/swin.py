"""Swin blocks (Liu 2021) whose windows hold the tokens of several images: each place sees all contrasts around it.

Written here because library blocks (transformers, monai) take one image a window. A shifted window that reaches over
the border is cut there, by padding with tokens that nobody attends to: what Swin's cyclic shift with masks comes to.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.models.layers.blocks import mlp


class WindowAttention(nn.Module):
    """Attention of tokens to the tokens of a memory in the same window, with a bias for each relative position.

    Args:
        channels: a multiple of `heads`.
        window: side of a window in tokens.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.bias = nn.Parameter(0.02 * torch.randn(heads, (2 * window - 1) ** 2))
        place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        step = place[:, None] - place[None] + window - 1
        self.register_buffer("step", step[..., 0] * (2 * window - 1) + step[..., 1], persistent=False)

    def forward(self, x: Tensor, memory: Tensor, filled: Tensor, shift: int) -> Tensor:
        """x (p, n, h, w, c), memory (p, k, h, w, c) of which the filled (p, k) are seen -> (p, n, h, w, c)."""
        p, n, h, w, _ = x.shape
        k = memory.shape[1]
        shift = shift if min(h, w) > self.window else 0
        real = filled[:, :, None, None, None].expand(-1, -1, h, w, 1)
        mask = windows(real, self.window, shift).transpose(1, 2)[:, None]  # (p windows, 1, 1, k window^2)
        query = self._by_head(windows(self.query(x), self.window, shift))
        key, value = windows(self.key_value(memory), self.window, shift).chunk(2, dim=-1)
        bias = self.bias[:, self.step].repeat(1, n, k).expand(len(mask), -1, -1, -1).masked_fill(~mask, -torch.inf)
        seen = functional.scaled_dot_product_attention(
            query, self._by_head(key), self._by_head(value), attn_mask=bias.to(query.dtype)
        )
        return self.out(unwindowed(seen.transpose(1, 2).flatten(2), (p, n, h, w), self.window, shift))

    def _by_head(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def windows(x: Tensor, window: int, shift: int) -> Tensor:
    """(p, n, h, w, c) -> (p windows, n window^2, c); zeros (False) where a window reaches over the border."""
    h, w = x.shape[2:4]
    before = -shift % window
    x = functional.pad(x, (0, 0, before, -(before + w) % window, before, -(before + h) % window))
    x = x.unflatten(3, (-1, window)).unflatten(2, (-1, window))  # p, n, rows, window, columns, window, c
    return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(3, 5).flatten(0, 2)


def unwindowed(x: Tensor, shape: tuple[int, int, int, int], window: int, shift: int) -> Tensor:
    """Back to (p, n, h, w, c); the opposite of `windows`."""
    p, n, h, w = shape
    before = -shift % window
    rows, columns = (-(-(before + size) // window) for size in (h, w))
    x = x.unflatten(1, (n, window, window)).unflatten(0, (p, rows, columns))
    x = x.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return x[:, :, before : before + h, before : before + w]


class EncoderBlock(nn.Module):
    """Tokens of all sources see each other in a window, then an MLP; each behind a norm and beside the identity."""

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.attention = WindowAttention(channels, heads, window)
        self.mlp = mlp(channels, 4 * channels, channels)

    def forward(self, x: Tensor, filled: Tensor) -> Tensor:
        """x (p, k, h, w, c), filled (p, k)."""
        seen = self.norm[0](x)
        x = x + self.attention(seen, seen, filled, self.shift)
        return x + self.mlp(self.norm[1](x))


class DecoderBlock(nn.Module):
    """Tokens of a target see those of all sources in a window, then each other; then an MLP.

    Sources come first: before, all tokens of a target are alike, and there is nothing to see among them.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.across = WindowAttention(channels, heads, window)
        self.among = WindowAttention(channels, heads, window)
        self.mlp = mlp(channels, 4 * channels, channels)

    def forward(self, x: Tensor, memory: Tensor, filled: Tensor) -> Tensor:
        """x (q, 1, h, w, c), memory (q, k, h, w, c), filled (q, k)."""
        x = x + self.across(self.norm[0](x), memory, filled, self.shift)
        seen = self.norm[1](x)
        x = x + self.among(seen, seen, torch.ones_like(filled[:, :1]), self.shift)
        return x + self.mlp(self.norm[2](x))


class Merge(nn.Module):
    """Four neighbouring tokens to one of the next stride."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * inputs)
        self.reduce = nn.Linear(4 * inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(p, k, h, w, inputs), h and w even -> (p, k, h / 2, w / 2, outputs)."""
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4)  # p, k, rows, columns, 2, 2, c
        return self.reduce(self.norm(x.flatten(4)))


class Expand(nn.Module):
    """A token to four of the next finer stride."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.spread = nn.Linear(inputs, 4 * outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(p, n, h, w, inputs) -> (p, n, 2 h, 2 w, outputs)."""
        x = self.spread(self.norm(x)).unflatten(4, (2, 2, -1)).transpose(3, 4)  # p, n, rows, 2, columns, 2, c
        return x.flatten(4, 5).flatten(2, 3)

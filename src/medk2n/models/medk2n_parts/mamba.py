"""A Mamba-2 block (Dao and Gu 2024) over a sequence, forth and back.

The weights are those of `transformers`' mixer. What runs them is chosen, never found out on the way: its fused kernels,
or the recurrence below, in plain PyTorch, of which both are tested to be equal to a step-by-step loop.
"""

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medk2n.errors import ConfigError

Backend = Literal["auto", "torch", "kernels"]
CHUNK = 32
"""Steps that are computed at once; 32 was the fastest on a CPU, 256 five times as slow."""

KERNELS = ("mamba_ssm", "causal_conv1d")


@cache
def resolve_backend(choice: Backend, device: torch.device) -> Literal["torch", "kernels"]:
    """What is to run on a device; "auto" takes the kernels where they can run.

    Raises:
        ConfigError: kernels were asked for where there are none.
    """
    absent = [name for name in KERNELS if find_spec(name) is None]
    able = device.type == "cuda" and not absent
    if choice == "kernels" and not able:
        lack = f"{', '.join(absent)} not installed" if absent else f"they need CUDA, and this is {device.type}"
        raise ConfigError(
            f"backend: kernels of the state-space scan: {lack}; "
            "pip install mamba-ssm causal-conv1d on a CUDA machine, or set backend to torch or auto"
        )
    return "kernels" if able and choice != "torch" else "torch"


class Mamba(nn.Module):
    """One direction; see the module's docstring.

    Args:
        channels: of the sequence.
        state: size of the hidden state of every channel.
        head: channels that share a decay; a divisor of 2 `channels`.
    """

    def __init__(self, channels: int, state: int, head: int) -> None:
        super().__init__()
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

        config = Mamba2Config(
            hidden_size=channels,
            expand=2,
            num_heads=2 * channels // head,
            head_dim=head,
            state_size=state,
            n_groups=1,
            num_hidden_layers=1,
            chunk_size=CHUNK,
        )
        self.mixer = Mamba2Mixer(config, layer_idx=0)

    def forward(self, x: Tensor, backend: Literal["torch", "kernels"]) -> Tensor:
        """x (f, l, channels) -> the same shape."""
        return self.mixer(x) if backend == "kernels" else mix(self.mixer, x)


class BothWays(nn.Module):
    """A sequence read forth by one block and back by another; what they say is added up, and starts faint."""

    def __init__(self, channels: int, state: int, head: int) -> None:
        super().__init__()
        self.forth, self.back = Mamba(channels, state, head), Mamba(channels, state, head)
        for block in (self.forth, self.back):
            block.mixer.out_proj.weight.data.mul_(0.1)

    def forward(self, x: Tensor, backend: Literal["torch", "kernels"]) -> Tensor:
        """x (f, l, channels) -> the same shape."""
        return self.forth(x, backend) + self.back(x.flip(1), backend).flip(1)


def mix(mixer: nn.Module, x: Tensor) -> Tensor:
    """What a `Mamba2Mixer` computes, (f, l, c) -> (f, l, c): projection, short convolution, scan, gated norm."""
    inner, state, heads = mixer.intermediate_size, mixer.ssm_state_size, mixer.num_heads
    gate, xbc, dt = mixer.in_proj(x).split([inner, inner + 2 * state, heads], dim=2)
    xbc = functional.silu(mixer.conv1d(xbc.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
    values, b, c = xbc.float().split([inner, state, state], dim=2)
    values = values.unflatten(2, (heads, -1))
    dt = functional.softplus(dt.float() + mixer.dt_bias).clamp(*mixer.time_step_limit)
    y = scan(values, dt, -mixer.A_log.float().exp(), b, c) + mixer.D[:, None] * values
    return mixer.out_proj(mixer.norm(y.flatten(2), gate).to(x.dtype))


def scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int = CHUNK) -> Tensor:
    """S_t = exp(dt_t a) S_(t-1) + dt_t x_t b_t', y_t = S_t c_t, chunk by chunk (Dao and Gu 2024, section 6).

    Within a chunk it is a masked product, as attention is; from chunk to chunk the state is handed on.

    Shapes: x (f, l, heads, p), dt (f, l, heads), a (heads,) below 0, b and c (f, l, n) -> y as x.
    """
    length = x.shape[1]
    x, dt, b, c = (_chunked(v, chunk) for v in (x, dt, b, c))
    since = (dt * a).cumsum(dim=2)  # (f, k, t, heads): log decay from the chunk's start to t
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    decay = (since[:, :, :, None] - since[:, :, None]).masked_fill(later[:, :, None], -torch.inf).exp()
    scores = torch.einsum("fktn,fksn->fkts", c, b)[..., None] * decay * dt[:, :, None]
    y = torch.einsum("fktsh,fkshp->fkthp", scores, x)
    left = (since[:, :, -1:] - since).exp() * dt
    gained = torch.einsum("fksh,fkshp,fksn->fkhpn", left, x, b)
    whole = since[:, :, -1].exp()[..., None, None]
    state, before = torch.zeros_like(gained[:, 0]), []
    for k in range(x.shape[1]):
        before.append(state)
        state = state * whole[:, k] + gained[:, k]
    y = y + torch.einsum("fkth,fktn,fkhpn->fkthp", since.exp(), c, torch.stack(before, dim=1))
    return y.flatten(1, 2)[:, :length]


def _chunked(x: Tensor, chunk: int) -> Tensor:
    """(f, l, ...) -> (f, k, chunk, ...), filled up with zeros."""
    fill = (0, 0) * (x.ndim - 2) + (0, -x.shape[1] % chunk)
    return functional.pad(x, fill).unflatten(1, (-1, chunk))

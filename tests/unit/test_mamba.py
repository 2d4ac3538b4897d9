"""The state-space scan against a loop, and what runs it."""

import logging

import pytest
import torch
from torch.nn import functional

from medk2n.errors import ConfigError
from medk2n.models.medk2n_parts import mamba
from medk2n.models.medk2n_parts.mamba import BothWays, Mamba, resolve_backend, scan
from medk2n.models.medk2n_parts.multi_scale_net import MultiScaleNet, Params

CPU = torch.device("cpu")


def block(channels: int = 16) -> Mamba:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Mamba(channels, state=8, head=8)
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made.requires_grad_(False)


def sequence(length: int, channels: int = 16) -> torch.Tensor:
    return torch.randn(2, length, channels, generator=torch.Generator().manual_seed(1))


def step_by_step(mixer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Mamba-2 as a recurrence, one step and one head after the other (Dao and Gu 2024, equation 1)."""
    inner, n, heads = mixer.intermediate_size, mixer.ssm_state_size, mixer.num_heads
    width = mixer.conv1d.weight.shape[2]
    out = []
    for row in x:
        z, xbc, dt = (row @ mixer.in_proj.weight.T).split([inner, inner + 2 * n, heads], dim=1)
        seen = torch.cat([torch.zeros(width - 1, inner + 2 * n), xbc])
        state = torch.zeros(heads, inner // heads, n)
        for t in range(len(row)):
            taps = (seen[t : t + width] * mixer.conv1d.weight[:, 0].T).sum(dim=0) + mixer.conv1d.bias
            values, b, c = functional.silu(taps).split([inner, n, n])
            values, delta = values.view(heads, -1), functional.softplus(dt[t] + mixer.dt_bias)
            y = torch.zeros_like(values)
            for h in range(heads):
                a = -mixer.A_log[h].exp()
                state[h] = torch.exp(delta[h] * a) * state[h] + delta[h] * torch.outer(values[h], b)
                y[h] = state[h] @ c + mixer.D[h] * values[h]
            gated = y.flatten() * functional.silu(z[t])
            normed = gated / (gated.square().mean() + 1e-5).sqrt() * mixer.norm.weight
            out.append(normed @ mixer.out_proj.weight.T)
    return torch.stack(out).view_as(x)


@pytest.mark.parametrize("length", [1, 5, 32, 33, 100])
def test_the_scan_is_the_recurrence(length: int) -> None:
    made, x = block(), sequence(length)
    torch.testing.assert_close(made(x, "torch"), step_by_step(made.mixer, x), atol=1e-4, rtol=1e-4)


def test_it_is_what_transformers_computes() -> None:
    """On a CPU its mixer runs plain PyTorch, and says so once; on CUDA the kernels compute the same."""
    made, x = block(), sequence(70)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.testing.assert_close(made(x, "torch"), made.mixer.eval()(x), atol=1e-5, rtol=1e-4)


def test_strong_decay_over_a_long_chunk_stays_finite_forth_and_back() -> None:
    x, b = torch.randn(1, 64, 2, 4, requires_grad=True), torch.randn(1, 64, 3)
    dt = torch.full((1, 64, 2), 30.0, requires_grad=True)
    y = scan(x, dt, torch.tensor([-1.0, -50.0]), b, b)
    y.sum().backward()
    for found in (y, x.grad, dt.grad):
        assert torch.isfinite(found).all()


def test_every_step_hears_of_both_sides() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        both = BothWays(16, 8, 8)
    x = sequence(40).requires_grad_()
    heard = torch.autograd.grad(both(x, "torch")[0, 20].square().sum(), x)[0][0].abs().sum(dim=1)
    assert (heard > 0).all()
    one = torch.autograd.grad(both.forth(x, "torch")[0, 20].square().sum(), x)[0][0].abs().sum(dim=1)
    assert (one[21:] == 0).all()


def test_what_runs_the_scan_is_decided_and_never_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = resolve_backend.__wrapped__
    monkeypatch.setattr(mamba, "find_spec", lambda name: None)
    assert decide("auto", torch.device("cuda")) == decide("torch", torch.device("cuda")) == "torch"
    with pytest.raises(ConfigError, match="mamba_ssm, causal_conv1d not installed; pip install mamba-ssm"):
        decide("kernels", torch.device("cuda"))
    monkeypatch.setattr(mamba, "find_spec", lambda name: object())
    assert decide("auto", torch.device("cuda")) == decide("kernels", torch.device("cuda")) == "kernels"
    assert decide("torch", torch.device("cuda")) == decide("auto", CPU) == "torch"
    with pytest.raises(ConfigError, match="they need CUDA, and this is cpu"):
        decide("kernels", CPU)


def pyramid(h: int = 48, w: int = 40, strides: tuple[int, ...] = (4, 8, 16, 32)) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {s: torch.randn(2, 8, -(-h // s), -(-w // s), generator=generator) for s in strides}


def net(way: str, strides: tuple[int, ...] = (4, 8, 16, 32)) -> MultiScaleNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MultiScaleNet(Params(scan=way, head=8, state=4), strides, dict.fromkeys(strides, 8)).eval()


@pytest.mark.parametrize("way", ["none", "raster", "spiral"])
@pytest.mark.parametrize("strides", [(4, 8, 16), (4, 8, 16, 32)])
def test_what_is_coarse_reaches_every_finer_level(way: str, strides: tuple[int, ...]) -> None:
    given = {s: x.requires_grad_() for s, x in pyramid(strides=strides).items()}
    mixed = net(way, strides)(given)
    assert {s: x.shape for s, x in mixed.items()} == {s: given[s].shape for s in (4, 8, 16)}
    reached = torch.autograd.grad(mixed[4][:, :, 3, 4].square().sum(), list(given.values()))
    assert all(bool(gradient.abs().sum() > 0) for gradient in reached)


def test_a_scan_looks_across_the_image_and_a_plain_pyramid_does_not() -> None:
    for way, far in (("none", False), ("raster", True), ("spiral", True)):
        given = pyramid()
        given[8].requires_grad_()
        mixed = net(way)(given)
        reached = torch.autograd.grad(mixed[8][0, :, 2, 2].square().sum(), given[8])[0][0].abs().sum(dim=0) > 0
        assert reached.all() == far
        assert reached[2, 2]


@pytest.mark.parametrize("way", ["raster", "spiral"])
def test_what_a_scan_says_of_a_voxel_lands_on_that_voxel(way: str) -> None:
    """Blocks that repeat what they read: the level comes out as it went in, but for its norm."""
    mixing = net(way)
    for stride, block in mixing.scan.items():
        block.forward = lambda sequence, backend: sequence
        x = torch.randn(2, 8, 7, 5, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(mixing._read(x, int(stride)), mixing.before[stride](x))


def test_the_orders_of_reading_differ() -> None:
    given = pyramid()
    with torch.no_grad():
        spiral, raster = (net(way)(given)[8] for way in ("spiral", "raster"))
    assert not torch.isclose(spiral, raster, atol=1e-4).all()

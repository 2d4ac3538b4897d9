"""The optimiser of hidden convolutions."""

import pytest
import torch
from torch import nn

from medk2n import registry
from medk2n.config.draft import read_draft
from medk2n.models._spec import Statistics
from medk2n.training.groups import optimisers
from medk2n.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 72), (40, 24), (16, 16)])
def test_what_is_applied_keeps_directions_and_evens_out_their_strength(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    along = torch.diagonal(u.T @ orthogonal(matrix) @ vh.T)  # its singular values, if the directions are the same
    assert along.min() > 0.6
    assert along.max() < 1.3
    torch.testing.assert_close(u @ torch.diag(along) @ vh, orthogonal(matrix), atol=1e-4, rtol=0)


def test_a_step_is_as_long_as_one_of_adamw_and_blind_to_the_size_of_the_gradient() -> None:
    steps = []
    for strength in (1.0, 1000.0):
        weight = nn.Parameter(torch.zeros(16, 8, 3, 3).to(memory_format=torch.channels_last))
        weight.grad = strength * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        Muon([weight], lr=0.01).step()
        steps.append(weight.detach().clone())
    torch.testing.assert_close(steps[0], steps[1])
    assert steps[0].square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.2)


def test_a_step_goes_along_the_momentum() -> None:
    """After one large gradient a faint one, at right angles, hardly turns the way."""
    weight = nn.Parameter(torch.zeros(4, 4))
    optimiser = Muon([weight], lr=0.01)
    large, faint = torch.zeros(2, 4, 4)
    large[0, 0], faint[1, 1] = 1.0, 1e-6
    ways = []
    for gradient in (large, faint):
        before = weight.detach().clone()
        weight.grad = gradient
        optimiser.step()
        ways.append(weight.detach() - before)
    torch.testing.assert_close(ways[1][0, 0], ways[0][0, 0], rtol=0.2, atol=0)
    assert ways[1][1, 1].abs() < 0.01 * ways[1][0, 0].abs()


def test_flat_directions_are_followed_as_fast_as_steep_ones() -> None:
    """Curvatures from 1 to 0.01: gradient descent would move the flattest by a hundredth of the steepest."""
    curvature = torch.logspace(0, -2, 8)
    weight = nn.Parameter(torch.eye(8))
    optimiser = Muon([weight], lr=0.1)
    for _ in range(12):
        weight.grad = curvature[:, None] * weight.detach()
        optimiser.step()
    moved = 1 - weight.detach().diagonal()
    assert moved.min() > 0.5 * moved.max()
    assert moved.min() > 0.3


@pytest.mark.parametrize("name", registry.names("models"))
def test_every_weight_has_one_optimiser_and_no_gain_or_bias_decays(name: str) -> None:
    spec = registry.resolve("models", name)
    module = spec.build(spec.params(), 4, Statistics.neutral(4))
    muon, adamw = optimisers(module, read_draft("tiny").config.optimiser)
    groups = muon.param_groups + adamw.param_groups
    seen = [id(p) for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in module.parameters())
    assert all(p.ndim == 4 for p in muon.param_groups[0]["params"])
    assert muon.param_groups[0]["params"]
    for group in groups:
        assert (group["weight_decay"] > 0) == all(p.ndim > 1 for p in group["params"])

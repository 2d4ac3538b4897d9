"""CMIM's losses on images: what they reward, and that their gradient reaches the image."""

import numpy as np
import pytest
import torch
from torch import Tensor

from medk2n.identity.identity import V, untaught
from medk2n.identity.network import IdentityNet, naming_error
from medk2n.identity.table import table_of
from medk2n.identity.texts import NOTHING
from medk2n.losses.identity import causal_error, metric_error, shared_edges

NAMES = ("t1c", "t1n", "t2w")


@pytest.fixture(scope="module")
def v() -> IdentityNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return untaught(table_of([*NAMES, NOTHING])).nets[V]


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Made and true images of two slices, of which the second lacks a modality, inside a disc."""
    rng = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    inside = (x**2 + y**2 < 0.8).expand(2, 32, 32)
    made, truth = (torch.rand(2, 3, 32, 32, generator=rng) * 0.8 + 0.1 for _ in range(2))
    there = torch.tensor([[True, True, True], [True, False, True]])
    truth[~there] = torch.nan
    return made, truth, inside, there


def test_their_gradient_reaches_every_image_that_is_told_and_no_other(v: IdentityNet, case: tuple) -> None:
    made, truth, inside, there = case
    for error in (lambda *x: causal_error(v, *x), lambda *x: metric_error(v.see, *x)):
        image = made.clone().requires_grad_()
        loss = error(image, truth, inside, there)
        assert torch.isfinite(loss)
        loss.backward()
        moved = image.grad.abs().sum(dim=(2, 3)) > 0
        assert torch.equal(moved, there)
        assert (image.grad[:, :, 0, 0] == 0).all(), "outside the patient nothing is asked"
    assert all(p.grad is None for p in v.parameters()), "V is frozen"


def test_what_shows_its_own_contrast_costs_less_than_what_shows_anothers(case: tuple) -> None:
    _, truth, inside, there = case
    truth = torch.where(there[:, :, None, None], truth, 0.5)
    levels = torch.tensor([0.2, 0.5, 0.8])

    def by_level(images: Tensor) -> Tensor:  # names an image by its mean, as a network that has learned would
        mean = images.sum(dim=(1, 2)) / (images > 0).sum(dim=(1, 2))
        return -100 * (mean[:, None] - levels) ** 2

    right = (0.1 * (truth - 0.5) + levels[:, None, None]).clamp(0, 1)
    wrong = right.roll(1, dims=1)
    errors = [float(causal_error(by_level, made, right, inside, there)) for made in (right, wrong)]
    assert errors[0] < 0.2 < errors[1]


def test_nothing_has_to_be_invented_where_the_real_pair_looks_alike(case: tuple) -> None:
    _, _, inside, there = case
    angles = torch.tensor([0.0, 0.0, 1.5])  # the first two are alike to V, the third is not

    def see(images: Tensor) -> Tensor:
        mean = images.sum(dim=(1, 2)) / (images > 0).sum(dim=(1, 2))
        return torch.stack([torch.cos(mean), torch.sin(mean)], dim=1)

    truth = (0.3 + 0.4 * angles / 1.5)[None, :, None, None].expand(2, 3, 32, 32)
    assert float(metric_error(see, truth.clone(), truth, inside, there)) == pytest.approx(0, abs=1e-5)
    swapped = truth[:, [2, 1, 0]]
    assert float(metric_error(see, swapped, truth, inside, there)) > 0.02


def test_edges_that_both_images_have_are_shared_whatever_their_sign() -> None:
    step = torch.zeros(1, 16, 16)
    step[:, :, 8:] = 1
    assert shared_edges(step, 1 - step).max() == pytest.approx(1, abs=1e-2)
    assert shared_edges(step, 0.5 * step).max() == pytest.approx(0.5, abs=1e-2)
    assert shared_edges(step, step.transpose(1, 2)).amax() < 0.8, "only where both cross"
    assert (shared_edges(step, torch.zeros_like(step)) < 2e-3).all(), "a rim that enhances alone is not"


def test_each_image_finds_its_text_and_each_text_its_image() -> None:
    there = torch.tensor([[True, True], [True, False]])
    images = torch.zeros(2, 2, 4, 4)
    images[:, 0], images[:, 1] = 1, 2

    def net(scale: float):
        return lambda x: scale * torch.nn.functional.one_hot(x[:, 0, 0].long() - 1, 2).float()

    assert float(naming_error(net(20), images, there)) == pytest.approx(0, abs=1e-3)
    assert float(naming_error(net(0), images, there)) == pytest.approx(np.log(2) + np.log(2) * 2 / 3, abs=1e-3)

"""The objectives of the baselines' papers, and how a run uses them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from medk2n import registry
from medk2n.config.schema import TrainConfig, load_config
from medk2n.losses._spec import Asked
from medk2n.losses.adversarial import confront
from medk2n.losses.papers import mm_synthesis, poe
from medk2n.losses.reconstruction import absolute_error
from medk2n.models._spec import ModelSpec, Prediction, Query
from medk2n.models.mm_synthesis import MMSynthesisPrediction
from medk2n.models.poe import Gaussian, PoEPrediction
from medk2n.training.contender import Contender
from medk2n.training.feed import Feed
from medk2n.training.reading import read_data
from medk2n.training.world import World

SMALL = {
    "mm_synthesis": "{widths: [8, 8, 16], latent: 8}",
    "mmt": "{widths: [8, 8, 16, 16], head: 8, window: 4, pixels: 8, critic: 8}",
    "pgan": "{width: 8, blocks: 1, critic: 8}",
    "poe": "{encoder: [8, 8, 8, 8, 8], decoder: [8, 8, 8, 8, 8], latents: [4, 4, 4, 4, 4]}",
}


def asked(*, target: Tensor, inside: Tensor | None = None) -> Asked:
    """Two queries of one sample with three modalities."""
    query = Query(torch.tensor([0, 0]), torch.tensor([[True, True, False]] * 2), torch.tensor([0, 2]))
    inside = torch.ones_like(target, dtype=torch.bool) if inside is None else inside
    return Asked(torch.zeros(1, 3, 3, *target.shape[1:]), query, target, inside, torch.tensor([0.25, 0.75]))


class Pixels(nn.Module):
    """An adversary whose feature and score of an image are its voxels, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, query: Query, image: Tensor) -> list[Tensor]:
        return [2 * self.weight * image, self.weight * image]


def test_the_absolute_error_is_of_the_foreground_alone() -> None:
    target, inside = torch.full((2, 4, 4), 0.5), torch.zeros(2, 4, 4, dtype=torch.bool)
    inside[:, :2] = True
    target[:, 3] = torch.nan
    made = torch.full((2, 4, 4), 0.75, requires_grad=True)
    error = absolute_error(made, target, inside)
    assert error.tolist() == [0.25, 0.25]
    error.sum().backward()
    assert not made.grad[:, 2:].any()


def test_the_adversary_and_the_model_are_taught_apart_and_inside_the_foreground() -> None:
    adversary, made = Pixels(), torch.full((2, 4, 4), 0.25, requires_grad=True)
    target, inside = torch.full((2, 4, 4), 0.5), torch.ones(2, 4, 4, dtype=torch.bool)
    target[:, 3], inside[:, 3] = torch.nan, False
    verdict = confront(adversary, Prediction(made), asked(target=target, inside=inside))
    share = 0.75  # of the voxels are foreground; elsewhere both show 0
    caught, fooled, unlike = (float(x.detach()) for x in (verdict.caught, verdict.fooled, verdict.unlike))
    assert caught == pytest.approx(share * 0.75**2 + (1 - share))
    assert fooled == pytest.approx(0.5 * (share * (0.5**2 + 0.25**2) + (1 - share)))
    assert unlike == pytest.approx(share * 2 * 0.25)
    (verdict.caught + verdict.unlike).backward()
    assert adversary.weight.grad is None
    assert made.grad[:, :3].all()
    assert not made.grad[:, 3].any()
    made.grad = None
    verdict.fooled.backward()
    assert made.grad is None
    assert adversary.weight.grad is not None
    assert adversary.weight.requires_grad


def test_mm_synthesis_counts_the_fused_image_each_alone_and_the_variance() -> None:
    target = torch.zeros(2, 4, 4)
    alone = torch.stack([torch.full((4, 4), v) for v in (0.1, 0.2, 0.4)])
    made = MMSynthesisPrediction(
        torch.full((2, 4, 4), 0.2), None, torch.tensor([0.3, 0.5]), torch.tensor([0, 1, 1]), alone
    )
    parts = mm_synthesis.objective(made, asked(target=target), None)
    assert float(parts["fused"]) == pytest.approx(0.2)
    assert float(parts["alone"]) == pytest.approx(0.25 * 0.1 + 0.75 * (0.2 + 0.4))
    assert float(parts["variance"]) == pytest.approx(0.4)
    single = MMSynthesisPrediction(target, None, torch.zeros(2), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    assert float(mm_synthesis.objective(single, asked(target=target), None)["alone"]) == 0


def test_the_divergence_is_that_of_normal_distributions_in_nats_a_voxel() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4, 4), (2, 5, 2, 2)]
    moments = [[torch.randn(shape, generator=generator) for _ in range(4)] for shape in shapes]
    latents = [(Gaussian(*level[:2]), Gaussian(*level[2:])) for level in moments]
    target = torch.zeros(2, 4, 4)
    parts = poe.objective(PoEPrediction(target, None, tuple(latents)), asked(target=target), None)
    wanted = sum(kl_divergence(Normal(m, (0.5 * v).exp()), Normal(n, (0.5 * u).exp())).sum() for m, v, n, u in moments)
    assert float(parts["divergence"]) == pytest.approx(float(poe.BETA * wanted / (2 * 4 * 4)), rel=1e-4)


def test_every_objective_that_a_model_names_exists() -> None:
    specs: list[ModelSpec] = [registry.resolve("models", name) for name in registry.names("models")]
    named = {spec.objective for spec in specs} - {None}
    assert named == set(registry.names("losses/papers"))
    assert [spec.name for spec in specs if not spec.every_target] == ["mmt"]


# In a run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects, three contrasts, one the negative of another."""
    root, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    for name in ("p0", "p1"):
        head, smooth = np.zeros((5, 40, 36)), gaussian_filter(rng.standard_normal((5, 32, 28)), (0, 3, 3))
        head[:, 4:-4, 4:-4] = 60 + 60 * (smooth - smooth.min()) / np.ptp(smooth)
        arrays = {"t1n": head, "t1c": 0.7 * head, "t2w": np.where(head > 0, 250 - head, 0)}
        np.savez_compressed(root / name, **{modality: a.astype(np.uint8) for modality, a in arrays.items()})
    return root


def config(data: Path, name: str) -> TrainConfig:
    return load_config(
        "tiny",
        [
            f"data=['{data}']",
            "modalities=[t1n, t1c, t2w]",
            "spacing_mm=1.5",
            f"models=[{{name: {name}, params: {SMALL[name]}}}]",
            "budget={steps: 25}",
            "batch={size: 2, crop: 32, draws: 1, targets: 2, most_sources: 2, corrupt: 0}",
            "optimiser={learning_rate: 5e-3}",
            "threads=1",
        ],
    )


def learned(settings: TrainConfig, steps: int) -> tuple[Contender, list[dict[str, float]]]:
    """A model after some steps on one batch, and what each step told."""
    prepared, world = read_data(settings, lambda *_: None), World("cpu", "fp32")
    torch.manual_seed(0)
    contender = Contender.of(settings.models[0], settings, prepared.statistics, "cpu")
    batch = next(Feed(prepared, settings, 3, world.share(1), 0))
    return contender, [contender.step(batch, world) for _ in range(steps)]


PARTS = {
    "mm_synthesis": {"fused", "alone", "variance"},
    "mmt": {"pixels", "adversarial", "critic"},
    "pgan": {"pixels", "adversarial", "features", "critic"},
    "poe": {"pixels", "divergence"},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_baseline_learns_by_its_papers_loss(name: str, data: Path) -> None:
    _, told = learned(config(data, name), 25)
    assert all(set(numbers) == PARTS[name] | {"loss"} for numbers in told)
    error = [numbers["fused" if name == "mm_synthesis" else "pixels"] for numbers in told]
    assert error[-1] < 0.8 * error[0]


def test_an_adversary_learns_beside_its_model_and_is_part_of_the_state(data: Path) -> None:
    settings = config(data, "pgan")
    contender, told = learned(settings, 12)
    fresh, _ = learned(settings, 0)
    pairs = [*zip(contender.adversary.parameters(), fresh.adversary.parameters(), strict=True)]
    assert not any(torch.equal(a, b) for a, b in pairs)
    assert told[-1]["critic"] < told[0]["critic"]
    fresh.restore(*contender.state())
    assert all(torch.equal(a, b) for a, b in pairs)
    for mine, theirs in zip(contender.optimisers, fresh.optimisers, strict=True):
        assert len(mine.state) == len(theirs.state) > 0
    assert len(contender.optimisers) == 4
    assert not any(name.startswith("patches") for name in contender.averaged.state_dict()), "it is not saved"

"""Each baseline has the structure that its paper claims, and can learn."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medk2n import registry
from medk2n.models import mm_synthesis, mmt, pgan, poe
from medk2n.models._spec import Query, Statistics
from medk2n.models.layers.shared_passes import Passes, SharedFrames, own
from medk2n.models.layers.swin import WindowAttention, unwindowed, windows

M = 4
SMALL = {
    "mm_synthesis": {"widths": (8, 8, 16), "latent": 8},
    "mmt": {"widths": (8, 8, 16, 16), "head": 8, "window": 4, "pixels": 8, "critic": 8},
    "pgan": {"width": 8, "blocks": 2, "critic": 8},
    "poe": {"encoder": (8, 8, 8, 8, 8), "decoder": (8, 8, 8, 8, 8), "latents": (4, 4, 4, 4, 4)},
}
SIZES = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "sizes.py"))


def build(name: str, *, stirred: bool = True) -> nn.Module:
    """A small model; stirred, so that layers that start at zero matter."""
    spec = registry.resolve("models", name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = spec.build(spec.params(**SMALL[name]), M, Statistics.neutral(M))
        if stirred:
            for parameter in module.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def images(h: int = 32, w: int = 48) -> Tensor:
    return torch.rand(2, M, 3, h, w, generator=torch.Generator().manual_seed(1))


def query(*rows: tuple[int, tuple[int, ...], int]) -> Query:
    """(sample, sources, target) per row."""
    mask = torch.zeros(len(rows), M, dtype=torch.bool)
    for q, (_, sources, _) in enumerate(rows):
        mask[q, list(sources)] = True
    return Query(torch.tensor([r[0] for r in rows]), mask, torch.tensor([r[2] for r in rows]))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# What they share


def test_a_frame_is_read_once_and_found_by_every_pass() -> None:
    given = images()
    given[0, 3] = torch.nan
    passes = Passes.of(query((0, (0, 2), 1), (1, (3,), 0), (0, (0, 2), 3), (0, (2,), 1)))
    frames = SharedFrames.of(given, passes)
    assert len(passes.sample) == 3
    assert passes.which[0] == passes.which[2]
    assert torch.isfinite(frames.images).all()
    assert frames.modality.tolist() == [0, 2, 3]
    for p, (sample, sources) in enumerate(zip(passes.sample, passes.sources, strict=True)):
        seen = frames.images[frames.slots[p, frames.filled[p]]]
        assert torch.equal(seen, given[sample, sources])


def test_rows_go_through_the_module_of_their_owner() -> None:
    class Times(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> list[Tensor]:
            return [x * self.factor]

    modules = nn.ModuleList(Times(f) for f in (1.0, 10.0, 100.0))
    x, owner = torch.arange(1.0, 6.0)[:, None], torch.tensor([2, 0, 2, 1, 0])
    assert own(modules, x, owner)[0].squeeze(1).tolist() == [100.0, 2.0, 300.0, 40.0, 5.0]


def test_sizes_are_between_half_and_twice_ours() -> None:
    ours = SIZES["measured"]("medk2n", pixels=96)
    for name in SMALL:
        for mine, theirs in zip(ours, SIZES["measured"](name, pixels=96), strict=True):
            assert 0.5 < theirs / mine < 2, name


@pytest.mark.parametrize(("name", "steps"), [("mm_synthesis", 40), ("mmt", 25), ("pgan", 150), ("poe", 40)])
def test_it_learns_that_one_contrast_is_the_negative_of_another(name: str, steps: int) -> None:
    module = build(name, stirred=False).train()
    smooth = nn.functional.interpolate(noise(2, M, 4, 4), size=(16, 16), mode="bilinear").sigmoid()
    smooth[:, 1] = 1 - smooth[:, 0]
    given, asked = smooth[:, :, None].repeat(1, 1, 3, 1, 1), query((0, (0, 2), 1), (1, (0,), 1))
    optimiser = torch.optim.Adam(module.parameters(), lr=5e-3)
    errors = []
    for step in range(steps):
        made = module(given, asked, generator=torch.Generator().manual_seed(step)).mean
        errors.append((made - smooth[:, 1]).abs().mean())
        optimiser.zero_grad()
        errors[-1].backward()
        optimiser.step()
    assert errors[-1] < 0.5 * errors[0]


# mm_synthesis


def test_latents_are_fused_by_their_maximum() -> None:
    z, filled = noise(2, 3, 4, 5, 6), torch.tensor([[True, True, True], [True, True, False]])
    fused = mm_synthesis.fuse(z, filled)
    assert torch.equal(fused[0], torch.maximum(torch.maximum(z[0, 0], z[0, 1]), z[0, 2]))
    assert torch.equal(fused[1], torch.maximum(z[1, 0], z[1, 1]))
    assert torch.equal(mm_synthesis.fuse(z[:, [2, 0, 1]], filled[:, [2, 0, 1]]), fused)
    twice = mm_synthesis.fuse(torch.cat([z, z[:, :1]], dim=1), torch.cat([filled, filled[:, :1]], dim=1))
    assert torch.equal(twice, fused), "a duplicate changes nothing"


def test_modalities_may_change_places_if_their_encoders_do() -> None:
    module, given = build("mm_synthesis").eval(), images()
    with torch.no_grad():
        before = module(given, query((0, (0, 2), 3), (1, (1,), 3))).mean
        module.encoders[0], module.encoders[1] = module.encoders[1], module.encoders[0]
        after = module(given[:, [1, 0, 2, 3]], query((0, (1, 2), 3), (1, (0,), 3))).mean
    torch.testing.assert_close(after, before)


def test_training_decodes_each_of_several_latents_alone() -> None:
    module, given = build("mm_synthesis").train(), images()
    asked = query((0, (0, 2), 3), (1, (1,), 3))
    with torch.no_grad():
        extras = module(given, asked)
        alone = module(given, query((0, (0,), 3), (0, (2,), 3))).mean
    assert extras.of.tolist() == [0, 0], "a single source is the answer already"
    torch.testing.assert_close(extras.alone, alone)
    z = noise(1, 2, 4, 5, 6)
    assert float(mm_synthesis.variance(z, torch.ones(1, 2, dtype=torch.bool))) == pytest.approx(
        float(z.var(dim=1, correction=0).mean())
    )
    assert float(mm_synthesis.variance(z, torch.tensor([[True, False]]))) == pytest.approx(0.0, abs=1e-7)


# poe


def gaussian(*shape: int, seed: int) -> poe.Gaussian:
    return poe.Gaussian(noise(*shape, seed=seed), noise(*shape, seed=seed + 1))


def test_the_product_of_experts_is_the_normalised_product_of_their_densities() -> None:
    prior, experts = gaussian(1, 1, 1, 1, seed=0), gaussian(1, 2, 1, 1, 1, seed=2)
    made = poe.product(prior, experts, torch.ones(1, 2, dtype=torch.bool))
    x = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    log_density = sum(
        -0.5 * ((x - mean.double()) ** 2 * (-log.double()).exp())
        for mean, log in [
            (prior.mean.squeeze(), prior.log_variance.squeeze()),
            *zip(experts.mean.flatten(), experts.log_variance.flatten(), strict=True),
        ]
    )
    weight = log_density.exp() / log_density.exp().sum()
    mean = (weight * x).sum()
    assert float(made.mean) == pytest.approx(float(mean), rel=1e-5)
    assert float(made.log_variance.exp()) == pytest.approx(float((weight * (x - mean) ** 2).sum()), rel=1e-5)


def test_one_more_expert_never_makes_it_less_sure_and_an_absent_one_changes_nothing() -> None:
    prior, experts = gaussian(3, 4, 5, 6, seed=0), gaussian(3, 3, 4, 5, 6, seed=2)
    before = prior.log_variance
    for k in range(4):
        filled = (torch.arange(3) < k).expand(3, -1)
        made = poe.product(prior, experts, filled)
        assert (made.log_variance <= before + 1e-6).all()
        fewer = poe.Gaussian(experts.mean[:, :k], experts.log_variance[:, :k])
        torch.testing.assert_close(made.mean, poe.product(prior, fewer, filled[:, :k]).mean)
        before = made.log_variance
    torch.testing.assert_close(poe.product(prior, experts, torch.zeros(3, 3, dtype=torch.bool)).mean, prior.mean)


def test_latents_are_drawn_with_a_generator_alone() -> None:
    module, asked = build("poe"), query((0, (0, 2), 1))
    with torch.no_grad():
        first, again, drawn = (module(images(), asked, generator=g).mean for g in (None, None, torch.Generator()))
    assert torch.equal(first, again)
    assert not torch.equal(first, drawn)


def test_what_is_coarser_shapes_the_prior_of_what_is_finer() -> None:
    latents = build("poe").eval()(images(), query((0, (0, 2), 1))).latents
    assert [posterior.mean.shape[-2:] for posterior, _ in latents] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert (latents[-1][1].mean == 0).all(), "the coarsest has a standard normal prior"
    assert all(prior.mean.std() > 0 for _, prior in latents[:-1])


# pgan


def test_the_discriminator_sees_the_condition_beside_the_image() -> None:
    torch.manual_seed(0)
    critic, given = pgan.Critic(pgan.Params(**SMALL["pgan"]), M), images()
    asked, image = query((0, (0, 2), 1)), noise(1, 32, 48)
    dirty = given.clone()
    dirty[0, [1, 3]] = torch.nan
    with torch.no_grad():
        scores = critic(given, asked, image)[-1]
        assert torch.equal(critic(dirty, asked, image)[-1], scores), "absent channels are not looked at"
        dirty[0, 2] += 0.1
        assert not torch.equal(critic(dirty, asked, image)[-1], scores)
        assert not torch.equal(critic(given, asked, image + 0.1)[-1], scores)
        assert not torch.equal(critic(given, query((0, (0, 2), 3)), image)[-1], scores), "nor the claimed contrast"
    assert scores.shape == (1, 1, 4, 6)


def test_all_targets_come_out_of_one_pass() -> None:
    module, made = build("pgan").eval(), []
    module.blocks.register_forward_hook(lambda m, inputs, out: made.append(len(out)))
    with torch.no_grad():
        module(images(), query(*[(0, (0, 2), t) for t in range(M)], (1, (1,), 0)))
    assert made == [2]


# mmt


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (3, 9), (1, 1)])
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_can_be_put_together_again(size: tuple[int, int], shift: int) -> None:
    x = noise(2, 3, *size, 5)
    assert torch.equal(unwindowed(windows(x, 4, shift), (2, 3, *size), 4, shift), x)


@pytest.mark.parametrize("shift", [0, 2])
def test_attention_is_over_all_available_tokens_of_the_window(shift: int) -> None:
    """Against the definition, token by token: same window, filled slots, a bias for each relative position."""
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, 4)
    x, memory, filled = noise(1, 1, 6, 9, 8), noise(1, 3, 6, 9, 8, seed=1), torch.tensor([[True, False, True]])
    with torch.no_grad():
        made = attention(x, memory, filled, shift)
        query = attention.query(x)[0, 0].unflatten(-1, (2, 4))
        key, value = (part.unflatten(-1, (2, 4)) for part in attention.key_value(memory)[0, [0, 2]].chunk(2, dim=-1))
        place = torch.cartesian_prod(torch.arange(6), torch.arange(9))
        for i, j in [(0, 0), (1, 2), (3, 4), (5, 8)]:
            window = (torch.tensor([i, j]) - shift) // 4
            rows, columns = place[((place - shift) // 4 == window).all(dim=1)].T
            bias = attention.bias[:, None, (i - rows + 3) * 7 + j - columns + 3]
            logits = torch.einsum("hc,knhc->hkn", query[i, j], key[:, rows, columns]) / 2 + bias
            weight = logits.flatten(1).softmax(dim=1).view_as(logits)
            wanted = attention.out(torch.einsum("hkn,knhc->hc", weight, value[:, rows, columns]).flatten())
            torch.testing.assert_close(made[0, 0, i, j], wanted)


def test_every_contrast_has_queries_and_the_sources_are_encoded_once() -> None:
    module, encoded = build("mmt").eval(), []
    module.encoder[0][0].register_forward_hook(lambda m, inputs, out: encoded.append(tuple(out.shape[:2])))
    assert [tuple(q.shape) for q in module.queries] == [(M, c) for c in SMALL["mmt"]["widths"]]
    with torch.no_grad():
        asked = query(*[(0, (0, 2), t) for t in range(M)])
        first = module(images(), asked).mean
        assert encoded == [(1, 2)], "one pass of two sources"
        module.queries[3][1] += 1.0
        changed = (module(images(), asked).mean != first).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, False, False]


def test_the_critic_of_mmt_sees_the_image_and_what_it_claims_to_be() -> None:
    torch.manual_seed(0)
    critic, image = mmt.Critic(mmt.Params(**SMALL["mmt"]), M), noise(1, 32, 48)
    with torch.no_grad():
        scores = critic(images(), query((0, (0, 2), 1)), image)[-1]
        assert not torch.equal(critic(images(), query((0, (0, 2), 3)), image)[-1], scores)
        assert not torch.equal(critic(images(), query((0, (0, 2), 1)), image + 0.1)[-1], scores)

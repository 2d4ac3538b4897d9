"""What every registered model promises, and what Med-K2N alone does."""

from itertools import permutations

import numpy as np
import pytest
import torch
from medk2n.models.parts.decoder import TaskHeadNet
from medk2n.models.parts.sequence import Control
from torch.nn import functional

from medk2n import checkpoint, registry
from medk2n.config.params import read_params
from medk2n.losses.likelihood import gaussian_nll
from medk2n.models._spec import Query, Statistics
from medk2n.models.medk2n_parts.encoders.hiera import build_trunk

M = 4
MEDK2N = {"widths": [8, 16, 16, 16], "joint": [8, 8, 16, 16, 16], "embedding": 16, "memory_slots": 4}
ADAPTED = {"name": "hiera", "weights": "given by the test", "adapt": "lora_plus", "rank": 2}
SMALL = {
    "medk2n": MEDK2N,
    "medk2n, raster": MEDK2N | {"multiscale": {"scan": "raster"}},
    "medk2n, Hiera": MEDK2N | {"encoder": {"name": "hiera"}, "multiscale": {"scan": "none"}},
    "medk2n, adapted Hiera, spiral": MEDK2N | {"encoder": ADAPTED, "multiscale": {"scan": "spiral"}},
    "mm_synthesis": {"widths": [8, 8, 16], "latent": 8},
    "mmt": {"widths": [8, 8, 16, 16], "head": 8, "window": 4, "pixels": 8, "critic": 8},
    "pgan": {"width": 8, "blocks": 2, "critic": 8},
    "poe": {"encoder": [8, 8, 8, 8, 8], "decoder": [8, 8, 8, 8, 8], "latents": [4, 4, 4, 4, 4]},
    "unet": {"widths": [8, 8, 16, 16, 16]},
}
PROPOSED = [name for name in SMALL if name.startswith("medk2n")]


def fresh(name: str) -> torch.nn.Module:
    """A small model as training begins with it."""
    spec = registry.resolve("models", component(name))
    module = spec.build(read_params(spec.params, SMALL[name]), M, Statistics.neutral(M))
    if "adapted" in name:
        module.encoder.adopt(dict(build_trunk("nano").named_parameters()))
    return module


def component(name: str) -> str:
    return name.split(",")[0]


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """A small model whose zero-initialised layers are stirred, so that every path matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = fresh(name)
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def images(h: int = 32, w: int = 48, b: int = 2) -> torch.Tensor:
    return torch.rand(b, M, 3, h, w, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05


def query(*rows: tuple[int, tuple[int, ...], int]) -> Query:
    """(sample, sources, target) per row."""
    mask = torch.zeros(len(rows), M, dtype=torch.bool)
    for q, (_, sources, _) in enumerate(rows):
        mask[q, list(sources)] = True
    return Query(torch.tensor([r[0] for r in rows]), mask, torch.tensor([r[2] for r in rows]))


@pytest.fixture(params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_model_is_among_them() -> None:
    assert {component(name) for name in SMALL} == set(registry.names("models"))
    encoders = {SMALL[name].get("encoder", {"name": "conv"})["name"] for name in PROPOSED}
    assert encoders == set(registry.names("models/medk2n_parts/encoders"))


@pytest.mark.parametrize("size", [(32, 48), (17, 33), (16, 16), (1, 40)])
def test_output_has_the_size_of_the_input_for_every_subset(name: str, size: tuple[int, int]) -> None:
    module = build(name).eval()
    rows = [(0, (i for i in range(M) if bits >> i & 1), t) for bits in range(1, 2**M) for t in (0, M - 1)]
    with torch.no_grad():
        out = module(images(*size), query(*[(b, tuple(s), t) for b, s, t in rows]))
    assert out.mean.shape == (len(rows), *size)
    assert torch.isfinite(out.mean).all()
    if out.log_variance is not None:
        assert torch.isfinite(out.log_variance).all()


def test_content_of_an_absent_channel_never_reaches_the_output(name: str) -> None:
    module, asked = build(name).eval(), query((0, (0, 2), 1), (1, (3,), 1))
    clean, dirty = images(), images()
    dirty[0, [1, 3]] = torch.randn(2, 3, 32, 48)
    dirty[1, :3] = torch.nan
    with torch.no_grad():
        a, b = module(clean, asked), module(dirty, asked)
    assert torch.equal(a.mean, b.mean)
    dirty[0, 2] += 0.1
    with torch.no_grad():
        assert not torch.equal(a.mean, module(dirty, asked).mean)


def test_every_parameter_gets_a_gradient_within_three_steps(name: str) -> None:
    torch.manual_seed(0)
    module = fresh(name)
    if name in PROPOSED:  # a threshold learns where it decides: from weights near it; runs begin with soft gates
        torch.nn.init.constant_(module.fusion.pre_weight.weigh[-1].bias, -3.9)
        module.fusion.hard_gates = False
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    seen = {key: False for key, parameter in module.named_parameters() if parameter.requires_grad}
    rows = [(b, s, t) for b in (0, 1) for s in [(0,), (1, 2), (0, 1, 3), (0, 1, 2, 3)] for t in range(M)]
    for step in range(3):
        out = module(images(), query(*rows), generator=torch.Generator().manual_seed(step))
        loss = (out.mean - 0.3).square().mean()
        if out.log_variance is not None:
            fused = out.extras["fused"]
            loss = loss + out.log_variance.square().mean() + fused.quality.square().mean()
            loss = loss + (out.extras["seen"].proposals.images - 0.3).square().mean()
            loss = loss + sum(step.weight.square().mean() for step in fused.steps)
            loss = loss + sum(weight.square().mean() for step in fused.steps for weight in step.maps.values())
        optimiser.zero_grad()
        loss.backward()
        for key, parameter in module.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert parameter.requires_grad or not reached, f"{key} is frozen"
            if parameter.requires_grad:
                seen[key] |= reached
        optimiser.step()
    assert [key for key, reached in seen.items() if not reached] == []


def test_targets_and_batching_do_not_matter(name: str) -> None:
    module = build(name).eval()  # outputs of the size of trained ones: sums in another order round alike
    rows = [(0, (0, 2), 1), (0, (0, 2), 3), (1, (1, 2, 3), 0), (1, (3,), 2)]
    with torch.no_grad():
        together = module(images(), query(*rows)).mean
        alone = torch.cat([module(images(), query(row)).mean for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PROPOSED)
def test_frames_in_half_precision_stay_close(name: str) -> None:
    """As on CUDA: convolutions and products in bfloat16."""
    torch.manual_seed(0)
    module = fresh(name).eval()
    needed = torch.ones(2, M, dtype=torch.bool)
    with torch.no_grad():
        whole = module.encode(images(), needed).pyramid
        with torch.autocast("cpu", torch.bfloat16):
            half = module.encode(images(), needed).pyramid
    for stride, level in whole.items():
        assert not torch.equal(level, half[stride].float())
        torch.testing.assert_close(half[stride].float(), level, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("half", [False, True])
def test_save_and_load(name: str, half: bool, tmp_path) -> None:
    module = build(name).eval().requires_grad_(False)  # as when loaded: torch rounds a layer that learns differently
    config = checkpoint.ModelConfig(
        model=component(name),
        modalities=("a", "b", "c", "d"),
        spacing_mm=1.5,
        params=SMALL[name],
        statistics=checkpoint.Statistics(affine_maps={}, variance={}, typical_scaling={}),
    )
    before = torch.get_rng_state()
    checkpoint.save(tmp_path / "m", module, config, half=half)
    loaded, read = checkpoint.load(tmp_path / "m")
    assert torch.equal(before, torch.get_rng_state())
    assert read.sha256 == checkpoint.read_config(tmp_path / "m").sha256 != ""
    asked = query((0, (0, 2, 3), 1))
    with torch.no_grad():
        a, b = module(images(), asked).mean, loaded(images(), asked).mean
    if half:
        torch.testing.assert_close(a, b, atol=2e-2, rtol=0)
    else:
        assert torch.equal(a, b)


def test_altered_weights_are_refused(tmp_path) -> None:
    test_save_and_load("unet", False, tmp_path)
    path = tmp_path / "m" / checkpoint.WEIGHTS
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(checkpoint.CheckpointError, match="SHA-256 differs"):
        checkpoint.load(tmp_path / "m")


@pytest.mark.parametrize(("name", "k"), [*((name, 3) for name in PROPOSED), ("medk2n", 2), ("medk2n", 4)])
def test_permuting_the_inputs_changes_nothing(name: str, k: int) -> None:
    """Through the public path: a mapping of named inputs in all k! orders."""
    from medk2n.inference.predictor import SlicePredictor

    names = ("a", "b", "c", "d")
    config = checkpoint.ModelConfig(
        model="medk2n",
        modalities=names,
        spacing_mm=1.5,
        params=SMALL[name] | {"slices": 3},
        statistics=checkpoint.Statistics(affine_maps={}, variance={}, typical_scaling={}),
    )
    predictor = SlicePredictor(build(name).eval(), config)
    stack = np.random.default_rng(0).random((3, 32, 32), dtype=np.float32)
    inputs = {n: np.roll(stack, 3 * i, axis=1) for i, n in enumerate(names[:k])}
    first = predictor.predict(inputs, ["a", "d"])
    for order in permutations(names[:k]):
        again = predictor.predict({n: inputs[n] for n in order}, ["d", "a"])
        for target in ("a", "d"):
            np.testing.assert_allclose(again[target].image, first[target].image, atol=1e-5)
            np.testing.assert_allclose(again[target].variance, first[target].variance, atol=1e-5)


def test_forced_closed_gates_give_the_key_frame_alone() -> None:
    module = build("medk2n").eval()
    module.fusion.threshold.lowest = module.fusion.threshold.highest = 2.0  # no weight reaches it
    with torch.no_grad():
        frames = module.encode(images(), torch.ones(2, M, dtype=torch.bool))
        closed = module.decode(frames, query((0, (0, 1, 2), 3)))
        key = int(closed.extras["fused"].steps[0].source)
        alone = module.decode(frames, query((0, (key,), 3)))
        module.fusion.threshold.lowest = module.fusion.threshold.highest = -1.0
        open_ = module.decode(frames, query((0, (0, 1, 2), 3)))
    assert torch.equal(closed.mean, alone.mean)
    assert not torch.equal(open_.mean, alone.mean)


def test_a_fixed_weight_opens_a_closed_gate_inside_its_mask_alone() -> None:
    module = build("medk2n").eval()
    module.fusion.threshold.lowest = module.fusion.threshold.highest = 2.0  # the content closes every gate
    bounds = torch.tensor([0.0, 1.0])[None, :, None, None].repeat(2, 1, 32, 48)
    bounds[:, :, :, 24:] = 0.5
    asked = query((0, (0, 1), 3))
    with torch.no_grad():
        frames = module.encode(images(), torch.ones(2, M, dtype=torch.bool))
        closed = module.decode(frames, asked, control=Control(order={3: (0,)})).extras["fused"]
        fixed = module.decode(frames, asked, control=Control(order={3: (0,)}, bounds={(3, 1): bounds})).extras["fused"]
        capped = bounds.clone()
        capped[:, 0] = 0.0
        still = module.decode(frames, asked, control=Control(order={3: (0,)}, bounds={(3, 1): capped})).extras["fused"]
    assert torch.equal(fixed.state[4][..., :6], closed.state[4][..., :6])
    assert not torch.isclose(fixed.state[4][..., 6:], closed.state[4][..., 6:]).all()
    assert float(fixed.steps[1].effective) == pytest.approx(0.25)
    assert torch.equal(still.state[4], closed.state[4]), "an upper bound opens nothing"
    planned = module.decode(
        frames, asked, plan=module.fusion.plan(fixed, asked), control=Control(bounds={(3, 1): bounds})
    )
    assert torch.equal(planned.extras["fused"].state[4], fixed.state[4]), "nor does following a plan"


@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
def test_frames_are_added_in_a_forced_order(order: tuple[int, ...]) -> None:
    module = build("medk2n").eval()
    with torch.no_grad():
        frames = module.encode(images(), torch.ones(2, M, dtype=torch.bool))
        fused = module.decode(frames, query((0, (0, 1, 2), 3)), control=Control(order={3: order})).extras["fused"]
    assert tuple(int(step.source) for step in fused.steps) == order


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_a_frame_shut_out_between_two_others_leaves_no_trace(grad: bool) -> None:
    """In inference a closed gate's work is skipped; what is added later must not mistake the gap for modality 0."""
    module = build("medk2n").eval()
    module.fusion.threshold.lowest = module.fusion.threshold.highest = -1.0
    shut = torch.zeros(2, 2, 32, 48)
    given = images()
    # two rows of one call: in the second, nothing is shut, so that both paths are walked at once
    asked = query((0, (0, 1, 2), 3), (1, (0, 1, 2), 3))
    alone = query((0, (0, 1), 3), (1, (0, 1), 3))
    with torch.set_grad_enabled(grad):
        frames = module.encode(given, torch.ones(2, M, dtype=torch.bool))
        order = {3: (1, 2, 0)}
        without = module.decode(frames, alone, control=Control({3: (1, 0)}))
        free = module.decode(frames, asked, control=Control(order))
        shut[1, 1] = 1.0
        mixed = module.decode(frames, asked, control=Control(order, {(3, 2): shut}))
    torch.testing.assert_close(mixed.extras["fused"].base.linear()[0], without.extras["fused"].base.linear()[0])
    torch.testing.assert_close(mixed.mean[0], without.mean[0])
    torch.testing.assert_close(mixed.mean[1], free.mean[1])


def test_added_frames_speak_as_loud_as_the_key_frame() -> None:
    """However large a stage's output grows: at 280 times an added frame's size, all but the key frame were drowned."""
    spec = registry.resolve("models", "medk2n")
    torch.manual_seed(0)
    module = spec.build(spec.params(), M, Statistics.neutral(M)).eval()
    with torch.no_grad():
        for block in module.encoder.stage.values():
            block.conv2.weight *= 100
        frames = module.encode(images(), torch.ones(2, M, dtype=torch.bool))
        both = module.decode(frames, query((0, (0, 1, 2), 3))).extras["fused"]
        key = module.decode(frames, query((0, (int(both.steps[0].source),), 3))).extras["fused"]
    for stride, state in both.state.items():
        added = (state - key.state[stride]).square().mean().sqrt() / key.state[stride].square().mean().sqrt()
        assert 0.2 < added < 2.0, f"stride {stride}"


@pytest.mark.parametrize("sources", [(2,), (0, 1), (0, 2, 3), (0, 1, 2, 3)])
def test_open_gates_give_the_least_squares_base_and_a_closed_one_leaves_its_source_out(
    sources: tuple[int, ...],
) -> None:
    from medk2n.models.medk2n_parts.base_image import BaseImage, LinearMaps

    rng = np.random.default_rng(0)
    values = rng.standard_normal((900, M)) @ rng.standard_normal((M, M)) * 0.1 + 0.4
    mean, deviation = (
        torch.tensor(v, dtype=torch.float32)[:, None].expand(M, M) for v in (values.mean(0), values.std(0))
    )
    correlation = torch.tensor(np.corrcoef(values.T), dtype=torch.float32)
    maps = LinearMaps(Statistics(mean, deviation, correlation, deviation[:, 0] ** 2))
    frames = torch.tensor(values.T.reshape(M, 30, 30), dtype=torch.float32)

    def fitted(members: tuple[int, ...]) -> np.ndarray:
        system = np.column_stack([values[:, list(members)], np.ones(len(values))])
        return (system @ np.linalg.lstsq(system, values[:, 1], rcond=None)[0]).reshape(30, 30)

    def base(gates: list[float]) -> BaseImage:
        image = BaseImage(maps, frames, torch.tensor([1]))
        for i, gate in zip(sources, gates, strict=True):
            one = torch.tensor([gate])
            image.add(torch.tensor([0]), torch.tensor([i]), torch.tensor([i]), one, torch.full((1, 30, 30), gate))
        return image

    everything = base([1.0] * len(sources))
    np.testing.assert_allclose(everything.linear()[0], fitted(sources), atol=2e-4)
    level = everything.linear() - sum(s * frames[i] for i, s in zip(sources, everything.shares(), strict=True))
    assert level.std() < 1e-4, "what the shares do not explain is flat"
    if len(sources) > 1:
        without = base([1.0, 0.0] + [1.0] * (len(sources) - 2)).linear()[0]
        np.testing.assert_allclose(without, fitted((sources[0], *sources[2:])), atol=2e-4)


def test_the_trunk_learns_from_its_own_proposals_of_all_images_of_a_sample() -> None:
    from medk2n.config.schema import LossWeights
    from medk2n.data.batches import Batch
    from medk2n.training.objectives import proposal_error

    module = build("medk2n").train()
    acquired = torch.tensor([[True, True, False, True], [True, False, True, False]])
    truth = torch.where(acquired[:, :, None, None], images()[:, :, 1], torch.nan)
    inside = torch.ones(2, 32, 48, dtype=torch.bool)
    batch = Batch(images(), acquired, truth, inside, torch.zeros(acquired.shape))
    asked = query((0, (0, 3), 1), (1, (2,), 0))
    prediction = module(batch.images, asked, generator=torch.Generator().manual_seed(0))
    prediction.mean.sum().backward(retain_graph=True)
    assert all(p.grad is None for p in module.joint.trunk.parameters())
    error = proposal_error(prediction.extras["seen"].proposals, batch, LossWeights(edges=0.0, remade=0.25))
    error.backward()
    assert all(p.grad is not None for p in module.joint.trunk.parameters())
    seen = prediction.extras["seen"].proposals.images
    rows = [(0, 0, 0.25), (0, 1, 1.0), (0, 3, 0.25), (1, 0, 1.0), (1, 2, 0.25)]
    wanted = [w * 0.5 * ((seen[b, j] - truth[b, j]).square().mean() + 1e-3).log() for b, j, w in rows]
    torch.testing.assert_close(error, sum(wanted) / sum(w for _, _, w in rows))


def test_proposals_alone_are_those_of_the_joint_pass() -> None:
    module = build("medk2n").eval()
    module.fusion.threshold.lowest = module.fusion.threshold.highest = -1.0  # all frames are let in
    asked = query((0, (0, 3), 1), (1, (2,), 0))
    projected = []
    module.joint.project["2"].register_forward_hook(lambda *_: projected.append(1))
    with torch.no_grad():
        alone = module.propose(images(), asked)
        assert not projected, "what only the decoder needs is left out"
        seen = module(images(), asked).extras["seen"]
    assert projected
    assert torch.equal(alone.passes, seen.proposals.passes)
    assert torch.equal(alone.images, seen.proposals.images)


def test_the_predicted_error_is_learned_level_and_place_alike() -> None:
    """Adam moves a weight by no more than its rate: with logits as they come the variance stayed where it began."""
    generator = torch.Generator().manual_seed(0)
    heads = TaskHeadNet(M, {2: 8})
    features = torch.randn(4, 8, 8, 8, generator=generator).sign()
    target, level = torch.tensor([0, 1, 2, 3]), torch.full((4,), -4.6)
    noisy = functional.interpolate(features[:, :1], scale_factor=2.0)[:, 0] > 0
    proposal = torch.full((4, 16, 16), 0.5)
    inside = torch.ones_like(noisy)
    optimiser = torch.optim.AdamW(heads.parameters(), lr=1.5e-3)
    for _ in range(250):
        truth = proposal + torch.where(noisy, 0.2, 0.02) * torch.randn(proposal.shape, generator=generator)
        _, log_variance = heads(features, proposal, proposal, level, target)
        optimiser.zero_grad()
        gaussian_nll(proposal, log_variance, truth, inside).mean().backward()
        optimiser.step()
    _, log_variance = heads(features, proposal, proposal, level, target)
    deviation = log_variance.detach().mul(0.5).exp()
    assert float(deviation[noisy].mean()) == pytest.approx(0.2, rel=0.2)
    assert float(deviation[~noisy].mean()) == pytest.approx(0.02, rel=0.3)


def test_the_predicted_error_starts_at_the_level_that_the_state_predicts() -> None:
    heads = TaskHeadNet(M, {2: 8})
    level = torch.tensor([-6.0, -3.0], requires_grad=True)
    base = torch.full((2, 16, 16), 0.5)
    mean, log_variance = heads(torch.randn(2, 8, 8, 8), base, base, level, torch.tensor([0, 1]))
    torch.testing.assert_close(log_variance, level.detach()[:, None, None].expand_as(log_variance))
    assert not torch.autograd.grad(log_variance.sum() + mean.sum(), level, allow_unused=True)[0]


def test_one_joint_pass_serves_all_targets_that_let_in_the_same_frames() -> None:
    module = build("medk2n").eval()
    module.fusion.threshold.lowest = module.fusion.threshold.highest = -1.0
    made = []
    module.joint.trunk.register_forward_hook(lambda m, inputs, out: made.append(len(inputs[0])))
    with torch.no_grad():
        module(images(), query(*[(b, (0, 2, 3), t) for b in range(2) for t in range(M)]))
        module(images(), query((0, (0, 2), 1), (0, (0, 3), 1)))
    assert made == [2, 2]


def test_a_bound_reaches_the_joint_pass_too() -> None:
    """An input held at 0 is not seen at all, at 1 as if it were free, inside a mask as one or the other."""
    module = build("medk2n").eval()
    module.fusion.threshold.lowest = module.fusion.threshold.highest = -1.0

    def proposal(sources: tuple[int, ...], share: torch.Tensor | None = None) -> torch.Tensor:
        bounds = {} if share is None else {(3, 1): share.expand(2, 2, 32, 48)}
        with torch.no_grad():
            frames = module.encode(images(), torch.ones(2, M, dtype=torch.bool))
            asked = query((0, sources, 3), (1, sources, 3))
            return module.decode(frames, asked, control=Control({3: (0,)}, bounds)).extras["seen"].proposal

    mask = torch.zeros(1, 1, 32, 48)
    mask[..., 16:] = 1.0
    without, free = proposal((0, 2)), proposal((0, 1, 2))
    torch.testing.assert_close(proposal((0, 1, 2), torch.zeros(1, 1, 1, 1)), without)
    torch.testing.assert_close(proposal((0, 1, 2), torch.ones(1, 1, 1, 1)), free)
    masked = proposal((0, 1, 2), mask)
    torch.testing.assert_close(masked[..., :16], without[..., :16])
    torch.testing.assert_close(masked[..., 16:], free[..., 16:])
    assert not torch.isclose(without, free).any()


def test_a_bound_counts_by_what_is_left_of_the_free_weight() -> None:
    """What the map keeps anyway changes nothing, not even in the joint pass, however small W_eff is."""
    from medk2n.models.parts.sequence import _share

    module = build("medk2n").eval()
    module.fusion.threshold.lowest = module.fusion.threshold.highest = -1.0
    for conv in module.fusion.effi_weight.map.values():
        conv.weight.data *= 0.1
        torch.nn.init.constant_(conv.bias, -2.0)
    asked = query((0, (0, 1, 2), 3), (1, (0, 1, 2), 3))

    def decoded(high: float | None):
        bounds = torch.zeros(2, 2, 32, 48)
        bounds[:, 1] = high or 0.0
        with torch.no_grad():
            frames = module.encode(images(), torch.ones(2, M, dtype=torch.bool))
            return module.decode(frames, asked, control=Control({3: (0, 1)}, {} if high is None else {(3, 1): bounds}))

    free = decoded(None)
    peak = max(float(weight.max()) for weight in free.extras["fused"].steps[1].maps.values())
    assert peak < 0.9, "the trial needs a small map"
    torch.testing.assert_close(decoded(peak + 0.01).mean, free.mean)
    assert not torch.isclose(decoded(peak / 10).mean, free.mean, atol=1e-6).all()
    bounds = torch.tensor([[0.0, 0.2], [0.0, 1.0], [0.8, 0.8], [0.0, 0.0], [0.1, 0.1]])[:, :, None, None]
    left = _share(torch.full((5, 1, 1), 0.4), bounds).flatten()
    torch.testing.assert_close(left, torch.tensor([0.5, 1.0, 1.0, 0.0, 0.25]))


def test_the_mean_weight_of_a_frame_is_that_of_the_patient() -> None:
    module = build("medk2n").eval()
    module.fusion.threshold.lowest = module.fusion.threshold.highest = -1.0
    given = images()
    given[..., 24:] = 0.0
    with torch.no_grad():
        step = module(given, query((0, (0, 1), 3), (1, (0, 2), 3))).extras["fused"].steps[1]
    torch.testing.assert_close(step.effective, step.maps[4][..., :6].mean(dim=(1, 2, 3)))


def test_bounds_of_two_inputs_hold_each_for_itself_and_leave_other_targets_alone() -> None:
    module = build("medk2n").eval()
    given, ones = images(), torch.ones(2, M, dtype=torch.bool)

    def proposals(stack: torch.Tensor, shares: dict[int, float], *rows: tuple[int, tuple[int, ...], int]):
        limits = torch.tensor([0.0, 1.0])[None, :, None, None].repeat(2, 1, 32, 48)
        bounds = {(3, i): limits * share for i, share in shares.items()}
        with torch.no_grad():
            return module.decode(module.encode(stack, ones), query(*rows), control=Control({3: (0,)}, bounds)).mean

    module.fusion.threshold.lowest = module.fusion.threshold.highest = -1.0
    row = (0, (0, 1, 2), 3)
    noisy = given.clone()
    noisy[0, 1] = torch.rand(3, 32, 48)
    banned = proposals(given, {1: 0.0, 2: 1.0}, row)
    torch.testing.assert_close(proposals(noisy, {1: 0.0, 2: 1.0}, row), banned)
    torch.testing.assert_close(banned, proposals(given, {}, (0, (0, 2), 3)))
    half = proposals(given, {1: 0.5, 2: 0.5}, row)
    assert not torch.isclose(half, banned).all()
    module.fusion.threshold.lowest = module.fusion.threshold.highest = 0.5  # some gates close, some open
    beside = proposals(given, {1: 0.5, 2: 0.5}, row, (0, (0, 1, 2), 1), (1, (0, 1, 2), 1))
    alone = proposals(given, {}, (0, (0, 1, 2), 1), (1, (0, 1, 2), 1))
    torch.testing.assert_close(beside[1:], alone, atol=1e-5, rtol=0)


def test_training_starts_at_the_proposal() -> None:
    torch.manual_seed(0)
    module = fresh("medk2n").eval()
    torch.nn.init.normal_(module.joint.trunk.out.weight)
    with torch.no_grad():
        prediction = module(images(), query((0, (0, 2), 1), (1, (3,), 1)))
    torch.testing.assert_close(prediction.mean, prediction.extras["seen"].proposal)


def test_what_is_coarse_or_deep_starts_faint_beside_what_it_is_added_to() -> None:
    spec = registry.resolve("models", "medk2n")
    torch.manual_seed(0)
    module = spec.build(spec.params(), M, Statistics.neutral(M))
    deep = [block.conv2 for block in module.encoder.stage.values()]
    with torch.no_grad():
        for conv in [*module.decoder.reduce.values(), *deep]:
            assert 0.05 < conv(torch.randn(2, conv.in_channels, 16, 16)).square().mean().sqrt() < 0.3


def test_the_norm_sees_one_voxel_at_a_time() -> None:
    from medk2n.models.layers.blocks import ChannelNorm

    x = torch.randn(2, 8, 12, 10)
    norm = ChannelNorm(8)
    torch.testing.assert_close(norm(x)[..., 3:9, 2:7], norm(x[..., 3:9, 2:7]), atol=1e-6, rtol=0)


def test_weights_thresholds_and_maps_stay_within_their_bounds() -> None:
    module = build("medk2n").eval()
    with torch.no_grad():
        steps = module(images(), query((0, (0, 1, 2, 3), 1), (1, (0, 1), 2))).extras["fused"].steps
    for step in steps:
        taken = step.source >= 0
        assert ((step.weight >= 0) & (step.weight <= 1)).all()
        assert ((step.effective >= 0) & (step.effective <= 1)).all()
    for step in steps[1:]:
        tau = step.threshold[step.source >= 0]
        assert ((tau >= module.fusion.threshold.lowest) & (tau <= module.fusion.threshold.highest)).all()
    assert not taken.all(), "the second query has fewer steps"


@pytest.mark.parametrize("name", PROPOSED)
def test_each_frame_is_encoded_once_whatever_is_asked(name: str) -> None:
    module = build(name).eval()
    encoded, mixed = [], []
    module.encoder.register_forward_hook(lambda m, inputs, out: encoded.append(len(inputs[0])))
    if module.multiscale is not None:
        module.multiscale.register_forward_hook(lambda m, inputs, out: mixed.append(len(out[4])))
    with torch.no_grad():
        module(images(), query(*[(0, (0, 2, 3), t) for t in range(M)]))
    assert encoded == [3]
    assert mixed == [3] * (module.multiscale is not None)


def test_evaluation_leaves_every_buffer_alone() -> None:
    module = build("medk2n").eval()
    before = {name: b.clone() for name, b in module.named_buffers()}
    with torch.no_grad():
        module(images(), query((0, (0, 1, 2), 3)))
    assert all(torch.equal(before[name], b) for name, b in module.named_buffers())


def test_the_history_is_a_moving_average_of_measured_gains() -> None:
    fusion = build("medk2n").fusion
    total, count = torch.zeros(2, M, M)
    total[0, 1], count[0, 1] = 2 * 0.5, 2
    fusion.observe(total, count)
    assert fusion.history[0, 1] == pytest.approx(0.02 * 0.5 * (1 + 0.98), rel=1e-4)
    assert int((fusion.history != 0).sum()) == 1


def test_key_frame_is_the_source_with_the_largest_first_weight() -> None:
    module = build("medk2n").eval()
    with torch.no_grad():
        alone = {i: float(module(images(), query((0, (i,), 3))).extras["fused"].steps[0].weight[0]) for i in range(3)}
        fused = module(images(), query((0, (0, 1, 2), 3))).extras["fused"]
    order = [int(step.source[0]) for step in fused.steps]
    assert order == sorted(alone, key=lambda i: -round(alone[i], 4))

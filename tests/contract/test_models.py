"""What every registered model promises, and what Med-K2N alone does."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch

from medk2n import checkpoint, registry
from medk2n.config.params import read_params
from medk2n.config.schema import load_config
from medk2n.data.batches import Batch
from medk2n.losses.likelihood import gaussian_nll
from medk2n.models._spec import Query, Statistics
from medk2n.models.medk2n import MedK2NPrediction
from medk2n.models.medk2n_parts.base_image import LinearMaps
from medk2n.models.medk2n_parts.control import Control, Plan
from medk2n.models.medk2n_parts.encoders.hiera import build_trunk
from medk2n.models.medk2n_parts.pre_weight_net import MOST_DB
from medk2n.models.medk2n_parts.progressive_fusion import Guidance
from medk2n.models.medk2n_parts.task_head_net import _LOGITS, _START, TaskHeadNet
from medk2n.training.lesson import Pupil
from medk2n.training.lessons.medk2n import MedK2NLesson
from medk2n.training.world import World

M = 4
MEDK2N = {"widths": [8, 8, 16, 16, 16], "embedding": 16}
ENCODED = MEDK2N | {"channels": [8, 8, 16, 16]}
ADAPTED = {"name": "hiera", "weights": "given by the test", "adapt": "lora_plus", "rank": 2}
SMALL = {
    "medk2n": MEDK2N,
    "medk2n, conv": ENCODED | {"encoder": {"name": "conv"}},
    "medk2n, conv, raster": ENCODED | {"encoder": {"name": "conv"}, "multiscale": {"scan": "raster"}},
    "medk2n, Hiera": ENCODED | {"encoder": {"name": "hiera"}, "multiscale": {"scan": "none"}},
    "medk2n, adapted Hiera, spiral": ENCODED | {"encoder": ADAPTED, "multiscale": {"scan": "spiral"}},
    "mm_synthesis": {"widths": [8, 8, 16], "latent": 8},
    "mmt": {"widths": [8, 8, 16, 16], "head": 8, "window": 4, "pixels": 8, "critic": 8},
    "pgan": {"width": 8, "blocks": 2, "critic": 8},
    "poe": {"encoder": [8, 8, 8, 8, 8], "decoder": [8, 8, 8, 8, 8], "latents": [4, 4, 4, 4, 4]},
    "unet": {"widths": [8, 8, 16, 16, 16]},
}
PROPOSED = [name for name in SMALL if name.startswith("medk2n")]
ENCODING = [name for name in PROPOSED if "encoder" in SMALL[name]]
BASELINES = [name for name in SMALL if name not in PROPOSED]


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
    """A small model that stands for a trained one: what begins at zero is stirred, so that every path matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = fresh(name)
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    if name in PROPOSED:
        module.fusion.taught.fill_(1)
    return module


def images(h: int = 32, w: int = 48, b: int = 2) -> torch.Tensor:
    return torch.rand(b, M, 3, h, w, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05


def query(*rows: tuple[int, tuple[int, ...], int]) -> Query:
    """(sample, sources, target) per row."""
    mask = torch.zeros(len(rows), M, dtype=torch.bool)
    for q, (_, sources, _) in enumerate(rows):
        mask[q, list(sources)] = True
    return Query(torch.tensor([r[0] for r in rows]), mask, torch.tensor([r[2] for r in rows]))


def gates(module: torch.nn.Module, *, shut: tuple[int, ...] = (), part: float = 1.0) -> torch.nn.Module:
    """Gates as a test wants them: open to all but some frames, whatever they hold; `part` is how far."""
    closed: list[torch.Tensor] = []

    def listen(_: object, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        closed[:] = [(given[1][:, None] == module.embeddings[list(shut)]).all(dim=2).any(dim=1)]

    module.fusion.pre_weight.register_forward_hook(listen)
    module.fusion.effi_weight.register_forward_hook(lambda _, given, out: torch.where(closed[0], 0.0, part))
    return module


@torch.no_grad()
def decoded(
    module: torch.nn.Module,
    asked: Query,
    *,
    given: torch.Tensor | None = None,
    order: dict[int, tuple[int, ...]] | None = None,
    bounds: dict[tuple[int, int], torch.Tensor] | None = None,
    plan: Plan | None = None,
    study: bool = False,
) -> MedK2NPrediction:
    """An answer on the padded grid; frames that nobody asks for are not there."""
    given = images() if given is None else given
    scene = module.scene(given, asked.needed(len(given)))
    return module.decode(scene, asked, Guidance(plan, Control(order or {}, bounds or {}), study))


def limits(low: float, high: float, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    """A bound of the whole image, the same for both samples."""
    return torch.tensor([low, high])[None, :, None, None].repeat(2, 1, *size)


@pytest.fixture(params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_model_is_among_them() -> None:
    assert {component(name) for name in SMALL} == set(registry.names("models"))
    encoders = {SMALL[name]["encoder"]["name"] for name in ENCODING}
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


@pytest.mark.parametrize("size", [(32, 48), (17, 33)])
def test_content_of_an_absent_channel_never_reaches_the_output(name: str, size: tuple[int, int]) -> None:
    module, asked = build(name).eval(), query((0, (0, 2), 1), (1, (3,), 1))
    clean, dirty = images(*size), images(*size)
    dirty[0, [1, 3]] = torch.randn(2, 3, *size)
    dirty[1, :3] = torch.nan
    with torch.no_grad():
        a, b = module(clean, asked), module(dirty, asked)
    assert torch.equal(a.mean, b.mean)
    dirty[0, [0, 2]] += 0.1  # one of them may have been shut out by its gate
    with torch.no_grad():
        assert not torch.equal(a.mean, module(dirty, asked).mean)


@pytest.mark.parametrize("name", BASELINES)
def test_every_parameter_gets_a_gradient_within_three_steps(name: str) -> None:
    torch.manual_seed(0)
    module = fresh(name)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    seen = dict.fromkeys(dict(module.named_parameters()), False)
    rows = [(b, s, t) for b in (0, 1) for s in [(0,), (1, 2), (0, 1, 3), (0, 1, 2, 3)] for t in range(M)]
    for step in range(3):
        out = module(images(), query(*rows), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        (out.mean - 0.3).square().mean().backward()
        for key, parameter in module.named_parameters():
            seen[key] |= parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        optimiser.step()
    assert [key for key, reached in seen.items() if not reached] == []


@pytest.mark.parametrize("name", PROPOSED)
def test_every_parameter_is_taught_by_one_of_the_two_kinds_of_steps(name: str) -> None:
    """By the losses of the lesson itself, three steps of each."""
    torch.manual_seed(0)
    module = fresh(name)
    settings = ["modalities=[t1c, t1n, t2f, t2w]", "core=[]", "spacing_mm=1.5", "batch={draws: 2, most_sources: 3}"]
    lesson = MedK2NLesson(Pupil(module, registry.resolve("models", "medk2n"), load_config("tiny", settings)))
    there, inside = torch.ones(2, M, dtype=torch.bool), torch.ones(2, 32, 48, dtype=torch.bool)
    batch = Batch(images(), there, images()[:, :, 1], inside, torch.zeros(2, M), torch.full((2, M), -1))
    learned = {key for key, parameter in module.named_parameters() if parameter.requires_grad}
    optimiser, taught = torch.optim.Adam(module.parameters(), lr=1e-2), set()
    for progress in (0.0, 1.0):
        if progress:
            lesson.enter(module)
        for step in range(3):
            module.zero_grad()
            lesson.loss(batch, step, progress, World())[0].backward()
            taught |= {key for key, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
            optimiser.step()
    assert taught == learned


def test_targets_and_batching_do_not_matter(name: str) -> None:
    module = build(name).eval()  # outputs of the size of trained ones: sums in another order round alike
    rows = [(0, (0, 2), 1), (0, (0, 2), 3), (1, (1, 2, 3), 0), (1, (3,), 2)]
    with torch.no_grad():
        together = module(images(), query(*rows)).mean
        alone = torch.cat([module(images(), query(row)).mean for row in rows])
    torch.testing.assert_close(together, alone, atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", PROPOSED)
def test_passes_in_half_precision_stay_close(name: str) -> None:
    """As on CUDA: convolutions and products in bfloat16, images and variances in 32 bits."""
    torch.manual_seed(0)
    module, asked = fresh(name).eval(), query((0, (0, 2), 1), (1, (1, 2, 3), 0))
    whole = decoded(module, asked)
    with torch.autocast("cpu", torch.bfloat16):
        half = decoded(module, asked)
    assert not torch.equal(half.mean, whole.mean)
    assert half.mean.dtype == half.log_variance.dtype == torch.float32
    torch.testing.assert_close(half.mean, whole.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(half.log_variance, whole.log_variance, atol=0.3, rtol=0)


def test_what_is_decided_does_not_hang_on_the_precision_of_a_run() -> None:
    """Evidence is small differences of large sums."""
    module, asked = build("medk2n").eval(), query((0, (0, 1, 2), 3), (1, (0, 2), 1))
    scene = module.scene(images(), asked.needed(2))
    fused = module.fuse(scene, asked)
    with torch.autocast("cpu", torch.bfloat16):
        again = module.fuse(scene, asked)
    assert torch.equal(fused.first, again.first)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(fused.steps, again.steps, strict=True))


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


@pytest.mark.parametrize("size", [(32, 48), (17, 33)], ids=["whole", "padded"])
@pytest.mark.parametrize("name", PROPOSED)
def test_absent_left_out_and_gated_out_are_the_same_bit_for_bit(name: str, size: tuple[int, int]) -> None:
    """All three are P_i = 0: what such a frame holds is never read, not even where the grid is padded."""
    given = images(*size)
    asked, fewer = query((0, (0, 1, 2), 3), (1, (0, 1, 2), 3)), query((0, (0, 2), 3), (1, (0, 2), 3))
    order = {3: (0,)}
    free = decoded(gates(build(name)).eval(), asked, given=given, order=order)
    absent = decoded(gates(build(name)).eval(), fewer, given=given, order=order)
    left_out = decoded(
        gates(build(name)).eval(), asked, given=given, order=order, bounds={(3, 1): limits(0.0, 0.0, size)}
    )
    gated = decoded(gates(build(name), shut=(1,)).eval(), asked, given=given, order=order)
    # an encoder is given another number of frames, whose products round in another order
    allowed = 0.0 if SMALL[name].get("encoder") is None else 1e-4
    for other in (left_out, gated):
        assert torch.equal(other.fused.presence, absent.fused.presence)
        torch.testing.assert_close(other.mean, absent.mean, atol=allowed, rtol=0)
        torch.testing.assert_close(other.log_variance, absent.log_variance, atol=10 * allowed, rtol=0)
    assert not torch.isclose(free.mean, absent.mean, atol=1e-4).all(), "the frame would matter"


@pytest.mark.parametrize("name", PROPOSED)
def test_open_gates_are_one_plain_pass_of_the_synthesizer(name: str) -> None:
    module = gates(build(name)).eval()
    rows = [(0, (0, 1, 2), 3), (1, (1, 3), 3)]
    made = decoded(module, query(*rows))
    presence = query(*rows).sources[:, :, None, None].float().expand(-1, -1, 32, 48)
    with torch.no_grad():
        encoded = module.encode(images(), torch.ones(2, M, dtype=torch.bool))
        mean, log_variance = module.propose(images(), torch.arange(2), presence, torch.tensor([3]), encoded)
    assert torch.equal(made.fused.presence, presence)
    torch.testing.assert_close(made.mean, mean[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(made.log_variance, log_variance[:, 0], atol=1e-4, rtol=0)


def test_what_was_never_taught_lets_everything_in() -> None:
    """A model that is stopped before its weights are taught is the synthesizer, and no worse."""
    module, asked = build("medk2n").eval(), query((0, (0, 1, 2), 3), (1, (0, 2), 1))
    with torch.no_grad():
        module.fusion.effi_weight.threshold.level.fill_(99.0)
    chosen = decoded(module, asked).fused
    assert [int(n) for n in (chosen.presence[:, :, 0, 0] > 0).sum(dim=1)] == [1, 1]
    module.fusion.taught.fill_(0)
    everything = decoded(module, asked).fused
    assert torch.equal(everything.presence, asked.sources[:, :, None, None].float().expand(-1, -1, 32, 48))


def test_closed_gates_give_the_key_frame_alone() -> None:
    module = gates(build("medk2n"), shut=(0, 1, 2)).eval()
    closed = decoded(module, query((0, (0, 1, 2), 3)))
    key = int(closed.fused.steps[0].source)
    alone = decoded(module, query((0, (key,), 3)))
    assert torch.equal(closed.mean, alone.mean)
    assert torch.equal(closed.log_variance, alone.log_variance)
    opened = decoded(gates(build("medk2n")).eval(), query((0, (0, 1, 2), 3)))
    assert not torch.isclose(opened.mean, alone.mean, atol=1e-4).all()


@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
def test_frames_are_added_in_a_forced_order(order: tuple[int, ...]) -> None:
    fused = decoded(build("medk2n").eval(), query((0, (0, 1, 2), 3)), order={3: order}).fused
    assert tuple(int(step.source) for step in fused.steps) == order


def test_a_frame_shut_out_between_two_others_leaves_no_trace() -> None:
    """Two rows of one call: in the second nothing is shut, so that both paths are walked at once."""
    module = gates(build("medk2n")).eval()
    asked, order = query((0, (0, 1, 2), 3), (1, (0, 1, 2), 3)), {3: (1, 2, 0)}
    shut = limits(0.0, 0.0)
    shut[1, 1] = 1.0
    mixed = decoded(module, asked, order=order, bounds={(3, 2): shut})
    without = decoded(module, query((0, (0, 1), 3)), order={3: (1, 0)})
    free = decoded(module, asked, order=order)
    torch.testing.assert_close(mixed.mean[0], without.mean[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.mean[1], free.mean[1], atol=1e-5, rtol=0)
    assert mixed.slope[0, 2].abs().max() == 0, "nor does it carry detail"
    torch.testing.assert_close(mixed.slope[0], without.slope[0])


def test_what_a_user_bounds_to_nothing_is_no_part_of_the_state() -> None:
    """The next frame is weighed against what was let in, not against what was refused."""
    module, asked, order = gates(build("medk2n")).eval(), query((0, (0, 1, 2), 3)), {3: (1, 2, 0)}
    scene = module.scene(images(), torch.ones(2, M, dtype=torch.bool))

    def state(bounds: dict[tuple[int, int], torch.Tensor]) -> int:
        with torch.no_grad():
            return int(module.fuse(scene, asked, Guidance(control=Control(order, bounds))).steps[2].before)

    def row(*members: int) -> int:
        return int(scene.proposals.rows(torch.tensor([0]), query((0, members, 3)).sources))

    assert state({}) == row(1, 2)
    assert state({(3, 2): limits(0.0, 0.5)}) == row(1, 2)
    assert state({(3, 2): limits(0.0, 0.0)}) == row(1)


def test_bounds_act_on_presence() -> None:
    """Held at 0 an input is not seen, at 1 as if it were free, inside a mask as one or the other."""
    asked, order = query((0, (0, 1), 3), (1, (0, 1), 3)), {3: (0,)}
    closed, opened = gates(build("medk2n"), shut=(1,)).eval(), gates(build("medk2n")).eval()

    def presence(module: torch.nn.Module, bound: torch.Tensor | None) -> torch.Tensor:
        return decoded(module, asked, order=order, bounds={} if bound is None else {(3, 1): bound}).fused.presence[:, 1]

    mask = limits(0.0, 1.0)
    mask[..., 24:] = 0.5  # lowest and highest: fixed there, free elsewhere
    for module, free in ((closed, 0.0), (opened, 1.0)):
        assert (presence(module, None) == free).all()
        assert (presence(module, limits(1.0, 1.0)) == 1).all(), "a fixed weight opens a closed gate"
        assert (presence(module, limits(0.0, 0.0)) == 0).all()
        assert (presence(module, limits(0.0, 1.0)) == free).all(), "a bound that allows everything changes nothing"
        masked = presence(module, mask)
        assert (masked[..., :24] == free).all()
        assert (masked[..., 24:] == 0.5).all()
    assert (presence(closed, limits(0.0, 0.5)) == 0).all(), "an upper bound opens nothing"
    assert (presence(opened, limits(0.0, 0.5)) == 0.5).all()
    halved = gates(build("medk2n"), part=0.26894).eval()
    assert torch.equal(presence(halved, limits(0.0, 0.5)), presence(halved, None)), "what the gate keeps anyway"
    torch.testing.assert_close(presence(halved, None), torch.full((2, 32, 48), 0.26894), atol=1e-4, rtol=0)


def test_a_bound_reaches_the_image() -> None:
    module, asked, order = gates(build("medk2n")).eval(), query((0, (0, 1, 2), 3), (1, (0, 1, 2), 3)), {3: (0,)}

    def image(share: float | None) -> torch.Tensor:
        bounds = {} if share is None else {(3, 1): limits(share, share)}
        return decoded(module, asked, order=order, bounds=bounds).mean

    free, without = image(None), decoded(module, query((0, (0, 2), 3), (1, (0, 2), 3)), order=order).mean
    torch.testing.assert_close(image(1.0), free, atol=1e-5, rtol=0)
    torch.testing.assert_close(image(0.0), without, atol=1e-5, rtol=0)
    assert not torch.isclose(image(0.5), free, atol=1e-4).all()
    assert not torch.isclose(image(0.5), without, atol=1e-4).all()


def test_where_a_frame_is_hidden_the_image_is_the_one_without_it() -> None:
    module, asked, order = gates(build("medk2n")).eval(), query((0, (0, 1, 2), 3), (1, (0, 1, 2), 3)), {3: (0,)}
    mask = limits(0.0, 1.0)
    mask[:, :, :, :24] = 0
    made = decoded(module, asked, order=order, bounds={(3, 1): mask})
    without = decoded(module, query((0, (0, 2), 3), (1, (0, 2), 3)), order=order)
    for one, other in ((made.mean, without.mean), (made.log_variance, without.log_variance)):
        torch.testing.assert_close(one[..., :24], other[..., :24], atol=1e-5, rtol=0)
    assert not torch.isclose(made.mean[..., 24:], without.mean[..., 24:], atol=1e-4).all()


def test_bounds_of_two_inputs_hold_each_for_itself_and_leave_other_targets_alone() -> None:
    module, order = gates(build("medk2n")).eval(), {3: (0,)}
    bounds = {(3, 1): limits(0.0, 0.0), (3, 2): limits(0.5, 0.5)}
    rows = [(0, (0, 1, 2), 3), (0, (0, 1, 2), 1), (1, (0, 1, 2), 1)]
    beside = decoded(module, query(*rows), order=order, bounds=bounds)
    assert beside.fused.presence[0, :, 0, 0].tolist() == [1.0, 0.0, 0.5, 0.0]
    assert (beside.fused.presence[1:, :3] == 1).all()
    alone = decoded(module, query(*rows[1:]), order=order)
    torch.testing.assert_close(beside.mean[1:], alone.mean, atol=1e-5, rtol=0)
    noisy = images()
    noisy[0, 1] = torch.rand(3, 32, 48)
    again = decoded(module, query(rows[0]), given=noisy, order=order, bounds=bounds)
    torch.testing.assert_close(again.mean[0], beside.mean[0], atol=1e-5, rtol=0)


def test_a_frame_in_doubt_gives_the_answer_between() -> None:
    """P y(C + i) + (1 - P) y(C), and the same of the predicted error; another frame's doubt is its own."""
    rows, order = [(0, (0, 1, 2), 3)], {3: (0, 1, 2)}
    made = decoded(gates(build("medk2n"), part=0.3).eval(), query(*rows), order=order)
    assert made.fused.presence[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.3, 0.3, 0.0])
    module = gates(build("medk2n")).eval()
    mean, variance = 0.0, 0.0
    for members, share in (((0,), 0.49), ((0, 1), 0.21), ((0, 2), 0.21), ((0, 1, 2), 0.09)):
        alone = decoded(module, query((0, members, 3)))
        mean, variance = mean + share * alone.mean, variance + share * alone.log_variance.exp()
    torch.testing.assert_close(made.mean, mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(made.log_variance.exp(), variance, atol=1e-5, rtol=0)


def test_at_most_two_frames_are_in_doubt() -> None:
    """Each doubles the passes; whoever comes later is in or out."""
    module, asked = gates(build("medk2n"), part=0.3).eval(), query((0, (0, 1, 2, 3), 3))
    made = decoded(module, asked, order={3: (0, 1, 2, 3)})
    assert made.fused.presence[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.3, 0.3, 0.0])


@pytest.mark.parametrize("part", [1.0, 0.3], ids=["whole", "doubt"])
@pytest.mark.parametrize("name", ["medk2n", "medk2n, conv"])
def test_following_a_plan_is_what_was_decided(name: str, part: float) -> None:
    module = gates(build(name), shut=(2,), part=part).eval()
    rows = [(b, (0, 1, 2), j) for j in (3, 1) for b in (0, 1)]
    asked = query(*rows)
    scene = module.scene(images(), torch.ones(2, M, dtype=torch.bool))
    plan = module.decide(scene, asked)
    assert set(plan) == {1, 3}
    decided, followed = decoded(module, asked, study=True), decoded(module, asked, plan=plan)
    assert torch.equal(decided.fused.presence, followed.fused.presence)
    assert torch.equal(decided.mean, followed.mean)
    for step, again in zip(decided.fused.steps, followed.fused.steps, strict=True):
        assert torch.equal(step.source, again.source)
        assert torch.equal(step.gate, again.gate)
    one_slice = decoded(module, query(rows[1], rows[3]), plan=plan)
    torch.testing.assert_close(one_slice.mean, followed.mean[[1, 3]], atol=1e-5, rtol=0)


def test_a_study_decides_once_for_all_its_slices() -> None:
    module = build("medk2n").eval()
    asked = query(*[(b, (0, 1, 2), j) for j in (3, 0) for b in (0, 1)])
    together, apart = (decoded(module, asked, study=study).fused for study in (True, False))
    for step in together.steps:
        for told in (step.source, step.weight, step.gate):
            assert torch.equal(told[[0, 2]], told[[1, 3]])
    assert not torch.equal(apart.steps[0].weight[[0, 2]], apart.steps[0].weight[[1, 3]])


def counted(module: torch.nn.Module, call: Callable[[], object]) -> list[tuple[float, ...]]:
    """Every pass of the synthesizer that a call makes: presence in a corner, and what marks the sample."""
    seen: list[tuple[float, ...]] = []

    def note(_: object, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        seen.extend(map(tuple, torch.cat([given[1][:, :, 0, 0], given[0].sum((1, 2, 3, 4))[:, None]], 1).tolist()))

    hook = module.trunk.register_forward_hook(note)
    call()
    hook.remove()
    return seen


def test_one_pass_serves_all_targets_that_let_in_the_same_frames() -> None:
    module = gates(build("medk2n")).eval()
    asked = query(*[(b, (0, 2, 3), t) for t in range(M) for b in range(2)])
    plan = module.decide(module.scene(images(), torch.ones(2, M, dtype=torch.bool)), asked)
    assert len(counted(module, lambda: decoded(module, asked, plan=plan))) == 2
    key = plan[1][0].source
    other = next(step.source for step in plan[1] if step.source != key)
    shut = {(1, other): limits(0.0, 0.0)}
    assert len(counted(module, lambda: decoded(module, asked, plan=plan, bounds=shut))) == 4, "one target apart"


def test_the_fusion_looks_at_no_set_of_frames_twice() -> None:
    module = build("medk2n").eval()
    scene = module.scene(images(), torch.ones(2, M, dtype=torch.bool))
    asked = query(*[(b, (0, 1, 2), t) for t in range(M) for b in range(2)])
    passes = counted(module, lambda: module.fuse(scene, asked))
    assert len(passes) == len(set(passes))
    assert len(passes) <= 2 * (2**3 - 1), "however many targets ask"


@pytest.mark.parametrize("name", ENCODING)
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


@pytest.mark.parametrize("sources", [(2,), (0, 1), (0, 2, 3), (0, 1, 2, 3)])
def test_the_base_image_is_least_squares_in_what_was_let_in(sources: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((900, M)) @ rng.standard_normal((M, M)) * 0.1 + 0.4
    mean, deviation = (
        torch.tensor(v, dtype=torch.float32)[:, None].expand(M, M) for v in (values.mean(0), values.std(0))
    )
    correlation = torch.tensor(np.corrcoef(values.T), dtype=torch.float32)
    maps = LinearMaps(Statistics(mean, deviation, correlation, deviation[:, 0] ** 2))
    members = query((0, sources, 1)).sources
    slope, level = (x[0].numpy() for x in maps(members, torch.tensor([1])))
    system = np.column_stack([values[:, list(sources)], np.ones(len(values))])
    fitted = system @ np.linalg.lstsq(system, values[:, 1], rcond=None)[0]
    np.testing.assert_allclose(values @ slope + level, fitted, atol=2e-4)
    assert (slope[[i for i in range(M) if i not in sources]] == 0).all()


def test_the_predicted_error_is_learned_level_and_place_alike() -> None:
    """Adam moves a weight by no more than its rate: with logits as they come the variance stayed where it began."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = TaskHeadNet(8, 8, torch.full((M,), 0.5))
    e, target = torch.randn(M, 8, generator=generator), torch.arange(M)
    features = torch.randn(2, 8, 16, 16, generator=generator).sign()
    noisy = (features[:, :1] > 0).expand(-1, M, -1, -1).flatten(0, 1)
    optimiser = torch.optim.AdamW(heads.parameters(), lr=3e-3)
    for _ in range(250):
        mean, log_variance = (x.flatten(0, 1) for x in heads(features, e, target))
        truth = 0.5 + torch.where(noisy, 0.2, 0.02) * torch.randn(mean.shape, generator=generator)
        optimiser.zero_grad()
        error = gaussian_nll(mean, log_variance, truth, torch.ones_like(noisy)) + (mean - truth).abs().mean()
        error.mean().backward()
        optimiser.step()
    deviation = heads(features, e, target)[1].flatten(0, 1).detach().mul(0.5).exp()
    assert float(deviation[noisy].mean()) == pytest.approx(0.2, rel=0.2)
    assert float(deviation[~noisy].mean()) == pytest.approx(0.02, rel=0.4)


def test_the_variance_is_that_of_a_mixture() -> None:
    """Two heads that are as sure as each other and 0.4 apart: their own variance, and the spread of the two."""
    net = TaskHeadNet(8, 4, torch.tensor([0.5, 0.1]))
    with torch.no_grad():
        for layer in (net.seen, net.level, net.doubted):
            layer.weight.zero_()
            layer.bias.zero_()
        net.level.bias.view(2, 2)[:, 0] = torch.tensor([-0.2, 0.2])
        net.doubted.bias.view(2, -1)[:, -1] = (np.log(0.01) - _START) / _LOGITS
        mean, log_variance = net(torch.randn(3, 8, 16, 16), torch.randn(2, 4), torch.arange(2))
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.1])[None, :, None, None].expand_as(mean))
    torch.testing.assert_close(log_variance.exp(), torch.full_like(mean, 0.01 + 0.2**2))


def test_training_starts_at_the_mean_of_the_target_and_at_an_error_of_a_tenth() -> None:
    torch.manual_seed(0)
    heads = TaskHeadNet(8, 16, torch.tensor([0.2, 0.7, 0.4, 0.5]))
    with torch.no_grad():
        mean, log_variance = heads(torch.randn(2, 8, 16, 16), 0.5 * torch.randn(M, 16), torch.arange(M))
    np.testing.assert_allclose(mean.mean(dim=(0, 2, 3)), [0.2, 0.7, 0.4, 0.5], atol=0.15)
    assert log_variance.mean() == pytest.approx(-4.6, abs=0.7)


def test_image_and_variance_do_not_teach_each_other() -> None:
    """Hard voxels are not starved, and no confidence is bought with the image."""
    module = build("medk2n").eval()
    presence = torch.ones(1, M, 32, 48)
    made = module.propose(images(b=1), torch.zeros(1, dtype=torch.long), presence, torch.arange(M))
    reached = []
    for x in made:
        module.zero_grad()
        x.square().sum().backward(retain_graph=True)
        moved = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        reached.append(moved)
    image, variance = reached
    assert any(n.startswith("trunk.") for n in image)
    assert {n.split(".")[1] for n in variance} == {"doubt", "doubted"}
    assert not image & variance


def test_what_is_coarse_or_deep_starts_faint_beside_what_it_is_added_to() -> None:
    torch.manual_seed(0)
    module = fresh("medk2n, conv")
    deep = [block.conv2 for block in module.encoder.stage.values()]
    with torch.no_grad():
        for conv in deep:
            assert 0.05 < conv(torch.randn(2, conv.in_channels, 16, 16)).square().mean().sqrt() < 0.3
        for join in module.trunk.join.values():
            assert join(torch.randn(2, join.in_channels, 16, 16)).square().mean().sqrt() < 0.3


def test_the_norm_sees_one_voxel_at_a_time() -> None:
    from medk2n.models.layers.blocks import ChannelNorm

    x = torch.randn(2, 8, 12, 10)
    norm = ChannelNorm(8)
    torch.testing.assert_close(norm(x)[..., 3:9, 2:7], norm(x[..., 3:9, 2:7]), atol=1e-6, rtol=0)


def test_weights_and_presence_stay_within_their_bounds() -> None:
    module = build("medk2n").eval()
    for parameter in module.fusion.parameters():
        parameter.data *= 20.0
    asked = query((0, (0, 1, 2, 3), 1), (1, (0, 1), 2))
    fused = decoded(module, asked).fused
    assert ((fused.presence >= 0) & (fused.presence <= 1)).all()
    assert (fused.presence[~asked.sources] == 0).all()
    assert [len(step.rows) for step in fused.steps] == [2, 2, 1, 1], "the second query has fewer steps"
    for step in fused.steps:
        assert (step.weight.abs() <= MOST_DB).all()
        assert ((step.gate >= 0) & (step.gate <= 1)).all()


def test_evaluation_leaves_every_buffer_alone() -> None:
    module = build("medk2n").eval()
    before = {name: b.clone() for name, b in module.named_buffers()}
    with torch.no_grad():
        module(images(), query((0, (0, 1, 2), 3)))
    assert {name.split(".")[0] for name in before} == {"fusion", "heads", "linear_maps"}
    assert all(torch.equal(before[name], b) for name, b in module.named_buffers())


def test_frames_come_in_the_order_of_their_weights_in_the_first_look() -> None:
    """Six models, four frames each: a wrong rule would be right by chance once in 24^6 times."""
    orders = []
    for seed in range(6):
        module = build("medk2n", seed).eval()
        fused = decoded(module, query((0, (0, 1, 2, 3), 3))).fused
        first = fused.first[0].tolist()
        orders.append([int(step.source[0]) for step in fused.steps])
        assert orders[-1] == sorted(range(4), key=lambda i: -round(first[i], 2))
        assert len({round(x, 2) for x in first}) == 4, "the trial needs weights that differ"
        assert float(fused.steps[0].weight[0]) == first[orders[-1][0]]
    assert len(set(map(tuple, orders))) > 3


def test_a_plan_is_of_the_study_and_not_of_its_first_slice() -> None:
    module = build("medk2n").eval()
    uneven = images(b=4) * torch.linspace(0.2, 1, 4)[:, None, None, None, None]
    asked = query(*[(b, (0, 1, 2), 3) for b in range(4)])
    everywhere = torch.ones(4, M, dtype=torch.bool)
    with torch.no_grad():
        one, other = (module.decide(module.scene(given, everywhere), asked)[3] for given in (uneven, uneven.flip(0)))
        first = module.decide(module.scene(uneven[:1], everywhere[:1]), query((0, (0, 1, 2), 3)))[3]
    assert [step.source for step in one] == [step.source for step in other]
    for a, b in zip(one, other, strict=True):
        assert (a.weight, a.gate) == pytest.approx((b.weight, b.gate), abs=1e-4)
    assert abs(first[0].weight - one[0].weight) > 1e-3, "the trial needs slices that differ"

"""Every part of Med-K2N can be taken away: that says something else, and is put back bit for bit."""

from contextlib import suppress

import pytest
import torch

from medk2n import registry
from medk2n.config.params import read_params
from medk2n.evaluation.neutralise import PARTS
from medk2n.models._spec import Query, Statistics
from medk2n.models.medk2n import MedK2N
from medk2n.models.medk2n_parts import evidence
from medk2n.models.medk2n_parts.progressive_fusion import Fused, Guidance
from medk2n.models.medk2n_parts.task_head_net import TaskHeadNet

M = 3


@pytest.fixture
def module() -> MedK2N:
    spec = registry.resolve("models", "medk2n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = {"widths": [8, 8, 8, 8, 8], "embedding": 8}
        module = spec.build(read_params(spec.params, params), M, Statistics.neutral(M))
        for p in module.parameters():
            p.data += 0.3 * torch.randn_like(p)
    module.fusion.taught.fill_(1)
    module.fusion.effi_weight.threshold.softness.data.fill_(3)
    return module.eval().requires_grad_(False)


def fused(module: MedK2N, b: int = 4) -> Fused:
    """All decisions on some slices, one target each from both other frames."""
    images = torch.rand(b, M, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    sources = torch.ones(b, M, dtype=torch.bool)
    target = torch.arange(b) % M
    sources[torch.arange(b), target] = False
    query = Query(torch.arange(b), sources, target)
    scene = module.scene(images, query.needed(b))
    return module.fuse(scene, query, Guidance())


def heard(module: MedK2N, part: str) -> dict[str, list]:
    """What the networks were told and what they answered with a part taken away."""
    seen: dict[str, list] = {}
    fusion = module.fusion
    with PARTS[part].taken_from(module):  # hooks that come later see what earlier ones made of it
        handles = [
            getattr(fusion, name).register_forward_hook(
                lambda _, given, out, name=name: seen.setdefault(name, []).append((given, out))
            )
            for name in ("pre_weight", "effi_weight")
        ]
        try:
            seen["fused"] = [fused(module)]
        finally:
            for handle in handles:
                handle.remove()
    return seen


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_taken_away_is_put_back(part: str, module: MedK2N) -> None:
    images = torch.rand(2, M, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    query = Query(torch.arange(2), torch.tensor([[True, True, False]] * 2), torch.tensor([2, 2]))
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    first, decided = module(images, query), fused(module)
    with suppress(KeyboardInterrupt), PARTS[part].taken_from(module):
        module(images, query)
        raise KeyboardInterrupt
    again, decided_again = module(images, query), fused(module)
    assert torch.equal(first.mean, again.mean)
    for step, same in zip(decided.steps, decided_again.steps, strict=True):
        assert torch.equal(step.weight, same.weight)
        assert torch.equal(step.gate, same.gate)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert "scene" not in vars(module)


def test_without_weights_every_frame_comes_in_by_name(module: MedK2N) -> None:
    found = heard(module, "weights")["fused"][0]
    assert all((step.weight == 1).all() for step in found.steps)
    assert (found.steps[0].source < found.steps[1].source).all()


def test_without_thresholds_the_sign_of_the_weight_decides(module: MedK2N) -> None:
    found = heard(module, "thresholds")["fused"][0]
    assert all(torch.equal(step.gate > 0.5, step.weight > 0) for step in found.steps[1:])


def test_without_doubt_a_frame_is_in_or_out(module: MedK2N) -> None:
    assert set(fused(module).presence.unique().tolist()) - {0.0, 1.0}, "the trial needs doubt"
    assert not set(heard(module, "doubt")["fused"][0].presence.unique().tolist()) - {0.0, 1.0}
    opened = heard(module, "gates")["fused"][0]
    assert opened.presence.flatten(2).amin(dim=2).sum(dim=1).tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("part", "facts"), [("own_look", range(16)), ("agreement", range(16, 42)), ("proposals", range(42, 50))]
)
def test_evidence_is_silent_where_it_is_read(module: MedK2N, part: str, facts: range) -> None:
    assert evidence.FACTS == 53
    seen, whole = heard(module, part), heard(module, "doubt")
    for (given, _), (before, _) in zip(seen["pre_weight"], whole["pre_weight"], strict=True):
        rest = [k for k in range(evidence.FACTS) if k not in facts]
        assert not given[0][:, list(facts)].any()
        assert given[0][:, rest].any()
        assert before[0][:, list(facts)].any()


@pytest.mark.parametrize("head", TaskHeadNet.HEADS)
def test_one_head_alone_makes_the_image(module: MedK2N, head: str) -> None:
    features = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(2))
    target = torch.tensor([0, 2])
    heads, e = module.heads, module.embeddings[target]
    k = heads.HEADS.index(head)
    view = (features, heads.wide(features))[k]
    seen, level = heads.seen(e).view(2, 2, 2, -1), heads.level(e).view(2, 2, 2)
    alone = (
        torch.einsum("pchw,nc->pnhw", view, seen[:, k, 0])
        + level[:, k, 0, None, None]
        + heads.mean[target][:, None, None]
    )
    with PARTS[f"{head}_head"].taken_from(module):
        torch.testing.assert_close(heads(features, e, target)[0], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(heads(features, e, target)[0], alone, atol=1e-3)


def test_without_neighbours_they_are_never_read(module: MedK2N) -> None:
    images = torch.rand(1, M, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    other = images.clone()
    other[:, :, [0, 2]] = 0.3
    query = Query(torch.tensor([0]), torch.tensor([[True, True, False]]), torch.tensor([2]))
    with PARTS["neighbours"].taken_from(module):
        assert torch.equal(module(images, query).mean, module(other, query).mean)
    assert not torch.equal(module(images, query).mean, module(other, query).mean)

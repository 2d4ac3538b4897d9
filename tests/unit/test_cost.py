"""The cost card: what is counted is what the network does, and the measurements have their places."""

import json
import operator
import os
from pathlib import Path

import pytest
import torch

from medk2n import checkpoint
from medk2n.cli.main import main
from medk2n.errors import SystemLimitError
from medk2n.inference.cost import SIZE, Bench, Card, Case, Row, measure, parameters, ratios
from medk2n.inference.memory import peaks_alone
from medk2n.inference.predictor import load_predictor
from medk2n.models.medk2n_parts.encoders.hiera import build_trunk

NAMES = ("ct", "t1c", "t1n", "t2w")
PLAIN = {"widths": [8, 8, 8, 8, 16], "embedding": 8, "slices": 3}
SMALL = PLAIN | {"encoder": {"name": "conv"}, "channels": [8, 8, 8, 16]}


def saved(folder: Path, model: str = "medk2n", **params: object) -> Path:
    statistics = checkpoint.Statistics(affine_maps={}, variance={}, typical_scaling={})
    config = checkpoint.ModelConfig(model=model, modalities=NAMES, spacing_mm=2.0, params=params, statistics=statistics)
    checkpoint.save(folder, checkpoint.build(config), config)
    return folder


@pytest.fixture(scope="module")
def told() -> list[tuple[int, int]]:
    """Progress of the card."""
    return []


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory, told: list[tuple[int, int]]) -> Card:
    folder = saved(tmp_path_factory.mktemp("model"), **SMALL)
    return measure(folder, progress=lambda *step: told.append(step), size=(32, 48), repeats=2)


def row(card: Card, *case: object) -> Row:
    return next(r for r in card.rows if Case(r.inputs, r.targets, r.apart) == Case(*case))


def test_every_number_of_inputs_and_targets_has_its_row(card: Card, told: list[tuple[int, int]]) -> None:
    assert [(r.inputs, r.targets) for r in card.rows if not r.apart] == [
        (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1),
    ]  # fmt: skip
    assert [(r.inputs, r.targets) for r in card.rows if r.apart] == [(2, 2)]
    assert told == [(k + 1, len(told)) for k in range(len(told))]


def test_k_inputs_are_encoded_k_times_whatever_is_asked(card: Card) -> None:
    assert all(r.encodes == r.inputs for r in card.rows)
    assert all(r.passes == (2 if r.apart else 1) for r in card.rows)


def test_targets_apart_have_as_many_passes_as_there_are_sets_of_inputs(tmp_path: Path) -> None:
    bench = Bench(load_predictor(saved(tmp_path, **PLAIN)), (16, 16))
    counted = {case: bench.count(case, lambda: None)[1:] for case in bench.cases()}
    for case, (encodes, passes) in counted.items():
        assert encodes == 0, "there is no encoder"
        assert passes == (min(case.targets, 2**case.inputs - 1) if case.apart else 1)
    assert bench.times(bench.cases()[:1], 1, lambda: None)[1] == {1: []}


def test_flops_grow_by_as_much_with_every_target_and_by_little_with_inputs(card: Card) -> None:
    one, two, three = (row(card, 1, n).gflop for n in (1, 2, 3))
    assert three - two == pytest.approx(two - one)
    assert 0 < two - one < 0.5 * one
    by_inputs = [row(card, k, 1).gflop for k in (1, 2, 3)]
    assert by_inputs[2] - by_inputs[1] == pytest.approx(by_inputs[1] - by_inputs[0], rel=1e-6)
    assert by_inputs[1] > by_inputs[0]


def test_flops_of_a_model_of_convolutions_are_those_of_its_convolutions(tmp_path: Path) -> None:
    bench = Bench(load_predictor(saved(tmp_path, "unet", widths=[8, 8, 8, 8, 8], slices=3)), (32, 48))
    flops = []

    def add(conv: torch.nn.Conv2d, _: object, out: torch.Tensor) -> None:
        flops.append(2 * out.numel() * conv.in_channels * conv.kernel_size[0] ** 2)

    for part in bench.module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(add)
    gflop, *counted = bench.count(Case(1, 2), lambda: None)
    assert gflop == pytest.approx(sum(flops) / 1e9)
    assert counted == [None, None]


def test_three_targets_of_the_bundled_model_cost_little_more_than_one() -> None:
    bench = Bench(load_predictor(checkpoint.find_model("default")), SIZE)
    for k, most in ((1, 2.2), (3, 1.5)):
        one, three = (bench.count(Case(k, n), lambda: None)[0] for n in (1, 3))
        assert 1 < three / one <= most


def test_times_and_memory_are_measured(card: Card) -> None:
    assert all(r.latency_ms > 0 and r.encoder_share > 0 for r in card.rows)  # a busy machine makes any share
    assert all(r.memory_mb > 0 for r in card.rows)


def test_frozen_weights_count_but_are_not_trained(tmp_path: Path) -> None:
    encoder = {"name": "hiera", "weights": "given", "adapt": "lora", "rank": 2}
    total, trainable = parameters(saved(tmp_path, **SMALL | {"encoder": encoder, "multiscale": {"scan": "none"}}))
    assert total - trainable == sum(p.numel() for p in build_trunk("nano").parameters())
    whole = parameters(saved(tmp_path / "conv", **SMALL))
    assert whole[0] == whole[1]


def test_ratios_pair_the_repeats() -> None:
    times = {Case(2, 1): [1.0, 2.0, 10.0], Case(2, 3): [2.0, 4.0, 1.0], Case(2, 3, True): [3.0, 6.0, 0.0]}
    (ratio,) = ratios(times | {Case(5, 1): [1.0, 1.0, 1.0]})
    assert (ratio.inputs, ratio.open, ratio.apart) == (2, 2.0, 3.0)
    assert ratios({Case(1, 1): [2.0], Case(1, 3): [3.0]})[0].apart is None


def test_info_shows_the_card_of_every_device(
    card: Card, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = []

    def stand_in(folder: Path, device: str, progress: object) -> Card:
        measured.append(device)
        return card

    monkeypatch.setattr("medk2n.inference.cost.measure", stand_in)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main(["info", "--cost", "--model", "default", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert measured == ["cpu", "cuda"]
    assert len(model["cost"]) == 2
    assert model["cost"][0]["rows"][0].keys() == Row.__dataclass_fields__.keys()
    assert model["cost"][0]["ratios"][0]["inputs"] == 1
    assert main(["info", "--cost", "--model", "default"]) == 0
    told = capsys.readouterr().out
    assert "encodes | passes |" in told
    assert "rows with several passes each target lets in" in told
    measured.clear()
    assert main(["info", "--model", "default"]) == 0
    assert not measured


@pytest.mark.parametrize("megabytes", [50, 200])
def test_memory_is_that_of_the_work_alone(megabytes: int) -> None:
    b"x" * (300 * 2**20)  # this process's own peak does not count
    idle, peak = peaks_alone(operator.mul, [(b"x", 1), (b"x", megabytes * 2**20)])
    assert peak - idle == pytest.approx(megabytes, abs=10)


def test_a_process_that_is_killed_is_told() -> None:
    with pytest.raises(SystemLimitError, match="memory was measured ended early"):
        list(peaks_alone(os._exit, [(9,)]))

"""V and the judge V' learn at the beginning of a run, from acquired images alone, and are frozen afterwards."""

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from medk2n.cli.main import main
from medk2n.config.schema import TrainConfig, load_config
from medk2n.data.batches import Batch
from medk2n.errors import ConfigError, StoppedError
from medk2n.identity import table
from medk2n.identity.identity import JUDGE, Identity, V
from medk2n.identity.texts import NOTHING
from medk2n.training import identity as identity_module
from medk2n.training import run as run_module
from medk2n.training.contender import Contender
from medk2n.training.identity import IdentityPhase, no_scan, scanned, with_nothing
from medk2n.training.lessons import medk2n as lesson_module
from medk2n.training.reading import FOLD, REST, TrainingData, read_data
from medk2n.training.run import resume, train
from medk2n.training.world import World

SMALL = [
    "modalities=[t1n, t1c, t2w]",
    "spacing_mm=1.5",
    "models=[{name: medk2n, params: {widths: [8, 8, 8, 8, 8], embedding: 8}}]",
    "batch={size: 2, crop: 32, draws: 1, most_sources: 2}",
    "teaching.held_out=0.3",
    "identity={share: 0.5, slices: 6, asked: 1.0}",
    "threads=1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six heads: dark fluid, the same with a bright rim, and bright fluid."""
    root = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[-1:1:6j, -1:1:40j, -1:1:36j]
    for k in range(6):
        head = (x**2 + y**2 + 0.3 * z**2 < 0.7).astype(float)
        fluid = (x - 0.05 * k) ** 2 + y**2 < 0.06
        rim = (x**2 + y**2 + 0.3 * z**2 > 0.45) & (head > 0)
        noise = head * rng.normal(0, 12, head.shape)
        t1n = head * (150 - 90 * fluid) + noise
        arrays = {"t1n": t1n, "t1c": np.where(rim, 250, t1n), "t2w": head * (90 + 120 * fluid) + noise}
        np.savez_compressed(root / f"p{k}.npz", **{n: a.clip(0, 255).astype(np.uint8) for n, a in arrays.items()})
    return root


def config(data: Path, *overrides: str) -> TrainConfig:
    return load_config("tiny", [f"data=['{data}']", "budget={steps: 8}", *SMALL, *overrides])


@pytest.fixture(scope="module")
def read(data: Path) -> TrainingData:
    return read_data(config(data), lambda *told: None)


def phase_of(data: Path, read: TrainingData, steps: int) -> IdentityPhase:
    return IdentityPhase(config(data, f"budget={{steps: {2 * steps}}}"), read, torch.device("cpu"))


def test_they_learn_to_name_subjects_that_they_never_saw(data: Path, read: TrainingData) -> None:
    phase, world = phase_of(data, read, 60), World()
    assert phase.progress == 0
    while phase.progress < 1:
        phase.step(world)
    made = phase.finish(world)
    assert phase.steps == 60
    told = made.described
    assert told.modalities == ("t1c", "t1n", "t2w")
    assert made.names[-1] == NOTHING
    assert told.calibration[V].volumes == 2 * 2 * 3, "two held-out subjects, three modalities, two grey scales"
    right = told.training["held_out_slices_named_right"]
    assert min(right.values()) > 0.7, right
    held_out = read.parts[FOLD][0][0].studies[0]
    images = np.stack([held_out.crop(z, 1).targets for z in range(1, 5)]).astype(np.float32) / 255
    for judge in (False, True):
        pooled = [made.probabilities(images[:, j], judge=judge) for j in range(3)]
        assert [max(p, key=p.__getitem__) for p in pooled] == list(told.modalities)
        noise = 0.5 + 0.2 * np.random.default_rng(0).standard_normal((4, 40, 36)).astype(np.float32)
        assert made.probabilities(noise.clip(0.01, 1), judge=judge)[NOTHING] > 0.5
    weights = [torch.cat([p.flatten() for p in made.nets[who].parameters()]) for who in (V, JUDGE)]
    assert not torch.allclose(*weights), "the judge is another network"
    assert all(not p.requires_grad for net in made.nets.values() for p in net.parameters())


def test_a_phase_goes_on_as_if_it_had_never_been_stopped(data: Path, read: TrainingData) -> None:
    world = World()
    whole, first, second = (phase_of(data, read, 4) for _ in range(3))
    for _ in range(4):
        whole.step(world)
    for _ in range(2):
        first.step(world)
    second.restore(*first.state())
    for _ in range(2):
        second.step(world)
    assert second.steps == whole.steps
    for name, tensor in whole.state()[0].items():
        assert torch.equal(tensor, second.state()[0][name]), name


def test_a_run_leaves_an_identity_and_asks_v_of_its_images(data: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []
    for name in ("causal_error", "metric_error"):
        error = getattr(lesson_module, name)
        monkeypatch.setattr(lesson_module, name, lambda *x, error=error: asked.append(error(*x)) or asked[-1])
    train(config(data, "teaching.weighing=0"), tmp_path / "run")
    identity = Identity.load(tmp_path / "run")
    assert identity.described.training["steps"] == 4
    assert len(asked) == 8 * 2, "both losses in every step"


def test_a_run_that_is_stopped_while_they_learn_goes_on(data: Path, tmp_path: Path, monkeypatch) -> None:
    step = IdentityPhase.step

    def stopping(self: IdentityPhase, world: World) -> dict[str, float]:
        if self.steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, world)

    train(config(data), tmp_path / "whole")
    monkeypatch.setattr(IdentityPhase, "step", stopping)
    with pytest.raises(StoppedError, match="medk2n train --resume"):
        train(config(data), tmp_path / "run")
    assert not Identity.of(tmp_path / "run")
    monkeypatch.setattr(IdentityPhase, "step", step)
    resume(tmp_path / "run")
    for name in ("model.safetensors", "identity/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_without_a_share_there_is_none(data: Path, tmp_path: Path) -> None:
    train(config(data, "identity.share=0", "budget={steps: 2}"), tmp_path / "run")
    assert not Identity.of(tmp_path / "run")


def test_learning_never_sees_the_fold_nor_a_synthetic_image(data: Path, read: TrainingData, monkeypatch) -> None:
    phase, asked = phase_of(data, read, 4), []
    draw = identity_module.draw_batch

    def watched(stores, *rest, **how):
        asked.append({id(s) for store in stores for s in store.studies})
        return draw(stores, *rest, **how)

    monkeypatch.setattr(identity_module, "draw_batch", watched)
    phase.step(World())
    rest, fold = ({id(s) for store in read.parts[part][0] for s in store.studies} for part in (REST, FOLD))
    assert asked == [rest, rest]
    assert not rest & fold


def test_a_text_that_is_missing_is_told_before_anything_is_learned(data: Path, read: TrainingData) -> None:
    settings = config(data, "identity.texts={t1n: ['']}")
    with pytest.raises(ConfigError, match=r"identity\.texts\.t1n"):
        IdentityPhase(settings, read, torch.device("cpu"))


BAD = {
    "no such folder": (["identity.encoder=NOWHERE"], "text encoder NOWHERE: config.json, model.safetensors"),
    "a folder of something else": (["identity.encoder=EMPTY"], "EMPTY: config.json, model.safetensors"),
    "nothing is said": (["identity.texts={t1n: []}"], "no text says what t1n looks like; describe it"),
    "an empty text": (["identity.texts={t1n: ['  ']}"], "identity.texts.t1n: expected sentences of 1 to"),
    "a book": ([f"identity.texts={{t1n: ['{'dark ' * 500}']}}"], "expected sentences of 1 to 2000 letters"),
    "of a modality that is not learned": (["identity.texts={dwi: [bright]}"], "dwi not among modalities (t1c, t1n,"),
    "no list": (["identity.texts={t1n: dark}"], "identity.texts.t1n"),
    "a modality that is none": (["modalities=[t1n, swi]"], "swi"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_the_texts_is_one_line_before_the_data_are_read(
    data: Path, tmp_path: Path, monkeypatch, capsys, words: list[str], message: str
) -> None:
    monkeypatch.setattr(run_module, "read_data", lambda *told: pytest.fail("the data were read"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    settings = [word for text in (*SMALL, "budget={steps: 4}", *words) for word in ("--set", text)]
    assert main(["train", "--preset", "tiny", "--data", str(data), "--out", "run", "--device", "cpu", *settings]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_shipped_table_that_was_altered_is_one_line(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(table.SHIPPED, tmp_path / "shipped")
    (tmp_path / "shipped" / table.VECTORS).write_bytes((table.SHIPPED / table.VECTORS).read_bytes()[:-2] + b"xx")
    monkeypatch.setattr(table, "read_table", partial(table.read_table, tmp_path / "shipped"))
    settings = [word for text in (*SMALL, "budget={steps: 4}") for word in ("--set", text)]
    out = str(tmp_path / "run")
    assert main(["train", "--preset", "tiny", "--data", str(data), "--out", out, "--device", "cpu", *settings]) == 2
    told = capsys.readouterr().err
    assert "texts.safetensors does not fit its hash in texts.json; make it anew with recipes/texts.py" in told
    assert told.count("\n") == 1


def test_embeddings_begin_from_the_texts_and_the_switch_takes_them_away(data: Path, read: TrainingData) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        on, off = (
            Contender.of(c.models[0], c, read.statistics, "cpu")
            for c in (config(data), config(data, "identity.embeddings=false"))
        )
    assert (on.params.text, off.params.text) == (384, 0)
    texts = on.module.parametrizations.embeddings[0]
    with torch.no_grad():
        residual = on.module.parametrizations.embeddings.original
        assert torch.allclose(on.module.embeddings, residual + texts.texts @ texts.projection.weight.T)
        texts.projection.weight.zero_()
        assert torch.equal(on.module.embeddings, residual), "with no projection it is the residual, bit for bit"
    assert "parametrizations" not in "".join(off.module.state_dict())
    assert not texts.texts.requires_grad


def test_other_scanners_keep_the_order_of_greys_and_the_patient() -> None:
    ramp = torch.linspace(0.05, 1, 64)[None, None].expand(5, 8, 64).clone()
    ramp[:, :2] = 0
    made = scanned(ramp, torch.Generator().manual_seed(1))
    assert torch.equal(made > 0, ramp > 0)
    assert made.max() <= 1
    level = made[:, 2:].mean(dim=1)
    assert (level[:, 48:].mean(dim=1) > level[:, :16].mean(dim=1)).all()
    assert not torch.allclose(made[0], made[1], atol=0.01)


def test_each_third_slice_comes_with_an_image_of_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    acquired = torch.tensor([[True, False], [True, True], [True, True], [True, True]])
    images = torch.rand(4, 2, 1, 16, 16) + 0.01
    images[~acquired] = torch.nan
    batch = Batch.__new__(Batch)
    for name, value in (("images", images), ("acquired", acquired), ("foreground", torch.ones(4, 16, 16) > 0)):
        object.__setattr__(batch, name, value)
    seen, there = with_nothing(batch, rng)
    assert there[:, 2].tolist() == [True, False, False, True]
    assert torch.isfinite(seen).all()
    assert (seen[~there] == 0).all()
    assert (no_scan(torch.zeros(40, 8, 8) > 0, rng).amax(dim=(1, 2)) > 0).any(), "some fill the whole image"

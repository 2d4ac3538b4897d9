"""A run may begin with the weights of a finished model: they are what it starts from, and its history comes along."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from medk2n import checkpoint
from medk2n.cli.scoring import already_learned
from medk2n.config.draft import read_draft
from medk2n.data.discover import discover
from medk2n.errors import CheckpointError, ConfigError, StoppedError
from medk2n.training import run
from medk2n.training.begin import Start, taken_over
from medk2n.training.lessons import medk2n as lesson_module
from medk2n.training.log import METRICS, VALIDATION, read_log

SMALL = ["batch={size: 2, crop: 32, draws: 1, targets: 2, most_sources: 2}", "threads=1", "teaching.held_out=0.5"]
SIZES = [
    "modalities=[t1n, t1c, t2w]",
    "spacing_mm=1.5",
    "models=[{name: medk2n, params: {widths: [8, 8, 8, 8, 8], embedding: 8}},"
    " {name: unet, params: {widths: [8, 8, 8, 8, 8]}}]",
    "identity={share: 0.5, slices: 6}",
    "licence=CC-BY-NC-4.0 (ours)",
]
WEIGHING = ("fusion.", "heads.doubt")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four subjects to learn from and one to watch, three contrasts."""
    root, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    (root / "train").mkdir()
    (root / "val").mkdir()
    for name in ("train/p0", "train/p1", "train/p2", "train/p3", "val/p4"):
        head = np.zeros((5, 40, 36))
        head[:, 4:-4, 4:-4] = rng.uniform(60, 120, (5, 32, 28))
        arrays = {"t1n": head, "t1c": 0.7 * head, "t2w": np.where(head > 0, 250 - head, 0)}
        np.savez_compressed(root / name, **{modality: a.astype(np.uint8) for modality, a in arrays.items()})
    return root


def draft(data: Path, *overrides: str, steps: int = 3):
    where = [f"data=['{data}/train']", f"validation={data}/val", f"budget={{steps: {steps}}}"]
    return read_draft("tiny", [*where, *SMALL, *overrides])


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished model, its reference and its identity."""
    return run.train(draft(data, *SIZES, steps=12), tmp_path_factory.mktemp("run") / "first")


def begin(data: Path, model: Path, out: Path, *overrides: str, steps: int = 3) -> Path:
    return run.train(draft(data, f"begin_from='{model}'", *overrides, steps=steps), out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder)[0].state_dict()


def test_it_begins_with_the_models_weights_and_carries_all_that_the_model_has(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {}

    def turn(contender) -> bool:
        if contender.name not in first:
            first[contender.name] = [
                {name: t.clone() for name, t in module.state_dict().items()}
                for module in (contender.module, contender.averaged)
            ]
        return step(contender)

    step = run.Contender.turn
    monkeypatch.setattr(run.Contender, "turn", turn)
    asked, error = [], lesson_module.causal_error
    monkeypatch.setattr(lesson_module, "causal_error", lambda *x: asked.append(error(*x)) or asked[-1])
    out = begin(data, model, tmp_path / "run", "identity.asked=1", "teaching.weighing=0")
    for name, folder in (("medk2n", model), ("unet", model / checkpoint.REFERENCE_UNET)):
        for state in first[name]:
            assert all(torch.equal(state[key], tensor) for key, tensor in weights(folder).items())
    rows = read_log(out / METRICS)
    assert {p.model for p in rows if p.name == VALIDATION and p.step == 0} == {"medk2n", "unet"}
    assert len(asked) == 3, "the model's own V, in every step of the synthesizer"
    for name in ("config.json", "model.safetensors"):
        assert (out / "identity" / name).read_bytes() == (model / "identity" / name).read_bytes()
    old, new = checkpoint.read_config(model), checkpoint.read_config(out)
    assert (new.modalities, new.params, new.statistics) == (old.modalities, old.params, old.statistics)
    assert new.licence == old.licence == "CC-BY-NC-4.0 (ours)"
    begun = new.training[checkpoint.BEGUN]
    assert (begun["model"], begun["sha256"], begun["training"]) == ("first", old.sha256, old.training)
    reference = checkpoint.read_config(out / checkpoint.REFERENCE_UNET).training[checkpoint.BEGUN]
    assert reference["sha256"] == checkpoint.read_config(model / checkpoint.REFERENCE_UNET).sha256


@pytest.mark.parametrize(("weighing", "learns"), [("1.0", True), ("0.0", False)])
def test_one_part_alone_may_learn_and_the_other_keeps_every_bit(
    weighing: str, learns: bool, data: Path, model: Path, tmp_path: Path
) -> None:
    out = begin(data, model, tmp_path / "run", f"teaching.weighing={weighing}")
    before, after = weights(model), weights(out)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved
    if learns:
        assert all(name.startswith(WEIGHING) for name in moved)
    else:
        assert not any(name.startswith("fusion.") for name in moved)


def test_what_the_model_is_not_is_refused(data: Path, model: Path, tmp_path: Path) -> None:
    for wrong, told in (
        ("modalities=[t1n, t2w]", r"modalities: t1n t2w, and the medk2n of first.* has t1c t1n t2w; leave modalities"),
        ("spacing_mm=2", r"spacing_mm: 2\.0, and .* has 1\.5"),
        ("models.medk2n.params.embedding=16", r"medk2n\.params\.embedding: 16, and .* has 8"),
        ("models.unet.params.widths=[8, 8, 8, 8, 16]", r"unet\.params\.widths: 8 8 8 8 16, and the unet of first"),
        ("models=[{name: unet}]", r"first is a medk2n, and the run's first model is unet; begin with --model medk2n"),
        ("licence=Apache-2.0", r"drops BY, NC of first, which is 'CC-BY-NC-4\.0 \(ours\)'.*leave licence out"),
    ):
        with pytest.raises(ConfigError, match=told):
            begin(data, model, tmp_path / "run", wrong)
    with pytest.raises(ConfigError, match="holds the model that the run begins from"):
        run.train(draft(data, f"begin_from='{model}'"), model, overwrite=True)
    assert weights(model), "and it is still there"
    stricter = taken_over(draft(data, f"begin_from='{model}'", "licence=CC-BY-NC-SA-4.0"))
    assert stricter.config.licence == "CC-BY-NC-SA-4.0"
    assert stricter.decided_by("modalities") == "model"


def test_v_names_the_runs_modalities_first(data: Path, model: Path) -> None:
    config = taken_over(draft(data, f"begin_from='{model}'")).config
    start = Start.of(config)
    image = torch.rand(2, 32, 32)
    turned = config.model_copy(update={"modalities": ["t2w", "t1c"]})
    with torch.no_grad():
        plain, other = start.v(config)(image), start.v(turned)(image)
    assert torch.equal(other, plain[:, [2, 0, 1, 3]])
    with pytest.raises(ConfigError, match=r"V of first does not know ct; set identity\.asked=0"):
        start.v(config.model_copy(update={"modalities": ["ct", "t1c"]}))


def test_a_stopped_run_ends_in_the_same_bits_and_knows_its_beginning(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = begin(data, model, tmp_path / "straight", "teaching.weighing=0.5", steps=6)
    left, step = [7], run._counted

    def counted(*given):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*given)

    monkeypatch.setattr(run, "_counted", counted)
    with pytest.raises(StoppedError):
        begin(data, model, tmp_path / "run", "teaching.weighing=0.5", steps=6)
    monkeypatch.setattr(Start, "hashes", property(lambda self: {}))
    with pytest.raises(CheckpointError, match="is no longer the same; bring it back"):
        run.resume(tmp_path / "run")
    monkeypatch.undo()
    run.resume(tmp_path / "run")
    for name in ("model.safetensors", "reference/unet/model.safetensors", "identity/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (straight / name).read_bytes(), name


def test_subjects_learned_from_before_count_as_learned_from(data: Path, model: Path, tmp_path: Path) -> None:
    out = begin(data, model, tmp_path / "run", "subjects=[p0, p1, p4]", steps=1)
    found = discover(data / "train")
    assert already_learned(checkpoint.read_config(out), data / "train", found) == "p0, p1, p2, ..."


def test_a_modality_that_the_data_lack_stays_known(data: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for k in range(2):
        with np.load(data / "train" / f"p{k}.npz") as arrays:
            np.savez_compressed(tmp_path / "two" / f"q{k}.npz", t1n=arrays["t1n"], t2w=arrays["t2w"])
    fewer = [f"data=['{tmp_path}/two']", "validation=null"]
    with pytest.warns(UserWarning, match="no training subject has t1c: the model goes on knowing it"):
        out = begin(data, model, tmp_path / "run", *fewer)
    assert checkpoint.read_config(out).statistics == checkpoint.read_config(model).statistics
    with pytest.raises(ConfigError, match=r"V cannot learn to name it; set identity\.share=0"):
        begin(data, model, tmp_path / "run2", *fewer, "identity.share=0.1")


def test_a_reference_that_the_model_lacks_is_fresh_and_told(data: Path, model: Path, tmp_path: Path) -> None:
    alone = model / checkpoint.REFERENCE_UNET
    more = "models=[{name: unet}, {name: mm_synthesis, params: {widths: [4, 8, 8], latent: 4}}]"
    with pytest.warns(UserWarning, match="unet has no mm_synthesis: fresh weights"):
        out = begin(data, alone, tmp_path / "run", more, "identity.share=0", steps=1)
    assert checkpoint.BEGUN not in checkpoint.read_config(out / "reference" / "mm_synthesis").training

"""`recipes/gpu` in miniature on the CPU: pack, bodies, check, train, resume; and its physics against the cohort's."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml

from medk2n.config.schema import Optimiser
from medk2n.data.discover import discover
from medk2n.data.stored import Stored
from medk2n.data.working import load_working
from medk2n.errors import ConfigError, DatasetError, UsageError
from medk2n.phantom import cohort
from medk2n.phantom.acquire import ideal_image, voxel_blur
from medk2n.phantom.anatomy import load_icbm152
from medk2n.phantom.body import build_body
from medk2n.phantom.signal import FIXED
from medk2n.phantom.tissues import draw_tissues
from medk2n.training.device_damage import Chance

KIT = Path(__file__).parents[2] / "recipes" / "gpu"
NAMES = ("t1c", "t1n", "t2f", "t2w")
CPU = torch.device("cpu")
SMALL = [
    "--batch=2", "--crop=32", "--widths=8,8,8,8,8", "--room=30", "--watched=1", "--device=cpu", "--minutes=1",
    "--weighing=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def kit() -> Iterator[dict[str, ModuleType]]:
    """The recipes as modules."""
    sys.path.insert(0, str(KIT))
    names = ("pack", "digital", "loaded", "learner", "kept", "train", "check")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(KIT))
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of npz files, and a list of sets."""
    root = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for folder, ids in (("learn", ["free-1", "other-1", "left-out"]), ("watch", ["seen-1"])):
        (root / folder).mkdir()
        for name in ids:
            images = {m: np.zeros((6, 40, 36), np.uint8) for m in NAMES}
            for image in images.values():
                image[1:, 6:-6, 5:-5] = rng.integers(20, 250, (5, 28, 26))
            np.savez_compressed(root / folder / f"{name}.npz", **images)
    plan = {
        "modalities": list(NAMES),
        "spacing_mm": 1.5,
        "sets": [
            {"name": "real", "folder": "watch", "part": "val"},
            {"name": "real", "folder": "learn", "part": "train", "licence": "a licence", "free": ["free-*"],
             "leave_out": ["left-out", "other-1:t1c"]},
        ],
    }  # fmt: skip
    (root / "sets.yaml").write_text(yaml.safe_dump(plan))
    return root


@pytest.fixture(scope="module")
def packed(kit: dict[str, ModuleType], scans: Path) -> Path:
    kit["pack"].write(scans, scans / "pack", sets=scans / "sets.yaml", limit=20_000)
    return scans / "pack"


@pytest.fixture(scope="module")
def body() -> object:
    return build_body(load_icbm152(), cohort.subject_rng(7, 1), 5.0)


def test_a_pack_holds_what_training_reads(kit: dict[str, ModuleType], scans: Path, packed: Path) -> None:
    found = {p.id: p for p in kit["pack"].read(packed)}
    assert set(found) == {"free-1", "other-1", "seen-1"}
    assert len(list(packed.glob("part-*.zip"))) > 1
    assert [p.id for p in kit["pack"].read(packed, free_only=True)] == ["free-1"]
    assert (found["free-1"].licence, found["seen-1"].part, found["other-1"].part) == ("a licence", "val", "train")
    subject = next(s for s in discover(scans / "learn") if s.id == "free-1")
    wanted, got = Stored.of(load_working(subject, 1.5), NAMES), found["free-1"].stored
    assert got.channels == wanted.channels
    assert found["other-1"].stored.channels[0] == ()
    whole = wanted.slices[:, 0].any(axis=0)
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    box = wanted.slices[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.testing.assert_array_equal(got.slices, box)
    assert wanted.slices.sum() == box.sum()  # what was cut off was empty
    np.testing.assert_array_equal(got.stretch, wanted.stretch)
    np.testing.assert_allclose(got.styles[1], wanted.styles[1], atol=1e-6)  # its scans came stripped


def test_an_image_on_both_sides_is_refused(kit: dict[str, ModuleType], scans: Path, tmp_path: Path) -> None:
    plan = yaml.safe_load((scans / "sets.yaml").read_text())
    plan["sets"][1]["folder"] = "watch"
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(DatasetError, match="seen-1 of real: an image is both learned from and watched"):
        kit["pack"].write(scans, tmp_path / "pack", sets=tmp_path / "sets.yaml")
    with pytest.raises(DatasetError, match=r"expected part-1\.zip"):
        kit["pack"].read(tmp_path)


def test_no_test_folder_is_ever_packed(kit: dict[str, ModuleType]) -> None:
    plan = yaml.safe_load(kit["pack"].SETS.read_text())
    assert {entry["part"] for entry in plan["sets"]} == {"train", "val"}
    assert not [entry for entry in plan["sets"] if "test" in entry["folder"]]


def test_scans_on_a_device_are_the_cohorts(kit: dict[str, ModuleType], body, tmp_path: Path) -> None:
    digital = kit["digital"]
    digital.save(body, tmp_path / "body-00001.npz")
    subject = digital.Subject.load(tmp_path / "body-00001.npz", CPU)
    tissues = draw_tissues(np.random.default_rng(0))
    used = np.flatnonzero(body.head.mean(axis=(0, 1)) > 0.03)
    z = slice(max(0, used[0] - 1), used[-1] + 2)
    x, y = (np.flatnonzero(body.head[:, :, z].any(axis=axes)) for axes in ((1, 2), (0, 2)))

    def cut(image: np.ndarray) -> np.ndarray:
        return np.moveaxis(image[x[0] : x[-1] + 1, y[0] : y[-1] + 1, z], 2, 0)

    head = cut(body.head)
    np.testing.assert_array_equal(subject.head.view(subject.shape).numpy(), head)
    for name, protocol in FIXED.items():
        wanted = ideal_image(body, tissues, protocol)
        got = digital.ideal(subject, tissues, protocol).view(subject.shape).numpy()
        away = np.abs(got - cut(wanted))[head]
        span = float(np.ptp(wanted[body.head]))
        assert away.mean() < 0.003 * span, name
        assert away.max() < 0.03 * span, name
    sharp = np.random.default_rng(1).random((20, 18, 16), dtype=np.float32)
    soft = voxel_blur(sharp, 1.5, 2.6, None)
    deviation = np.sqrt(2.6**2 - 1.5**2) / 2.3548 / 1.5
    got = digital._gaussian(torch.from_numpy(sharp).flatten(), sharp.shape, deviation).view(sharp.shape).numpy()
    np.testing.assert_allclose(got[3:-3, 3:-3, 3:-3], soft[3:-3, 3:-3, 3:-3], atol=1e-4)


def test_visits_are_stored_as_the_cohort_is(
    kit: dict[str, ModuleType], body, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grey levels, masks and tables of digital subjects on a device against those that training reads from files."""
    digital = kit["digital"]
    names = ("adc", "ct", "dwi", "t1c", "t1n", "t2f", "t2w")
    monkeypatch.setattr(cohort, "coil_shading", lambda rng, body, strength=0.1: np.ones(body.grid.shape, np.float32))
    made = cohort.make_cohort(tmp_path / "cohort", subjects=1, seed=7, spacing_mm=5.0, protocols="random", workers=1)
    host = Stored.of(load_working(discover(made)[0], 5.0), names)
    digital.save(body, tmp_path / "body-00001.npz")
    subject, chance = digital.Subject.load(tmp_path / "body-00001.npz", CPU), Chance(torch.Generator().manual_seed(0))
    monkeypatch.setattr(digital, "draw_tissues", lambda rng: draw_tissues(cohort.subject_rng(7, 1, 1)))
    monkeypatch.setattr(digital, "_shading", lambda subject, chance, strength: torch.ones(len(subject.head)))
    here, slices = digital.visit(subject, names, chance, np.random.default_rng(1))
    assert here.channels == host.channels
    assert here.stripped == host.stripped
    at = np.flatnonzero(host.foreground_share > 0.03)
    first = max(0, at[0] - 1)
    np.testing.assert_allclose(here.foreground_share, host.foreground_share[first : at[-1] + 2], atol=1e-6)
    np.testing.assert_allclose(here.brain_share, host.brain_share[first : at[-1] + 2], atol=1e-6)
    inside, theirs = slices[:, 0].bool().numpy(), host.slices[:, 0].astype(bool)
    for name, (fixed, *_), level in zip(names, host.channels, host.styles[0], strict=True):
        mine, other = slices[:, fixed].numpy()[inside], host.slices[:, fixed][theirs]
        assert abs(mine.mean() - other.mean()) < 3, name
        assert abs(mine.std() - other.std()) < 3, name
        assert (level is None) == (name == "ct")
    for k, (m, a) in enumerate(((3, 0), (4, 1), (6, 0))):
        assert np.abs(here.stretch[m][a].astype(int) - host.stretch[m][a]).mean() < 20, k
    assert np.abs(here.styles[1][4] - host.styles[1][4]).mean() < 0.08


def test_the_whole_kit_in_miniature(
    kit: dict[str, ModuleType], packed: Path, body, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, check, digital = kit["train"], kit["check"], kit["digital"]
    bodies = tmp_path / "bodies"
    bodies.mkdir()
    digital.save(body, bodies / "body-00001.npz")
    data = [f"--pack={packed}", f"--bodies={bodies}", "--shares=real=0.5,digital=0.5"]

    told, wrong = check.check(check.parser().parse_args([*SMALL, *data, "--seconds=0.05", "--naive-batch=2"]))
    assert wrong == []
    assert told["times_naive"] > 0
    assert told["gflops_per_crop"] > 0

    first, second = tmp_path / "first", tmp_path / "second"
    train.learn(train.parser().parse_args([str(first), *SMALL, *data, "--steps=3"]))
    digital.save(body, bodies / "body-00002.npz")
    facts = train.learn(
        train.parser().parse_args(
            [str(second), *SMALL, *data, "--steps=2", f"--resume={first}", "--total=2", "--wait-bodies=2"]
        )
    )
    assert facts["steps"] == 5
    assert [row["steps"] for row in facts["history"]] == [3, 5]
    assert [row["digital"] for row in facts["history"]] == [1, 2]
    assert set(facts["history"][-1]["psnr"]["medk2n"]) == {"real", "all"}
    assert facts["seconds"] > json.loads((first / "state.json").read_text())["seconds"]
    assert len((second / "log.csv").read_text().splitlines()) == 8
    assert all(path.stat().st_size < 15e6 for path in second.iterdir())
    assert "5 studies" not in capsys.readouterr().err

    free = train.learn(train.parser().parse_args([str(tmp_path / "free"), *SMALL, f"--pack={packed}", "--free",
                                                  "--shares=real=1", "--steps=1", "--networks=unet"]))  # fmt: skip
    assert free["free"]
    assert set(free["history"][0]["psnr"]) == {"unet"}


def test_what_is_asked_for_and_absent_is_told(kit: dict[str, ModuleType], packed: Path, tmp_path: Path) -> None:
    train = kit["train"]

    def run(*more: str) -> None:
        train.learn(train.parser().parse_args([str(tmp_path / "out"), *SMALL, "--steps=1", *more]))

    with pytest.raises(ConfigError, match="nothing to learn from: give --pack DIR"):
        run()
    with pytest.raises(ConfigError, match="--shares: no digital here; expected some of real"):
        run(f"--pack={packed}", "--shares=digital=1")
    with pytest.raises(ConfigError, match=r"expected state\.json"):
        run(f"--pack={packed}", "--shares=real=1", f"--resume={tmp_path}")
    with pytest.raises(UsageError, match="cuda:99"):
        run(f"--pack={packed}", "--shares=real=1", "--device=cuda:99")


@pytest.mark.parametrize("widths", [(64, 96, 128, 224, 384), (64, 128, 256, 512, 1024)])
def test_large_states_are_split_and_shortened(
    kit: dict[str, ModuleType], tmp_path: Path, widths: tuple[int, ...]
) -> None:
    """Weights of 16 bits, and the averages alone where even those are too many: what is read again is near enough."""
    learner, kept = kit["learner"], kit["kept"]
    one = learner.Learner("unet", learner.UNetImages(4, widths, learner.statistics(torch.zeros(4))), Optimiser())
    kept.save_state(tmp_path, [one], {"steps": 1})
    files = sorted(tmp_path.glob("state-*.safetensors"))
    assert len(files) > 1
    assert all(path.stat().st_size < 15e6 for path in files)
    assert sum(path.stat().st_size for path in files) < 64e6
    wanted = one.module.net.trunk.first[0].weight.detach().clone()
    torch.nn.init.zeros_(one.module.net.trunk.first[0].weight)
    assert kept.load_state(tmp_path, [one]) == {"steps": 1}
    torch.testing.assert_close(one.module.net.trunk.first[0].weight.detach(), wanted, rtol=1e-3, atol=1e-4)


def test_the_rate_warms_up_again_and_falls(kit: dict[str, ModuleType]) -> None:
    rate, settings = kit["train"].rate_at, Optimiser(learning_rate=1.0, warm_up=0.1)
    assert rate(0.05, settings, 1000) == pytest.approx(0.5)
    assert rate(0.1, settings, 1000) == pytest.approx(1.0)
    assert rate(1.0, settings, 1000) == pytest.approx(0.02)
    assert rate(0.5, settings, 0) < 0.01 < rate(0.5, settings, 1000)

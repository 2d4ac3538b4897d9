"""A plan: facts come from the data, rules from the facts, and what somebody stated is never planned."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medk2n import checkpoint
from medk2n.cli.main import main
from medk2n.config.draft import read_draft
from medk2n.config.schema import PRESETS, load_config
from medk2n.data.discover import discover
from medk2n.data.fingerprint import LOOKED_AT, Fingerprint, _Stack, take_fingerprint
from medk2n.data.subject import Subject
from medk2n.errors import CheckpointError, ConfigError, DatasetError, StoppedError
from medk2n.geometry.grid import Grid
from medk2n.io.volume import Header, Volume
from medk2n.models._spec import Statistics
from medk2n.registry import resolve
from medk2n.report.training import render_training
from medk2n.training import machine as machine_module
from medk2n.training import memory, planfile, run
from medk2n.training.machine import Machine
from medk2n.training.memory import Need, cost
from medk2n.training.plan import Plan, decide, make_plan

GB = 10**9
CPU = Machine("cpu", "CPU", 2, 16 * GB)
SMALL = (
    "models=[{name: medk2n, params: {widths: [8, 8, 8, 8, 8], embedding: 8}}]",
    "batch.crop=32",
)
FACTS = Fingerprint(
    subjects=50,
    images={"t1n": 50, "t2w": 50},
    patterns={"t1n t2w": 50},
    planes={"axial": 50},
    grids={"192 x 192 x 100 voxels of 1 x 1 x 1 mm": 50},
    unstated=0,
    in_plane_mm=1.0,
    slice_mm=1.0,
    slices=5000,
    useful=0.8,
    area_mm2=2 * 5000 * 192.0**2,
    area_voxels=0.0,
    looked_at=("a",),
    boxes_mm=((150.0, 130.0), (140.0, 120.0)),
    boxes_voxels=(),
    stripped=1,
)


def gpu(gigabytes: float) -> Machine:
    return Machine("cuda", "a GPU", 8, 64 * GB, int(gigabytes * GB))


def planned(facts: Fingerprint = FACTS, machine: Machine = CPU, *settings: str, preset: str = "plus") -> Plan:
    return decide(read_draft(preset, ["data=[somewhere]", *settings]), facts, machine)


def head(radius_mm: float, spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    """A noisy ball in a constant background."""
    position = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    distance = sum(np.square(p).reshape([-1 if a == k else 1 for a in range(3)]) for k, p in enumerate(position))
    return np.where(distance < radius_mm**2, np.random.default_rng(0).integers(300, 500, shape), 0).astype(np.int16)


def save(path: Path, spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(head(20.0, spacing, shape), np.diag([*spacing, 1.0])), path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three studies of thick slices, two axial and one sagittal; adc stands in one of them alone."""
    root = tmp_path_factory.mktemp("studies")
    for study in ("A", "B"):
        for name in ("t1n", "t2w"):
            save(root / study / f"{name}.nii.gz", (0.8, 0.8, 5.0), (60, 64, 12))
    for name in ("adc", "t1n", "t2w"):
        save(root / "C" / f"{name}.nii.gz", (4.0, 1.0, 1.0), (14, 48, 50))
    return root


def test_a_fingerprint_tells_what_is_there(data: Path) -> None:
    facts = take_fingerprint(discover(data))
    assert facts.subjects == 3
    assert facts.images == {"t1n": 3, "t2w": 3, "adc": 1}
    assert facts.patterns == {"t1n t2w": 2, "adc t1n t2w": 1}
    assert facts.planes == {"axial": 2, "sagittal": 1}
    assert facts.in_plane_mm == 0.8
    assert facts.slice_mm == 5.0
    assert facts.slices == 12 + 12 + 14
    assert (facts.unstated, facts.stripped) == (0, 3)
    assert facts.area_mm2 == pytest.approx(2 * 2 * 12 * 60 * 64 * 0.64 + 3 * 14 * 48 * 50, rel=1e-6)
    np.testing.assert_allclose(facts.boxes_mm, 40, atol=2)  # a ball of 40 mm
    assert facts.useful == pytest.approx(np.mean([8, 8, 10]) / np.mean([12, 12, 14]), abs=0.05)


def test_a_spacing_that_nobody_stated_stays_out_of_the_millimetres(tmp_path: Path) -> None:
    for k, further in enumerate(({}, {"spacing": [2.0, 2.0, 3.0]})):
        image = (head(12, (1, 1, 1), (10, 40, 44)) // 2).astype(np.uint8)
        np.savez(tmp_path / f"p{k}.npz", t1n=image, t2w=image, valid=np.arange(10) > 1, **further)
    facts = take_fingerprint(discover(tmp_path))
    assert (facts.unstated, facts.in_plane_mm, facts.slices) == (1, 2.0, 16)
    assert facts.area_voxels == 2 * 8 * 40 * 44
    assert facts.area_mm2 == facts.area_voxels * 4
    (stated,), (unstated,) = facts.boxes_mm, facts.boxes_voxels
    assert stated == tuple(2 * edge for edge in unstated)
    assert facts.boxes(2.0) == [unstated, unstated]
    assert facts.voxels(2.0) == 2 * facts.area_voxels


def test_headers_are_enough_but_for_a_few_subjects() -> None:
    opened = []

    def subject(k: int) -> Subject:
        array = head(12.0, (1, 1, 1), (30, 30, 20)).astype(np.float32)
        grid = Grid(array.shape, np.eye(4))
        read = lambda: opened.append(k) or Volume(array, grid, "t1n")  # noqa: E731
        return Subject(
            f"s{k:02}", {"t1n": read, "t2w": read}, headers=dict.fromkeys(("t1n", "t2w"), lambda: Header(grid))
        )

    facts = take_fingerprint([subject(k) for k in range(30)])
    assert len(opened) == len(set(opened)) == LOOKED_AT
    assert {0, 29} < set(opened), "spread over the data set"
    assert facts.images == {"t1n": 30, "t2w": 30}


def test_what_is_stated_is_told_from_what_is_open() -> None:
    draft = read_draft("plus", ["batch.crop=64", "budget.minutes=3", "models.unet.params.widths=[8, 8, 8, 8, 8]"])
    assert draft.open == [
        "modalities", "spacing_mm", "batch.size", "models.medk2n.params.widths",
    ]  # fmt: skip
    assert [draft.decided_by(key) for key in ("batch.crop", "budget", "batch.draws", "threads")] == [
        "you", "you", "preset", "default",
    ]  # fmt: skip
    assert draft.config.batch.crop == 64
    assert draft.config.models[1].params == {"widths": [8, 8, 8, 8, 8]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch.sise=3", "batch.sise: unknown setting, did you mean 'size'"),
        ("seed=auto", "seed: is auto, which nothing has planned"),
        ("models.unnet.params.widths=[8]", "no 'unnet' in the list; it holds medk2n, unet"),
        ("models.unet=3", "'unet' is one of a list"),
        ("spacing_mm.x=3", "spacing_mm: "),
    ],
)
def test_bad_settings_are_refused_before_any_data_is_read(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_draft("plus", [override])


def test_what_is_left_open_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match="modalities: is auto, which nothing has planned; give a value"):
        load_config("tiny")


@pytest.mark.parametrize("name", ["default", "brain"])
def test_recipes_state_every_value(name: str) -> None:
    assert read_draft(Path(__file__).parents[2] / "recipes" / f"{name}.yaml").open == []


def test_tiny_keeps_its_sizes() -> None:
    draft = read_draft("tiny")
    assert draft.open == ["modalities", "spacing_mm"]
    assert (draft.config.batch.size, draft.config.batch.crop, draft.config.budget.minutes) == (2, 96, 30)
    assert planned(FACTS, gpu(80), preset="tiny").config.batch == draft.config.batch


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ({"t1n t2w": 3, "adc": 5, "t1n": 9}, ["t1n", "t2w"]),
        ({"t1n t2w": 1, "adc dwi": 2, "t1n": 1}, ["adc", "dwi"]),
        ({"t1n t2w": 4, "pd t1n": 1}, ["t1n", "t2w"]),
        ({"t1n t2w": 1}, ["t1n", "t2w"]),
        ({"t1n t2w": 196, "pd t1n": 4}, ["pd", "t1n", "t2w"]),
        ({"t1n t2w": 197, "pd t1n": 3}, ["t1n", "t2w"]),
        ({"t1n t2w": 2, "dwi pd": 1, "adc dwi": 1}, ["t1n", "t2w"]),  # nothing that is kept comes with dwi
    ],
)
def test_modalities_are_those_that_come_with_another(patterns: dict[str, int], kept: list[str]) -> None:
    names = {name for pattern in patterns for name in pattern.split()}
    images = {name: sum(n for pattern, n in patterns.items() if name in pattern.split()) for name in names}
    facts = replace(FACTS, subjects=sum(patterns.values()), patterns=patterns, images=images)
    plan = planned(facts)
    assert list(plan.config.modalities) == kept
    left_out = sorted(names - set(kept))
    reason = plan.decisions[0].reason
    assert all(f"{name} ({images[name]})" in reason for name in left_out)
    assert ("left out" in reason) == bool(left_out)


def test_single_modalities_teach_nothing() -> None:
    facts = replace(FACTS, subjects=4, images={"t1n": 2, "t2w": 2}, patterns={"t1n": 2, "t2w": 2})
    with pytest.raises(DatasetError, match=r"no two modalities are there together in 2 subjects, found t1n \(2\), t2w"):
        planned(facts)


def test_a_modality_that_nobody_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no training subject has ct; .*--set modalities=\[t1n\]"):
        planned(FACTS, CPU, "modalities=[t1n, ct]")


@pytest.mark.parametrize(
    ("own", "machine", "spacing"),
    [(0.94, CPU, 1.5), (0.94, gpu(24), 1.0), (1.2, gpu(24), 1.2), (2.0, CPU, 2.0), (None, gpu(24), 1.0)],
)
def test_spacing_is_the_datas_own_within_reach_of_the_device(
    own: float | None, machine: Machine, spacing: float
) -> None:
    assert planned(replace(FACTS, in_plane_mm=own), machine).config.spacing_mm == spacing


def test_a_crop_covers_the_patients_where_it_may() -> None:
    assert planned(FACTS, gpu(24)).config.batch.crop == 160  # of 150 mm at 1 mm
    assert planned(FACTS, gpu(24), "spacing_mm=2").config.batch.crop == 80
    assert planned(FACTS, CPU).config.batch.crop == 96  # of 100 at 1.5 mm: 112
    assert planned(FACTS, CPU, "spacing_mm=2.5").config.batch.crop == 64
    assert planned(replace(FACTS, boxes_mm=((9.0, 8.0),)), CPU).config.batch.crop == 32
    assert planned(replace(FACTS, boxes_mm=((400.0, 8.0),)), gpu(80)).config.batch.crop == 256


def test_more_memory_never_gives_less_and_the_plan_fits() -> None:
    before = (0, 0, 0)
    for gigabytes in (1, 2, 6, 12, 40, 80):
        plan = planned(FACTS, gpu(gigabytes))
        config = plan.config
        costs = [cost(choice, 2, config.batch, config.losses) for choice in config.models]
        need = Need.of(costs, config.batch.size, config.batch.crop, 0)
        assert need.step <= 0.7 * gigabytes * GB
        now = (config.batch.crop, config.models[1].params["widths"][0], config.batch.size)
        assert now >= before
        before = now
    assert before == (160, resolve("models", "unet").sizes["widths"][-1][0], 128)


def test_a_card_of_80_gb_gets_the_large_trunk_more_pixels_and_more_steps() -> None:
    """Five modalities of brains of 185 mm at 1 mm, as BraTS has them."""
    names = ("ct", "t1c", "t1n", "t2f", "t2w")
    images, patterns = dict.fromkeys(names, 50), {" ".join(names): 50}
    brains = replace(FACTS, images=images, patterns=patterns, boxes_mm=((185.0, 150.0), (178.0, 140.0)))
    large, small = planned(brains, gpu(80)), planned(brains, CPU)
    costs = [cost(choice, len(names), large.config.batch, large.config.losses) for choice in large.config.models]
    assert all(10e6 <= each.parameters <= 30e6 for each in costs)
    assert 160 <= large.config.batch.crop <= 192
    assert large.config.batch.size > 4 * small.config.batch.size
    assert large.config.budget.steps >= 20_000
    need = Need.of(costs, large.config.batch.size, large.config.batch.crop, brains.voxels(large.config.spacing_mm))
    assert need.fits(large.machine)
    assert not replace(need, step=2 * need.step).fits(large.machine), "twice as many crops would be planned"
    assert "on the a GPU about" in large.notes[-1]


def test_what_does_not_fit_at_all_is_said() -> None:
    plan = planned(FACTS, gpu(0.05))
    assert (plan.config.batch.size, plan.config.batch.crop) == (1, 32)
    assert "may still not fit" in next(d.reason for d in plan.decisions if d.field == "batch.size")
    assert "MORE THAN IS FREE" in planned(FACTS, replace(CPU, memory=GB)).notes[-1]
    assert "MORE THAN IS FREE" not in planned(FACTS, CPU).notes[-1]
    assert "unknown free" in planned(FACTS, replace(CPU, memory=None)).notes[-1]


def test_data_that_fill_the_memory_are_not_answered_by_smaller_crops() -> None:
    large = replace(FACTS, area_mm2=1e12)
    assert planned(large).config.batch == planned(FACTS).config.batch


def test_a_cpu_gives_a_crop_a_core() -> None:
    assert [planned(FACTS, replace(CPU, cores=n)).config.batch.size for n in (1, 2, 6, 64)] == [2, 2, 6, 8]


def test_the_budget_follows_the_slices() -> None:
    minutes = [planned(replace(FACTS, slices=n), CPU, *SMALL).config.budget.minutes for n in (100, 2500, 10**6)]
    assert minutes == [60, 100, 480]  # 2500 x 0.8 x 3 s
    machine, given = gpu(80), ["batch.size=4", *SMALL]
    steps = [planned(replace(FACTS, slices=n), machine, *given).config.budget.steps for n in (9, 2500, 10**6)]
    assert steps == [20_000, 40_000, 200_000]
    assert planned(FACTS, machine, "budget.steps=7", *given).config.budget.steps == 7


def test_what_you_state_stays_and_is_yours() -> None:
    mine = [
        "modalities=[T1, t2w]",
        "spacing_mm=3",
        "batch.crop=48",
        "batch.size=5",
        "models.unet.params.widths=[8,8,8,8,8]",
    ]
    plan = planned(FACTS, gpu(80), *mine)
    by = {d.field: (d.value, d.by, d.reason) for d in plan.decisions}
    assert by["modalities"] == (["t1n", "t2w"], "you", "")
    assert by["spacing_mm"] == (3.0, "you", "")
    assert (by["batch.crop"], by["batch.size"]) == ((48, "you", ""), (5, "you", ""))
    assert by["models.unet.params.widths"] == ([8, 8, 8, 8, 8], "you", "")
    assert by["models.medk2n.params.widths"][1] == "planned"
    assert plan.config.spacing_mm == 3.0


def test_what_no_size_is_known_for_cannot_be_planned() -> None:
    with pytest.raises(ConfigError, match=r"models\.medk2n\.params\.embedding: nothing can plan it; give a value"):
        planned(FACTS, CPU, "models.medk2n.params.embedding=auto")


def test_memory_grows_with_the_pixels_and_the_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    config = planned(FACTS, CPU).config
    first = [cost(choice, 3, config.batch, config.losses) for choice in config.models]
    monkeypatch.setattr(memory, "_CROP", 80)
    larger = [cost(choice, 3, config.batch, config.losses) for choice in config.models]
    for choice, a, b in zip(config.models, first, larger, strict=True):
        assert b.bytes_a_pixel == pytest.approx(a.bytes_a_pixel, rel=0.05)
        spec = resolve("models", choice.name)
        sizes = {key: tuple(v) if isinstance(v, list) else v for key, v in choice.params.items()}
        module = spec.build(spec.params(**sizes), 3, Statistics.neutral(3))
        assert a.parameters == sum(p.numel() for p in module.parameters())
    alone, beside = Need.of(first[:1], 4, 96, 0), Need.of(first, 4, 96, 10**6)
    assert beside.step - alone.step == 20 * first[1].parameters, "models take turns: weights add up, steps do not"
    assert Need.of(first, 8, 96, 0).step == pytest.approx(Need.of(first, 2, 192, 0).step)


def test_counting_memory_moves_no_random_state() -> None:
    before = torch.get_rng_state()
    planned(FACTS, CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_a_plan_written_as_yaml_is_the_same_configuration(tmp_path: Path) -> None:
    plan = planned(FACTS, gpu(24), "exclude=[no, '012']", "budget.steps=1000", "seed=3")
    path = tmp_path / "plan.yaml"
    path.write_text(planfile.as_yaml(plan, ["Made by hand."]))
    assert load_config(path) == plan.config
    text = path.read_text()
    assert text.startswith("# Made by hand.\n")
    assert all(f"# {d.field}: {d.reason}." in text for d in plan.decisions if d.by == "planned")
    assert read_draft(path).decided_by("spacing_mm") == "you"


def test_a_resampled_grid_says_itself_across_which_axis_its_slices_lie() -> None:
    """In plane it may be coarser than across: prepared data are."""
    header = Header(Grid((20, 22, 30), np.diag([1.5, 1.5, 1.0, 1.0])), slice_axis=2)
    stack = _Stack.of(Subject("a", {"t1n": lambda: None}, headers={"t1n": lambda: header}))
    assert (stack.plane, stack.depth, stack.steps, stack.finest) == ("axial", 30, (1.5, 1.5), 1.5)


def test_presets_can_be_planned() -> None:
    scratch = "models.medk2n.params.encoder.adapt=full"  # weights to adapt are the user's to give
    for path in PRESETS.glob("*.yaml"):
        plan = planned(FACTS, CPU, *([scratch] if path.stem == "paper" else []), preset=path.stem)
        assert list(plan.config.modalities) == ["t1n", "t2w"]


def test_memory_in_a_container_is_what_the_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   4000 kB\n")
    monkeypatch.setattr(machine_module, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine_module, "_CONTAINER", tmp_path)
    assert machine_module.look_at_machine("cpu").memory == 4000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for most, left in (("max", 4000 * 1024), ("51000", 50000), ("10", 0)):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        assert machine_module.look_at_machine("cpu").memory == left


def test_a_data_set_that_lacks_most_modalities_trains_and_keeps_its_plan(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "run", []
    draft = read_draft("tiny", [f"data=['{data}']", *SMALL, "budget={steps: 2}", "threads=1"])
    run.train(draft, out, show=seen.append)
    kept = planfile.read_plan(out)
    assert kept is not None
    assert kept["decisions"][0] == {
        "field": "modalities",
        "value": ["t1n", "t2w"],
        "by": "planned",
        "reason": "at least 2 subjects have each together with another; left out: adc (1)",
    }
    assert kept["fingerprint"]["subjects"] == 3
    assert seen[0].config == load_config(out / "train.json")
    config = checkpoint.read_config(out)
    assert config.modalities == ("t1n", "t2w")
    assert config.training["plan"] == kept["decisions"]
    page = render_training(out)
    assert "left out: adc (1)" in page
    assert "0.8 x 0.8 x 5 mm" in page
    monkeypatch.setattr(run, "make_plan", None)  # given every value, nothing is planned, and an older plan goes
    run.train(seen[0].config, out, overwrite=True)
    assert planfile.read_plan(out) is None
    assert "plan" not in checkpoint.read_config(out).training
    assert "How it was planned" not in render_training(out)


def test_a_run_that_goes_on_is_not_planned_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, step = tmp_path / "run", run._counted
    draft = read_draft("tiny", [f"data=['{data}']", *SMALL, "budget={steps: 2}", "threads=1"])
    with monkeypatch.context() as patched:
        patched.setattr(run, "_counted", lambda *given: (os.kill(os.getpid(), signal.SIGTERM), step(*given))[1])
        with pytest.raises(StoppedError, match="--resume"):
            run.train(draft, out)
    kept = planfile.read_plan(out)
    monkeypatch.setattr(run, "make_plan", None)
    trained = checkpoint.read_config(run.resume(out)).training
    assert trained["finished"] is True
    assert kept is not None
    assert trained["plan"] == kept["decisions"]


def test_a_refused_run_plans_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(run, "make_plan", None)
    (tmp_path / "config.json").write_text("{}")
    assert main(["train", "--data", str(data), "--out", str(tmp_path)]) == 2
    assert "config.json is there" in capsys.readouterr().err


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"fingerprint": {}}'):
        (tmp_path / planfile.FILE).write_text(text)
        with pytest.raises(CheckpointError, match=r"plan\.json: no plan of a run"):
            planfile.read_plan(tmp_path)


def test_the_command_shows_the_plan_and_train_takes_its_file(data: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "plan.yaml"
    small = [word for setting in SMALL for word in ("--set", setting)]
    assert main(["plan", str(data), *small, "--out", str(path), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "3 subjects, 7 images" in told
    assert "left out: adc" in " ".join(told.split())
    assert "axial (2), sagittal (1)" in told
    assert main(["plan", str(data), "--out", str(path)]) == 2
    assert main(["plan", str(data), "--out", str(tmp_path / "plan.txt")]) == 2
    assert main(["plan", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    out = tmp_path / "run"
    options = ["--set", "budget={steps: 1}", "--set", "threads=1", "--device", "cpu"]
    assert main(["train", "--config", str(path), "--out", str(out), *options]) == 0, capsys.readouterr().err
    written = json.loads((out / "train.json").read_text())
    assert (written["modalities"], written["spacing_mm"]) == (["t1n", "t2w"], 1.5)
    decisions = {d["field"]: d["by"] for d in json.loads((out / "plan.json").read_text())["decisions"]}
    assert decisions["modalities"] == "you"


def test_data_without_a_folder_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training data: give --data DIR"):
        make_plan(read_draft("tiny"), "cpu")

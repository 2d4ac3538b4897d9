"""A split parts patients, not images: together what belongs together, alike in every stratum, the same for a seed."""

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medk2n.cli.main import main
from medk2n.config.schema import load_config
from medk2n.data.discover import discover
from medk2n.data.inventory import Image, Inventory
from medk2n.data.split import PARTS, Split, draw_split, patients_of, read_patients, read_split, site_of
from medk2n.data.subject import Subject
from medk2n.errors import DatasetError, StoppedError, UnknownNameError, UsageError
from medk2n.training import run

SMALL = (
    "models=[{name: medk2n, params: {widths: [8, 8, 8, 8, 8], embedding: 8}}]",
    "budget={steps: 2}",
    "modalities=[t1n, t2w]",
    "spacing_mm=1.5",
    "core=[]",
    "batch.crop=32",
)


def subject(name: str, modalities: str = "t1n t2w", site: str = "") -> Subject:
    return Subject(name, {m: lambda: pytest.fail("a split reads no voxels") for m in modalities.split()}, site=site)


def image(name: str, fingerprint: str) -> Image:
    return Image(name, "t1n", "", (1, 1, 1), None, "RAS", False, fingerprint)


def parts(split: Split) -> dict[str, str]:
    return {name: placed.part for name, placed in split.subjects.items()}


@given(
    st.lists(st.tuples(st.sampled_from("ABC"), st.booleans(), st.integers(1, 3)), min_size=20, max_size=80),
    st.integers(0, 5),
)
def test_patients_are_parted_by_the_shares_and_alike_in_every_stratum(people, seed) -> None:
    found = [
        subject(f"sub-{k:02d}_ses-{session}", "t1n t2w" if complete else "t1n", site)
        for k, (site, complete, sessions) in enumerate(people)
        for session in range(sessions)
    ]
    split = draw_split(found, Inventory(), validation=0.2, test=0.3, seed=seed)
    assert list(split.subjects) == sorted(s.id for s in found)
    of_patient = {}
    for name, part in parts(split).items():
        assert of_patient.setdefault(name.split("_")[0], part) == part
    shares = {"train": 0.5, "validation": 0.2, "test": 0.3}
    for part, count in Counter(of_patient.values()).items():
        assert abs(count - shares[part] * len(people)) < 2
    for stratum, size in Counter((site, complete) for site, complete, _ in people).items():
        inside = [of_patient[f"sub-{k:02d}"] for k, p in enumerate(people) if p[:2] == stratum]
        for part in PARTS:
            assert abs(inside.count(part) - shares[part] * size) < 2
    assert draw_split(found[::-1], Inventory(), validation=0.2, test=0.3, seed=seed) == split


def test_another_seed_parts_otherwise() -> None:
    found = [subject(f"p{k:02d}") for k in range(30)]
    first, second = (draw_split(found, Inventory(), validation=0.2, test=0.2, seed=seed) for seed in (0, 1))
    assert parts(first) != parts(second)


def test_subjects_that_share_an_image_stay_together_also_by_way_of_a_third() -> None:
    found = [subject(f"p{k:02d}") for k in range(12)]
    shared = [("p00", "a"), ("p05", "a"), ("p05", "b"), ("p11", "b"), ("p03", "c"), ("p04", "d")]
    inventory = Inventory([image(*pair) for pair in shared])
    for seed in range(8):
        placed = parts(draw_split(found, inventory, validation=0.3, test=0.3, seed=seed))
        assert placed["p00"] == placed["p05"] == placed["p11"]


@pytest.mark.parametrize(
    ("validation", "test", "match"),
    [
        (0.5, 0.5, "leaves nothing to learn from"),
        (-0.1, 0.2, "leaves nothing"),
        (float("nan"), 0.2, "leaves nothing"),
        (0.1, 0.1, "4 patients are too few"),
    ],
)
def test_a_split_that_cannot_be_is_refused(validation: float, test: float, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        draw_split([subject(f"p{k}") for k in range(4)], Inventory(), validation=validation, test=test, seed=0)


def test_a_part_of_no_share_is_empty() -> None:
    split = draw_split([subject(f"p{k}") for k in range(9)], Inventory(), validation=0, test=0.3, seed=0)
    assert Counter(parts(split).values()) == {"train": 6, "test": 3}


@pytest.mark.parametrize(
    ("name", "patient", "site"),
    [
        ("sub-01_ses-02", "sub-01", ""),
        ("BraTS-GLI-00000-001", "BraTS-GLI-00000", "BraTS-GLI"),
        ("IXI002-Guys-0828", "IXI002-Guys-0828", "Guys"),
        ("TCGA_FG_5962", "TCGA_FG_5962", "FG"),
        ("1BA005", "1BA005", "1BA"),
        ("anyone", "anyone", ""),
    ],
)
def test_an_id_tells_patient_and_site(name: str, patient: str, site: str) -> None:
    assert (patients_of([subject(name)]), site_of(subject(name))) == ({name: patient}, site)


def test_the_site_of_a_bids_data_set_is_in_its_table(tmp_path: Path) -> None:
    for name in ("sub-01", "sub-02"):
        (tmp_path / name / "anat").mkdir(parents=True)
        (tmp_path / name / "anat" / f"{name}_T1w.nii.gz").touch()
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsite\nsub-02\t7\tOslo\n")
    assert [site_of(s) for s in discover(tmp_path)] == ["", "Oslo"]


# The file


def test_a_file_that_is_no_split_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    for text in ("{", '{"seed": 0}', "\udcff".encode("utf-8", "surrogatepass")):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DatasetError, match=r"split\.json: expected a split as medk2n index --split writes it"):
            read_split(path)


def test_a_patient_in_two_parts_is_refused(tmp_path: Path) -> None:
    split = draw_split([subject(f"p{k}") for k in range(9)], Inventory(), validation=0.3, test=0.3, seed=0)
    tree = split.model_dump()
    for name, part in (("p0", "train"), ("p1", "test")):
        tree["subjects"][name] |= {"patient": "same", "part": part}
    (tmp_path / "split.json").write_text(json.dumps(tree))
    with pytest.raises(DatasetError, match="patient same is in test and train, expected one part"):
        read_split(tmp_path / "split.json")


def test_a_split_of_other_subjects_is_refused() -> None:
    split = draw_split([subject(f"p{k}") for k in range(9)], Inventory(), validation=0.3, test=0.3, seed=0)
    ids = [f"p{k}" for k in range(9)]
    split.check(ids)
    split.check([*ids, "new"], unused=["new"])
    with pytest.raises(DatasetError, match=r"1 subjects are in no part of the split \(new\)"):
        split.check([*ids, "new"])
    with pytest.raises(DatasetError, match=r"1 subjects are in the split but not in the data \(p8\)"):
        split.check(ids[:-1])


# The commands


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten subjects of two contrasts; two of them share an image."""
    root = tmp_path_factory.mktemp("arrays")
    z, y, x = np.mgrid[-1:1:4j, -1:1:32j, -1:1:32j]
    head = x**2 + y**2 + 0.3 * z**2 < 0.7
    for k in range(10):
        rng = np.random.default_rng(0 if k == 7 else k)
        t1n = head * (120 + 60 * (x**2 + (y - 0.02 * k) ** 2 < 0.1) + rng.normal(0, 4, head.shape))
        t2w = np.where(head, 240 - t1n + k, 0)
        np.savez(root / f"p{k}.npz", t1n=t1n.clip(0, 255).astype(np.uint8), t2w=t2w.clip(0, 255).astype(np.uint8))
    with np.load(root / "p0.npz") as first, np.load(root / "p7.npz") as other:
        np.savez(root / "p7.npz", t1n=first["t1n"], t2w=other["t2w"])
    return root


def test_from_index_by_way_of_train_to_evaluate(data: Path, tmp_path: Path, capsys) -> None:
    """A test subject is never opened in training, and the only kind that is evaluated."""
    assert main(["index", str(data), "-o", str(tmp_path / "index"), "--split", "0.2,0.3", "--seed", "3"]) == 0
    assert "Split: 4 train, 2 validation, 4 test" in capsys.readouterr().out
    path = tmp_path / "index" / "split.json"
    split = read_split(path)
    assert split.subjects["p0"].part == split.subjects["p7"].part
    test = split.part("test")
    held = {name: (data / f"{name}.npz").read_bytes() for name in test}
    for name in test:
        (data / f"{name}.npz").write_bytes(held[name][:300] + bytes(len(held[name]) - 900) + held[name][-600:])
    common = [word for setting in SMALL for word in ("--set", setting)]
    out = tmp_path / "run"
    assert main(["train", "--data", str(data), "--split", str(path), "-o", str(out), *common]) == 0, capsys.readouterr()
    for name in test:
        (data / f"{name}.npz").write_bytes(held[name])
    learned = json.loads((out / "config.json").read_text())["training"]["subject_ids"][data.name]
    assert learned == split.part("train")
    assert "validation_psnr_db" in (out / "metrics.csv").read_text()
    assert read_split(out / "split.json") == split
    scores = tmp_path / "scores"
    assert main(["evaluate", "--model", str(out), "--data", str(data), "--split", str(path), "-o", str(scores)]) == 0
    subjects = {line.split(",")[0] for line in (scores / "records.csv").read_text().splitlines()[1:]}
    assert subjects == set(test)

    swapped = split.model_copy(update={"subjects": dict(split.subjects)})
    name = split.part("train")[0]
    swapped.subjects[name] = split.subjects[name].model_copy(update={"part": "test"})
    path.write_text(swapped.model_dump_json())
    again = ["evaluate", "--model", str(out), "--data", str(data), "--split", str(path), "-o", str(tmp_path / "no")]
    capsys.readouterr()
    assert main(again) == 2
    assert f"the model learned from {name}, expected a model trained with this split" in capsys.readouterr().err


def test_a_run_keeps_its_own_split(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that it was given may go and the run may be moved: it goes on with the same subjects."""
    found = discover(data)
    split = draw_split(found, Inventory(), validation=0.2, test=0.3, seed=0)
    (tmp_path / "split.json").write_text(split.model_dump_json())
    settings = [f"data=['{data}']", f"split='{tmp_path / 'split.json'}'", *SMALL]
    with monkeypatch.context() as patched:
        step = run._counted
        patched.setattr(run, "_counted", lambda *given: (os.kill(os.getpid(), signal.SIGTERM), step(*given))[1])
        with pytest.raises(StoppedError, match="--resume"):
            run.train(load_config("tiny", settings), tmp_path / "first")
    (tmp_path / "split.json").unlink()
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    learned = json.loads((run.resume(moved) / "config.json").read_text())["training"]["subject_ids"][data.name]
    assert learned == split.part("train")


@pytest.mark.parametrize("shares", ["0.1", "a,b", "0.1,0.2,0.3"])
def test_shares_that_are_no_two_numbers_are_refused(data: Path, tmp_path: Path, capsys, shares: str) -> None:
    assert main(["index", str(data), "-o", str(tmp_path), "--split", shares]) == 2
    assert f"--split {shares}: expected two shares" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_split_that_cannot_be_leaves_nothing_behind(data: Path, tmp_path: Path, capsys) -> None:
    assert main(["index", str(data), "-o", str(tmp_path / "out"), "--split", "0.6,0.6"]) == 2
    assert "leaves nothing to learn from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_ways_to_say_what_is_watched_are_refused(data: Path, tmp_path: Path, capsys) -> None:
    options = ["train", "--data", str(data), "-o", str(tmp_path), "--split", "split.json", "--val", str(data)]
    assert main(options) == 2
    assert "validation and split: each says what is watched" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ids", "count"),
    [
        ("P001_11 P001_21 P002_11 P002_21 P003_11", 3),  # the last number is of a session: few, behind a number
        ("UPENN-GBM-00001_11 UPENN-GBM-00001_21 UPENN-GBM-00002_11 UPENN-GBM-00003_11", 3),
        ("P001_TP1 P001_TP2 P002_TP1", 2),
        ("P1-T1 P1-T2 P2-T1", 2),
        ("Patient-001_week-000 Patient-001_week-010-1 Patient-002_week-000", 2),
        ("anna_ses-1 anna_ses-2 ben_ses-1", 2),
        ("anna_baseline anna_followup anna_follow-up2 ben_baseline", 2),
        ("P01_20190101 P01_2020-02-03 P02_20190101", 2),
        ("openMSlong-patient07-study1 openMSlong-patient07-study2", 1),
        ("sub-01 sub-02 sub-03", 3),
        ("BRATS_001 BRATS_002 BRATS_003", 3),  # numbers of patients
        ("BraTS2021_00000 BraTS2021_00002", 2),
        ("Brats18_2013_2_1 Brats18_2013_3_1 Brats18_TCIA01_131_1", 3),
        ("study1_01 study1_02 study1_03 study2_01 study2_02", 5),
        ("TCGA_CS_4941 TCGA_CS_4942", 2),
        ("IXI002-Guys-0828 IXI012-HH-1211", 2),
        ("PD_m12 PD_m13", 2),
    ],
)
def test_names_tell_patients_as_far_as_they_do(ids: str, count: int) -> None:
    found = patients_of([subject(name) for name in ids.split()])
    assert len(set(found.values())) == count
    assert all(name.startswith(patient) for name, patient in found.items())


def test_a_table_and_the_layout_tell_patients_before_names_do(tmp_path: Path) -> None:
    found = [
        subject("a1"),
        replace(subject("x_b"), patient="x"),
        replace(subject("x_c"), patient="x"),
        subject("b1_tp1"),
    ]
    assert patients_of(found) == {"a1": "a1", "x_b": "x", "x_c": "x", "b1_tp1": "b1"}
    for text in ("subject,patient\na1,b1\n", "subject\tpatient\na1\tb1\n"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            (tmp_path / "p.csv").write_text(text, encoding=encoding)
            stated = read_patients(tmp_path / "p.csv", [s.id for s in found])
            assert patients_of(found, stated)["a1"] == "b1"
    split = draw_split(found, Inventory(), validation=0, test=0.4, seed=0, patients=patients_of(found, stated))
    assert parts(split)["a1"] == parts(split)["b1_tp1"]
    assert parts(split)["x_b"] == parts(split)["x_c"]


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("subject,patient\na1,b\na1,c\n", DatasetError, "line 3: expected one subject and its patient"),
        ("subject\na1\n", DatasetError, "line 2: expected one subject and its patient"),
        ("subject,patient\nzz,b\n", UnknownNameError, "no subject 'zz' in the data"),
        (None, DatasetError, "cannot be read"),
    ],
)
def test_a_table_of_patients_that_cannot_be_is_refused(tmp_path: Path, text, error, match) -> None:
    if text is not None:
        (tmp_path / "p.csv").write_text(text)
    with pytest.raises(error, match=match):
        read_patients(tmp_path / "p.csv", ["a1"])

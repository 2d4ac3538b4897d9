"""Nothing of a data set is passed over without a word, one odd subject ends nothing, and a person can choose."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medk2n.cli.main import main
from medk2n.config.schema import load_config
from medk2n.data.discover import discover, discover_study
from medk2n.errors import DatasetError
from medk2n.training import reading

FETCH = "a link to a file that is not there; fetch it first"


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(abs(hash(str(path))) % 2**32).integers(0, 900, (6, 7, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2, 1.0])), path)
    return path


def unfetched(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(".git/annex/objects/xx/MD5E-s1.nii.gz")


def found(root: Path | str, **options) -> tuple[dict[str, tuple[str, ...]], list[str], dict[str, str]]:
    """Subjects with their modalities, what is left out, and faults."""
    told, faults = [], {}
    subjects = discover(
        root,
        faulty=lambda name, error: faults.update({name: str(error)}),
        left_out=lambda name, file: told.append(f"{name}: {file}"),
        **options,
    )
    return {s.id: s.modalities for s in subjects}, sorted(told), faults


LAYOUTS = {
    "studies": ("p1/{}.nii.gz", "p1"),
    "bids": ("sub-01/anat/sub-01_{}.nii.gz", "sub-01"),
    "flat": ("p1_{}.nii.gz", "p1"),
    "pattern": ("x/p1/y/{}.nii.gz", "p1"),
}


def given(root: Path, layout: str) -> Path | str:
    return root / "x/{subject}/y/{modality}.nii.gz" if layout == "pattern" else root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_links_to_nothing_and_unclear_names_are_told(tmp_path, layout):
    where, name = LAYOUTS[layout]
    other = where.replace("p1", "p2").replace("sub-01", "sub-02")
    for word in ("T1w", "CT1", "T2w_map", "T1w_FLAIR"):
        put(tmp_path / where.format(word))
    put(tmp_path / other.format("T1w"))
    unfetched(tmp_path / where.format("T2w"))
    first = tmp_path / where.format("T1w")
    first.with_name(f"._{first.name}").write_bytes(b"\0\5\26\7")
    subjects, told, faults = found(given(tmp_path, layout))
    assert subjects[name] == ("t1n",)
    assert not faults
    assert len(told) == 4
    assert all(any(part in line for line in told) for part in ("CT1", "also 'map'", "t1n and t2f; unclear", FETCH))
    assert all(line.startswith(f"{name}: ") for line in told)


def test_images_in_other_formats_and_folders_within_are_told(tmp_path):
    put(tmp_path / "p1" / "t1n.nii.gz")
    put(tmp_path / "p1" / "later" / "t2f.nii.gz")
    for name in ("flair.mgz", "t2.nrrd", "t1c.nii.bz2", "notes.txt", "._t2.nrrd"):
        (tmp_path / "p1" / name).write_bytes(b"x")
    subjects, told, _ = found(tmp_path)
    assert subjects == {"p1": ("t1n",)}
    assert told == [
        "p1: flair.mgz (no NIfTI; convert it to .nii.gz)",
        "p1: later (a folder with images of its own beside those of this study)",
        "p1: t1c.nii.bz2 (no NIfTI; convert it to .nii.gz)",
        "p1: t2.nrrd (no NIfTI; convert it to .nii.gz)",
    ]
    assert [str(file) for file in discover_study(tmp_path / "p1").left_out] == [line[4:] for line in told[:1]] + [
        line[4:] for line in (told[2], told[3], told[1])
    ]


def test_masks_that_are_unclear_or_there_twice_are_told(tmp_path):
    for name in ("t1n", "mask", "lesion", "t2_lesion"):
        put(tmp_path / "p1" / f"{name}.nii.gz")
    _, told, _ = found(tmp_path)
    assert len(told) == 2
    assert "t2_lesion.nii.gz (a second lesion mask beside lesion.nii.gz)" in told[1]
    assert "does not tell whether it is of the brain, the head or a lesion" in told[0]


def test_a_data_set_that_was_not_fetched_says_so(tmp_path):
    for name in ("p1", "p2"):
        unfetched(tmp_path / name / "t1n.nii.gz")
    with pytest.raises(DatasetError, match=rf"no image that can be used: t1n\.nii\.gz \({FETCH}"):
        discover(tmp_path)
    put(tmp_path / "p3" / "t1n.nii.gz")
    subjects, told, _ = found(tmp_path)
    assert list(subjects) == ["p3"]
    assert [line.split(":")[0] for line in told] == ["p1", "p2"]
    with pytest.raises(DatasetError, match=r"there is t1n\.nii\.gz \(a link to a file that is not there"):
        discover_study(tmp_path / "p1")


def test_channels_are_read_as_names_are_and_the_others_told(tmp_path):
    channels = {"0": "T1", "1": "T1-Gd", "2": "T2 FLAIR", "3": "noNorm", "4": "T2 map"}
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": channels}), encoding=encoding)
        for channel in range(6):
            put(tmp_path / "imagesTr" / f"case1_{channel:04}.nii.gz")
        put(tmp_path / "imagesTr" / "case1.nii.gz")
        subjects, told, _ = found(tmp_path)
        assert subjects == {"case1": ("t1c", "t1n", "t2f")}
        assert [line.split("(")[1] for line in told] == [
            "not called CASE_0000.nii.gz)",
            "channel 'noNorm': its name tells no modality)",
            "channel 'T2 map': its name tells T2, but also 'map'; such is another contrast)",
            "dataset.json names no such channel)",
        ]


@pytest.mark.parametrize("layout", ["studies", "bids", "pattern"])
def test_one_odd_subject_is_a_fault_and_a_word_chooses(tmp_path, layout):
    where, name = LAYOUTS[layout]
    sub = "sub-01_" if layout == "bids" else ""
    other = where.replace("p1", "p2").replace("sub-01", "sub-02")
    folder = (tmp_path / where.format("x")).parent
    for run in ("run-01", "run-02"):
        put(folder / f"{sub}{run}_T1w.nii.gz")
    for place in (where, other):
        put(tmp_path / place.format("T2w"))
    subjects, _, faults = found(given(tmp_path, layout))
    assert list(subjects) == [name.replace("p1", "p2").replace("sub-01", "sub-02")]
    assert "are t1n, expected one file a modality; choose with --prefer" in faults[name]
    for word, taken in (("run-2", "run-02"), ("run-01", "run-01")):
        subjects, told, faults = found(given(tmp_path, layout), prefer=[word])
        assert subjects[name] == ("t1n", "t2w")
        assert not faults
        assert len(told) == 1
        assert taken in told[0]
        assert "is preferred" in told[0]
    assert found(given(tmp_path, layout), prefer=["run-3"])[2]


def test_a_phase_image_is_never_taken(tmp_path):
    for name, parts in (("sub-01", ("mag", "phase")), ("sub-02", ("phase",))):
        for part in parts:
            put(tmp_path / name / "anat" / f"{name}_part-{part}_T2w.nii.gz")
        put(tmp_path / name / "anat" / f"{name}_T1w.nii.gz")
    subjects, told, faults = found(tmp_path)
    assert subjects == {"sub-01": ("t1n", "t2w"), "sub-02": ("t1n",)}
    assert not faults
    assert len(told) == 2
    assert all("the phase of a complex image" in line for line in told)


def test_sessions_in_patients_folders_are_called_by_both(tmp_path):
    for patient in ("Patient-001", "Patient-002"):
        for session in ("week-000", "week-010-1"):
            for name in ("T1", "T2"):
                put(tmp_path / patient / session / f"{name}.nii.gz")
    expected = {f"{p}_{s}" for p in ("Patient-001", "Patient-002") for s in ("week-000", "week-010-1")}
    for root in (tmp_path, tmp_path / "{subject}" / "{session}" / "{modality}.nii.gz"):
        subjects = discover(root)
        assert {s.id for s in subjects} == expected
        assert {s.patient for s in subjects} == {"Patient-001", "Patient-002"}
    chosen = discover(tmp_path / "{subject}" / "*" / "{modality}.nii.gz", prefer=["week-000"])
    assert [s.id for s in chosen] == ["Patient-001", "Patient-002"]
    assert [s.id for s in discover(tmp_path / "{subject}" / "*-010-*" / "{modality}.nii.gz")] == [s.id for s in chosen]
    with pytest.raises(DatasetError, match=r"if they are sessions, a pattern with \{session\} keeps them apart"):
        discover(tmp_path / "{subject}" / "*" / "{modality}.nii.gz")


def test_groups_are_no_patients(tmp_path):
    for group, name in (("HGG", "Brats18_1"), ("HGG", "Brats18_2"), ("LGG", "Brats18_3"), ("A", "001"), ("B", "001")):
        put(tmp_path / group / name / "t1n.nii.gz")
    subjects = discover(tmp_path)
    assert [s.id for s in subjects] == ["A_001", "B_001", "Brats18_1", "Brats18_2", "Brats18_3"]
    assert not any(s.patient for s in subjects)


@pytest.mark.parametrize("field", ["{visit}", "{Session}", "{}"])
def test_fields_of_a_pattern_are_few(tmp_path, field):
    with pytest.raises(DatasetError, match=r"expected the fields \{subject\} and \{modality\}.*no others"):
        discover(tmp_path / "{subject}" / field / "{modality}.nii.gz")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_files_and_folders_come_in_by_no_door(tmp_path, layout):
    where, name = LAYOUTS[layout]
    put(tmp_path / where.format("T1w"))
    put(tmp_path / where.replace("p1", "p2").replace("sub-01", "sub-02").format("T1w"))
    seen = found(given(tmp_path, layout))
    for hidden in (".p3", "__MACOSX", "@eaDir", "$RECYCLE.BIN"):
        put(tmp_path / hidden / "T1w.nii.gz")
        put(tmp_path / "x" / hidden / "y" / "T1w.nii.gz")
    for beginning in ("._", ".tmp-1234-"):
        place = tmp_path / where.format("T2w")
        put(place.with_name(beginning + place.name))
    assert found(given(tmp_path, layout)) == seen
    assert next(iter(seen[0])) == name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-be"])
def test_a_table_of_participants_is_read_in_any_letters(tmp_path, encoding):
    put(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    text = "participant_id\tname\tsite\nsub-01\tRenée\tMünchen\n"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "participants.tsv").write_bytes((mark + text).encode(encoding))
    assert discover(tmp_path)[0].site == "München"


def test_a_folder_of_dicom_is_called_what_it_is(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(50))
    with pytest.raises(DatasetError, match=r"holds DICOM \(IM0001\), .*medk2n synth.*dcm2niix"):
        discover(tmp_path)


def test_index_lists_what_is_left_out_and_odd_and_says_what_it_cannot_know(tmp_path, capsys):
    for name in ("a", "b", "c", "d"):
        put(tmp_path / "s" / name / "t1n.nii.gz")
    for name in ("x_t2", "y_T2w", "CT1"):
        put(tmp_path / "s" / "d" / f"{name}.nii.gz")
    assert main(["index", str(tmp_path / "s"), "-o", str(tmp_path / "i"), "--split", "0,0.4"]) == 3
    out = capsys.readouterr().out
    assert "left out: d: CT1.nii.gz (its name tells no modality)" in out
    assert "unreadable: d: d: both" in out
    assert "3 subjects are taken for 3 patients" in out
    assert "Neither layout nor name tells a patient behind 3 of them" in out
    assert "CT1.nii.gz" in (tmp_path / "i" / "index.md").read_text()
    again = ["index", str(tmp_path / "s"), "-o", str(tmp_path / "j"), "--prefer", "y", "--split", "0,0.4"]
    (tmp_path / "p.csv").write_text("subject,patient\na,one\nb,one\n")
    assert main([*again, "--patients", str(tmp_path / "p.csv")]) == 0
    assert "4 subjects are taken for 3 patients" in capsys.readouterr().out
    placed = json.loads((tmp_path / "j" / "split.json").read_text())["subjects"]
    assert placed["a"]["part"] == placed["b"]["part"]
    assert placed["a"]["patient"] == "one"


def test_training_tells_what_it_leaves_out_and_refuses_an_odd_subject_unless_told(tmp_path):
    for name in ("p1", "p2", "p3"):
        for word in ("t1n", "t2w"):
            put(tmp_path / name / f"{word}.nii.gz")
    put(tmp_path / "p2" / "T1w_run-2.nii.gz")
    (tmp_path / "p2" / "t1n.nii.gz").rename(tmp_path / "p2" / "T1w_run-1.nii.gz")

    def chosen(*settings: str, keep=None) -> dict[str, tuple[str, ...]]:
        config = load_config(
            "tiny", [f"data=['{tmp_path}']", "modalities=[t1n, t2w]", "core=[]", "spacing_mm=1", *settings]
        )
        reading._check_ids(config, None, [str(tmp_path)])
        return {s.id: s.modalities for s in reading._chosen(str(tmp_path), config, keep)}

    with pytest.raises(DatasetError, match=r"p2: both .* are t1n") as caught:
        chosen()
    assert any("p2" in note for note in caught.value.__notes__)
    assert list(chosen("exclude=[p2]")) == ["p1", "p3"]
    assert list(chosen("subjects=[p1, p3]", keep={"p1", "p3"})) == ["p1", "p3"]
    with pytest.warns(UserWarning, match=r"left out: p2: T1w_run-1.nii.gz \(T1w_run-2.nii.gz is preferred\)"):
        assert chosen("prefer=[run-2]")["p2"] == ("t1n", "t2w")


def test_arrays_whose_key_tells_nothing_are_told(tmp_path):
    stack = np.arange(24).reshape(2, 3, 4)
    np.savez(tmp_path / "p1.npz", t1n=stack, t1gd_x=stack, seg=stack, valid=np.ones(2), t1n_coronal=stack[0])
    assert found(tmp_path)[:2] == ({"p1": ("t1n",)}, ["p1: p1.npz:t1gd_x (its key tells no modality)"])

"""Every reader of data sets keeps the same promises, on a generated tree of its layout."""

import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medk2n import registry
from medk2n.data.discover import discover, discover_study
from medk2n.data.split import site_of
from medk2n.data.subject import Subject
from medk2n.errors import DatasetError, UnknownNameError, VolumeReadError
from medk2n.preparation.run import prepare
from medk2n.preparation.study import Plan
from medk2n.vocabulary import MODALITIES

SHAPE = (6, 7, 5)


def put(path, *, mask=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    array = rng.integers(0, 2 if mask else 900, SHAPE).astype(np.uint8 if mask else np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, 1, 2, 1])), path)


def bids(root):
    (root / "dataset_description.json").write_text("{}")
    for name in ("sub-01/anat/sub-01_T1w", "sub-01/anat/sub-01_ce-gadolinium_T1w", "sub-01/dwi/sub-01_dwi",
                 "sub-01/anat/sub-01_acq-random_T1w", "sub-01/anat/sub-01_desc-synth_T2w",
                 "sub-02/ses-01/anat/sub-02_ses-01_FLAIR", "sub-02/ses-02/anat/sub-02_ses-02_FLAIR"):  # fmt: skip
        put(root / f"{name}.nii.gz")
    put(root / "derivatives/truth/sub-01/anat/sub-01_desc-brain_mask.nii.gz", mask=True)
    put(root / "derivatives/truth/sub-01/anat/sub-01_desc-lesion_mask.nii.gz", mask=True)
    put(root / "derivatives/truth/sub-01/anat/sub-01_desc-noisefree_T1w.nii.gz")
    return {"sub-01": ("dwi", "t1c", "t1n"), "sub-02_ses-01": ("t2f",), "sub-02_ses-02": ("t2f",)}


def studies(root):
    for name in ("BraTS-GLI-00000-000", "BraTS-GLI-00002-000"):
        for suffix in ("t1n", "t1c", "t2f"):
            put(root / name / f"{name}-{suffix}.nii.gz")
        put(root / name / f"{name}-seg.nii.gz", mask=True)
    put(root / "ISLES" / "dwi.nii.gz")
    (root / "notes").mkdir()
    return {name: ("t1c", "t1n", "t2f") for name in ("BraTS-GLI-00000-000", "BraTS-GLI-00002-000")} | {
        "ISLES": ("dwi",)
    }


def arrays(root):
    rng = np.random.default_rng(0)
    stack = {key: rng.integers(0, 255, (4, 7, 6)).astype(np.uint8) for key in ("t1n", "t2f")}
    (root / "train").mkdir()
    np.savez(root / "train" / "p1.npz", **stack, seg=stack["t1n"] > 99, valid=np.array([True, False, True, True]))
    np.savez(root / "p2.npz", **stack, spacing=[0.5, 0.5, 5.0])
    slices = {f"{key}_{plane}": rng.integers(0, 255, (6, 7)).astype(np.uint8)
              for key in ("mr", "ct", "mask") for plane in ("axial", "coronal")}  # fmt: skip
    np.savez(root / "p3.npz", **slices)
    return {"p1": ("t1n", "t2f"), "p2": ("t1n", "t2f"), "p3": ("ct", "mr")}


def flat(root):
    """IXI, as its archives unpack; diffusion (DTI) is many volumes and none we know, and one T2 was never acquired."""
    cases = ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI025-Guys-0852")
    for case in cases:
        for contrast in ("T1", "T2", "PD", "MRA", "DTI"):
            if (case, contrast) != (cases[2], "T2"):
                put(root / f"IXI-{contrast}" / f"{case}-{contrast}.nii.gz")
    put(root / "IXI-T1" / f"{cases[0]}_brain_mask.nii.gz", mask=True)
    return {case: ("mra", "pd", "t1n", "t2w") for case in cases[:2]} | {cases[2]: ("mra", "pd", "t1n")}


def nnunet(root):
    channels = {"0": "T1", "1": "T1ce", "2": "noNorm", "3": "FLAIR"}
    (root / "dataset.json").write_text(json.dumps({"channel_names": channels, "file_ending": ".nii.gz"}))
    for folder, case in (("imagesTr", "BRATS_001"), ("imagesTr", "BRATS_002"), ("imagesTs", "BRATS_003")):
        for channel in range(4):
            put(root / folder / f"{case}_{channel:04}.nii.gz")
    put(root / "labelsTr" / "BRATS_001.nii.gz", mask=True)
    return {f"BRATS_00{i}": ("t1c", "t1n", "t2f") for i in (1, 2, 3)}


def slices(root):
    """PNG of 8 and 16 bits and .npy, numbered in any order; one subject has a mask and no spacing."""
    rng = np.random.default_rng(0)
    rows = ["subject,modality,file,slice,spacing_mm,site"]
    for subject, names, spacing in (
        ("p1", ("T1", "flair", "lesion"), ""),
        ("p2", ("T1", "T2"), "0.5 0.5 5"),
        ("p3", ("ct",), ""),
    ):
        for name in names:
            for level in (2, 10, 1) if subject != "p3" else ("",):
                plane = rng.integers(0, 2 if name == "lesion" else 250, (7, 6))
                path = root / "images" / f"{subject}_{name}_{level}{'.npy' if name == 'T2' else '.png'}"
                path.parent.mkdir(exist_ok=True)
                if name == "T2":
                    np.save(path, plane.astype(np.float32))
                else:
                    Image.fromarray((plane * 200).astype(np.uint16) if name == "T1" else plane.astype(np.uint8)).save(
                        path
                    )
                rows.append(f"{subject},{name},images/{path.name},{level},{spacing},here")
    (root / "slices.csv").write_text("\n".join(rows) + "\n")
    return {"p1": ("t1n", "t2f"), "p2": ("t1n", "t2w"), "p3": ("ct",)}


PATTERN = "{subject}/mr/scans [1]/{subject}_reg_{modality}_to_t1.nii.gz"


def pattern(root):
    """Too deep for any other reader; what lies beside is no match, and `to_t1` says nothing of the modality."""
    for name in ("p1", "p2", "p3"):
        for word in ("T1", "flair", "brain_mask", "DTI"):
            put(root / name / "mr" / "scans [1]" / f"{name}_reg_{word}_to_t1.nii.gz", mask="mask" in word)
        put(root / name / "mr" / "scans [1]" / "p9_reg_T2_to_t1.nii.gz")
        put(root / name / "mr" / "scans [1]" / f"{name}_raw_T2.nii.gz")
    return {name: ("t1n", "t2f") for name in ("p1", "p2", "p3")}


def prepared(root):
    """What `medk2n prepare` makes of study folders; one that was stopped half-way is no subject."""
    expected = studies(root.parent / f"{root.name}-source")
    source = root.parent / f"{root.name}-source"
    prepare(discover(source), source, root, Plan(spacing_mm=2.0))
    (root / ".tmp-ISLES").mkdir()
    put(root / ".tmp-ISLES" / "dwi.nii")
    return expected


LAYOUTS = {
    "arrays": arrays,
    "bids": bids,
    "flat": flat,
    "nnunet": nnunet,
    "pattern": pattern,
    "prepared": prepared,
    "slices": slices,
    "studies": studies,
}


def given(name, folder):
    """What a user would name: the folder, or a pattern that begins with it."""
    return folder / PATTERN if name == "pattern" else folder


def test_every_reader_has_a_layout_here():
    assert set(registry.names("data/datasets")) == set(LAYOUTS)


@pytest.mark.parametrize("name", registry.names("data/datasets"))
def test_a_reader_keeps_its_promises(tmp_path, name):
    expected = LAYOUTS[name](tmp_path)
    reader = registry.resolve("data/datasets", name)
    assert reader.name == name
    assert reader.matches(given(name, tmp_path))
    others = [registry.resolve("data/datasets", other) for other in LAYOUTS if other != name]
    assert not any(other.matches(tmp_path) for other in others)
    found = discover(given(name, tmp_path))
    assert {subject.id: subject.modalities for subject in found} == expected
    for subject in found:
        assert isinstance(subject, Subject)
        for modality, read in subject.readers.items():
            volume = read()
            assert modality in MODALITIES
            assert volume.modality == modality
            assert volume.array.dtype == np.float32
            header = subject.header(modality)
            assert header.grid.same_as(volume.grid)
            assert (
                header.spacing_known == volume.header.spacing_known == (volume.provenance.get("spacing") != "unknown")
            )
            assert Path(subject.provenance[modality].split(".npz:")[0]).name in os.fspath(subject.provenance[modality])
        assert subject.files
        assert all(path.is_file() for path in subject.files)
        for read in subject.masks.values():
            assert read().array.shape == volume.array.shape
            assert read().array.max() > 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_indexing_reads_no_voxels(tmp_path, monkeypatch, name):
    LAYOUTS[name](tmp_path)
    for module in (
        "datasets._files.read_volume", "datasets._files.read_labels", "datasets.arrays._load", "datasets.slices._load",
        "prepared.read_volume", "prepared.read_labels",
    ):  # fmt: skip
        monkeypatch.setattr(f"medk2n.data.{module}", lambda *a: pytest.fail("voxels were read"))
    found = discover(given(name, tmp_path))
    assert len(found) == 3
    for subject in found:
        assert all(subject.headers[modality]() for modality in subject.modalities)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{subject}/T1.nii.gz", r"expected the fields \{subject\} and \{modality\}"),
        ("{patient}/{modality}.nii.gz", r"expected the fields \{subject\} and \{modality\}"),
        ("{subject}/{modality}.mgz", "no file fits the pattern"),
        ("{subject}{subject}{modality}", "no file fits the pattern"),
        ("{subject}\0/{modality}", "is no pattern|no file fits"),
        ("{subject}/" + "{modality}" * 9, "10 fields; expected at most 8"),
        ("{subject}/x_{modality}.nii.gz", "none of bravo is a modality; expected names such as T1"),
        ("{subject}/{modality}.nii.gz", r"p1: both .* are t1n, expected one file a modality"),
    ],
)
def test_a_pattern_that_leads_nowhere_says_why(tmp_path, pattern, message):
    for name in ("x_bravo", "T1", "T1w"):
        put(tmp_path / "p1" / f"{name}.nii.gz")
    with pytest.raises(DatasetError, match=message):
        discover(tmp_path / pattern)


def test_cohorts_beside_each_other_are_one_data_set(tmp_path):
    """All five of BraTS 2023 and later, as their archives unpack, and the two grades of BraTS 2018."""
    for cohort in ("GLI", "MEN", "MET", "PED", "SSA"):
        name = f"BraTS-{cohort}-00001-000"
        for suffix in ("t1n", "t1c", "t2w", "t2f", "seg"):
            put(tmp_path / f"ASNR-MICCAI-BraTS2023-{cohort}" / name / f"{name}-{suffix}.nii.gz", mask=suffix == "seg")
    for grade, name in (("HGG", "Brats18_2013_2_1"), ("LGG", "Brats18_2013_0_1")):
        for suffix in ("t1", "t1ce", "t2", "flair", "seg"):
            put(tmp_path / grade / name / f"{name}_{suffix}.nii.gz", mask=suffix == "seg")
    found = discover(tmp_path)
    assert [subject.id for subject in found] == sorted(
        [f"BraTS-{cohort}-00001-000" for cohort in ("GLI", "MEN", "MET", "PED", "SSA")]
        + ["Brats18_2013_2_1", "Brats18_2013_0_1"]
    )
    assert {subject.modalities for subject in found} == {("t1c", "t1n", "t2f", "t2w")}
    assert all(set(subject.masks) == {"lesion"} for subject in found)
    assert {site_of(subject) for subject in found} == {"", *(f"BraTS-{c}" for c in ("GLI", "MEN", "MET", "PED", "SSA"))}


def test_isles_2022_keeps_its_masks_in_derivatives_without_a_pipeline(tmp_path):
    for subject in ("sub-strokecase0001", "sub-strokecase0002"):
        for place, suffix in (("anat", "FLAIR"), ("dwi", "dwi"), ("dwi", "adc")):
            put(tmp_path / subject / "ses-0001" / place / f"{subject}_ses-0001_{suffix}.nii.gz")
        put(tmp_path / "derivatives" / subject / "ses-0001" / f"{subject}_ses-0001_msk.nii.gz", mask=True)
    first, second = discover(tmp_path)
    assert first.id == "sub-strokecase0001_ses-0001"
    assert first.modalities == second.modalities == ("adc", "dwi", "t2f")
    assert set(first.masks) == set(second.masks) == {"lesion"}
    assert first.masks["lesion"]().array.max() == 1


def test_synthrad_2023_is_study_folders(tmp_path):
    for name in ("1BA001", "1BA005"):
        for kind in ("ct", "mr", "mask"):
            put(tmp_path / "brain" / name / f"{kind}.nii.gz", mask=kind == "mask")
    for root in (tmp_path, tmp_path / "brain"):
        found = discover(root)
        assert {subject.id: subject.modalities for subject in found} == {n: ("ct", "mr") for n in ("1BA001", "1BA005")}
        assert all(len(subject.masks) == 1 for subject in found)


def test_bids_keeps_random_protocols_for_inputs_and_finds_the_truth(tmp_path):
    bids(tmp_path)
    first = discover(tmp_path)[0]
    assert set(first.inputs_only) == {"t1n"}
    assert first.inputs_only["t1n"][0]().provenance["path"].endswith("acq-random_T1w.nii.gz")
    assert first.readers["t1n"]().provenance["path"].endswith("sub-01_T1w.nii.gz")
    assert set(first.masks) == {"brain", "lesion"}


def test_arrays_are_turned_to_ras_and_keep_valid_slices_only(tmp_path):
    arrays(tmp_path)
    first, second, third = discover(tmp_path)
    stored = np.load(tmp_path / "train" / "p1.npz")["t1n"]
    volume = first.readers["t1n"]()
    assert volume.array.shape == (6, 7, 3)
    np.testing.assert_array_equal(volume.array[:, ::-1, 1].T, stored[2])
    assert volume.provenance["spacing"] == "unknown"
    np.testing.assert_array_equal(first.masks["lesion"]().array, volume.array > 99)
    np.testing.assert_array_equal(second.readers["t1n"]().grid.spacing_mm, [0.5, 0.5, 5.0])
    assert third.readers["mr"]().array.shape == (6, 7, 1)
    assert set(third.masks) == {"head"}


def test_slices_are_stacked_upwards_and_turned_to_ras(tmp_path):
    slices(tmp_path)
    first, second, third = discover(tmp_path)
    volume = first.readers["t1n"]()
    assert volume.array.shape == (6, 7, 3)
    for z, level in enumerate((1, 2, 10)):
        stored = np.asarray(Image.open(tmp_path / "images" / f"p1_T1_{level}.png"))
        assert stored.max() > 255
        np.testing.assert_array_equal(volume.array[:, ::-1, z].T, stored)
        stored = np.load(tmp_path / "images" / f"p2_T2_{level}.npy")
        np.testing.assert_array_equal(second.readers["t2w"]().array[:, ::-1, z].T, stored)
    assert volume.provenance["spacing"] == "unknown"
    assert volume.provenance["path"].endswith("p1_T1_1.png and 2 more")
    assert set(np.unique(first.masks["lesion"]().array)) == {0, 1}
    np.testing.assert_array_equal(second.readers["t2w"]().grid.spacing_mm, [0.5, 0.5, 5.0])
    assert third.readers["ct"]().array.shape == (6, 7, 1)
    assert first.site == "here"


def test_grey_saved_as_colour_is_grey_and_colour_is_refused(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (7, 6), dtype=np.uint8)
    colour = np.stack([grey, grey, 255 - grey], -1)
    for name, plane in (("p1", np.stack([grey] * 3, -1)), ("p2", np.dstack([grey] * 3 + [255 - grey])), ("p3", colour)):
        Image.fromarray(plane).save(tmp_path / f"{name}.png")
    (tmp_path / "slices.csv").write_text("subject,modality,file\n" + "".join(f"p{k},mr,p{k}.png\n" for k in (1, 2, 3)))
    first, second, third = discover(tmp_path)
    for subject in (first, second):
        np.testing.assert_array_equal(subject.readers["mr"]().array[:, ::-1, 0].T, grey)
    with pytest.raises(VolumeReadError, match=r"p3\.png: is coloured; expected one grey slice"):
        third.readers["mr"]()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["p1,t1,a.png,1,", "p1,,a.png,2,"], "slices.csv, line 3: no modality; expected one in every line"),
        (["p1,t9,a.png,1,"], "a.png: unknown modality 't9'"),
        (["p1,t1,a.png,1,", "p1,t1,b.png,1.0,"], "p1 has a.png and b.png as t1n at slice 1; expected one"),
        (["p1,t1,a.png,one,"], "slice 'one'; expected a number"),
        (["p1,t1,c.png,1,"], "c.png: no such file"),
        (["p1,t1,a.png,1,", "p1,t2,b.png,2,"], "p1 has 1 slices of t1n and 1 of t2w, not the same ones"),
        (["p1,t1,a.png,1,1 1 1", "p1,t2,b.png,1,1 1 2"], "p1 has spacings 1 1 1 and 1 1 2; expected one"),
        (["p1,t1,a.png,1,1 1"], "spacing_mm '1 1'; expected x, y and z in mm"),
        (["p1,t1,a.png,1,1 0 1"], "spacing_mm '1 0 1'; expected x, y and z in mm"),
    ],
)
def test_a_table_of_slices_that_contradicts_itself_is_refused(tmp_path, rows, message):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.eye(5, dtype=np.uint8) * 200).save(tmp_path / name)
    (tmp_path / "slices.csv").write_text("\n".join(["subject,modality,file,slice,spacing_mm", *rows]))
    with pytest.raises(DatasetError, match=re.escape(message)):
        discover(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.png: cannot be read"),
        (b"not a picture", "a.png: cannot be read"),
        (None, "b.png: 4 x 5 pixels, a.png has 5 x 5; expected one size"),
    ],
)
def test_slices_that_cannot_be_stacked_are_refused(tmp_path, content, message):
    Image.fromarray(np.eye(5, dtype=np.uint8) * 200).save(tmp_path / "a.png")
    Image.fromarray(np.eye(5, 4, dtype=np.uint8) * 200).save(tmp_path / "b.png")
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "slices.csv").write_text("subject,modality,file,slice\np1,t1,a.png,1\np1,t1,b.png,2\n")
    (subject,) = discover(tmp_path)
    with pytest.raises(VolumeReadError, match=re.escape(message)):
        subject.readers["t1n"]()


def test_masks_of_flat_and_nnunet_find_their_subjects(tmp_path):
    for name, layout, kind in (("a", flat, "brain"), ("b", nnunet, "lesion")):
        (tmp_path / name).mkdir()
        layout(tmp_path / name)
        first, *others = discover(tmp_path / name)
        assert set(first.masks) == {kind}
        assert not any(other.masks for other in others)


def test_files_of_many_subjects_side_by_side_are_told_apart_by_name(tmp_path):
    for name in ("anna_t1", "anna_flair", "anna2_t1", "ben_T1w", "anna2_seg"):
        put(tmp_path / f"{name}.nii.gz", mask=name.endswith("seg"))
    found = {subject.id: subject for subject in discover(tmp_path)}
    assert {name: subject.modalities for name, subject in found.items()} == {
        "anna": ("t1n", "t2f"),
        "anna2": ("t1n",),
        "ben": ("t1n",),
    }
    assert [name for name, subject in found.items() if subject.masks] == ["anna2"]


@pytest.mark.parametrize(
    "names",
    [
        [f"{study}/{study}_{kind}" for study in ("PD_001", "PD_002", "HC_001") for kind in ("t1n", "t2f", "seg")],
        [f"{study}/{kind}" for study in ("MRI_1", "MRI_2") for kind in ("t1", "seg")],
        ["CT_a/anna_ct", "CT_b/ben_ct"],
        ["anna_T1/t1", "ben_T1/t1"],
    ],
)
def test_studies_called_like_a_modality_are_studies(tmp_path, names):
    for name in names:
        put(tmp_path / f"{name}.nii.gz", mask=name.endswith("seg"))
    found = discover(tmp_path)
    assert [subject.id for subject in found] == sorted({name.split("/")[0] for name in names})
    assert all(bool(subject.masks) == any("seg" in name for name in names) for subject in found)


def test_one_subject_with_random_protocols_is_one_study(tmp_path):
    for name in ("anat/a_T1w", "anat/a_acq-random_T1w", "dwi/a_dwi", "dwi/a_ADC", "dwi/a_acq-random_dwi"):
        put(tmp_path / "sub-01" / f"{name}.nii.gz")
    (only,) = discover(tmp_path / "sub-01")
    assert only.modalities == ("adc", "dwi", "t1n")
    assert set(only.inputs_only) == {"t1n", "dwi"}
    (loose,) = discover(tmp_path / "sub-01" / "anat")
    assert set(loose.inputs_only) == {"t1n"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["p1_T1", "p1_T1_brain", "p1_T2"], "'p1' and 'p1_T1_brain' may be one subject or two"),
        (["T1_anna", "T2_anna", "T1_ben", "T2_ben"], "no two files share a name before the modality"),
    ],
)
def test_flat_names_that_do_not_tell_subjects_apart_are_refused(tmp_path, names, message):
    for name in names:
        put(tmp_path / f"{name}.nii.gz")
    with pytest.raises(DatasetError, match=message):
        discover(tmp_path)


def test_a_mask_of_another_subject_is_not_taken(tmp_path):
    for name in ("p1_T1", "p2_T1", "p10_DTI", "p10_seg"):
        put(tmp_path / f"{name}.nii.gz", mask=name.endswith("seg"))
    found = discover(tmp_path)
    assert [subject.id for subject in found] == ["p1", "p2"]
    assert not any(subject.masks for subject in found)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("imagesTs/BRATS_001_0000", "imagesTr/BRATS_001_0000"), "are one case twice"),
        (("imagesTr/BRATS_001",), r"no file called CASE_0000.*split 4-D files first"),
    ],
)
def test_nnunet_cases_that_are_unclear_are_refused(tmp_path, extra, message):
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "FLAIR"}}')
    for name in extra:
        put(tmp_path / f"{name}.nii.gz")
    with pytest.raises(DatasetError, match=message):
        discover(tmp_path)


def test_nnunet_cases_called_like_a_modality_are_cases(tmp_path):
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "CT"}}')
    for case in ("CT_001", "CT_002"):
        put(tmp_path / "imagesTr" / f"{case}_0000.nii.gz")
    assert [subject.id for subject in discover(tmp_path)] == ["CT_001", "CT_002"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"dataset\.json: cannot be read \(.*\); expected JSON with"),
        ('{"name": "x"}', r"dataset\.json: cannot be read \(.*\); expected JSON with"),
        ('{"channel_names": {"0": "T1", "1": "t1n"}}', "two channels are t1n"),
        ('{"modality": {"0": "depth"}}', r"no channel is a known modality \(depth\)"),
    ],
)
def test_an_nnunet_description_that_says_too_little_is_refused(tmp_path, text, message):
    nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        discover(tmp_path)


def test_one_study_folder_is_a_data_set_of_one(tmp_path):
    studies(tmp_path)
    (only,) = discover(tmp_path / "BraTS-GLI-00000-000")
    assert only.id == "BraTS-GLI-00000-000"
    assert set(only.masks) == {"lesion"}


def test_subjects_are_chosen_and_excluded_by_id(tmp_path):
    studies(tmp_path)
    assert [s.id for s in discover(tmp_path, exclude=["ISLES"])] == ["BraTS-GLI-00000-000", "BraTS-GLI-00002-000"]
    assert [s.id for s in discover(tmp_path, subjects=["ISLES"])] == ["ISLES"]
    with pytest.raises(UnknownNameError, match=r"no subject 'ISLE' .*did you mean ISLES"):
        discover(tmp_path, subjects=["ISLE"])
    with pytest.raises(UnknownNameError, match="no subject 'zzz'"):
        discover(tmp_path, exclude=["zzz"])
    with pytest.raises(DatasetError, match="no subject is left of 3"):
        discover(tmp_path, subjects=["ISLES"], exclude=["ISLES"])


def test_folders_without_scans_say_what_was_looked_for(tmp_path):
    with pytest.raises(DatasetError, match=r"no scans found; looked for \*\.npz .*BIDS.*study folders"):
        discover(tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        discover(tmp_path / "gone")
    bids(tmp_path)
    arrays(tmp_path)
    with pytest.raises(DatasetError, match="expected one layout"):
        discover(tmp_path)


def test_one_modality_twice_names_both_files(tmp_path):
    put(tmp_path / "a" / "x_t1.nii.gz")
    put(tmp_path / "a" / "y_T1w.nii.gz")
    for search in (discover, lambda root: discover_study(root / "a")):
        with pytest.raises(DatasetError, match=r"both .*x_t1\.nii\.gz and .*y_T1w\.nii\.gz are t1n"):
            search(tmp_path)


def test_one_name_twice_is_refused(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        np.savez(tmp_path / part / "p1.npz", t1n=np.arange(24).reshape(2, 3, 4))
    with pytest.raises(DatasetError, match="two subjects are called p1"):
        discover(tmp_path)


def test_a_damaged_npz_is_one_line(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(VolumeReadError, match=r"a\.npz: cannot be read as \.npz"):
        discover(tmp_path)
    np.savez(tmp_path / "a.npz", t1n=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(VolumeReadError, match=r"a\.npz"):
        discover(tmp_path)[0].readers["t1n"]()


def test_a_study_comes_as_folder_files_or_mapping(tmp_path):
    studies(tmp_path)
    folder = tmp_path / "BraTS-GLI-00000-000"
    files = sorted(folder.glob("*-t*.nii.gz"))
    for source in (folder, files, {"T1CE": files[0], "t1n": files[1], "flair": files[2]}):
        study = discover_study(source)
        assert study.id == "BraTS-GLI-00000-000"
        assert study.modalities == ("t1c", "t1n", "t2f")
    assert discover_study(files[0]).modalities == ("t1c",)
    bids(tmp_path / "ISLES")
    assert discover_study(tmp_path / "ISLES" / "sub-01").modalities == ("dwi", "t1c", "t1n")


def test_a_study_that_tells_nothing_is_refused(tmp_path):
    put(tmp_path / "scan.nii.gz")
    with pytest.raises(DatasetError, match="no image whose name tells its modality"):
        discover_study(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown modality 'x9'"):
        discover_study({"x9": tmp_path / "scan.nii.gz"})
    with pytest.raises(DatasetError, match="both given as t1n"):
        discover_study({"t1": tmp_path / "scan.nii.gz", "t1n": tmp_path / "other.nii.gz"})


@pytest.mark.skipif("MEDK2N_REAL_DATA" not in os.environ, reason="MEDK2N_REAL_DATA names no folder of real scans")
@pytest.mark.parametrize(("folder", "n"), [("volumes", 3), ("lgg128", 94), ("four128", 12), ("synthrad_slices", 153)])
def test_real_scans_are_found(folder, n):
    found = discover(Path(os.environ["MEDK2N_REAL_DATA"]) / folder)
    assert len(found) == n
    assert all(np.isfinite(read().array).all() for read in found[0].readers.values())

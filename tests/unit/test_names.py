"""Modalities from file names, and names for outputs."""

import pytest

from medk2n.errors import UnknownNameError
from medk2n.io.names import bids_name, is_image, is_mask, mask_kind, recognise, study_id, synth_name


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("BraTS-GLI-00000-000-t1n.nii.gz", "t1n"),
        ("BraTS-GLI-00000-000-t1c.nii.gz", "t1c"),
        ("BraTS-MET-00002-000-t2f.nii.gz", "t2f"),
        ("BraTS2021_00000_t1ce.nii.gz", "t1c"),
        ("BraTS20_Training_001_flair.nii", "t2f"),
        ("Brats18_2013_2_1_t1ce.nii.gz", "t1c"),
        ("Brats18_2013_2_1_t2.nii.gz", "t2w"),
        ("Brats18_2013_2_1_t1.nii.gz", "t1n"),
        ("sub-01_ses-1_ce-gadolinium_T1w.nii.gz", "t1c"),
        ("sub-01_T1w.nii.gz", "t1n"),
        ("sub-01_acq-t2_T1w.nii.gz", "t1n"),
        ("sub-01_FLAIR.nii.gz", "t2f"),
        ("sub-01_PDw.nii.gz", "pd"),
        ("sub-t1_T2w.nii.gz", "t2w"),
        ("sub-strokecase0001_ses-0001_dwi.nii.gz", "dwi"),
        ("sub-strokecase0001_ses-0001_adc.nii.gz", "adc"),
        ("sub-01_ct.nii.gz", "ct"),
        ("dwi.nii.gz", "dwi"),
        ("t1n.nii.gz", "t1n"),
        ("IXI002-Guys-0828-PD.nii.gz", "pd"),
        ("IXI002-Guys-0828-T1.nii.gz", "t1n"),
        ("UCSF-PDGM-0004_T1c_bias.nii.gz", "t1c"),
        ("patient T2-FLAIR.nii", "t2f"),
        ("patient_t2_flair.nii", "t2f"),
        ("study/T1_post_contrast.nii.gz", "t1c"),
        ("P01_pre_contrast_T1.nii.gz", "t1n"),
        ("T1_without_contrast.nii.gz", "t1n"),
        ("T1-non-contrast.nii.gz", "t1n"),
        ("T1w_no-gad.nii.gz", "t1n"),
        ("T1_w-o_contrast.nii.gz", "t1n"),
        ("sub-1_ce-none_T1w.nii.gz", "t1n"),
        ("T1_with_contrast.nii.gz", "t1c"),
        ("case7_T1gad.nii.gz", "t1c"),
        ("case7_T1wCE.nii.gz", "t1c"),
        ("DWI_b0.nii.gz", None),
        ("DWI_b1000.nii.gz", "dwi"),
        ("mr.nii.gz", "mr"),
        ("mr_t2.nii.gz", "t2w"),
        ("sub-01_T1map.nii.gz", None),
        ("sub-01_SWI.nii.gz", None),
        ("case_0000.nii.gz", None),
        ("sub-01_desc-synth_T2w.nii.gz", None),
        ("BraTS-GLI-00000-000-seg.nii.gz", None),
        ("sub-01_label-lesion_T1w_mask.nii.gz", None),
    ],
)
def test_modality_of_a_file_name(filename, expected):
    assert recognise(filename) == expected


@pytest.mark.parametrize(
    ("filename", "kind"),
    [
        ("seg.nii.gz", "lesion"),
        ("lesion.nii.gz", "lesion"),
        ("BraTS-GLI-00000-000-seg.nii.gz", "lesion"),
        ("sub-01_desc-brain_mask.nii.gz", "brain"),
        ("sub-01_desc-lesion_mask.nii.gz", "lesion"),
        ("sub-01_label-lesion_mask.nii.gz", "lesion"),
        ("t1_brainmask.nii.gz", "brain"),
        ("sub-01_dseg.nii.gz", "lesion"),
    ],
)
def test_masks_are_known_by_name(filename, kind):
    assert is_mask(filename)
    assert mask_kind(filename) == kind


def test_images_are_no_masks_and_half_written_files_no_images():
    assert not is_mask("sub-lesion_T1w.nii.gz")
    assert not is_image(".tmp-1234-t1n.nii.gz")
    assert not is_image("notes.txt")
    assert is_image("T1.NII.GZ")


def test_bids_names_keep_the_order_of_entities():
    assert bids_name("01", "t2w") == "sub-01_T2w.nii.gz"
    full = bids_name("sub-a_b", "T1CE", session="ses-2", desc="noise free", acq="random")
    assert full == "sub-ab_ses-2_acq-random_ce-gadolinium_desc-noisefree_T1w.nii.gz"
    with pytest.raises(UnknownNameError, match="did you mean t2w"):
        bids_name("01", "t2ww")


def test_synthetic_names_say_so_and_are_never_taken_as_input():
    assert synth_name("BraTS-GLI-00000-000", "t2w") == "BraTS-GLI-00000-000_desc-synth_T2w.nii.gz"
    assert synth_name("sub-01_ses-2", "t1c") == "sub-01_ses-2_ce-gadolinium_desc-synth_T1w.nii.gz"
    assert synth_name("../a b/", "t2f") == "a-b_desc-synth_FLAIR.nii.gz"
    assert synth_name("..", "ct") == "study_desc-synth_ct.nii.gz"
    assert recognise(synth_name("x", "t2w")) is None


def test_a_study_of_loose_files_is_called_by_what_they_share(tmp_path):
    assert study_id(["x/BraTS-GLI-00000-000-t1n.nii.gz", "x/BraTS-GLI-00000-000-t2f.nii.gz"]) == "BraTS-GLI-00000-000"
    assert study_id(["sub-01_ce-gadolinium_T1w.nii.gz"]) == "sub-01"
    assert study_id(["P01_T1_pre_contrast.nii.gz"]) == "P01"
    assert study_id([tmp_path / "p7" / "t1n.nii.gz", tmp_path / "p7" / "t2w.nii.gz"]) == "p7"

"""Modalities from file names, and names for outputs."""

import pytest

from medk2n.errors import UnknownNameError
from medk2n.io.names import bids_name, is_image, is_mask, mask_kind, read_name, recognise, study_id, synth_name


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


NAMES = {
    "t1c": """T1+C T1C+ T1_C+ C+_T1 T1_(+C) T1+ T1w+Gd T1_postGd T1postGd T1wPostContrast T1Gadovist T1_Dotarem T1_KM
        T1_enhanced T1_post post_T1 T1_post_op_Gd pre_op_T1_Gd preop_T1_Gd CE-T1 ce_t1w T1CE CET1
        T1_Gd_not_registered T1Gd_reg_T1 T1c_to_T1n t1_se_tra_km Ax_T1_FSPGR_POST TCGA-02-0003_t1Gd
        UPENN-GBM-00001_11_T1GD sub-01_acq-postGd_T1w sub-01_ce-gadovist_T1w""",
    "t1n": """T1_to_FLAIR T1_in_T2 T1toFLAIR T1_regT2 T1_reg_T2 reg_T1 reg_T1_to_FLAIR T1_registered_to_FLAIR
        T1_space-FLAIR T1_inFLAIRspace T1_in_MNI T1_warped_to_T2 T1_unenhanced T1preGd T1_pre_Gd T1_nativ
        T1_no_contrast T1_wo_contrast T1_post_op T1_postop 001_post_op_T1 T1_post_surgery T1_post-treatment
        T1_postprocessed T1_lesion_filled T1_lesion-filled Brain-Tumor-Progression_PGBM-001_T1 Tumor01_T1 PD_001_T1
        CT_17_T1 t1_space_sag t1_mprage_sag sub-01_space-T2w_T1w sub-01_acq-gre_T1w sub-01_acq-postop_T1w
        sub-01_run-1_T1w MR_T1""",
    "t2f": """t2_tirm_tra_dark-fluid t2_tirm dark-fluid T2_dark_fluid t2_spc_da-fl_sag FLAIR_to_T1 FLAIR_in_T1c
        T2FLAIRtoT1 T2_FLAIR_SPACE t2_space_flair t2_space_dark-fluid AX_T2_FLAIR_FS space-T1_FLAIR
        sub-01_acq-flair_T2w""",
    "t2w": "T2_to_T1 T2_SPACE T2_mapped_to_T1 T2_post_contrast t2_tse_tra sub-01_part-mag_T2w T2_in_FLAIR MRI_12_T2",
    "ct": "ct_reg_T1 CT_to_MR CT_contrast NCCT",
    "adc": "ADC_map dwi_ADC DWI_ADC_map",
    "dwi": "DWI_b1000 dwi_trace DWI_to_T1",
    None: """T2_star T2star T2* T2starw T2-GRE T2_map T2_mapping T1map T1_rho T1_swi T1_ph T1_e1_ph T1_phase T1_real
        T1_imaginary T1_pve_0 T1_pve0 T1_pveseg T1_warp T1_1Warp T1_jacobian T1_wmparc T1_aseg FLAIR_wmh wmh T1_dce
        T1_subtraction
        T1_synthetic T2_fl2d_tra_hemo TCGA_t1Gd_GlistrBoost_ManuallyCorrected DWI_b0 DWI_b500 DWI_b2000 dwi_FA
        sub-01_part-phase_T2w sub-01_part-real_T1w sub-01_echo-1_part-imag_T1w sub-01_T2starw sub-01_T2star T1_FLAIR
        t1_tirm_dark-fluid T1_T2 PD_T2 CT_T1 PET_CT T1_T1ce adc_dwi T2_2_T1 FLAIR_T1 to_T1 brain_in_T1 T1_Gd_pre
        T1_C T1-C lesion_T1 tumor_FLAIR CT1""",
}


@pytest.mark.parametrize(("name", "expected"), [(name, m) for m, names in NAMES.items() for name in names.split()])
def test_a_name_says_one_thing_or_nothing(name, expected):
    read = read_name(f"{name}.nii.gz")
    assert read.modality == expected
    assert bool(read.why) == (expected is None)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("T1_FLAIR", "tells t1n and t2f; unclear"),
        ("T1_Gd_pre", "given and that it was not; unclear"),
        ("lesion_T1", "an image or a mask of it; unclear"),
        ("to_T1", "the space it lies in, but not what it is"),
        ("T2_map", "tells T2, but also 'map'"),
        ("T1_sd", "such is no image to use"),
        ("T1_T2_ratio", "its name tells"),
        ("sub-01_part-phase_T2w", "is the phase of a complex image"),
        ("scan", "its name tells no modality"),
        ("T1_mask", "it is a mask"),
        ("sub-01_desc-synth_T2w", "it is synthetic"),
    ],
)
def test_a_name_that_cannot_be_used_says_why(name, why):
    assert why in read_name(f"{name}.nii.gz").why


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
        ("T1_lesion.nii.gz", "lesion"),
        ("wmh.nii.gz", "lesion"),
        ("brain_tumor_seg.nii.gz", "lesion"),
        ("Brain-Tumor-Progression_PGBM-001_brain_mask.nii.gz", "brain"),
        ("sub-01_label-L_desc-T1lesion_mask.nii.gz", "lesion"),
        ("sub-01_desc-aseg_dseg.nii.gz", "aseg"),
        ("sub-01_mod-T1w_defacemask.nii.gz", "mask"),
        ("gm_mask.nii.gz", "gm"),
        ("csf_seg.nii.gz", "csf"),
        ("mask.nii.gz", "mask"),
        ("T1_mask.nii.gz", "mask"),
        ("msk.nii.gz", "lesion"),
    ],
)
def test_masks_are_known_by_name(filename, kind):
    assert is_mask(filename)
    assert mask_kind(filename) == kind


def test_images_are_no_masks_and_half_written_files_no_images():
    for name in ("sub-lesion_T1w", "sub-01_acq-tumor_T1w", "T1_lesion_filled", "T1_aseg", "Tumor01_T1", "synthseg"):
        assert not is_mask(f"{name}.nii.gz")
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
    for name in ("P01_T1_pre_contrast", "P01_T1+C", "P01_T1postGd", "P01_T1_to_FLAIR", "P01_FLAIR_dark-fluid"):
        assert study_id([f"{name}.nii.gz"]) == "P01"
    assert study_id(["sub-01_acq-postGd_run-1_T1w.nii.gz", "sub-01_run-2_T2w.nii.gz"]) == "sub-01"
    assert study_id([tmp_path / "p7" / "t1n.nii.gz", tmp_path / "p7" / "t2w.nii.gz"]) == "p7"

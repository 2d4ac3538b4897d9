"""The table of modalities: one row each, and the only place to add one.

`Modality` is the finest unit this package synthesises: an MR contrast (t1n, t2f, ...) or a
modality in DICOM's sense (CT, PET). Names are the short ones of BraTS; BIDS suffixes and
other spellings are aliases coming in and file names going out.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from medk2n.errors import UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class Modality:
    """One row of the table.

    Attributes:
        name: the short name used everywhere.
        label: for people, as a radiologist would write it.
        bids_suffix: the last entity of a BIDS file name.
        bids_entities: entities that BIDS needs beside the suffix, e.g. ("ce-gadolinium",).
        bids_datatype: the BIDS folder.
        aliases: other spellings accepted, lower case.
        unit: of the stored values; "arbitrary" for MR.
        scaling: "robust" (percentiles of the foreground) or "fixed" (the same window always).
        window: of the "fixed" scaling, in `unit`.
        background: value of empty air outside the patient, in `unit`.
        texts: what an image of it looks like and why, each told apart from the others: how it is acquired, what fluid,
            fat, bone, vessels and lesions do. `medk2n.identity` learns to recognise images by them.
    """

    name: str
    label: str
    bids_suffix: str
    aliases: tuple[str, ...]
    bids_entities: tuple[str, ...] = ()
    bids_datatype: str = "anat"
    unit: str = "arbitrary"
    scaling: Literal["robust", "fixed"] = "robust"
    window: tuple[float, float] = (0.0, 1.0)
    background: float = 0.0
    texts: tuple[str, ...] = ()


_TABLE = (
    Modality(
        name="t1n",
        label="T1",
        bids_suffix="T1w",
        aliases=("t1", "t1w", "t1_native"),
        texts=(
            "Native T1-weighted MRI without contrast agent: short TR (400 to 700 ms) and short TE (10 ms), or an "
            "inversion-prepared gradient echo; white matter is brighter than grey matter.",
            "Cerebrospinal fluid in the ventricles is black, fat under the skin and in the marrow is bright, "
            "cortical bone and flowing blood are dark; no vessel and no lesion enhances.",
            "Before gadolinium: oedema and most tumours are slightly darker than white matter, and subacute "
            "haemorrhage and melanin are bright.",
        ),
    ),
    Modality(
        name="t1c",
        label="T1 + gadolinium",
        bids_suffix="T1w",
        bids_entities=("ce-gadolinium",),
        aliases=("t1ce", "t1gd", "t1gad", "t1wce", "t1wgd", "t1post", "t1w-ce", "t1km", "ce-gadolinium_t1w"),
        texts=(
            "T1-weighted MRI after intravenous gadolinium contrast agent: vessels, venous sinuses, choroid "
            "plexus, pituitary and nasal mucosa light up.",
            "Gadolinium enhancement shows a leaking blood-brain barrier: a bright rim around a necrotic tumour "
            "core, enhancing metastases and meninges.",
            "Post-contrast spin or gradient echo of short TR and TE: blood in arteries and veins is the brightest "
            "signal, fluid stays dark.",
        ),
    ),
    Modality(
        name="t2w",
        label="T2",
        bids_suffix="T2w",
        aliases=("t2",),
        texts=(
            "T2-weighted turbo spin echo MRI with long TR (3000 to 6000 ms) and long TE (80 to 120 ms): water is "
            "brightest.",
            "Cerebrospinal fluid in ventricles and sulci is white, grey matter is brighter than white matter, "
            "flow voids in arteries are black.",
            "Oedema, cysts, gliosis and most tumours are bright like fluid; iron in the basal ganglia and calcium "
            "are dark.",
        ),
    ),
    Modality(
        name="t2f",
        label="T2 FLAIR",
        bids_suffix="FLAIR",
        aliases=("flair", "t2flair", "t2-flair", "fla"),
        texts=(
            "FLAIR, fluid-attenuated inversion recovery: an inversion time (TI about 2000 to 2500 ms) nulls free "
            "water, with long TR (9000 ms) and long TE.",
            "Ventricles and sulci are suppressed to black while oedema, demyelinating plaques, gliosis and "
            "periventricular white matter lesions stay bright.",
            "Heavily T2-weighted, yet the fluid is dark: grey matter is a little brighter than white matter, and "
            "the rim of the ventricles glows.",
        ),
    ),
    Modality(
        name="mra",
        label="MR angiography",
        bids_suffix="angio",
        aliases=("angio", "tof", "mra-tof"),
        texts=(
            "Time-of-flight MR angiography: inflow of unsaturated blood makes arteries brilliantly bright on a "
            "dark, saturated background.",
            "The circle of Willis, carotid and middle cerebral arteries stand out as thin bright tubes; brain, "
            "fluid and fat are suppressed.",
            "A 3-D gradient echo with very short TR and TE for the lumen of vessels, read as a maximum intensity "
            "projection.",
        ),
    ),
    Modality(
        name="pd",
        label="Proton density",
        bids_suffix="PDw",
        aliases=("pdw",),
        texts=(
            "Proton density weighted MRI: long TR and short TE (15 to 30 ms), so the signal counts protons rather "
            "than relaxation.",
            "Low contrast: grey matter is brighter than white matter, fluid is intermediate and close to the "
            "brain, neither black nor white.",
            "The first echo of a dual-echo spin echo; fat and marrow are fairly bright, bone and air are dark.",
        ),
    ),
    Modality(
        name="dwi",
        label="Diffusion (b = 1000)",
        bids_suffix="dwi",
        bids_datatype="dwi",
        aliases=("trace", "b1000"),
        texts=(
            "Diffusion-weighted echo-planar MRI at b = 1000 s/mm2: strong gradients, the trace over directions, "
            "coarse and distorted near air.",
            "Restricted diffusion in acute ischaemic stroke, abscess and dense tumour is bright like a light "
            "bulb; free fluid has lost all its signal.",
            "Isotropic trace image of an EPI sequence: ventricles are dark, fat is suppressed, skull and scalp vanish.",
        ),
    ),
    Modality(
        name="adc",
        label="Apparent diffusion coefficient",
        bids_suffix="ADC",
        bids_datatype="dwi",
        aliases=("adcmap",),
        unit="1e-6 mm^2/s",
        texts=(
            "Apparent diffusion coefficient map in mm2/s, calculated from diffusion images of several b values; "
            "no echo but a parametric map.",
            "Free water in the ventricles has the highest diffusivity (3e-3) and is white; brain is uniform grey "
            "(0.8e-3).",
            "Acute infarcts are dark on the map because water is trapped in swollen cells; vasogenic oedema is bright.",
        ),
    ),
    Modality(
        name="ct",
        label="CT",
        bids_suffix="ct",
        bids_datatype="ct",
        aliases=("ctscan", "ncct"),
        unit="HU",
        scaling="fixed",
        window=(-1000.0, 2000.0),
        background=-1000.0,
        texts=(
            "X-ray computed tomography in Hounsfield units: bone and calcification are white (above 300 HU), air "
            "is black (-1000 HU).",
            "Radiodensity of a rotating X-ray tube without magnet: the skull is a dense white ring, soft brain "
            "tissue is nearly uniform grey (20 to 40 HU).",
            "Fat is darker than water (-100 HU), fluid is 0 to 15 HU, fresh blood is dense (60 to 80 HU).",
        ),
    ),
    Modality(
        name="pet",
        label="PET",
        bids_suffix="pet",
        bids_datatype="pet",
        aliases=("fdg",),
        texts=(
            "Positron emission tomography: the uptake of a radioactive tracer such as FDG, in standardised uptake "
            "values.",
            "Metabolic activity instead of anatomy: cortex, basal ganglia and active tumour glow with glucose "
            "uptake, white matter and bone are faint.",
            "Coarse and blurred, counted from annihilation photons, 4 to 6 mm resolution, noisy.",
        ),
    ),
    Modality(
        name="mr",
        label="MR of unstated contrast",
        bids_suffix="MR",
        aliases=("mri",),
        texts=(
            "Magnetic resonance imaging of a contrast that nobody has stated: the sequence parameters are unknown.",
        ),
    ),
)

MODALITIES: dict[str, Modality] = {row.name: row for row in _TABLE}
_BY_ALIAS: dict[str, str] = {row.name: row.name for row in _TABLE} | {
    alias: row.name for row in _TABLE for alias in row.aliases
}


def short_name(word: str) -> str | None:
    """The short name behind a short name or alias, whatever its case; None for any other word."""
    return _BY_ALIAS.get(word.strip().lower())


def modality(name: str) -> Modality:
    """The row for a short name or alias, whatever its case.

    Raises:
        UnknownNameError: with the near names and the full list.
    """
    key = short_name(name)
    if key is None:
        near = get_close_matches(name.lower(), _BY_ALIAS, n=3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise UnknownNameError(f"unknown modality {name!r}: {hint}known names: {', '.join(MODALITIES)}")
    return MODALITIES[key]

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


_TABLE = (
    Modality(name="t1n", label="T1", bids_suffix="T1w", aliases=("t1", "t1w", "t1_native")),
    Modality(
        name="t1c",
        label="T1 + gadolinium",
        bids_suffix="T1w",
        bids_entities=("ce-gadolinium",),
        aliases=("t1ce", "t1gd", "t1gad", "t1wce", "t1wgd", "t1post", "t1w-ce", "t1km", "ce-gadolinium_t1w"),
    ),
    Modality(name="t2w", label="T2", bids_suffix="T2w", aliases=("t2",)),
    Modality(name="t2f", label="T2 FLAIR", bids_suffix="FLAIR", aliases=("flair", "t2flair", "t2-flair", "fla")),
    Modality(name="mra", label="MR angiography", bids_suffix="angio", aliases=("angio", "tof", "mra-tof")),
    Modality(name="pd", label="Proton density", bids_suffix="PDw", aliases=("pdw",)),
    Modality(
        name="dwi", label="Diffusion (b = 1000)", bids_suffix="dwi", bids_datatype="dwi", aliases=("trace", "b1000")
    ),
    Modality(
        name="adc",
        label="Apparent diffusion coefficient",
        bids_suffix="ADC",
        bids_datatype="dwi",
        aliases=("adcmap",),
        unit="1e-6 mm^2/s",
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
    ),
    Modality(name="pet", label="PET", bids_suffix="pet", bids_datatype="pet", aliases=("fdg",)),
    Modality(name="mr", label="MR of unstated contrast", bids_suffix="MR", aliases=("mri",)),
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

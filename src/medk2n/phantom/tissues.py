"""The table of tissues: relaxation, proton density, diffusion, CT number, contrast uptake.

Values are for 3 T and 37 degrees; the `source` of each row names where they come from:

- W99  Wansapura et al. 1999, J Magn Reson Imaging 9:531 (T1, T2 of brain at 3 T)
- S05  Stanisz et al. 2005, Magn Reson Med 54:507 (T1, T2 of blood, muscle and brain at 3 T)
- L04  Lu et al. 2004, Magn Reson Med 52:679 (T1 of blood at 3 T); CSF is near free water, T1 about 4 s
- B04  de Bazelaire et al. 2004, Radiology 230:652 (marrow, fat, muscle at 3 T)
- H08  Helenius et al. 2002, AJNR 23:194 (ADC of normal brain)
- T00  Tofts 2003, Quantitative MRI of the Brain (proton density, ADC and T1 of lesions)
- P11  Provenzale et al. 2006, Radiology 239:632, and Upadhyay and Waldman 2011, Br J Radiol 84:S107 (tumours)
- F13  Fiebach et al. 2002, Stroke 33:2206 (acute stroke: ADC, T2, CT)
- K80  Kak and Slaney 1988; Hounsfield 1980, Med Phys 7:283 (CT numbers of tissue)

Contrast uptake is the gadolinium concentration a few minutes after a standard dose, chosen so
that enhancement ratios agree with what such scans show (blood a little above 1 mM); relaxivities are in
`signal.py`. Where sources differ, a value inside their range was taken, rounded; the review of Bojorquez et al. 2017
(Magn Reson Imaging 35:69) shows how far they differ (T1 of white matter at 3 T: 699 to 1735 ms).
"""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Tissue:
    """One row of the table.

    Attributes:
        label: value in `desc-tissue_dseg.nii.gz`.
        t1_ms, t2_ms: relaxation times.
        pd: proton density, water = 1.
        adc: 1e-6 mm^2/s.
        hu: CT number.
        uptake_mm: gadolinium after injection, mmol/l.
        flow: part of the signal that spin-echo trains keep (fast blood leaves the slice: 0.1).
        fat: removed by the fat suppression of diffusion scans but for a tenth.
        spread: relative standard deviation between subjects.
        texture: relative standard deviation within a subject (smooth).
        source: of the values.
    """

    label: int
    t1_ms: float
    t2_ms: float
    pd: float
    adc: float
    hu: float
    uptake_mm: float = 0.0
    flow: float = 1.0
    fat: bool = False
    spread: float = 0.04
    texture: float = 0.04
    source: str = ""


TISSUES: dict[str, Tissue] = {
    "grey": Tissue(1, 1331, 102, 0.82, 830, 38, uptake_mm=0.027, source="W99, T00, H08"),
    "white": Tissue(2, 832, 80, 0.70, 720, 30, uptake_mm=0.012, texture=0.04, source="W99, T00, H08"),
    "csf": Tissue(3, 4000, 1700, 1.00, 3000, 8, texture=0.02, source="L04, H08"),
    "thalamus": Tissue(4, 1150, 88, 0.78, 760, 35, uptake_mm=0.025, source="W99, H08"),
    "caudate": Tissue(5, 1270, 92, 0.82, 740, 38, uptake_mm=0.025, source="W99, H08"),
    "putamen": Tissue(6, 1200, 84, 0.81, 720, 38, uptake_mm=0.025, source="W99, H08"),
    "pallidum": Tissue(7, 950, 66, 0.75, 750, 40, uptake_mm=0.025, source="W99 (iron), H08"),
    "choroid": Tissue(
        8, 1900, 180, 0.90, 1500, 45, uptake_mm=0.6, texture=0.2, source="estimate between blood and CSF"
    ),
    "vessel": Tissue(9, 1800, 150, 0.85, 1500, 48, uptake_mm=1.4, flow=0.1, source="L04, S05"),
    "dura": Tissue(10, 1100, 45, 0.55, 800, 60, uptake_mm=0.5, source="estimate from fibrous tissue, S05"),
    "bone": Tissue(11, 900, 5, 0.10, 200, 1400, texture=0.10, source="K80; short-T2 bone"),
    "diploe": Tissue(12, 500, 55, 0.50, 250, 600, uptake_mm=0.05, fat=True, texture=0.20, source="B04, K80"),
    "fat": Tissue(13, 382, 68, 0.90, 60, -95, fat=True, texture=0.08, source="B04, K80"),
    "muscle": Tissue(14, 1400, 40, 0.75, 1500, 55, uptake_mm=0.12, texture=0.06, source="S05, B04"),
    "skin": Tissue(15, 900, 35, 0.65, 900, 40, uptake_mm=0.15, texture=0.06, source="estimate, B04"),
    "eye": Tissue(16, 4000, 1200, 1.00, 2800, 10, texture=0.01, source="as CSF, L04"),
    "necrosis": Tissue(17, 2300, 260, 0.93, 1900, 16, uptake_mm=0.03, spread=0.12, texture=0.12, source="P11, T00"),
    "oedema": Tissue(18, 1480, 160, 0.84, 1300, 22, uptake_mm=0.015, spread=0.10, texture=0.08, source="P11, T00"),
    "enhancing": Tissue(19, 1500, 125, 0.84, 1050, 40, uptake_mm=0.8, spread=0.12, texture=0.20, source="P11"),
    "stroke": Tissue(20, 1420, 128, 0.83, 430, 25, uptake_mm=0.02, spread=0.10, texture=0.06, source="F13"),
    "wm_lesion": Tissue(21, 1250, 150, 0.82, 1100, 25, uptake_mm=0.015, spread=0.10, texture=0.06, source="T00"),
}

LESION_LABELS = {"necrosis": 1, "oedema": 2, "enhancing": 3, "stroke": 4, "wm_lesion": 5}


def draw_tissues(rng: np.random.Generator) -> dict[str, Tissue]:
    """One subject's own tissues: each value times a log-normal factor of the row's `spread`.

    Water content lengthens T1 and T2 and raises proton density together, as within a subject: drawn apart, a long
    T1 beside a short T2 would hide oedema on FLAIR. Proton density varies a third as much as the times, CT numbers
    by up to 2 HU plus 3 percent.
    """

    def vary(row: Tissue) -> Tissue:
        water, t2_own, pd_own, adc, uptake = rng.standard_normal(5)
        drawn = np.array([water, 0.6 * water + 0.8 * t2_own, 0.2 * water + 0.27 * pd_own, adc, 3 * uptake])
        t1, t2, pd, adc, uptake = np.exp(row.spread * drawn)
        return replace(
            row,
            t1_ms=float(row.t1_ms * t1),
            t2_ms=float(row.t2_ms * t2),
            pd=float(row.pd * pd),
            adc=float(min(row.adc * adc, 3100.0)),  # free water at body temperature is the limit
            hu=float(row.hu * (1 + 0.03 * rng.standard_normal()) + rng.uniform(-2, 2)),
            uptake_mm=float(row.uptake_mm * uptake),
        )

    return {name: vary(row) for name, row in TISSUES.items()}

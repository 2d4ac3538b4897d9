"""Signal equations and the sequence parameters that go with them.

Relaxation times in milliseconds, ADC in 1e-6 mm^2/s, b in s/mm^2. Equations: Bernstein, King
and Zhou, Handbook of MRI Pulse Sequences (2004), chapters 6, 14 and 17. Signals are fractions
of the equilibrium magnetisation of water.
"""

from dataclasses import asdict, dataclass

import numpy as np

# Gadobutrol in plasma at 3 T, 1/(s mM): Rohrer et al. 2005, Invest Radiol 40:715.
R1_PER_S_MM = 5.0
R2_PER_S_MM = 7.1


@dataclass(frozen=True, slots=True)
class Protocol:
    """One acquisition of one modality.

    Attributes:
        sequence: "se", "ir", "spgr", "mprage", "dwi" or "ct".
        tr_ms, te_ms, ti_ms, flip_deg, b: sequence parameters; those that a sequence lacks are 0.
        contrast: gadolinium is in the blood.
        psf_mm: full width at half maximum of the acquired voxel, where coarser than the grid.
        noise: standard deviation (each channel of the complex signal) as a part of the mean brain
            signal; CT: in HU.
    """

    sequence: str
    tr_ms: float = 0.0
    te_ms: float = 0.0
    ti_ms: float = 0.0
    flip_deg: float = 90.0
    b: float = 0.0
    contrast: bool = False
    psf_mm: float = 0.0
    noise: float = 0.02

    def sidecar(self) -> dict[str, object]:
        """The parameters under their BIDS names, in seconds and degrees."""
        values = asdict(self)
        names = {"tr_ms": "RepetitionTime", "te_ms": "EchoTime", "ti_ms": "InversionTime"}
        out: dict[str, object] = {"PulseSequenceType": self.sequence}
        out |= {name: round(values[key] / 1000, 6) for key, name in names.items() if values[key]}
        if self.sequence != "ct":
            out |= {"FlipAngle": round(self.flip_deg, 3), "MagneticFieldStrength": 3.0}
        if self.sequence == "dwi":
            out["DiffusionBValue"] = round(self.b, 1)
        if self.contrast:
            out["ContrastBolusIngredient"] = "GADOLINIUM"
        return out


def spin_echo(t1, t2, pd, tr_ms, te_ms):
    """Spin echo: PD (1 - exp(-TR/T1)) exp(-TE/T2)."""
    return pd * (1 - np.exp(-tr_ms / t1)) * np.exp(-te_ms / t2)


def inversion_recovery(t1, t2, pd, tr_ms, te_ms, ti_ms):
    """Inversion recovery spin echo, magnitude: PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2).

    With TR much longer than T1 it vanishes at TI = T1 ln 2.
    """
    return pd * np.abs(1 - 2 * np.exp(-ti_ms / t1) + np.exp(-tr_ms / t1)) * np.exp(-te_ms / t2)


def spoiled_gradient_echo(t1, t2, pd, tr_ms, te_ms, flip_deg):
    """Spoiled gradient echo: PD sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE/T2*), E1 = exp(-TR/T1).

    T2* is taken as half of T2 (static dephasing near air is not modelled).
    """
    flip, e1 = np.deg2rad(flip_deg), np.exp(-tr_ms / t1)
    return pd * np.sin(flip) * (1 - e1) / (1 - np.cos(flip) * e1) * np.exp(-te_ms / (0.5 * t2))


def diffusion(t1, t2, pd, adc, tr_ms, te_ms, b):
    """Diffusion-weighted spin echo, trace image: S0 exp(-b ADC)."""
    return spin_echo(t1, t2, pd, tr_ms, te_ms) * np.exp(-b * adc * 1e-6)


def apparent_diffusion(s0: np.ndarray, sb: np.ndarray, b: float) -> np.ndarray:
    """ADC in 1e-6 mm^2/s from the images without and with weighting, kept within 0 to 4000."""
    ratio = np.maximum(s0, 1e-6) / np.maximum(sb, 1e-6)
    return np.clip(np.log(ratio) / b * 1e6, 0, 4000)


def enhanced(t1, t2, uptake_mm):
    """T1 and T2 with gadolinium: 1/T' = 1/T + r C."""
    return 1 / (1 / t1 + R1_PER_S_MM * uptake_mm / 1000), 1 / (1 / t2 + R2_PER_S_MM * uptake_mm / 1000)


def mr_signal(protocol: Protocol, t1, t2, pd, adc, uptake_mm=0.0, flow=1.0, fat=False):
    """Signal of one tissue under a protocol; all arguments scalars or arrays of one shape.

    Gradient echoes keep the signal of flowing blood, spin-echo trains lose it (flow void).
    Diffusion scans suppress fat.
    """
    p = protocol
    if p.contrast:
        t1, t2 = enhanced(t1, t2, uptake_mm)
    if p.sequence == "se":
        return flow * spin_echo(t1, t2, pd, p.tr_ms, p.te_ms)
    if p.sequence == "ir":
        return flow * inversion_recovery(t1, t2, pd, p.tr_ms, p.te_ms, p.ti_ms)
    if p.sequence == "spgr":
        return spoiled_gradient_echo(t1, t2, pd, p.tr_ms, p.te_ms, p.flip_deg)
    if p.sequence == "mprage":  # inversion recovery read by small flips; T2* decay at a short echo time
        prepared = inversion_recovery(t1, 0.5 * t2, pd, p.tr_ms, p.te_ms, p.ti_ms)
        return np.sin(np.deg2rad(p.flip_deg)) * prepared
    if p.sequence == "dwi":
        return (0.1 if fat else flow) * diffusion(t1, t2, pd, adc, p.tr_ms, p.te_ms, p.b)
    raise ValueError(f"no MR signal equation called {p.sequence!r}")


_MPRAGE = {"sequence": "mprage", "tr_ms": 2300, "te_ms": 3, "flip_deg": 9}

FIXED: dict[str, Protocol] = {
    "t1n": Protocol(**_MPRAGE, ti_ms=1160, noise=0.03),
    "t1c": Protocol(**_MPRAGE, ti_ms=1140, contrast=True, noise=0.035),
    "t2w": Protocol("se", tr_ms=4500, te_ms=85, noise=0.025),
    "t2f": Protocol("ir", tr_ms=9000, te_ms=100, ti_ms=2640, noise=0.03),
    "pd": Protocol("se", tr_ms=3000, te_ms=15, noise=0.02),
    "dwi": Protocol("dwi", tr_ms=8000, te_ms=90, b=1000, psf_mm=2.2, noise=0.08),
    "adc": Protocol("dwi", tr_ms=8000, te_ms=80, b=1000, psf_mm=1.8, noise=0.025),
    "ct": Protocol("ct", psf_mm=0.9, noise=5.0),
}


def random_protocol(rng: np.random.Generator, modality: str) -> Protocol:
    """A plausible clinical protocol of an MR modality; adc and ct are quantitative and have no other.

    Raises:
        KeyError: for a modality without random protocols.
    """
    draw = {
        "t1n": _random_t1,
        "t1c": lambda r: _random_t1(r, contrast=True),
        "t2w": lambda r: Protocol("se", tr_ms=r.uniform(2500, 7000), te_ms=r.uniform(75, 125), noise=_noise(r)),
        "t2f": _random_flair,
        "pd": lambda r: Protocol("se", tr_ms=r.uniform(2000, 4500), te_ms=r.uniform(8, 35), noise=_noise(r)),
        "dwi": _random_dwi,
    }[modality]
    return draw(rng)


RANDOM_MODALITIES = ("t1n", "t1c", "t2w", "t2f", "pd", "dwi")


def _noise(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.01, 0.04))


def _random_t1(rng: np.random.Generator, contrast: bool = False) -> Protocol:
    kind = rng.choice(["mprage", "spgr", "se"])
    common = {"contrast": contrast, "noise": _noise(rng)}
    if kind == "mprage":
        return Protocol("mprage", rng.uniform(1900, 2600), rng.uniform(2, 4), rng.uniform(950, 1280), 9, **common)
    if kind == "spgr":
        return Protocol("spgr", rng.uniform(8, 30), rng.uniform(2, 5), 0, rng.uniform(15, 32), **common)
    return Protocol("se", rng.uniform(450, 800), rng.uniform(8, 18), **common)


def _random_flair(rng: np.random.Generator) -> Protocol:
    """FLAIR: the inversion time follows TR so that CSF is nulled or nearly so (scanners invert a little late)."""
    tr, csf_t1 = rng.uniform(6000, 11000), 4000.0
    null = csf_t1 * (np.log(2) - np.log1p(np.exp(-tr / csf_t1)))
    return Protocol("ir", tr, rng.uniform(80, 140), null * rng.uniform(0.98, 1.14), noise=_noise(rng))


def _random_dwi(rng: np.random.Generator) -> Protocol:
    return Protocol(
        "dwi",
        rng.uniform(5000, 9000),
        rng.uniform(60, 105),
        b=float(rng.choice([800, 1000, 1000, 1200])),
        psf_mm=rng.uniform(1.5, 2.8),
        noise=rng.uniform(0.03, 0.1),
    )

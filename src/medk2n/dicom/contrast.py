"""Which contrast a stack shows, and what says so: by its words, by how it was acquired, and whether both agree."""

import re
from dataclasses import dataclass

from medk2n.dicom.frame import Facts
from medk2n.io.names import recognise

_WORDS = {"mprage": "t1n", "bravo": "t1n", "fspgr": "t1n", "spgr": "t1n"}  # sequences that are T1-weighted by design
_STATED = {
    "T1": "t1n", "T2": "t2w", "PROTON_DENSITY": "pd", "FLUID_ATTENUATED": "t2f", "DIFFUSION": "dwi", "TOF": "mra",
}  # fmt: skip
_DIFFUSION_B = 500.0  # s/mm^2 from which on an image shows diffusion
_T1_FAMILY = ("t1n", "t1c")
_IMAGES_OF_MR = ("t1n", "t1c", "t2w", "t2f", "pd", "mra", "dwi", "adc")


@dataclass(frozen=True)
class Verdict:
    """What a stack may show.

    Attributes:
        reasons: candidate -> what speaks for it. One: recognised; two: in doubt; none: nothing that we know. Reasons
            hold names of attributes, numbers and our own words, never a text from the file.
    """

    reasons: dict[str, str]

    @property
    def modality(self) -> str | None:
        """The one candidate, if there is one alone."""
        return next(iter(self.reasons)) if len(self.reasons) == 1 else None


def verdict(facts: Facts) -> Verdict:
    """Weigh what the attributes of a stack say."""
    if facts.modality == "CT":
        return Verdict({"ct": "Modality CT"})
    said, denied = _said(facts)
    measured, how = _measured(facts)
    if "DERIVED" in facts.image_type and "ADC" not in facts.image_type and measured is None:
        return Verdict({said: f"the description says {said}"} if said else {})
    if said is None and measured is None:
        return Verdict({})
    if said is None or measured is None:
        name = said or measured or ""
        return _with_agent(name, how if said is None else f"the description says {said}", facts, denied)
    if _family(said) != _family(measured):
        return Verdict({said: f"the description says {said}", measured: how})
    return _with_agent(said, f"the description says {said}; {how}", facts, denied)


def _with_agent(name: str, why: str, facts: Facts, denied: bool) -> Verdict:
    """A T1 by what is said of a contrast agent."""
    if name not in _T1_FAMILY or facts.agent is None:
        return Verdict({name: why})
    if facts.agent:
        named = f"{why}; ContrastBolusAgent is named"
        return Verdict({"t1n": why, "t1c": "ContrastBolusAgent is named"} if denied else {"t1c": named})
    none = "ContrastBolusAgent says none"
    return Verdict({"t1c": why, "t1n": none} if name == "t1c" else {"t1n": f"{why}; {none}"})


def _family(name: str) -> str:
    return "t1n" if name in _T1_FAMILY else name


def _said(facts: Facts) -> tuple[str | None, bool]:
    """What SeriesDescription, else ProtocolName, speaks of; and whether it says that no agent was given."""
    for text in facts.words:
        words = re.sub(r"\+\s*c\b", " gd ", text.lower()).replace("/", "-")
        tokens = set(re.split(r"[^a-z0-9]+", words))
        named = [_WORDS[token] for token in tokens if token in _WORDS]
        if named and not tokens & {"t1", "t1w"}:
            words = f"t1 {words}"
        if tokens & {"t1", "t1w"} and "flair" in tokens:
            words = words.replace("flair", " ")  # T1 with the fluid dark is a T1
        if (name := recognise(words.replace(" ", "_"))) in _IMAGES_OF_MR:
            return name, bool(tokens & {"pre", "native", "nativ", "without", "wo", "precontrast", "plain"})
    return None, False


def _measured(facts: Facts) -> tuple[str | None, str]:
    """What the way of acquiring makes, and in which words; None if it does not tell."""
    if "ADC" in facts.image_type:
        return "adc", "ImageType says ADC"
    b_value = _b_value(facts)
    if b_value is not None and b_value >= _DIFFUSION_B:
        return "dwi", f"b = {b_value:g} s/mm2"
    if {"TOF"} & {*facts.options, *facts.variant}:
        return "mra", "time of flight"
    if facts.stated in _STATED:
        return _STATED[facts.stated], f"AcquisitionContrast says {facts.stated}"
    if facts.stated not in ("", "UNKNOWN") or "EP" in facts.scanning or b_value is not None:
        return None, ""
    return _by_times(facts)


def _b_value(facts: Facts) -> float | None:
    if facts.b_value is not None:
        return facts.b_value
    found = re.search(r"(?:^|[_*])b(\d{1,4})(?:$|[#_t])", facts.sequence)
    return float(found[1]) if found else None


def _by_times(facts: Facts) -> tuple[str | None, str]:
    """By echo, repetition and inversion time (ms), as text books part the contrasts; between them nothing is told."""
    echo, repetition, inversion = facts.echo_ms, facts.repetition_ms, facts.inversion_ms
    if not echo or not repetition:
        return None, ""
    times = f"TE {echo:g} ms, TR {repetition:g} ms"
    if inversion:
        times += f", TI {inversion:g} ms"
        if echo >= 60 and 1400 <= inversion <= 3500:
            return "t2f", times
        return ("t1n", times) if echo < 60 and 300 < inversion < 1400 else (None, "")
    if "GR" in facts.scanning:
        return ("t1n", times) if echo < 10 and repetition < 100 and "SS" not in facts.variant else (None, "")
    if "SE" in facts.scanning:
        if echo <= 35 and repetition <= 1200:
            return "t1n", times
        if repetition >= 1800:
            return ("t2w", times) if echo >= 65 else ("pd", times) if echo <= 40 else (None, "")
    return None, ""

"""Which contrast attributes speak of, and when they leave a doubt."""

import pytest

from medk2n.dicom.contrast import verdict
from medk2n.dicom.frame import Facts


def mr(words="", scanning=("SE",), te=None, tr=None, ti=None, **more) -> Facts:
    return Facts("MR", words=(words,), scanning=scanning, echo_ms=te, repetition_ms=tr, inversion_ms=ti, **more)


GR, IR, EP = ("GR",), ("GR", "IR"), ("EP", "SE")
RECOGNISED = {
    "times alone: T1": (mr(te=12, tr=550), "t1n"),
    "times alone: T2": (mr(te=98, tr=4200), "t2w"),
    "times alone: PD": (mr(te=15, tr=3000), "pd"),
    "times alone: FLAIR": (mr(te=110, tr=9000, ti=2500, scanning=("SE", "IR")), "t2f"),
    "3-D FLAIR": (mr("sag 3d space dark-fluid", te=390, tr=5000, ti=1800), "t2f"),
    "MPRAGE": (mr("t1_mprage_sag_p2_iso", scanning=IR, te=2.5, tr=2300, ti=900), "t1n"),
    "MPRAGE by its name alone": (mr("SAG MPRAGE", scanning=GR, te=3, tr=2000), "t1n"),
    "spoiled gradient echo": (mr(scanning=GR, te=4, tr=20), "t1n"),
    "T1 FLAIR": (mr("Ax T1 FLAIR", te=9, tr=2200, ti=860), "t1n"),
    "T1 after contrast, by words": (mr("AX T1 POST", te=12, tr=550), "t1c"),
    "T1 after contrast, +C": (mr("Ax T1 FSE +C", te=12, tr=550), "t1c"),
    "MPRAGE after contrast": (mr("MPRAGE KM", scanning=IR, te=3, tr=2000, ti=900), "t1c"),
    "T1 after contrast, by the agent": (mr("AX T1", te=12, tr=550, agent=True), "t1c"),
    "agent alone": (mr(te=12, tr=550, agent=True), "t1c"),
    "agent and FLAIR": (mr("FLAIR", te=110, tr=9000, ti=2500, agent=True), "t2f"),
    "T1, no agent": (mr("AX T1", te=12, tr=550, agent=False), "t1n"),
    "T1 w/o": (mr("AX T1 W/O", te=12, tr=550), "t1n"),
    "T2": (mr("t2_tse_tra", te=100, tr=4000), "t2w"),
    "FLAIR": (mr("t2_tirm_tra_dark-fluid FLAIR", te=90, tr=9000, ti=2500), "t2f"),
    "diffusion": (mr("ep2d_diff", scanning=EP, te=90, tr=5000, b_value=1000.0), "dwi"),
    "diffusion by the sequence": (mr("", scanning=EP, te=90, tr=5000, sequence="*ep_b1000t"), "dwi"),
    "ADC": (mr("ep2d_diff", scanning=EP, image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC")), "adc"),
    "angiography": (mr("TOF 3D", scanning=GR, te=4, tr=25, options=("TOF",)), "mra"),
    "stated by enhanced MR": (mr(stated="T2"), "t2w"),
    "CT": (Facts("CT", words=("T1",)), "ct"),
}


@pytest.mark.parametrize(("facts", "modality"), RECOGNISED.values(), ids=RECOGNISED)
def test_recognised(facts, modality):
    found = verdict(facts)
    assert found.modality == modality
    assert found.reasons[modality]


DOUBT = {
    "words against times": (mr("AX T1", te=98, tr=4200), {"t1n", "t2w"}),
    "words against b": (mr("AX T2", scanning=EP, b_value=1000.0), {"t2w", "dwi"}),
    "pre, with an agent": (mr("AX T1 PRE", te=12, tr=550, agent=True), {"t1n", "t1c"}),
    "post, without": (mr("AX T1 POST", te=12, tr=550, agent=False), {"t1n", "t1c"}),
}


@pytest.mark.parametrize(("facts", "candidates"), DOUBT.values(), ids=DOUBT)
def test_in_doubt(facts, candidates):
    assert set(verdict(facts).reasons) == candidates
    assert verdict(facts).modality is None


UNKNOWN = {
    "nothing said": mr(),
    "STIR": mr(te=60, tr=4000, ti=160),
    "susceptibility": mr(scanning=GR, te=20, tr=28),
    "perfusion": mr(scanning=EP, te=30, tr=1500),
    "b = 0": mr(scanning=EP, te=90, tr=5000, b_value=0.0),
    "between T1 and T2": mr(te=50, tr=1500),
    "steady state": mr(scanning=GR, te=2, tr=5, variant=("SS",)),
    "stated T2*": mr(stated="T2_STAR", te=98, tr=4000),
}


@pytest.mark.parametrize("facts", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown(facts):
    assert verdict(facts).reasons == {}


def test_reasons_never_quote_the_file():
    for facts in (*(facts for facts, _ in RECOGNISED.values()), *(facts for facts, _ in DOUBT.values())):
        for word in " ".join(facts.words).split():
            reasons = " ".join(verdict(facts).reasons.values())
            assert word not in reasons or word.lower() in {"adc", "t1", "t2"}

"""Which names are those of sessions, and which subjects are of one patient as far as their names tell."""

import re
from collections import defaultdict
from collections.abc import Iterable

_WORD = (
    r"(?:ses|session|sess|visit|vis|week|wk|month|mon|mo|day|year|yr|time|timepoint|tp|scan|exam|study|follow-?up|fu|"
    r"baseline|bl|screening|pre-?op|post-?op|pre|post|initial|recurrence)"
)
_DATE = r"(?:19|20)\d\d[-._]?[01]\d(?:[-._]?[0-3]\d)?"
_SESSION = re.compile(rf"(?:{_WORD}[-_ .]?\d*[a-z]?(?:[-_.]\d+)*|[vmtwdy]\d{{1,4}}|{_DATE})", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,3}")
# What the naming of public collections says; each pattern's group is the patient.
_COLLECTIONS = (
    r"(sub-[^_]+)_ses-.+",  # BIDS: sessions of one patient
    r"(BraTS-[A-Za-z]+-\d+)-\d{3}",  # BraTS since 2023: time points of one patient
)


def is_session(name: str) -> bool:
    """Whether a name is one of a session: `ses-02`, `week-000`, `TP1`, `baseline`, a date; a bare number is not."""
    return _SESSION.fullmatch(name) is not None


def told_patient(subject: str) -> str:
    """The patient behind an id, where its naming tells: `P-001_week-010` -> `P-001`; "" where it does not."""
    if found := next((m[1] for pattern in _COLLECTIONS if (m := re.fullmatch(pattern, subject))), None):
        return found
    for at in (match.start() for match in re.finditer(r"[-_ .]+", subject)):
        patient, session = subject[:at], subject[at:].lstrip("-_ .")
        short = re.fullmatch(r"[vmtwdy]\d{1,4}", session, re.IGNORECASE)  # so short a one only behind a number
        if patient and is_session(session) and (not short or re.search(r"\d", patient)):
            return patient
    return ""


def patients(subjects: Iterable[str]) -> dict[str, str]:
    """Subject -> patient, as far as the names of all of them tell; the subject itself where they do not.

    A last number (`P001_11`, `P001_21`) is one of a session where the names before it end in a number too, and are more
    than the last numbers are: then `study2_01` to `study2_30` are not one patient.
    """
    ids = list(subjects)
    told = {subject: told_patient(subject) for subject in ids}
    last: dict[str, tuple[str, str]] = {}
    for subject in (subject for subject in ids if not told[subject]):
        patient, between, number = _parted(subject)
        if between and _NUMBER.fullmatch(number) and patient[-1:].isdigit():
            last[subject] = patient, number
    sessions = defaultdict(set)
    for patient, number in last.values():
        sessions[patient].add(number)
    believed = len(sessions) > len({number for _, number in last.values()})
    for subject, (patient, _) in last.items():
        told[subject] = patient if believed else ""
    return {subject: told[subject] or subject for subject in ids}


def _parted(subject: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(.+)([-_ .])([^-_ .]+)", subject)
    return (match[1], match[2], match[3]) if match else (subject, "", "")

"""DICOM in and out: a study's folder or .zip to volumes, and synthetic volumes to series that say what they are.

    from medk2n.dicom import read_study, write_series

    study = read_study("STUDY")
    synthesis = synthesizer.synth(study.volumes)
    write_series(synthesis["t2f"], study, Path("OUT").joinpath, reference="t1n", sources=["t1n"], maker=Maker(...))

Files from outside are parsed in a child process with limits (`child.py`); this side sees arrays and plain facts alone.
"""

from medk2n.dicom.cohort import studies_in
from medk2n.dicom.study import DicomStudy, Outline, Series, holds_dicom, outline_study, read_study
from medk2n.dicom.write import Maker, write_series

__all__ = [
    "DicomStudy",
    "Maker",
    "Outline",
    "Series",
    "holds_dicom",
    "outline_study",
    "read_study",
    "studies_in",
    "write_series",
]

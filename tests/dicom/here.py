"""Read a study in this very process: for tests that read many, and look into what the confined one does."""

import json
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from pydantic import TypeAdapter

from medk2n.dicom import DicomStudy, read_study
from medk2n.dicom.answer import Answer, Question
from medk2n.dicom.child import answer
from medk2n.dicom.limits import Limits


def ask_here(path, asked, wishes, known, work, limits) -> Answer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the confined process does
        found = answer(Question(asked, str(path), wishes, known, limits, 60.0), work)
    return TypeAdapter(Answer).validate_json(json.dumps(asdict(found)))


def read_here(path: Path, *, limits: Limits | None = None, **options) -> DicomStudy:
    with mock.patch("medk2n.dicom.study._ask", ask_here):
        return read_study(path, limits=limits, **options)


@contextmanager
def folder():
    """A temporary folder, for one example of a property."""
    with TemporaryDirectory() as name:
        yield Path(name)

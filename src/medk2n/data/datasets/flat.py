"""Many subjects in one folder, or in one folder a modality, as IXI hands them out: `IXI002-Guys-0828-T1.nii.gz`."""

from collections import defaultdict
from pathlib import Path

from medk2n.data.datasets._files import flat_files, is_flat, subject_of
from medk2n.data.subject import Subject
from medk2n.io.names import is_mask, stem, study_id


class Flat:
    """A subject is what its files' names share: the name without its modality."""

    name = "flat"
    expects = "SUBJECT-T1.nii.gz, many in a folder or in one folder a modality (flat)"

    def matches(self, root: Path) -> bool:
        """Some modality is there more than once."""
        return is_flat(root)

    def index(self, root: Path) -> list[Subject]:
        """Subjects with at least one recognised image; a mask belongs to the longest name that it starts with."""
        files = flat_files(root)
        of: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            if not is_mask(file):
                of[study_id([file])].append(file)
        for mask in filter(is_mask, files):
            owners = [name for name in of if stem(mask).startswith(name)]
            if owners:
                of[max(owners, key=len)].append(mask)
        found = (subject_of(name, mine) for name, mine in of.items())
        return [subject for subject in found if subject.readers]


COMPONENT = Flat()

"""What `medk2n prepare` wrote: one folder a subject on one grid, and a sidecar that says how it got there."""

from functools import partial
from pathlib import Path

from medk2n.data.prepared import SETTINGS, STUDY, is_prepared, prepared_subject
from medk2n.data.subject import Subject, or_faulty


class Prepared:
    """A prepared data set; a subject whose sidecar is not there yet is none."""

    name = "prepared"
    expects = f"{SETTINGS} (medk2n prepare)"

    def matches(self, root: Path) -> bool:
        """Its settings are there."""
        return is_prepared(root)

    def index(self, root: Path) -> list[Subject]:
        """Every whole subject, faulty ones whose sidecar is damaged; reads sidecars, no voxels."""
        return [
            or_faulty(place.parent.name, partial(prepared_subject, place.parent))
            for place in sorted(root.glob(f"*/{STUDY}"))
            if not place.parent.name.startswith(".")
        ]


COMPONENT = Prepared()

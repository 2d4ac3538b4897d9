"""What is done about scans of a study that do not lie on each other."""

from enum import StrEnum


class Align(StrEnum):
    """Nothing; measure and tell; or register them to the reference."""

    off = "off"
    warn = "warn"
    fix = "fix"

"""Files to volumes and back: NIfTI, names, sidecars, atomic writes."""

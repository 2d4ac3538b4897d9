"""Image quality against a reference: one file a metric, numpy only, always with an explicit data range."""

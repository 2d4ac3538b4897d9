"""Subjects, data sets, intensity scaling and 2.5-D batches. Never sees a model."""

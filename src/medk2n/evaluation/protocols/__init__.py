"""Evaluation recipes: one file each says, in words and in code, how somebody turns two volumes into numbers."""

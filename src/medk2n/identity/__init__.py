"""CMIM's two sides: what a text says of a modality, and which modality an image is recognised as.

Reading a table of texts needs no torch and no text encoder; `identity.Identity` names images by it.
"""

"""How models are taught, one lesson a file (`medk2n.training.lesson` says what each promises).

A lesson file exports `COMPONENT`, the class; `ModelSpec.lesson` names it.
"""

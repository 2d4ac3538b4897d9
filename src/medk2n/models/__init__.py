"""One file per model; blocks and the parts of Med-K2N are in `parts`. Tensors in, tensors out: never files.

A model file exports `COMPONENT`, a `ModelSpec`: its frozen `Params` and the module they build.
"""

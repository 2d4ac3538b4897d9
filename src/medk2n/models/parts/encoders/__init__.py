"""One file per encoder of frames (`medk2n.models.parts.encoder` says what each promises).

An encoder file exports `COMPONENT`, an `EncoderSpec`.
"""

"""One file per encoder of frames (`medk2n.models.medk2n_parts.frame_encoder` says what each promises).

An encoder file exports `COMPONENT`, an `EncoderSpec`.
"""

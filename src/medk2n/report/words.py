"""Plain words for numbers, so that a report can be read without having read the paper."""

# Predicted PSNR inside the foreground, in dB, and what images of that quality have looked like.
_QUALITY = (
    (30.0, "close", "Structure and contrast are expected to be close to an acquired image."),
    (25.0, "fair", "Structure is expected to be right; fine detail and subtle contrast may be smoothed or wrong."),
    (20.0, "coarse", "Good for the broad picture; do not read small findings from it."),
    (float("-inf"), "poor", "Expected to differ plainly from an acquired image; treat it as an illustration."),
)


def quality_words(predicted_psnr_db: float) -> tuple[str, str]:
    """(one word, one sentence) for a predicted PSNR; NaN is "unknown"."""
    for least, word, sentence in _QUALITY:
        if round(predicted_psnr_db, 1) >= least:  # as it is printed
            return word, sentence
    return "unknown", "The model gave no error estimate for this image."

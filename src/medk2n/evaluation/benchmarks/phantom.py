"""The digital cohort, four contrasts: the 14 rows of the paper's Table 1, and the best that noise allows."""

from medk2n.evaluation.benchmarks._benchmark import Benchmark

COMPONENT = Benchmark(
    name="phantom",
    label="Digital cohort, four contrasts",
    modalities=("t1n", "t1c", "t2w", "t2f"),
    notes=(
        "Subjects made by `medk2n phantom`: physics, no patients. What holds here need not hold in a clinic.",
        "Test on another cohort than the one learned from, with another --seed.",
    ),
)

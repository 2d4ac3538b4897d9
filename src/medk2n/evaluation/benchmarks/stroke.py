"""The digital cohort as a stroke study: diffusion, ADC and FLAIR, the contrasts of the paper's Table 2."""

from medk2n.evaluation.benchmarks._benchmark import Benchmark

COMPONENT = Benchmark(
    name="stroke",
    label="Diffusion, ADC and FLAIR",
    modalities=("dwi", "adc", "t2f"),
    notes=(
        "For a cohort of `medk2n phantom`: some of its subjects have a stroke, others another lesion or none.",
        "The paper's rows are from ISLES 2022, whose scans are on several grids: the figures do not compare.",
    ),
)

"""TCGA low-grade glioma, three contrasts, 16 test patients: six rows."""

from medk2n.evaluation.benchmarks._benchmark import Benchmark

COMPONENT = Benchmark(
    name="lgg128",
    label="Low-grade glioma (TCGA), three contrasts",
    modalities=("t1n", "t1c", "t2f"),
    notes=(
        "Whole heads: the foreground has skull and scalp in it. There is no brain mask; the lesion is the manual one.",
        "Thick axial slices of unknown spacing at 128 x 128, 8 bits; the grey scale of each volume is its own.",
        "T1 has a background above zero in TCGA_FG_5962, FG_7637 and FG_A4MU. A low-grade glioma rarely enhances.",
    ),
)

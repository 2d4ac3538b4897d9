"""Four-contrast brains: 14 rows, two test subjects, and two of HiNet's apart from them."""

from medk2n.evaluation.benchmarks._benchmark import Benchmark, Group

COMPONENT = Benchmark(
    name="four128",
    label="Brains in four contrasts (BraTS, openMS, HiNet)",
    modalities=("t1n", "t1c", "t2w", "t2f"),
    subjects=("BraTS-GLI-00000-000", "openMS-patient19", "HiNet-BraTS18-003", "HiNet-BraTS18-008"),
    groups=(Group("BraTS and openMS", ("BraTS", "Brats", "openMS")), Group("HiNet", ("HiNet",))),
    notes=(
        "Two subjects a group: an illustration, no evidence. There is no p-value.",
        "HiNet's are equalised to about 64 grey levels, and its patients may be among those of lgg128: they are never "
        "pooled, and are no test of a model that learned from lgg128.",
    ),
)

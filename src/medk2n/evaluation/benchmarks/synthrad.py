"""Brain MR and CT, one axial slice a patient (SynthRAD 2023): MR to CT and CT to MR, also by centre."""

from medk2n.evaluation.benchmarks._benchmark import Benchmark, Group

COMPONENT = Benchmark(
    name="synthrad",
    label="Brain MR and CT (SynthRAD 2023)",
    modalities=("mr", "ct"),
    groups=(
        Group("all centres"),
        Group("centre A", ("1BA",)),
        Group("centre B", ("1BB",)),
        Group("centre C", ("1BC",)),
    ),
    notes=(
        "One axial slice a patient, each scaled by its own minimum and maximum: CT has lost its HU, so no error in HU.",
        "Centres differ in scanner and protocol; the pooled table is over all of them.",
    ),
)

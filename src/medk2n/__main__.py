"""`python -m medk2n`, which torchrun needs: `torchrun --nproc-per-node 2 -m medk2n train ...`."""

from medk2n.cli.main import run

run()

"""Parameters and FLOPs of every model at its default sizes, beside those of Med-K2N.

    python recipes/sizes.py

Prints a table in Markdown: weights, and the floating-point operations (two a multiplication) of one answer: a slice of
192 x 192 voxels, four modalities of eight in, the other four out; all gates of Med-K2N open.
"""

import torch

from medk2n.models._flops import counting
from medk2n.models._spec import Query, Statistics
from medk2n.models.medk2n import MedK2N
from medk2n.models.medk2n_parts.control import PlannedStep
from medk2n.models.medk2n_parts.progressive_fusion import Guidance
from medk2n.registry import names, resolve

M, K = 8, 4


def measured(name: str, pixels: int = 192) -> tuple[int, int]:
    """Parameters, FLOPs of one answer."""
    spec = resolve("models", name)
    with torch.random.fork_rng(devices=[]):
        module = spec.build(spec.params(), M, Statistics.neutral(M)).eval().requires_grad_(False)
    sources = torch.zeros(M - K, M, dtype=torch.bool)
    sources[:, :K] = True
    query = Query(torch.zeros(M - K, dtype=torch.long), sources, torch.arange(K, M))
    images = torch.full((1, M, module.params.slices, pixels, pixels), 0.5)
    with torch.no_grad(), counting() as counter:
        if isinstance(module, MedK2N):  # decisions are taken once a study, and its slices follow them
            steps = tuple(PlannedStep(i, 0.0, 0.0, 1.0) for i in range(K))
            module.decode(module.scene(images, query.needed(1)), query, Guidance(dict.fromkeys(range(K, M), steps)))
        else:
            module(images, query)
    return sum(p.numel() for p in module.parameters()), counter.get_total_flops()


def main() -> None:
    """Print the table."""
    ours = measured("medk2n")
    print("| model | parameters | of ours | GFLOP | of ours |")
    print("|---|---|---|---|---|")
    for name in names("models"):
        weights, flops = measured(name)
        shares = weights / ours[0], flops / ours[1]
        print(f"| {name} | {weights / 1e6:.2f} M | {shares[0]:.2f} | {flops / 1e9:.1f} | {shares[1]:.2f} |")


if __name__ == "__main__":
    main()

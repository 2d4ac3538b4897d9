"""Make the shipped table of text embeddings anew, after a text in the vocabulary has changed; or look at one.

    python recipes/texts.py [--encoder minilm|FOLDER] [--report OUT.md]

Needs the extra `text`. Without --report it writes src/medk2n/identity/shipped (of minilm alone); with it, it writes
how alike the names and the texts of modalities are to the encoder, and ships nothing.
"""

import argparse
from pathlib import Path

import numpy as np

from medk2n.identity.table import SHIPPED, fresh_table
from medk2n.identity.text_encoder import MINILM, encode, folder_of
from medk2n.io.atomic import write_text
from medk2n.vocabulary import MODALITIES


def matrix(names: list[str], vectors: np.ndarray) -> list[str]:
    """A Markdown table of cosines."""
    cosines = vectors @ vectors.T
    lines = ["| |" + "|".join(names) + "|", "|---|" + "---:|" * len(names)]
    lines += [f"|{name}|" + "|".join(f"{c:.2f}" for c in row) + "|" for name, row in zip(names, cosines, strict=True)]
    apart = cosines[~np.eye(len(names), dtype=bool)]
    at = np.unravel_index(np.argmax(cosines - 2 * np.eye(len(names))), cosines.shape)
    near = f"{names[at[0]]} and {names[at[1]]} ({apart.max():.2f})"
    return [*lines, "", f"Between two: mean {apart.mean():.2f}, nearest {near}."]


def report(encoder: str) -> str:
    """Names, labels and texts, as the encoder sees them."""
    names, folder = list(MODALITIES), folder_of(encoder)
    rows = MODALITIES.values()
    kinds = {
        "The short names": [(row.name,) for row in rows],
        "The labels (as a radiologist writes them)": [(row.label,) for row in rows],
        "The texts (mean of each modality's)": [row.texts for row in rows],
    }
    lines = [f"How alike modalities are to the text encoder ({encoder}): cosine. `recipes/texts.py --report`", ""]
    for title, told in kinds.items():
        vectors = encode(folder, told)
        lines += [f"## {title}", "", *matrix(names, vectors), ""]
    vectors -= vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lines += ["## The texts less what all have in common (what is projected)", "", *matrix(names, vectors), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Ship or tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default=MINILM)
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    if asked.report:
        write_text(asked.report, report(asked.encoder))
    elif asked.encoder != MINILM:
        parser.error("only the table of minilm is shipped; add --report to look at another encoder")
    else:
        table = fresh_table()
        table.save(SHIPPED)
        print(f"{SHIPPED}: {len(table.names)} rows")


if __name__ == "__main__":
    main()

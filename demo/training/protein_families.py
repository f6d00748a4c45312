"""Protein families that a script draws: conserved motifs between variable linkers, as in an alignment of enzymes.

There are six classes, named as those of enzymes, of two families each. A family has three motifs in a fixed order: one that it
shares with the other family of its class, and two of its own. Of a motif's nine positions seven are conserved; linkers are
drawn residue by residue as frequently as in natural proteins and have 3 to 9 residues. No natural sequence is used.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

FREQUENCIES: Final = {
    "A": 8.3, "C": 1.4, "D": 5.5, "E": 6.7, "F": 3.9, "G": 7.1, "H": 2.3, "I": 5.9, "K": 5.8, "L": 9.7, "M": 2.4, "N": 4.1,
    "P": 4.7, "Q": 3.9, "R": 5.5, "S": 6.6, "T": 5.3, "V": 6.9, "W": 1.1, "Y": 2.9,
}  # fmt: skip
"""Percent of residues in natural proteins, rounded."""
CLASSES: Final = ("oxidoreductase", "transferase", "hydrolase", "lyase", "isomerase", "ligase")
FAMILIES_PER_CLASS: Final = 2
MOTIF_LENGTH: Final = 9
N_CONSERVED: Final = 7
LINKER: Final = (3, 9)
"""Smallest and largest number of residues between motifs."""
P_CONSENSUS: Final = 0.85
P_SUBSTITUTE: Final = 0.1
"""At a conserved position: of the consensus residue, of one other; the rest is drawn as a linker's residues are."""


@dataclass(frozen=True)
class Motif:
    """Nine positions."""

    consensus: tuple[str | None, ...]
    """The residue conserved at each position; None where any is."""
    substitutes: tuple[str | None, ...]
    """The other residue that is found at each conserved position."""


@dataclass(frozen=True)
class Family:
    """One family of a class."""

    name: str
    of_class: str
    motifs: tuple[Motif, ...]


@dataclass(frozen=True)
class Protein:
    """A sequence of a family."""

    family: str
    sequence: str
    conserved: tuple[int, ...]
    """Its positions, counted from 1, that are conserved in the family and hold the consensus residue."""


def _draw_residue(rng: random.Random) -> str:
    return rng.choices([*FREQUENCIES], [*FREQUENCIES.values()])[0]


def _draw_motif(rng: random.Random) -> Motif:
    conserved = set(rng.sample(range(MOTIF_LENGTH), N_CONSERVED))
    pairs = [rng.sample([*FREQUENCIES], 2) if at in conserved else (None, None) for at in range(MOTIF_LENGTH)]
    return Motif(tuple(first for first, _ in pairs), tuple(second for _, second in pairs))


def families() -> list[Family]:
    """All families; the same in every call."""
    rng = random.Random("protein families")
    found = []
    for of_class in CLASSES:
        shared = _draw_motif(rng)
        for number in range(1, FAMILIES_PER_CLASS + 1):
            motifs = [shared, _draw_motif(rng), _draw_motif(rng)]
            rng.shuffle(motifs)
            found.append(Family(f"{of_class}-{number}", of_class, tuple(motifs)))
    return found


def draw_protein(family: Family, rng: random.Random) -> Protein:
    """A new sequence of a family; begins with M, as proteins do."""
    residues, conserved = ["M"], []
    for motif in family.motifs:
        residues += [_draw_residue(rng) for _ in range(rng.randint(*LINKER))]
        for consensus, substitute in zip(motif.consensus, motif.substitutes, strict=True):
            residue = _draw_residue(rng)
            if consensus is not None and substitute is not None:
                drawn = rng.random()
                if drawn < P_CONSENSUS + P_SUBSTITUTE:
                    residue = consensus if drawn < P_CONSENSUS else substitute
                if residue == consensus:
                    conserved.append(len(residues) + 1)
            residues.append(residue)
    residues += [_draw_residue(rng) for _ in range(rng.randint(*LINKER))]
    return Protein(family.name, "".join(residues), tuple(conserved))


def draw_questions(n_sequences: int, n_residues: int, seed: str) -> list[dict[str, Any]]:
    """Rows that `actstore attribute` reads: sequences of every family, in each of which conserved residues are asked for."""
    rng, rows = random.Random(seed), []
    for family in families():
        for number in range(n_sequences):
            protein = draw_protein(family, rng)
            while len(protein.conserved) < n_residues:
                protein = draw_protein(family, rng)
            positions = sorted(rng.sample(protein.conserved, n_residues))
            described = {"class": family.of_class, "family": family.name}
            rows.append(
                {"id": f"{family.name}/{number}", "sequence": protein.sequence, "position": positions, **described}
            )
    return rows

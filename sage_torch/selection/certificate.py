"""What the sketch behind a selection guarantees."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import sage_torch._core as _core


@dataclass(frozen=True)
class Certificate:
    """What Frequent Directions guarantees of the sketch behind a selection.

    For every unit vector x: `0 <= |Ax|^2 - |Sx|^2 <= shrinkage`, A the compressed gradients, up to
    float32 rounding. The compression before the sketch is only probabilistic and not part of it.
    Each value is an attribute and, as in the saved JSON, an item.

    Attributes:
        shrinkage: `Delta`, the most that the sketch underestimates a squared length by.
        relative_shrinkage: `Delta / sigma_1^2`, the same against the strongest direction.
        squared_norm: `|A|_F^2`, the energy of all gradients.
        energy_kept: `|S|_F^2 / |A|_F^2`: at least this share of the energy lies in the sketch.
        energy_kept_at_most: `(|S|_F^2 + l Delta) / |A|_F^2`, at most 1: and no more than this.
        consensus_cosine: Smallest cosine over classes between the consensus that scored the
            examples and the exact one: 1 in the exact mode, below it when streaming, NaN in one
            pass, where the exact one is not known.

    Reference:
        Ghashami, Liberty, Phillips and Woodruff, SIAM J. Comput. 2016, Thm 1.1.
    """

    shrinkage: float
    relative_shrinkage: float
    squared_norm: float
    energy_kept: float
    energy_kept_at_most: float
    consensus_cosine: float

    def __getitem__(self, name: str) -> float:
        return float(asdict(self)[name])

    @classmethod
    def of(cls, sketch: _core.FrequentDirections, consensus_cosine: float) -> Certificate:
        """Return the certificate of a sketch."""
        squares = sketch.singular_values() ** 2
        kept, total = float(squares.sum()), sketch.squared_norm
        at_most = kept + len(squares) * sketch.shrinkage
        return cls(
            shrinkage=sketch.shrinkage,
            relative_shrinkage=sketch.shrinkage / float(squares[0]) if squares[0] > 0 else 0.0,
            squared_norm=total,
            energy_kept=min(1.0, kept / total) if total > 0 else 1.0,
            energy_kept_at_most=min(1.0, at_most / total) if total > 0 else 1.0,
            consensus_cosine=consensus_cosine,
        )

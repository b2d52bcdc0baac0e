"""How long the documents of a batch truly are: whether rows of 128K tokens hold long documents, or many short ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EDGES = (0, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)  # where data.length_buckets names none


@dataclass(frozen=True)
class Lengths:
    """Documents of some rows of one length. Sums, so that parts of a batch add up (`+`) to the whole.

    A piece is what a row holds of one document; the two differ where the document was split, by a row's end or by the
    packing. Shares and means weigh each token alike, padding left out.
    """

    row_tokens: int
    rows: int
    pieces: int
    tokens: int  # without padding
    length_sum: int  # over tokens, of the length of their document
    span_sum: int  # over tokens, of the length of their piece
    long_tokens: int  # in pieces of more than half a row
    edges: tuple[int, ...]  # shortest document of each bucket
    bucket_tokens: tuple[int, ...]  # tokens of documents of each bucket

    def __add__(self, other: Lengths) -> Lengths:
        assert (self.row_tokens, self.edges) == (other.row_tokens, other.edges)
        names = ("rows", "pieces", "tokens", "length_sum", "span_sum", "long_tokens")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        buckets = tuple(a + b for a, b in zip(self.bucket_tokens, other.bucket_tokens))
        return Lengths(self.row_tokens, edges=self.edges, bucket_tokens=buckets, **sums)

    @property
    def padding_share(self) -> float:
        return 1 - self.tokens / (self.rows * self.row_tokens)

    def record(self) -> dict[str, Any]:
        """Figures for the record; bucket names are their shortest documents."""
        return {
            "documents": self.pieces,
            "document_tokens": self.length_sum / self.tokens,
            "piece_tokens": self.span_sum / self.tokens,
            "long_share": self.long_tokens / self.tokens,
            "padding_share": self.padding_share,
            "length_shares": {str(edge): n / self.tokens for edge, n in zip(self.edges, self.bucket_tokens) if n},
        }


def measure(
    rows: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], row_tokens: int, edges: Sequence[int]
) -> Lengths:
    """Lengths of rows given as (length of each piece's document, tokens of each piece)."""
    parts = list(rows)
    lengths = np.concatenate([np.zeros(0, np.int64), *(length for length, _ in parts)])
    spans = np.concatenate([np.zeros(0, np.int64), *(span for _, span in parts)])
    buckets = np.zeros(len(edges), np.int64)
    np.add.at(buckets, np.searchsorted(edges, lengths, side="right") - 1, spans)
    return Lengths(
        row_tokens=row_tokens,
        rows=len(parts),
        pieces=spans.size,
        tokens=int(spans.sum()),
        length_sum=int(lengths @ spans),
        span_sum=int(spans @ spans),
        long_tokens=int(spans[2 * spans > row_tokens].sum()),
        edges=tuple(edges),
        bucket_tokens=tuple(buckets.tolist()),
    )

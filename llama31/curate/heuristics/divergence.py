"""Documents whose tokens are distributed unlike those of their language (report, section 3.1.1).

The report drops documents "containing excessive numbers of outlier tokens compared to the training corpus distribution"
by the Kullback-Leibler divergence, and says neither its direction nor a limit. Here it is that of the document from the
corpus, sum p log(p / q) in nats, which is large where a document has what the corpus seldom has.

Taken as it is, it tells lengths apart: a text of n words has no more than n different ones, so of a text drawn from the
very corpus it is about H - log n, five nats for ten words. What n draws from q are expected to have is subtracted. With
c ~ Binomial(n, q) for each token, and E[c log c] = n q E[log(1 + c')] with c' ~ Binomial(n - 1, q),

    E[KL] = H(q) - log n + sum q E[log(1 + c')],
    E[log(1 + c')] = integral over s from 0 to infinity of exp(-s) (1 - (1 - q (1 - exp(-s)))^(n - 1)) / s,

the second from log(1 + x) = integral of (exp(-s) - exp(-s (1 + x))) / s and the binomial's generating function. Both
are exact; the integral is taken numerically. For short texts the rest is the mean of -log q over its words less the
entropy, so it scatters by about sqrt(V / n), V the variance of -log q under q. A document goes where it lies beyond the
limit by more than so many of these: short ones need more evidence.

Tokens that the corpus does not have get the share of those it has once, n1 / N (Good 1953). A document that was counted
itself is taken out of the counts first; else in a small corpus, or a rare language, it would vouch for its own words.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from datatrove.data import Document
from datatrove.io import DataFolderLike, get_datafolder
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from llama31.curate.heuristics import token_counts
from llama31.curate.heuristics.token_counts import MERGED, Counts

Verdict = bool | tuple[bool, str]
Floats = npt.NDArray[np.float64]
# Gauss and Legendre's points and weights in log s, over which the integral is smooth: exp(-30) to exp(6).
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(200)
LOG_S = -12 + 18 * POINTS


class DivergenceFilter(BaseFilter):
    """Drops documents whose words are unlike those of their language in the corpus.

    Statistics: `too little of LANGUAGE`, of documents that stay because their language has too few tokens. Adds
    metadata `divergence`: nats above what the length explains.

    Args:
        folder: where MergeTokenCounts left its file.
        max_excess: nats by which a document may lie above what a text of its length has. 2.5: ours.
        deviations: how many standard deviations of such a text more it may. 4: ours.
        min_tokens: tokens that a language has to have in the corpus. 100,000: ours; with fewer a corpus knows no words.
        counted: whether the documents are among those that were counted.
        exclusion_writer: where what is dropped is written.
    """

    name = "Divergence"

    def __init__(
        self,
        folder: DataFolderLike,
        max_excess: float = 2.5,
        deviations: float = 4,
        min_tokens: int = 100_000,
        counted: bool = True,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.folder, self.max_excess, self.deviations = get_datafolder(folder), max_excess, deviations
        self.min_tokens, self.counted = min_tokens, counted
        self._known: dict[str, Distribution] | None = None

    def filter(self, document: Document) -> Verdict:
        """True, or False and the reason."""
        if self._known is None:
            counts = token_counts.read(self.folder, MERGED)
            self._known = {language: Distribution(found) for language, found in counts.items()}
        language = document.metadata.get("language") or ""
        known = self._known.get(language)
        if known is None or known.total < self.min_tokens:
            self.stat_update(f"too little of {language or 'unknown'}")
            return True
        found = token_counts.tokens(document.text, language)
        if not len(found):
            return True
        excess = known.divergence(found, self.counted) - known.expected(len(found))
        document.metadata["divergence"] = round(float(excess), 3)
        if excess - self.deviations * known.deviation(len(found)) > self.max_excess:
            return False, "divergence"
        return True


class Distribution:
    """What share each token has in a corpus, and how texts drawn from it lie to it."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.total = int(counts.sum())
        # Shares by count: buckets with equal counts are worked out once.
        values, self._times = np.unique(counts, return_counts=True)
        self._shares = np.exp(self._log_shares(values, self.total))
        surprise = -np.log(self._shares)
        mass = self._shares * self._times
        self._known: dict[int, float] = {}
        self.entropy = float((mass * surprise).sum())
        self.variance = float((mass * (surprise - self.entropy) ** 2).sum())

    @functools.cached_property
    def _unseen(self) -> float:
        """Share of one token that was not seen: that of all seen once, among the buckets without any."""
        once, none = int(np.count_nonzero(self.counts == 1)), int(np.count_nonzero(self.counts == 0))
        return max(once, 1) / max(self.total, 1) / max(none, 1)

    def _log_shares(self, counts: Counts, total: int) -> Floats:
        none = int(np.count_nonzero(self.counts == 0))
        seen = 1 - self._unseen * none
        return np.log(np.where(counts > 0, seen * counts / max(total, 1), self._unseen))

    def divergence(self, found: npt.NDArray[np.int64], counted: bool) -> float:
        """Kullback-Leibler divergence of a document's tokens, as buckets, from the corpus, in nats."""
        buckets, times = np.unique(found, return_counts=True)
        others = self.counts[buckets] - times if counted else self.counts[buckets]
        shares = times / len(found)
        total = self.total - len(found) * counted
        return float((shares * (np.log(shares) - self._log_shares(np.maximum(others, 0), total))).sum())

    def expected(self, tokens: int) -> float:
        """The same that `tokens` draws from the corpus are expected to have."""
        # Between powers of the fourth root of two it is all but straight in the logarithm of the length.
        at = 4 * np.log2(tokens)
        low = int(np.floor(at))
        first, second = self._expected(low), self._expected(low + 1)
        return first + (at - low) * (second - first)

    def _expected(self, quarter: int) -> float:
        if quarter not in self._known:
            self._known[quarter] = self.exactly_expected(2 ** (quarter / 4))
        return self._known[quarter]

    def exactly_expected(self, tokens: float) -> float:
        """The expectation itself, for a length that need not be whole."""
        s = np.exp(LOG_S)
        # (1 - q (1 - exp(-s))) ** (n - 1) by way of its logarithm; ds / s is d log s.
        inside = (tokens - 1) * np.log1p(-np.outer(self._shares, -np.expm1(-s)))
        values = (np.exp(-s) * -np.expm1(inside)) @ (18 * WEIGHTS)
        return self.entropy - float(np.log(tokens)) + float((self._shares * self._times * values).sum())

    def deviation(self, tokens: int) -> float:
        """Standard deviation of the mean surprise of so many draws; that of the divergence is below it."""
        return float(np.sqrt(self.variance / tokens))

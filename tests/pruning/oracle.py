"""The quota definition of §3.3, literally: plain Python, one image, a search over γ; nothing of craft."""

import math
from collections import Counter


def log_ratios(counts, alpha, delta):
    """lr_k = ln(ρ_ref / ρ_k) with ρ_k = 1/p_k and ρ_ref = e^δ · max ρ, of smoothed frequencies."""
    total = sum(counts) + alpha * len(counts)
    rho = [total / (count + alpha) for count in counts]
    return [delta + math.log(max(rho)) - math.log(r) for r in rho]


def quotas(codes, ratio, gamma):
    """m_k = ⌈n_k (ρ_k / ρ_ref)^γ⌉ of every code in the image."""
    return {k: math.ceil(n * math.exp(-gamma * ratio[k])) for k, n in Counter(codes).items()}


def within_scores(codes, columns, residual, beta, neighbours):
    """(1-β)·rank of the residual + β·rank of the mean distance to the nearest tokens of the code."""
    groups = {}
    for i, k in enumerate(codes):
        groups.setdefault(k, []).append(i)
    score = {}
    for members in groups.values():
        apart = {}
        for i in members:
            away = sorted(
                round(1000 * math.hypot(i // columns - j // columns, i % columns - j % columns))
                for j in members
                if j != i
            )[:neighbours]
            apart[i] = sum(away) / len(away) if away else 0.0
        last = max(len(members) - 1, 1)
        for i in members:
            e = sum(residual[j] < residual[i] for j in members) / last
            far = sum(apart[j] < apart[i] for j in members) / last
            score[i] = (1 - beta) * e + beta * far
    return score


def by_quota(codes, score, m):
    """The m_k best tokens of every code."""
    kept = set()
    for k, quota in m.items():
        members = sorted((i for i, code in enumerate(codes) if code == k), key=lambda i: (-score[i], i))
        kept |= set(members[:quota])
    return kept


def between(codes, ratio, budget):
    """(γ below, γ above) a step of Σ m_k(γ): the total is at least `budget` at the first, less at the second.

    Both are the first γ where the total is the budget, if there is one. None where even γ → ∞ keeps more.
    """
    if len(set(codes)) > budget:
        return None

    def total(gamma):
        return sum(quotas(codes, ratio, gamma).values())

    low, high = 0.0, 1.0
    while total(high) > budget:
        low, high = high, 2 * high
    for _ in range(48):
        middle = (low + high) / 2
        found = total(middle)
        if found == budget:
            return middle, middle
        low, high = (middle, high) if found > budget else (low, middle)
    return low, high

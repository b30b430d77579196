"""Gaussian inference for the hierarchy: filtering, conditioning and leave-one-group-out predictions.

Notation of the state-space model: mu = h.a + d, a ~ N(mean, cov); a group's mean reward is y = mu + noise. With
C = H cov Hᵀ and D = diag(noise), K = (C + D)⁻¹ (leave-one-out: Rasmussen and Williams 2006, eq. 5.10-5.12).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import numpy as np

from coterie.stats import Floats


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """Gaussian distribution of the n offsets of the hierarchy."""

    mean: Floats
    """[n]"""
    cov: Floats
    """[n, n], symmetric and positive definite."""

    def advance(self, elapsed: float, prior: Floats, memory: Floats, walk: Floats) -> Gaussian:
        """The distribution `elapsed` later: each offset decays towards 0 as AR(1), or follows a random walk.

        Args:
            elapsed: time passed, at least 0.
            prior: [n] stationary variance of each offset.
            memory: [n] e-folding time; infinity never decays.
            walk: [n] variance gained per unit of time by a random walk.
        """
        if elapsed <= 0:
            return self
        decay = np.array([exp(-elapsed / m) for m in memory])
        gained = (1.0 - decay**2) * prior + walk * elapsed
        cov = self.cov * np.outer(decay, decay)
        cov[np.diag_indices_from(cov)] += gained
        return Gaussian(self.mean * decay, cov)

    def condition(self, design: Floats, residual: Floats, noise: Floats) -> Gaussian:
        """Kalman update with P groups at once, in square-root form: cov' = L (I + Lᵀ Hᵀ D⁻¹ H L)⁻¹ Lᵀ.

        Args:
            design: [P, n] rows h.
            residual: [P] y minus its prediction.
            noise: [P] variance of y given a.
        """
        root = square_root(self.cov)
        whitened = (design @ root) / np.sqrt(noise)[:, None]
        inner = np.linalg.inv(np.eye(root.shape[1]) + whitened.T @ whitened)
        cov = root @ inner @ root.T
        step = root @ (inner @ (whitened.T @ (residual / np.sqrt(noise))))
        return Gaussian(self.mean + step, 0.5 * (cov + cov.T))


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Result of the joint solve of a batch of P groups."""

    alpha: Floats
    """[P] K residual."""
    precision: Floats
    """[P] diagonal of K."""

    def without_own(self, residual: Floats) -> tuple[Floats, Floats]:
        """Leave-one-group-out: [P] correction of each prediction by the other groups, and [P] variance of y given them.

        Neither depends on the group's own y: residual - alpha / K_pp is the mean given the others, 1 / K_pp its
        variance.
        """
        return residual - self.alpha / self.precision, 1.0 / self.precision


def solve_direct(belief: Gaussian, design: Floats, residual: Floats, noise: Floats) -> Solution:
    """Solution by the [P, P] matrix: O(P² n + P³), for few groups."""
    kernel = np.asarray(np.linalg.inv(design @ belief.cov @ design.T + np.diag(noise)), dtype=np.float64)
    return Solution(kernel @ residual, np.diagonal(kernel).copy())


def solve_woodbury(belief: Gaussian, design: Floats, residual: Floats, noise: Floats) -> Solution:
    """Solution by the [n, n] matrix: O(P n² + n³), linear in the groups.

    K = D⁻¹ - D⁻¹ U (I + Uᵀ D⁻¹ U)⁻¹ Uᵀ D⁻¹ with U = H L; only its diagonal and its product with the residual are made.
    """
    spread = design @ square_root(belief.cov)
    scaled = spread / noise[:, None]
    solved = np.linalg.solve(np.eye(spread.shape[1]) + spread.T @ scaled, scaled.T)
    return Solution(
        residual / noise - scaled @ (solved @ residual), 1.0 / noise - np.einsum("pn,np->p", scaled, solved)
    )


def solve(belief: Gaussian, design: Floats, residual: Floats, noise: Floats) -> Solution:
    """Solution by the cheaper of the two ways, which agree to rounding."""
    way = solve_direct if design.shape[0] <= design.shape[1] else solve_woodbury
    return way(belief, design, residual, noise)


def variance(belief: Gaussian, design: Floats) -> Floats:
    """[P] variance of h.a."""
    return np.einsum("pn,nm,pm->p", design, belief.cov, design, optimize=True)


def square_root(cov: Floats) -> Floats:
    """[n, n] a matrix whose product with its transpose is `cov`; by eigenvalues where rounding has spoilt Cholesky."""
    try:
        return np.asarray(np.linalg.cholesky(cov), dtype=np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(cov)
        return vectors * np.sqrt(np.maximum(values, 1e-12))

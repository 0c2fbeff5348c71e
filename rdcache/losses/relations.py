"""How the samples of a batch relate to one another, as the student and as the teacher see them.

All but `cc` compare matrices of samples × samples, so that the two sides may have features of any
width. Features (B, …) are flattened to rows (B, d); with G = XXᵀ,

    sp             G, each row scaled to length 1                    Tung & Mori, ICCV 2019
    rkd_distance   ‖x_i − x_j‖, divided by their mean                Park et al., CVPR 2019
    rkd_angle      cos ∠(x_j, x_i, x_k) of all triples               Park et al., CVPR 2019
    pkt            cosines of pairs, each row a distribution         Passalis & Tefas, ECCV 2018
    cc             |x_s − x_t| of neighbouring samples               Peng et al., ICCV 2019

None of the first four changes when one side is scaled. All are computed in float32 at least, also
under autocast, and give gradients to both arguments: detach the one that should not move.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.losses.unit_length import unit_length

PKT_EPS = 1e-7  # added to probabilities before the logarithm, as in the authors' code


def sp(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """‖Ĝ_s − Ĝ_t‖²_F / B²: similarity-preserving distillation.

    Ĝ is the Gram matrix XXᵀ whose rows are scaled to length 1 (a row of zeros stays).

    Args:
        student: (B, …) features.
        teacher: (B, …) features; row i of both belongs to the same sample.

    Raises:
        UsageError: other shapes, or fewer than 2 samples.
    """
    student, teacher = _pairs(student, teacher, least=2)
    with torch.autocast(student.device.type, enabled=False):
        difference = unit_length(student @ student.T) - unit_length(teacher @ teacher.T)
        return difference.square().mean()


def rkd_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over all pairs of huber(d_s, d_t), d = ‖x_i − x_j‖ over its mean of the pairs apart.

    Args:
        student: (B, …) features.
        teacher: (B, …) features; row i of both belongs to the same sample.

    Raises:
        UsageError: other shapes, or fewer than 2 samples.
    """
    student, teacher = _pairs(student, teacher, least=2)
    with torch.autocast(student.device.type, enabled=False):
        mine, theirs = (_over_mean(_distances(rows)[0]) for rows in (student, teacher))
        return F.smooth_l1_loss(mine, theirs)


def rkd_angle(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over all triples (i, j, k) of huber(a_s, a_t), a = cos of the angle at x_i between x_j
    and x_k; 0 where one of them coincides with x_i. Needs memory for B³ numbers.

    Args:
        student: (B, …) features.
        teacher: (B, …) features; row i of both belongs to the same sample.

    Raises:
        UsageError: other shapes, or fewer than 3 samples.
    """
    student, teacher = _pairs(student, teacher, least=3)
    with torch.autocast(student.device.type, enabled=False):
        return F.smooth_l1_loss(_angles(student), _angles(teacher))


def pkt(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over all pairs of p_t·log(p_t / p_s): probabilistic knowledge transfer.

    p_ij = (1 + cos(x_i, x_j)) / Σ_k (1 + cos(x_i, x_k)), how likely x_i has x_j for a neighbour.
    As in the authors' code, 1e-7 is added to both within the logarithm, and the mean is over B²
    entries, not over B rows.

    Args:
        student: (B, …) features.
        teacher: (B, …) features; row i of both belongs to the same sample.

    Raises:
        UsageError: other shapes, or fewer than 2 samples.
    """
    student, teacher = _pairs(student, teacher, least=2)
    with torch.autocast(student.device.type, enabled=False):
        p_s, p_t = _neighbours(student), _neighbours(teacher)
        return (p_t * ((p_t + PKT_EPS) / (p_s + PKT_EPS)).log()).mean()


def cc(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over neighbouring rows of Σ_k |δ_ik|·|δ_(i+1)k| with δ = x_s − x_t.

    The form that the code lineage of RepDistiller has for correlation congruence, by its authors;
    the paper compares Taylor-expanded Gaussian kernels instead.

    Args:
        student: (B, d) embeddings.
        teacher: (B, d) embeddings of the same width.

    Raises:
        UsageError: other shapes, or fewer than 2 samples.
    """
    student, teacher = _pairs(student, teacher, least=2)
    if student.shape != teacher.shape:
        raise UsageError(
            "cc compares embeddings of one width.",
            student=tuple(student.shape),
            teacher=tuple(teacher.shape),
        )
    with torch.autocast(student.device.type, enabled=False):
        difference = (student - teacher).abs()
        return (difference[:-1] * difference[1:]).sum(dim=1).mean()


def _rows(features: torch.Tensor) -> torch.Tensor:
    """Flatten (B, …) to (B, d), in float32 at least."""
    rows = features.flatten(1) if features.ndim > 2 else features
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _pairs(
    student: torch.Tensor, teacher: torch.Tensor, least: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as rows, if there are as many of the one as of the other, and enough of them."""
    student, teacher = _rows(student), _rows(teacher)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise UsageError(
            "relations are compared between two (sample, …) tensors of equally many samples.",
            student=tuple(student.shape),
            teacher=tuple(teacher.shape),
        )
    if len(student) < least:
        raise UsageError(f"this relation needs at least {least} samples.", samples=len(student))
    return student, teacher


def _neighbours(rows: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs, moved to [0, 1], each row a distribution: (B, B)."""
    unit = unit_length(rows)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


def _distances(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances (B, B) and the Gram matrix of the centred rows that they are computed from.

    Rows that coincide as far as the precision tells are at a distance of 0, without gradient.
    """
    centred = rows - rows.mean(dim=0)  # moves no distance, and keeps the numbers small
    # Products of centred rows are rounded by ε of their squares, and centring by ε of the rows.
    noise = 10 * torch.finfo(rows.dtype).eps
    precision = noise * _mean_square(centred) + noise**2 * _mean_square(rows)
    gram = centred @ centred.T
    lengths = gram.diagonal()
    squares = lengths[:, None] + lengths[None, :] - 2 * gram
    apart = squares > precision
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0), gram


def _mean_square(rows: torch.Tensor) -> torch.Tensor:
    """Mean of the rows' squared lengths, a constant."""
    return rows.detach().square().sum(dim=1).mean()


def _over_mean(distances: torch.Tensor) -> torch.Tensor:
    """Divide by the mean of those that are not 0."""
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _angles(rows: torch.Tensor) -> torch.Tensor:
    """Cosine of the angle at row i between rows j and k, (B, B, B), through the Gram matrix."""
    distances, gram = _distances(rows)
    products = (
        gram[None, :, :]
        - gram[:, :, None]
        - gram[:, None, :]
        + gram.diagonal()[:, None, None]  # ⟨x_j − x_i, x_k − x_i⟩
    )
    norms = distances[:, :, None] * distances[:, None, :]
    apart = norms > 0
    return torch.where(apart, products / torch.where(apart, norms, 1.0), 0.0)

"""BatchNorm by batch statistics, with a backward that yields the gate's gradient for free.

Shape suffixes: B batch, H height, W width, C channels; maps are NHWC.

No running statistics anywhere: a recomputed map is normalised with the (mean, rstd) of its first pass.
The sums: S1 = sum dy, S2 = sum dy * xhat per channel. For out = gate * xhat, sum_C S2 is the gradient of the
gate, and dz = gate * rstd * (dy - S1 / P - xhat * S2 / P) with P = B * H * W (Ioffe and Szegedy 2015).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-5
# Sums over their maps, and their statistics, are fp32.
NARROW = (torch.bfloat16, torch.float16)
# (mean [C], rstd [C]), or both as one tensor [2, C].
Stats = tuple[Tensor, Tensor] | Tensor


def rows(x_BHWC: Tensor) -> Tensor:
    """[B * H * W, C] view (a copy where the map is a slice of a wider buffer)."""
    return x_BHWC.reshape(-1, x_BHWC.shape[-1])


def batch_stats(z_BHWC: Tensor) -> Stats:
    """(mean [C], 1 / sqrt(biased variance + eps) [C]) over B, H and W."""
    z_BCHW = z_BHWC.permute(0, 3, 1, 2)
    if z_BHWC.is_cuda:
        return torch.batch_norm_stats(z_BCHW, EPSILON)
    if z_BHWC.dtype in NARROW:
        z_BCHW = z_BCHW.float()
    # Writes no map; torch.var_mean takes eleven times as long in this layout.
    mean_C, variance_C = torch.batch_norm_update_stats(z_BCHW, None, None, 0.1)
    return mean_C, torch.rsqrt(variance_C + EPSILON)


def normalize_(z_BHWC: Tensor, stats: Stats) -> Tensor:
    """xhat, written over z."""
    mean_C, rstd_C = stats
    return z_BHWC.mul_(rstd_C).sub_(mean_C * rstd_C)


def normalize_relu(z_BHWC: Tensor, stats: Stats) -> Tensor:
    """relu(xhat) as a new map."""
    mean_C, rstd_C = stats
    return torch.addcmul(-mean_C * rstd_C, z_BHWC, rstd_C).relu_().to(z_BHWC.dtype)


def sum_rows(dy_BHWC: Tensor) -> Tensor:
    """S1 [C]; fp32 for a 16-bit map."""
    return rows(dy_BHWC).sum(0, dtype=torch.float32 if dy_BHWC.dtype in NARROW else None)


def sum_dy_xhat(dy_BHWC: Tensor, z_BHWC: Tensor, stats: Stats, sum_dy_C: Tensor) -> Tensor:
    """S2 [C], without forming xhat."""
    mean_C, rstd_C = stats
    return rstd_C * (sum_rows(torch.mul(dy_BHWC, z_BHWC)) - mean_C * sum_dy_C)


def input_grad(
    dy_BHWC: Tensor,
    z_BHWC: Tensor,
    stats: Stats,
    sum_dy_C: Tensor,
    sum_dy_xhat_C: Tensor,
    scale: float | Tensor,
    *,
    overwrite_z: bool,
) -> Tensor:
    """dz of out = scale * xhat(z); `scale` is the gate or BatchNorm's weight [C].

    `overwrite_z` reuses z's memory for the result: only for a z that nobody needs again.
    """
    mean_C, rstd_C = stats
    num_rows = z_BHWC.numel() // z_BHWC.shape[-1]
    factor_C = rstd_C * scale
    slope_C = -factor_C * rstd_C * sum_dy_xhat_C / num_rows
    offset_C = -factor_C * sum_dy_C / num_rows - mean_C * slope_C
    out_BHWC = z_BHWC.mul_(slope_C).add_(offset_C) if overwrite_z else torch.addcmul(offset_C, z_BHWC, slope_C)
    return out_BHWC.addcmul_(dy_BHWC, factor_C)


def input_grad_from_xhat_(dy_BHWC: Tensor, xhat_BHWC: Tensor, rstd_C: Tensor) -> Tensor:
    """dz of out = xhat(z), written over dy, where the normalised map itself was kept."""
    num_rows = dy_BHWC.numel() // dy_BHWC.shape[-1]
    sum_dy_C = sum_rows(dy_BHWC)
    sum_dy_xhat_C = sum_rows(dy_BHWC * xhat_BHWC)
    return dy_BHWC.addcmul_(xhat_BHWC, -sum_dy_xhat_C / num_rows).sub_(sum_dy_C / num_rows).mul_(rstd_C)

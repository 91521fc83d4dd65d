"""Vision Mamba as people write it: by the names of `mamba_ssm`, with the official parameter names.

Source: hustvl/Vim@dd0358a, vim/models_mamba.py, VisionMamba with the options of its released models.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn_no_out_proj
from mamba_ssm.ops.triton.layer_norm import RMSNorm, rms_norm_fn
from torch import Tensor, nn


class OfficialMamba(Mamba):
    """The mixer as the official repository composes it: two fused calls, the second one on reversed sequences."""

    def forward(self, hidden_states: Tensor, inference_params: object = None) -> Tensor:
        """Mix hidden_states (batch, length, dim); the shape is kept."""
        batch, length, dim = hidden_states.shape
        xz = (self.in_proj.weight @ hidden_states.reshape(-1, dim).T).unflatten(1, (batch, length)).transpose(0, 1)
        forward = self.direction(xz, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        reverse = self.direction(xz.flip(-1), self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        return F.linear((forward + reverse.flip(-1)).mT / 2, self.out_proj.weight)

    def direction(
        self, xz: Tensor, conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor
    ) -> Tensor:
        """Compute one direction of xz (batch, 2 d_inner, length) -> (batch, d_inner, length)."""
        A = -A_log.exp()
        return mamba_inner_fn_no_out_proj(
            xz, conv.weight, conv.bias, x_proj.weight, dt_proj.weight, A, D=D, delta_bias=dt_proj.bias
        )


class PlainMamba(OfficialMamba):
    """Mamba block without any kernel, operation by operation as the official code composes its references."""

    def direction(
        self, xz: Tensor, conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor
    ) -> Tensor:
        """Compute one direction of xz (batch, 2 d_inner, length) -> (batch, d_inner, length)."""
        batch, _, length = xz.shape
        x, z = xz.chunk(2, dim=1)
        x = F.silu(conv(x)[..., :length])
        selected = F.linear(x.mT.reshape(batch * length, -1), x_proj.weight)
        low_rank, B, C = selected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = (dt_proj.weight @ low_rank.T).unflatten(1, (batch, length)).transpose(0, 1)
        B, C = (each.unflatten(0, (batch, length)).mT.contiguous() for each in (B, C))
        return plain_scan(x, delta, -A_log.exp(), B, C, D, z, dt_proj.bias)


def plain_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Compute the selective scan in the steps of the official selective_scan_ref.

    Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/selective_scan_interface.py, selective_scan_ref.
    """
    delta = F.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    h, y = A.new_zeros(len(u), *A.shape), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + drive[:, :, t]
        y.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return (torch.stack(y, dim=2) + u * D[:, None]) * F.silu(z)


class Layer(nn.Module):
    """Add, normalise, mix."""

    def __init__(self, dim: int, mixer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.mixer = mixer(dim, bimamba_type="v2", if_divide_out=True)
        self.norm = RMSNorm(dim)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the next hidden and residual (batch, length, dim); the residual is None in the first layer."""
        hidden, residual = normed(hidden, self.norm, residual)
        return self.mixer(hidden), residual


def normed(hidden: Tensor, norm: RMSNorm, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the norm of hidden + residual, and the sum."""
    return rms_norm_fn(
        hidden, norm.weight, norm.bias, residual=residual, eps=norm.eps, prenorm=True, residual_in_fp32=True
    )


class Vim(nn.Module):
    """Vision Mamba with its class token in the middle: images (batch, 3, size, size) -> logits (batch, classes)."""

    def __init__(
        self,
        size: int = 224,
        dim: int = 192,
        depth: int = 24,
        classes: int = 1000,
        mixer: Callable[..., nn.Module] = Mamba,
    ) -> None:
        super().__init__()
        tokens = (size // 16) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 16, 16)})
        self.head = nn.Linear(dim, classes)
        self.layers = nn.ModuleList(Layer(dim, mixer) for _ in range(depth))
        self.norm_f = RMSNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, classes) of images (batch, 3, size, size)."""
        hidden = self.patch_embed["proj"](images).flatten(2).mT
        middle = hidden.shape[1] // 2
        token = self.cls_token.expand(len(hidden), -1, -1)
        hidden = torch.cat((hidden[:, :middle], token, hidden[:, middle:]), dim=1) + self.pos_embed
        residual = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return self.head(normed(hidden, self.norm_f, residual)[0][:, middle])

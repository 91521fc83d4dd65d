"""Deterministic numbers for the golden files.  Needs numpy only; own code, free to copy.

u01(key, shape, seed): uniform [0,1) float64, C order.
    g   = numpy.random.PCG64( crc32(key utf-8) XOR seed )          (a plain int seeds it)
    raw = g.random_raw(prod(shape))                                (uint64 stream)
    u   = (raw >> 11) * 2**-53
The raw PCG64 stream and SeedSequence are guaranteed stable by numpy (NEP 19); Generator methods
such as standard_normal are not, so none is used.
unit(key, shape, seed) = sqrt(3) * (2*u01 - 1)      zero mean, unit variance, bounded by 1.7320508
Everything is computed in float64 and rounded once to float32 at the end.
"""

import math
import zlib

import numpy as np

SEED = 20240518


def u01(key, shape, seed=SEED):
    n = int(np.prod(shape)) if len(shape) else 1
    g = np.random.PCG64((zlib.crc32(key.encode("utf-8")) ^ seed) & 0xFFFFFFFF)
    raw = np.asarray(g.random_raw(n), dtype=np.uint64).reshape(shape)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def unit(key, shape, seed=SEED):
    return math.sqrt(3.0) * (2.0 * u01(key, shape, seed) - 1.0)


# --------------------------------------------------------------------------- Vim parameters
def param(name, shape, seed=SEED):
    """float32 value of one state_dict entry, from its full name and shape only.
    Returns None for entries that are not parameters (the two rope buffers)."""
    shape = tuple(shape)
    leaf = name.split(".")[-1]

    def v():
        return unit(name, shape, seed)

    if name.startswith("rope."):
        return None
    if leaf in ("A_log", "A_b_log"):  # (d_inner, N):  A = -(n+1)*exp(0.25*unit)
        out = np.log(np.arange(1, shape[-1] + 1, dtype=np.float64))[None, :] + 0.25 * v()
    elif leaf in ("D", "D_b"):
        out = 1.0 + 0.2 * v()
    elif name.endswith(("dt_proj.bias", "dt_proj_b.bias")):  # softplus^-1 of log-uniform [1e-3, 1e-1]
        dt = np.exp(math.log(1e-3) + u01(name, shape, seed) * (math.log(1e-1) - math.log(1e-3)))
        out = dt + np.log(-np.expm1(-dt))
    elif name.endswith(("dt_proj.weight", "dt_proj_b.weight")):
        out = v() * shape[-1] ** -0.5
    elif name.endswith(("conv1d.weight", "conv1d_b.weight")):
        out = 0.4 * v()
    elif name.endswith(("conv1d.bias", "conv1d_b.bias")):
        out = 0.1 * v()
    elif name.endswith(("norm.weight", "norm_f.weight")):
        out = 1.0 + 0.1 * v()
    elif name.endswith(("norm.bias", "norm_f.bias")):
        out = 0.1 * v()
    elif leaf == "gamma":
        out = 0.5 + 0.1 * v()
    elif leaf in ("pos_embed", "cls_token", "cls_token_head", "cls_token_tail"):
        out = 0.3 * v()
    elif leaf == "bias":  # patch_embed.proj.bias, head.bias, in/out_proj.bias
        out = 0.1 * v()
    elif leaf == "weight":  # every other linear / conv weight
        fan_in = int(np.prod(shape[1:]))
        out = v() * fan_in**-0.5
    else:
        raise KeyError(name)
    return np.ascontiguousarray(out.astype(np.float32))


def image(batch, size, seed=SEED, key="input"):
    """(batch, 3, size, size) float32 ~ unit variance."""
    return unit(f"{key}/{batch}x3x{size}x{size}", (batch, 3, size, size), seed).astype(np.float32)


# --------------------------------------------------------------------------- selective-scan cases
# B/C kinds: "dn" (D,N) constant | "bnl" (B,N,L) | "bgnl" (B,G,N,L)
def _c(
    name,
    B,
    D,
    L,
    N,
    Bk="bnl",
    Ck="bnl",
    G=1,
    cplx=False,
    hasD=True,
    z=True,
    bias=True,
    softplus=True,
    grads=True,
    A="s4d",
    delta="std",
    zscale=1.0,
):
    return dict(
        name=name,
        B=B,
        D=D,
        L=L,
        N=N,
        Bk=Bk,
        Ck=Ck,
        G=G,
        cplx=cplx,
        hasD=hasD,
        z=z,
        bias=bias,
        softplus=softplus,
        grads=grads,
        A=A,
        delta=delta,
        zscale=zscale,
    )


OP_CASES = [
    _c("c01_base", 2, 17, 33, 8),
    _c("c02_vim_tiny_dir", 1, 384, 197, 16, "bgnl", "bgnl", grads=False),
    _c("c03_min_1111", 1, 1, 1, 1),
    _c("c04_L2_N3", 3, 4, 2, 3),
    _c("c05_groups2", 2, 8, 50, 16, "bgnl", "bgnl", G=2),
    _c("c06_groups_eq_dim", 2, 6, 20, 3, "bgnl", "bgnl", G=6),
    _c("c07_const_B_const_C", 2, 17, 33, 8, "dn", "dn"),
    _c("c08_const_B_var_C", 2, 5, 19, 3, "dn", "bnl"),
    _c("c09_var_B_const_C", 2, 5, 19, 3, "bnl", "dn"),
    _c("c10_complex_varBC", 2, 5, 19, 8, cplx=True),
    _c("c11_complex_constBC", 2, 5, 19, 8, "dn", "dn", cplx=True),
    _c("c12_complex_groups2", 2, 6, 21, 3, "bgnl", "bgnl", G=2, cplx=True),
    _c("c13_bare", 2, 7, 40, 8, hasD=False, z=False, bias=False, softplus=False),
    _c("c14_no_z", 1, 7, 40, 8, z=False),
    _c("c15_no_D", 1, 7, 40, 8, hasD=False),
    _c("c16_no_bias", 1, 7, 40, 8, bias=False),
    _c("c17_bias_no_softplus", 1, 7, 40, 8, softplus=False),
    _c("c18_softplus_saturation", 1, 6, 64, 8, delta="huge", bias=False, zscale=40.0),
    _c("c19_long_N64", 1, 100, 1000, 64, grads=False),
    _c("c20_long_odd_N3", 2, 17, 1000, 3, grads=False),
    _c("c21_slow_decay", 1, 3, 1000, 1, A="slow"),
    _c("c22_fast_decay_underflow", 1, 3, 64, 8, A="fast"),
    _c("c23_growing_A_positive", 1, 3, 20, 3, A="grow"),
    _c("c24_zero_delta", 1, 3, 16, 8, bias=False, softplus=False, delta="zero"),
    _c("c25_D1_N16_L197", 1, 1, 197, 16),
    _c("c26_D100_N1", 2, 100, 197, 1, grads=False),
]


def op_inputs(case, seed=SEED):
    """dict of float32 / complex64 numpy arrays: u, delta, A, B, C, D, z, delta_bias, gout (None if absent).
    Complex B/C that vary with L are REAL arrays whose last axis is 2L: [re0, im0, re1, im1, ...]."""
    c = case
    nm, Bs, D, L, N, G = c["name"], c["B"], c["D"], c["L"], c["N"], c["G"]

    def un(k, s):
        return unit(f"{nm}/{k}", s, seed)

    def uu(k, s):
        return u01(f"{nm}/{k}", s, seed)

    def f32(a):
        return np.ascontiguousarray(a.astype(np.float32))

    def c64(re, im):
        return np.ascontiguousarray(f32(re) + 1j * f32(im)).astype(np.complex64)

    out = {}
    out["u"] = f32(un("u", (Bs, D, L)))
    if c["delta"] == "zero":
        d = np.zeros((Bs, D, L))
    elif c["delta"] == "huge":
        d = -60.0 + 120.0 * uu("delta", (Bs, D, L))
        d[:, 0, :8] = [20.0, 19.999, 20.001, 0.0, -88.0, -104.0, 88.8, 21.0]  # threshold, exp overflow
    elif c["softplus"]:
        d = un("delta", (Bs, D, L))
    else:
        d = 0.5 * uu("delta", (Bs, D, L))
    out["delta"] = f32(d)
    if c["cplx"]:
        out["A"] = c64(-(0.1 + 0.5 * uu("A_re", (D, N))), 3.0 * un("A_im", (D, N)))
    else:
        base = np.arange(1, N + 1)[None, :] * np.exp(0.25 * un("A", (D, N)))
        out["A"] = f32({"s4d": -base, "slow": -1e-4 * base, "fast": -1e4 * base, "grow": 0.05 * base}[c["A"]])
    for k in ("B", "C"):
        kind = c[k + "k"]
        two = 2 if c["cplx"] else 1
        if kind == "dn":
            out[k] = c64(un(k + "_re", (D, N)), un(k + "_im", (D, N))) if c["cplx"] else f32(un(k, (D, N)))
        elif kind == "bnl":
            out[k] = f32(un(k, (Bs, N, L * two)))
        else:
            out[k] = f32(un(k, (Bs, G, N, L * two)))
    out["D"] = f32(1.0 + 0.5 * un("D", (D,))) if c["hasD"] else None
    out["z"] = f32(c["zscale"] * un("z", (Bs, D, L))) if c["z"] else None
    out["delta_bias"] = (
        f32((-2.0 + un("delta_bias", (D,))) if c["softplus"] else 0.2 * uu("delta_bias", (D,))) if c["bias"] else None
    )
    out["gout"] = f32(un("gout", (Bs, D, L)))
    return out


def checksum(a):
    """[sum, abs-sum, first, last] in float64 (real and imaginary parts summed for complex)."""
    a = np.asarray(a)
    if np.iscomplexobj(a):
        a = np.stack([a.real, a.imag], -1)
    f = a.astype(np.float64).ravel()
    return np.array([f.sum(), np.abs(f).sum(), f[0], f[-1]])

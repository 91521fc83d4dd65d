"""Vision Mamba once more, as plainly as it can be said: one image, float64, literal reversals, loops over time.

Written from the description of the official model and not from our code, so that an error would have to be
made twice to stay hidden. Options as for VisionMamba; only what changes numbers is here.
"""

import torch
import torch.nn.functional as F


def direction(xz, weights, b, A_log, D):
    """One scan over xz (length, 2 inner) with the weights whose names end in `b`; gated, (length, inner)."""
    u, z, delta, B, C = projections(xz, weights, b)
    return recur(u, z, delta, B, C, A_log, D)


def projections(xz, weights, b):
    """u, z, delta, B and C, each (length, ...)."""
    x, z = xz.chunk(2, dim=1)
    kernel = weights[f"conv1d{b}.weight"][:, 0]
    width = kernel.shape[1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    u = sum(kernel[:, k] * padded[k : k + len(x)] for k in range(width))
    u = F.silu(u + weights.get(f"conv1d{b}.bias", torch.zeros(())))
    rank = weights[f"dt_proj{b}.weight"].shape[1]
    projected = u @ weights[f"x_proj{b}.weight"].T
    state = (projected.shape[1] - rank) // 2
    low, B, C = projected.split([rank, state, state], dim=1)
    delta = F.softplus(low @ weights[f"dt_proj{b}.weight"].T + weights[f"dt_proj{b}.bias"])
    return u, z, delta, B, C


def recur(u, z, delta, B, C, A_log, D):
    A = -A_log.exp()
    h = torch.zeros_like(A)
    rows = []
    for t in range(len(u)):
        h = (delta[t, :, None] * A).exp() * h + (delta[t] * u[t])[:, None] * B[t]
        rows.append((h @ C[t] + D * u[t]) * F.silu(z[t]))
    return torch.stack(rows)


def mixer(hidden, weights, options):
    xz = hidden @ weights["in_proj.weight"].T + weights.get("in_proj.bias", 0.0)
    kind = "v1" if options.get("if_bimamba") else options.get("bimamba_type", "v2")
    y = direction(xz, weights, "", weights["A_log"], weights["D"])
    if kind == "v2":
        y = y + direction(xz.flip(0), weights, "_b", weights["A_b_log"], weights["D_b"]).flip(0)
        y = y / 2 if options.get("if_divide_out", True) else y
    elif kind == "v1":  # the second scan reverses what is convolved already
        u, z, delta, B, C = (each.flip(0) for each in projections(xz, weights, ""))
        y = y + recur(u, z, delta, B, C, weights["A_b_log"], weights["D"]).flip(0)
    out = y @ weights["out_proj.weight"].T + weights.get("out_proj.bias", 0.0)
    return out * weights.get("gamma", 1.0)


def norm(x, weights, prefix, options):
    eps = options.get("norm_epsilon", 1e-5)
    if options.get("rms_norm", True):
        return x / (x.square().mean(1, keepdim=True) + eps).sqrt() * weights[f"{prefix}.weight"]
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{prefix}.weight"] + weights[f"{prefix}.bias"]


def rotate(x, weights):
    """Channel pairs as complex numbers, turned; token 0 stays where the length is odd."""
    if len(x) % 2:
        return torch.cat((x[:1], rotate(x[1:], weights)))
    cos, sin = weights["rope.freqs_cos"][:, ::2], weights["rope.freqs_sin"][:, ::2]
    turned = torch.view_as_complex(x.unflatten(1, (-1, 2)).contiguous()) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(1)


def vim(image, weights, options):
    """The logits of one image (channels, height, width), or the features where there is no head; float64 weights."""
    kernel = weights["patch_embed.proj.weight"]
    patches = F.conv2d(image[None].double(), kernel, weights["patch_embed.proj.bias"], options.get("stride", 16))
    tokens = list(patches[0].flatten(1).T)
    if "cls_token" in weights:
        place = len(tokens) // 2 if options.get("use_middle_cls_token", True) else 0
        tokens.insert(place, weights["cls_token"][0, 0])
        places = [place]
    elif "cls_token_head" in weights:
        tokens = [weights["cls_token_head"][0, 0], *tokens, weights["cls_token_tail"][0, 0]]
        places = [0, len(tokens) - 1]
    else:
        places = []
    hidden, residual = torch.stack(tokens) + weights.get("pos_embed", torch.zeros(1, 1))[0], None
    flipped = options.get("flip_img_sequences_ratio", -1) >= 1.0
    hidden = hidden.flip(0) if flipped else hidden

    def layer(index, hidden, residual):
        prefix = f"layers.{index}."
        own = {
            name.removeprefix(prefix + "mixer."): value for name, value in weights.items() if name.startswith(prefix)
        }
        residual = hidden if residual is None else residual + hidden
        return mixer(norm(residual, weights, prefix + "norm", options), own, options), residual

    def roped(x, turn):
        if not options.get("if_rope"):
            return x
        return rotate(x.flip(0), weights).flip(0) if turn else rotate(x, weights)

    pairs = options.get("if_bidirectional", False)
    depth = options["depth"]
    for index in range(0, depth - 1, 2) if pairs else range(depth):
        hidden = roped(hidden, flipped and not pairs)
        if residual is not None and options.get("if_rope_residual"):
            residual = roped(residual, flipped and not pairs)
        if pairs:
            other = layer(index + 1, hidden.flip(0), None if residual is None else residual.flip(0))
            own = layer(index, hidden, residual)
            hidden, residual = (one + two.flip(0) for one, two in zip(own, other, strict=True))
        else:
            hidden, residual = layer(index, hidden, residual)
    tokens = norm(residual + hidden, weights, "norm_f", options)
    pool = options.get("final_pool_type", "none")
    if places:
        features = sum(tokens[place] for place in places) / len(places)
    else:
        features = {"none": tokens[-1], "mean": tokens.mean(0), "max": tokens, "all": tokens}[pool]
    if "head.weight" in weights:
        features = features @ weights["head.weight"].T + weights["head.bias"]
    return features.max(0).values if pool == "max" and not places else features

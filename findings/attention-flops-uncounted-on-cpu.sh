#!/usr/bin/env bash
# torch 2.13.0.
#
# `torch.utils.flop_counter.FlopCounterMode` counts the operations of a model as it runs. Of scaled_dot_product_attention on a CPU
# it counts nothing, forward and backward, and says nothing: the fused kernel that a CPU takes by itself is not in its table. Under
# `SDPBackend.MATH`, on the device "meta", or with attention written out, both matrix products are counted. So a budget of FLOPs that
# is made on a CPU leaves attention out. Seen for 4 heads of width 32 and 512 positions: 0 beside 134,217,728; and for a block of
# attention and feed-forward, fewer FLOPs than its projections and attention have.
# slmctl counts by formula, not by this tool, and a test compares its figures with a count by hand.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

heads, positions, width = 4, 512, 32

def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)

def unfused(q, k, v):
    with sdpa_kernel(SDPBackend.MATH):
        return fused(q, k, v)

def written_out(q, k, v):
    return (q @ k.transpose(-1, -2) / width**0.5).softmax(-1) @ v

def counted(attention, device):
    """FLOPs of the forward pass, and of both."""
    q, k, v = (torch.randn(1, heads, positions, width, device=device, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        out = attention(q, k, v)
        forward = counter.get_total_flops()
        out.sum().backward()
    return forward, counter.get_total_flops()

wanted = 2 * 2 * heads * positions**2 * width  # two matrix products, two FLOPs a multiplication and addition
found = {}
for name, (attention, device) in {
    "sdpa on a CPU": (fused, "cpu"), "sdpa on meta": (fused, "meta"), "sdpa, MATH": (unfused, "cpu"), "written out": (written_out, "cpu"),
}.items():
    found[name] = counted(attention, device)
    print(f"{name:14} forward {found[name][0]:>11,}, with backward {found[name][1]:>11,}")
assert found.pop("sdpa on a CPU") == (0, 0)
assert all(f == (wanted, 3 * wanted) for f in found.values())
q, k, v = (torch.randn(1, heads, positions, width) for _ in range(3))
torch.testing.assert_close(fused(q, k, v), written_out(q, k, v))
PY
echo "still so"

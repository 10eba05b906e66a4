"""The role of a weight in its block, from its module path. All knowledge of models' naming schemes is here.

A role is recognised by the path of a module inside its decoder block (`self_attn.q_proj`, `mlp.dense_4h_to_h`, `fc1`).
Fused projections are recognised as such; `lrbench.models.families` knows their parts. Routers are recognised so
that they are never edited.
"""

from __future__ import annotations

import re

ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.o")
MLP = ("mlp.gate", "mlp.up", "mlp.down")
ROLES = (*ATTENTION, *MLP, "head", "embed")
GROUPS = {"attn": ATTENTION, "mlp": MLP, "all": (*ATTENTION, *MLP)}

#: LASER's names -> roles; the first role that the model has is used.
ALIASES = {
    "q_proj": ("attn.q",),
    "k_proj": ("attn.k",),
    "v_proj": ("attn.v",),
    "out_proj": ("attn.o",),
    "fc_in": ("mlp.gate", "mlp.up"),
    "fc_up": ("mlp.up",),
    "fc_out": ("mlp.down",),
}

_IN_ATTENTION = r"(?:^|\.)[^.]*att(?:ention|n)[^.]*\."  # GPT-2's attn, BLOOM's self_attention, GPT-J's attn.attention
_IN_MLP = r"(?:^|\.)[^.]*(?:mlp|ffn|feed_forward)[^.]*\."

_PATTERNS = [
    (r"(?:^|\.)(?:q_proj|query|q_lin|wq)$", "attn.q"),
    (r"(?:^|\.)(?:k_proj|key|k_lin|wk)$", "attn.k"),
    (r"(?:^|\.)(?:v_proj|value|v_lin|wv)$", "attn.v"),
    (r"(?:^|\.)(?:o_proj|wo)$", "attn.o"),
    (_IN_ATTENTION + r"(?:.*\.)?(?:out_proj|c_proj|dense)$", "attn.o"),
    (r"(?:^|\.)gate_proj$", "mlp.gate"),
    (r"(?:^|\.)(?:up_proj|fc_in|fc1|c_fc|dense_h_to_4h)$", "mlp.up"),
    (r"(?:^|\.)(?:down_proj|fc_out|fc2|dense_4h_to_h)$", "mlp.down"),
    (_IN_MLP + r"(?:.*\.)?(?:out_proj|c_proj)$", "mlp.down"),
]
_ROLE_OF = [(re.compile(pattern), role) for pattern, role in _PATTERNS]
_FUSED = re.compile(r"(?:^|\.)(?:c_attn|qkv_proj|query_key_value|qkv|[Ww]qkv|W_pack|gate_up_proj)$")
# `mlp.gate` is a router, `mlp.gate_proj` a projection. Qwen-MoE weighs its shared expert by a gate of its own.
_ROUTER = re.compile(r"(?:^|\.)(?:[^.]*router(?:\..*)?|gate|(?:shared_)?expert_gate|wg)$")


def role_of(path: str) -> str | None:
    """The role of the module at `path` inside its block; None where it is not known."""
    return next((role for pattern, role in _ROLE_OF if pattern.search(path)), None)


def role_order(role: str) -> tuple[int, str]:
    """A sort key: roles in their usual order, then other words alphabetically."""
    return (ROLES.index(role) if role in ROLES else len(ROLES), role)


def is_fused(path: str) -> bool:
    """Whether the module at `path` holds several roles in one matrix."""
    return bool(_FUSED.search(path))


def is_router(path: str) -> bool:
    """Whether the module at `path` chooses or weighs experts. Routers are never edited."""
    return bool(_ROUTER.search(path))

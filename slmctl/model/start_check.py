"""The start check: a model is what slmctl takes it for under this pipeline's settings, or it is refused before the first step.

- Its logits are those that `SplitModel` makes, however large they grow.
- What it predicts depends on earlier tokens alone.
- A row gives alone what it gives beside another, at the rows' own length: tables of positions change with length, windows
  end, attention is cut into chunks.
- Where attention restarts at documents, each gives in a row what it gives alone.

Shapes: B rows, T tokens of a row, D hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slmctl.model.attention import VARLEN, plain_attention
from slmctl.model.experts import has_experts
from slmctl.system.console import waiting
from slmctl.system.errors import InputError, SlmError
from slmctl.system.memory import memory_available

if TYPE_CHECKING:
    from slmctl.model.split import SplitModel

START_CHECK = "start check: whether the model computes what slmctl takes it for"
SHORT = 24
"""Tokens of a row where length does not matter."""
LARGE_LOGIT = 1e3
"""Logits are compared up to this size: a cap on them does not show in small ones, but does when training makes them larger."""
EXACT, ROUGH, ROUGH_EXPERTS = 2e-4, 0.1, 0.3
"""How far, in its own length, a hidden state may be from what it should be: by the rounding of float32, by that of 16 bits,
and by that of 16 bits where it sends tokens to other experts."""
TRIALS = 3
"""Rounding moves other tokens each time (such as hang between two experts); what is wrong moves the same ones."""
NOT_SPLIT = "its logits are not head(trunk) as slmctl knows it"
KNOWN = "slmctl knows softcaps, multipliers and divisors of logits by their usual names in config.json; use another model"
ALSO_IN_FLOAT32 = ("sdpa", "eager", "flex_attention", VARLEN)
LENGTHS = ("original_max_position_embeddings", "attention_chunk_size", "sliding_window")
"""What configurations call lengths beyond which a model does something else."""
TWO_WAYS = {"use_bidirectional_attention": True, "is_causal": False, "is_decoder": False, "causal": False, "prefix_lm": True}
"""What they call attention that is not causal."""


@torch.no_grad()
def check(split: SplitModel, eos_id: int, seq_len: int, low_precision: bool = False) -> None:
    """Raises `InputError`, which says what to do, where a model is not to be trusted with rows of `seq_len` tokens. Autocast,
    where it is on, is `low_precision`. Leaves the model's mode and every random state as they were."""
    device = split.head.weight.device
    was_training = split.model.training
    split.model.eval()
    try:
        with waiting(START_CHECK), torch.random.fork_rng([device] if device.type == "cuda" else []):
            # Small faults show in float32 only; where there is no room for that, large ones must do.
            exact = low_precision or _of_16_bits(split.model) != []
            exact = exact and split.model.config._attn_implementation in ALSO_IN_FLOAT32 and _room_for_float32(split.model)
            short = min(SHORT, seq_len)
            with _in_float32(split.model) if exact else contextlib.nullcontext():
                _Check(split, eos_id, low_precision and not exact).later_tokens(short)
            as_used = _Check(split, eos_id, low_precision)
            as_used.logits(short)
            if split.intra_document_mask:
                as_used.rows(short)
            with _in_float32(split.model) if exact else contextlib.nullcontext():
                _Check(split, eos_id, low_precision and not exact).rows(seq_len)
    finally:
        split.model.train(was_training)


@contextlib.contextmanager
def lent(model: Any, device: str) -> Iterator[str]:
    """A model that lies on the CPU, on a GPU for as long as it is checked, where it takes no more than a third of what is free
    there. Gives the device that it is on."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    home = next(model.parameters()).device.type
    away = home == "cpu" and device.startswith("cuda") and 3 * size < torch.cuda.mem_get_info()[0]
    try:
        yield str(model.to(device).device.type) if away else home
    finally:
        if away:
            model.to(home)
            torch.cuda.empty_cache()


def _of_16_bits(model: Any) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.dtype in (torch.bfloat16, torch.float16)]


def _room_for_float32(model: Any) -> bool:
    size = sum(4 * t.numel() for t in _of_16_bits(model))
    on_gpu = next(model.parameters()).is_cuda
    return size <= (torch.cuda.mem_get_info()[0] // 2 if on_gpu else memory_available() // 2)


@contextlib.contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Without autocast; weights of 16 bits are put aside, and float32 copies take their place."""
    kept = [(t, t.data) for t in _of_16_bits(model)]
    try:
        for tensor, data in kept:
            tensor.data = data.float()
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for tensor, data in kept:
            tensor.data = data


class _Check:
    def __init__(self, split: SplitModel, eos_id: int, low_precision: bool) -> None:
        self.split, self.model, self.eos_id = split, split.model, eos_id
        self.device = split.head.weight.device
        rough = low_precision or split.head.weight.dtype in (torch.bfloat16, torch.float16)
        self.logit_tolerance = 2e-2 if rough else 1e-3
        self.experts = has_experts(self.model)
        self.tolerance = EXACT if not rough else ROUGH_EXPERTS if self.experts else ROUGH
        self.settings = list(_settings(self.model.config.to_dict()))
        usable = torch.ones(split.vocab_size, dtype=torch.bool)
        for name, value in self.settings:  # an id that stands for an image asks for one
            if name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and 0 <= value < len(usable):
                usable[value] = False
        self.usable_ids = usable.nonzero()[:, 0] if usable.any() else torch.arange(len(usable))

    # --- what is compared ---

    def logits(self, length: int) -> None:
        """The model's own logits with ours, of hidden states enlarged, token by token, by powers of two (which rounds nothing)
        to what makes logits of `LARGE_LOGIT`."""
        head = self.split.head
        ids_BT = torch.stack([self._tokens(length, 0), self._tokens(length, 1)])
        ids_BT[:, length // 2] = self.eos_id
        hidden_BTD = self._plain(ids_BT)
        if hidden_BTD.shape[-1] != head.in_features:
            raise self._refusal(f"{NOT_SPLIT} (its head does not take what its trunk gives)", KNOWN)
        weight = head.weight.to(hidden_BTD.dtype)  # Mamba's trunk gives float32, whatever its weights are
        largest = abs(self.split.multiplier) * torch.nn.functional.linear(hidden_BTD, weight).abs().max().item()
        room = torch.finfo(hidden_BTD.dtype).max / max(8.0 * hidden_BTD.abs().max().item(), 1.0)
        wanted = min(LARGE_LOGIT / largest if largest > 0 and math.isfinite(largest) else 1.0, room)
        steps = math.log2(max(wanted, 1.0)) * torch.linspace(0, 1, length, device=self.device)
        factor_BT = steps.ceil().exp2().expand(2, -1)
        called: list[bool] = []

        def enlarge(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            called.append(True)
            return (args[0] * factor_BT.reshape(*args[0].shape[:-1], 1).to(args[0].dtype), *args[1:])

        hook = head.register_forward_pre_hook(enlarge)
        try:
            with plain_attention(self.model):
                own_BTV = self._call(lambda: self.model(input_ids=ids_BT, use_cache=False).logits, ids_BT)
        finally:
            hook.remove()
        scaled_BTD = hidden_BTD * factor_BT[..., None].to(hidden_BTD.dtype)
        ours_BTV = self.split.logits(scaled_BTD, weight, None if head.bias is None else head.bias.to(weight.dtype))
        if not called:
            raise self._refusal("it does not call its head as a module, so that slmctl cannot tell what becomes of logits", KNOWN)
        worst, size = _worst(ours_BTV, own_BTV, self.logit_tolerance)
        if worst is not None:
            found = f"difference {worst:.3g}, values up to {size:.3g}"
            raise self._refusal(f"{NOT_SPLIT} ({found})", KNOWN)

    def later_tokens(self, length: int) -> None:
        """One row with others that are the same but from some token on."""
        changes = sorted({1, length // 4, length // 2, 3 * length // 4, length - 1} - {0})
        named = [f"{k}: {v}" for k, v in self.settings if k in TWO_WAYS and bool(v) is TWO_WAYS[k]]
        hint = f" (its config.json says {', '.join(named)})" if named else ""
        reason = f"what it predicts changes with tokens that come later: it is no causal language model{hint}"
        advice = f"Use a causal language model{', or correct its config.json' if named else ''}"
        if self.model.config._attn_implementation == VARLEN:
            advice += ", or model.attn_implementation: sdpa"

        def compare(trial: int) -> list[tuple[str, str, Tensor]]:
            row_T, other_T = self._tokens(length, 4 * trial), self._tokens(length, 4 * trial + 1)
            ids_BT = torch.stack([row_T, *(torch.cat([row_T[:n], other_T[n:]]) for n in changes)])
            hidden_BTD = self._plain(ids_BT)
            moved = [self._moved(hidden_BTD[b, :n], hidden_BTD[0, :n]) for b, n in enumerate(changes, 1)]
            return [(reason, advice, torch.cat(moved))]

        if length > 1:
            self._refuse_what_moves(compare)

    def rows(self, length: int) -> None:
        """Two rows together: one document, but for its last token; and several, of which the first is the beginning of that
        document. Beside them the document alone, and, where attention restarts, each of the others."""
        first = max(1, length // 2 - 1 + length // 2 % 2)  # odd: no chunk of attention ends there
        rest = length - first
        sizes = [n for n in (first, rest * 2 // 5, 1, rest // 4) if n]
        bounds = [*torch.tensor([0, *sizes]).cumsum(0).tolist(), length]
        documents = [slice(a, b) for a, b in pairwise(bounds) if a < b]
        restarts = self.split.intra_document_mask
        attention = self.model.config._attn_implementation
        lengths = dict.fromkeys(f"{v} ({k})" for k, v in self.settings if k in LENGTHS and isinstance(v, int) and 0 < v < length)
        shorter = f", or data.seq_len of at most {' or '.join(lengths)}" if lengths and length > SHORT else ""
        beside = f"in rows of {length} tokens, what it predicts changes with later tokens, or with the row beside"
        mixed = f"with {attention} attention, documents packed in a row see each other"
        if length > SHORT:
            mixed = f"with {attention} attention, documents packed in a row of {length} tokens do not give what they give alone"
        instead = f"Use data.intra_document_mask: false, or another model.attn_implementation{shorter}, or another model"

        def compare(trial: int) -> list[tuple[str, str, Tensor]]:
            one_T, other_T = self._tokens(length, 4 * trial + 2), self._tokens(length, 4 * trial + 3)
            ids_BT = torch.stack([torch.cat([one_T[:first], other_T[first:]]), one_T])
            ids_BT[1, -1] = other_T[-1]
            for part in documents[1:]:
                ids_BT[0, part.stop - 1] = self.eos_id
            position_BT = None
            if restarts:
                one_by_one = torch.cat([torch.arange(p.stop - p.start) for p in documents])
                position_BT = torch.stack([one_by_one, torch.arange(length)]).to(self.device)
            hidden_BTD = self._call(lambda: self.split.hidden(ids_BT, position_BT), ids_BT)
            alone_TD = self._plain(one_T[None])[0]
            moved = [self._moved(hidden_BTD[1, :-1], alone_TD[:-1]), self._moved(hidden_BTD[0, :first], alone_TD[:first])]
            found = [(mixed if restarts else beside, instead if restarts else f"Use another model{shorter}", torch.cat(moved))]
            for part in documents[1:] if restarts else []:
                found.append((mixed, instead, self._moved(hidden_BTD[0, part], self._plain(ids_BT[:1, part])[0])))
            return found

        if length > 1:
            self._refuse_what_moves(compare)

    # --- how ---

    def _tokens(self, count: int, seed: int) -> Tensor:
        """[count] ids, other ones for each seed."""
        at = torch.arange(count) * 7919 + 13 + seed * (len(self.usable_ids) // 3 + 1)
        return self.usable_ids[at % len(self.usable_ids)].to(self.device)

    def _plain(self, ids_BT: Tensor) -> Tensor:
        """Hidden states [B, T, D] as the model itself makes them of rows of one document."""
        with plain_attention(self.model):
            return self._call(lambda: self.model.base_model(input_ids=ids_BT, use_cache=False)[0], ids_BT)

    def _call(self, forward: Callable[[], Any], ids_BT: Tensor) -> Tensor:
        try:
            found = forward()
        except (SlmError, torch.OutOfMemoryError):
            raise
        except Exception as e:  # models raise many kinds
            reason = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else 'without a reason'}"
            raise self._refusal(
                f"it cannot read {len(ids_BT)} rows of {ids_BT.shape[1]} tokens ({reason})",
                "Use a causal language model of plain token ids, a data.seq_len that it has positions for, or another "
                "model.attn_implementation",
            ) from e
        if not isinstance(found, Tensor) or found.shape[:2] != ids_BT.shape:
            raise self._refusal("it does not give one prediction for each token", "Use another model")
        return found

    def _moved(self, found_TD: Tensor, wanted_TD: Tensor) -> Tensor:
        """Which of T hidden states differ by more than rounding. [T] bool"""
        found_TD, wanted_TD = found_TD.float(), wanted_TD.float()
        allowed = self.tolerance * wanted_TD.norm(dim=-1).median().clamp_min(1e-12)
        same: Tensor = (found_TD - wanted_TD).norm(dim=-1) <= allowed
        return ~same  # so that NaN is a difference

    def _refuse_what_moves(self, compare: Callable[[int], list[tuple[str, str, Tensor]]]) -> None:
        """Refuses, for the first reason, where a token moves (between experts, in every trial); `compare` gives reasons, advice
        and what moved."""
        found = compare(0)
        for trial in range(1, TRIALS if self.experts else 1):
            if not any(moved.any() for *_, moved in found):
                return
            found = [(r, a, moved & again) for (r, a, moved), (*_, again) in zip(found, compare(trial), strict=True)]
        for reason, advice, moved in found:
            if moved.any():
                raise self._refusal(reason, advice)

    def _refusal(self, reason: str, advice: str) -> InputError:
        return InputError(f"{type(self.model).__name__} is refused: {reason}. {advice}.")


def _worst(ours_BTV: Tensor, own_BTV: Tensor, tolerance: float) -> tuple[float | None, float]:
    """The largest difference of the token where it is largest beside the token's own logits, and their size; None where
    rounding explains it."""
    if ours_BTV.shape != own_BTV.shape:
        return math.inf, math.nan
    own_BTV, finite = own_BTV.to(ours_BTV.dtype), own_BTV.isfinite()
    if not finite.any() or not bool((finite == ours_BTV.isfinite()).all()):
        return math.inf, math.nan
    apart_BT = torch.where(finite, ours_BTV - own_BTV, 0.0).abs().amax(-1)
    size_BT = torch.where(finite, own_BTV, 0.0).abs().amax(-1)
    at = (apart_BT / size_BT.clamp_min(1e-6)).argmax()
    worst, size = apart_BT.flatten()[at].item(), size_BT.flatten()[at].item()
    return (worst if worst > tolerance * max(size, 1e-6) else None), size


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A configuration's numbers and switches, those of its parts among them."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _settings(value)
        elif isinstance(value, bool | int | float | str):
            yield str(name), value  # id2label has numbers for names

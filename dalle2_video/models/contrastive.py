"""Contrastive losses over the batch of all ranks: symmetric cross entropy (CLIP) and pairwise sigmoid (SigLIP).

Invariant: loss and gradient, averaged over ranks as the engine does, do not depend on how the global batch is split
over ranks. So every rank returns the loss of the whole batch, and as the gradient of its own rows the whole batch's
times the number of ranks, which the average divides out again.
Of the global batch of N samples a rank has b. Its own rows meet the gathered rows of all ranks block by block: of the
N x N logits at most LOGITS_AT_ONCE are there at any time, backward computes them again, and what grows are the gathered
embeddings, linearly. Two clips of a batch with the same caption count as negatives of each other, as in the originals.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor
from torch.nn import functional

LOGITS_AT_ONCE = 1 << 20
"""Logits in one block: 4 MiB. A batch of up to 1024 has all of its in one, and no need to compute them twice."""


def contrastive_loss(
    video_bd: Tensor, text_bd: Tensor, scale: Tensor, *, at_once: int = LOGITS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """Symmetric cross entropy over the global batch (Radford et al. 2021, fig. 3).

    video_bd, text_bd: (b, d) unit-norm rows of this rank, pairs at the same row, b the same on all ranks; scale: (1,).
    Returns the loss and the top-1 accuracy in [0, 1] (mean of both directions), () fp32, the same on every rank.
    """
    if (len(video_bd) * _world_size()) ** 2 > at_once:
        loss, hits = _Softmax.apply(video_bd.float(), text_bd.float(), scale.float(), at_once)
        return loss, hits
    video, text = _gathered_with_gradient(video_bd.float()), _gathered_with_gradient(text_bd.float())
    logits = scale.float() * video @ text.T
    labels = torch.arange(len(logits), device=logits.device)
    loss = (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
    with torch.no_grad():
        hits = (logits.argmax(1) == labels).float() + (logits.argmax(0) == labels).float()
    return loss, hits.mean() / 2


def sigmoid_loss(
    video_bd: Tensor, text_bd: Tensor, scale: Tensor, bias: Tensor, *, at_once: int = LOGITS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """Each pair of the global batch told apart by itself, -1/N sum log sigmoid(z (scale x + bias)) with z = 1 or -1.

    (Zhai et al. 2023, eq. 2 and algorithm 1.) Arguments and results as of `contrastive_loss`; bias: (1,).
    """
    loss, hits = _Sigmoid.apply(video_bd.float(), text_bd.float(), scale.float(), bias.float(), at_once)
    return loss, hits


class _Softmax(torch.autograd.Function):
    """Cross entropy by online log-sum-exp (Milakov & Gimelshein 2018); backward needs no exchange between ranks."""

    @staticmethod
    def forward(ctx: Any, video: Tensor, text: Tensor, scale: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
        every = _gathered(torch.stack([video, text]))
        lse_v, mean_v, hits_v = _log_sum_exp(video, every[1], scale, at_once)
        lse_t, mean_t, hits_t = _log_sum_exp(text, every[0], scale, at_once)
        own = scale * (video * text).sum(1)
        local = [((lse_v + lse_t) / 2 - own).sum(), (hits_v + hits_t) / 2, ((mean_v + mean_t) / 2 - own).sum()]
        loss, accuracy, of_log_scale = _summed(torch.stack(local)) / every.shape[1]
        ctx.at_once = at_once
        ctx.save_for_backward(
            video, text, scale, every, _gathered(torch.stack([lse_v, lse_t])), of_log_scale / scale
        )  # fmt: skip
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        video, text, scale, every, lse, of_scale = ctx.saved_tensors
        count, mine = every.shape[1], _own_rows(len(video))
        gradients = []
        for rows, others, own, of_rows, of_others in (
            (video, every[1], text, lse[0, mine], lse[1]),
            (text, every[0], video, lse[1, mine], lse[0]),
        ):
            gradient = -2 * own
            for columns in _blocks(len(rows), count, ctx.at_once):
                logits = scale * (rows @ others[columns].T)
                shares = (logits - of_rows[:, None]).exp_()  # what the others have in the sum of each own row
                shares += logits.sub_(of_others[columns]).exp_()  # what each own row has in the sums of the others
                gradient += shares @ others[columns]
            gradients.append(of_loss * _world_size() / (2 * count) * scale * gradient)
        return *gradients, of_loss * of_scale, None


class _Sigmoid(torch.autograd.Function):
    """Pairwise sigmoid loss; backward needs no exchange between ranks."""

    @staticmethod
    def forward(
        ctx: Any, video: Tensor, text: Tensor, scale: Tensor, bias: Tensor, at_once: int
    ) -> tuple[Tensor, Tensor]:
        every = _gathered(torch.stack([video, text]))
        # log sigmoid(l) = l + log sigmoid(-l): as if all pairs were of others, and then what a pair's own adds.
        own = scale * (video * text).sum(1) + bias
        loss, of_log_scale, of_bias = -own.sum(), -(own - bias).sum(), bias.new_tensor(-float(len(own)))
        for columns in _blocks(len(video), every.shape[1], at_once):
            scaled = scale * (video @ every[1, columns].T)
            shares = (scaled + bias).sigmoid()
            loss, of_bias = loss + functional.softplus(scaled + bias).sum(), of_bias + shares.sum()
            of_log_scale = of_log_scale + shares.mul_(scaled).sum()
        _, _, hits_v = _log_sum_exp(video, every[1], scale, at_once)
        _, _, hits_t = _log_sum_exp(text, every[0], scale, at_once)
        local = torch.stack([loss, (hits_v + hits_t) / 2, of_log_scale, of_bias])
        loss, accuracy, of_log_scale, of_bias = _summed(local) / every.shape[1]
        ctx.at_once = at_once
        ctx.save_for_backward(video, text, scale, bias, every, of_log_scale / scale, of_bias.reshape(bias.shape))
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        video, text, scale, bias, every, of_scale, of_bias = ctx.saved_tensors
        count = every.shape[1]
        gradients = []
        for rows, others, own in ((video, every[1], text), (text, every[0], video)):
            gradient = -own
            for columns in _blocks(len(rows), count, ctx.at_once):
                shares = (scale * (rows @ others[columns].T) + bias).sigmoid_()
                gradient += shares @ others[columns]
            gradients.append(of_loss * _world_size() / count * scale * gradient)
        return *gradients, of_loss * of_scale, of_loss * of_bias, None


def _log_sum_exp(rows_bd: Tensor, others_nd: Tensor, scale: Tensor, at_once: int) -> tuple[Tensor, Tensor, Tensor]:
    """Go through the logits of each own row and all gathered ones of the other kind.

    Returns each row's log-sum-exp and its mean logit under the softmax, (b,), and the number of rows whose own
    counterpart is the nearest.
    """
    greatest = torch.full_like(rows_bd[:, 0], -torch.inf)
    total, weighted = torch.zeros_like(greatest), torch.zeros_like(greatest)
    nearest = torch.zeros_like(greatest, dtype=torch.int64)
    for columns in _blocks(len(rows_bd), len(others_nd), at_once):
        logits = scale * (rows_bd @ others_nd[columns].T)
        value, index = logits.max(1)
        nearest = torch.where(value > greatest, index + columns.start, nearest)
        higher = torch.maximum(greatest, value)
        rescale, shares = (greatest - higher).exp(), (logits - higher[:, None]).exp_()
        total = total * rescale + shares.sum(1)
        weighted = weighted * rescale + shares.mul_(logits).sum(1)
        greatest = higher
    mine = _own_rows(len(rows_bd))
    own = torch.arange(mine.start, mine.stop, device=nearest.device)
    return greatest + total.log(), weighted / total, (nearest == own).sum().float()


def _blocks(rows: int, columns: int, at_once: int) -> Iterator[slice]:
    """Cut the columns of (rows, columns) so that no block has more than `at_once` elements, one column at least."""
    width = max(1, at_once // rows)
    for first in range(0, columns, width):
        yield slice(first, min(first + width, columns))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _own_rows(count: int) -> slice:
    """Return which of the gathered rows are this rank's."""
    first = count * dist.get_rank() if _world_size() > 1 else 0
    return slice(first, first + count)


def _gathered_with_gradient(local_bd: Tensor) -> Tensor:
    """Concatenate the ranks' rows; gradients flow back to the rank they belong to."""
    if _world_size() > 1:
        return torch.cat(dist_nn.all_gather(local_bd.contiguous()))
    return local_bd


def _gathered(local_kb: Tensor) -> Tensor:
    """Concatenate the ranks' (k, b, ...) along the second axis; without gradient."""
    if _world_size() == 1:
        return local_kb
    parts = [torch.empty_like(local_kb) for _ in range(_world_size())]
    dist.all_gather(parts, local_kb.contiguous())
    return torch.cat(parts, dim=1)


def _summed(values: Tensor) -> Tensor:
    """Sum over all ranks, in place."""
    if _world_size() > 1:
        dist.all_reduce(values)
    return values

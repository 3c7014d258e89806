"""A batch shared by processes gives what it gives in one: its batch statistics and its Dice are of the whole batch.

DistributedDataParallel takes the mean of the processes' gradients. That is the gradient of the whole batch for a loss
that is a mean over samples, which it is not after batch normalisation, nor with PyMIC's Dice of sums over the batch.
"""

from __future__ import annotations

import inspect
import warnings

import pymic.loss.seg.dice
import pymic.net_run.agent_seg
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel

EPSILON = 1e-5  # PyMIC's, in its Dice


def distribute(net: nn.Module, device: torch.device) -> DistributedDataParallel:
    """`net`, which is on `device`, for the forward passes of a training in which each process has a part of the batch.

    Names and values in the state dict of `net` stay as they are. Every process starts with the weights of rank zero.
    """
    pymic.loss.seg.dice.get_classwise_dice = global_dice
    pymic.net_run.agent_seg.get_classwise_dice = global_dice  # what is logged while training
    if any(isinstance(module, _DropoutNd) and module.p > 0 for module in net.modules()):
        torch.manual_seed(torch.initial_seed() + dist.get_rank())  # or all would drop the same
    # said of the weights of point-wise convolutions, whose copy costs nothing
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(
        net,
        device_ids=[device] if device.type == "cuda" else None,
        **_no_exchange_of_buffers(),  # batch statistics are those of all processes already
        gradient_as_bucket_view=True,
        static_graph=True,  # also for networks with parameters that no output depends on
    )


def _no_exchange_of_buffers() -> dict[str, bool]:
    """In the words of this version of torch."""
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if new else "broadcast_buffers": False}


def synchronise_batch_norm(net: nn.Module, device_type: str) -> nn.Module:
    """`net` with batch normalisation over the batches of all processes: torch's own, which is for CUDA, or ours."""
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, CpuSyncBatchNorm.like(child))
    return net


class CpuSyncBatchNorm(_BatchNorm):
    """Batch normalisation of any rank, with the statistics of all processes' batches, which are of one size."""

    @classmethod
    def like(cls, norm: _BatchNorm) -> CpuSyncBatchNorm:
        """One that has the settings, parameters and running statistics of `norm`."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for name, parameter in norm.named_parameters():
            setattr(new, name, parameter)
        for name, buffer in norm.named_buffers():
            setattr(new, name, buffer)
        return new.train(norm.training)

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        axes, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        precise = x if x.dtype == torch.float64 else x.float()
        count = dist.get_world_size() * x[:, 0].numel()
        # not as E[x^2] - E[x]^2, which loses digits where the mean is large
        mean = all_reduce_sum(precise.sum(axes)) / count
        centred = precise - mean.view(shape)
        variance = all_reduce_sum(centred.square().sum(axes)) / count
        self._keep(mean.detach(), variance.detach() * count / max(count - 1, 1))
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            return torch.addcmul(self.bias.view(shape), centred, (scale * self.weight).view(shape)).to(x.dtype)
        return (centred * scale.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)  # in place: assigning it is what torch.compile breaks at
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def global_dice(predict: Tensor, soft_y: Tensor, pix_w: Tensor | None = None) -> Tensor:
    """PyMIC's Dice of each class, [C], of [voxels, C]: while training over all processes' voxels, otherwise these.

    Args:
        predict: probabilities.
        soft_y: the truth, as probabilities.
        pix_w: weights of the voxels, [voxels, 1], or None.
    """
    weighted = predict if pix_w is None else predict * pix_w
    truth = soft_y if pix_w is None else soft_y * pix_w
    sums = torch.stack([truth.sum(0), weighted.sum(0), (weighted * soft_y).sum(0)])
    if torch.is_grad_enabled() and dist.is_initialized():
        sums = all_reduce_sum(sums)
    truth_volume, volume, overlap = sums
    return (2 * overlap + EPSILON) / (truth_volume + volume + EPSILON)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, with its gradient."""
    return _AllReduceSum.apply(x)


class _AllReduceSum(torch.autograd.Function):
    """Its gradient is the sum of the gradients, as every process's result depends on every process's input."""

    @staticmethod
    def forward(_ctx: FunctionCtx, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return _AllReduceSum.forward(_ctx, gradient)

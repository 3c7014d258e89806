"""For `torchrun`: batch normalisation over all processes, compiled and recomputed, against itself as it is."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pymic_vf.host.global_batch import synchronise_batch_norm


def recomputed(net: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(net, x, use_reentrant=False)


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    net = synchronise_batch_norm(nn.Sequential(nn.BatchNorm3d(2), nn.PReLU(), nn.Conv3d(2, 2, 1)), "cpu").double()
    for parameter in net.parameters():
        dist.broadcast(parameter.data, 0)
    twin = copy.deepcopy(net)
    compiled = torch.compile(recomputed, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        x = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64)
        for run, module in ((compiled, net), (lambda module, x: module(x), twin)):
            run(module, x).square().mean().backward()
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-12)
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)
    print("equal", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

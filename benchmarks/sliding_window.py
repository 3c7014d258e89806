"""Sliding-window inference: PyMIC's Inferer, MONAI's function and ours, the same network on the same volume.

    python benchmarks/sliding_window.py [--device cuda] [--repeats 3]
    python benchmarks/sliding_window.py --threads 1 --clock cpu        # on a machine that others use as well

The network is a reduced PCT-Net, briefly trained so that its class map means something: four outputs in validation,
one in ``pymic_test``. The baseline is its plain form (plain_pct_net.py) in PyMIC's inferer. The sides of a row run in
turn; the table has the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from machine import machine
from monai.inferers import sliding_window_inference
from plain_pct_net import PlainPCTNet
from pymic.net_run.infer_func import Inferer
from torch.nn import functional as F

from pymic_vf.host.inference import SlidingWindowInferer
from pymic_vf.host.settings.inference_settings import DEFAULT_BATCH, InferenceSettings
from pymic_vf.networks.pct_net import PCTNet

VOLUME, WINDOW, STRIDE = (88, 140, 183), (32, 64, 64), (16, 32, 32)
CLASSES = 3
NETWORK = {"in_chns": 1, "class_num": CLASSES, "input_size": list(WINDOW), "feature_chns": [8, 16, 32, 64, 128],
           "dropout": [0, 0, 0.2, 0.2, 0.2], "resolution_mode": 1, "multiscale_pred": True}  # fmt: skip
SIDES = ("PyMIC, plain network", "PyMIC", "MONAI", "here")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Outputs = torch.Tensor | list[torch.Tensor]
Infer = Callable[[Callable, torch.Tensor], Outputs]


def pymic(batch: int) -> Infer:
    return Inferer({"sliding_window_enable": True, "sliding_window_size": list(WINDOW), "class_num": CLASSES,
                    "sliding_window_stride": list(STRIDE), "sliding_window_batch": batch}).run  # fmt: skip


def monai(batch: int) -> Infer:
    overlap = [1 - s / w for s, w in zip(STRIDE, WINDOW, strict=True)]
    return lambda model, image: sliding_window_inference(image, WINDOW, batch, model, overlap, mode="gaussian")


def here(batch: int) -> Infer:
    return SlidingWindowInferer(InferenceSettings(WINDOW, STRIDE, batch)).run


def phantom(size: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A volume of noisy blobs [1, 1, D, H, W] and its label [1, D, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, *(max(2, n // 12) for n in size), generator=generator)
    blobs = F.interpolate(coarse, size, mode="trilinear")
    image = blobs + 0.3 * torch.randn(blobs.shape, generator=generator)
    return image, ((blobs > 0.4).long() + (blobs < -0.4).long() * 2)[:, 0]


def trained_network(steps: int, device: str) -> PCTNet:
    torch.manual_seed(0)
    net = PCTNet(NETWORK).to(device).train()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(steps):
        crops = zip(*(phantom(WINDOW, 2 * step + i) for i in (1, 2)), strict=True)
        image, label = (torch.cat(batch).to(device) for batch in crops)
        loss = F.cross_entropy(net(image)[0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"network trained for {steps} steps, last loss {loss.item():.3f}")
    return net.eval()


def timed(infer: Infer, model: Callable, image: torch.Tensor, clock: Callable[[], float]) -> tuple[float, int, Outputs]:
    """Seconds, windows and the prediction."""
    windows = 0

    def counting(x: torch.Tensor) -> Outputs:
        nonlocal windows
        windows += len(x)
        return model(x)

    start = clock()
    outputs = infer(counting, image)
    if image.is_cuda:
        torch.cuda.synchronize()
    return clock() - start, windows, outputs


def compare(
    title: str, sides: list[tuple[Infer, Callable]], image: torch.Tensor, repeats: int, clock: Callable[[], float]
) -> str:
    """Print a row of the table: the medians, how many times as fast as the first side, and the number of windows.

    Returns:
        How many voxels get another class than from the second side, PyMIC's inferer.
    """
    with torch.no_grad():
        runs = [[timed(*side, image, clock) for side in sides] for _ in range(repeats)]
    seconds = [statistics.median(run[0] for run in side) for side in zip(*runs, strict=True)]
    cells = [f"{s:.1f} s ({seconds[0] / s:.1f}x, {run[1]})" for s, run in zip(seconds, runs[0], strict=True)]
    print(f"| {title} | {' | '.join(cells)} |", flush=True)
    finest = [run[2] if isinstance(run[2], torch.Tensor) else run[2][0] for run in runs[0]]
    _, stock, *others = (output.argmax(1) for output in finest)
    changed = [f"{100 * (other != stock).float().mean().item():.4f} %" for other in others]
    return f"{title}: another class than from PyMIC: " + ", ".join(map(" ".join, zip(SIDES[2:], changed, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train-steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of the process, not of the wall")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{machine(args.device)}; volume {VOLUME}, windows {WINDOW}, strides {STRIDE}, "
          f"float32, {args.repeats} repeats, {args.clock} clock")  # fmt: skip
    image = phantom(VOLUME, 0)[0].to(args.device)
    net = trained_network(args.train_steps, args.device)
    plain = PlainPCTNet(NETWORK).to(args.device).eval()
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        for each in (net, plain):
            each(image[..., : WINDOW[0], : WINDOW[1], : WINDOW[2]])  # what only the first call does

    notes = []
    print(f"| seconds (speed, windows) | {' | '.join(SIDES)} |\n|{'---|' * (1 + len(SIDES))}")
    for title, stage, stock_batch, batch in (
        ("validation in `pymic_train`", "train", 1, DEFAULT_BATCH),
        ("`pymic_test`, `sliding_window_batch` not given", "test", 1, DEFAULT_BATCH),
        ("`pymic_test`, `sliding_window_batch = 2`", "test", 2, 2),
    ):
        for each in (net, plain):
            each.set_stage(stage)
        stock = pymic(stock_batch)
        sides = [(stock, plain), (stock, net), (monai(batch), net), (here(batch), net)]
        notes.append(compare(title, sides, image, args.repeats, CLOCKS[args.clock]))
    print("\n".join(notes))


if __name__ == "__main__":
    main()

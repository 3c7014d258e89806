"""Sliding-window inference: PyMIC's Inferer, MONAI's and ours, the same network on the same volume.

    python benchmarks/sliding_window.py [--device cuda] [--repeats 3]
    python benchmarks/sliding_window.py --threads 1 --clock cpu        # on a machine that others use as well

The network is a reduced PCT-Net, briefly trained so that its class map means something: four outputs in validation,
one in ``pymic_test``. The baseline is its plain form (plain_pct_net.py) in PyMIC's inferer; the same network in
PyMIC's inferer, in MONAI's and in ours tells what the inferer alone is worth. Every row's sides run in turn, and the
medians are printed, with the time inside the network beside the whole.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import machine
from monai.inferers import sliding_window_inference
from plain_pct_net import PlainPCTNet
from pymic.net_run.infer_func import Inferer
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from pymic_vf.host.inference import SlidingWindowInferer
from pymic_vf.host.inference_settings import DEFAULT_BATCH, InferenceSettings
from pymic_vf.networks.pct_net import PCTNet

VOLUME, WINDOW, STRIDE = (88, 140, 183), (32, 64, 64), (16, 32, 32)
CLASSES = 3
NETWORK = {"in_chns": 1, "class_num": CLASSES, "input_size": list(WINDOW), "feature_chns": [8, 16, 32, 64, 128],
           "dropout": [0, 0, 0.2, 0.2, 0.2], "resolution_mode": 1, "multiscale_pred": True}  # fmt: skip
Infer = Callable[[Callable, torch.Tensor], torch.Tensor | list[torch.Tensor]]
Side = tuple[Infer, Callable]


def stock(batch: int) -> Infer:
    return Inferer({"sliding_window_enable": True, "sliding_window_size": list(WINDOW), "class_num": CLASSES,
                    "sliding_window_stride": list(STRIDE), "sliding_window_batch": batch}).run  # fmt: skip


def fast(batch: int = DEFAULT_BATCH, tta_mode: int = 0) -> Infer:
    return SlidingWindowInferer(InferenceSettings(WINDOW, STRIDE, batch, tta_mode)).run


def monai(batch: int = DEFAULT_BATCH) -> Infer:
    delta = np.zeros(WINDOW)
    delta[tuple(w // 2 for w in WINDOW)] = 1
    weights = torch.from_numpy(gaussian_filter(delta, [w / 8 for w in WINDOW], mode="constant")).float()

    def infer(model: Callable, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        overlap = [1 - s / w for s, w in zip(STRIDE, WINDOW, strict=True)]
        return sliding_window_inference(
            image, WINDOW, batch, model, overlap, mode="gaussian", roi_weight_map=weights[None, None].to(image.device)
        )

    return infer


class Timed:
    """A network that counts its windows and its own time."""

    def __init__(self, model: Callable) -> None:
        self.model, self.windows, self.seconds = model, 0, 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        start = now(x.device)
        output = self.model(x)
        self.seconds += now(x.device) - start
        self.windows += len(x)
        return output


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def phantom(size: tuple[int, ...], seed: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A volume of noisy blobs [1, 1, D, H, W] and its label [1, D, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, *(max(2, n // 12) for n in size), generator=generator)
    blobs = F.interpolate(coarse, size, mode="trilinear")
    image = blobs + 0.3 * torch.randn(blobs.shape, generator=generator)
    return image.to(device), ((blobs > 0.4).long() + (blobs < -0.4).long() * 2)[:, 0].to(device)


def trained_network(steps: int, device: str) -> PCTNet:
    torch.manual_seed(0)
    net = PCTNet(NETWORK).to(device).train()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(steps):
        crops = [phantom(WINDOW, 2 * step + i, device) for i in (1, 2)]
        image, label = (torch.cat(parts) for parts in zip(*crops, strict=True))
        loss = F.cross_entropy(net(image)[0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"network trained for {steps} steps, last loss {loss.item():.3f}")
    return net.eval()


def plain_form(net: PCTNet) -> PlainPCTNet:
    plain = PlainPCTNet(NETWORK).to(next(net.parameters()).device).eval()
    plain.load_state_dict(net.state_dict())
    return plain


def idle_network(outputs: int) -> Callable:
    """What does next to nothing, so that what is left is the inferer's own."""

    def model(x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        y = x.expand(-1, CLASSES, -1, -1, -1).contiguous()
        coarse = [y[:, :, ::d, ::s, ::s].contiguous() for d, s in ((1, 2), (2, 4), (4, 8))]
        return y if outputs == 1 else [y, *coarse][:outputs]

    return model


def compare(title: str, sides: dict[str, Side], image: torch.Tensor, repeats: int) -> dict:
    """Run the sides in turn, print a row for each with its speed by the first's, and return what they gave."""
    timings: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    windows, outputs = {}, {}
    with torch.no_grad():
        for _ in range(repeats):
            for name, (infer, model) in sides.items():
                timed = Timed(model)
                start = now(image.device)
                outputs[name] = infer(timed, image)
                timings[name].append((now(image.device) - start, timed.seconds))
                windows[name] = timed.windows
    print(f"\n{title}")
    first = None
    for name, runs in timings.items():
        total, inside = statistics.median(t for t, _ in runs), statistics.median(n for _, n in runs)
        first = first or total
        spread = f"{min(t for t, _ in runs):.2f} to {max(t for t, _ in runs):.2f}"
        print(f"  {name:28} {total:7.2f} s ({spread})  {windows[name]:4} windows  in the network {inside:7.2f} s "
              f"({100 * inside / total:.0f} %)  {first / total:.2f}x")  # fmt: skip
    return outputs


def differences(theirs: list[torch.Tensor], monais: list[torch.Tensor], ours: list[torch.Tensor]) -> None:
    """How the predictions differ."""
    changed = (ours[0].argmax(1) != theirs[0].argmax(1)).float().mean().item()
    shares = [f"{100 * (theirs[0].argmax(1) == c).float().mean().item():.0f} %" for c in range(CLASSES)]
    print(f"\nclass map (classes: {', '.join(shares)}): {100 * changed:.4f} % of the voxels differ from PyMIC's")
    single = tuple(slice(n - w) for n, w in zip(VOLUME, WINDOW, strict=True))  # where no windows of PyMIC's coincide
    a, b = ours[0][(..., *single)], theirs[0][(..., *single)]
    print("  output 0 before the last window of each axis, largest difference between ours and PyMIC's, by the largest "
          f"value: {((a - b).abs().max() / b.abs().max()).item():.1e}")  # fmt: skip
    for i, (a, b) in enumerate(zip(ours, monais, strict=True)):
        print(f"  output {i}, largest difference between ours and MONAI's, by the largest value: "
              f"{((a - b).abs().max() / a.abs().max()).item():.1e}")  # fmt: skip


def peak_bytes(infer: Infer, model: Callable, image: torch.Tensor) -> float:
    """Most memory held at once beyond the image."""
    if image.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        infer(model, image)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        output = infer(model, image)
    del output
    held = peak = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def memory(image: torch.Tensor) -> None:
    """Peaks without a network, in units of classes x volume in float32."""
    unit = 4 * CLASSES * image.numel()
    print(f"\nmemory held at once with a network that holds next to none, in volumes of {CLASSES} classes "
          f"({unit / 2**20:.0f} MiB)")  # fmt: skip
    flips = Inferer({"sliding_window_enable": True, "sliding_window_size": list(WINDOW), "class_num": CLASSES,
                     "sliding_window_stride": list(STRIDE), "tta_mode": 1}).run  # fmt: skip
    sides = {"PyMIC": stock(1), "MONAI": monai(1), "ours": fast(1), "PyMIC, tta_mode 1": flips,
             "ours, tta_mode 1": fast(1, tta_mode=1)}  # fmt: skip
    for name, infer in sides.items():
        peaks = [peak_bytes(infer, idle_network(outputs), image) / unit for outputs in (1, 4)]
        print(f"  {name:28} one output {peaks[0]:.2f}, four outputs {peaks[1]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train-steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=2, help="sliding_window_batch of pymic_test")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of the process, not of the wall")
    args = parser.parse_args()
    global clock
    clock = CLOCKS[args.clock]
    torch.set_num_threads(args.threads)
    print(f"{machine(args.device)}; volume {VOLUME}, windows {WINDOW}, strides {STRIDE}, "
          f"float32, {args.repeats} repeats, {args.clock} clock")  # fmt: skip
    image, _ = phantom(VOLUME, 0, args.device)
    net = trained_network(args.train_steps, args.device)
    plain, idle, first = plain_form(net), idle_network(4), DEFAULT_BATCH
    with torch.no_grad():
        for each in (net, plain):
            each(image[..., : WINDOW[0], : WINDOW[1], : WINDOW[2]])

    compare("the inferer alone, four outputs (a network that does nothing)",
            {"PyMIC": (stock(1), idle), f"MONAI, batch {first}": (monai(), idle),
             f"ours, batch {first}": (fast(), idle)},
            image, args.repeats)  # fmt: skip
    memory(image)
    outputs = compare("validation in pymic_train, four outputs (goal: 4x)",
            {"PyMIC, one at a time, plain": (stock(1), plain), "PyMIC, one at a time": (stock(1), net),
             f"MONAI, batch {first}": (monai(), net), f"ours, batch {first}": (fast(), net)},
            image, args.repeats)  # fmt: skip
    differences(*list(outputs.values())[1:])
    for each in (net, plain):
        each.set_stage("test")
    b = args.batch
    compare(f"pymic_test, sliding_window_batch = {b} (goal: 2x)",
            {f"PyMIC, batch {b}, plain": (stock(b), plain), f"PyMIC, batch {b}": (stock(b), net),
             f"MONAI, batch {b}": (monai(b), net), f"ours, batch {b}": (fast(b), net)},
            image, args.repeats)  # fmt: skip
    compare("pymic_test, sliding_window_batch not given (goal: 2x)",
            {"PyMIC, batch 1, plain": (stock(1), plain), "PyMIC, batch 1": (stock(1), net),
             f"ours, batch {first}": (fast(), net)},
            image, args.repeats)  # fmt: skip


if __name__ == "__main__":
    main()

"""The Volume Fusion agent: PyMIC's segmentation training, fed with fused samples instead of labelled images.

Only hooks are overridden; the loop, the loss, the checkpoints and the log are PyMIC's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pymic.net_run.agent_seg import SegmentationAgent
from pymic.net_run.infer_func import Inferer
from tqdm import tqdm

from pymic_vf.data.cache_folder import GIB, CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader as ChunkedVolumeReader
from pymic_vf.data.first_look import check_scans
from pymic_vf.data.loader import FusionLoader, SampleNumbers
from pymic_vf.data.random_state import TRAIN, VALID
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.set_aside import FILE, SetAside
from pymic_vf.data.sub_volumes import FusedSamples, SampleTransforms
from pymic_vf.data.volume_reader import VolumeReader, WholeVolumeReader
from pymic_vf.data.volume_transform import VolumeTransform
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.checks import PretrainingPlan, check_pretraining, fuse_transform, make_transform
from pymic_vf.host.config import ONE_HOT, SampleSettings
from pymic_vf.host.global_batch import spread, synchronise_batch_norm
from pymic_vf.host.processes import Processes

log = logging.getLogger(__name__)
# A volume with a side of less than this share of the sub-volume's would be mostly mirror images of itself.
SMALLEST_SHARE = 4


class VolumeFusionAgent(SegmentationAgent):
    """Pretrains a segmentation network by Volume Fusion: ``[self_supervised_learning] method_name = VF``.

    Args:
        config: PyMIC's parsed config; the ``VF_`` keys are in [dataset].
        stage: ``train``; a pretrained network is tested after fine-tuning, by PyMIC's own agent.

    Raises:
        ConfigError: every mistake of the config together, before anything is built.
    """

    def __init__(self, config: dict[str, dict[str, Any]], stage: str = "train") -> None:
        self.processes = Processes.meet()
        with self.processes.leader_first():
            self.plan: PretrainingPlan = check_pretraining(config, self.processes.count)
        if self.processes.count > 1:
            config["training"]["gpus"] = [self.processes.device_number(config["training"]["gpus"])]
        config.setdefault("testing", {})  # PyMIC's validation looks into it
        super().__init__(config, stage)

    def get_stage_dataset_from_config(self, stage: str) -> FusedSamples:
        """The fused samples of ``train`` or ``valid``."""
        if stage == "train":
            return self._samples(self.plan.train, self.plan.train_scans, TRAIN, len(self.plan.train_scans))
        return self._samples(self.plan.valid, self.plan.valid_scans, VALID, self.plan.valid_samples)

    def _samples(self, settings: SampleSettings, scans: ScanList, stream: int, count: int) -> FusedSamples:
        dataset = self.config["dataset"]

        def made(names: tuple[str, ...]) -> list:
            return [make_transform(name, dataset) for name in names]

        smallest = [-(-side // SMALLEST_SHARE) for side in settings.crop_size]
        transform = VolumeTransform(made(settings.volume_transform), self.config["network"]["in_chns"], smallest)
        # the loader makes the one-hot label: until then it is one byte a voxel
        after = settings.after[:-1] if settings.after[-1] == ONE_HOT else settings.after
        steps = SampleTransforms(made(settings.before), fuse_transform(dataset), made(after))
        report = Path(self.config["training"]["ckpt_dir"]) / FILE
        set_aside = SetAside(scans, self.plan.reading.max_bad_fraction, report, self.processes.leads)
        reader = self._reader(scans, transform)
        return FusedSamples(reader, settings.crop_size, steps, self.random_seed, stream, count, set_aside)

    def _reader(self, scans: ScanList, transform: VolumeTransform) -> VolumeReader:
        reading = self.plan.reading
        if reading.cache_dir is None:
            return WholeVolumeReader(scans, transform)
        cap = None if reading.cache_max_gib is None else int(reading.cache_max_gib * GIB)
        return ChunkedVolumeReader(scans, transform, CacheFolder(reading.cache_dir, cap))

    def create_dataset(self) -> None:
        """Check the scans, then make the loaders: the endless training stream and the fixed validation samples."""
        dataset = self.config["dataset"]
        sets = {"train": self.get_stage_dataset_from_config("train")}
        if self.plan.valid_scans is not None:
            sets["valid"] = self.get_stage_dataset_from_config("valid")
        known = self.processes.from_leader(lambda: self._look_at_scans(sets))
        for samples, reasons in zip(sets.values(), known, strict=True):
            samples.set_aside.tell(reasons)
        self.train_set, self.valid_set = sets["train"], sets.get("valid")
        share = dataset["train_batch_size"] // self.processes.count
        part = (self.processes.rank, self.processes.count, share)
        self.train_loader = self._loader(self.train_set, SampleNumbers(part=part), share)
        if self.valid_set is not None:
            numbers = SampleNumbers(count=self.plan.valid_samples)
            self.valid_loader = self._loader(self.valid_set, numbers, dataset.get("valid_batch_size", 1))

    def _look_at_scans(self, sets: dict[str, FusedSamples]) -> list[dict[int, str]]:
        """Before any work: can the scans be used, and samples be made of them? Returns the bad scans of each set."""
        workers = self.config["dataset"].get("num_worker", 8)
        check_scans([(samples.reader, samples.set_aside) for samples in sets.values()], workers)
        for stage, samples in sets.items():
            _try(samples, f"{stage}_transform")
        valid = sets.get("valid")
        log.info(
            "Volume Fusion of %d scans, %s; sub-volumes %s, K = %d",
            len(self.plan.train_scans),
            f"{valid.count} samples of {len(valid.reader)} others to validate" if valid else "no valid_csv",
            list(self.plan.train.crop_size),
            self.plan.train.fusion.classes,
        )
        return [samples.set_aside.reasons for samples in sets.values()]

    def _loader(self, samples: FusedSamples, numbers: SampleNumbers, batch: int) -> FusionLoader:
        workers = self.config["dataset"].get("num_worker", 8)
        return FusionLoader(samples, numbers, batch, workers, self.config["network"]["class_num"])

    def create_network(self) -> None:
        """As PyMIC; with several processes, batch normalisation is over the batches of all of them."""
        super().create_network()
        if self.processes.count > 1:
            self.net = synchronise_batch_norm(self.net, "cuda" if torch.cuda.is_available() else "cpu")

    def create_optimizer(self, params: Any, checkpoint: dict[str, Any] | None = None) -> None:
        """As PyMIC; a resumed run also goes on with the sample after the last one that the checkpoint saw."""
        self.iteration = 0 if checkpoint is None else checkpoint["iteration"]
        last = self.config["training"]["iter_max"]
        if self.iteration >= last:
            raise UserError(f"ckpt_init_name is at iteration {self.iteration} and iter_max = {last}: nothing to train")
        self.train_loader.numbers.start = self.iteration * self.config["dataset"]["train_batch_size"]
        for loader in (self.train_loader, self.valid_loader):
            if loader is not None:
                loader.device = self.device
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # or pinned memory takes some of device 0, which may be another's
        super().create_optimizer(params, checkpoint)
        self.processes.connect(self.device)
        # the network that training() runs: PyMIC saves, loads and validates the network itself
        self.trained_net = self.net if self.processes.count == 1 else spread(self.net, self.device)

    def training(self) -> dict[str, Any]:
        """One block of ``iter_valid`` iterations, with a progress line where the output is a terminal.

        Returns:
            PyMIC's scalars, and ``block_time``, what the block took in seconds; in the leader, the mean of all
            processes.
        """
        block, last = (self.config["training"][key] for key in ("iter_valid", "iter_max"))
        stream, start = self.trainIter, time.monotonic()
        hidden = None if self.processes.leads else True  # None: no line where the output is no terminal
        net, self.net = self.net, self.trained_net
        with tqdm(
            total=last, initial=self.iteration, desc="pretraining", unit="it", disable=hidden, leave=False
        ) as line:
            self.trainIter = _counted(stream, line)
            try:
                scalars = super().training()
            finally:
                self.net, self.trainIter = net, stream
                self.iteration += block
        scalars["block_time"] = time.monotonic() - start
        for bad in self.processes.gather(self.train_set.set_aside.reasons):
            self.train_set.set_aside.tell(bad)
        return _mean(self.processes.gather(scalars))

    def validation(self) -> dict[str, Any] | None:
        """The mean loss and Dice of the fixed samples, each of which is one window."""
        if self.inferer is None:
            self.inferer = Inferer({"class_num": self.config["network"]["class_num"]})
        return self.processes.from_leader(super().validation)

    def train_valid(self) -> None:
        """As PyMIC."""
        super().train_valid()
        self.processes.disconnect()

    def write_scalars(
        self, train_scalars: dict[str, Any], valid_scalars: dict[str, Any] | None, lr_value: float, glob_it: int
    ) -> None:
        """As PyMIC, the share of the time spent waiting for data, and the Dice of each fusion class."""
        if not self.processes.leads:
            return
        super().write_scalars(train_scalars, valid_scalars, lr_value, glob_it)
        log.info("waited for data %.1f %% of the time", 100 * train_scalars["data_time"] / train_scalars["block_time"])
        if valid_scalars is not None:
            classes = self.plan.valid.fusion.classes
            dice = (f"{k}/{classes}: {value:.4f}" for k, value in enumerate(valid_scalars["class_dice"]))
            log.info("valid dice by fusion coefficient  %s", "  ".join(dice))


def _mean(scalars: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each of PyMIC's scalars over the processes."""
    return {name: sum(each[name] for each in scalars) / len(scalars) for name in scalars[0]}


def _counted(stream: Iterator, line: tqdm) -> Iterator:
    for batch in stream:
        yield batch
        line.update()  # when the next batch is asked for, that is after the iteration


def _try(samples: FusedSamples, key: str) -> None:
    """Make the first sample here: what fails for every sample shall not fail in a worker's traceback."""
    try:
        samples[0]
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            [f"[dataset] the transforms of {key} fail on the first sample ({type(error).__name__}: {error})"]
        ) from error

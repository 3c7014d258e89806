"""The pretraining agents: PyMIC's training of segmentations and reconstructions, fed with a method's samples.

Only hooks are overridden; the loop, the loss, the checkpoints and the log are PyMIC's.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from pymic.net_run.agent_rec import ReconstructionAgent
from pymic.net_run.agent_seg import SegmentationAgent
from pymic.net_run.infer_func import Inferer

from pymic_vf.data.bad_scans import FILE, BadScans
from pymic_vf.data.body_map import LeastBody
from pymic_vf.data.cache_folder import GIB, CacheFolder
from pymic_vf.data.cached_reader import CachedVolumeReader
from pymic_vf.data.loader import SampleLoader, SampleNumbers
from pymic_vf.data.samples import Samples, SampleTransforms
from pymic_vf.data.scan_check import check_before_training
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.seeds import TRAIN, VALID
from pymic_vf.data.volume_reader import VolumeReader, WholeVolumeReader
from pymic_vf.data.volume_transform import VolumeTransform
from pymic_vf.data.workers import killed_workers_explained
from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.answers import answer_of, side_by_side
from pymic_vf.host.global_batch import distribute, synchronise_batch_norm
from pymic_vf.host.processes import Processes
from pymic_vf.host.runs.stop_signals import StopSignals
from pymic_vf.host.runs.training_steps import TrainingRun
from pymic_vf.host.settings.checks import check_pretraining
from pymic_vf.host.settings.dataset_checks import ONE_HOT, TransformNames, make_transform
from pymic_vf.methods import method_class
from pymic_vf.methods.method import SEGMENTATION

log = logging.getLogger(__name__)
# A volume with a side of less than this share of the crop's would be mostly mirror images of itself.
SMALLEST_SHARE = 4


def pretraining_agent(config: dict[str, dict[str, Any]], stage: str = "train") -> Pretraining:
    """The agent of the config's ``method_name``, as PyMIC's table of self-supervised methods asks for it.

    Args:
        config: PyMIC's parsed config.
        stage: ``train``; a pretrained network is tested after fine-tuning, by PyMIC's own agent.

    Raises:
        ConfigError: every mistake of the config together, before anything is built.
    """
    method = method_class(config["self_supervised_learning"]["method_name"])
    kind = SegmentationPretraining if method.task == SEGMENTATION else ReconstructionPretraining
    return kind(config, stage)


class Pretraining(SegmentationAgent):
    """What pretraining adds to PyMIC's agents, whatever the method and its loss."""

    def __init__(self, config: dict[str, dict[str, Any]], stage: str = "train") -> None:
        self.processes = Processes.from_environment()
        with self.processes.rank_zero_first():
            self.plan = check_pretraining(config, self.processes.count)
        if self.processes.count > 1:
            config["training"]["gpus"] = [self.processes.device_number(config["training"]["gpus"])]
        config.setdefault("testing", {})  # PyMIC's validation reads it
        self.stop_signals = StopSignals()
        # not super(): all that ReconstructionAgent adds here is that class_num be 1, where we allow more channels
        SegmentationAgent.__init__(self, config, stage)

    # Samples

    def get_stage_dataset_from_config(self, stage: str) -> Samples:
        """The samples of ``train`` or ``valid``."""
        if stage == "train":
            return self._samples(self.plan.train, self.plan.train_scans, TRAIN, len(self.plan.train_scans))
        return self._samples(self.plan.valid, self.plan.valid_scans, VALID, self.plan.dataset["valid_samples"])

    def _samples(self, names: TransformNames, scans: ScanList, stream: int, count: int) -> Samples:
        # the loader makes the one-hot label: until then it is one byte a voxel
        after = names.after[:-1] if names.after[-1:] == (ONE_HOT,) else names.after
        transforms = SampleTransforms(self._made(names.before), self._made(after))
        file = Path(self.config["training"]["ckpt_dir"]) / FILE
        bad_scans = BadScans(scans, self.plan.dataset["max_bad_fraction"], file, self.processes.is_rank_zero)
        return Samples(
            self._reader(scans), self.plan.crop_size, self.plan.method, transforms,
            self.random_seed, stream, count, bad_scans, self._least_body(),
        )  # fmt: skip

    def _least_body(self) -> LeastBody | None:
        values = self.plan.dataset
        share, threshold = values["crop_min_foreground"], values["crop_foreground_threshold"]
        return None if share is None else LeastBody(share, None if threshold == "otsu" else threshold)

    def _made(self, names: tuple[str, ...]) -> list:
        return [make_transform(name, self.config["dataset"]) for name in names]

    def _reader(self, scans: ScanList) -> VolumeReader:
        values = self.plan.dataset
        smallest = [-(-side // SMALLEST_SHARE) for side in self.plan.crop_size]
        channels = self.config["network"]["in_chns"]
        transform = VolumeTransform(self._made(values["volume_transform"]), channels, smallest)
        if values["cache_dir"] is None:
            return WholeVolumeReader(scans, transform)
        cap = None if values["cache_max_gib"] is None else int(values["cache_max_gib"] * GIB)
        return CachedVolumeReader(scans, transform, CacheFolder(values["cache_dir"], cap))

    def create_dataset(self) -> None:
        """Check the scans, then make the loaders: the endless training stream and the fixed validation samples."""
        sets = {"train": self.get_stage_dataset_from_config("train")}
        if self.plan.valid_scans is not None:
            sets["valid"] = self.get_stage_dataset_from_config("valid")
        known = self.processes.from_rank_zero(lambda: self._check_scans(sets))
        for samples, reasons in zip(sets.values(), known, strict=True):
            samples.bad_scans.report(reasons)
        self.train_set, self.valid_set = sets["train"], sets.get("valid")
        batch = self.plan.dataset["train_batch_size"] // self.processes.count
        share = (self.processes.rank, self.processes.count, batch)
        self.train_loader = self._loader(self.train_set, SampleNumbers(share=share), batch)
        if self.valid_set is not None:
            numbers = SampleNumbers(count=self.valid_set.count)
            self.valid_loader = self._loader(self.valid_set, numbers, self.plan.dataset["valid_batch_size"])

    def _check_scans(self, sets: dict[str, Samples]) -> list[dict[int, str]]:
        """Before any work: can the scans be used, and samples be made of them? Returns the bad scans of each set."""
        check_before_training(list(sets.values()), self.plan.dataset["num_worker"])
        for stage, samples in sets.items():
            try_first_sample(samples, f"{stage}_transform")
        valid = sets.get("valid")
        log.info(
            "%s of %d scans, %s; crops %s; outputs %s",
            self.plan.method.title,
            len(self.plan.train_scans),
            f"{valid.count} samples of {len(valid.reader)} others to validate" if valid else "no valid_csv",
            list(self.plan.crop_size),
            ", ".join(self._class_names),
        )
        return [samples.bad_scans.reasons for samples in sets.values()]

    def _loader(self, samples: Samples, numbers: SampleNumbers, batch: int) -> SampleLoader:
        classes = len(self._class_names) if self.plan.method.task == SEGMENTATION else None
        return SampleLoader(samples, numbers, batch, self.plan.dataset["num_worker"], classes)

    @property
    def _class_names(self) -> list[str]:
        return self.plan.method.class_names(self.config["network"]["in_chns"])

    # Network and optimizer

    def create_network(self) -> None:
        """As PyMIC; with several processes, batch normalisation is over the batches of all of them."""
        super().create_network()
        if self.processes.count > 1:
            self.net = synchronise_batch_norm(self.net, "cuda" if torch.cuda.is_available() else "cpu")

    def create_optimizer(self, params: Any, checkpoint: dict[str, Any] | None = None) -> None:
        """As PyMIC, on the device of this process; a resumed run goes on where it was."""
        for loader in (self.train_loader, self.valid_loader):
            if loader is not None:
                loader.device = self.device
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # or pinned memory takes some of device 0, which may be another's
        super().create_optimizer(params, checkpoint)
        self.processes.connect(self.device)
        # the network that training() runs: PyMIC saves, loads and validates the network itself
        self.trained_net = self.net if self.processes.count == 1 else distribute(self.net, self.device)
        self.training_run.begin(checkpoint)

    # The run

    def run(self) -> None:
        """As PyMIC; SIGTERM and SIGUSR1 end it where nothing is lost."""
        with self.stop_signals.heard():
            super().run()

    def train_valid(self) -> None:
        """PyMIC's loop for segmentations, for both kinds of agent: it reports loaded weights, needs no validation set
        and keeps the checkpoint whose validation returns the largest ``avg_fg_dice``, see :meth:`validation`."""
        method = self.config["self_supervised_learning"]["method_name"]
        self.training_run = TrainingRun(self, self.processes, method, self.stop_signals)
        try:
            with killed_workers_explained():
                self.training_run.train(lambda: SegmentationAgent.train_valid(self))
        finally:
            del self.training_run
        if self.valid_loader is not None:
            log.info("(the best by the validation loss: what is called valid dice there is 1 / (1 + loss))")
        self.processes.disconnect()

    def training(self) -> dict[str, Any]:
        """One block of ``iter_valid`` iterations.

        Returns:
            PyMIC's scalars, and ``block_time``, what the block took in seconds; in rank zero, the mean of all
            processes.
        """
        net, self.net = self.net, self.trained_net
        try:
            scalars = self.training_run.block(super().training)
        finally:
            self.net = net
        for bad in self.processes.gather(self.train_set.bad_scans.reasons):
            self.train_set.bad_scans.report(bad)
        return _mean(self.processes.gather(scalars))

    def validation(self) -> dict[str, Any] | None:
        """The mean loss and, for a segmentation, Dice of the fixed samples, each of which is one window.

        PyMIC calls best what has the largest ``avg_fg_dice``. That of a pretext task is noise for most of a
        pretraining, so it is 1 / (1 + loss) here, and the Dice goes by the name ``dice``.
        """
        if self.valid_loader is None:
            return None
        if self.inferer is None:
            self.inferer = Inferer({"class_num": self.config["network"]["class_num"]})
        scalars = self.training_run.validated(super().validation)
        return {**scalars, "dice": scalars.get("avg_fg_dice"), "avg_fg_dice": 1 / (1 + scalars["loss"])}

    def write_scalars(
        self, train_scalars: dict[str, Any], valid_scalars: dict[str, Any] | None, lr_value: float, glob_it: int
    ) -> None:
        """As PyMIC, and the share of the time spent waiting for data."""
        if not self.processes.is_rank_zero:
            return
        if valid_scalars is not None:
            valid_scalars = {**valid_scalars, "avg_fg_dice": valid_scalars["dice"]}
        self.write_pymic_scalars(train_scalars, valid_scalars, lr_value, glob_it)
        if valid_scalars is not None:
            self._draw_answer(glob_it)
        log.info("waited for data %.1f %% of the time", 100 * train_scalars["data_time"] / train_scalars["block_time"])

    def _draw_answer(self, glob_it: int) -> None:
        """For TensorBoard: a sample of the validation, its target and the network's answer."""
        sample = self.valid_set[0]
        activation = self.config["training"].get("loss_acti_func")
        answer = answer_of(self.net, sample["image"], self.plan.method.task, activation)
        picture = side_by_side(sample["image"][0], sample["label"][0], answer)
        self.summ_writer.add_image("sample_target_answer", picture, glob_it)

    def write_pymic_scalars(
        self, train_scalars: dict[str, Any], valid_scalars: dict[str, Any] | None, lr_value: float, glob_it: int
    ) -> None:
        """The log lines of the agent's kind."""
        super().write_scalars(train_scalars, valid_scalars, lr_value, glob_it)


class SegmentationPretraining(Pretraining):
    """Pretrains by a method whose target is a label."""

    def write_pymic_scalars(
        self, train_scalars: dict[str, Any], valid_scalars: dict[str, Any] | None, lr_value: float, glob_it: int
    ) -> None:
        """PyMIC's, and the Dice of each class by its name."""
        super().write_pymic_scalars(train_scalars, valid_scalars, lr_value, glob_it)
        if valid_scalars is not None:
            dice = (f"{name}: {d:.4f}" for name, d in zip(self._class_names, valid_scalars["class_dice"], strict=True))
            log.info("valid dice by class  %s", "  ".join(dice))


class ReconstructionPretraining(Pretraining, ReconstructionAgent):
    """Pretrains by a method whose target is an image."""

    def __init__(self, config: dict[str, dict[str, Any]], stage: str = "train") -> None:
        super().__init__(config, stage)
        # PyMIC's default is softmax, which makes 1 of every prediction that has one channel
        config["training"].setdefault("loss_acti_func", None)

    def write_pymic_scalars(
        self, train_scalars: dict[str, Any], valid_scalars: dict[str, Any] | None, lr_value: float, glob_it: int
    ) -> None:
        """PyMIC's, which need a validation: without one its loss is not a number."""
        valid_scalars = valid_scalars or {"loss": float("nan")}
        super().write_pymic_scalars(train_scalars, valid_scalars, lr_value, glob_it)


def _mean(scalars: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each of PyMIC's scalars over the processes."""
    return {name: sum(each[name] for each in scalars) / len(scalars) for name in scalars[0]}


def try_first_sample(samples: Samples, key: str) -> None:
    """Make the first sample here: what fails for every sample shall not fail in a worker's traceback."""
    try:
        samples[0]
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            [f"[dataset] the transforms of {key} fail on the first sample ({type(error).__name__}: {error})"]
        ) from error

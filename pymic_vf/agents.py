"""The Volume Fusion agent: PyMIC's segmentation training, fed with fused samples instead of labelled images.

Only hooks are overridden; the loop, the loss, the checkpoints and the log are PyMIC's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from pymic.net_run.agent_seg import SegmentationAgent
from pymic.net_run.infer_func import Inferer
from tqdm import tqdm

from pymic_vf.checks import PretrainingPlan, check_pretraining, check_scans, fuse_transform, make_transform
from pymic_vf.config import SampleSettings
from pymic_vf.data.loader import FusionLoader, SampleNumbers
from pymic_vf.data.random_state import TRAIN, VALID
from pymic_vf.data.scan_list import ScanList
from pymic_vf.data.sub_volumes import FusedSamples, SampleTransforms
from pymic_vf.data.volume_reader import VolumeTransform, WholeVolumeReader
from pymic_vf.errors import ConfigError, UserError

log = logging.getLogger(__name__)


class VolumeFusionAgent(SegmentationAgent):
    """Pretrains a segmentation network by Volume Fusion: ``[self_supervised_learning] method_name = VF``.

    Args:
        config: PyMIC's parsed config; the ``VF_`` keys are in [dataset].
        stage: ``train``; a pretrained network is tested after fine-tuning, by PyMIC's own agent.

    Raises:
        ConfigError: every mistake of the config together, before anything is built.
    """

    def __init__(self, config: dict[str, dict[str, Any]], stage: str = "train") -> None:
        self.plan: PretrainingPlan = check_pretraining(config)
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

        transform = VolumeTransform(made(settings.volume_transform), self.config["network"]["in_chns"])
        steps = SampleTransforms(made(settings.before), fuse_transform(dataset), made(settings.after))
        reader = WholeVolumeReader(scans, transform)
        return FusedSamples(reader, settings.crop_size, steps, self.random_seed, stream, count)

    def create_dataset(self) -> None:
        """Check the scans, then make the loaders: the endless training stream and the fixed validation samples."""
        dataset = self.config["dataset"]
        workers = dataset.get("num_worker", 8)
        lists = [scans for scans in (self.plan.train_scans, self.plan.valid_scans) if scans is not None]
        check_scans(lists, self.config["network"]["in_chns"], workers)
        self.train_set = self.get_stage_dataset_from_config("train")
        _try(self.train_set, "train_transform")
        batch = dataset["train_batch_size"]
        self.train_loader = FusionLoader(self.train_set, SampleNumbers(), batch, workers)
        if self.plan.valid_scans is not None:
            self.valid_set = self.get_stage_dataset_from_config("valid")
            _try(self.valid_set, "valid_transform")
            numbers = SampleNumbers(count=self.plan.valid_samples)
            self.valid_loader = FusionLoader(self.valid_set, numbers, dataset.get("valid_batch_size", 1), workers)
        log.info(
            "Volume Fusion of %d scans, %s; sub-volumes %s, K = %d",
            len(self.plan.train_scans),
            f"{self.plan.valid_samples} samples of {len(lists[1])} others to validate" if lists[1:] else "no valid_csv",
            list(self.plan.train.crop_size),
            self.plan.train.fusion.classes,
        )

    def create_optimizer(self, params: Any, checkpoint: dict[str, Any] | None = None) -> None:
        """As PyMIC; a resumed run also goes on with the sample after the last one that the checkpoint saw."""
        self.iteration = 0 if checkpoint is None else checkpoint["iteration"]
        last = self.config["training"]["iter_max"]
        if self.iteration >= last:
            raise UserError(f"ckpt_init_name is at iteration {self.iteration} and iter_max = {last}: nothing to train")
        self.train_loader.numbers.start = self.iteration * self.config["dataset"]["train_batch_size"]
        super().create_optimizer(params, checkpoint)

    def training(self) -> dict[str, Any]:
        """One block of ``iter_valid`` iterations, with a progress line where the output is a terminal."""
        block, last = (self.config["training"][key] for key in ("iter_valid", "iter_max"))
        stream = self.trainIter
        # disable=None: no line where the output is no terminal
        with tqdm(total=last, initial=self.iteration, desc="pretraining", unit="it", disable=None, leave=False) as line:
            self.trainIter = _counted(stream, line)
            try:
                return super().training()
            finally:
                self.trainIter = stream
                self.iteration += block

    def validation(self) -> dict[str, Any] | None:
        """The mean loss and Dice of the fixed samples, each of which is one window."""
        if self.inferer is None:
            self.inferer = Inferer({"class_num": self.config["network"]["class_num"]})
        return super().validation()

    def write_scalars(
        self, train_scalars: dict[str, Any], valid_scalars: dict[str, Any] | None, lr_value: float, glob_it: int
    ) -> None:
        """As PyMIC, and the Dice of each fusion class by its coefficient."""
        super().write_scalars(train_scalars, valid_scalars, lr_value, glob_it)
        if valid_scalars is not None:
            classes = self.plan.valid.fusion.classes
            dice = (f"{k}/{classes}: {value:.4f}" for k, value in enumerate(valid_scalars["class_dice"]))
            log.info("valid dice by fusion coefficient  %s", "  ".join(dice))


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

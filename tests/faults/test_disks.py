"""Disks that are full, read-only or gone: what the user is left with is whole, and the file is named.

A full disk is a small tmpfs where this user may mount one, and otherwise a limit on the size of a file, at which writes
fail in the same way.
"""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pymic.io.image_read_write as images
import pytest
import SimpleITK as sitk
import torch
from pymic.net_run import agent_seg
from pymic.net_run.agent_seg import SegmentationAgent
from test_training_steps import agent_of, train, unet_run

import pymic_vf
from pymic_vf.demo.phantom import write_phantoms
from pymic_vf.demo.pictures import draw_overlays
from pymic_vf.errors import UserError
from pymic_vf.host.weights import checkpoint

from conftest import parsed, write_cfg

pymic_vf.register()


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MiB of its own, where this user may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True).returncode:
        pytest.skip("NO RIGHT TO MOUNT: full disks were tested by a limit on the size of files alone")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, left: int = 8192) -> None:
    usage = shutil.disk_usage(folder)
    (folder / "filler").write_bytes(b"\0" * max(0, usage.free - left))


@contextmanager
def no_file_larger_than(size: int):
    """Writes beyond fail, with File too large."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def noise(dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (16, 64, 64)).astype(dtype)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha"])
def test_a_volume_is_written_as_before(tmp_path, suffix):
    """The same bytes as SimpleITK's own, and no temporary file."""
    voxels = noise(np.float32)
    images.save_nd_array_as_image(voxels, str(tmp_path / f"a{suffix}"))
    image = sitk.GetImageFromArray(voxels)
    sitk.WriteImage(image, str(tmp_path / f"b{suffix}"))
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha"])
@pytest.mark.parametrize("zeros_at_the_end", [False, True])
def test_a_volume_is_there_whole_or_not_at_all(tmp_path, suffix, zeros_at_the_end):
    voxels = noise()
    voxels[8:] *= not zeros_at_the_end
    file = tmp_path / f"a{suffix}"
    with no_file_larger_than(20_000), pytest.raises(UserError, match=rf"a{suffix} cannot be written \("):
        images.save_nd_array_as_image(voxels, str(file))
    assert list(tmp_path.iterdir()) == []
    file.write_bytes(b"what was there before")
    with no_file_larger_than(20_000), pytest.raises(UserError):
        images.save_nd_array_as_image(voxels, str(file))
    assert file.read_bytes() == b"what was there before"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "a.png"])
def test_a_full_disk(disk, name):
    fill(disk)
    voxels = noise()
    with pytest.raises(UserError, match=rf"{name} cannot be written \("):
        images.save_nd_array_as_image(_shaped(voxels, name), str(disk / name))
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_read_only_disk(disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(UserError, match=r"a\.nii cannot be written \(Read-only file system\)"):
        images.save_nd_array_as_image(noise(), str(disk / "a.nii"))
    with pytest.raises(UserError, match=r"a\.pt cannot be written \(Read-only file system\)"):
        checkpoint.save_whole({}, disk / "a.pt")


def _shaped(voxels: np.ndarray, name: str) -> np.ndarray:
    return voxels.reshape(256, 256) if name.endswith(".png") else voxels


def test_a_png_of_two_dimensions_and_a_folder_that_is_gone(tmp_path):
    images.save_nd_array_as_image(noise()[0], str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"gone/a\.nii\.gz cannot be written \(No such file or directory\)"):
        images.save_nd_array_as_image(noise(), str(tmp_path / "gone" / "a.nii.gz"))


def test_a_test_on_a_full_disk_fails(scans, tmp_path, disk):
    config = unet_run(scans, tmp_path, iter_max=3)
    train(config, tmp_path)
    config["testing"] |= {"output_dir": disk, "save_probability": True}
    config["dataset"]["num_worker"] = 0
    parsed_config = parsed(tmp_path / "test.cfg", config)
    fill(disk, 16384)
    with pytest.raises(UserError, match=r"scan_\d_?\S*\.nii\.gz cannot be written \("):
        SegmentationAgent(parsed_config, "test").run()
    for path in disk.glob("*.nii.gz"):
        assert sitk.ReadImage(str(path)).GetSize() == (40, 36, 18)
    assert not list(disk.glob(".incomplete*"))


@pytest.mark.long
def test_a_command_on_a_full_disk(run, scans, tmp_path, disk):
    """Its log and copy of the config come first."""
    (disk / "run").mkdir()
    fill(disk, 0)
    config = unet_run(scans, tmp_path, ckpt_dir=disk / "run")
    done = run("pymic_train", write_cfg(tmp_path / "a.cfg", config), status=1)
    assert "cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_training_whose_disk_fills_up(scans, tmp_path, disk, caplog):
    """The checkpoints of before stay whole, and the run goes on from them when there is room."""
    config = unet_run(scans, tmp_path, ckpt_dir=disk / "run", checkpoint_minutes=0)
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    train(config, tmp_path, 2)
    fill(disk, 4096)
    with pytest.raises(UserError, match=r"(\.pt|weights_loaded\.txt:) cannot be written \(No space left on device\)"):
        agent_of(config, tmp_path).run()
    kept = [checkpoint.load(path) for path in (disk / "run").glob("*.pt")]
    assert max(content["iteration"] for content in kept) >= 2
    assert not list((disk / "run").glob(".incomplete*"))
    (disk / "filler").unlink()
    train(config, tmp_path)
    assert torch.load(disk / "run" / "run_6.pt", weights_only=True)["iteration"] == 6


def test_lost_events_do_not_hold_a_run_up(disk, caplog):
    """tensorboardX's threads end at the first error; hundreds of values are then taken and forgotten."""
    writer = agent_seg.SummaryWriter(str(disk / "events"))
    fill(disk, 0)
    for step in range(300):
        writer.add_scalars("loss", {"train": 0.5, "valid": 0.25}, step)
        writer.flush()
    writer.close()
    assert caplog.text.count("tensorboard's events cannot be written (No space left on device)") == 1


def test_a_disk_that_is_gone(scans, tmp_path):
    config = unet_run(scans, tmp_path, checkpoint_minutes=0)
    agent = agent_of(config, tmp_path)
    loss_of = agent.get_loss_value

    def vanish(*args):
        shutil.rmtree(tmp_path / "finetune", ignore_errors=True)
        return loss_of(*args)

    agent.get_loss_value = vanish
    with pytest.raises(UserError, match=r"finetune_resume\.pt cannot be written \(No such file or directory\)"):
        agent.run()


def test_phantoms_and_pictures(tmp_path):
    with no_file_larger_than(10_000), pytest.raises(UserError, match=r"cannot be written \("):
        write_phantoms(tmp_path / "data", counts={"train": 1}, size=(32, 64, 64))
    assert not list((tmp_path / "data").rglob("*.nii.gz")) and not list((tmp_path / "data").rglob(".incomplete*"))
    write_phantoms(tmp_path / "data", counts={"train": 1}, size=(32, 64, 64))  # goes on where it was
    voxels, label = noise(np.float32), (noise() > 150).astype(np.uint8)
    with no_file_larger_than(1000), pytest.raises(UserError, match=r"a\.png cannot be written \("):
        draw_overlays(voxels, label, {"x": label}, ["organ"], tmp_path / "a.png", (1.0, 1.0, 1.0))
    assert not (tmp_path / "a.png").exists()

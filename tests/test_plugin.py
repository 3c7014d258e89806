"""Each case in a process of its own: what matters is the order of imports."""

from __future__ import annotations

import pytest

NAMES_ARE_THERE = """
import sys
from pymic.net_run.agent_seg import SegmentationAgent
from pymic.net.net_dict_seg import SegNetDict
from pymic.transform.trans_dict import TransformDict
from pymic.net_run.self_sup import SelfSupMethodDict
ours = (name for name, method in SelfSupMethodDict.items() if method.__module__.startswith("pymic_vf"))
print(SegNetDict["PCTNet"].__module__, TransformDict["VF"].__module__, *sorted(ours))
"""
WHERE = "pymic_vf.networks.pct_net pymic_vf.host.transforms Genesis MIM PatchSwap VF"


@pytest.mark.parametrize(
    "first",
    [
        "import torch",
        "from pymic.net.net_dict_seg import SegNetDict",  # half made when torch, which it imports, calls the plug-in
        "import pymic.net_run.train",
        "import pymic_vf.host.agents",  # itself the cause of PyMIC's import
    ],
)
def test_every_first_import_finds_the_names(run, first: str):
    done = run("python", "-W", "error:pymic_vf", "-c", f"{first}\n{NAMES_ARE_THERE}")
    assert done.stdout.splitlines()[-1] == WHERE
    assert "left out" not in done.stderr


def test_without_autoload_nothing_is_there_until_imported(run):
    off = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    absent = "from pymic.net.net_dict_seg import SegNetDict; assert 'PCTNet' not in SegNetDict"
    done = run("python", "-c", f"{absent}\nimport pymic_vf\npymic_vf.register()\n{NAMES_ARE_THERE}", env=off)
    assert done.stdout.splitlines()[-1] == WHERE


def test_torch_alone_stays_alone(run):
    script = "import torch, sys\nprint(*sorted(m for m in sys.modules if m.split('.')[0] in {names}))"
    names = ("pymic", "pymic_vf", "SimpleITK", "pandas", "timm", "matplotlib")
    done = run("python", "-c", script.format(names=names))
    assert done.stdout.split() == [
        "pymic_vf",
        "pymic_vf._version",
        "pymic_vf.methods",
        "pymic_vf.networks",
        "pymic_vf.plugin",
    ]


def test_a_command_imports_what_a_pretraining_needs_only_for_one(run):
    script = "import pymic.net_run.train, sys\nprint(*sorted(m for m in sys.modules if m in {names}))"
    names = ("blosc2", "pymic_vf.host.agents", "pymic_vf.data.loader", "pymic_vf.host.compat", "pymic_vf.methods")
    done = run("python", "-c", script.format(names=names))
    assert done.stdout.split() == ["pymic_vf.host.compat", "pymic_vf.methods"]


def test_a_name_that_pymic_has_is_reported_and_kept(run):
    script = (
        "import torch\nimport pymic.net.cnn.unet as unet\n"
        "from wrapt import when_imported\n"
        # runs before the plug-in's own hook of that module would: stands for a later PyMIC that has the name
        "import pymic.transform.abstract_transform\n"
        "import pymic_vf.plugin as plugin\n"
        "class Host: SegNetDict = {'PCTNet': 'theirs'}\n"
        "import logging; logging.basicConfig(format='%(message)s')\n"
        "plugin.REGISTRATIONS[0].apply(Host)\n"
        "print(Host.SegNetDict['PCTNet'])\n"
    )
    done = run("python", "-c", script)
    assert done.stdout.splitlines()[-1] == "theirs"
    assert "already has the name PCTNet" in done.stderr


def test_a_broken_plugin_does_not_break_torch(run, tmp_path):
    (tmp_path / "wrapt.py").write_text("raise ImportError('no wrapt here')")
    done = run("python", "-c", "import torch; print(torch.ones(1).item())", env={"PYTHONPATH": str(tmp_path)})
    assert done.stdout.strip() == "1.0"
    assert "not registered with PyMIC" in done.stderr and "no wrapt here" in done.stderr


def test_a_script_that_starts_with_an_agent_gets_the_repairs(run):
    script = (
        "from pymic.net_run.agent_seg import SegmentationAgent\n"
        "from pymic import TaskType\n"
        "import pymic.net_run.agent_seg as module, torch\n"
        "config = {'dataset': {'tensor_type': 'float', 'task_type': TaskType.SEGMENTATION}, 'training': {}}\n"
        "SegmentationAgent(config)\n"
        "print(module.torch is not torch, SegmentationAgent.valid_loader)\n"
    )
    assert run("python", "-c", script).stdout.splitlines()[-1] == "True None"

"""``pymic_vf check``: the settings as PyMIC's commands check them, the scans, one batch, and what the run will take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pymic_vf.errors import ConfigError, UserError
from pymic_vf.host.settings.commands import TRAIN, find_mistakes, stages_of
from pymic_vf.host.survey.findings import FAIL, PASS, WARN, Findings

Config = dict[str, dict[str, Any]]


def check_run(cfg: Path, parsed: Config, quick: bool, jobs: int) -> int:
    """Print what is found, a line each, and the verdict.

    Args:
        cfg: the file, for the verdict.
        parsed: its sections, as PyMIC parsed them.
        quick: the settings and csv files alone.
        jobs: threads that read scans.

    Returns:
        The exit status: 0 for PASS, 2 for WARN, 1 for FAIL.

    Raises:
        ConfigError: mistakes of the settings, all together, as the commands raise it.
    """
    from pymic.util.parse_config import synchronize_config

    stages, findings = stages_of(parsed), Findings()
    # of a config for both stages the training comes first and makes the checkpoint
    config, mistakes = find_mistakes(parsed, stages, synchronize_config, is_next=TRAIN not in stages)
    if mistakes:
        raise ConfigError(mistakes)
    plan = _plan_and_warnings(config, stages, findings)
    findings.add(PASS, f"the settings are right for {' and '.join(stages)}")
    if not quick and TRAIN in stages:
        _check_data_and_batch(config, plan, findings, jobs)
    verdicts = {PASS: "nothing wrong found", WARN: "see the lines with WARN", FAIL: "see the lines with FAIL"}
    print(f"\n{findings.verdict}  {cfg}: {verdicts[findings.verdict]}")
    return findings.status


def _plan_and_warnings(config: Config, stages: list[str], findings: Findings) -> Any:
    """Check again as an agent would, with the lines that it writes; the plan of a pretraining, or None."""
    from pymic_vf.host.settings.checks import (
        check_network,
        check_pretraining,
        check_supervised,
        is_supervised,
        method_name_of,
        warnings_of_stock,
    )

    for line in warnings_of_stock(config):
        findings.add(WARN, line)
    if method_name_of(config):
        return check_pretraining(config)
    if not is_supervised(config):
        check_network(config)
        print("the keys of PyMIC's own methods are PyMIC's to check")
        return None
    for stage in stages:
        check_supervised(config, stage)
    return None


def _check_data_and_batch(config: Config, plan: Any, findings: Findings, jobs: int) -> None:
    from pymic_vf.host.settings.checks import is_supervised
    from pymic_vf.host.survey.data_check import DataCheck
    from pymic_vf.host.survey.forecast import forecast, try_a_batch

    if plan is None and not is_supervised(config):
        return
    data = DataCheck(config, plan, findings, jobs)
    data.run()
    if findings.verdict == FAIL:
        findings.add(WARN, "no batch was tried, since there is a line with FAIL")
        return
    print("... one batch forward and backward, which on a CPU may take minutes (--quick leaves it out)", flush=True)
    try:
        batch = try_a_batch(config)
    except UserError as error:
        findings.add(FAIL, f"one batch: {error}")
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        findings.add(FAIL, f"one batch ends in {type(error).__name__}: {reason}")
    else:
        forecast(config, batch, data.volumes, data.count, findings)

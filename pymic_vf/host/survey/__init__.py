"""``pymic_vf check``: the scans, a batch and a forecast, before days of running."""

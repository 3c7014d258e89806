"""From a csv of scans to fused samples: scan list, scans, volume readers, sub-volume pairs, loader."""

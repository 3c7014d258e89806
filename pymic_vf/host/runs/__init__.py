"""A training from its start to its end, whatever interrupts it."""

"""What shows the package at work: phantoms, the demo, pictures."""

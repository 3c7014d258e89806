"""PCT-Net, the network of MIS-FM (section 3.1.4), for PyMIC."""

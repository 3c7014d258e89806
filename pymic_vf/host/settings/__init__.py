"""What a config may have, and everything that is wrong with one."""

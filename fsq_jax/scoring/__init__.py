"""FID and its relatives of any images, under a named protocol."""

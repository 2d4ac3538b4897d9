"""From scans as they come to a prepared data set: steps, one file each, and the run that takes studies through them."""

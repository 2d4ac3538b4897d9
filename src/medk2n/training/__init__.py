"""From a data set and a configuration to model folders."""

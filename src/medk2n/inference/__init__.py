"""From a study to its missing volumes: slices through a model, contributions, and the public `Synthesizer`."""

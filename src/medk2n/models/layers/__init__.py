"""What Med-K2N and the baselines share."""

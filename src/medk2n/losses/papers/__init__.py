"""The objectives of the baselines' papers: a file exports `COMPONENT`, an `Objective`, and a `ModelSpec` names it."""

"""Where voxels are: grids, orientations, resampling. numpy and scipy only."""

"""nuScenes (Caesar et al., CVPR 2020): its tables as an index, its frames, and a generated copy."""

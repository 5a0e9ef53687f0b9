"""The loop, the simulated plant and the pruning service as ROS 2 nodes: they convert messages and parameters."""

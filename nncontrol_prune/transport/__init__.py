"""The plant, the loop and the pruning service over ZeroMQ."""

"""The pruning service: jobs, progress, cancellation. Knows no transport."""

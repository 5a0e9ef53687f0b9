"""The comparison of pruners: see ../compare_pruners.py."""

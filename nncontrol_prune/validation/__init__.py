"""Closed-loop validation: is the pruned controller as good?"""

"""Component-aware structured pruning: groups, importance, coefficients, surgery, reconstruction, distillation."""

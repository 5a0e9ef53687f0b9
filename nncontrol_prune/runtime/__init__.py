"""The control loop and what it needs; numpy and ONNX Runtime, no torch."""

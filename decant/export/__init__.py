"""Deployment: checkpoints as ONNX models, checked and timed in ONNX Runtime."""

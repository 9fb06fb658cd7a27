"""What ONNX's exporter reads before its first export, read as soon as this is imported."""

from tests.traces import look_up

look_up()

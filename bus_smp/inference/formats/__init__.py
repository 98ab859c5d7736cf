"""Networks as files that run without this package: ONNX, OpenVINO and a plain state dict; each is written and read here."""

"""Breast-ultrasound segmentation: leak-free manifests, a hybrid ResNet-50, honest evaluation."""

__version__ = "0.1.0"

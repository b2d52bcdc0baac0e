"""Model FLOPs utilisation: what a step needs by its mathematics, against the peak of the devices it ran on."""

from __future__ import annotations

from llama31 import config
from llama31.plan import shapes

# Dense BF16 TFLOPs from NVIDIA's data sheets; the first name that the device's name contains counts.
PEAK_TFLOPS = (
    ("GB300", 2500.0),
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
)


def peak_tflops(device_name: str | None) -> float | None:
    """Dense BF16 TFLOPs of a device by the name that CUDA reports; None where unknown (a CPU): then there is no MFU."""
    if device_name is None:
        return None
    return next((tflops for name, tflops in PEAK_TFLOPS if name.lower() in device_name.lower()), None)


def tflops(model: config.Model, sequence_length: int, tokens_per_s: float, devices: int) -> float:
    """Model TFLOPs per second and device: what the mathematics needs, without what recomputation adds."""
    return shapes.flops_per_token(model, sequence_length) * tokens_per_s / devices / 1e12


def mfu(
    model: config.Model, sequence_length: int, tokens_per_s: float, devices: int, peak_tflops: float | None
) -> float | None:
    """Model FLOPs utilisation between 0 and 1 (report, Table 4); None without a peak to compare with."""
    return tflops(model, sequence_length, tokens_per_s, devices) / peak_tflops if peak_tflops else None

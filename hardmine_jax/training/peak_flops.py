"""What a chip could compute at best, by its name: what a measured rate is a share of."""

from typing import Literal, TypeAlias

DTypeName: TypeAlias = Literal["float32", "bfloat16"]

# 10^12 floating-point operations a second of what JAX counts as one device, dense: products in bfloat16, and
# of float32 as JAX takes them by itself (TF32 on NVIDIA's; a TPU rounds float32 to bfloat16). By NVIDIA's
# data sheets (SXM where there are several) and docs.cloud.google.com/tpu/docs/system-architecture-tpu-vm.
_PEAKS = {
    "H100 PCIe": (756.0, 378.0),
    "H100 NVL": (835.0, 418.0),
    "H100": (989.0, 494.7),
    "H200": (989.0, 494.7),
    "H800": (989.0, 494.7),
    "GH200": (989.0, 494.7),
    "B200": (2250.0, 1125.0),
    "A100": (312.0, 156.0),
    "A800": (312.0, 156.0),
    "A10G": (70.0, 35.0),
    "A40": (149.7, 74.8),
    "L40S": (362.0, 183.0),
    "L4": (121.0, 60.0),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
    "TPU v2": (23.0, 23.0),
    "TPU v3": (61.5, 61.5),
    "TPU v4": (275.0, 275.0),
    "TPU v5 lite": (197.0, 197.0),
    "TPU v5e": (197.0, 197.0),
    "TPU v5p": (459.0, 459.0),
    "TPU v5": (459.0, 459.0),
    "TPU v6 lite": (918.0, 918.0),
    "TPU v6e": (918.0, 918.0),
    "TPU7x": (1153.5, 1153.5),
}


def peak_flops(device_kind: str, dtype: DTypeName) -> float | None:
    """Floating-point operations a second of one device; None where the chip is not known.

    Args:
      device_kind: as in `jax.devices()[0].device_kind`.
      dtype: of the computation.

    >>> peak_flops("NVIDIA H100 80GB HBM3", "bfloat16")
    989000000000000.0
    >>> peak_flops("cpu", "float32") is None
    True
    """
    names = [name for name in _PEAKS if name.lower() in device_kind.lower()]
    if not names:
        return None
    # "H100 PCIe" before "H100", "TPU v5 lite" before "TPU v5".
    return 1e12 * _PEAKS[max(names, key=len)][dtype == "float32"]

"""Figures of GPUs: the one home of their memory, speed and bandwidth.

Memory is the total that nvidia-smi shows (measured on a cloud's machines:
thundergolfer.com/blog/nvidia-gpu-memory-capacity); the rest is from NVIDIA's data sheets. Theirs of tensor
cores are with sparsity, which training has not: these are the dense ones, half of them, of bfloat16 products
added up in float32.
"""

import re
from dataclasses import dataclass

from model.errors import UserError

MEBIBYTE = 1 << 20
# CUDA's context, kernels and the buffers of its libraries, and what the allocator cannot use of what it has.
CONTEXT_BYTES = 1.5e9
FRAGMENTED_SHARE = 0.04
# Bytes a second: of one GPU to host memory (PCI Express 4, 16 lanes), and of a ring of GPUs from node to
# node, by eight adapters of 400 Gbit/s together.
HOST_BANDWIDTH = 25e9
NODE_BANDWIDTH = 400e9
GPUS_OF_A_NODE = 8


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Args:
        memory: Bytes.
        flops: Floating-point operations a second, dense, bfloat16.
        memory_bandwidth: Bytes a second.
        link_bandwidth: Bytes a second to other GPUs of a node, in one direction.
        source: The data sheet.
    """

    name: str
    memory: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str

    def needed(self, tensors: float) -> float:
        """Bytes that a process needs for tensors of so many bytes."""
        return CONTEXT_BYTES + (1 + FRAGMENTED_SHARE) * tensors

    def fits(self, tensors: float) -> bool:
        """Whether tensors of so many bytes have room."""
        return self.needed(tensors) <= self.memory


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("l4", 23034 * MEBIBYTE, 121e12, 300e9, 32e9, "NVIDIA L4 data sheet, 2023"),
        Gpu("rtx4090", 24564 * MEBIBYTE, 165.2e12, 1008e9, 32e9, "NVIDIA Ada architecture white paper, 2022"),
        Gpu("l40s", 46068 * MEBIBYTE, 362e12, 864e9, 32e9, "NVIDIA L40S data sheet, 2023"),
        Gpu("a100", 81920 * MEBIBYTE, 312e12, 2039e9, 300e9, "NVIDIA A100 80 GB SXM data sheet, 2021"),
        Gpu("h100", 81559 * MEBIBYTE, 989.4e12, 3350e9, 450e9, "NVIDIA H100 SXM data sheet, 2023"),
        Gpu("h200", 143771 * MEBIBYTE, 989.4e12, 4800e9, 450e9, "NVIDIA H200 SXM data sheet, 2024"),
    )
}

# What CUDA calls them, whole: cards of a similar name are slower, such as H100 PCIe (756 TFLOP/s), H100 NVL
# and H200 NVL (835), L40 (181) and parts of a GPU (MIG).
DEVICE_NAMES = {
    "l4": "L4",
    "rtx4090": "GeForce RTX 4090",
    "l40s": "L40S",
    "a100": "A100-SXM4-[48]0GB|A100-PCIE-40GB|A100 80GB PCIe",
    "h100": "H100 80GB HBM3",
    "h200": "H200",
}


def gpu_named(name: str) -> Gpu:
    """The GPU of this name. UserError lists those there are."""
    if name not in GPUS:
        raise UserError(f"gpu must be one of {', '.join(GPUS)}, got {name!r}")
    return GPUS[name]


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of the GPU that CUDA calls so, such as "NVIDIA H100 80GB HBM3"; None when
    unknown.
    """
    name = device_name.removeprefix("NVIDIA ")
    return next(
        (GPUS[gpu].flops for gpu, pattern in DEVICE_NAMES.items() if re.fullmatch(pattern, name)), None
    )

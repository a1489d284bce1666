"""Forward times of PyTorch's FlashAttention-2 and cuDNN, in the cells and the CSV of `forward`.

Run it right before or after `forward`, on the same machine: python3 benches/peers.py
"""

import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HIDDEN = 2048
BACKENDS = {"flash-attention-2": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def seconds_per_launch(function, launches):
    start = time.perf_counter()
    for _ in range(launches):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / launches


def main():
    gpu = torch.cuda.get_device_name().replace(",", " ")
    torch.manual_seed(0)
    print("library,gpu,dtype,head_dim,mask,batch,seqlen,heads,microseconds,spread,tflops")
    for head_dim in (64, 128, 256):
        heads = HIDDEN // head_dim
        for causal in (False, True):
            for seqlen in (1024, 2048, 4096, 8192, 16384):
                batch = 16384 // seqlen
                q, k, v = (
                    torch.rand(batch, seqlen, heads, head_dim, device="cuda").mul(2).sub(1).bfloat16().transpose(1, 2)
                    for _ in range(3)
                )
                for name, backend in BACKENDS.items():
                    with sdpa_kernel(backend):
                        function = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal)
                        try:
                            seconds_per_launch(function, 3)
                        except RuntimeError as error:
                            print(f"# {name} d{head_dim} {seqlen}: {str(error).splitlines()[0]}")
                            continue
                        launches = int(min(2000, max(3, 0.05 / seconds_per_launch(function, 3) + 1)))
                        times = sorted(seconds_per_launch(function, launches) for _ in range(7))
                    flops = 4 * batch * heads * seqlen * seqlen * head_dim / (2 if causal else 1)
                    mask = "causal" if causal else "full"
                    print(
                        f"{name} (torch {torch.__version__}),{gpu},bf16,{head_dim},{mask},{batch},{seqlen},{heads},"
                        f"{times[3] * 1e6:.2f},{times[-1] / times[0] - 1:.3f},{flops / times[3] / 1e12:.1f}"
                    )


if __name__ == "__main__":
    main()

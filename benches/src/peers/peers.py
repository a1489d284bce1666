"""Times other libraries' attention in the cells that flashtile times, while flashtile does.

`flashtile bench --peers` starts this program and asks it one thing at a time: a line of JSON in, a line of JSON out. It
needs torch; every library that it knows and cannot import, and every cell that a library cannot do, is an answer with
a reason. Tensors are [batch, seqlen, heads, head_dim], as flashtile's are, and hold the same numbers. Where flashtile reads keys
from pages, libraries that know pages do too (of other numbers, and in another order, but no two neighbours together); the others
read them where they are.

| ask | with | answer |
|---|---|---|
| hello | device, names | torch, cuda, peers: name -> {version} or {missing} |
| peak | dtype, seconds | tflops, size |
| open | cell | probe: first and last element of q, k and v |
| prepare | peer, warm_up, sample_seconds, most | method, launches, rows (base64 of f32) |
| time | peer, seconds, fewest, most | times: seconds a launch, one for each sample |
| close | | |
"""

import base64
import gc
import importlib
import json
import math
import os
import struct
import sys
import time

DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "e4m3": "float8_e4m3fn"}
MASK_32 = 0xFFFFFFFF


class Unable(Exception):
    """What a peer does not do."""


# Inputs: `inputs.rs` says why they are made like this.


def mix(x):
    """On a number, or a tensor of int64."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK_32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK_32
    return x ^ (x >> 16)


def values(torch, shape, dtype, seed, device):
    keys = [mix((2 * seed + 0x9E3779B9 + which) & MASK_32) for which in (0, 1)]
    count = math.prod(shape)
    out = torch.empty(count, dtype=dtype, device=device)
    factor = torch.tensor(1.7320508, dtype=torch.float32) / 65536
    # In parts: int64 takes four times the memory.
    part = 1 << 24
    for first in range(0, count, part):
        place = mix(torch.arange(first, min(first + part, count), dtype=torch.int64, device=device) & MASK_32)
        total = -131070
        for key in keys:
            bits = mix(place ^ key)
            total = total + (bits & 0xFFFF) + (bits >> 16)
        out[first : first + part] = (total.float() * factor.to(device)).to(dtype)
    return out.view(shape)


# Peers: each makes a function of q, k and v for a cell, or says why not.


def sides(cell, unbounded):
    """The window of a cell; a causal mask is no window."""
    if cell["mask"] != "window":
        return (unbounded, unbounded)
    return tuple(unbounded if side < 0 else side for side in cell["window"])


def refuse_fp8(cell):
    if cell["dtype"] == "e4m3":
        raise Unable("no fp8")


def page_of(at, blocks):
    """As `workload.rs` has it."""
    step = int(blocks * 0.618) + 1
    while math.gcd(step, blocks) != 1:
        step += 1
    return at * step % blocks


class Pages:
    """Keys and values of all sets once more, in pages; and the table."""

    def __init__(self, torch, cell):
        page = int(cell["cache"].lstrip("abcdefghijklmnopqrstuvwxyz"))
        batch, keys = cell["batch"], cell["seqlen_k"]
        if keys % page:
            raise Unable("the last pages are not full")
        blocks, self.page = batch * keys // page, page
        places = torch.tensor([page_of(at, blocks) for at in range(blocks)], dtype=torch.int64, device=cell["device"])
        self.table = places.to(torch.int32).view(batch, keys // page)
        self.used = torch.full((batch,), keys, dtype=torch.int32, device=cell["device"])

        def pages(x):
            out = torch.empty((blocks, page, *x.shape[2:]), dtype=x.dtype, device=x.device)
            out[places] = x.reshape(out.shape)
            return out

        self.of = {k.data_ptr(): (pages(k), pages(v)) for _, k, v in cell["sets"]}


def in_pages(cell):
    return cell["cache"].startswith("pages")


def refuse_latent(cell):
    if cell["cache"].startswith("latent"):
        raise Unable("no values that are elements of keys")


def sdpa(backend):
    def make(torch, cell):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        refuse_fp8(cell)
        if cell["mask"] == "window":
            raise Unable("no sliding window")
        causal = cell["mask"] == "causal"
        if causal and cell["seqlen_q"] != cell["seqlen_k"]:
            raise Unable("is_causal is top-left: another mask")
        chosen = getattr(SDPBackend, backend)
        options = {"enable_gqa": True} if cell["heads_q"] != cell["heads_kv"] else {}

        def run(q, k, v):
            heads_first = [x.transpose(1, 2) for x in (q, k, v)]
            with sdpa_kernel(chosen):
                out = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=causal, **options)
            return out.transpose(1, 2)

        return run

    return make


def flash_attn(module, unbounded, fp8=False, table="block_table", least_page=1):
    def make(torch, cell):
        library = importlib.import_module(module)
        if not fp8:
            refuse_fp8(cell)
        refuse_latent(cell)
        options = {"causal": cell["mask"] == "causal", "window_size": sides(cell, unbounded)}
        if in_pages(cell):
            attend = getattr(library, "flash_attn_with_kvcache", None)
            if attend is None:
                raise Unable("no flash_attn_with_kvcache")
            pages = Pages(torch, cell)
            if pages.page % least_page:
                raise Unable(f"only pages of multiples of {least_page} rows")
            options |= {"cache_seqlens": pages.used, table: pages.table}
            call = lambda q, k, v: attend(q, *pages.of[k.data_ptr()], **options)
        elif cell["cache"] == "packed":
            attend = getattr(library, "flash_attn_varlen_func", None)
            if attend is None:
                raise Unable("no flash_attn_varlen_func")
            lengths = [cell["seqlen_q"], cell["seqlen_k"]]
            step = torch.arange(cell["batch"] + 1, dtype=torch.int32, device=cell["device"])
            for name, length in zip("qk", lengths):
                options |= {f"cu_seqlens_{name}": step * length, f"max_seqlen_{name}": length}

            def call(q, k, v):
                out = attend(*(x.flatten(0, 1) for x in (q, k, v)), **options)
                out = out[0] if isinstance(out, tuple) else out
                return out.unflatten(0, q.shape[:2])

        else:
            call = lambda q, k, v: library.flash_attn_func(q, k, v, **options)

        def run(q, k, v):
            out = call(q, k, v)
            # Some versions return the log-sum-exp as well.
            return out[0] if isinstance(out, tuple) else out

        return run

    return make


def flashinfer(torch, cell):
    import flashinfer

    refuse_fp8(cell)
    refuse_latent(cell)
    left, right = sides(cell, -1)
    if cell["mask"] == "window" and right != 0:
        raise Unable("no window to the right of the diagonal")
    batch = cell["batch"]
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    if in_pages(cell) and cell["seqlen_q"] == 1:
        return flashinfer_decode(flashinfer, torch, cell, workspace)
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD")
    starts = lambda seqlen: torch.arange(batch + 1, dtype=torch.int32, device="cuda") * seqlen
    dtype = getattr(torch, DTYPES[cell["dtype"]])
    wrapper.plan(
        starts(cell["seqlen_q"]),
        starts(cell["seqlen_k"]),
        cell["heads_q"],
        cell["heads_kv"],
        cell["head_dim_qk"],
        head_dim_vo=cell["head_dim_v"],
        causal=cell["mask"] != "full",
        window_left=left,
        q_data_type=dtype,
        kv_data_type=dtype,
    )
    return lambda q, k, v: wrapper.run(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).unflatten(0, (batch, -1))


def flashinfer_decode(flashinfer, torch, cell, workspace):
    pages = Pages(torch, cell)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=cell["heads_q"] > cell["heads_kv"])
    dtype = getattr(torch, DTYPES[cell["dtype"]])
    batch, each = pages.table.shape
    last = torch.full((batch,), pages.page, dtype=torch.int32, device="cuda")
    wrapper.plan(
        torch.arange(batch + 1, dtype=torch.int32, device="cuda") * each,
        pages.table.flatten(),
        last,
        cell["heads_q"],
        cell["heads_kv"],
        cell["head_dim_qk"],
        pages.page,
        q_data_type=dtype,
        kv_data_type=dtype,
    )
    return lambda q, k, v: wrapper.run(q.flatten(0, 1), pages.of[k.data_ptr()]).unflatten(0, (batch, 1))


COMPILED = []


def flex_attention(torch, cell):
    from torch.nn.attention import flex_attention as flex

    refuse_fp8(cell)
    if not COMPILED:
        for name in ("recompile_limit", "cache_size_limit"):
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, 1000)
        COMPILED.append(torch.compile(flex.flex_attention, dynamic=False))
    block_mask = None
    if cell["mask"] != "full":
        offset = cell["seqlen_k"] - cell["seqlen_q"]
        left, right = (-1, 0) if cell["mask"] == "causal" else cell["window"]

        def visible(b, h, i, j):
            distance = j - i - offset
            seen = distance <= (right if right >= 0 else cell["seqlen_k"])
            return seen & (distance >= -(left if left >= 0 else cell["seqlen_k"] + cell["seqlen_q"]))

        block_mask = flex.create_block_mask(visible, None, None, cell["seqlen_q"], cell["seqlen_k"], device=cell["device"])
    grouped = cell["heads_q"] != cell["heads_kv"]

    def run(q, k, v):
        heads_first = [x.transpose(1, 2) for x in (q, k, v)]
        return COMPILED[0](*heads_first, block_mask=block_mask, enable_gqa=grouped).transpose(1, 2)

    return run


# name: the module that it takes, and what makes its function.
PEERS = {
    "torch-flash": ("torch", sdpa("FLASH_ATTENTION")),
    "torch-cudnn": ("torch", sdpa("CUDNN_ATTENTION")),
    "flash-attn-2": (
        "flash_attn.flash_attn_interface",
        flash_attn("flash_attn.flash_attn_interface", -1, least_page=256),
    ),
    "flash-attn-3": ("flash_attn_interface", flash_attn("flash_attn_interface", -1, fp8=True, table="page_table")),
    "flash-attn-4": ("flash_attn.cute", flash_attn("flash_attn.cute", None)),
    "flashinfer": ("flashinfer", flashinfer),
    "flex-attention": ("torch.nn.attention.flex_attention", flex_attention),
}
# Peers that torch has for the CPU as well: enough for a rehearsal.
ON_CPU = ("torch-flash", "flex-attention")


def first_line(error):
    if isinstance(error, Unable):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def version(module):
    """Of a module, or of the packages above it."""
    while module:
        found = getattr(sys.modules.get(module), "__version__", None)
        if isinstance(found, str):
            return found
        module = module.rpartition(".")[0]
    return ""


class Prepared:
    """A peer's launches in one cell, ready to be timed."""

    def __init__(self, torch, function, sets, on_gpu, request):
        self.torch, self.function, self.sets, self.on_gpu = torch, function, sets, on_gpu
        self.graph = None
        self.launches = 1
        self.enqueue(request["warm_up"])
        if not on_gpu:
            self.out = function(*sets[0])
            return
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.launches = request["warm_up"]
        seconds = self.sample()
        launches = math.ceil(min(max(request["sample_seconds"] / seconds, 1), request["most"]))
        self.launches = math.ceil(launches / len(sets)) * len(sets)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.enqueue(self.launches)
            self.graph = graph
        except Exception as error:  # What cannot be taken down is launched.
            if fatal(error):
                raise
            print(f"no graph: {first_line(error)}", file=sys.stderr)
            torch.cuda.synchronize()
        self.sample()

    def enqueue(self, launches):
        for launch in range(launches):
            out = self.function(*self.sets[launch % len(self.sets)])
            if launch == 0:
                self.out = out

    def sample(self):
        """Seconds a launch."""
        if not self.on_gpu:
            start = time.perf_counter()
            self.enqueue(self.launches)
            return (time.perf_counter() - start) / self.launches
        start, end = self.events
        start.record()
        if self.graph:
            self.graph.replay()
        else:
            self.enqueue(self.launches)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.launches


def fatal(error):
    """Whether the process has lost its GPU."""
    text = str(error)
    return "CUDA error" in text or "CUDNN_STATUS_EXECUTION_FAILED" in text


class Server:
    def __init__(self):
        self.torch = None
        self.cell = None
        self.sets = []
        self.prepared = {}

    def hello(self, request):
        import torch

        self.torch = torch
        self.on_gpu = request["device"].startswith("cuda")
        if self.on_gpu:
            if not torch.cuda.is_available():
                raise Unable("torch sees no GPU")
            torch.cuda.set_device(int(request["device"].partition(":")[2] or 0))
        torch.set_grad_enabled(False)
        peers = {}
        for name in request["names"]:
            module, _ = PEERS[name]
            try:
                if not self.on_gpu and name not in ON_CPU:
                    raise Unable("only on a GPU")
                importlib.import_module(module)
                peers[name] = {"version": version(module)}
                if name == "torch-cudnn":
                    if not torch.backends.cudnn.is_available():
                        raise Unable("torch has no cuDNN")
                    peers[name]["version"] += f", cuDNN {torch.backends.cudnn.version()}"
            except Exception as error:  # Whatever an import may raise.
                peers[name] = {"missing": first_line(error)}
        return {"torch": torch.__version__, "cuda": torch.version.cuda or "", "peers": peers}

    def peak(self, request):
        """The fastest of a few large matrix products: random numbers, for zeros would be faster."""
        torch = self.torch
        if not self.on_gpu:
            raise Unable("only on a GPU")
        dtype = getattr(torch, DTYPES[request["dtype"]])
        best = {"tflops": 0.0}
        for size in (4096, 8192, 16384):
            a, b = (values(torch, (size, size), dtype, seed, "cuda") for seed in (1, 2))
            if request["dtype"] == "e4m3":
                one = torch.ones((), device="cuda")
                product = lambda a=a, b=b.t(): torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
            else:
                product = lambda a=a, b=b: torch.matmul(a, b)
            limits = {"warm_up": 3, "sample_seconds": 0.02, "most": 1000}
            prepared = Prepared(torch, lambda product: product(), [(product,)], True, limits)
            times = self.times(prepared, request["seconds"] / 3, 5, 1000)
            tflops = 2 * size**3 / sorted(times)[len(times) // 2] / 1e12
            if tflops > best["tflops"]:
                best = {"tflops": tflops, "size": size}
            del prepared, product, a, b
            self.clean()
        return best

    def open(self, request):
        self.close(request)
        torch, cell = self.torch, request["cell"]
        dtype = getattr(torch, DTYPES[cell["dtype"]])
        batch, dims = cell["batch"], (cell["head_dim_qk"], cell["head_dim_v"])
        shapes = [
            (batch, cell["seqlen_q"], cell["heads_q"], dims[0]),
            (batch, cell["seqlen_k"], cell["heads_kv"], dims[0]),
            (batch, cell["seqlen_k"], cell["heads_kv"], dims[1]),
        ]
        device = "cuda" if self.on_gpu else "cpu"
        self.sets = [
            [values(torch, shape, dtype, seed, device) for shape, seed in zip(shapes, seeds)] for seeds in cell["seeds"]
        ]
        ends = [x.flatten()[at].float().item() for x in self.sets[0] for at in (0, -1)]
        if cell["cache"].startswith("latent"):
            self.sets = [[q, k, k[..., : dims[1]]] for q, k, _ in self.sets]
        self.cell = {**cell, "device": device, "sets": self.sets}
        return {"probe": ends}

    def prepare(self, request):
        torch, name = self.torch, request["peer"]
        _, make = PEERS[name]
        prepared = Prepared(torch, make(torch, self.cell), self.sets, self.on_gpu, request)
        rows = torch.tensor(self.cell["rows"], dtype=torch.int64, device=prepared.out.device).reshape(-1, 3)
        picked = prepared.out[rows[:, 0], rows[:, 1], rows[:, 2]].float()
        self.prepared[name] = prepared
        return {
            "method": "graph" if prepared.graph else "launches",
            "launches": prepared.launches,
            "rows": base64.b64encode(struct.pack(f"<{picked.numel()}f", *picked.flatten().tolist())).decode(),
        }

    def time(self, request):
        prepared = self.prepared[request["peer"]]
        return {"times": self.times(prepared, request["seconds"], request["fewest"], request["most"])}

    def times(self, prepared, seconds, fewest, most):
        # Not counted: the device may have been idle.
        prepared.sample()
        end, times = time.perf_counter() + seconds, []
        while len(times) < fewest or (time.perf_counter() < end and len(times) < most):
            times.append(prepared.sample())
        return times

    def close(self, _):
        self.cell, self.sets, self.prepared = None, [], {}
        self.clean()
        return {}

    def clean(self):
        gc.collect()
        if self.torch and self.on_gpu:
            self.torch.cuda.empty_cache()


def main():
    # Libraries print what they like: it goes to stderr, answers alone to stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server()
    asks = {name: getattr(server, name) for name in ("hello", "peak", "open", "prepare", "time", "close")}
    for line in sys.stdin:
        request = json.loads(line)
        lost = False
        try:
            answer = asks[request["ask"]](request)
        except Exception as error:
            lost = fatal(error)
            answer = {"error": first_line(error)}
            print(f"{request}: {answer}", file=sys.stderr)
            # The traceback holds tensors.
            error.__traceback__ = None
        answer["lost"] = lost
        print(json.dumps(answer), file=answers, flush=True)
        if lost:
            return
        if "error" in answer:
            server.clean()


if __name__ == "__main__":
    main()

"""The library from Python: ctypes over the C interface of examples/capi, on tensors of PyTorch.

library = Library("target/release/examples/libcapi.so")
attention = library.attention(q, k, v, keep, computed)   # keep: S_s, computed: S_c, as bool tensors
projection = library.projection(...)                     # see Projection
selection = library.selection(...)                       # see Selection
attention.plan()                                         # and again whenever `attention.skip` or `.cache` are written
out = attention.run()                                    # both launch on PyTorch's current stream
"""

import contextlib
import ctypes
import os

import torch

BLOCK = 128
PATHS = {"best": 0, "portable": 1, "naive": 2}


class Tensor(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint64),
        ("shape", ctypes.c_uint64 * 4),
        ("strides", ctypes.c_uint64 * 3),
    ]


class Problem(ctypes.Structure):
    _fields_ = [
        ("q", Tensor),
        ("k", Tensor),
        ("v", Tensor),
        ("out", Tensor),
        ("lse", ctypes.c_uint64),
        ("cache", ctypes.c_uint64),
        ("skip", ctypes.c_uint64),
        ("symbols_on_gpu", ctypes.c_uint32),
        ("symbol_batches", ctypes.c_uint32),
        ("q_block", ctypes.c_uint32),
        ("kv_block", ctypes.c_uint32),
        ("is_bf16", ctypes.c_uint32),
        ("path", ctypes.c_uint32),
        ("scale", ctypes.c_float),
    ]


class GemmProblem(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_uint64) for name in ("batch", "heads", "head_dim", "all_tokens", "first_token", "tokens")]
        + [(name, ctypes.c_uint64) for name in ("inputs", "outputs", "x", "further", "weight", "out", "bias")]
        + [(name, ctypes.c_uint64) for name in ("norm", "rotary")]
        + [("terms", ctypes.c_uint64 * 5)]
        + [(name, ctypes.c_uint64) for name in ("cache", "skip", "kv_tokens", "q_block", "kv_block")]
        + [("symbol_batches", ctypes.c_uint32), ("set", ctypes.c_uint32), ("weights", ctypes.c_float * 5)]
        + [("epsilon", ctypes.c_float), ("halves", ctypes.c_uint32), ("is_bf16", ctypes.c_uint32)]
        + [("path", ctypes.c_uint32), ("reserved", ctypes.c_uint32)]
    )


class Strategy(ctypes.Structure):
    """Source of an .omni file, names of a strategy and a model, and settings as `layers=1;block_size:128`."""

    _fields_ = [(name, ctypes.c_char_p) for name in ("source", "strategy", "model", "settings")]


class SelectionProblem(ctypes.Structure):
    _fields_ = (
        [("strategy", Strategy), ("q", Tensor), ("k", Tensor), ("cache", ctypes.c_uint64), ("skip", ctypes.c_uint64)]
        + [(name, ctypes.c_uint32) for name in ("step", "layer", "is_bf16", "reserved")]
    )  # fmt: skip


class Library:
    """`kernels` names a folder whose kernels run in place of the library's own, as OMNI_KERNEL_DIR does."""

    def __init__(self, path, kernels=None):
        self.sources = kernels
        torch.zeros(1, device="cuda")  # the library opens the GPU of the current context, which this makes
        self.c = ctypes.CDLL(os.path.abspath(path))
        pointer = ctypes.c_void_p
        for name, result, arguments in (
            ("omni_open", pointer, []),
            ("omni_close", None, [pointer]),
            ("omni_attention", pointer, [pointer, ctypes.POINTER(Problem)]),
            ("omni_projection", pointer, [pointer, ctypes.POINTER(GemmProblem)]),
            ("omni_selection", pointer, [pointer, ctypes.POINTER(SelectionProblem)]),
            ("omni_free", None, [pointer]),
            ("omni_plan", ctypes.c_int, [pointer, pointer]),
            ("omni_run", ctypes.c_int, [pointer, pointer]),
            ("omni_error", ctypes.c_char_p, []),
        ):
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments
        self.kernels = self.made(self.c.omni_open())

    def attention(self, q, k, v, keep, computed, path="best", block=BLOCK):
        with self.own_sources():  # compiles what is missing
            return Attention(self, q, k, v, keep, computed, path, block)

    def projection(self, *args, **options):
        with self.own_sources():
            return Projection(self, *args, **options)

    def selection(self, *args):
        with self.own_sources():
            return Selection(self, *args)

    @contextlib.contextmanager
    def own_sources(self):
        before = os.environ.get("OMNI_KERNEL_DIR")
        if self.sources:
            os.environ["OMNI_KERNEL_DIR"] = os.path.abspath(self.sources)
        try:
            yield
        finally:
            if before is None:
                os.environ.pop("OMNI_KERNEL_DIR", None)
            else:
                os.environ["OMNI_KERNEL_DIR"] = before

    def made(self, pointer):
        """The pointer, if there is one."""
        if not pointer:
            raise RuntimeError(self.c.omni_error().decode())
        return pointer

    def done(self, code):
        if code:
            raise RuntimeError(self.c.omni_error().decode())


class Call:
    """Something that the library has prepared."""

    def plan(self):
        self.library.done(self.library.c.omni_plan(self.pointer, stream()))

    def run(self):
        self.library.done(self.library.c.omni_run(self.pointer, stream()))
        return self.out

    def __del__(self):
        if getattr(self, "pointer", None):
            torch.cuda.synchronize()  # launches may still use what is freed
            self.library.c.omni_free(self.pointer)


class Attention(Call):
    """Attention of q on k and v [batch, heads, tokens, head_dim] with the same symbols for all of the batch.

    keep: bool [heads, q_blocks, kv_blocks] in blocks of `block` x `block`; computed: bool [heads, q_blocks]. A kv-block that is
    not kept is skipped; the rows of `out` of a q-block that is not computed are left as they are.
    """

    def __init__(self, library, q, k, v, keep, computed, path, block):
        self.library = library
        self.out = torch.empty_like(q)
        self.skip, self.cache = packed(keep), packed(computed)
        self.operands = (q, k, v)  # the library keeps their addresses only
        problem = Problem(
            *(described(tensor) for tensor in (q, k, v, self.out)),
            cache=self.cache.data_ptr(),
            skip=self.skip.data_ptr(),
            symbols_on_gpu=1,
            symbol_batches=1,
            q_block=block,
            kv_block=block,
            is_bf16=int(q.dtype == torch.bfloat16),
            path=PATHS[path],
        )
        torch.cuda.synchronize()  # the library uploads on a stream of its own
        self.pointer = library.made(library.c.omni_attention(library.kernels, ctypes.byref(problem)))
        torch.cuda.synchronize()


class Projection(Call):
    """GEMM-Q or GEMM-O with `computed`, bool [heads, q_blocks] in blocks of `block` tokens, or of all tiles.

    GEMM-Q: x [tokens, inputs], weight [heads * head_dim, inputs], to [heads, tokens, head_dim]; norm [head_dim] and
    rotary [tokens, head_dim / 2, 2] in f32. GEMM-O, where `outputs` is said: x [heads, tokens, head_dim], weight
    [outputs, heads * head_dim], terms [tokens, outputs] with their weights, to [tokens, outputs].
    """

    def __init__(self, library, x, weight, heads, head_dim, computed=None, outputs=0, terms=(), norm=None, rotary=None, path="best", block=BLOCK):
        self.library = library
        tokens = x.shape[1] if outputs else x.shape[0]
        shape = (tokens, outputs) if outputs else (heads, tokens, head_dim)
        self.out = torch.empty(shape, dtype=x.dtype, device="cuda")
        self.operands = (x, weight, terms, norm, rotary)  # the library keeps their addresses only
        problem = GemmProblem(
            batch=1, heads=heads, head_dim=head_dim, all_tokens=tokens, first_token=0, tokens=tokens,
            inputs=0 if outputs else x.shape[1], outputs=outputs, x=x.data_ptr(), weight=weight.data_ptr(),
            out=self.out.data_ptr(), norm=norm.data_ptr() if norm is not None else 0, epsilon=1e-6,
            rotary=rotary.data_ptr() if rotary is not None else 0, is_bf16=int(x.dtype == torch.bfloat16),
            kv_tokens=BLOCK, q_block=block, kv_block=BLOCK, symbol_batches=1, path=PATHS[path],
        )  # fmt: skip
        for index, (term, factor) in enumerate(terms):
            problem.terms[index], problem.weights[index] = term.data_ptr(), factor
        if computed is not None:
            # One kv-block that is live everywhere: what is cached decides alone.
            self.cache = packed(computed)
            self.skip = torch.ones(*computed.shape, 1, dtype=torch.int64, device="cuda")
            problem.cache, problem.skip, problem.set = self.cache.data_ptr(), self.skip.data_ptr(), 1
        torch.cuda.synchronize()  # the library uploads on a stream of its own
        self.pointer = library.made(library.c.omni_projection(library.kernels, ctypes.byref(problem)))
        torch.cuda.synchronize()


class Selection(Call):
    """The symbols that a strategy chooses by q and k [1, heads, tokens, head_dim] at a step of layer 0.

    Its blocks of queries have 128 tokens, those of keys `kv_block`; running it gives S_c [heads, words] and
    S_s [heads, q_blocks, words] as 64-bit words, see `unpacked`.
    """

    def __init__(self, library, strategy, q, k, step, kv_block):
        self.library = library
        heads, tokens = q.shape[1:3]
        q_blocks, kv_blocks = -(-tokens // BLOCK), -(-tokens // kv_block)
        cache = torch.zeros(heads, -(-q_blocks // 64), dtype=torch.int64, device=q.device)
        skip = torch.zeros(heads, q_blocks, -(-kv_blocks // 64), dtype=torch.int64, device=q.device)
        self.out = (cache, skip)
        self.operands = (q, k)  # the library keeps their addresses only
        problem = SelectionProblem(
            strategy, described(q), described(k), cache.data_ptr(), skip.data_ptr(), step, 0, int(q.dtype == torch.bfloat16), 0
        )
        torch.cuda.synchronize()  # the library uploads on a stream of its own
        self.pointer = library.made(library.c.omni_selection(library.kernels, ctypes.byref(problem)))
        torch.cuda.synchronize()


def stream():
    return torch.cuda.current_stream().cuda_stream


def described(tensor):
    if tensor.stride(3) != 1:
        raise ValueError("rows of head_dim have to be in one piece")
    return Tensor(tensor.data_ptr(), tuple(tensor.shape), tensor.stride()[:3])


def packed(bits):
    """Bits [..., n] as 64-bit words [..., ceil(n / 64)], least significant first, padded with zeros."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 64))
    weights = torch.ones(64, dtype=torch.int64, device=bits.device) << torch.arange(64, device=bits.device)
    # Some heads at a time: each bit takes 8 bytes on the way.
    return torch.stack([(head.unflatten(-1, (-1, 64)) * weights).sum(-1) for head in padded])


def unpacked(words, count):
    """The first `count` bits of each row of words, as bool."""
    bits = words[..., None] >> torch.arange(64, device=words.device) & 1
    return bits.flatten(-2)[..., :count].bool()

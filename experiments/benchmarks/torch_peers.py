"""Times what a careful PyTorch user would write, at the sizes of `scale=paper`, on one GPU.

python -m experiments.benchmarks.torch_peers step 0.1        # dropout everywhere; 0.0 for none
python -m experiments.benchmarks.torch_peers sample 0.2      # guidance; 0.0 for none
python -m experiments.benchmarks.torch_peers decode 1 64     # sizes of a batch

bfloat16 products, torch.compile, scaled_dot_product_attention, fused AdamW; for decoding a static
cache and CUDA graphs. Weights and data are random. Each result is one line of JSON.
"""

import json
import math
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional

TOKENS, WIDTH, DEPTH, HEADS, HIDDEN = 257, 768, 24, 16, 3072
CODES, CLASSES = 1000, 1000
MASK = CODES + CLASSES


class SelfAttention(nn.Module):
    """Joined projections, then PyTorch's own attention."""

    def __init__(self, width, heads, dropout=0.0, bias=True):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = (nn.Linear(width, n * width, bias=bias) for n in (3, 1))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)
        return self.out(read.transpose(1, 2).flatten(2))


def mlp(width, hidden):
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
    )


class MaskedLayer(nn.Module):
    """A layer of BERT: the norm comes after each sum."""

    def __init__(self, dropout):
        super().__init__()
        self.attention = SelfAttention(WIDTH, HEADS, dropout)
        self.mlp = mlp(WIDTH, HIDDEN)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, eps=1e-12) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        x = self.norms[0](x + self.drop(self.attention(x)))
        return self.norms[1](x + self.drop(self.mlp(x)))


class MaskedTransformer(nn.Module):
    """MaskGIT's second stage; logits over tokens, tied to the word embedding."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.words = nn.Embedding(MASK + 1, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.layers = nn.ModuleList(MaskedLayer(dropout) for _ in range(DEPTH))
        self.norm, self.last_norm = (nn.LayerNorm(WIDTH, eps=1e-12) for _ in range(2))
        self.dense, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(CODES))

    def forward(self, tokens):
        x = self.drop(self.norm(self.words(tokens) + self.positions))
        for layer in self.layers:
            x = layer(x)
        x = self.last_norm(functional.gelu(self.dense(x), approximate="tanh"))
        return functional.linear(x, self.words.weight[:CODES], self.bias)


def seconds_of(run, repeats):
    """The median of the seconds that a call takes."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def report(name, size, seconds, **settings):
    result = {"name": name, "images_per_second": size / seconds, "ms": 1e3 * seconds}
    result |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(json.dumps(result | settings), flush=True)


def time_step(dropout, size=256):
    """One update of the masked transformer: forward, backward, AdamW, moving average."""
    model = MaskedTransformer(dropout).cuda()
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.96), weight_decay=0.045, fused=True
    )
    tokens = torch.randint(0, CODES, (size, TOKENS), device="cuda")
    target = torch.randint(0, CODES, (size, TOKENS), device="cuda")
    forward = torch.compile(model)

    def update():
        with torch.autocast("cuda", torch.bfloat16):
            logits = forward(tokens)
        loss = functional.cross_entropy(
            logits.flatten(0, 1).float(), target.flatten(), label_smoothing=0.1
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, list(model.parameters()), 1e-3)

    for _ in range(4):
        update()
    report(
        "transformer_step" if dropout else "transformer_step_no_dropout",
        size,
        seconds_of(lambda: [update() for _ in range(5)], 3) / 5,
        dropout=dropout,
    )


class ResBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(32, n, eps=1e-6) for n in (inputs, outputs))
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.side = nn.Conv2d(outputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x):
        y = self.first(functional.silu(self.norms[0](x)))
        y = self.second(functional.silu(self.norms[1](y)))
        return y + (x if self.side is None else self.side(y))


def tokenizer_decoder(latent=4):
    """MaskGIT's decoder: 128 filters times 4, 2, 2, 1, 1, from 16 x 16 codes to 256 x 256."""
    width = 512
    layers = [nn.Conv2d(latent, width, 3, padding=1), *(ResBlock(width, width) for _ in range(2))]
    for i, factor in enumerate((4, 2, 2, 1, 1)):
        layers += [ResBlock(width, 128 * factor), ResBlock(128 * factor, 128 * factor)]
        width = 128 * factor
        if i < 4:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]
    layers += [nn.GroupNorm(32, width, eps=1e-6), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)]
    return nn.Sequential(*layers)


@torch.inference_mode()
def time_sample(guidance, size=64, steps=12):
    """From classes to images: 12 steps of parallel decoding, then the tokenizer's decoder."""
    model = MaskedTransformer().cuda().bfloat16().eval()
    decoder = tokenizer_decoder().cuda().bfloat16().to(memory_format=torch.channels_last)
    codebook = torch.randn(CODES, 4, device="cuda", dtype=torch.bfloat16)

    @torch.compile
    def step(tokens, share, noise):
        masked = tokens == MASK
        if guidance:
            null = tokens.clone()
            null[:, 0] = MASK
            given, without = model(torch.cat([tokens, null])).float().chunk(2)
            logits = given + guidance * (given - without)
        else:
            logits = model(tokens).float()
        sampled = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)
        log_p = logits.log_softmax(-1).gather(-1, sampled[..., None])[..., 0]
        sampled = torch.where(masked, sampled, tokens)
        gumbel = -torch.empty_like(log_p).exponential_().log()
        sure = torch.where(masked, log_p + noise * gumbel, torch.inf)
        count = (256 * share).floor().clamp(min=1).long().expand(len(tokens), 1)
        bound = sure.sort(-1).values.gather(1, count)
        return torch.where(sure < bound, MASK, sampled), sampled

    @torch.compile
    def draw(indices):
        grid = codebook[indices].unflatten(1, (16, 16)).permute(0, 3, 1, 2)
        return decoder(grid.contiguous(memory_format=torch.channels_last)).clamp(0, 1)

    def run():
        tokens = torch.full((size, TOKENS), MASK, device="cuda")
        tokens[:, 0] = CODES + 7
        for i in range(steps):
            done = (i + 1) / steps
            share = torch.tensor(math.cos(math.pi / 2 * done), device="cuda")
            noise = torch.tensor(4.5 * (1 - done), device="cuda")
            tokens, sampled = step(tokens, share, noise)
        return draw(sampled[:, 1:].clamp(max=CODES - 1))

    run(), run()
    report("sample_guided" if guidance else "sample", size, seconds_of(run, 4), guidance=guidance)


class CrossAttention(nn.Module):
    """Attention of new tokens to keys and values that are at hand."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.memory = nn.Linear(width, 2 * width, bias=False)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x):
        return [self.split(part) for part in self.memory(x).chunk(2, -1)]

    def forward(self, x, keys, values, mask=None):
        read = functional.scaled_dot_product_attention(
            self.split(self.query(x)), keys, values, attn_mask=mask
        )
        return self.out(read.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A block of UViM's decoder, or of its encoder (without cross-attention)."""

    def __init__(self, width, heads, hidden, is_decoder):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own = CrossAttention(width, heads) if is_decoder else SelfAttention(width, heads)
        self.image = CrossAttention(width, heads) if is_decoder else None
        self.mlp = mlp(width, hidden)

    def forward(self, x):
        x = x + self.own(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))

    def step(self, x, own, image, position, mask):
        normed = self.norms[0](x)
        for cache, new in zip(own, self.own.keys_values(normed), strict=True):
            cache.index_copy_(2, position, new)
        x = x + self.own(normed, *own, mask)
        x = x + self.image(self.norms[1](x), *image)
        return x + self.mlp(self.norms[2](x))


class LanguageModel(nn.Module):
    """UViM's second stage: ViT-L over 1,024 patches, 24 decoder blocks, 256 tokens."""

    def __init__(self, width=1024, heads=16, hidden=4096, depth=24, vocabulary=4097, tokens=256):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        blocks = [[Block(width, heads, hidden, x) for _ in range(depth)] for x in (False, True)]
        self.encoder, self.decoder = (nn.ModuleList(x) for x in blocks)
        self.encoder_norm, self.decoder_norm = (nn.LayerNorm(width) for _ in range(2))
        self.words, self.logits = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.patch_positions = nn.Parameter(0.02 * torch.randn(1, 1024, width))
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))

    def encode(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2) + self.patch_positions
        for block in self.encoder:
            x = block(x)
        x = self.encoder_norm(x)
        return [block.image.keys_values(x) for block in self.decoder]

    def step(self, token, position, own, image):
        x = (self.words(token) + self.positions[position])[:, None]
        mask = (torch.arange(len(self.positions), device="cuda") <= position)[None, None, None]
        for block, past, context in zip(self.decoder, own, image, strict=True):
            x = block.step(x, past, context, position, mask)
        return self.logits(self.decoder_norm(x))[:, 0].float().argmax(-1)


@torch.inference_mode()
def time_decode(*sizes):
    """From images to all tokens of a label, greedily."""
    model = LanguageModel().cuda().bfloat16().eval()
    encode = torch.compile(model.encode)
    step = torch.compile(model.step, mode="reduce-overhead", fullgraph=True)
    positions = [torch.tensor([i], device="cuda") for i in range(256)]
    for size in map(int, sizes):
        run = decode_run(encode, step, positions, size)
        run(), run()
        report(f"decode_{size}", size, seconds_of(run, 3))


def decode_run(encode, step, positions, size):
    """A function that decodes a batch into caches that stay where they are, as graphs want it."""
    image = torch.randn(size, 3, 512, 512, device="cuda", dtype=torch.bfloat16)

    def fixed(*shape):
        array = torch.zeros(shape, device="cuda", dtype=torch.bfloat16)
        torch._dynamo.mark_static_address(array)
        return array

    own = [[fixed(size, 16, 256, 64) for _ in range(2)] for _ in range(24)]
    context = [[fixed(size, 16, 1024, 64) for _ in range(2)] for _ in range(24)]

    def run():
        for here, new in zip(context, encode(image), strict=True):
            for target, source in zip(here, new, strict=True):
                target.copy_(source)
        token = torch.zeros(size, dtype=torch.long, device="cuda")
        for position in positions:
            token = step(token, position, own, context).clone()
        return token

    return run


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    kinds = {"step": time_step, "sample": time_sample, "decode": time_decode}
    kinds[sys.argv[1]](*map(float, sys.argv[2:]))

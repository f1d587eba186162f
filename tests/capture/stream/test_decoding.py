"""Decoding against the formats' definitions, bit by bit, and against transformers where it can."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("torch")


def e4m3(code: int) -> float:
    """OCP 8-bit Floating Point 1.0, section 5.3: sign, 4 bits of exponent, 3 of mantissa."""
    sign = -1.0 if code & 128 else 1.0
    exponent, mantissa = code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * math.ldexp(mantissa, -9)
    return sign * math.ldexp(8 + mantissa, exponent - 10)


def e2m1(code: int) -> float:
    """OCP Microscaling Formats 1.0, section 5.3.3: sign, 2 bits of exponent, 1 of mantissa."""
    sign, exponent, mantissa = (-1.0 if code & 8 else 1.0), code >> 1 & 3, code & 1
    return sign * (mantissa / 2 if exponent == 0 else math.ldexp(2 + mantissa, exponent - 2))


def random_bytes(*shape: int, most: int = 256) -> Any:
    import torch

    source = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, most, shape, generator=source).to(torch.uint8)


def random_words(*shape: int) -> Any:
    import torch

    source = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-(1 << 31), 1 << 31, shape, generator=source).int()


def decoded(
    decode: Any, *stored: Any, shape: tuple[int, ...], dtype: Any = None, **how: Any
) -> Any:
    """What `decode` puts where nothing was, in float32 if not said."""
    import torch

    out = torch.full(shape, math.nan, dtype=dtype or torch.float32)
    decode(*stored, out=out, **how)
    return out


def test_every_exponent() -> None:
    import torch

    from moeprof.capture.stream.decoding import e8m0

    found = e8m0(torch.arange(256).to(torch.uint8)).double().tolist()
    assert found[:255] == [math.ldexp(1.0, code - 127) for code in range(255)]
    assert math.isnan(found[255])


def test_every_fp4_and_fp8_number() -> None:
    import torch

    from moeprof.capture.stream.decoding import decode_blocks

    every, half = torch.arange(256).to(torch.uint8).reshape(16, 16), torch.tensor([[0.5]])
    found = decoded(decode_blocks, every, half, (16, 32), shape=(16, 32), fp4=True)
    assert found.flatten().tolist() == [
        number / 2 for byte in range(256) for number in (e2m1(byte & 15), e2m1(byte >> 4))
    ]
    codes = every.view(torch.float8_e4m3fn)
    found = decoded(decode_blocks, codes, half, (16, 16), shape=(16, 16))
    for code, number in enumerate(found.flatten().tolist()):
        wanted = e4m3(code) / 2
        assert number == wanted or (math.isnan(number) and math.isnan(wanted))


def test_blocks_that_are_cut_at_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from moeprof.capture.stream import decoding

    monkeypatch.setattr(decoding, "CHUNK", 64)  # then rows are decoded in parts
    codes = random_bytes(2, 70, 20, most=100).view(torch.float8_e4m3fn)
    scales = torch.rand(2, 5, 3)
    found = decoded(decoding.decode_blocks, codes, scales, (16, 8), shape=(2, 70, 20))
    for expert in range(2):
        for row in range(70):
            for column in range(20):
                scale = scales[expert, row // 16, column // 8]
                assert found[expert, row, column] == codes[expert, row, column].float() * scale


def test_gpt_oss_as_transformers_decodes_it() -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from moeprof.capture.stream.decoding import decode_gpt_oss

    blocks, scales = random_bytes(3, 40, 2, 16), random_bytes(3, 40, 2, most=40) + 100
    for dtype in (torch.float32, torch.bfloat16):
        wanted = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
        found = decoded(decode_gpt_oss, blocks, scales, shape=(3, 64, 40), dtype=dtype)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("exponents", [False, True])
def test_fp8_as_transformers_decodes_it(exponents: bool) -> None:
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    from moeprof.capture.stream.decoding import decode_blocks, e8m0

    codes = random_bytes(64, 96, most=120).view(torch.float8_e4m3fn)
    scales = random_bytes(64, 3, most=40) + 100 if exponents else torch.rand(2, 3)
    wanted = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
    numbers = e8m0(scales) if exponents else scales
    block = (1, 32) if exponents else (32, 32)
    found = decoded(decode_blocks, codes, numbers, block, shape=(64, 96), dtype=torch.bfloat16)
    assert torch.equal(found, wanted)


@pytest.fixture(params=[32, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are decoded 32 at a time, or all at once."""
    from moeprof.capture.stream import decoding

    monkeypatch.setattr(decoding, "CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_word_by_word(bits: int) -> None:
    import torch

    from moeprof.capture.stream.decoding import decode_gptq

    inputs, outputs, groups, a_word = 32, 96, 4, 32 // bits
    words, zeros = random_words(inputs // a_word, outputs), random_words(groups, outputs // a_word)
    scales, mask = torch.rand(groups, outputs).half(), (1 << bits) - 1
    order = torch.arange(inputs).flip(0) % groups
    given = (words, zeros, scales, order.int())
    found = decoded(decode_gptq, *given, shape=(outputs, inputs), bits=bits, zero_offset=1)
    for out in range(outputs):
        for put in range(inputs):
            group = int(order[put])
            level = int(words[put // a_word, out]) >> bits * (put % a_word) & mask
            zero = int(zeros[group, out // a_word]) >> bits * (out % a_word) & mask
            assert found[out, put] == (level - zero - 1) * float(scales[group, out])


@pytest.mark.usefixtures("chunk")
def test_awq_word_by_word() -> None:
    import torch

    from moeprof.capture.stream.decoding import decode_awq

    words, zeros = random_words(32, 12), random_words(4, 12)
    scales = torch.rand(4, 96).half()
    found = decoded(decode_awq, words, zeros, scales, shape=(96, 32))
    for out in range(96):
        shift = 4 * [0, 2, 4, 6, 1, 3, 5, 7].index(out % 8)
        for put in range(32):
            level = int(words[put, out // 8]) >> shift & 15
            zero = int(zeros[put // 8, out // 8]) >> shift & 15
            assert found[out, put] == (level - zero) * float(scales[put // 8, out])


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("asymmetric", [False, True])
def test_packed_word_by_word(asymmetric: bool) -> None:
    import torch

    from moeprof.capture.stream.decoding import decode_packed

    shape = (70, 30)  # neither fills its words
    words, scales = random_words(70, 4), torch.rand(70, 3).half()
    zeros = random_words(9, 3) if asymmetric else None
    found = decoded(decode_packed, words, scales, zeros, None, shape=shape, bits=4)
    for out in range(70):
        for put in range(30):
            level = int(words[out, put // 8]) >> 4 * (put % 8) & 15
            zero = 8
            if zeros is not None:
                zero = int(zeros[out // 8, put // 10]) >> 4 * (out % 8) & 15
            assert found[out, put] == (level - zero) * float(scales[out, put // 10])

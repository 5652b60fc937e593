"""What `precision: auto` takes, by what devices say of themselves."""

from __future__ import annotations

import pytest
import torch

from slmctl.model import precision
from slmctl.model.precision import AMX_WIDTH, gains_by_bf16, has_amx


def never() -> int:
    raise AssertionError("the model's configuration was read, which does not matter here")


@pytest.mark.parametrize(
    ("told", "flags", "amx"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, set(), True),
        ({"amx_bf16": False, "avx512_bf16": True}, {"amx_bf16"}, False),  # torch's word goes before the kernel's
        ({"architecture": "aarch64", "bf16": True}, set(), False),
        ({}, {"avx2", "amx_bf16"}, True),
        ({}, {"avx2", "avx512_bf16"}, False),
    ],
)
def test_a_cpu_has_amx_by_its_flags(monkeypatch, told, flags, amx):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    monkeypatch.setattr(precision, "_linux_flags", lambda: flags)
    assert has_amx() == amx


def test_a_torch_that_tells_nothing_is_not_relied_on(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(precision, "_linux_flags", lambda: {"amx_bf16"})
    assert has_amx()


def test_no_flags_are_none(monkeypatch):
    def absent(*_args, **_how):
        raise FileNotFoundError

    monkeypatch.setattr(precision.Path, "read_text", absent)
    assert precision._linux_flags() == set()


def test_the_kernels_flags_are_the_first_cores(monkeypatch):
    text = "processor\t: 0\nmodel name\t: X flags\nflags\t\t: fpu avx2 amx_bf16\nbugs\t: none\nprocessor\t: 1\nflags\t\t: fpu\n"
    monkeypatch.setattr(precision.Path, "read_text", lambda *_args, **_how: text)
    assert precision._linux_flags() == {"fpu", "avx2", "amx_bf16"}


def test_a_cpu_with_amx_gains_from_some_width_on(monkeypatch):
    monkeypatch.setattr(precision, "has_amx", lambda: True)
    assert [gains_by_bf16("cpu", lambda w=w: w) for w in (0, AMX_WIDTH - 1, AMX_WIDTH, 4096)] == [False, False, True, True]
    monkeypatch.setattr(precision, "has_amx", lambda: False)
    assert not gains_by_bf16("cpu", never)


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_gains_where_it_does_not_emulate(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: how.get("including_emulation", True) or native)
    assert gains_by_bf16("cuda", never) == native

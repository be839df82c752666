"""Saved states, looked at before they are loaded: one that doesn't fit changes nothing."""

from __future__ import annotations

from typing import Any

import torch


def require_like(state: Any, like: Any, what: str) -> None:
    """Raises ValueError, naming the place, unless `state` is built as `like`: the same keys and lengths, types, and of
    tensors shape and dtype. Values may differ, and so may a tensor's device."""
    if type(state) is not type(like) and not (isinstance(state, dict) and isinstance(like, dict)):
        raise ValueError(f"{what} is {_kind(state)}, not {_kind(like)}")
    if isinstance(like, dict):
        if state.keys() != like.keys():
            missing, extra = sorted(map(str, like.keys() - state)), sorted(map(str, state.keys() - like))
            raise ValueError(f"{what} lacks {missing or 'nothing'} and has {extra or 'nothing'} beyond")
        for key, part in like.items():
            require_like(state[key], part, f"{what}.{key}")
    elif isinstance(like, list | tuple):
        if len(state) != len(like):
            raise ValueError(f"{what} has {len(state)} parts, not {len(like)}")
        for i, part in enumerate(like):
            require_like(state[i], part, f"{what}.{i}")
    elif isinstance(like, torch.Tensor) and (state.shape, state.dtype, state.layout) != (
        like.shape,
        like.dtype,
        like.layout,
    ):
        raise ValueError(f"{what} is {_kind(state)}, not {_kind(like)}")


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    return type(value).__name__

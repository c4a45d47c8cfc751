"""Answers to what a model asks of values as it runs, where its tensors have shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode


class Answers(TorchFunctionMode):
    """Lets a model whose tensors are fake choose tokens: all tokens of a prompt count, and experts share alike.

    Prompts have their full length (Lumina2 reads it). Where tokens are chosen by a mask, all are chosen by it and none
    by its inverse (HunyuanImage sorts them so). Each expert of a mixture gets the same share of the tokens, as its
    training aims at: HiDream's take ``num_activated_experts`` of a token's, so that the sum over experts depends on no
    choice. Tensors made of whole numbers, such as sizes, are real.
    """

    def __init__(self, text_tokens: int) -> None:
        super().__init__()
        self.text_tokens = text_tokens
        self.experts = 1
        """Number of what ``topk`` chose from last."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor or _are_real_and_whole(args, kwargs):
            with unset_fake_temporarily():
                return args[0].tolist() if func is Tensor.unbind and args[0].ndim == 1 else func(*args, **kwargs)
        if func is Tensor.item and args[0].dtype == torch.int64:
            return self.text_tokens
        if func is torch.all and args[0].numel() == 0:
            return True
        if func is Tensor.bincount:  # of the experts' indices
            shares = [self._share(args[0].numel(), i) for i in range(self.experts)]
            with unset_fake_temporarily():
                return torch.tensor(shares)
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0][torch.arange(self._chosen(args[1]))]
        if func in (torch.nonzero, Tensor.nonzero) and args[0].ndim == 1:  # Mochi's tokens of a row
            return torch.arange(self._chosen(args[0])).unsqueeze(1)
        found = func(*args, **kwargs)
        if func is torch.topk:
            self.experts = args[0].shape[-1]
        elif func is Tensor.__invert__:
            found.chooses_none = True
        elif func is Tensor.__eq__ and isinstance(args[1], int):
            found.of_expert = args[1]
        return found

    def _share(self, tokens: int, expert: int) -> int:
        """Tokens that an expert gets."""
        return tokens // self.experts + (expert < tokens % self.experts)

    def _chosen(self, mask: Any) -> int:
        """Tokens that a mask (tokens,) chooses."""
        if hasattr(mask, "of_expert"):
            return self._share(len(mask), mask.of_expert)
        return 0 if hasattr(mask, "chooses_none") else len(mask)


def _are_real_and_whole(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a call has tensors, alone or in a list, and all of them are real and of whole numbers."""
    found = False
    for given in (*args, *kwargs.values()):
        for x in given if isinstance(given, list | tuple) else (given,):
            if isinstance(x, Tensor):
                if isinstance(x, FakeTensor) or x.is_floating_point() or x.is_complex():
                    return False
                found = True
    return found

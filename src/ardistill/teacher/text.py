"""The text encoders of a teacher's pipeline: prompts to conditions."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ardistill.devices import first_dtype
from ardistill.families import SEQUENCE_LENGTH, Condition, Family
from ardistill.teacher.padding import join_conditions

_LOG = logging.getLogger(__name__)


class TextEncoders:
    """Text encoders and tokenizers, loaded at their first use and kept on a device only while they encode.

    Args:
        family: Knows how the pipeline's ``encode_prompt`` is called.
        pipeline_class: Name of diffusers' pipeline class; a folder's own code is not run.
        companions: The pipeline's components and settings, from a folder.
        scheduler: The pipeline's scheduler, which its constructor needs.
        transformer_config: The transformer's configuration, which pipelines ask for widths.
    """

    def __init__(
        self,
        family: Family,
        pipeline_class: str,
        companions: Mapping[str, Any],
        scheduler: Any,
        transformer_config: Any,
    ) -> None:
        self.family = family
        self.pipeline_class = pipeline_class
        self.companions = companions
        self.scheduler = scheduler
        self.transformer_config = transformer_config
        self.dtype = torch.float32
        """What embeddings are stored in by default: the encoders' 16-bit dtype if all were saved in 16 bits."""
        self._is_held = False

    @functools.cached_property
    def pipeline(self) -> Any:
        """The pipeline with text encoders and tokenizers, without transformer and VAE.

        Raises:
            ValueError: The teacher was not loaded from a folder, or transformers is not installed.
        """
        if getattr(self.companions, "source", None) is None:
            raise ValueError("expected a teacher loaded from a pipeline folder, which has the text encoders")
        if importlib.util.find_spec("transformers") is None:
            raise ValueError("text encoders need transformers: pip install 'ardistill[text]'")
        base = getattr(diffusers, self.pipeline_class)
        vae = self.companions.get("vae") if self.family.reads_vae else None
        given = {"transformer": None, "vae": vae, "scheduler": self.scheduler}
        for name, parameter in list(inspect.signature(base.__init__).parameters.items())[1:]:
            if name not in given and (name in self.companions or parameter.default is parameter.empty):
                given[name] = self.companions.get(name)
        pipeline = base(**given)
        pipeline.vae = None
        modules = _modules(pipeline)
        floating = {x.dtype for module in modules for x in module.parameters() if x.is_floating_point()}
        if floating and torch.float32 not in {next(module.parameters()).dtype for module in modules}:
            self.dtype = torch.bfloat16 if torch.bfloat16 in floating else torch.float16
        pipeline.transformer = SimpleNamespace(config=self.transformer_config, dtype=torch.float32)
        if "max_sequence_length" in self.companions:
            pipeline.register_to_config(**{SEQUENCE_LENGTH: self.companions["max_sequence_length"]})
        return pipeline

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Keep the text encoders on a device inside the block; afterwards they are on the CPU. Blocks can be nested.

        On a CPU, where half precision is slow or wrong, they run in float32, unless bfloat16 was asked for.
        """
        if self._is_held:
            yield
            return
        modules = _modules(self.pipeline)
        asked = getattr(self.companions, "dtype", None) == torch.bfloat16
        for module in modules:
            module.to(device)
            if device.type == "cpu" and not (asked and first_dtype(module) == torch.bfloat16):
                module.float()
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            for module in modules:
                module.to("cpu")

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str],
        device: torch.device,
        batch_size: int,
        negative: bool,
        longest: str | None,
        dtype: torch.dtype | None,
        first: int | None,
    ) -> Condition:
        """Encode prompts; `Teacher.encode` documents the arguments."""
        distinct = list(dict.fromkeys(prompts))
        longest = longest or self.longest_prompt(distinct)
        beside = [] if longest is None else [longest]
        before = 0 if first is None else first % batch_size
        filled = [distinct[0]] * before + distinct
        if first is not None:
            filled += [distinct[-1]] * (-len(filled) % batch_size)
        parts = [filled[i : i + batch_size] for i in range(0, len(filled), batch_size)]
        encode = (negative and self.family.encode_negative) or self.family.encode
        assert encode is not None
        with self.on(device):
            encoded = [(len(part), encode(self.pipeline, part + beside)) for part in parts]
            kept = [
                {name: x[:count].to("cpu", self._stored_dtype(x, dtype)) for name, x in found.items()}
                for count, found in encoded
            ]
        table = join_conditions(kept)
        number = {prompt: before + i for i, prompt in enumerate(distinct)}
        rows = torch.tensor([number[prompt] for prompt in prompts], device="cpu")
        return {name: value[rows] for name, value in table.items()}

    def _stored_dtype(self, x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
        return (dtype or self.dtype) if x.is_floating_point() else x.dtype

    def longest_prompt(self, prompts: Sequence[str]) -> str | None:
        """The longest prompt in tokens if the pipeline pads a batch to its longest prompt without a mask; else None."""
        if not self.family.encodes_to_longest:
            return None
        tokenizer = _of_text(self.pipeline.tokenizer)
        return max(prompts, key=lambda prompt: len(tokenizer(prompt).input_ids))

    def warn_of_cut_prompts(self, prompts: Sequence[str]) -> None:
        """Log, for each tokenizer, how many prompts are longer than its encoder reads; the rest has no effect."""
        for name, part in self.pipeline.components.items():
            tokenizer = _of_text(part)
            limit = text_limit(self.pipeline, tokenizer) if name.startswith("tokenizer") else None
            if limit is None:
                continue
            with _quiet():
                lengths = [len(x) for x in tokenizer(list(prompts), truncation=False).input_ids]
            if cut := sum(length > limit for length in lengths):
                _LOG.warning(
                    "%d of %d prompts are longer than the %d tokens of %s: the rest of each has no effect there",
                    cut, len(lengths), limit, name,
                )  # fmt: skip


def text_limit(pipeline: Any, tokenizer: Any) -> int | None:
    """Number of tokens that a pipeline reads of a prompt through one of its tokenizers; None if it is unknown."""
    own = getattr(tokenizer, "model_max_length", None)
    default = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    asked = pipeline.config.get(SEQUENCE_LENGTH, default.default) if default is not None else None
    if asked and not type(tokenizer).__name__.startswith(("CLIP", "Bert")):  # these have a fixed length
        return int(asked)
    return int(own) if own and own < 100_000 else None


def _of_text(tokenizer: Any) -> Any:
    """A tokenizer, or that of a processor, which would take prompts for images."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def _modules(pipeline: Any) -> list[nn.Module]:
    return [x for x in pipeline.components.values() if isinstance(x, nn.Module)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tokenizers' warning about each prompt that is too long."""
    log = logging.getLogger("transformers.tokenization_utils_base")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before

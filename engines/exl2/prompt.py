"""A request as ExLlamaV2 gets it: tokens, sampler settings, what steers the logits, and how the answer is to be read.

On a thread of its own: templates, tokenizers and grammars take milliseconds that the event loop and the generator
don't have. Everything that can be wrong with a request is found here, before the generator hears of it.
"""

from __future__ import annotations

import importlib
import secrets
from collections import OrderedDict
from functools import lru_cache
from threading import Lock
from typing import Any

from msgspec import Struct

from engines.answer_plan import Plan, plan, read_here
from engines.base import EngineError, GenerateRequest, Sampling
from engines.choice_writer import Form
from engines.control_text import Vocabulary, mask
from engines.exl2.call import Shown
from engines.exl2.loading import Model
from engines.exl2.samplers import Truncation, dry_of
from engines.exl2.steering import Steer, Steering
from engines.exl2.template import ChatTemplate
from engines.exl2.vocabulary import Tokens
from engines.final_message import split
from engines.grammar import CALL_END, CALL_START, Shape, grammar
from engines.thoughts import END as THOUGHT_END
from engines.thoughts import START as THOUGHT_START

MAX_GRAMMARS = 256
"""Remembered so as not to be compiled again; an application has a handful."""

MAX_BREAKERS = 32
"""Sets of sequence breakers remembered: to find their tokens, the whole vocabulary is read."""

GREEDY_BELOW = 0.01
"""The library's own sampler takes lower temperatures for greedy, too."""


class Prepared(Struct, frozen=True):
    """A request that can be submitted."""

    ids: list[int]
    new_tokens: int
    settings: dict[str, Any]
    shown: Shown
    steer: Steer
    matcher: Any = None
    """An llguidance.LLMatcher, to be copied for each choice."""

    def steering(self, tokens: Tokens, seed: int | None) -> Steering | None:
        """Return one choice's filter; None where the library's sampler alone will do."""
        if self.matcher is None and self.steer.idle:
            return None
        matcher = None if self.matcher is None else self.matcher.deep_copy()
        return Steering(self.steer, tokens.size, tokens.ends, matcher, prompt=self.ids, seed=seed)


class Preparer:
    """Prepares requests for one model. Thread-safe."""

    def __init__(self, model: Model) -> None:
        """Read tokenizer and template. Raises EngineError("invalid")."""
        folder = model.folder
        self.tokens = Tokens(folder.path, folder.vocabulary, folder.ends)
        self._template = ChatTemplate(folder.template, dict(folder.names))
        self._model = model
        self._vocabulary = Vocabulary.of(self.tokens.control, self.tokens.added, folder.template)
        tags = {CALL_START, CALL_END}
        self._native = CALL_START in folder.template and tags <= {
            *self.tokens.added,
            *self.tokens.control,
        }
        self._thinks = THOUGHT_START in folder.template
        self._guidance: Any = importlib.import_module("llguidance")
        self._matchers: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()
        self._having = lru_cache(MAX_BREAKERS)(self.tokens.having)

    def prepare(self, request: GenerateRequest) -> Prepared:
        """Return what is to be submitted. Raises EngineError."""
        planned = plan(request, native=self._native)
        if planned.with_tools and planned.shape is None:
            planned = read_here(planned, native=self._native)
        pieces, thinking = self._pieces(planned)
        ids = self.tokens.encode(pieces, begin=request.prompt is not None)
        return Prepared(
            ids=ids,
            new_tokens=self._new_tokens(request, len(ids)),
            settings=settings(request.sampling),
            shown=Shown(
                form=Form(
                    stop=request.stop if planned.forced is None else (),
                    forced=planned.forced,
                    tagged=planned.tagged,
                ),
                thinks=self._thinks and not planned.rendered,
                thinking=thinking,
                logprobs=request.logprobs and planned.forced is None,
            ),
            steer=self._steer(request),
            matcher=None if planned.shape is None else self._matcher(planned.shape),
        )

    def _pieces(self, planned: Plan) -> tuple[list[str], bool]:
        """Return the prompt's text, cut where nothing may be taken for a control token, and whether it ends in a
        thought.
        """
        request = planned.request
        if request.prompt is not None:
            return [request.prompt], False
        if not self._template.source:
            raise EngineError(
                "unsupported",
                "this model has no chat template: ask /v1/completions, or set `template:` to a file",
            )
        tools = request.tools if planned.with_tools else None
        mark = f"nenya{secrets.token_hex(8)}"
        masked = mask(request.messages, tools, self._vocabulary, mark)
        messages, begun = masked.messages, ""
        if request.continue_final:
            messages, begun = split(messages)
        given = {} if planned.shape is None else {"enable_thinking": False}
        text = self._template.render(messages, masked.tools, add_generation_prompt=True, **given)
        thinking = text.rstrip().endswith(THOUGHT_START)
        if thinking and planned.rendered:  # a grammar or a begun answer has no room for one
            text = f"{text.rstrip()}\n\n{THOUGHT_END}\n\n"
            thinking = False
        return masked.pieces(text + begun), thinking

    def _new_tokens(self, request: GenerateRequest, prompt: int) -> int:
        context = self._model.context_tokens
        if prompt >= context:
            raise EngineError(
                "prompt_too_long", f"the prompt has {prompt} tokens; the context holds {context}"
            )
        if prompt == 0:
            raise EngineError("invalid", "the prompt has no tokens")
        return min(request.max_tokens or self._model.spec.answer_tokens, context - prompt)

    def _steer(self, request: GenerateRequest) -> Steer:
        """Return what is done to the logits beside the sampler. Raises EngineError("invalid")."""
        sampling = request.sampling
        try:
            bias = {int(token): value for token, value in (sampling.logit_bias or {}).items()}
        except ValueError as error:
            raise EngineError("invalid", f"logit_bias takes ids of tokens: {error}") from error
        return Steer(
            bias=bias,
            frequency_penalty=sampling.frequency_penalty or 0.0,
            presence_penalty=sampling.presence_penalty or 0.0,
            repetition_penalty=sampling.repetition_penalty or 1.0,
            dry=dry_of(sampling, self._having),
            truncation=truncation(
                sampling, self._having(("\n",)) if sampling.xtc_probability else frozenset()
            ),
            top_logprobs=request.top_logprobs if request.logprobs else None,
        )

    def _matcher(self, shape: Shape) -> Any:
        """Return a matcher at its beginning. Raises EngineError for a grammar that can't be kept."""
        text = grammar(shape)
        with self._lock:
            if text in self._matchers:
                self._matchers.move_to_end(text)
                return self._matchers[text]
        guidance = self._guidance
        compiled = guidance.grammar_from("grammar", text)
        matcher = guidance.LLMatcher(self.tokens.grammars, compiled, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().split("\n", 1)[0]
            raise EngineError("invalid", f"the JSON schema can't be kept: {reason}")
        with self._lock:
            self._matchers[text] = matcher
            if len(self._matchers) > MAX_GRAMMARS:
                self._matchers.popitem(last=False)
        return matcher


def settings(sampling: Sampling) -> dict[str, Any]:
    """Return the library's sampler settings; every one is said, for its own are not neutral."""
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    min_p = sampling.min_p or 0.0
    greedy = is_greedy(sampling)
    left = not greedy and not _truncated_here(sampling)
    return {
        "temperature": 1.0 if greedy else temperature,
        "top_k": 1 if greedy else max(0, sampling.top_k or 0) if left else 0,
        "top_p": top_p if left and top_p < 1 else 0.0,
        "min_p": min_p if left else 0.0,
        "token_repetition_penalty": 1.0,
    }


def is_greedy(sampling: Sampling) -> bool:
    """Whether the likeliest token is taken. The library takes a ``min_p`` of 1 for none."""
    cold = sampling.temperature is not None and sampling.temperature < GREEDY_BELOW
    return cold or sampling.top_p == 0 or sampling.min_p == 1


def _truncated_here(sampling: Sampling) -> bool:
    """Whether samplers are wanted that the library has wrong."""
    return bool(sampling.xtc_probability) or 0 < (sampling.typical_p or 0) < 1


def truncation(sampling: Sampling, spared: frozenset[int]) -> Truncation | None:
    """Return what is truncated here; None where the library does it. ``spared``: see Truncation."""
    if is_greedy(sampling) or not _truncated_here(sampling):
        return None
    return Truncation(
        temperature=1.0 if sampling.temperature is None else sampling.temperature,
        top_k=max(0, sampling.top_k or 0),
        typical_p=sampling.typical_p or 0.0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        min_p=sampling.min_p or 0.0,
        xtc_probability=sampling.xtc_probability or 0.0,
        xtc_threshold=0.1 if sampling.xtc_threshold is None else sampling.xtc_threshold,
        spared=spared,
    )

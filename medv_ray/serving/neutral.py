"""Fields of OpenAI's and vLLM's chat API that this endpoint can do nothing about, in one table.

Clients send many of them with the value that asks for nothing. Those values are taken; any other
value is refused by the field's name, as an answer without it would not be what was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

OF_REQUEST: dict[str, tuple[Any, ...]] = {
    # OpenAI's
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, [], ["text"]),
    "moderation": (None,),
    "parallel_tool_calls": (None, False, True),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "prompt_cache_options": (None, {}),
    "prompt_cache_retention": (None, "in_memory"),
    "reasoning_effort": (None, "none"),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_p": (None, 1),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    # vLLM's
    "add_generation_prompt": (None, True),
    "add_special_tokens": (None, False),
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "best_of": (None, 1),
    "cache_salt": (None,),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
    "documents": (None, []),
    "ec_transfer_params": (None,),
    "echo": (None, False),
    "guided_choice": (None,),
    "guided_decoding_backend": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_whitespace_pattern": (None,),
    "ignore_eos": (None, False),
    "include_reasoning": (None, False, True),
    "include_stop_str_in_output": (None, False),
    "kv_transfer_params": (None,),
    "length_penalty": (None, 1),
    "logits_processors": (None, []),
    "logprob_token_ids": (None,),
    "media_io_kwargs": (None, {}),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "mm_processor_kwargs": (None, {}),
    "priority": (None, 0),
    "prompt_logprobs": (None,),
    "reasoning": (None,),
    "repetition_detection": (None,),
    "repetition_penalty": (None, 1),
    "request_id": (None,),
    "return_mm_kwargs": (None, True),
    "return_prompt_text": (None, False),
    "return_token_ids": (None, False),
    "return_token_offsets": (None, False),
    "return_tokens_as_token_ids": (None, False),
    "routed_experts_prompt_start": (None, 0),
    "session_id": (None,),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "stop_token_ids": (None, []),
    "stream_interval": (None,),
    "structural_tag": (None,),
    "structured_outputs": (None,),
    "thinking": (None,),
    "thinking_token_budget": (None,),
    "top_k": (None, 0, -1),
    "truncate_prompt_tokens": (None,),
    "truncation_side": (None,),
    "use_beam_search": (None, False),
    "vllm_xargs": (None, {}),
    "watermarking": (None, False),
}
"""Of a request: what each field may be."""
OF_MESSAGE: dict[str, tuple[Any, ...]] = {
    # what an answer of OpenAI's client has beside role and content, sent back as history
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None, ""),
    "tool_calls": (None, []),
    # what other clients and servers put beside them
    "cache_control": (None,),
    "images": (None, []),
    "parsed": (None,),
    "partial": (None, False),
    "prefix": (None, False),
    "provider_specific_fields": (None, {}, {"refusal": None}),
    "reasoning": (None, ""),
    "reasoning_content": (None, ""),
    "reasoning_details": (None, []),
    "thinking_blocks": (None, []),
    "tool_call_id": (None,),
}
"""Of a message."""
OF_PART: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "cache_control": (None,),
    "prompt_cache_breakpoint": (None,),
}
"""Of a part of a message's content."""

OF_RESPONSES: dict[str, tuple[Any, ...]] = {
    # OpenAI's
    "access_programs": (None,),
    "background": (None, False),
    "background_options": (None,),
    "context_management": (None, []),
    "conversation": (None,),
    "image": (None,),
    "include": (None, []),
    "max_tool_calls": (None,),
    "moderation": (None,),
    "parallel_tool_calls": (None, False, True),
    "previous_response_id": (None,),  # nothing is kept: send the dialogue
    "prompt": (None,),
    "prompt_cache_options": (None, {}),
    "prompt_cache_retention": (None, "in_memory"),
    "reasoning": (None, {}, {"effort": None}, {"effort": "none"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "top_p": (None, 1),
    "truncation": (None, "disabled"),
    # vLLM's
    "cache_salt": (None,),
    "enable_response_messages": (None, False),
    "include_stop_str_in_output": (None, False),
    "mm_processor_kwargs": (None, {}),
    "previous_input_messages": (None,),
    "priority": (None, 0),
    "repetition_penalty": (None, 1),
    "request_id": (None,),
    "skip_special_tokens": (None, True),
    "top_k": (None, 0, -1),
}
"""Of a request to /v1/responses."""
OF_ITEM: dict[str, tuple[Any, ...]] = {"phase": (None,)}
"""Of an item of its input."""
OF_INPUT_PART: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "file_id": (None,),
    "logprobs": (None, []),
    "prompt_cache_breakpoint": (None,),
}
"""Of a part of an item's content."""


def asks_for_nothing(value: Any, taken: tuple[Any, ...]) -> bool:
    """Whether a value is one of `taken`; true is not 1 here, and false not 0."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in taken)


Tables = Sequence[dict[str, tuple[Any, ...]]]


def what_is_taken(loc: Sequence[int | str], tables: Tables, lists: str) -> str | None:
    """What a field of a request may be, in words; None for one of no table.

    `tables`: of the request, of an entry of its list named `lists`, and of a part of that.
    """
    name = str(loc[-1])
    if len(loc) > 1 and not any(isinstance(one, int) for one in loc[-3:-1]):
        return None  # of an object inside of a request, an entry or a part
    table = tables[0]
    if lists in loc[:-1]:
        table = tables[2] if "content" in loc[:-1] else tables[1]
    if name not in table:
        return None
    *others, last = map(json.dumps, table[name])
    known = f"{', '.join(others)} or {last}" if others else last
    return f"only {known} is taken; this endpoint does not do what another value asks for"

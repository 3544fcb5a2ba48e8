"""OpenAI's wire format as data: requests, answers, stream events. Pure; no I/O, no clock."""

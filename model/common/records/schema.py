"""What stands in an answer file, and how every serving figure is defined. Imports nothing.

A line of NAME.jsonl is one question in Spec-Bench's format with per-step facts added:

    question_id, category, answer_id, model_id, tstamp
    choices[{
        index, turns, decoding_steps, new_tokens, wall_time, accept_lengths,       Spec-Bench's
        output_ids, prompt_tokens, finish_reason,                          per turn
        first_s, prefill_s, begin_s, slot, recompiled,                     per turn
        drafted, depth, step_end_s, draft_s, verify_s, commit_s,           per turn and step
        energy_j,                        per turn, where a meter was read (--energy)
        chunk_end_s, chunk_tokens,       per turn and chunk, of answers that came over a network
        tries,                           of those: requests that were needed, per turn
        chunk_tokens_estimated,          true: by the length of their texts, for want of counts
        accept_evidence}]                where their accept lengths come from, see ENGINES
    request  {arrival_s, sent_s}, of a load run: Unix times
    error    one line, where the question failed; failed_s beside it in a load run: Unix time;
             energy_j, one number: of its turns until then, where a meter was read

A step is one target forward after the prefill. An accept length is what a step commits, the bonus
included and after the stop cut, so the baseline's is 1.00; the prefill's own token is in no accept
length, hence new_tokens = 1 + sum(accept lengths of the turn), EOS included. wall_time = prefill +
steps in seconds, the device synchronised at both ends, tokenising and detokenising outside, but for
the tail that stop strings are looked for in. begin_s is the Unix time when the prefill began,
step_end_s when every step ended, in seconds from there. first_s is when the prompt's own token was
on the host, prefill_s when the drafter had read the prompt, too: what it does with a prompt is in
wall_time, and in no step.
With --batch-size B there are B slots, each of which takes the next question when its answer has
ended: a wall_time then holds the other slots' prefills and the harness' work for them. `recompiled`
counts the graphs that were compiled or captured within wall_time: 0 where the warm-up met every
shape.

`drafted` counts the candidates of a step's draft, and `depth` the nodes on the path to the deepest
of them; in older files it is a bound, of all slots' drafts with their padding.

Energy. energy_j is the energy of all metered devices from begin_s to begin_s + wall_time, shared
equally at every moment among the turns that were being answered, so that the turns' sum is the
energy of the time in which at least one was, those that failed among them. Idle power is not
subtracted; the meta has it beside.

Load runs. A request is one prompt of one turn. arrival_s is when the schedule, made before the run,
has it arrive; sent_s when the client handed it over (sent_s - arrival_s is the client's own lag);
begin_s when its prefill began, so that begin_s - sent_s is its time in the queue. The meta's `load`
is the schedule: its kind, its figures, its seed, and the arrivals in seconds after `began_s`.

ENGINES: of a server's answer begin_s is when the request was sent, prefill_s when the first chunk
with a token came, chunk_end_s when every later chunk came (both seconds from begin_s), chunk_tokens
how many tokens came with the first chunk and each later one, so that its sum is new_tokens; events
of one step are one chunk, which came when the first of them did. The queue within the server cannot
be seen. accept_lengths and decoding_steps stand there if the server said them, and accept_evidence
says how: {"source": one of EVIDENCE, "checked": the others that agree, "disagree": a sentence where
two do not}, one of all turns, no better than the least of them. Without evidence there are no
accept lengths, and decoding_steps counts the chunks behind the first. Where it gives the number of
steps alone, decoding_steps is that number. output_ids are absent where the server did not send all
of them.
"""

EVIDENCE = ("per_step", "summary", "usage", "counters", "plain")  # of accept lengths
"""Most trusted first. per_step: the server lists what each step committed; summary: its totals of
one request; usage: differences of completion_tokens between chunks, which say nothing by
themselves, since a chunk may hold several steps; counters: its metrics page before and after;
plain: the server, its command or --speculation says that it never drafts."""

SERVING = {
    "ttft": (
        "s",
        "first token on the client's side - arrival_s. vLLM's, SGLang's and AIPerf's tools count"
        " from the sending instead, so that waiting at the client is left out",
    ),
    "tpot": (
        "s",
        "(last token - first token) / (new_tokens - 1), one figure a request; none for answers of"
        " one token (as vLLM's, and AIPerf's ITL; GuideLLM's divides the whole request by"
        " new_tokens)",
    ),
    "itl": (
        "s",
        "gaps between tokens, pooled over requests: the tokens of a step (or a chunk) share its gap"
        " equally, so that speculation is not paid with zeros (as SGLang's of its own /generate);"
        " the tokens of a server's first chunk have none",
    ),
    "chunk_gap": (
        "s",
        "gaps between steps (or chunks), pooled: what vLLM's tool calls ITL, as SGLang's does of"
        " OpenAI-compatible servers, and AIPerf's inter-chunk latency",
    ),
    "e2e": ("s", "last token - arrival_s"),
    "queue": ("s", "begin_s - sent_s: waiting for a free slot; 0 for a server, which hides it"),
    "lag": ("s", "sent_s - arrival_s: how late the client itself was"),
    "request_throughput": ("1/s", "answered requests / busy interval"),
    "token_throughput": ("tokens/s", "new tokens of answered requests / busy interval"),
    "busy": (
        "s",
        "seconds in which at least one request had arrived and had not ended; wall is from the"
        " first arrival to the last end",
    ),
    "goodput": (
        "1/s",
        "requests that met every bound of --slo / busy interval; its share is of all requests, the"
        " failed ones among them",
    ),
    "acceptance": (
        "",
        "pooled: tokens accepted of drafts (accept length - 1 a step: all but the bonus) / tokens"
        " drafted; mean accepted tokens: over all steps (vLLM's tool: over those that drafted);"
        " both also as the mean over requests, those with nothing accepted among them",
    ),
    "joules_per_token": (
        "J",
        "sum of energy_j, of failed requests too / sum of new_tokens; none where a failed request"
        " of an older file says nothing of its energy",
    ),
}
"""Serving figures: {name: (unit, definition)}; evaluation/serving.py prints by it."""

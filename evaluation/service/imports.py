"""Result files of other tools as Runs: vLLM's bench serve, SGLang's bench_serving, AIPerf.

All three count from the sending of a request, so that waiting at the client is left out unless the
file says how long it was. What a file does not hold is None.

vLLM     a JSON object a run (--append-result: several in one file). With --save-detailed lists in
         seconds, a value a request: start_times (a clock of its own), ttfts, itls, latencies,
         queue_times (from arrival to sending), input_lens, output_lens, errors. Its ITL is the gap
         between chunks
SGLang   a line of JSON a run. With --output-details ttfts, itls, input_lens, output_lens, errors,
         but no start times. Its ITL is the gap between chunks, or, of its own /generate (backends
         sglang and sglang-native), shared among the tokens of a chunk as here
AIPerf   profile_export.jsonl: a line a request, metadata in nanoseconds and metrics with their
         units; inter_chunk_latency is the gap between chunks, inter_token_latency one mean a
         request, which is called TPOT here. profile_export_aiperf.json: aggregates only

Source: docs.vllm.ai and vllm/benchmarks/serve.py 0.32; docs.sglang.io, Bench Serving Guide, and
python/sglang/bench_serving.py; docs.nvidia.com/aiperf, Profile Export Files and Metrics Reference
"""

import json
import math
import re
from pathlib import Path

from evaluation.answers.meta import AnswerError
from evaluation.service.requests import Request, Run, of_answers, rate_of, shift

FROM_SENDING = "TTFT and E2E count from the sending: the file has no arrivals"
ITL_IS_GAP = "its ITL is the gap between chunks, called chunk gap here; their tokens are unknown"
ITL_IS_MEAN = "its inter_token_latency is one mean a request, called TPOT here"
AGGREGATES = "aggregates only: no intervals, no goodput, no slots"
VLLM = "vLLM bench"
SPACE = re.compile(r"\s*")
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}
SHARING = ("sglang", "sglang-native")  # backends of SGLang's tool whose ITL is per token
AIPERF = {"ttft": "time_to_first_token", "tpot": "inter_token_latency", "e2e": "request_latency"}
AIPERF |= {"chunk_gap": "inter_chunk_latency"}
COUNTS = {"new_tokens": "output_sequence_length", "prompt_tokens": "input_sequence_length"}


def read_runs(path):
    """[Run] of the file at `path`, of whichever tool; one that is none of them is refused."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise AnswerError(f"{path}: a directory; name one file") from None
    except UnicodeDecodeError:
        raise AnswerError(f"{path}: not UTF-8: no answer file and no tool's result") from None
    except OSError as error:
        raise AnswerError(f"{path}: {error.strerror}") from None
    records = [] if '"question_id"' in text.lstrip().split("\n", 1)[0] else objects_of(text)
    if not records:
        return [of_answers(path)]  # which says what is wrong with a broken file
    if all("metadata" in record and "metrics" in record for record in records):
        return [of_aiperf_records(records, path)]
    makers = [maker_of(record) for record in records]
    if None in makers:
        raise AnswerError(
            f"{path}: neither an answer file nor a result of vLLM's, SGLang's or AIPerf's tool"
        )
    runs = [maker(record, path) for maker, record in zip(makers, records)]
    if len(runs) > 1:
        for number, run in enumerate(runs, 1):
            run.label = f"{run.label}:{number}"
    return runs


def objects_of(text):
    """The JSON objects that stand one after another in a text; [] where it is something else."""
    decoder, found, position = json.JSONDecoder(), [], SPACE.match(text).end()
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        found.append(value)
        position = SPACE.match(text, position).end()
    return found


def maker_of(record):
    """What makes a Run of a tool's JSON object, None where it is none of theirs."""
    if "total_output_tokens_retokenized" in record or "mean_e2e_latency_ms" in record:
        return of_sglang
    if {"completed", "total_input_tokens", "total_token_throughput"} <= record.keys():
        return of_vllm
    if isinstance(record.get("request_latency"), dict) and "avg" in record["request_latency"]:
        return of_aiperf_summary
    return None


class Facts:
    """Checked access to one JSON object of another tool's file."""

    def __init__(self, record, path):
        self.record, self.path = record, path

    def number(self, name):
        """A finite number, None where the field is absent or null."""
        value = self.record.get(name)
        if value is None:
            return None
        if not is_number(value):
            raise AnswerError(f"{self.path}: {name} is no number")
        return float(value)

    def lists(self, *names):
        """{name: list, None where absent} of per-request lists, all of one length."""
        found = {name: self.record.get(name) for name in names}
        lengths = set()
        for name, values in found.items():
            if values is not None and not isinstance(values, list):
                raise AnswerError(f"{self.path}: {name} is no list")
            lengths |= set() if values is None else {len(values)}
        if len(lengths) > 1:
            sizes = ", ".join(f"{k} {len(v)}" for k, v in found.items() if v is not None)
            raise AnswerError(f"{self.path}: lists of different lengths: {sizes}")
        return found

    def times(self, name, values):
        """Refuse a list with something else than finite seconds, zero or more, in it."""
        if not all(is_number(value) and value >= 0 for value in values):
            raise AnswerError(f"{self.path}: {name} holds what is no time")


def is_number(value):
    """Whether a JSON value is a finite number."""
    kind = isinstance(value, int | float) and not isinstance(value, bool)
    return kind and math.isfinite(value)


def of_vllm(record, path):
    """The Run of a result of `vllm bench serve`."""
    facts, run = Facts(record, path), started(record, path, VLLM)
    names = ("ttfts", "itls", "output_lens", "input_lens", "errors")
    lists = facts.lists(*names, "start_times", "queue_times", "latencies")
    if lists["ttfts"] is None or lists["itls"] is None or lists["output_lens"] is None:
        return aggregates(run, facts, {"itl": "chunk_gap", "e2el": "e2e"})
    for name in ("ttfts", "start_times", "queue_times", "latencies"):
        facts.times(name, lists[name] or [])
    for index in range(len(lists["ttfts"])):
        values = {name: values[index] for name, values in lists.items() if values is not None}
        run.requests.append(sent_request(index, values, facts, per_token=False))
    given(run, facts, {})
    return told(run, [*([] if lists["queue_times"] else [FROM_SENDING]), ITL_IS_GAP])


def of_sglang(record, path):
    """The Run of a result of `sglang.bench_serving`."""
    facts, run = Facts(record, path), started(record, path, "SGLang bench")
    names = ("ttfts", "itls", "output_lens", "input_lens", "errors")
    lists, per_token = facts.lists(*names), record.get("backend") in SHARING
    if lists["ttfts"] is None or lists["itls"] is None or lists["output_lens"] is None:
        gaps = "itl" if per_token else "chunk_gap"
        return aggregates(run, facts, {"itl": gaps, "e2e_latency": "e2e"})
    facts.times("ttfts", lists["ttfts"])
    for index in range(len(lists["ttfts"])):
        values = {name: values[index] for name, values in lists.items() if values is not None}
        run.requests.append(sent_request(index, values, facts, per_token))
    given(run, facts, {})
    notes = [FROM_SENDING, "no start times: throughput is of its own duration, no slots"]
    if not per_token:
        notes += ["a server that sends no usage is taken at the tokens asked for", ITL_IS_GAP]
    return told(run, notes)


def started(record, path, source):
    """A Run without requests, named by its file; a null model or backend is none."""
    names = [record.get(name) for name in ("backend", "model_id", "max_concurrency")]
    return Run(
        path=path,
        label=path.stem,
        source=source,
        requests=[],
        rate=rate_of(record.get("request_rate")),
        system=" ".join(str(name) for name in names if name is not None),
    )


def told(run, notes):
    """The Run with what its definitions do not share with ours in its notes, its origin at zero."""
    run.notes += [f"read from a result of {run.source}", *notes]
    starts = [r.arrival_s for r in run.requests if r.arrival_s is not None]
    run.origin_s = min(starts, default=0.0)
    for request in run.requests:
        shift(request, run.origin_s)
    run.requests.sort(key=lambda request: request.arrival_s or 0.0)
    return run


def sent_request(index, values, facts, per_token):
    """The Request at `index` of per-request lists: {name of a list: its value}.

    Without a start time it is counted from its own sending, and nothing says when that was.
    """
    gaps, tokens, prompt = values["itls"], values["output_lens"], values.get("input_lens")
    if not isinstance(gaps, list):
        raise AnswerError(f"{facts.path}: itls holds what is no list")
    facts.times("itls", gaps)
    lines = str(values.get("errors") or "").strip().splitlines()  # the tools write tracebacks
    error = lines[-1].strip() if lines else None if values["ttfts"] else "no token came"
    if not is_number(tokens) or tokens < 0:
        raise AnswerError(f"{facts.path}: output_lens holds what is no count")
    sent_s = values.get("start_times")
    request = Request(index, error)
    request.arrival_s = (sent_s or 0.0) - values.get("queue_times", 0.0)
    request.sent_s = request.begin_s = sent_s
    first_s = (sent_s or 0.0) + values["ttfts"]
    last_s = first_s + math.fsum(gaps)
    if error is not None:
        request.end_s = None if sent_s is None else sent_s + values.get("latencies", 0.0)
        return request
    request.new_tokens, request.prompt_tokens = int(tokens), prompt
    request.first_s, request.last_s = first_s, last_s
    request.end_s = None if sent_s is None else last_s
    request.chunk_gaps = None if per_token else gaps
    request.token_gaps = gaps if per_token or len(gaps) + 1 == tokens else None
    return request


def aggregates(run, facts, words):
    """The Run of a file without per-request lists: what it states of all requests.

    words: {its word for a latency: ours}, TTFT and TPOT aside.
    """
    completed, failed = facts.number("completed"), facts.number("failed")
    run.requests = [Request(number) for number in range(int(completed or 0))]
    run.requests += [Request(f"failed {n}", error="failed") for n in range(int(failed or 0))]
    given(run, facts, {"ttft": "ttft", "tpot": "tpot", **words})
    run.notes += [f"read from a result of {run.source}", AGGREGATES, FROM_SENDING]
    run.notes += [] if words["itl"] == "itl" else [ITL_IS_GAP]
    if failed is None:
        run.notes.append("the file does not say how many requests failed")
    return run


def given(run, facts, words):
    """Take over the figures that a file of vLLM's or SGLang's tool states.

    words: {its word for a latency: ours}; empty where its requests are known.
    """
    run.given["wall_s"] = facts.number("duration")
    run.given["request_throughput_wall"] = facts.number("request_throughput")
    run.given["token_throughput_wall"] = facts.number("output_throughput")
    length = facts.number("spec_decode_acceptance_length") or facts.number("accept_length")
    if length is not None:
        if run.source == VLLM:
            run.notes.append("accepted/step is over the steps that drafted")
        run.given["acceptance"] = {"mean_accepted": length}
        share = facts.number("spec_decode_acceptance_rate")
        run.given["acceptance"] |= {} if share is None else {"rate": share / 100}
    if not words:
        return
    for name, ours in words.items():
        points = {"mean": f"mean_{name}_ms", "std": f"std_{name}_ms", "p50": f"median_{name}_ms"}
        points |= {f"p{percent}": f"p{percent}_{name}_ms" for percent in (90, 95, 99)}
        values = {point: facts.number(field) for point, field in points.items()}
        found = {point: ms / 1e3 for point, ms in values.items() if ms is not None}
        run.given[ours] = found if "mean" in found else None
    run.given["new_tokens"] = facts.number("total_output_tokens")
    run.given["prompt_tokens"] = facts.number("total_input_tokens")


def in_seconds(metric, where):
    """The value of AIPerf's {"value" or "avg", "unit"} in seconds; lists stay lists."""
    unit, value = metric.get("unit"), metric.get("value")
    values = value if isinstance(value, list) else [value]
    if unit not in SECONDS or not all(map(is_number, values)):
        raise AnswerError(f"{where}: no time in a known unit: {json.dumps(metric)[:80]}")
    times = [number * SECONDS[unit] for number in values]
    return times if isinstance(value, list) else times[0]


def of_aiperf_records(records, path):
    """The Run of AIPerf's profile_export.jsonl."""
    run = Run(path=path, label=path.stem, source="AIPerf", requests=[])
    credited = True
    for number, record in enumerate(records, 1):
        where = f"{path}: line {number}"
        metadata, metrics = record["metadata"], record["metrics"] or {}
        if not isinstance(metadata, dict) or not isinstance(metrics, dict):
            raise AnswerError(f"{where}: metadata or metrics is no JSON object")
        if metadata.get("benchmark_phase") not in (None, "profiling"):
            continue  # a warm-up
        for name in ("request_start_ns", "request_end_ns"):
            if not is_number(metadata.get(name)):
                raise AnswerError(f"{where}: metadata.{name} is no time")
        request = Request(metadata.get("x_request_id") or number)
        request.sent_s = request.begin_s = metadata["request_start_ns"] * 1e-9
        issued = metadata.get("credit_issued_ns")
        credited &= issued is not None
        request.arrival_s = request.sent_s if issued is None else issued * 1e-9
        request.end_s = metadata["request_end_ns"] * 1e-9
        if record.get("error"):
            error = record["error"]
            request.error = str(error.get("message") if isinstance(error, dict) else error)
        else:
            measure(request, metrics, where)
        run.requests.append(request)
    if not run.requests:
        raise AnswerError(f"{path}: no request behind the warm-up")
    return told(run, [*([] if credited else [FROM_SENDING]), ITL_IS_MEAN])


def measure(request, metrics, where):
    """Write AIPerf's metrics of one answered request into it."""
    for name, value in metrics.items():
        if not isinstance(value, dict | None):
            raise AnswerError(f"{where}: metrics.{name} is no JSON object")
    for ours, name in COUNTS.items():
        value = (metrics.get(name) or {}).get("value")
        if value is not None and not is_number(value):
            raise AnswerError(f"{where}: metrics.{name} is no number")
        setattr(request, ours, None if value is None else int(value))
    times = {
        ours: in_seconds(metrics[name], where)
        for ours, name in AIPERF.items()
        if metrics.get(name) is not None
    }
    if "ttft" in times:
        request.first_s = request.sent_s + times["ttft"]
    if "e2e" in times:
        request.last_s = request.sent_s + times["e2e"]
    gaps = times.get("chunk_gap", [] if request.new_tokens == 1 else None)
    request.chunk_gaps = gaps
    if gaps is not None and len(gaps) + 1 == request.new_tokens:
        request.token_gaps = gaps


def of_aiperf_summary(record, path):
    """The Run of AIPerf's profile_export_aiperf.json."""

    def single(name):
        metric = record.get(name)
        return metric.get("avg") if isinstance(metric, dict) else None

    run = Run(path=path, label=path.stem, source="AIPerf", requests=[])
    failed = sum(error.get("count", 0) for error in record.get("error_summary") or [])
    run.requests = [Request(number) for number in range(int(single("request_count") or 0))]
    run.requests += [Request(f"failed {n}", error="failed") for n in range(int(failed))]
    for name, field in AIPERF.items():
        metric = record.get(field)
        if isinstance(metric, dict) and is_number(metric.get("avg")):
            points = {"mean": "avg", "std": "std", "max": "max"}
            points |= {f"p{percent}": f"p{percent}" for percent in (50, 90, 95, 99)}
            run.given[name] = {
                point: in_seconds({"unit": metric.get("unit"), "value": metric[key]}, path)
                for point, key in points.items()
                if is_number(metric.get(key))
            }
    run.given["wall_s"] = single("benchmark_duration")
    run.given["request_throughput_wall"] = single("request_throughput")
    run.given["token_throughput_wall"] = single("output_token_throughput")
    run.given["new_tokens"], run.given["prompt_tokens"] = single("total_osl"), single("total_isl")
    run.notes += ["read from a result of AIPerf", AGGREGATES, FROM_SENDING, ITL_IS_MEAN]
    return run

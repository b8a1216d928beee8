"""Answer files of load runs with round numbers, and what they say by a slow count of its own.

Times are multiples of 1 / 1024 s, which Unix times in floating point hold exactly, so that the
count, in fractions, sees the numbers that the tools see.
"""

import random
from fractions import Fraction

from answer_samples import meta

BEGAN = 1.7e9
TICK = 1 / 1024


def ticks(number):
    """Unix time of a whole number of ticks after the beginning."""
    return BEGAN + number * TICK


def request_line(number, arrival, begin, prefill, gaps, **facts):
    """A line of a load run: times in ticks, gaps [(ticks, tokens)] of the steps.

    facts: sent, slot, drafted and energy_j, where they are not arrival, 0, nothing and absent.
    """
    ends, moment = [], prefill
    for gap, _ in gaps:
        moment += gap
        ends.append(moment * TICK)
    lengths = [tokens for _, tokens in gaps]
    ids = list(range(3, 4 + sum(lengths)))
    choice = {
        "index": 0,
        "turns": [f"answer {number}"],
        "decoding_steps": [len(lengths)],
        "new_tokens": [len(ids)],
        "wall_time": [moment * TICK],
        "accept_lengths": lengths,
        "output_ids": [ids],
        "prompt_tokens": [10 + number % 7],
        "finish_reason": ["stop"],
        "prefill_s": [prefill * TICK],
        "begin_s": [ticks(begin)],
        "slot": [facts.get("slot", 0)],
        "drafted": [facts.get("drafted", [0] * len(lengths))],
        "step_end_s": [ends],
    }
    if "energy_j" in facts:
        choice["energy_j"] = [facts["energy_j"]]
    times = {"arrival_s": ticks(arrival), "sent_s": ticks(facts.get("sent", arrival))}
    record = {"question_id": number, "category": "qa", "choices": [choice]}
    return record | {"request": times, "tstamp": 0.0}


def server_line(number, arrival, begin, prefill, chunks, first=1, evidence=None):
    """A line of a server's answer without ids: chunks [(ticks, tokens)] behind the first."""
    record = request_line(number, arrival, begin, prefill, chunks)
    (choice,) = record["choices"]
    choice["chunk_end_s"] = [choice.pop("step_end_s")[0]]
    choice["chunk_tokens"] = [[first, *(tokens for _, tokens in chunks)]]
    choice["new_tokens"] = [sum(choice["chunk_tokens"][0])]
    for name in ("output_ids", "accept_lengths", "drafted"):
        del choice[name]
    if evidence is not None:
        choice["accept_evidence"] = evidence
    return record


def failed_line(number, arrival, failed=None, energy_j=None):
    """A line of a request that failed; failed None: nobody knows when."""
    record = {"question_id": number, "category": "qa", "choices": []}
    record |= {"error": "CUDA out of memory", "tstamp": 0.0}
    record["request"] = {"arrival_s": ticks(arrival), "sent_s": ticks(arrival)}
    record |= {} if energy_j is None else {"energy_j": energy_j}
    return record | ({} if failed is None else {"failed_s": ticks(failed)})


def load_meta(model_id="m", method="pld", slots=4, rate="2", **load):
    """The meta of a load run."""
    found = meta(model_id, method, batch_size=slots)
    figures = {"kind": "rate", "seed": 0, "rate": rate, "burstiness": "1", "began_s": BEGAN}
    return found | {"load": figures | load}


def random_lines(number, seed, slots=4, speed=1.0):
    """Lines of `number` requests of which some fail and some have one token, in order of arrival.

    A free slot takes the request that has waited longest; speed: of the steps.
    """
    rng = random.Random(seed)
    free, arrival, lines = [0] * slots, 0, []
    for name in range(number):
        arrival += rng.randrange(30)
        if rng.random() < 0.08:
            failed = arrival + 50 if rng.random() < 0.7 else None
            lines.append(failed_line(name, arrival, failed, energy_j=2.75))
            continue
        steps = rng.choice((0, 1, 3, rng.randrange(40)))
        gaps = [
            (max(1, int(rng.randrange(2, 9) / speed)), rng.randrange(1, 5)) for _ in range(steps)
        ]
        sent = arrival + rng.choice((0, 0, 1, 3))
        slot = min(range(slots), key=lambda place: free[place])
        begin, prefill = max(sent, free[slot]), rng.randrange(5, 20)
        free[slot] = begin + prefill + sum(gap for gap, _ in gaps)
        facts = {"slot": slot, "drafted": [tokens + 2 for _, tokens in gaps]}
        facts |= {"sent": sent, "energy_j": rng.randrange(1, 50) / 4}
        lines.append(request_line(name, arrival, begin, prefill, gaps, **facts))
    return lines


def point(values, percent):
    """A percentile between the two nearest of sorted values, in fractions."""
    place = Fraction(percent, 100) * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def counted(lines):
    """Every figure of the lines, counted slowly and exactly: {name: a Fraction, a list or None}."""
    rows, failed = [], []
    for record in lines:
        arrival = Fraction(record["request"]["arrival_s"])
        if "error" in record:
            end = record.get("failed_s")
            failed.append((arrival, None if end is None else Fraction(end)))
            continue
        (choice,) = record["choices"]
        begin = Fraction(choice["begin_s"][0])
        ends = choice.get("chunk_end_s") or choice.get("step_end_s")
        moments = [
            begin + Fraction(choice["prefill_s"][0]),
            *(begin + Fraction(s) for s in ends[0]),
        ]
        tokens = (choice.get("chunk_tokens") or [[1, *choice.get("accept_lengths", [])]])[0]
        rows.append(
            {
                "arrival": arrival,
                "sent": Fraction(record["request"]["sent_s"]),
                "begin": begin,
                "end": begin + Fraction(choice["wall_time"][0]),
                "came": [m for m, n in zip(moments, tokens) for _ in range(n)],
                "chunks": [m for m, n in zip(moments, tokens) if n],
                "sizes": [n for n in tokens if n],
                "slot": choice["slot"][0],
                "energy": Fraction(choice.get("energy_j", [0])[0]),
                "accepted": [n - 1 for n in choice.get("accept_lengths", [])],
                "drafted": choice.get("drafted", [[]])[0],
            }
        )
    lost = sum(Fraction(record.get("energy_j", 0)) for record in lines)
    found = {**latencies(rows), **totals(rows, failed), "rows": rows, "failed": failed}
    return found | {"energy": lost + sum(row["energy"] for row in rows)}


def latencies(rows):
    """Sorted lists of every latency."""
    found = {name: [] for name in ("ttft", "tpot", "e2e", "queue", "lag", "itl", "chunk_gap")}
    for row in rows:
        found["queue"].append(row["begin"] - row["sent"])
        found["lag"].append(row["sent"] - row["arrival"])
        if not row["came"]:
            continue
        found["ttft"].append(row["came"][0] - row["arrival"])
        found["e2e"].append(row["came"][-1] - row["arrival"])
        if len(row["came"]) > 1:
            spent = row["came"][-1] - row["came"][0]
            found["tpot"].append(spent / (len(row["came"]) - 1))
        for before, after, size in zip(row["chunks"], row["chunks"][1:], row["sizes"][1:]):
            found["chunk_gap"].append(after - before)
            found["itl"] += [(after - before) / size] * size
    return {name: sorted(values) for name, values in found.items()}


def totals(rows, failed):
    """What is counted over the whole run, moment by moment."""
    spans = [(row["arrival"], row["end"]) for row in rows]
    spans += [(arrival, end) for arrival, end in failed if end is not None]
    edges = sorted({edge for span in spans for edge in span} | {row["begin"] for row in rows})
    found = {"busy": Fraction(0), "used": Fraction(0), "full": Fraction(0)}
    found |= {"most_used": 0, "most_queued": 0, "shares": [Fraction(0)] * len(spans)}
    slots = max((row["slot"] for row in rows), default=0) + 1
    for begin, end in zip(edges, edges[1:]):
        here = [i for i, span in enumerate(spans) if span[0] <= begin < span[1]]
        used = sum(row["begin"] <= begin < row["end"] for row in rows)
        queued = sum(row["arrival"] <= begin < row["begin"] for row in rows)
        found["most_used"] = max(found["most_used"], used)
        found["most_queued"] = max(found["most_queued"], queued)
        if here:
            found["busy"] += end - begin
            found["used"] += used * (end - begin)
            found["full"] += (end - begin) * (used == slots)
        for i in here:
            found["shares"][i] += (end - begin) / len(here)
    if spans:
        found["wall"] = max(end for _, end in spans) - min(begin for begin, _ in spans)
    found["tokens"] = sum(len(row["came"]) for row in rows)
    return found

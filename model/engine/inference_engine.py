"""Engine: answers of a server (vLLM, SGLang, llama.cpp, any of OpenAI's interface) over HTTP.

They stand in the answer files of the methods here, so that the same tools read them. Prompts are
rendered here by --model-path's tokenizer and sent as token ids where the server takes them. Accept
lengths are those on which the server's own figures agree (model/engine/evidence.py). An engine's
baseline is the same server without speculation: another run; --aa asks everything a second time,
which shows how often the server differs from itself.

Run:    vllm serve TARGET --dtype float32 --port 8000 --per-request-spec-decode-metrics detailed
            --speculative-config '{"method": "ngram", "num_speculative_tokens": 4}'
        python -m model.engine.inference_engine --url http://127.0.0.1:8000 --model-path TARGET
            --dtype float32
"""

from model.common.argument_types import at_least, between, json_object
from model.engine.run import main


def add_args(parser):
    """Flags that only servers have."""
    add = parser.add_argument
    add("--url", required=True, help="of the server: http://HOST:PORT")
    add("--model", metavar="NAME", help="which of the models that it serves (default: the one)")
    add("--engine-cmd", metavar="COMMAND", help="starts the server, which ends with the run")
    start_help = "longest time that --engine-cmd may take (seconds)"
    add("--engine-start", type=between(1, 1e5), default=900.0, metavar="S", help=start_help)
    add(
        "--api",
        choices=("auto", "completions", "chat", "llamacpp"),
        default="auto",
        help="chat: the server renders messages; auto: what takes token ids, else chat",
    )
    add("--speculation", metavar="TEXT", help="how it drafts, where it does not say; none: not")
    add("--aa", action="store_true", help="answer all again, into NAME-aa.jsonl")
    add("--extra-body", type=json_object, metavar="JSON", help="further fields of every request")
    add("--prompt-cache", action="store_true", help="let it reuse prompts of earlier requests")
    stall_help = "longest silence within an answer (seconds); the question fails then"
    add("--stall", type=between(0.1, 1e5), default=120.0, metavar="S", help=stall_help)
    retry_help = "of a request that is put off (HTTP 429, 502, 503, 504); none in a load run"
    add("--retries", type=at_least(0), default=3, metavar="N", help=retry_help)
    add("--api-key-env", metavar="NAME", help="variable of the environment with the server's key")


if __name__ == "__main__":
    main(__doc__, add_args)

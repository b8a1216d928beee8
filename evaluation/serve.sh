# What ./eval.sh serve sets before it runs methods under a load; eval.sh reads this file.
#
#   ./eval.sh serve                    vanilla and sps, 1 request a second for 300 seconds, one at a time
#   AUTO_RATE=0.5,1,2,4 AUTO_DURATION=60 ENABLE_BATCH=true ./eval.sh serve pld eagle2
#                                      four slots, a run a rate: latencies, throughput, the knee (SLO)
#   NUM_PROMPTS=100 ./eval.sh serve    100 requests back to back
#
# The names are those of a published suite (github.com/dadiaokua/speculative-decoding @ 7c8bdb2); eval.sh's own work as well, and
# LOAD="--concurrency 16 --num-prompts 200" takes the place of the first three. An empty value is none; true is true or TRUE. Of space
# and its baseline, and of vanilla-compile and vanilla-cudagraph, there are tables of their own.
#   NUM_PROMPTS 0 (above 0: so many, back to back)   AUTO_RATE 1 (requests a second)   AUTO_DURATION 300 (s)
#   ENABLE_BATCH (true: BATCH_SIZE slots, 4; false: 1)   GENERATION_LENGTH 100 (new tokens)   MAX_BATCH_LENGTH 512 (prompt tokens)
#   GAMMA_VALUE 4 (draft tokens of sps)   TARGET_MODEL, DRAFTER_MODEL (folders or hub ids)
#   SHAREGPT_DIR (folder of the three jsonl files; default: the bench's questions)   MAX_LOAD_LINES 10000 (of each)
#   PROMPT_MIN_LENGTH, PROMPT_MAX_LENGTH (characters; with SHAREGPT_DIR 10, 500)
#   ENABLE_SPECULATIVE, ENABLE_TARGET true   INFERENCE_METHOD (speculative, target_ar: one of them alone)
#   ENABLE_GPU_MONITOR true   GPU_MONITOR_INTERVAL 1.0 (s)
#   GPU_STRATEGY (same, separate, multi_gpu_ratio, auto)   TARGET_GPU_RATIO 6   DRAFTER_GPU_RATIO 2
#   OUTPUT_FILE benchmark_results.json (in the report's folder; with a slash: there), and its _speculative, _target, _gpu: of one
#           method at one rate
#   SLO  bounds of a good request: ttft=0.5,tpot=0.05 (s)

is_true() { [ "${1,,}" = true ]; }

for name in ENABLE_BATCH ENABLE_SPECULATIVE ENABLE_TARGET ENABLE_GPU_MONITOR; do
    case ${!name:-true} in
        [Tt][Rr][Uu][Ee] | [Ff][Aa][Ll][Ss][Ee]) ;;
        *)
            echo "eval.sh: $name=${!name}: true or false" >&2
            exit 2 ;;
    esac
done

[ -z "${TARGET_MODEL:-}" ] || TARGET=$TARGET_MODEL
SPS=(--schedule constant --num-draft "${GAMMA_VALUE:-4}" ${DRAFTER_MODEL:+--drafter-path "$DRAFTER_MODEL"})
MAX_NEW_TOKENS=${GENERATION_LENGTH:-${MAX_NEW_TOKENS:-100}}
if [ -n "${ENABLE_BATCH:-}" ]; then
    BATCH_SIZE=$(is_true "$ENABLE_BATCH" && echo "${BATCH_SIZE:-4}" || echo 1)
fi
if [ -z "${LOAD:-}" ]; then
    if [ "${NUM_PROMPTS:-0}" != 0 ]; then
        LOAD=(--num-prompts "$NUM_PROMPTS")
    elif [[ ${AUTO_RATE:-} == *inf* ]]; then
        echo "eval.sh: AUTO_RATE=$AUTO_RATE has no duration; LOAD=\"--rate inf --num-prompts 100\" says how many" >&2
        exit 2
    else
        LOAD=(--rate "${AUTO_RATE:-1}" --duration "${AUTO_DURATION:-300}")
    fi
fi
LOAD+=(--prompt-max-tokens "${MAX_BATCH_LENGTH:-512}")
if [ -n "${SHAREGPT_DIR:-}" ]; then
    LOAD+=(--sharegpt-dir "$SHAREGPT_DIR" --max-load-lines "${MAX_LOAD_LINES:-10000}")
    PROMPT_MIN_LENGTH=${PROMPT_MIN_LENGTH:-10} PROMPT_MAX_LENGTH=${PROMPT_MAX_LENGTH:-500}
fi
LOAD+=(${PROMPT_MIN_LENGTH:+--prompt-min-length "$PROMPT_MIN_LENGTH"})
LOAD+=(${PROMPT_MAX_LENGTH:+--prompt-max-length "$PROMPT_MAX_LENGTH"})
! is_true "${ENABLE_GPU_MONITOR:-true}" || LOAD+=(--energy if-any --energy-interval "${GPU_MONITOR_INTERVAL:-1.0}")
case ${GPU_STRATEGY:-} in
    "") ;;
    multi_gpu_ratio) LOAD+=(--gpu-strategy "multi-gpu-ratio:${TARGET_GPU_RATIO:-6}:${DRAFTER_GPU_RATIO:-2}") ;;
    *) LOAD+=(--gpu-strategy "$GPU_STRATEGY") ;;
esac
case ${INFERENCE_METHOD:-} in
    "") ;;
    speculative) ENABLE_TARGET=false ;;
    target_ar) ENABLE_SPECULATIVE=false ;;
    *)
        echo "eval.sh: INFERENCE_METHOD=$INFERENCE_METHOD: speculative or target_ar" >&2
        exit 2 ;;
esac
if ! is_true "${ENABLE_SPECULATIVE:-true}"; then
    set --
elif [ $# -eq 0 ]; then
    set -- sps
fi
BASELINE=$(is_true "${ENABLE_TARGET:-true}" && echo vanilla || true)
if [ -z "$BASELINE" ] && [ $# -eq 0 ]; then
    echo "eval.sh: ENABLE_TARGET and ENABLE_SPECULATIVE are both false: nothing is run" >&2
    exit 2
fi

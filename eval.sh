#!/usr/bin/env bash
# Runs methods over a bench, then prints the speedup table and the equality verdicts.
#
#   ./eval.sh                      all methods on the mini models that come with the project: CPU, minutes
#   ./eval.sh pld sps              some of them (vanilla, the baseline, always runs)
#   TARGET=lmsys/vicuna-7b-v1.3 BENCH=spec_bench ./eval.sh pld
#                                  a published target on Spec-Bench's 480 questions: one A100 or H100,
#                                  about an hour a method
#   ./eval.sh --setup              only prepare .venv and print its python
#
# Settings from the environment, with their defaults:
#   TARGET  data/mini_models/target    BENCH mini_bench    DTYPE float32 (another target: float16)
#   SPACE   a target fine-tuned for it: data/mini_models/space (another target: AntMan/vicuna-v1.3-7b-space);
#           its baseline is vanilla on that model, compared in a table of its own
#   FLAGS_row  further flags of a row: FLAGS_eagle3="--eagle-path DIR --total-token 32" ./eval.sh eagle3
#           (- in a row's name is _ here). Weights that are known for a target need no flag: see --help
#   SCALE_TO  7b, 13b, 70b, HxLxI: the target's twin of that size, drafts and heads with it (a GPU; nothing is fetched)
#   TEMPERATURE 0   TOP_P 1   SEED 0   MAX_NEW_TOKENS 256 (another target: 1024)
#   DEVICE auto   RUNTIME eager   BATCH_SIZE 1   NUM_THREADS 1 (another target: PyTorch's)   OVERWRITE (set: start anew)
#   CORPUS  jsonl that the indices of rest and samd are built from (default: a mini corpus, seed 2)
#   REST, SAM  their folders (default: data/BENCH/index/TARGET/...)   STATE cold (recycling, nasd, samd)
#   ARGS    further flags for every method, e.g. ARGS="--limit-per-category 2"
#   JUDGE   set: a verdict on every difference, by the target itself (equal.py --model-path)
#   PAIRED  set: every method decodes the baseline beside it, question by question, and is compared with that
# vanilla-compile, vanilla-cudagraph (GPU) and vanilla-hf (transformers' generate): further baselines, for the ladder.
# Sampled answers (TEMPERATURE above 0) are audited against the target's distribution.
#   PYTHON  an existing environment's interpreter, used as it is
set -euo pipefail
cd "$(dirname "$0")"

setup() {  # makes .venv when it is missing or requirements.txt changed; prints the interpreter
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
        return
    fi
    local stamp=.venv/.requirements wanted
    wanted=$(cat requirements.txt requirements-dev.txt)
    if [ ! -x .venv/bin/python ] || [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
        echo "setting up .venv" >&2
        local base
        for base in python3 python3.12 python3.11 python3.10 ""; do
            "$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
                2> /dev/null && break
        done
        if [ -z "$base" ]; then
            echo "eval.sh: no Python 3.10 to 3.12 found; PYTHON=... names one" >&2
            exit 2
        fi
        "$base" -m venv .venv >&2 || exit 2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt >&2 ||
            exit 2
        echo "$wanted" > $stamp
    fi
    echo .venv/bin/python
}

PYTHON=$(setup) || exit 2
if [ "${1:-}" = --setup ]; then
    echo "$PYTHON"
    exit
fi

MINI=data/mini_models/target
TARGET=${TARGET:-$MINI}
if [ "$TARGET" = $MINI ]; then  # one thread: the mini models are too small for more
    NUM_THREADS=${NUM_THREADS:-1} DTYPE=${DTYPE:-float32} MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-256}
    SPACE=${SPACE:-data/mini_models/space}
else
    DTYPE=${DTYPE:-float16} MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-1024}
    SPACE=${SPACE:-AntMan/vicuna-v1.3-7b-space}
fi
BENCH=${BENCH:-mini_bench} TEMPERATURE=${TEMPERATURE:-0} TOP_P=${TOP_P:-1} SEED=${SEED:-0}
[ "$TEMPERATURE" = 0 ] || JUDGE=  # sampled answers differ rightly: they are audited instead
NAME=$(basename "$TARGET" .gguf)${SCALE_TO:+-twin-$SCALE_TO}
ANSWERS=data/$BENCH/model_answer
INDEX=data/$BENCH/index/$(basename "$TARGET")
REST=${REST:-$INDEX/rest} SAM=${SAM:-$INDEX/samd}
answers_of() { echo "$ANSWERS/$NAME-$1-$DTYPE-temperature-$TEMPERATURE.jsonl"; }

run() {  # run NAME FLAG...: one method (NAME up to its dash) with the flags that all share
    local name=$1 method=${1%%-*} own=FLAGS_${1//-/_}
    shift
    echo "== $name" >&2
    "$PYTHON" -m "model.$method.inference_$method" \
        --model-path "$TARGET" --model-id "$NAME-$name-$DTYPE-temperature-$TEMPERATURE" \
        --bench-name "$BENCH" --dtype "$DTYPE" --temperature "$TEMPERATURE" --top-p "$TOP_P" \
        --seed "$SEED" --max-new-tokens "$MAX_NEW_TOKENS" --device "${DEVICE:-auto}" \
        --runtime "${RUNTIME:-eager}" --batch-size "${BATCH_SIZE:-1}" ${SCALE_TO:+--scale-to "$SCALE_TO"} \
        ${NUM_THREADS:+--num-threads "$NUM_THREADS"} ${OVERWRITE:+--overwrite} \
        $([ -z "${PAIRED:-}" ] || [ $method = vanilla ] || echo --paired) ${ARGS:-} "$@" ${!own:-}
}

index() {  # index MODULE FOLDER: build a corpus index that is not there; CORPUS is ours by default
    [ ! -e "$2/manifest.json" ] || return 0
    if [ -z "${CORPUS:-}" ]; then
        CORPUS=$INDEX/corpus.jsonl
        mkdir -p "$INDEX"
        [ -e "$CORPUS" ] || "$PYTHON" data/mini_bench/generate.py corpus --num-conversations 20000 \
            --seed 2 --output "$CORPUS" >&2
    fi
    "$PYTHON" -m "model.$1" --model-path "$TARGET" --input "$CORPUS" --output "$2" >&2
}

run_method() {  # run_method ROW: its method is its name up to the dash
    case $1 in
        vanilla-compile) RUNTIME=compile run "$1" ;;
        vanilla-cudagraph) RUNTIME=cudagraph run "$1" ;;
        vanilla-hf) RUNTIME=eager BATCH_SIZE=1 run "$1" --engine hf ;;
        recycling | nasd) run "$1" --state "${STATE:-cold}" ;;
        recycling-warm) run "$1" --state warm --prompt-seeds ;;
        rest)
            index rest.build_datastore "$REST"
            run rest --datastore-path "$REST" ;;
        samd)
            index samd.build_sam "$SAM"
            run samd --static-path "$SAM" --auxiliary recycling --state "${STATE:-cold}" ;;
        space)  # its target is fine-tuned, and its baseline is vanilla on that model
            local status=0
            run vanilla-space --model-path "$SPACE" || status=$?
            [ $status -le 1 ] || return $status
            run space --model-path "$SPACE" || status=$?
            return $status ;;
        sd2-chain) run "$1" --draft chain ;;
        specexec-specinfer) run "$1" --gen-type specinfer ;;
        *) run "$1" ;;
    esac
}

ALL=(vanilla)
for folder in model/*/inference_*.py; do
    method=$(basename "$(dirname "$folder")")
    [ "$method" = vanilla ] || ALL+=("$method")
    case $method in
        recycling) ALL+=(recycling-warm) ;;
        sd2) ALL+=(sd2-chain) ;;
        specexec) ALL+=(specexec-specinfer) ;;
    esac
done
for row in "$@"; do  # a name of your own needs flags that say what it is: FLAGS_sps_long="--num-draft 12"
    own=FLAGS_${row//-/_} known=" ${ALL[*]} vanilla-compile vanilla-cudagraph vanilla-hf "
    if [[ $known != *" $row "* ]] && { [ -z "${!own:-}" ] || [ ! -f "model/${row%%-*}/inference_${row%%-*}.py" ]; }; then
        echo "eval.sh: no method $row; there are: ${ALL[*]}" >&2
        exit 2
    fi
done
failed=0
FILES=() RUNGS=()
for method in vanilla "${@:-${ALL[@]:1}}"; do
    [ ${#FILES[@]} -eq 0 ] || [ "$method" != vanilla ] || continue
    code=0
    run_method "$method" || code=$?
    if [ $code -gt 1 ] && [ $# -eq 0 ] && [ "$method" != vanilla ]; then
        echo "eval.sh: $method is left out" >&2  # of all methods some have no weights for a target
        continue
    fi
    [ $code -le 1 ] || exit 2
    [ $code -eq 0 ] || failed=1
    case $method in
        space) SPACED=1 ;;
        vanilla-*) RUNGS+=("$(answers_of "$method")") ;;
        *) FILES+=("$(answers_of "$method")") ;;
    esac
done
BASE=${FILES[0]} FILES=("${FILES[@]:1}")

status=0
note_status() {  # note_status N: 2 (bad input) before 1 (a difference) before 3 (a suspicion)
    local rank=(0 2 3 1)
    [ "${rank[$1]:-3}" -le "${rank[$status]}" ] || status=$1
}
compare() {  # compare TARGET BASE FILE...: speedup table, what a step costs, verdicts
    local target=$1 base=$2 own=0
    shift 2
    [ $# -gt 0 ] || set -- "$base"
    if [ -n "${PAIRED:-}" ] && [ "$*" != "$base" ]; then
        "$PYTHON" evaluation/speed.py --profile --file-path "$@" --paired
    else
        "$PYTHON" evaluation/speed.py --profile --file-path "$@" --base-path "$base" \
            ${RUNGS[@]:+--ladder "${RUNGS[@]}"}
    fi
    "$PYTHON" evaluation/equal.py "$base" "$@" \
        ${JUDGE:+--model-path "$target" --device "${DEVICE:-auto}"} \
        ${JUDGE:+${NUM_THREADS:+--num-threads "$NUM_THREADS"}} || own=$?
    if [ -z "${JUDGE:-}" ] && [ $own -eq 1 ] && { [ "$DTYPE" != float32 ] || [ "$TEMPERATURE" != 0 ]; }; then
        own=0  # half precision flips near-ties, sampling draws other tokens
    fi
    note_status $own
    if [ "$TEMPERATURE" != 0 ]; then
        own=0
        "$PYTHON" evaluation/audit_sampling.py "$base" "$@" || own=$?
        note_status $own
    fi
}
compare "$TARGET" "$BASE" ${FILES[@]:+"${FILES[@]}"}
if [ -n "${SPACED:-}" ]; then
    RUNGS=()
    compare "$SPACE" "$(answers_of vanilla-space)" "$(answers_of space)"
fi
[ $failed -eq 0 ] || note_status 1
exit $status
